"""Every page of the dashboard: accessible, light, its own; and nothing in it can run."""

import gzip
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import pytest

from service.embedded import EmbeddedPostgres
from service.signature import HEADER, sign
from tests import bridge
from tests.chromium import Browser
from tests.dashboard import ADMIN, PATHS, browsing, make_token, send
from tests.running import ROOT, SECRET, WITHIN_S, Process

AXE = (ROOT / "tests" / "dashboard_assets" / "axe-4.14.1.min.js").read_text()
RUN_AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ["violations"]}).then((found) => done(found.violations.map(
  (v) => [v.impact, v.id, v.nodes.slice(0, 3).map((n) => n.html.slice(0, 200))])));
"""
PAGE_MAX_BYTES = 150_000
EVIL = "<img src=x onerror=window.pwned=1>'\"><script>window.pwned=1</script>"
Site = tuple[Process, Browser]


@pytest.fixture(scope="module")
def site(postgres: EmbeddedPostgres) -> Iterator[Site]:
    """A dashboard with one of everything, each with a name that would like to run."""
    with browsing(postgres) as (process, browser):
        browser.driver.set_script_timeout(WITHIN_S)  # for axe; the driver's own is 30 s
        _fill(process)
        yield process, browser


def _fill(process: Process) -> None:
    send(process, bridge.body("item.refreshed", item_id=7, status_code=402, status_code_info=EVIL))
    send(process, _evil_event())
    send(process, bridge.body("item.refreshed", item_id=8, status_code=EVIL))
    make_token(process, EVIL)
    make_token(process, "revoked-later")
    wish = {"start": "start", "filter": {"sources": [EVIL], "types": ["item.*"]}}
    for name in ("evil", "other"):
        answer = httpx2.put(f"{process.url}/consumers/{name}", json=wish, headers=ADMIN)
        assert answer.status_code == 201, answer.text
    httpx2.post(f"{process.url}/webhooks/bridge", content=b"forged")


def _evil_event(**more: object) -> bytes:
    content = {"item_id": EVIL, "account_id": EVIL, "user_uuid": EVIL, EVIL: {"a": [EVIL]}, **more}
    return json.dumps({"type": EVIL, "timestamp": 1, "content": content}).encode()


def paths() -> list[str]:
    """Return every page, also with something in it."""
    return [
        *(f"/dashboard{path}" for path in PATHS),
        *("/dashboard?range=week", "/dashboard/events/1", "/dashboard/events/2"),
        *("/dashboard/items?q=7", "/dashboard/items?q=8", f"/dashboard/items?q={bridge.USER}"),
        *("/dashboard/items?q=%3Cscript%3E", "/dashboard/events?type=%3Cscript%3E"),
        *("/dashboard/events?type=nothing", "/dashboard/nowhere"),
    ]


def _colours(browser: Browser, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def violations(browser: Browser) -> list[object]:
    """Return what axe finds on the page."""
    browser.run(AXE)
    found: list[object] = browser.driver.execute_async_script(RUN_AXE)
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(site: Site, scheme: str) -> None:
    _, browser = site
    _colours(browser, scheme)
    found = {}
    for path in paths():
        browser.open(path)
        if bad := violations(browser):
            found[path] = bad
    for path, button in (("/tokens", "Create"), ("/tokens", "Revoke"), ("/consumers", "Reset")):
        browser.open(f"/dashboard{path}")
        browser.click_text("main button", button)
        browser.find("dialog[open]")
        if bad := violations(browser):
            found[button] = bad
    assert found == {}


def test_axe_finds_nothing_on_the_login(site: Site) -> None:
    _, browser = site
    cookies = browser.driver.get_cookies()
    browser.driver.delete_all_cookies()
    for scheme in ("light", "dark"):
        _colours(browser, scheme)
        browser.open("/dashboard/login")
        assert violations(browser) == []
        browser.type("#token", "wrong")
        browser.click(".login button")
        browser.find("#wrong")
        assert violations(browser) == []
    for cookie in cookies:
        browser.driver.add_cookie(cookie)


def test_axe_would_find_something(site: Site) -> None:
    _, browser = site
    browser.open("/dashboard/log")
    browser.run("document.querySelector('nav').innerHTML += '<img src=\"/x\"><a href=\"/y\"></a>'")
    assert len(violations(browser)) >= 2


def test_nothing_that_comes_from_an_event_or_a_name_runs(site: Site) -> None:
    process, browser = site
    browser.complaints()
    for path in paths():
        browser.open(path)
        assert browser.run("return window.pwned ?? null") is None, path
        assert not browser.all("img[src=x]"), path
    browser.open("/dashboard/events")
    browser.sees("live", "#state")
    position = send(process, _evil_event(again=1))  # what the script puts into the page
    browser.wait(lambda: browser.all(f"tr[data-position='{position}']"))
    assert EVIL in browser.text("#rows")
    assert browser.run("return window.pwned ?? null") is None
    assert not browser.all("img[src=x]")
    # Not even stopped by the policy: it was never there to be stopped.
    assert not [text for text in browser.complaints() if "Content Security Policy" in text]


def test_the_policy_stops_what_would_run_all_the_same(site: Site) -> None:
    _, browser = site
    browser.open("/dashboard/log")
    browser.complaints()
    browser.run(
        "document.getElementById('notice').innerHTML = '<img src=x onerror=\"window.pwned=1\">';"
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 1';"
        "document.body.append(s);"
    )
    browser.wait(lambda: "Content Security Policy" in "".join(browser.complaints()))
    assert browser.run("return window.pwned ?? null") is None


def test_no_page_is_heavy_and_none_asks_another_host(site: Site) -> None:
    process, browser = site
    browser.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
    host = urlsplit(process.url).netloc
    for path in paths():
        browser.requests()
        browser.open(path)
        asked = [url for url in browser.requests() if not url.startswith("data:")]
        assert {urlsplit(url).netloc for url in asked} == {host}, path
    for path in ("/dashboard", "/dashboard/events"):
        assert 0 < _weight(browser, path) < PAGE_MAX_BYTES


def _weight(browser: Browser, path: str) -> int:
    """Return the bytes of a page and its files, compressed, as if none was kept."""
    browser.open(path)
    names = browser.run("return performance.getEntriesByType('resource').map((e) => e.name)")
    files = {name for name in names if "/static/" in name}
    assert len(files) >= 5
    total = len(gzip.compress(browser.driver.page_source.encode()))
    with httpx2.Client() as client:
        for name in files:
            with client.stream("GET", name, headers={"accept-encoding": "gzip"}) as answer:
                total += sum(len(chunk) for chunk in answer.iter_raw())
    return total


def test_a_thousand_events_a_second_leave_the_page_usable(site: Site) -> None:
    """The bound: however much comes, the table keeps 200 rows, the newest on top, no hole."""
    process, browser = site
    browser.open("/dashboard/events")
    browser.sees("live", "#state")
    head = 0
    with httpx2.Client() as client:
        for _ in range(700):
            body = bridge.body()
            answer = client.post(
                f"{process.url}/webhooks/bridge",
                content=body,
                headers={HEADER: sign(body, (SECRET,))},
            )
            head = int(answer.headers["causeway-position"])
    shown: list[str] = []

    def is_drawn() -> bool:
        shown[:] = browser.run(
            "return [...document.querySelectorAll('#rows tr[data-position]')]"
            ".map((r) => r.dataset.position)"
        )
        return shown[:1] == [str(head)]

    browser.wait(is_drawn)
    assert shown == [str(position) for position in range(head, head - 200, -1)]
    browser.run("window.scrollTo(0, document.body.scrollHeight)")
    browser.wait(lambda: browser.all(f"tr[data-position='{head - 249}']"))


def test_it_is_used_with_the_keyboard_alone(site: Site) -> None:
    _, browser = site
    browser.open("/dashboard/tokens")
    active = browser.driver.switch_to.active_element
    active.send_keys("\ue004")  # Tab
    assert browser.driver.switch_to.active_element.text == "Skip to the content"
    browser.run("document.querySelector('[data-dialog=create]').focus()")
    browser.driver.switch_to.active_element.send_keys("\ue007")  # Enter
    browser.find("#create[open]")
    assert browser.run("return document.querySelector('#create').contains(document.activeElement)")
    browser.driver.switch_to.active_element.send_keys("\ue00c")  # Escape
    browser.wait(lambda: not browser.all("#create[open]"))
    assert browser.run("return document.activeElement.dataset.dialog") == "create"
