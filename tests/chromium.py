"""A headless Chromium, driven by selenium, for tests of the dashboard and its screenshots."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.conftest import need_program
from tests.running import WITHIN_S

T = TypeVar("T")

OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-default-apps", "--hide-scrollbars"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

# What an element says that has gone, or that has something before it at the moment.
CHANGING = (
    StaleElementReferenceException,
    ElementClickInterceptedException,
    ElementNotInteractableException,
)


class Browser:
    """What the tests do with a browser: everything waits until it can be done."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(self, path: str) -> None:
        """Open a page of the dashboard."""
        self.driver.get(self.url + path)

    def log_in(self, token: str, path: str = "/dashboard") -> None:
        """Open a page, and pass the login."""
        self.open(path)
        self.find("#token").send_keys(token)
        self.click(".login button")
        self.wait(lambda: urlsplit(self.driver.current_url).path == urlsplit(path).path)

    def find(self, css: str) -> WebElement:
        """Return the first element that matches, once it is shown."""
        return self.wait(lambda: self._shown(css), css)

    def all(self, css: str) -> list[WebElement]:
        """Return all elements that match now."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def click(self, css: str) -> None:
        """Click on the first element that matches."""
        self._act(lambda: self._shown(css), WebElement.click, css)

    def click_text(self, css: str, text: str) -> None:
        """Click on the first element whose text begins so."""
        self._act(
            lambda: next((e for e in self.all(css) if e.text.startswith(text)), None),
            WebElement.click,
            text,
        )

    def type(self, css: str, text: str) -> None:
        """Put a text into a field, in place of what is there."""

        def put(field: WebElement) -> None:
            field.clear()
            field.send_keys(text)

        self._act(lambda: self._shown(css), put, css)

    def _shown(self, css: str) -> WebElement | None:
        return next((e for e in self.all(css) if e.is_displayed()), None)

    def _act(
        self, find: Callable[[], WebElement | None], act: Callable[[WebElement], None], what: str
    ) -> None:
        """Do something with an element, once: what is replaced meanwhile was not done."""

        def is_done() -> bool:
            if (element := find()) is None:
                return False
            act(element)
            return True

        self.wait(is_done, what)

    def text(self, css: str = "body") -> str:
        """Return what an element shows; of the whole page if none is named."""
        text: str = self.run("return document.querySelector(arguments[0])?.innerText ?? ''", css)
        return text

    def sees(self, text: str, css: str = "body") -> None:
        """Wait until an element shows a text."""
        self.wait(lambda: text in self.text(css), f"{text!r} in {css}")

    def run(self, script: str, *arguments: object) -> Any:
        """Run JavaScript in the page, past its policy, as a debugger does."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], T | None], what: str = "") -> T:
        """Return what `condition` gives once it is true. It may meet a page that is changing."""
        waiting = WebDriverWait(self.driver, WITHIN_S, 0.05, ignored_exceptions=CHANGING)
        try:
            found = waiting.until(lambda _: condition())
        except TimeoutException:
            pytest.fail(f"not within {WITHIN_S} s: {what}\n{self.text()[:3000]}")
        assert found is not None
        return found

    def complaints(self) -> list[str]:
        """Return what the console said since it was last asked: errors, refusals of the policy."""
        return [str(entry["message"]) for entry in _log(self.driver, "browser")]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since this was last called."""
        entries = _log(self.driver, "performance")
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]


def _log(driver: Chrome, kind: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = driver.get_log(kind)  # type: ignore[no-untyped-call]
    return entries


@contextmanager
def chromium(url: str, folder: Path, *, size: tuple[int, int] = (1280, 900)) -> Iterator[Browser]:
    """Run a browser until the end of the block."""
    binary, driver = need_program("chromium", "google-chrome"), need_program("chromedriver")
    options = ChromeOptions()
    options.binary_location = binary
    for option in (*OPTIONS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options, Service(driver))
    try:
        chrome.set_window_size(*size)
        yield Browser(chrome, url)
    finally:
        chrome.quit()
