"""The client without asyncio: the same protocol over its own socket."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from service.client import (
    Diverged,
    Hole,
    Interruption,
    Pruned,
    Refused,
    SyncEvent,
    Unreadable,
    subscribe_sync,
)
from tests.test_client import (
    DEADLINE_S,
    TOKEN,
    Answer,
    FarSide,
    block,
    checkpoint,
    cut,
    far_side,
    problem,
    refuse,
    row,
    stream,
)


async def take(far: FarSide, count: int, **options: object) -> list[SyncEvent]:
    """Subscribe in a thread and return the first `count` events."""

    def read() -> list[SyncEvent]:
        events: list[SyncEvent] = []
        with closing(subscribe_sync(far.url, TOKEN, **options)) as subscribed:  # type: ignore[arg-type]
            for event in subscribed:
                events.append(event)
                if len(events) == count:
                    break
        return events

    return await asyncio.wait_for(asyncio.to_thread(read), DEADLINE_S)


def places(events: list[SyncEvent]) -> list[int]:
    return [event.position for event in events]


@pytest.mark.parametrize("end", [stream, cut])
async def test_a_stream_that_ends_or_breaks_is_resumed_after_its_last_event(
    end: Callable[..., Answer],
) -> None:
    interruptions: list[Interruption] = []
    async with far_side(end(block(1), block(2)), stream(block(3))) as far:
        events = await take(far, 3, from_start=True, on_interruption=interruptions.append)
    assert places(events) == [1, 2, 3]
    assert far.asked[1].headers["last-event-id"] == row(2).id
    assert [it.last_id for it in interruptions] == [row(2).id]


async def test_request_carries_token_and_filters() -> None:
    async with far_side(stream(block(1))) as far:
        await take(far, 1, types=["item.*"], from_start=True)
    (asked,) = far.asked
    assert asked.headers["authorization"] == f"bearer {TOKEN}"
    assert asked.query == [("format", "cloudevents"), ("type", "item.*"), ("from", "start")]


async def test_an_id_without_data_moves_the_place_and_is_no_event() -> None:
    filtered = stream(block(1), checkpoint(40), headers="Causeway-Filtered: true\r\n")
    async with far_side(filtered, stream(block(41))) as far:
        assert places(await take(far, 2)) == [1, 41]
    assert far.asked[1].headers["last-event-id"] == row(40).id


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refuse(401, problem("unauthenticated")), Refused),
        (refuse(409, problem("log_diverged")), Diverged),
        (refuse(410, problem("position_pruned")), Pruned),
        (stream(block(1), block(3)), Hole),
        (stream(b"data: hello\n\n"), Unreadable),
        (refuse(200, b"<html>"), Unreadable),
    ],
)
async def test_final_answers_end_the_subscription(answer: Answer, kind: type[Exception]) -> None:
    async with far_side(answer) as far:
        with pytest.raises(kind) as raised:
            await take(far, 2)
    assert len(far.asked) == 1
    assert TOKEN not in str(raised.value)


async def test_retry_after_is_honoured() -> None:
    times: list[float] = []
    answer = refuse(503, headers="Retry-After: 1\r\n")
    async with far_side(answer, stream(block(1))) as far:
        await take(far, 1, on_interruption=lambda _: times.append(time.monotonic()))
        assert time.monotonic() - times[0] >= 1.0


async def test_a_silent_connection_is_given_up_and_resumed() -> None:
    reasons: list[str] = []

    async def next_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer by where the client stands: it may have given up a slow answer as well."""
        has_first = "last-event-id" in far.asked[-1].headers
        await stream(block(2 if has_first else 1), hold=True)(reader, writer)

    async with far_side(*[next_one] * 100) as far:
        events = await take(
            far, 2, idle_s=1.0, on_interruption=lambda it: reasons.append(it.reason)
        )
    assert places(events) == [1, 2]
    assert set(reasons) == {"nothing came for too long"}


async def test_leaving_the_loop_closes_the_connection() -> None:
    left = threading.Event()

    async def watching(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stream(block(1), hold=True)(reader, writer)
        left.set()

    async with far_side(watching) as far:
        await take(far, 1)
        assert await asyncio.to_thread(left.wait, DEADLINE_S)
