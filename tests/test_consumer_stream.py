"""`GET /stream?consumer=NAME`: where it begins, who holds it, what it is sent again."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from itertools import chain
from typing import Any
from zlib import crc32

import httpx2
import pytest

from service import lag as lag_module
from service.lease import Hold, Leases
from service.turn import LOOKED_FOR, STANDBY_S, Looks
from tests.bridge import new_event
from tests.consuming import NAME, acknowledge, assert_no_event, call, look, make, sent
from tests.logkeeping import append, append_many, id_of, positions, sample
from tests.reader import Reader, reading
from tests.running import WITHIN_S, Running, eventually

Start = Callable[..., Awaitable[Running]]
QUERY = f"consumer={NAME}&control=1"


async def place(running: Running, expected: int, within_s: float = WITHIN_S) -> None:
    """Wait until the consumer's place is `expected`."""
    deadline = asyncio.get_running_loop().time() + within_s
    while (found := (await look(running.url))["position"]) != expected:
        assert asyncio.get_running_loop().time() < deadline, f"{found}, not {expected}"
        await asyncio.sleep(0.02)


async def free(running: Running, within_s: float = WITHIN_S) -> None:
    """Wait until nobody holds the consumer, nor any shard of it."""
    deadline = asyncio.get_running_loop().time() + within_s
    while any(shard["held_by"] is not None for shard in (await look(running.url))["shards"]):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


# Where it begins.


async def test_a_stream_begins_after_the_place_and_goes_on_live(service: Running) -> None:
    await append_many(service, 4)
    await make(service.url, start=2)
    async with reading(service.url, QUERY) as reader:
        assert (await reader.checkpoint()).id == await id_of(service, 2)
        lease = await reader.control("lease")
        assert lease == {"lease": int(reader.headers["causeway-lease"]), "position": 2}
        assert positions(await reader.events(2)) == [3, 4]
        assert await reader.control("caught_up") == {"position": 4}
        await append_many(service, 1)
        assert (await reader.event()).position == 5


async def test_explicit_sends_again_what_was_not_acknowledged_whatever_the_client_says(
    service: Running,
) -> None:
    await append_many(service, 5)
    await make(service.url)
    async with reading(service.url, QUERY) as reader:
        await reader.events(5)
        await acknowledge(service.url, 2)
    for last_event_id in (None, await id_of(service, 5), "5", "99"):
        async with reading(service.url, QUERY, last_event_id=last_event_id) as reader:
            assert positions(await reader.events(3)) == [3, 4, 5]
    assert (await look(service.url))["position"] == 2


async def test_auto_takes_a_reconnect_with_an_id_for_an_acknowledgement(service: Running) -> None:
    await append_many(service, 5)
    await make(service.url, ack_mode="auto")
    async with reading(service.url, QUERY) as reader:
        await reader.events(5)
    async with reading(service.url, QUERY) as reader:  # nothing confirmed: all of it again
        assert positions(await reader.events(5)) == [1, 2, 3, 4, 5]
        await sent(service.url, 5)  # what is not known to be sent is no acknowledgement
    async with reading(service.url, QUERY, last_event_id=await id_of(service, 3)) as reader:
        assert positions(await reader.events(2)) == [4, 5]
        assert await acknowledge(service.url, 4) == 4
    async with reading(service.url, QUERY, last_event_id="2") as reader:  # never back
        assert (await reader.event()).position == 5
    assert (await look(service.url))["position"] == 4


async def test_a_head_acknowledges_nothing(service: Running) -> None:
    await append_many(service, 3)
    await make(service.url, ack_mode="auto")
    async with reading(service.url, QUERY) as reader:
        await reader.events(3)
        await sent(service.url, 3)
    headers = service.headers | {"last-event-id": "3"}
    async with httpx2.AsyncClient(base_url=service.url, headers=headers) as client:
        answer = await client.head("/stream", params=QUERY)
    assert answer.status_code == 200
    assert (await look(service.url))["position"] == 0


async def test_auto_moves_no_place_for_what_was_only_written_to_the_socket(start: Start) -> None:
    service = await start(heartbeat_s=0.2)
    await append_many(service, 3)
    await make(service.url, ack_mode="auto", lease_s=1)
    async with reading(service.url, QUERY) as reader:
        await reader.events(3)
        await sent(service.url, 3)
        for _ in range(4):  # heartbeats, and a renewal or two
            await reader.block()
    await free(service)
    assert (await look(service.url))["position"] == 0


