"""What an event is and how it is spelled: tables, the SSE standard, and a chain computed apart."""

import dataclasses
import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from hypothesis import given
from hypothesis import strategies as st

from service.errors import NotAnEvent
from service.event import (
    Event,
    chain_link,
    checkpoint_block,
    cloudevent_block,
    cloudevent_json,
    control_block,
    event_id,
    from_unix,
    one_line,
    parse_event,
    sse_block,
    timestamp,
)
from tests.bridge import TEST_EVENT, USER
from tests.sse import Message, Parser, parse

NOW = datetime(2026, 11, 23, 9, 0, 0, 1, tzinfo=UTC)
LINK = bytes.fromhex("9f3ac01b") + bytes(28)


def parsed(body: bytes | str) -> object:
    return parse_event(body.encode() if isinstance(body, str) else body, "default", NOW)


def with_content(**content: object) -> bytes:
    return json.dumps({"type": "item.created", "content": content}).encode()


def stored(body: bytes, type_: str = "item.created", **changes: object) -> Event:
    """Return an event of the log with `body`, at position 1042."""
    event = Event(
        position=1042,
        link=LINK,
        received_at=NOW,
        source="default",
        type=type_,
        topic=type_,
        occurred_at=datetime(2021, 2, 8, 11, 9, 48, 323000, tzinfo=UTC),
        item_id=None,
        account_id=None,
        user_uuid=None,
        digest=hashlib.sha256(body).digest(),
        body=body,
    )
    return dataclasses.replace(event, **changes)  # type: ignore[arg-type]


# Parsing


@pytest.mark.parametrize(
    ("type_", "topic"),
    [
        ("item.account.updated", "item.account.updated"),
        ("ITEM_CREATED", "item.created"),
        ("ITEM_REFRESHED", "item.refreshed"),
        ("ACCOUNT_CREATED", "item.account.created"),
        ("ACCOUNT_UPDATED", "item.account.updated"),
        ("TEST_EVENT", "TEST_EVENT"),
        ("something.new", "something.new"),
        ("a:b c é \U0001f600", "a:b c é \U0001f600"),
        ("x" * 128, "x" * 128),
    ],
)
def test_a_type_is_kept_and_its_topic_is_todays_name(type_: str, topic: str) -> None:
    event = parse_event(json.dumps({"type": type_}).encode(), "default", NOW)
    assert (event.type, event.topic) == (type_, topic)


@pytest.mark.parametrize(
    "type_",
    [
        *('""', "1", "null", "[]", "{}", "true", f'"{"x" * 129}"'),
        *('"a\\nb"', '"a\\rb"', '"a\\u0000b"', '"a\\tb"', '"a\\u007fb"'),
        *('"a\\u0085b"', '"a\\u2028b"', '"a\\u2029b"', '"\\ud800"'),
    ],
)
def test_a_type_that_would_break_a_line_or_a_column_is_no_event(type_: str) -> None:
    with pytest.raises(NotAnEvent):
        parsed(f'{{"type":{type_}}}')


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"null", id="null"),
        pytest.param(b'"item.created"', id="a string"),
        pytest.param(b'[{"type":"a"}]', id="an array"),
        pytest.param(b"{}", id="no type"),
        pytest.param(b'{"Type":"a"}', id="another case"),
        pytest.param(b'{"content":{"type":"a"}}', id="type within content"),
        pytest.param(b'{"type":"a"', id="cut short"),
        pytest.param(b'{"type":"a"}{', id="something after"),
        pytest.param(b'{"type":"a","x":NaN}', id="NaN"),
        pytest.param(b'{"type":"a","x":-Infinity}', id="infinity"),
        pytest.param(b'\xef\xbb\xbf{"type":"a"}', id="byte order mark"),
        pytest.param(b'{"type":"a","x":"\xff"}', id="invalid UTF-8"),
        pytest.param(b'{"type":"a","x":"\xed\xa0\x80"}', id="a surrogate in UTF-8"),
        pytest.param('{"type":"a"}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"type":"a","x":"\x00"}', id="a raw NUL"),
        pytest.param(b'{"type":"a"}\x00', id="NUL at the end"),
        pytest.param(b'{"type":"a","x":%s%s}' % (b"[" * 5000, b"]" * 5000), id="too deep"),
        pytest.param(b"type=a", id="a form"),
    ],
)
def test_what_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(NotAnEvent) as caught:
        parsed(body)
    assert (caught.value.status, caught.value.code) == (400, "not_an_event")


