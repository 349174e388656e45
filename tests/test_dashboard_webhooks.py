"""The dashboard's webhooks in a real browser: made, tested, watched, mended, replayed, deleted."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from selenium.webdriver.common.by import By

from service.dashboard.webhook_form import KNOWN
from service.dashboard.webhook_words import ERRORS
from service.embedded import EmbeddedPostgres
from service.filter import topic_of
from service.metrics import ATTEMPT_OUTCOMES
from service.payloads import EVENTS
from tests import bridge
from tests.chromium import Browser
from tests.dashboard import ADMIN, browsing, csrf_of, logged_in, send, site
from tests.receiver import Receiver
from tests.relaying import RELAY
from tests.running import Process
from tests.test_dashboard_look import EVIL, PAGE_MAX_BYTES, _colours, _weight, violations

ENVIRONMENT = {f"CAUSEWAY_{name.upper()}": str(value) for name, value in RELAY.items()}
API = "/api/webhooks"
Site = tuple[Process, Browser, Receiver]


@pytest.fixture(scope="module")
def shared(postgres: EmbeddedPostgres) -> Iterator[Site]:
    with Receiver() as receiver, browsing(postgres, **ENVIRONMENT) as (process, browser):
        yield process, browser, receiver


@pytest.fixture
def page(shared: Site) -> Iterator[Site]:
    """A browser that is logged in, no webhook; nothing of the page may have been refused."""
    process, browser, receiver = shared
    receiver.reset()
    _colours(browser, "light")
    browser.complaints()
    yield process, browser, receiver
    for webhook in api(process, "GET", API)["webhooks"]:
        api(process, "DELETE", f"{API}/{webhook['id']}")
    refused = [
        text
        for text in browser.complaints()
        if not re.search("Failed to load resource|Response Status Error Code 4", text)
    ]
    assert refused == []


def api(process: Process, method: str, path: str, body: Any = None) -> Any:
    answer = httpx2.request(method, f"{process.url}{path}", json=body, headers=ADMIN)
    assert answer.status_code < 300, answer.text
    return answer.json() if answer.content else None


def make(process: Process, url: str, **wish: Any) -> str:
    """Make a webhook by the API; return its page."""
    made = api(process, "POST", API, {"url": url, "name": "billing"} | wish)
    return f"/dashboard/webhooks/{made['id']}"


def until_settled(process: Process, browser: Browser, place: str) -> None:
    """Wait until nothing of a webhook is to be sent, or on its way, or not yet written down."""
    path = f"{API}/{place.rsplit('/', 1)[1]}"

    def is_settled() -> bool:
        if api(process, "GET", path)["lag_events"]:
            return False
        return not api(process, "GET", f"{path}/deliveries?state=pending")["deliveries"]

    browser.wait(is_settled, f"deliveries of {place}")


def confirm(browser: Browser) -> None:
    browser.click("dialog[open] button[type=submit]")
    browser.wait(lambda: not browser.all("dialog[open]"))


def test_the_picker_offers_all_that_bridge_sends_and_every_error_has_words() -> None:
    assert {topic_of(type_) for type_ in EVENTS} | {"TEST_EVENT"} == KNOWN
    assert set(ERRORS) == set(ATTEMPT_OUTCOMES) - {"success"}


def test_a_webhook_is_made_with_the_picker_and_its_secret_shown_once(page: Site) -> None:
    process, browser, receiver = page
    browser.open("/dashboard/webhooks")
    browser.sees("No webhook yet")
    browser.click_text("a.button", "Add a webhook")
    browser.type("[name=url]", f"{receiver.url}/good")
    browser.type("[name=name]", "billing")
    assert not browser.all("[name=type]")[0].is_displayed()
    browser.click("[name=events][value=some]")
    browser.click("[name=type][value='item.refreshed']")
    browser.type("[name=types]", "payment.*")
    browser.type("[name=headers]", "X-Key: header-secret")
    browser.click("[name=ordered]")
    browser.click("#create [type=submit]")
    secret = str(browser.find("#made").get_attribute("value"))
    assert secret.startswith("whsec_")
    browser.click_text("button", "Send a test")
    browser.sees("It took the test", "#tested")
    [made] = api(process, "GET", API)["webhooks"]
    assert made["types"] == ["item.refreshed", "payment.*"]
    assert (made["ordered"], made["headers"]) == (True, {"X-Key": "***"})
    assert receiver.requests()[0].headers["x-key"] == "header-secret"
    browser.click_text("a.button", "To the webhook")
    browser.sees("kept for each item")
    browser.sees("X-Key: •••")
    browser.driver.refresh()
    browser.find("#standing")
    assert secret not in browser.driver.page_source
    assert "header-secret" not in browser.driver.page_source


def test_what_the_api_refuses_is_shown_beside_the_form_that_keeps_what_was_typed(
    page: Site,
) -> None:
    process, browser, _ = page
    browser.open("/dashboard/webhooks/new")
    for url, words in (("ftp://x", "url: "), ("http://10.1.2.3/", "CAUSEWAY_RELAY_ALLOWED")):
        browser.type("[name=url]", url)
        browser.type("[name=name]", "kept")
        browser.click("#create [type=submit]")
        browser.sees(words, "#create .answer")
        browser.sees("bad_request", "#create .answer")
        assert browser.find("[name=name]").get_attribute("value") == "kept"
    browser.click("[name=events][value=some]")
    browser.click("#create [type=submit]")
    browser.sees("types: a list of types was expected", "#create .answer")
    browser.type("[name=headers]", "no colon but-a-secret")
    browser.click("#create [type=submit]")
    browser.sees("headers: line 1: `Name: value` was expected", "#create .answer")
    assert "but-a-secret" not in browser.text("#create .answer")
    assert api(process, "GET", API)["webhooks"] == []


def test_a_delivered_event_shows_its_attempt_and_where_it_went(page: Site) -> None:
    process, browser, receiver = page
    place = make(process, f"{receiver.url}/good", types=["item.refreshed"])
    other = make(process, f"{receiver.url}/good", types=["payment.*"], name="ledger")
    browser.open(place)
    position = send(process, bridge.body("item.refreshed", item_id=5))
    browser.sees("item 5", "#delivery-rows")
    browser.sees("ago", "#delivery-rows")
    cells = "[...document.querySelectorAll('#delivery-rows .pos, #delivery-rows .when')]"
    cut = browser.run(f"return {cells}.filter(it => it.scrollWidth > it.clientWidth).length")
    assert cut == 0  # the position and the time are read whole
    browser.click("#delivery-rows .pos a")
    browser.sees("it took it", ".tries")
    browser.sees("ok", ".tries .bytes")
    until_settled(process, browser, place)
    browser.open(f"/dashboard/events/{position}")
    browser.sees("delivered", ".arrivals")
    assert "1 attempt" in browser.text(".arrivals")
    assert "not chosen" in browser.text(".arrivals")
    browser.click(".arrivals a[href*=deliveries]")
    browser.sees("it took it", ".tries")
    api(process, "POST", f"{API}/{other.rsplit('/', 1)[1]}/disable")
    late = send(process, bridge.body("payment.link.updated"))
    browser.open(f"/dashboard/events/{late}")
    browser.sees("not reached yet", ".arrivals")
    assert "it is disabled" in browser.text(".arrivals")


def test_a_failing_webhook_is_told_in_words_and_its_answer_cannot_run(page: Site) -> None:
    process, browser, receiver = page
    url = f"{receiver.url}/say/500?text={quote(EVIL)}&x=<svg/onload=window.pwned=1>"
    place = make(process, url, name=EVIL, headers={"X": EVIL})
    browser.open(place)
    browser.click_text("button", "Send a test")
    browser.sees("It did not take the test: it failed (5xx)", "#tested")
    assert browser.text("#tested .bytes") == EVIL
    positions = [send(process, bridge.body()) for _ in range(6)]
    browser.sees("circuit is open", "#standing")
    browser.sees("failed in a row", "#standing")
    browser.open("/dashboard/webhooks")
    browser.sees("failing", ".webhooks .tag")
    browser.sees("6", ".webhooks")
    browser.open("/dashboard")
    browser.sees(f"webhook {EVIL}: its callback has failed for", ".alarms")
    for path in (place, f"{place}/deliveries/{positions[0]}", f"/dashboard/events/{positions[0]}"):
        browser.open(path)
        browser.find("h1")
        assert browser.run("return window.pwned ?? null") is None, path
        assert not browser.all("img[src=x]"), path
    browser.open(f"{place}/deliveries/{positions[0]}")
    browser.sees(EVIL, ".tries .bytes")
    browser.open(f"{place}?state=delivered")
    browser.sees("No delivery matches.", "#delivery-rows")
    browser.open(f"{place}?item_id=x")
    browser.sees("item_id='x': an integer", ".problem")


def test_a_secret_is_rotated_after_asking_and_the_new_one_shown_once(page: Site) -> None:
    process, browser, receiver = page
    place = make(process, f"{receiver.url}/good")
    browser.open(place)
    browser.click_text("button", "Rotate the secret")
    browser.sees("for 24 hours", "dialog[open]")
    confirm(browser)
    secret = str(browser.find("#made").get_attribute("value"))
    browser.sees("The old one signs beside it until", ".made")
    browser.sees("two sign until", "#webhook")
    send(process, bridge.body())
    asyncio.run(receiver.wait_for(1))
    assert receiver.requests()[0].headers["bridgeapi-signature"].count("v1=") == 2
    browser.driver.refresh()
    browser.find("#standing")
    assert secret not in browser.driver.page_source


def test_settings_are_edited_and_the_headers_stay_unless_replaced(page: Site) -> None:
    process, browser, receiver = page
    place = make(process, f"{receiver.url}/good", types=["item.*"], headers={"X-Key": "a"})
    id_ = place.rsplit("/", 1)[1]
    browser.open(place)
    browser.click_text("button", "Edit")
    assert browser.find("dialog[open] [name=types]").get_attribute("value") == "item.*"
    browser.type("dialog[open] [name=url]", "gopher://x")
    browser.click("dialog[open] button[type=submit]")
    browser.sees("url: ", "dialog[open] .answer")
    browser.type("dialog[open] [name=url]", f"{receiver.url}/good?new")
    browser.click("dialog[open] [name=type][value='user.deleted']")
    confirm(browser)
    browser.sees("The settings are changed.")
    changed = api(process, "GET", f"{API}/{id_}")
    assert changed["url"].endswith("?new")
    assert changed["types"] == ["item.*", "user.deleted"]
    assert changed["headers"] == {"X-Key": "***"}


def test_one_is_disabled_enabled_and_deleted_after_asking(page: Site) -> None:
    process, browser, receiver = page
    place = make(process, f"{receiver.url}/good")
    browser.open(place)
    browser.click_text("button", "Disable")
    confirm(browser)
    browser.sees("An administrator disabled it.", "#standing")
    send(process, bridge.body())
    browser.click_text("button", "Enable")
    confirm(browser)
    browser.sees("It is enabled")
    asyncio.run(receiver.wait_for(1))
    browser.click_text("button", "Delete")
    browser.type("dialog[open] [name=name]", "other")
    browser.click("dialog[open] button[type=submit]")
    browser.sees("type the webhook's name, billing, to delete it", "dialog[open]")
    browser.type("dialog[open] [name=name]", "billing")
    browser.click("dialog[open] button[type=submit]")
    browser.sees("No webhook yet")
    assert api(process, "GET", API)["webhooks"] == []


def test_a_range_is_counted_then_replayed_then_one_alone_then_cancelled(page: Site) -> None:
    process, browser, receiver = page
    place = make(process, f"{receiver.url}/good")
    first, *_, last = [send(process, bridge.body()) for _ in range(4)]
    asyncio.run(receiver.wait_for(4))
    until_settled(process, browser, place)
    browser.open(place)
    browser.click_text("button", "Replay")
    browser.click("dialog[open] button[type=submit]")
    browser.sees("Nothing would be sent", "#counted")
    browser.click("dialog[open] [name=state][value=all]")
    browser.click("dialog[open] button[type=submit]")
    browser.sees("from: `all` needs a beginning", "dialog[open] .answer")
    browser.type("dialog[open] [name=from]", str(first + 1))
    browser.type("dialog[open] [name=until]", str(last))
    browser.click("dialog[open] button[type=submit]")
    browser.sees(f"3 events would be sent, of positions {first + 1} to {last}", "#counted")
    assert receiver.count() == 4
    browser.click_text("#counted button", "Send 3 events")
    browser.sees("finished", "#replays")
    browser.sees("3 of 3 queued", "#replays")
    asyncio.run(receiver.wait_for(7))
    browser.click_text("button", "Replay")
    browser.click("dialog[open] [name=state][value=all]")
    browser.type("dialog[open] [name=from]", "start")
    browser.type("dialog[open] [name=rate]", "0.01")
    browser.click("dialog[open] button[type=submit]")
    browser.click_text("#counted button", "Send")
    browser.click_text("#replays button", "Cancel")
    browser.sees("cancelled", "#replays")
    until_settled(process, browser, place)
    calls = receiver.count()
    browser.open(f"{place}/deliveries/{first}")
    browser.click_text("button", "Send again")
    browser.sees("It was delivered: the application gets it a second time.", "dialog[open]")
    confirm(browser)
    asyncio.run(receiver.wait_for(calls + 1))
    browser.wait(lambda: len(browser.all(".tries li")) >= 2)


def test_the_deliveries_are_scrolled_back_to_the_first(page: Site) -> None:
    process, browser, receiver = page
    place = make(process, f"{receiver.url}/good")
    positions = [send(process, bridge.body()) for _ in range(60)]
    asyncio.run(receiver.wait_for(60))
    until_settled(process, browser, place)
    browser.open(place)

    def at_the_end() -> bool:
        browser.run("window.scrollTo(0, document.body.scrollHeight)")
        return "No more." in browser.text("#delivery-rows")

    browser.wait(at_the_end)
    rows = "[...document.querySelectorAll('#delivery-rows tr')].slice(0, -1)"
    shown = browser.run(f"return {rows}.map(row => row.dataset.position)")  # all of one moment
    assert shown == [str(position) for position in reversed(positions)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_no_page_is_heavy(page: Site, scheme: str) -> None:
    process, browser, receiver = page
    _colours(browser, scheme)
    place = make(process, f"{receiver.url}/say/503?text=busy", types=["item.*"])
    position = send(process, bridge.body("item.created"))
    asyncio.run(receiver.wait_for(1))
    pages = ("/dashboard/webhooks", "/dashboard/webhooks/new", place, f"{place}?state=x")
    found, weights = {}, {}
    for path in (*pages, f"{place}/deliveries/{position}", f"/dashboard/events/{position}"):
        browser.open(path)
        if bad := violations(browser):
            found[path] = bad
        weights[path] = _weight(browser, path)
    browser.open(place)
    browser.click_text("button", "Send a test")
    browser.sees("did not take", "#tested")
    for button in ("Edit", "Rotate", "Disable", "Delete", "Replay"):
        browser.click_text("main button", button)
        if button == "Edit":
            browser.click("dialog[open] [name=events][value=some]")
        if bad := violations(browser):
            found[button] = bad
        browser.find("dialog[open]").find_element(By.CSS_SELECTOR, "[data-close]").click()
    assert found == {}
    assert all(weight < PAGE_MAX_BYTES for weight in weights.values()), weights


def test_without_a_key_the_page_says_what_to_set_and_nothing_is_changed_without_the_csrf_token(
    postgres: EmbeddedPostgres,
) -> None:
    with site(postgres) as process, logged_in(process) as client:
        answer = client.get("/dashboard/webhooks")
        assert answer.status_code == 200
        assert "CAUSEWAY_SECRET_KEY" in answer.text
        assert client.get("/dashboard/webhooks/new").status_code == 409
        assert client.get("/dashboard/webhooks/1").status_code == 409
        token = {"x-csrf-token": csrf_of(client)}
        acts = ("create", "1/change", "1/rotate", "1/disable", "1/enable", "1/delete", "1/test")
        more = ("1/replays/count", "1/replays/begin", "1/replays/1/cancel", "1/deliveries/1/replay")
        for act in acts + more:
            path = f"/dashboard/webhooks/{act}"
            assert client.post(path, data={"url": "x"}).status_code == 403, act
            assert client.get(path).status_code in (404, 405, 409), act
        refused = client.post("/dashboard/webhooks/1/test", headers=token)
        assert (refused.status_code, "webhooks_off" in refused.text) == (409, True)
