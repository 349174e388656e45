"""Subscribers that do not keep up: they slow nobody, lose nothing, and are cut if they hang."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from service.catchup import CatchUp
from service.errors import LogUnavailable
from service.window import Chunk
from tests.bridge import new_event
from tests.logkeeping import (
    PAD,
    SMALL_BYTES,
    STALLING_EVENTS,
    Owner,
    append,
    append_large,
    append_many,
    id_of,
    positions,
    prune,
    replace_log,
    sample,
    stall,
)
from tests.reader import Block, Cut, Ended, Reader, reading
from tests.running import Running, eventually

Start = Callable[..., Awaitable[Running]]


async def until_the_end(reader: Reader) -> list[Block]:
    """Return all blocks up to an orderly end or a cut."""
    with pytest.raises((Ended, Cut)):
        while True:
            await reader.block()
    return [block for block in reader.seen if block.is_event]


async def test_a_stalled_subscriber_is_cut_and_counted_and_slows_nobody(start: Start) -> None:
    service = await start(send_timeout_s=3600)
    async with AsyncExitStack() as stack:
        slow = reading(service.url, "from=start", receive_bytes=SMALL_BYTES)
        stalled = await stack.enter_async_context(slow)
        [hung] = service.service.hub._subscribers
        fast = await stack.enter_async_context(reading(service.url, "from=start"))
        await asyncio.gather(stall(service), fast.events(STALLING_EVENTS))
        for _ in range(20):
            await append(service)
            await fast.event()
        assert hung.sending_since is not None, "the other one hangs in its write all the time"
        hung.sending_since -= 3600
        await eventually(lambda: len(service.service.hub) == 1)
        assert sample(service, "stream_closed_total", reason="send_timeout") == 1
        # Really cut: the server holds no connection for it, and its end is no orderly one.
        await eventually(lambda: len(service.server.server_state.connections) == 1)
        with pytest.raises(Cut):
            while True:
                await stalled.block()
        await append(service)
        await fast.event()


async def test_a_cut_subscriber_resumes_where_it_was(start: Start) -> None:
    service = await start(send_timeout_s=3600)
    async with reading(service.url, "from=start", receive_bytes=SMALL_BYTES) as stalled:
        await stall(service)
        [hung] = service.service.hub._subscribers
        assert hung.sending_since is not None
        hung.sending_since -= 3600
        await eventually(lambda: len(service.service.hub) == 0)
        seen = positions(await until_the_end(stalled))
    async with reading(service.url, last_event_id=stalled.last_id) as again:
        left = STALLING_EVENTS - len(seen)
        assert left > 0
        seen += positions(await again.events(left))
    assert seen == list(range(1, STALLING_EVENTS + 1))


async def test_a_subscriber_below_the_window_reads_from_the_log_and_comes_back(
    start: Start,
) -> None:
    service = await start(window_events=10, send_timeout_s=3600)
    async with reading(service.url, "from=start&control=1", receive_bytes=SMALL_BYTES) as reader:
        assert await reader.control("caught_up") == {"position": 0}
        await stall(service)
        fell = await reader.control("fell_behind")
        caught = await reader.control("caught_up")
        await append(service)
        await eventually_event(reader, STALLING_EVENTS + 1)
    seen = positions(block for block in reader.seen if block.is_event)
    assert seen == list(range(1, STALLING_EVENTS + 2))
    assert 0 < fell["position"] < STALLING_EVENTS
    assert caught == {"position": STALLING_EVENTS}


async def eventually_event(reader: Reader, position: int) -> None:
    while (await reader.event()).position < position:
        pass


async def test_what_is_pruned_under_a_slow_reader_ends_its_stream_and_is_no_silent_gap(
    start: Start, owner: Owner
) -> None:
    service = await start(window_events=10, send_timeout_s=3600)
    async with reading(service.url, "from=start&control=1", receive_bytes=SMALL_BYTES) as reader:
        await reader.checkpoint()
        await stall(service)
        await prune(owner, STALLING_EVENTS - 20)
        assert (await reader.control("closing"))["reason"] == "pruned"
        with pytest.raises(Ended):
            await reader.block()
    seen = positions(block for block in reader.seen if block.is_event)
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) < STALLING_EVENTS - 20
    assert sample(service, "stream_closed_total", reason="pruned") == 1
    async with reading(service.url, last_event_id=reader.last_id) as again:
        error = await again.error()
    assert (again.status, error["first_position"]) == (410, STALLING_EVENTS - 19)


async def test_what_is_pruned_under_a_filtered_slow_reader_is_no_silent_gap_either(
    start: Start, owner: Owner
) -> None:
    service = await start(window_events=10, send_timeout_s=3600)
    query = "from=start&control=1&type=item.*"
    async with reading(service.url, query, receive_bytes=SMALL_BYTES) as reader:
        await reader.checkpoint()
        await stall(service)
        await prune(owner, STALLING_EVENTS - 20)
        assert (await reader.control("closing"))["reason"] == "pruned"
    seen = positions(block for block in reader.seen if block.is_event)
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) < STALLING_EVENTS - 20


async def test_a_stalled_subscriber_costs_no_memory_for_each_event_it_does_not_take(
    start: Start,
) -> None:
    service = await start(window_events=10, send_timeout_s=3600)
    async with reading(service.url, "from=start", receive_bytes=SMALL_BYTES):
        await stall(service)
        [subscriber] = service.service.hub._subscribers
        before = subscriber.position
        [connection] = service.server.server_state.connections
        buffered = connection.transport.get_write_buffer_size()
        await append_large(service, 50)
        assert subscriber.position == before
        assert connection.transport.get_write_buffer_size() <= buffered < 1024 * 1024


async def test_a_slow_subscriber_of_a_replaced_log_is_given_no_id_of_the_new_one(
    start: Start, owner: Owner
) -> None:
    service = await start(send_timeout_s=3600, poll_s=0.1)
    async with reading(service.url, "from=start", receive_bytes=SMALL_BYTES) as reader:
        await stall(service)
        old_tail = service.service.window.link
        await replace_log(owner, 1)
        await eventually(lambda: service.service.window.position < STALLING_EVENTS)
        await append_large(service, STALLING_EVENTS)
        await eventually(lambda: service.service.window.position > STALLING_EVENTS)
        assert service.service.window.link_at(STALLING_EVENTS) != old_tail
        await until_the_end(reader)
    async with reading(service.url, last_event_id=reader.last_id) as again:
        assert (again.status, (await again.error())["code"]) == (409, "log_diverged")


async def test_a_replaced_log_is_noticed_although_new_events_keep_coming(
    start: Start, owner: Owner
) -> None:
    service = await start(poll_s=0.5)
    await append(service, *(new_event() for _ in range(2000)))
    async with reading(service.url, "control=1") as reader:
        await reader.checkpoint()
        await replace_log(owner, 1)
        closing = asyncio.create_task(reader.control("closing"))
        for _ in range(1900):  # each wakes the tail, before it would have looked in silence
            await service.service.eventlog.append([new_event()], timeout_s=30)
            if (await asyncio.wait([closing], timeout=0.05))[0]:
                break
        assert closing.done()
        assert (await closing)["reason"] == "diverged"


async def test_a_slow_subscriber_is_not_led_over_into_another_history(
    start: Start, owner: Owner
) -> None:
    service = await start(window_events=10, send_timeout_s=3600)
    async with reading(service.url, "from=start", receive_bytes=SMALL_BYTES) as reader:
        await stall(service)
        old_ids = [await id_of(service, position) for position in range(1, STALLING_EVENTS + 1)]
        await replace_log(owner, 1)
        for _ in range(14):  # the log never gets to its old head: the tail may not know it yet
            events = [new_event(pad=PAD) for _ in range(10)]
            await service.service.eventlog.append(events, timeout_s=30)
        seen = await until_the_end(reader)
    assert [block.id for block in seen] == old_ids[: len(seen)]
    async with reading(service.url, last_event_id=reader.last_id) as again:
        assert again.status == 409


async def test_a_heartbeat_leads_nobody_over_into_another_history(
    start: Start, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.eventlog.SCAN_POSITIONS", 50)
    service = await start(window_events=1, heartbeat_s=0.2, poll_s=60, checkpoint_events=10_000)
    await append_many(service, 120)
    old_ids = {await id_of(service, position) for position in range(121)}
    page = CatchUp.page

    async def fail_over(pages: CatchUp, position: int, *rest: Any) -> Chunk | None:
        """Lose all but 20 events while a reader that has looked through 50 waits for its page."""
        if position == 50 and await id_of(service, 50) in old_ids:
            await replace_log(owner, 20)
            events = [new_event("user.deleted" if n == 35 else "item.created") for n in range(40)]
            await service.service.eventlog.append(events, timeout_s=30)
            raise LogUnavailable("a standby takes over")
        return await page(pages, position, *rest)

    monkeypatch.setattr(CatchUp, "page", fail_over)
    async with reading(service.url, "from=start&type=user.deleted&control=1") as reader:
        assert (await reader.control("closing"))["reason"] == "diverged"
    assert {block.id for block in reader.seen if block.id} <= old_ids
