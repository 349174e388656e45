"""Acknowledging in the background: the newest is sent, errors are seen."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from service import received
from service.ack_behind import AckBehind
from service.client import Event, LeaseLost
from service.consumer_calls import Call, Hold
from service.event import cloudevent_json
from service.received import parse_cloudevent
from tests.running import WITHIN_S
from tests.test_client import row


def event(position: int, send: Callable[[Call], Awaitable[int]]) -> Event:
    given: received.Event[Awaitable[int]] = parse_cloudevent(
        cloudevent_json(row(position)).decode(), Hold("billing", "0/1", 7), send
    )
    return given


async def test_what_arrives_during_one_acknowledgement_needs_one_more() -> None:
    sent: list[str] = []
    may_answer = asyncio.Event()

    async def send(what: Call) -> int:
        sent.append((what.body or {})["position"])
        await may_answer.wait()
        return 0

    async with AckBehind() as acks:
        acks.note(event(1, send))
        await asyncio.sleep(0)  # the first is under way
        for position in range(2, 100):
            acks.note(event(position, send))
        may_answer.set()
    assert sent == [row(1).id, row(99).id]


async def test_an_error_is_raised_by_the_next_note_or_at_the_end() -> None:
    async def send(_: Call) -> int:
        raise LeaseLost("why")

    with pytest.raises(LeaseLost):
        async with AckBehind() as acks:
            acks.note(event(1, send))
    with pytest.raises(LeaseLost):
        async with AckBehind() as acks:
            acks.note(event(1, send))
            await asyncio.sleep(0)
            acks.note(event(2, send))
            pytest.fail("the error was not raised")


async def test_a_lost_lease_can_be_heard_of_instead() -> None:
    heard: list[str] = []

    async def send(_: Call) -> int:
        raise LeaseLost("why")

    async with AckBehind(lambda event, _: heard.append(event.id)) as acks:
        acks.note(event(1, send))
        await asyncio.sleep(0)
        acks.note(event(2, send))
    assert heard == [row(1).id, row(2).id]


async def test_the_end_does_not_wait_for_ever() -> None:
    async def send(_: Call) -> int:
        await asyncio.Event().wait()
        return 0

    async with asyncio.timeout(WITHIN_S):
        async with AckBehind(last_s=0.05) as acks:
            acks.note(event(1, send))
