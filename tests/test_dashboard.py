"""The dashboard in a real browser, as an engineer uses it: from the login to the logout."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx2
import pytest
from selenium.webdriver.common.keys import Keys

from service.embedded import EmbeddedPostgres
from tests import bridge
from tests.chromium import Browser
from tests.dashboard import ADMIN, browsing, make_token, send
from tests.running import ADMIN_TOKEN, Process

Site = tuple[Process, Browser]


@pytest.fixture(scope="module")
def shared(postgres: EmbeddedPostgres) -> Iterator[Site]:
    with browsing(postgres) as both:
        yield both


@pytest.fixture
def page(shared: Site) -> Iterator[Site]:
    """A browser that is logged in; nothing of the page may have been refused or have failed."""
    process, browser = shared
    browser.open("/dashboard")
    if browser.all("#token"):
        browser.log_in(ADMIN_TOKEN)
    browser.complaints()
    yield process, browser
    refused = [
        text
        for text in browser.complaints()
        if not re.search("Failed to load resource|Response Status Error Code 4", text)
    ]
    assert refused == []


def rows(browser: Browser) -> list[str]:
    """Return the positions on the page, from the top."""
    found: list[str] = browser.run(
        "return [...document.querySelectorAll('tr[data-position]')].map(r => r.dataset.position)"
    )
    return found


def test_the_overview_says_what_is_wrong_and_what_is_not(page: Site) -> None:
    process, browser = page
    browser.sees("source default: no event yet")
    send(process, bridge.body())
    browser.sees("Nothing is wrong")
    httpx2.post(f"{process.url}/webhooks/bridge", content=b"{}")
    browser.sees("1 call with a bad signature")


def test_the_charts_fill_by_themselves(page: Site) -> None:
    process, browser = page
    send(process, bridge.body())
    browser.wait(
        lambda: browser.run("return /[0-9]/.test(document.querySelector('.value').textContent)")
    )
    browser.wait(lambda: "now" in str(browser.find(".plot").get_attribute("aria-label")))
    browser.click_text(".ranges a", "day")
    browser.wait(lambda: "now" in str(browser.find(".plot").get_attribute("aria-label")))
    assert re.search(r"\d", browser.text(".value"))


def test_an_event_arrives_without_a_reload(page: Site) -> None:
    process, browser = page
    browser.open("/dashboard/events")
    browser.sees("live", "#state")
    browser.run("window.here = true")
    position = send(process, bridge.body("item.refreshed", item_id=2**62 + 1, account_id=77))
    browser.wait(lambda: rows(browser)[:1] == [str(position)])
    first = browser.text("tr[data-position]")
    assert "item.refreshed" in first
    assert str(2**62 + 1) in first
    browser.open("/dashboard/events")
    assert browser.text("tr[data-position]") == first  # the service's own row is the same


def test_an_unknown_type_arrives_too(page: Site) -> None:
    process, browser = page
    browser.open("/dashboard/events")
    browser.sees("live", "#state")
    send(process, bridge.body("something.new"))
    browser.sees("something.new", "#rows")


def test_the_feed_is_filtered(page: Site) -> None:
    process, browser = page
    wanted = send(process, bridge.body("payment.link.updated", item_id=31))
    send(process, bridge.body("item.created", item_id=31))
    browser.open("/dashboard/events")
    browser.type("[name=type]", "payment.*")
    browser.type("[name=item_id]", "31" + Keys.ENTER)
    browser.wait(lambda: rows(browser) == [str(wanted)])
    browser.sees("live", "#state")
    send(process, bridge.body("item.created", item_id=31))
    more = send(process, bridge.body("payment.link.updated", item_id=31))
    browser.wait(lambda: rows(browser) == [str(more), str(wanted)])


def test_a_filter_that_cannot_be_is_named(page: Site) -> None:
    _, browser = page
    browser.open("/dashboard/events?item_id=abc")
    browser.sees("item_id='abc': an integer of 64 bits was expected", ".problem")
    assert browser.find("[name=item_id]").get_attribute("value") == "abc"


def test_pause_holds_the_feed_and_resume_shows_what_came(page: Site) -> None:
    process, browser = page
    browser.open("/dashboard/events")
    browser.sees("live", "#state")
    before = rows(browser)
    browser.click("#pause")
    browser.sees("paused", "#state")
    new = [send(process, bridge.body()) for _ in range(3)]
    browser.sees("3 new: show")
    assert rows(browser) == before
    browser.click("#pause")
    browser.wait(lambda: rows(browser)[:3] == [str(position) for position in reversed(new)])


def test_the_log_is_scrolled_back_to_its_beginning(page: Site) -> None:
    process, browser = page
    newest = [send(process, bridge.body()) for _ in range(120)][-1]
    browser.open("/dashboard/events")
    assert len(rows(browser)) == 50

    def at_the_beginning() -> bool:
        browser.run("window.scrollTo(0, document.body.scrollHeight)")
        return "The log begins here" in browser.text("#rows")

    browser.wait(at_the_beginning)
    assert rows(browser) == [str(position) for position in range(newest, 0, -1)]


def test_the_log_is_read_from_a_time(page: Site) -> None:
    process, browser = page
    before = send(process, bridge.body())
    moment = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    send(process, bridge.body())
    browser.open(f"/dashboard/events?at={moment}")
    assert rows(browser)[0] == str(before)
    assert not browser.all("#pause")


def test_an_events_page_shows_its_digits_its_bytes_and_where_it_went(page: Site) -> None:
    process, browser = page
    httpx2.put(f"{process.url}/consumers/past", json={"start": "now"}, headers=ADMIN)
    body = b'{"type":"item.account.updated","content":{"balance":90071992547409931.070}}'
    position = send(process, body)
    httpx2.put(
        f"{process.url}/consumers/beyond", json={"start": position}, headers=ADMIN
    ).raise_for_status()
    browser.open(f"/dashboard/events/{position}")
    browser.sees('"balance": 90071992547409931.070', ".json")
    browser.sees("not sent yet", "table")
    states = browser.text("table")
    assert "past" in states
    assert "beyond" in states
    assert "done" in states
    browser.click("summary")
    browser.sees("7b 22 74 79 70 65", ".hex")
    link = browser.find("a[download]").get_attribute("href")
    cookies = {c["name"]: c["value"] for c in browser.driver.get_cookies()}
    answer = httpx2.get(str(link), cookies=cookies)
    assert answer.content == body
    assert answer.headers["content-disposition"].startswith("attachment")
    for name in ("past", "beyond"):
        httpx2.delete(f"{process.url}/consumers/{name}", headers=ADMIN)


def test_an_items_page_tells_its_last_status_in_words(page: Site) -> None:
    process, browser = page
    send(process, bridge.body("item.refreshed", item_id=901, status_code=0))
    send(process, bridge.body("item.refreshed", item_id=901, status_code=402))
    send(process, bridge.body("item.account.updated", item_id=901))
    browser.open("/dashboard/items")
    browser.type("[name=q]", "901" + Keys.ENTER)
    browser.sees("wrong credentials", ".status")
    browser.wait(lambda: len(rows(browser)) == 3)
    send(process, bridge.body("item.refreshed", item_id=901, status_code=4711))
    browser.driver.refresh()
    browser.sees("unknown code", ".status")
    send(process, bridge.body("item.deleted", item_id=901))
    browser.driver.refresh()
    browser.sees("deleted", ".status")
    browser.open(f"/dashboard/items?q={bridge.USER}")
    browser.sees("Events of the user")
    browser.sees("901", ".statuses")
    browser.open("/dashboard/items?q=999999")
    browser.sees("Nothing is known of 999999")


def test_a_token_is_made_shown_once_and_revoked(page: Site) -> None:
    process, browser = page
    browser.open("/dashboard/tokens")
    browser.click_text("button", "Create a token")
    browser.type("#create [name=name]", "made here")
    browser.click("#create [type=submit]")
    token = browser.find("#made").get_attribute("value")
    asked = {"authorization": f"Bearer {token}"}
    assert httpx2.get(f"{process.url}/events", headers=asked).status_code == 200
    browser.driver.refresh()
    browser.sees("made here")
    assert str(token) not in browser.driver.page_source
    browser.click_text("td.acts button", "Revoke")
    browser.sees("This cannot be undone", "dialog[open]")
    browser.click("dialog[open] [type=submit]")
    browser.sees("revoked", "#tokens")
    assert httpx2.get(f"{process.url}/events", headers=asked).status_code == 401


def test_an_error_of_the_service_is_shown_where_it_was_made(page: Site) -> None:
    process, browser = page
    make_token(process, "taken")
    browser.open("/dashboard/tokens")
    browser.click_text("button", "Create a token")
    browser.type("#create [name=name]", "taken")
    browser.click("#create [type=submit]")
    browser.sees("a valid token is named 'taken' already", "#create .answer")
    browser.sees("bad_request", "#create .answer")


def test_a_consumer_is_reset_and_deleted_after_asking(page: Site) -> None:
    process, browser = page
    url = f"{process.url}/consumers/billing"
    wish = {"start": "start", "ack_mode": "auto", "filter": {"types": ["item.*"]}}
    httpx2.put(url, json=wish, headers=ADMIN).raise_for_status()
    head = send(process, bridge.body())
    browser.open("/dashboard/consumers")
    browser.click_text("td.acts button", "Reset")
    browser.click("dialog[open] [type=submit]")
    browser.sees(f"billing goes on after position {head:,}")
    moved = httpx2.get(url, headers=ADMIN).json()
    assert (moved["position"], moved["ack_mode"]) == (head, "auto")
    assert moved["filter"] == {"types": ["item.*"]}
    browser.click_text("td.acts button", "Delete")
    browser.type("dialog[open] [name=name]", "other")
    browser.click("dialog[open] [type=submit]")
    browser.sees("type the consumer's name, billing, to delete it", "dialog[open]")
    browser.type("dialog[open] [name=name]", "billing")
    browser.click("dialog[open] [type=submit]")
    browser.sees("billing is deleted")
    browser.sees("No named consumer")
    assert httpx2.get(url, headers=ADMIN).status_code == 404


def test_an_audit_runs_and_proves_the_log(page: Site) -> None:
    process, browser = page
    head = send(process, bridge.body())
    browser.open("/dashboard/log")
    checkpoint = browser.find("#checkpoint-now").get_attribute("value")
    send(process, bridge.body())
    browser.type("[name=checkpoint]", str(checkpoint))
    browser.click_text("button", "Audit now")
    browser.sees("and the earlier checkpoint holds")
    browser.type("[name=checkpoint]", f"{head}.{'0' * 64}")
    browser.click_text("button", "Audit now")
    browser.sees("the log was restored or replaced since you read it")


def test_a_revoked_tokens_session_ends(page: Site) -> None:
    process, browser = page
    token_id, token = make_token(process, "short", "admin")
    browser.driver.delete_all_cookies()
    browser.log_in(token, "/dashboard/events")
    browser.sees("live", "#state")
    httpx2.delete(f"{process.url}/api/tokens/{token_id}", headers=ADMIN).raise_for_status()
    # Its stream is ended, asks again, and is told to log in.
    browser.find("#token")
    browser.open("/dashboard/tokens")
    browser.find("#token")


def test_a_wrong_token_is_refused_and_logging_out_ends_the_session(page: Site) -> None:
    _, browser = page
    cookie = browser.driver.get_cookie("causeway_session")
    assert cookie is not None
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert not cookie["secure"]
    assert browser.run("return document.cookie") == ""
    browser.click_text("button", "Log out")
    browser.type("#token", "not a token of ours")
    browser.click(".login button")
    browser.sees("the token is unknown, expired or revoked", "#wrong")
    browser.driver.add_cookie(cookie)  # somebody kept it
    browser.open("/dashboard/tokens")
    browser.find("#token")
    browser.driver.delete_all_cookies()


def test_the_colours_are_chosen_and_kept(page: Site) -> None:
    _, browser = page
    browser.click("#theme")
    browser.click("#theme")
    browser.open("/dashboard/log")
    assert browser.run("return document.documentElement.dataset.theme") == "dark"
    browser.click("#theme")
    assert browser.run("return document.documentElement.dataset.theme ?? ''") == ""
