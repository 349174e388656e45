"""The tail on a real Postgres: it follows, finds what it was not told, and alarms at damage.

Where the poll is an hour, only LISTEN can have brought an event in time.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from service import db
from service import listen as listen_module
from service import tail as tail_module
from service.db import Connection
from service.errors import LogDamaged, PositionPruned
from service.eventlog import EventLog
from service.listen import Listener
from service.metrics import Metrics
from service.supervise import Supervisor
from service.tail import LogChanged, Tail
from service.window import Window
from tests.bridge import new_event
from tests.freezing import freezable
from tests.running import WITHIN_S, Database, eventually
from tests.stored import append, fill, open_log, positions, prune, read_all, remove

NEVER_S = 3600.0
OFTEN_S = 0.05


@pytest.fixture
async def log(database: Database) -> AsyncIterator[EventLog]:
    async with open_log(database) as log:
        yield log


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_module, "RETRY_S", 0.05)
    monkeypatch.setattr(listen_module, "CHECK_S", 2 * WITHIN_S)  # a busy listener is not deaf


@dataclass
class Tailed:
    """A tail, what wakes it, and its window. `changes` counts the calls of `on_changed`."""

    tail: Tail
    listener: Listener
    window: Window
    metrics: Metrics
    changes: list[int] = field(default_factory=list)

    def positions(self) -> list[int]:
        """Return the positions of all frames in the window."""
        first = self.window.position
        while self.window.holds(first - 1):
            first -= 1
        return positions([frame.event for frame in self.window.frames_after(first)])

    async def reach(self, position: int, within_s: float = WITHIN_S) -> None:
        """Return when the window has got to `position`."""
        await eventually(lambda: self.window.position == position, within_s=within_s)

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)


def make_tail(
    log: EventLog, dsn: str, *, poll_s: float = NEVER_S, preload_events: int = 100
) -> Tailed:
    window, metrics = Window(max_events=1000, max_bytes=10**7), Metrics()
    changes: list[int] = []
    tail = Tail(
        log,
        window,
        metrics,
        poll_s=poll_s,
        preload_events=preload_events,
        on_changed=lambda: changes.append(window.position),
    )
    return Tailed(tail, Listener(dsn, tail.hear), window, metrics, changes)


@asynccontextmanager
async def running(*loops: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run the loops under a supervisor, as the service does."""
    fatal: list[str] = []
    async with Supervisor(fatal.append) as supervisor:
        for loop in loops:
            supervisor.start(loop.__qualname__, loop)
        yield
    assert not fatal


async def listener(owner: Connection) -> int | None:
    """Return the backend of the tail's LISTEN connection: its last statement is its own check."""
    pid: int | None = await owner.fetchval(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        "AND query = 'SELECT 1' AND state = 'idle'"
    )
    return pid


async def wait_for_listener(owner: Connection, *, other_than: int = 0) -> int:
    """Return the backend that listens now, once there is one."""
    deadline = asyncio.get_running_loop().time() + WITHIN_S
    while (pid := await listener(owner)) in (None, other_than):
        assert asyncio.get_running_loop().time() < deadline, "nobody listens"
        await asyncio.sleep(0.01)
    assert pid is not None
    return pid


# Following


async def test_the_window_follows_the_log(log: EventLog, database: Database) -> None:
    tailed = make_tail(log, database.service_dsn)
    async with running(tailed.tail.run, tailed.listener.run):
        await tailed.reach(0)
        for head in (1, 2, 52):
            await fill(log, head - tailed.window.position)
            await tailed.reach(head)
    stored = await read_all(log)
    assert [frame.event for frame in tailed.window.frames_after(0)] == stored
    assert tailed.window.link == stored[-1].link
    assert tailed.value("causeway_log_head_position") == 52
    assert tailed.changes == []


async def test_many_pages_are_read_in_one_go(
    log: EventLog, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "PAGE_EVENTS", 7)
    tailed = make_tail(log, database.service_dsn)
    async with running(tailed.tail.run, tailed.listener.run):
        await tailed.reach(0)
        await fill(log, 50)
        await tailed.reach(50)
    assert tailed.positions() == list(range(1, 51))


async def test_a_lost_notification_is_made_up_for_by_the_poll(
    log: EventLog, database: Database
) -> None:
    tailed = make_tail(log, database.service_dsn, poll_s=OFTEN_S)
    async with running(tailed.tail.run):  # nobody listens
        await tailed.reach(0)
        await fill(log, 3)
        await tailed.reach(3)