async def test_auto_sends_again_what_is_not_known_to_be_sent(service: Running) -> None:
    await append_many(service, 3)
    await make(service.url, ack_mode="auto")
    # As after the kill of the process that sent it, or after a reset.
    async with reading(service.url, QUERY, last_event_id=await id_of(service, 3)) as reader:
        assert positions(await reader.events(3)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("last_event_id", "status", "code"),
    [
        ("2.00000000", 409, "log_diverged"),
        ("99", 409, "position_ahead"),
        ("abc", 400, "bad_request"),
    ],
)
async def test_auto_refuses_an_id_that_this_log_never_gave(
    service: Running, last_event_id: str, status: int, code: str
) -> None:
    await append_many(service, 3)
    await make(service.url, ack_mode="auto")
    async with reading(service.url, QUERY) as reader:
        await reader.events(3)
    async with reading(service.url, QUERY, last_event_id=last_event_id) as reader:
        assert (reader.status, (await reader.error())["code"]) == (status, code)
    assert (await look(service.url))["position"] == 0


# Standing by.


async def silent_until_it_holds(standby: Reader) -> list[int]:
    """Return the ids that a standby was sent before its lease, the last one being its place."""
    await standby.control("lease")
    seen = standby.seen[: next(n for n, b in enumerate(standby.seen) if b.event)]
    assert all(block.data is None for block in seen)
    return [block.position for block in seen if block.id]


async def test_a_standby_gets_comments_only_and_takes_over_from_the_last_ack(
    start: Start,
) -> None:
    service = await start(heartbeat_s=0.1)
    await append_many(service, 5)
    await make(service.url, ack_mode="auto", lease_s=3600)  # it takes over long before
    async with reading(service.url, QUERY) as holder:
        await holder.events(5)
        await acknowledge(service.url, 2)
        async with reading(service.url, QUERY) as standby:
            assert standby.status == 200
            assert "causeway-lease" not in standby.headers
            for _ in range(8):
                block = await standby.block()
                assert (block.id, block.event, block.data) == (None, None, None)
            await append_many(service, 1)
            holder._writer.transport.abort()
            assert await silent_until_it_holds(standby) == [2]
            assert positions(await standby.events(4)) == [3, 4, 5, 6]


async def test_a_standby_that_ends_has_confirmed_nothing(start: Start) -> None:
    service = await start(drain_s=0.1)
    await append_many(service, 3)
    await make(service.url, ack_mode="auto")
    async with reading(service.url, QUERY) as holder, reading(service.url, QUERY) as standby:
        await holder.events(3)
        await sent(service.url, 3)
        hub = service.service.hub
        # It ends before the holder does: else it may become the holder, and has a place then.
        [waiting] = [it for it in hub._subscribers if it.is_standing_by]
        waiting.close("drain")
        await standby.rest()
        hub.close_all("drain")
        assert standby.last_id is None
    other = await start()
    async with reading(other.url, QUERY, last_event_id=standby.last_id) as reader:
        assert positions(await reader.events(3)) == [1, 2, 3]


