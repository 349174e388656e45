"""Group commit: what shares a commit, what each caller is told, and what happens when it fails.

The commit is a function here, held back or broken at will; one test has the real log behind it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from service import appender as appender_module
from service.appender import Appender
from service.errors import LogUnavailable, Overloaded
from service.event import NewEvent
from service.eventlog import Appended
from service.metrics import Metrics
from tests.bridge import new_event
from tests.running import WITHIN_S, Database, eventually
from tests.stored import open_log, read_all


@dataclass
class Log:
    """A commit function: takes a batch when `gate` is open, or raises what is in `failures`."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    begun: list[list[NewEvent]] = field(default_factory=list)
    stored: list[NewEvent] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    poison: set[bytes] = field(default_factory=set)
    in_flight: int = 0

    async def commit(self, events: Sequence[NewEvent]) -> list[Appended]:
        assert self.in_flight == 0, "two batches in flight"
        self.in_flight += 1
        self.begun.append(list(events))
        try:
            await self.gate.wait()
        finally:
            self.in_flight -= 1
        if self.failures:
            raise self.failures.pop(0)
        if any(event.digest in self.poison for event in events):
            raise ValueError("Postgres refuses this value")
        self.stored += events
        first = len(self.stored) - len(events) + 1
        return [Appended(first + n, False) for n in range(len(events))]


@dataclass
class Running:
    """An appender whose loop runs."""

    log: Log
    appender: Appender
    metrics: Metrics
    loop: "asyncio.Task[None]"

    def append(self, event: NewEvent | None = None) -> "asyncio.Task[Appended]":
        """Call `append` in a task of its own, as each request does."""
        return asyncio.create_task(self.appender.append(event or new_event()))

    async def appends(self, count: int) -> "list[asyncio.Task[Appended]]":
        """Let `count` calls arrive and wait until they are queued or in flight."""
        tasks = [self.append() for _ in range(count)]
        await asyncio.sleep(0)
        return tasks

    async def in_flight(self) -> "asyncio.Task[Appended]":
        """Bring one event into flight, held back by the gate."""
        begun = len(self.log.begun)
        task = self.append()
        await eventually(lambda: len(self.log.begun) == begun + 1)
        return task


@asynccontextmanager
async def appending(
    *, max_events: int = 100, max_bytes: int = 10**6, batch_events: int = 50
) -> AsyncIterator[Running]:
    log, metrics = Log(), Metrics()
    appender = Appender(
        log.commit, metrics, max_events=max_events, max_bytes=max_bytes, batch_events=batch_events
    )
    loop = asyncio.create_task(appender.run())
    try:
        yield Running(log, appender, metrics, loop)
    finally:
        loop.cancel()
        await asyncio.wait([loop])


def sizes(log: Log) -> list[int]:
    return [len(batch) for batch in log.begun]


async def outcome(task: "asyncio.Task[Appended]") -> object:
    """Return where the event stands, or the error that its caller got."""
    [result] = await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), WITHIN_S)
    return result.position if isinstance(result, Appended) else result


async def test_a_lone_event_is_committed_alone_and_at_once() -> None:
    async with appending() as running:
        running.log.gate.set()
        assert await running.appender.append(new_event()) == Appended(1, False)
        assert await running.appender.append(new_event()) == Appended(2, False)
        assert sizes(running.log) == [1, 1]


async def test_what_arrives_during_a_commit_is_the_next_batch_in_its_order() -> None:
    async with appending() as running:
        first = await running.in_flight()
        events = [new_event() for _ in range(20)]
        tasks = [running.append(event) for event in events]
        await asyncio.sleep(0)
        assert sizes(running.log) == [1], "one batch in flight"
        running.log.gate.set()
        assert await outcome(first) == 1
        assert [await outcome(task) for task in tasks] == list(range(2, 22))
        assert running.log.begun[1] == events


async def test_nobody_is_answered_before_the_commit() -> None:
    async with appending() as running:
        task = await running.in_flight()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()
        running.log.gate.set()
        assert await outcome(task) == 1