def test_a_refusal_does_not_repeat_the_body() -> None:
    with pytest.raises(NotAnEvent) as caught:
        parsed(b'{"type":"a","iban":"FR7630006000011234567890189",}')
    assert "FR76" not in caught.value.message


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("1612782588323", datetime(2021, 2, 8, 11, 9, 48, 323000, tzinfo=UTC)),
        ("1611681789", datetime(2021, 1, 26, 17, 23, 9, tzinfo=UTC)),
        ("1611681789.25", datetime(2021, 1, 26, 17, 23, 9, 250000, tzinfo=UTC)),
        ("0", datetime(1970, 1, 1, tzinfo=UTC)),
        ("99999999999", datetime(5138, 11, 16, 9, 46, 39, tzinfo=UTC)),
        ("100000000000", datetime(1973, 3, 3, 9, 46, 40, tzinfo=UTC)),
        ("253370764799999", datetime(9998, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)),
        *((garbage, None) for garbage in ("253370764800000", "1e300", "18446744073709551615")),
        *((garbage, None) for garbage in ("-1", "true", "null", "[]", "{}", '"1612782588323"')),
    ],
)
def test_a_timestamp_is_in_seconds_or_milliseconds_or_left_out(
    number: str, expected: datetime | None
) -> None:
    event = parse_event(b'{"type":"a","timestamp":%s}' % number.encode(), "default", NOW)
    assert event.occurred_at == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        *((str(n), n) for n in (0, 1, 2**31, 2**32 + 1, 2**53 + 1, 2**63 - 1, -1, -(2**63))),
        *((str(n), None) for n in (2**63, 2**64, 10**30, -(2**63) - 1)),
        *((bad, None) for bad in ("1.0", "1e3", '"12"', "true", "null", "[1]", "{}")),
    ],
)
def test_an_id_of_64_bits_is_indexed_and_any_other_left_out(
    written: str, expected: int | None
) -> None:
    body = f'{{"type":"a","content":{{"item_id":{written},"account_id":{written}}}}}'
    event = parse_event(body.encode(), "default", NOW)
    assert (event.item_id, event.account_id) == (expected, expected)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (USER, USER),
        (USER.upper(), USER),
        *((bad, None) for bad in (USER.replace("-", ""), f"{{{USER}}}", f" {USER}", "", 7, None)),
        (USER + "\n", None),
    ],
)
def test_a_user_is_a_uuid_in_lower_case_or_left_out(written: object, expected: str | None) -> None:
    assert parse_event(with_content(user_uuid=written), "default", NOW).user_uuid == expected


@pytest.mark.parametrize("content", ["null", "[]", '"item_id"', "7", '[{"item_id":1}]'])
def test_content_that_is_no_object_has_no_ids(content: str) -> None:
    event = parse_event(f'{{"type":"a","content":{content}}}'.encode(), "default", NOW)
    assert (event.item_id, event.account_id, event.user_uuid) == (None, None, None)


def test_the_documented_test_event_is_read_and_is_repeatable() -> None:
    event = parse_event(TEST_EVENT, "bank", NOW)
    assert (event.type, event.item_id, event.user_uuid) == ("TEST_EVENT", 1234567890, USER)
    assert event.occurred_at == datetime(2021, 1, 26, 17, 23, 9, tzinfo=UTC)
    assert (event.body, event.digest) == (TEST_EVENT, hashlib.sha256(TEST_EVENT).digest())
    assert (event.source, event.received_at, event.is_repeatable) == ("bank", NOW, True)
    assert not parse_event(with_content(), "bank", NOW).is_repeatable


# Ids and the chain


def test_the_chain_follows_values_computed_by_hand() -> None:
    """The bytes were written out as hex and hashed by sha256sum."""
    moment = datetime(2000, 1, 1, 0, 0, 1, 2, tzinfo=UTC)
    link = chain_link(bytes(range(32)), b"\xff" * 32, 1042, moment, "default")
    assert link.hex() == "369f373f02202234edb7dff2cf085b63c4e8e53f3873d067aafc883a83fc9591"
    before = datetime(1999, 12, 31, 23, 59, 59, 999998, tzinfo=UTC)
    link = chain_link(bytes(32), b"\x11" * 32, 2**32, before, "été")
    assert link.hex() == "b384656c9198f33db9cdb5e64045f466fc44b5efd6939e51c5715d3d9f6f503c"