async def test_a_holder_that_says_nothing_more_is_replaced_within_the_lease(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, alive = await start(heartbeat_s=0.2), await start()
    await append_many(dead, 4)
    await make(dead.url, lease_s=2)
    write, end = Leases._write, asyncio.Event()
    async with reading(dead.url, QUERY) as holder:
        await holder.events(4)
        await acknowledge(dead.url, 1)
        await sent(dead.url, 4)
        [subscriber] = dead.service.hub._subscribers
        hold = subscriber.hold
        assert hold is not None

        async def hang(self: Leases, holds: list[Hold]) -> None:
            """Say nothing of the one hold, as if its process were killed."""
            if hold in holds:
                await end.wait()
            else:
                await write(self, holds)

        monkeypatch.setattr(Leases, "_write", hang)
        async with reading(alive.url, QUERY) as standby:
            assert positions(await standby.events(3)) == [2, 3, 4]
            assert not hold.is_good(asyncio.get_running_loop().time())
            await append_many(alive, 1)
            assert (await standby.event()).position == 5
            await eventually(lambda: dead.service.window.position == 5)
            await assert_no_event(holder)
        end.set()


async def test_of_many_standbys_one_takes_over(service: Running) -> None:
    await append_many(service, 1)
    await make(service.url, lease_s=3600)
    async with AsyncExitStack() as stack:
        holder = await stack.enter_async_context(reading(service.url, QUERY))
        others = [await stack.enter_async_context(reading(service.url, QUERY)) for _ in range(5)]
        await holder.event()
        holder._writer.transport.abort()
        tasks = [asyncio.create_task(other.event()) for other in others]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(waiting, timeout=3 * STANDBY_S)
        assert len([task for task in tasks if task.done()]) == len(done) == 1
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_many_standbys_ask_the_database_no_more_often_than_one(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, period_s = 0, 0.1
    take = Leases.take

    async def counted(self: Leases, *arguments: Any) -> Hold:
        nonlocal looks
        looks += 1
        return await take(self, *arguments)

    await make(service.url)
    monkeypatch.setattr("service.turn.STANDBY_S", period_s)
    async with AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(reading(service.url, QUERY))
        monkeypatch.setattr(Leases, "take", counted)
        clock = asyncio.get_running_loop().time
        began = clock()
        await eventually(lambda: looks > 5)
        assert looks <= 1 + (clock() - began) / (0.8 * period_s)


async def test_all_standbys_are_told_that_their_consumer_is_gone(service: Running) -> None:
    await make(service.url)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(reading(service.url, QUERY))
        others = [await stack.enter_async_context(reading(service.url, QUERY)) for _ in range(9)]
        answer = await call(service.url, "DELETE", f"/consumers/{NAME}")
        assert answer.status_code == 204
        await asyncio.gather(*(other.rest() for other in others))


def test_the_more_leases_are_looked_for_the_less_often_each_is() -> None:
    now = 0.0
    looks = Looks(lambda: now)

    def may_look(shard: int) -> bool:
        with looks.look(("billing", shard, 64)) as may:
            return may

    with ExitStack() as stack:
        lanes = [("billing", shard, 64) for shard in range(2 * LOOKED_FOR)]
        for lane in lanes[:LOOKED_FOR]:
            stack.enter_context(looks.standing_by(lane))
        assert may_look(0)
        assert not may_look(0)
        assert may_look(1)
        now += STANDBY_S
        for lane in lanes[LOOKED_FOR:]:
            stack.enter_context(looks.standing_by(lane))
        assert may_look(0)
        now += 1.5 * STANDBY_S
        assert not may_look(0)
        now += 0.5 * STANDBY_S
        assert may_look(0)
        looks.forget(lanes[0])
        assert may_look(0)
    assert (looks._waiting, looks._next_at) == ({}, {})


@pytest.mark.parametrize("reason", ["max_age", "drain"])
async def test_a_stream_that_is_ended_gives_the_lease_back_with_its_place(
    start: Start, reason: str
) -> None:
    service = await start()
    await append_many(service, 3, item_id=1)
    await make(service.url, filter={"item_ids": [2]}, lease_s=3600)
    async with reading(service.url, QUERY) as reader:
        await reader.control("caught_up")
        if reason == "drain":
            await service.service.hub.drain(0)
        else:
            [subscriber] = service.service.hub._subscribers
            subscriber.ends_at = 0.0  # it has been open for that long
        assert await reader.control("closing") == {"reason": reason}
        await reader.rest()
    await free(service)
    assert (await look(service.url))["position"] == 3


# Shards.


@pytest.mark.parametrize("window_events", [10_000, 1])
async def test_the_shards_together_have_every_event_once_and_each_item_in_one(
    start: Start, window_events: int
) -> None:
    service = await start(window_events=window_events)
    await append_many(service, 1)
    await append(service, *(new_event(item_id=1 + n % 17, note=n) for n in range(150)))
    await append(service, *(new_event(item_id=None, user_uuid=None) for _ in range(40)))
    head = 191
    await make(service.url)
    found: list[list[int]] = []
    keys: list[set[object]] = []
    async with AsyncExitStack() as stack:
        for number in range(4):
            query = f"{QUERY}&shard={number}/4"
            reader = await stack.enter_async_context(reading(service.url, query))
            assert reader.headers["causeway-filtered"] == "true"
            await reader.control("caught_up")
            events = [block for block in reader.seen if block.is_event]
            found.append(positions(events))
            keys.append({e.json()["content"]["item_id"] or e.position for e in events})
            for key in keys[-1]:
                assert crc32(str(key).encode()) % 4 == number
    assert sorted(chain.from_iterable(found)) == list(range(1, head + 1))
    assert all(shard == sorted(shard) for shard in found)
    assert sum(map(len, keys)) == len(set.union(*keys))


async def test_each_shard_has_its_own_place_and_the_next_partition_begins_at_the_least(
    service: Running,
) -> None:
    await make(service.url)
    async with (
        reading(service.url, f"{QUERY}&shard=0/2") as zero,
        reading(service.url, f"{QUERY}&shard=1/2") as one,
    ):
        numbers = [n for n in range(100) if crc32(str(n).encode()) % 2 == 0]
        await append(service, *(new_event(item_id=numbers[n]) for n in range(3)))
        assert positions(await zero.events(3)) == [1, 2, 3]
        assert await acknowledge(service.url, 1, shard="0/2") == 1
        await place(service, 1)
        described = await look(service.url)
        assert described["position"] == 1
        # Nothing was for shard 1: its place goes on by itself.
        await eventually_place(service, 1, 3)
        assert not any(block.is_event for block in one.seen)
    await free(service)
    await eventually(lambda: len(service.service.hub) == 0)
    async with reading(service.url, f"{QUERY}&shard=2/3") as reader:
        assert await reader.control("lease")
        described = await look(service.url)
    *others, read = (shard["position"] for shard in described["shards"])
    assert others == [1, 1]
    assert read in (1, 3)  # what is not for it may have gone on by itself


async def eventually_place(running: Running, shard: int, expected: int) -> None:
    deadline = asyncio.get_running_loop().time() + WITHIN_S
    while (await look(running.url))["shards"][shard]["position"] != expected:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


# The place of a filtered consumer.


async def test_a_filtered_consumers_place_passes_what_did_not_match(service: Running) -> None:
    await make(service.url, filter={"item_ids": [2]}, lease_s=1)
    async with reading(service.url, QUERY) as reader:
        await reader.control("caught_up")
        await append_many(service, 50, item_id=1)
        await place(service, 50)
        await append(service, new_event(item_id=2))
        await append_many(service, 50, item_id=1)
        assert (await reader.event()).position == 51
        await sent(service.url, 101)
        assert (await look(service.url))["position"] == 50
        await acknowledge(service.url, 51)
        await place(service, 101)
    async with reading(service.url, QUERY) as reader:
        assert (await reader.control("lease"))["position"] == 101


# Metrics.


async def test_lease_changes_and_redeliveries_are_counted(service: Running) -> None:
    await append_many(service, 5)
    await make(service.url)
    for _ in range(3):
        async with reading(service.url, QUERY) as reader:
            await reader.events(5)
            await sent(service.url, 5)
        await free(service)
    await acknowledge(service.url, 3)
    async with reading(service.url, QUERY) as reader:
        await reader.events(2)
        await append_many(service, 1)
        assert (await reader.event()).position == 6
    assert sample(service, "consumer_lease_changes_total") == 4
    assert sample(service, "consumer_redeliveries_total") == 5 + 5 + 2


async def test_the_lag_is_a_metric_that_vanishes_with_its_consumer(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lag_module.watch_lag, "__defaults__", (0.05,))
    service = await start()
    value = service.service.metrics.registry.get_sample_value

    def lag() -> float | None:
        return value("causeway_consumer_lag_events", {"consumer": NAME})

    def lag_seconds() -> float | None:
        return value("causeway_consumer_lag_seconds", {"consumer": NAME})

    await append_many(service, 5)
    assert lag() is None
    await make(service.url)
    await eventually(lambda: lag() == 5)
    assert (lag_seconds() or 0) > 0
    async with reading(service.url, QUERY) as reader:
        await reader.events(5)
        await acknowledge(service.url, 5)
    await eventually(lambda: (lag(), lag_seconds()) == (0, 0))
    await call(service.url, "DELETE", f"/consumers/{NAME}")
    await eventually(lambda: (lag(), lag_seconds()) == (None, None))
