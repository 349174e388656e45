"""The types of Bridge's contents hold for what Bridge sends."""

from decimal import Decimal
from typing import Any, get_type_hints

import pytest

from service import received
from service.content import (
    TYPES,
    AccountUpdated,
    ItemCreated,
    ItemRefreshed,
    content,
)
from service.event import cloudevent_json
from service.payloads import EVENTS, events
from service.received import parse_cloudevent
from tests.test_client import row


def arrived(body: bytes) -> received.Event[None]:
    event: received.Event[None] = parse_cloudevent(cloudevent_json(row(1, body)).decode())
    return event


def test_a_content_is_given_for_its_own_type_only() -> None:
    event = arrived(b'{"content":{"item_id":7,"status_code":402},"type":"item.refreshed"}')
    refreshed = content(event, ItemRefreshed)
    assert refreshed is not None
    assert refreshed["item_id"] == 7
    assert refreshed.get("status_code") == 402
    assert content(event, ItemCreated) is None


def test_names_of_2019_count_as_todays() -> None:
    event = arrived(
        b'{"content":{"account_id":1,"item_id":2,"balance":0.10},"type":"ACCOUNT_UPDATED"}'
    )
    updated = content(event, AccountUpdated)
    assert updated is not None
    assert str(updated.get("balance")) == "0.10"


@pytest.mark.parametrize(
    "body", [b'{"type":"item.created"}', b'{"type":"item.created","content":3}']
)
def test_a_body_without_a_content_is_a_clear_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="has no content"):
        content(arrived(body), ItemCreated)


def test_the_types_fit_all_that_bridge_sends() -> None:
    seen = set()
    supply = events(3)
    for type_, body in (next(supply) for _ in range(2000)):
        event = arrived(body)
        topic = row(1, body).topic
        if topic not in TYPES:
            continue
        kind: Any = TYPES[topic]
        given = content(event, kind)
        assert isinstance(given, dict)
        assert kind.__required_keys__ <= given.keys(), type_
        fields = get_type_hints(kind)
        for name in ("item_id", "account_id", "user_uuid", "balance"):
            if name in given and name in fields:
                expected = {"user_uuid": str, "balance": Decimal | int}.get(name, int)
                assert isinstance(given[name], expected), (type_, name)
        seen.add(topic)
    assert seen == set(TYPES)
    assert {topic for topic in EVENTS if not topic.isupper()} - set(TYPES) == {
        "transfer.created",  # of an older version: not documented any more
        "transfer.updated",
    }