async def test_a_stop_at_the_moment_of_a_wake_up_is_heeded(
    log: EventLog, database: Database
) -> None:
    for turns in range(6):  # of the event loop, between the wake-up and the stop
        tailed = make_tail(log, database.service_dsn)
        loop = asyncio.create_task(tailed.tail.run())
        await eventually(lambda tailed=tailed: tailed.tail.behind_s() < NEVER_S)
        tailed.tail.hear(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        loop.cancel()
        done, _ = await asyncio.wait([loop], timeout=WITHIN_S)
        assert done, f"it goes on after a stop {turns} turns after a wake-up"


async def test_what_came_before_the_listener_heard_is_read_at_once(
    log: EventLog, database: Database
) -> None:
    tailed = make_tail(log, database.service_dsn)
    async with running(tailed.tail.run):
        await tailed.reach(0)
        await eventually(lambda: tailed.tail.behind_s() < NEVER_S)  # it has read, and waits
        await fill(log, 1)
        async with running(tailed.listener.run):
            await tailed.reach(1)


async def test_a_terminated_listener_comes_back_and_missed_nothing(
    log: EventLog, owner: Connection, database: Database
) -> None:
    tailed = make_tail(log, database.service_dsn)
    async with running(tailed.tail.run, tailed.listener.run):
        await tailed.reach(0)
        pid = await wait_for_listener(owner)
        await owner.execute("SELECT pg_terminate_backend($1, 60000)", pid)
        await fill(log, 1)  # while nobody listens
        await tailed.reach(1)
        await wait_for_listener(owner, other_than=pid)
        await fill(log, 1)
        await tailed.reach(2)


async def test_a_deaf_listener_is_found_out_and_replaced(
    log: EventLog, owner: Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen_module, "CHECK_S", 0.4)
    async with freezable(database.service_dsn) as (dsn, freeze):
        tailed = make_tail(log, dsn)
        async with running(tailed.tail.run, tailed.listener.run):
            await tailed.reach(0)
            await wait_for_listener(owner)
            freeze()  # half-open: it stays connected, and nothing comes through any more
            await fill(log, 2)
            # If it was about to connect just then, that is given up first.
            await tailed.reach(2, db.CONNECT_TIMEOUT_S + WITHIN_S)


async def test_a_database_that_comes_back_is_followed_on_without_alarm(
    log: EventLog, owner: Connection, database: Database
) -> None:
    tailed = make_tail(log, database.service_dsn, poll_s=OFTEN_S)
    async with running(tailed.tail.run, tailed.listener.run):
        await fill(log, 2)
        await tailed.reach(2)
        await owner.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await append(EventLog(owner), new_event())
        await tailed.reach(3)
    assert tailed.positions() == [1, 2, 3]
    assert (tailed.tail.is_damaged, tailed.changes) == (False, [])


async def test_the_lag_is_what_was_announced_and_not_read(
    log: EventLog, owner: Connection, database: Database
) -> None:
    tailed = make_tail(log, database.service_dsn)
    assert tailed.tail.behind_s() == float("inf")
    async with running(tailed.listener.run):
        await wait_for_listener(owner)
        await fill(log, 4)
        await eventually(lambda: tailed.tail.lag() == 4)
        assert tailed.value("causeway_tail_lag_events") == 4
        async with running(tailed.tail.run):
            await tailed.reach(4)
            assert (tailed.tail.lag(), tailed.tail.behind_s() < NEVER_S) == (0, True)


# The beginning


@pytest.mark.parametrize(
    ("count", "preload_events", "expected"),
    [(10, 4, [7, 8, 9, 10]), (3, 100, [1, 2, 3]), (3, 3, [1, 2, 3]), (0, 5, [])],
)
async def test_the_window_begins_with_the_newest_events(
    log: EventLog, database: Database, count: int, preload_events: int, expected: list[int]
) -> None:
    await fill(log, count)
    tailed = make_tail(log, database.service_dsn, preload_events=preload_events)
    async with running(tailed.tail.run):
        await tailed.reach(count)
    assert tailed.positions() == expected
    assert tailed.window.link == (await log.bounds()).head_link


async def test_the_window_of_a_pruned_log_begins_at_what_is_left(
    log: EventLog, owner: Connection, database: Database
) -> None:
    await fill(log, 6)
    await prune(owner, 4)
    tailed = make_tail(log, database.service_dsn)
    async with running(tailed.tail.run):
        await tailed.reach(6)
    assert tailed.positions() == [5, 6]


async def test_pruning_under_a_running_tail_is_no_alarm(
    log: EventLog, owner: Connection, database: Database
) -> None:
    tailed = make_tail(log, database.service_dsn, poll_s=OFTEN_S)
    await fill(log, 3)
    async with running(tailed.tail.run):
        await tailed.reach(3)
        await prune(owner, 3)
        read_at = asyncio.get_running_loop().time()
        await eventually(
            lambda: tailed.tail.behind_s() < asyncio.get_running_loop().time() - read_at
        )
        await fill(log, 1)
        await tailed.reach(4)
    assert tailed.changes == []


async def test_pruning_that_overtakes_the_tail_ends_its_streams_but_is_no_damage(
    log: EventLog, owner: Connection, database: Database
) -> None:
    tailed = make_tail(log, database.service_dsn)
    await fill(log, 3)
    async with paused(tailed, 3):
        await fill(log, 3)
        await prune(owner, 5)
    with pytest.raises(PositionPruned):
        await tailed.tail.run()
    assert (tailed.changes, tailed.window.position) == ([-1], -1)
    assert not tailed.tail.is_damaged
    async with running(tailed.tail.run):
        await tailed.reach(6)
    assert tailed.positions() == [6]


# Damage


@asynccontextmanager
async def paused(tailed: Tailed, position: int) -> AsyncIterator[None]:
    """Let the tail get to `position`, and stop it for the block."""
    async with running(tailed.tail.run):
        await tailed.reach(position)
    yield


def is_alarmed(tailed: Tailed) -> bool:
    """True if the streams were told once, the window is empty, and a person is called."""
    return (
        tailed.changes == [-1]
        and tailed.window.position == -1
        and tailed.tail.is_damaged
        and tailed.value("causeway_log_damaged") == 1
    )


async def test_a_hole_is_an_alarm_and_is_never_skipped(
    log: EventLog,
    owner: Connection,
    database: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tailed = make_tail(log, database.service_dsn)
    await fill(log, 3)
    async with paused(tailed, 3):
        await fill(log, 3)
        await remove(owner, 5, 5)
    with pytest.raises(LogDamaged, match="position 5: missing; 6 follows"):
        await tailed.tail.run()
    assert is_alarmed(tailed)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    with pytest.raises(LogDamaged, match="position 5: missing"):
        await tailed.tail.run()
    assert tailed.window.position == -1, "nothing after a hole is handed out"


async def test_a_hole_right_after_the_last_event_is_an_alarm(
    log: EventLog, owner: Connection, database: Database
) -> None:
    tailed = make_tail(log, database.service_dsn)
    await fill(log, 3)
    async with paused(tailed, 3):
        await fill(log, 2)
        await remove(owner, 4, 4)
    with pytest.raises(LogDamaged, match="position 4: missing; 5 follows"):
        await tailed.tail.run()
    assert is_alarmed(tailed)


@pytest.mark.parametrize(
    ("removed", "count", "reason"),
    [
        pytest.param((1, 3), 3, "position 3 has another link than before", id="as long"),
        pytest.param((2, 3), 0, "the log ends at 1, 3 was handed out", id="shorter"),
        pytest.param((1, 3), 0, "the log ends at 0, 3 was handed out", id="empty"),
        pytest.param((1, 3), 5, "position 4 is not chained to the one before", id="longer"),
        pytest.param((3, 3), 1, "position 3 has another link than before", id="last one other"),
    ],
)
async def test_a_replaced_log_is_an_alarm(
    log: EventLog,
    owner: Connection,
    database: Database,
    removed: tuple[int, int],
    count: int,
    reason: str,
) -> None:
    tailed = make_tail(log, database.service_dsn, poll_s=OFTEN_S)
    await fill(log, 3)
    async with paused(tailed, 3):
        await remove(owner, *removed)
        await fill(log, count)
    with pytest.raises(LogChanged, match=reason):
        await asyncio.wait_for(tailed.tail.run(), WITHIN_S)
    assert is_alarmed(tailed)


async def test_after_a_replaced_log_the_window_goes_on_with_the_new_one(
    log: EventLog, owner: Connection, database: Database
) -> None:
    tailed = make_tail(log, database.service_dsn, poll_s=OFTEN_S)
    await fill(log, 3)
    async with running(tailed.tail.run):
        await tailed.reach(3)
        before = tailed.window.link
        await remove(owner, 1, 3)
        await eventually(lambda: len(tailed.changes) == 1)
        await tailed.reach(0)
        await fill(log, 3)
        await tailed.reach(3)
    assert tailed.window.link == (await log.bounds()).head_link != before
    assert tailed.positions() == [1, 2, 3]
    assert tailed.tail.is_damaged, "until a person has looked and restarted the process"
