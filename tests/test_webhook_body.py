"""The JSON about webhooks: what is good is taken as it is meant, what is wrong is named."""

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from service.cursor import Live, Place, Start
from service.errors import BadRequest
from service.filter import EVERYTHING, Filter
from service.webhook_body import MASK, WebhookWish, parse_change, parse_start, parse_wish
from service.webhook_value import Change

URL = "https://example.com/hook"
SECRET = "hunter2-hunter2"


def wish(**fields: Any) -> WebhookWish:
    return parse_wish(orjson.dumps({"url": URL} | fields), allow_http=False)


def change(**fields: Any) -> Change:
    return parse_change(orjson.dumps(fields), allow_http=False)[0]


def test_a_url_is_all_that_is_needed() -> None:
    plain = wish()
    assert (plain.url.text, plain.url.host) == (URL, "example.com")
    assert (plain.application, plain.name, plain.is_ordered) == ("default", None, False)
    assert (plain.filter, plain.headers, plain.begin) == (EVERYTHING, {}, Live())


def test_all_fields_are_taken() -> None:
    full = wish(
        application="shop",
        name="Billing · prod",
        types=["item.*", "ITEM_CREATED"],
        sources=["shop"],
        headers={"X-Api-Key": SECRET, "Authorization": "Bearer a b"},
        ordered=True,
        start="2026-11-23T09:00:00Z",
    )
    assert (full.application, full.name, full.is_ordered) == ("shop", "Billing · prod", True)
    assert full.filter == Filter(
        topics=frozenset({"item.*", "item.created"}), sources=frozenset({"shop"})
    )
    assert full.headers == {"X-Api-Key": SECRET, "Authorization": "Bearer a b"}
    assert full.begin == datetime(2026, 11, 23, 9, tzinfo=UTC)
    assert SECRET not in repr(full)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"url": None}, "url: "),
        ({"url": 7}, "url: "),
        ({"url": "example.com"}, "url: the URL must begin with https://"),
        ({"url": "http://example.com/"}, "url: the URL must begin with https://"),
        ({"url": "https://user:pass@example.com/"}, "url: the URL has user info"),
        ({"application": "Shop"}, "application: "),
        ({"application": ""}, "application: "),
        ({"application": None}, "application: "),
        ({"application": "a" * 64}, "application: "),
        ({"name": ""}, "name: "),
        ({"name": "a\nb"}, "name: "),
        ({"name": "a" * 129}, "name: "),
        ({"types": []}, "types: "),
        ({"types": "item.*"}, "types: "),
        ({"types": ["item.*.x"]}, "types: "),
        ({"sources": [""]}, "sources: "),
        ({"ordered": 1}, "ordered: "),
        ({"ordered": None}, "ordered: "),
        ({"start": -1}, "start: "),
        ({"start": "yesterday"}, "start="),
        ({"headers": []}, "headers: "),
        ({"headers": {"": "v"}}, "headers: '' is not"),
        ({"headers": {"X Y": "v"}}, "headers: 'X Y' is not"),
        ({"headers": {"X:Y": "v"}}, "headers: 'X:Y' is not"),
        ({"headers": {"Xé": "v"}}, "headers: 'Xé' is not"),
        ({"headers": {"X": 7}}, "headers: X: "),
        ({"headers": {"X": ""}}, "headers: X: "),
        ({"headers": {"X": "a\r\nY: b"}}, "headers: X: "),
        ({"headers": {"X": "é"}}, "headers: X: "),
        ({"headers": {"X": " a"}}, "headers: X: "),
        ({"headers": {"X": "a" * 4097}}, "headers: X: "),
        ({"headers": {"X": MASK}}, "headers: X: that is the mask"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "headers: a name stands twice"),
        ({"headers": {f"X-{n}": "v" for n in range(21)}}, "headers: an object of 20"),
        ({"secret": SECRET}, "unknown field 'secret'"),
        ({"item_ids": [1]}, "unknown field 'item_ids'"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequest) as refused:
        wish(**fields)
    assert refused.value.message.startswith(named)


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "content-type", "Content-Length", "CONTENT-ENCODING", "Connection", "keep-alive"),
        *("Transfer-Encoding", "TE", "Trailer", "Upgrade", "Expect", "User-Agent"),
        *("Proxy-Authorization", "webhook-id", "Webhook-Signature", "webhook-anything"),
        *("BridgeApi-Signature", "bridgeapi-signature", "Causeway-Position", "causeway-x"),
    ],
)
def test_headers_that_are_ours_or_of_http_are_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="is not yours to set"):
        wish(headers={name: "v"})


@pytest.mark.parametrize("name", ["X-Host", "Te-st", "Authorization", "Cookie", "X-Webhook-Id"])
def test_a_header_that_only_looks_like_one_of_ours_is_taken(name: str) -> None:
    assert wish(headers={name: "v"}).headers == {name: "v"}


def test_twenty_headers_and_long_values_are_taken() -> None:
    headers = {f"X-{n}": "v" for n in range(19)} | {"X-Long": "a" * 4096}
    assert wish(headers=headers).headers == headers


@pytest.mark.parametrize("value", [SECRET + "\n", SECRET + "é", MASK + SECRET * 400])
def test_no_message_shows_a_headers_value(value: str) -> None:
    with pytest.raises(BadRequest) as refused:
        wish(headers={"X-Api-Key": value})
    assert SECRET not in refused.value.message


def test_http_is_taken_where_it_is_allowed() -> None:
    body = orjson.dumps({"url": "http://example.com/"})
    assert parse_wish(body, allow_http=True).url.scheme == "http"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"url": "\\ud800"}']
)
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_wish(body, allow_http=False)
    if body:
        with pytest.raises(BadRequest):
            parse_start(body)


def test_a_change_names_only_what_was_sent_and_null_clears() -> None:
    assert change().fields == frozenset()
    named = change(name=None, types=None, sources=None, headers=None)
    assert named == Change(frozenset({"name", "topics", "sources", "headers"}))
    full = change(url=URL, types=["item.*"], headers={"X": "v"})
    assert full.fields == {"url", "topics", "headers"}
    assert (full.url, full.topics, full.headers) == (URL, frozenset({"item.*"}), {"X": "v"})
    parsed, url = parse_change(orjson.dumps({"url": URL}), allow_http=False)
    assert url is not None
    assert (url.text, parsed.url) == (URL, URL)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"url": None}, "url: "),
        ({"ordered": True}, "ordered: it can't be changed; make another webhook"),
        ({"application": "shop"}, "unknown field 'application'"),
        ({"start": "now"}, "unknown field 'start'"),
        ({"headers": {"X": MASK}}, "headers: X: that is the mask"),
    ],
)
def test_what_cannot_be_changed_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequest) as refused:
        change(**fields)
    assert refused.value.message.startswith(named)


def test_a_start_is_a_place_a_time_or_left_out() -> None:
    assert parse_start(b"") is None
    assert parse_start(b"{}") is None
    assert parse_start(b'{"start": "now"}') == Live()
    assert parse_start(b'{"start": "start"}') == Start()
    assert parse_start(b'{"start": 7}') == Place(7)
    assert parse_start(b'{"start": "7.0a0b0c0d"}') == Place(7, "0a0b0c0d")
    for bad in (b'{"start": null}', b'{"begin": 7}'):
        with pytest.raises(BadRequest):
            parse_start(bad)