moments = st.datetimes(
    datetime(1970, 1, 1),
    datetime(9998, 12, 31),
    timezones=st.just(UTC),
)


@given(st.binary(min_size=32, max_size=32), st.integers(1, 2**63 - 1), moments, st.text())
def test_a_link_is_exact_to_the_microsecond(
    previous: bytes, position: int, moment: datetime, source: str
) -> None:
    source = source.encode(errors="ignore").decode()
    delta = moment - datetime(2000, 1, 1, tzinfo=UTC)
    micros = (delta.days * 86400 + delta.seconds) * 10**6 + delta.microseconds
    parts = previous + b"d" * 32 + struct.pack(">qq", position, micros) + source.encode()
    assert chain_link(previous, b"d" * 32, position, moment, source) == (
        hashlib.sha256(parts).digest()
    )


def test_a_time_zone_does_not_change_a_link() -> None:
    paris = NOW.astimezone(timezone(timedelta(hours=1)))
    assert chain_link(LINK, LINK, 1, NOW, "a") == chain_link(LINK, LINK, 1, paris, "a")


def test_an_id_is_the_position_and_the_first_digits_of_its_link() -> None:
    assert event_id(1042, LINK) == stored(b"{}").id == "1042.9f3ac01b"


# Times


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (datetime(2021, 2, 8, 12, 23, 8, 323000, tzinfo=UTC), "2021-02-08T12:23:08.323000Z"),
        (datetime(2021, 2, 8, tzinfo=UTC), "2021-02-08T00:00:00.000000Z"),
        (
            datetime(2021, 2, 8, 1, tzinfo=timezone(timedelta(hours=2))),
            "2021-02-07T23:00:00.000000Z",
        ),
    ],
)
def test_a_time_is_written_in_utc_with_microseconds(moment: datetime, expected: str) -> None:
    assert timestamp(moment) == expected


@given(st.integers(10**11, 253_370_764_799_999))
def test_no_millisecond_is_lost(milliseconds: int) -> None:
    moment = from_unix(milliseconds)
    assert (moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1) == milliseconds


@pytest.mark.parametrize("value", [10**18, -(10**18), 10**400])
def test_a_time_beyond_every_calendar_is_refused(value: int) -> None:
    with pytest.raises((OverflowError, ValueError)):
        from_unix(value)


# Server-sent events

types = st.text(
    st.characters(exclude_characters="\x7f\x85\u2028\u2029", exclude_categories=["Cs", "Cc"]),
    min_size=1,
    max_size=30,
)
texts = st.text(
    st.one_of(st.sampled_from('\r\n :\0\ufeff{}"a'), st.characters(exclude_categories=["Cs"]))
)