async def test_a_batch_is_bounded_by_events() -> None:
    async with appending(batch_events=8) as running:
        await running.in_flight()
        tasks = await running.appends(20)
        running.log.gate.set()
        await asyncio.gather(*tasks)
        assert sizes(running.log) == [1, 8, 8, 4]


async def test_a_batch_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender_module, "BATCH_BYTES", 1000)
    async with appending() as running:
        await running.in_flight()
        big = replace(new_event(), body=b"x" * 600)
        tasks = [running.append(big) for _ in range(5)]
        await asyncio.sleep(0)
        running.log.gate.set()
        await asyncio.gather(*tasks)
        assert sizes(running.log) == [1, 2, 2, 1], "closed by the event that reaches the bound"


async def test_a_full_queue_refuses_at_once_and_takes_again_later() -> None:
    async with appending(max_events=3) as running:
        await running.in_flight()
        waiting = await running.appends(3)
        with pytest.raises(Overloaded):
            await asyncio.wait_for(running.appender.append(new_event()), WITHIN_S)
        running.log.gate.set()
        await asyncio.gather(*waiting)
        assert await running.appender.append(new_event()) == Appended(5, False)


async def test_a_queue_full_of_bytes_refuses_at_once_and_takes_again_later() -> None:
    async with appending(max_bytes=2000) as running:
        await running.in_flight()
        big = replace(new_event(), body=b"x" * 900)
        waiting = [running.append(big), running.append(big)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await asyncio.wait_for(running.appender.append(big), WITHIN_S)
        small = running.append(replace(big, body=b"x" * 200))
        running.log.gate.set()
        assert [await outcome(task) for task in (*waiting, small)] == [2, 3, 4]
        assert await running.appender.append(replace(big, body=b"x" * 2000)) == Appended(5, False)


async def test_an_event_beyond_the_bytes_is_taken_when_nothing_else_waits() -> None:
    async with appending(max_bytes=2000) as running:
        running.log.gate.set()
        huge = replace(new_event(), body=b"x" * 5000)
        assert await running.appender.append(huge) == Appended(1, False)


async def test_a_failed_commit_tells_each_caller_and_the_next_batch_works() -> None:
    async with appending() as running:
        running.log.failures.append(LogUnavailable("the database is away"))
        first = await running.in_flight()
        later = await running.appends(2)
        running.log.gate.set()
        error = await outcome(first)
        assert isinstance(error, LogUnavailable)
        assert error.message == "the database is away"
        assert [await outcome(task) for task in later] == [1, 2]


async def test_each_caller_of_a_failed_batch_gets_an_error_of_its_own() -> None:
    async with appending() as running:
        await running.in_flight()
        tasks = await running.appends(3)
        running.log.failures += [LogUnavailable("one"), LogUnavailable("two")]
        running.log.gate.set()
        errors = [await outcome(task) for task in tasks]
        assert [str(error) for error in errors] == ["two"] * 3
        assert len({id(error) for error in errors}) == 3, "a shared one would mix up tracebacks"


async def test_a_poison_event_does_not_take_the_others_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with appending() as running:
        await running.in_flight()
        events = [new_event() for _ in range(5)]
        running.log.poison.add(events[2].digest)
        tasks = [running.append(event) for event in events]
        await asyncio.sleep(0)
        running.log.gate.set()
        results = [await outcome(task) for task in tasks]
        assert results[:2] + results[3:] == [2, 3, 4, 5]
        assert isinstance(results[2], LogUnavailable)
        assert await running.appender.append(new_event()) == Appended(6, False)
    assert "append refused" in caplog.text
    assert events[2].body.decode() not in caplog.text


async def test_a_caller_that_hangs_up_does_not_stop_the_commit() -> None:
    async with appending() as running:
        in_flight = await running.in_flight()
        queued, other = await running.appends(2)
        in_flight.cancel()
        queued.cancel()
        await asyncio.wait([in_flight, queued])
        running.log.gate.set()
        assert await outcome(other) == 3
        assert len(running.log.stored) == 3


async def test_a_failed_commit_of_a_caller_that_hung_up_harms_nobody() -> None:
    async with appending() as running:
        running.log.failures.append(LogUnavailable("away"))
        gone = await running.in_flight()
        gone.cancel()
        await asyncio.wait([gone])
        running.log.gate.set()
        assert await running.appender.append(new_event()) == Appended(1, False)


async def test_cancelling_the_loop_fails_all_that_wait() -> None:
    async with appending() as running:
        tasks = [await running.in_flight(), *await running.appends(2)]
        running.loop.cancel()
        results = [await outcome(task) for task in tasks]
        assert all(isinstance(result, LogUnavailable) for result in results), results
        await asyncio.wait_for(running.appender.drained(), WITHIN_S)


async def test_a_loop_that_is_started_again_takes_what_comes_then() -> None:
    async with appending(max_bytes=1000) as running:
        tasks = [await running.in_flight(), *await running.appends(3)]
        running.loop.cancel()
        await asyncio.wait(tasks)
        running.log.gate.set()
        running.loop = asyncio.create_task(running.appender.run())
        whole = replace(new_event(), body=b"x" * 1000)
        assert await outcome(running.append(whole)) == 1, "the queue's bytes were given back"
        running.loop.cancel()
        await asyncio.wait([running.loop])


async def test_drained_returns_when_nothing_waits_and_nothing_is_in_flight() -> None:
    async with appending(batch_events=1) as running:
        await asyncio.wait_for(running.appender.drained(), WITHIN_S)
        tasks = [await running.in_flight(), *await running.appends(3)]
        drained = asyncio.create_task(running.appender.drained())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not drained.done()
        running.log.gate.set()
        await asyncio.wait_for(drained, WITHIN_S)
        assert all(task.done() for task in tasks)


async def test_drained_sleeps_while_the_commit_of_callers_that_have_gone_is_in_flight() -> None:
    async with appending() as running:
        gone = await running.in_flight()
        gone.cancel()
        await asyncio.wait([gone])
        drained = running.appender.drained()
        slept_on = drained.send(None)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not slept_on.done(), "it was woken for nothing, and would be again and again"
        drained.close()
        running.log.gate.set()
        await asyncio.wait_for(running.appender.drained(), WITHIN_S)
        assert len(running.log.stored) == 1


async def test_the_queue_and_the_batches_are_measured() -> None:
    async with appending() as running:
        queued = partial(running.metrics.registry.get_sample_value, "causeway_append_queue_events")
        await running.in_flight()
        tasks = await running.appends(4)
        assert queued() == 4
        running.log.gate.set()
        await asyncio.gather(*tasks)
        assert queued() == 0
        sample = running.metrics.registry.get_sample_value
        assert sample("causeway_append_batch_events_count") == 2
        assert sample("causeway_append_batch_events_sum") == 5
        assert sample("causeway_append_seconds_count") == 5


async def test_a_poison_event_is_found_by_the_real_log(database: Database) -> None:
    async with open_log(database) as log:
        appender = Appender(
            partial(log.append, timeout_s=30),
            Metrics(),
            max_events=100,
            max_bytes=10**6,
            batch_events=50,
        )
        good = [new_event() for _ in range(4)]
        poison = [replace(new_event(), type="a\0b"), replace(new_event(), item_id=2**63)]
        tasks = [asyncio.create_task(appender.append(event)) for event in (*poison, *good)]
        await asyncio.sleep(0)
        loop = asyncio.create_task(appender.run())
        results = [await outcome(task) for task in tasks]
        loop.cancel()
        await asyncio.wait([loop])
        assert [isinstance(result, LogUnavailable) for result in results[:2]] == [True, True]
        assert results[2:] == [1, 2, 3, 4]
        assert [event.body for event in await read_all(log)] == [event.body for event in good]
