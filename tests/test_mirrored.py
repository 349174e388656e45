"""Events as NATS messages: nothing is lost on the way, and NATS misreads no subject."""

import re
from dataclasses import replace
from datetime import UTC, datetime

import nats as nats_py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import NotMirrored
from service.event import Event, chain_link, parse_event, tombstone
from service.mirrored import event_of, message_of, subject_of
from tests.bridge import USER, body
from tests.nats_server import NatsServer

# What `parse_event` takes: anything on one line.
TYPES = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=128
)
NUMBERS = st.none() | st.integers(-(2**63), 2**63 - 1)
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC))


def event(type_: str = "item.account.updated", source: str = "default", position: int = 7) -> Event:
    """Return an event of the log with Bridge's body."""
    new = parse_event(body(type_), source, datetime(2026, 11, 23, 9, 0, 0, 123456, UTC))
    link = chain_link(bytes(32), new.digest, position, new.received_at, source)
    parts = (new.type, new.topic, new.occurred_at, new.item_id, new.account_id, new.user_uuid)
    return Event(position, link, new.received_at, source, *parts, new.digest, new.body)


@given(TYPES, TYPES, NUMBERS, NUMBERS, st.none() | MOMENTS, MOMENTS)
def test_an_event_comes_back_as_it_was(
    type_: str,
    source: str,
    item_id: int | None,
    account_id: int | None,
    occurred_at: datetime | None,
    received_at: datetime,
) -> None:
    sent = replace(
        event(type_, source),
        item_id=item_id,
        account_id=account_id,
        occurred_at=occurred_at,
        received_at=received_at,
    )
    message = message_of(sent)
    assert event_of(message.headers, message.body) == sent
    assert all(re.fullmatch(r"[\x21-\x7e]+", value) for value in message.headers.values())


@given(TYPES, TYPES)
def test_a_subject_has_no_wildcard_no_space_and_no_empty_token(type_: str, source: str) -> None:
    subject = subject_of(event(type_, source))
    assert re.fullmatch(r"bridge(\.[A-Za-z0-9_%\-]+){3,}", subject)
    assert len(subject) < 1024


def test_a_subject_says_source_type_and_whose_it_is() -> None:
    sent = event()
    assert subject_of(sent) == "bridge.default.item.account.updated.4568477"
    assert subject_of(replace(sent, item_id=None)) == f"bridge.default.item.account.updated.{USER}"
    nobody = replace(sent, item_id=None, user_uuid=None)
    assert subject_of(nobody) == "bridge.default.item.account.updated.-"
    assert subject_of(event("a..b", "my.source")) == "bridge.my%2Esource.a%2E%2Eb.4568477"
    assert subject_of(event("ITEM_CREATED")) == subject_of(event("item.created"))


def test_a_tombstone_keeps_its_subject_its_topic_and_the_digest_of_what_is_gone() -> None:
    erased = tombstone(replace(event(), item_id=None, user_uuid=None, account_id=None, body=b""))
    message = message_of(erased)
    assert message.subject == "bridge.default.item.account.updated.-"
    assert event_of(message.headers, message.body) == erased


def test_the_digest_of_an_event_is_that_of_the_bytes_that_arrived() -> None:
    message = message_of(event())
    altered = event_of(message.headers, message.body.replace(b"4568477", b"4568478"))
    assert altered.digest != event().digest


@pytest.mark.parametrize(
    "missing",
    [
        "ce-specversion",
        "ce-id",
        "ce-source",
        "ce-type",
        "ce-position",
        "ce-link",
        "ce-receivedtime",
    ],
)
def test_a_message_that_lacks_a_header_is_refused(missing: str) -> None:
    message = message_of(event())
    headers = {name: value for name, value in message.headers.items() if name != missing}
    with pytest.raises(NotMirrored):
        event_of(headers, message.body)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ce-id", "8.00000000"),
        ("ce-link", "abcd"),
        ("ce-link", "no hex"),
        ("ce-position", "seven"),
        ("ce-receivedtime", "yesterday"),
        ("ce-itemid", "x"),
        ("ce-source", "/elsewhere"),
        ("ce-specversion", "0.3"),
        ("ce-type", "causeway.erased"),
    ],
)
def test_a_message_with_a_header_that_is_wrong_is_refused(name: str, value: str) -> None:
    message = message_of(event())
    with pytest.raises(NotMirrored):
        event_of(message.headers | {name: value}, message.body)


async def test_nats_hands_on_what_was_sent(nats: NatsServer) -> None:
    """The library strips and parses headers, and a server judges subjects."""
    client = await nats_py.connect(nats.url, connect_timeout=60)
    try:
        heard = await client.subscribe("bridge.>")
        for type_, source in (("item.refreshed", "default"), ("é> *.\t%41 ü", " a\u00a0b ")):
            sent = event(type_.replace("\t", ""), source)
            message = message_of(sent)
            await client.publish(message.subject, message.body, headers=message.headers)
            got = await heard.next_msg(timeout=60)
            assert got.subject == message.subject
            assert event_of(got.headers or {}, got.data) == sent
    finally:
        await client.close()