def as_lf(text: str) -> str:
    """Return the text as SSE can carry it: it knows one line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


@given(texts, types)
def test_an_event_is_one_message_with_its_bytes_up_to_line_ends(text: str, type_: str) -> None:
    block = sse_block(stored(text.encode(), type_))
    expected = [Message(type_, as_lf(text), "1042.9f3ac01b")]
    assert parse(block) == expected


@given(st.lists(st.tuples(texts.filter(bool), types), max_size=4), st.data())
def test_blocks_joined_and_cut_anywhere_are_the_same_messages(
    events: list[tuple[str, str]], data: st.DataObject
) -> None:
    blocks = [
        sse_block(stored(text.encode(), type_, position=n))
        for n, (text, type_) in enumerate(events)
    ]
    stream = b": causeway\nretry: 3000\n\n" + b"".join(blocks)
    parser, messages = Parser(), list[Message]()
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        messages += parser.feed(stream[:size])
        stream = stream[size:]
    assert [(m.type, m.data) for m in messages] == [(type_, as_lf(t)) for t, type_ in events]
    assert [m.last_event_id for m in messages] == [f"{n}.9f3ac01b" for n in range(len(events))]


def test_a_plain_body_keeps_every_byte_in_one_data_line() -> None:
    body = '{"balance":1678.10,"label":"Compte chèques €"}'.encode()
    assert sse_block(stored(body)) == (
        b"id: 1042.9f3ac01b\nevent: item.created\ndata: %b\n\n" % body
    )


def test_each_line_of_a_pretty_body_is_a_data_line() -> None:
    block = sse_block(stored(b'{\r\n "a": 1,\n\r "b": 2\r}\n'))
    assert block.split(b"\n")[2:] == [
        *(b"data: {", b'data:  "a": 1,', b"data: ", b'data:  "b": 2', b"data: }", b"data: "),
        *(b"", b""),
    ]


def test_a_body_cannot_forge_a_message() -> None:
    evil = b'{"a":1}\n\nevent: user.deleted\ndata: {}\nid: 9999\n\r\rretry: 1\n\n'
    parser = Parser()
    [message] = parser.feed(sse_block(stored(evil)))
    assert (message.type, message.last_event_id) == ("item.created", "1042.9f3ac01b")
    assert parser.retry_ms is None


def test_a_checkpoint_moves_the_id_and_dispatches_nothing() -> None:
    parser = Parser()
    parser.feed(sse_block(stored(b"{}")))
    assert parser.feed(checkpoint_block(2000, LINK)) == []
    assert parser.last_event_id == "2000.9f3ac01b"


def test_a_control_event_leaves_the_id_where_it_was() -> None:
    parser = Parser()
    parser.feed(sse_block(stored(b"{}")))
    [message] = parser.feed(control_block("closing", reason="drain", position=7))
    assert message.type == "stream.closing"
    assert json.loads(message.data) == {"reason": "drain", "position": 7}
    assert message.last_event_id == "1042.9f3ac01b"


# CloudEvents

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, types, st.sampled_from((None, 1)), st.booleans())
def test_a_cloudevent_carries_the_bytes_as_they_are(
    value: object, type_: str, indent: int | None, is_ascii: bool
) -> None:
    body = json.dumps(value, indent=indent, ensure_ascii=is_ascii).encode(errors="replace")
    spliced = cloudevent_json(stored(body, type_))
    assert spliced.endswith(b',"data":' + body + b"}")
    whole = json.loads(spliced)
    assert whole.pop("data") == json.loads(body)
    assert whole == {
        "specversion": "1.0",
        "id": "1042.9f3ac01b",
        "source": "/bridge/default",
        "type": type_,
        "time": "2021-02-08T11:09:48.323000Z",
        "datacontenttype": "application/json",
        "position": "1042",
        "link": LINK.hex(),
        "receivedtime": "2026-11-23T09:00:00.000001Z",
    }


def test_a_cloudevent_without_bridges_time_has_none() -> None:
    assert "time" not in json.loads(cloudevent_json(stored(b"{}", occurred_at=None)))


def test_money_keeps_each_digit_in_a_cloudevent() -> None:
    body = b'{"balance":1678.10,"big":12345678901234567890.123456789}'
    data = json.loads(cloudevent_json(stored(body)), parse_float=Decimal)["data"]
    assert str(data["balance"]) == "1678.10"
    assert str(data["big"]) == "12345678901234567890.123456789"


def test_the_cloudevents_library_reads_ours() -> None:
    message = HTTPMessage(
        {"content-type": "application/cloudevents+json"}, cloudevent_json(stored(TEST_EVENT))
    )
    event = from_structured_event(message)
    assert (event.get_id(), event.get_type()) == ("1042.9f3ac01b", "item.created")
    assert event.get_source() == "/bridge/default"
    assert event.get_time() == datetime(2021, 2, 8, 11, 9, 48, 323000, tzinfo=UTC)
    assert event.get_data() == json.loads(TEST_EVENT)
    assert event.get_extension("position") == "1042"


def test_a_cloudevent_as_a_block_is_the_same_json() -> None:
    event = stored(b'{\n "a": 1\n}')
    [message] = parse(cloudevent_block(event))
    assert (message.type, message.last_event_id) == (event.type, event.id)
    assert message.data.encode() == cloudevent_json(event)


@given(json_values)
def test_one_line_is_the_same_json_on_one_line(value: object) -> None:
    for ends in ("\n", "\r\n", "\r"):
        body = json.dumps(value, indent=1).replace("\n", ends).encode()
        line = one_line(body)
        assert b"\n" not in line
        assert b"\r" not in line
        assert json.loads(line) == value
    compact = json.dumps(value).encode()
    assert one_line(compact) == compact
