"""Faults of Postgres itself, and of strangers in the same database."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import asyncpg

from service import cluster
from tests.chaos.fault import Act, Fault
from tests.chaos.replica import children_of
from tests.chaos.schedule import Planned
from tests.chaos.world import World

STRANGER = "chaos_stranger"
TERMINATE_EVERY_S = 0.5
TAKERS = 8
_LOCK = "SELECT pg_advisory_xact_lock(hashtext('causeway'), hashtext('append_events'))"
_SESSIONS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'causeway' ORDER BY pid"
_TERMINATE = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name = 'causeway'
"""


@asynccontextmanager
async def _killed(world: World, planned: Planned) -> AsyncIterator[None]:
    pid = world.postgres.pid
    assert pid is not None, "Postgres is down already"
    os.kill(pid, signal.SIGKILL)
    try:
        yield
    finally:
        await asyncio.to_thread(world.postgres.start)


@asynccontextmanager
async def _stopped(world: World, planned: Planned) -> AsyncIterator[None]:
    await asyncio.to_thread(world.postgres.stop)
    try:
        yield
    finally:
        await asyncio.to_thread(world.postgres.start)


@asynccontextmanager
async def _restarted(world: World, planned: Planned) -> AsyncIterator[None]:
    async with _stopped(world, planned):
        pass
    yield


@asynccontextmanager
async def _backend_killed(world: World, planned: Planned) -> AsyncIterator[None]:
    async with world.session() as owner:
        pids = [row["pid"] for row in await owner.fetch(_SESSIONS)]
    first = int(planned.draw * len(pids))
    assert any(_kill(pid) for pid in (*pids[first:], *pids[:first])), "the service has no session"
    yield


def _kill(pid: int) -> bool:
    """Kill -9 a process; False if it has just ended by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@asynccontextmanager
async def _frozen(world: World, planned: Planned) -> AsyncIterator[None]:
    """Stop the postmaster first, so that no process of its comes after the others were counted."""
    postmaster = world.postgres.pid
    assert postmaster is not None, "Postgres is down already"
    os.kill(postmaster, signal.SIGSTOP)
    pids = children_of(postmaster)
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in (*pids, postmaster):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def _terminated(world: World, planned: Planned) -> AsyncIterator[None]:
    async def again_and_again() -> None:
        while True:
            async with world.session() as owner:
                await owner.execute(_TERMINATE)
            await asyncio.sleep(TERMINATE_EVERY_S)

    async with _beside(again_and_again):
        yield


@asynccontextmanager
async def _used_up(world: World, planned: Planned) -> AsyncIterator[None]:
    """Take every connection, those too that the service loses; an owner's few are reserved."""
    url = world.postgres.owner_url.replace(f"//{cluster.OWNER}@", f"//{STRANGER}@")
    async with AsyncExitStack() as stack:

        async def take_all() -> None:
            while True:
                try:
                    taken = await asyncpg.connect(url, timeout=5)
                except (asyncpg.TooManyConnectionsError, TimeoutError):
                    await asyncio.sleep(0.01)
                else:
                    stack.callback(taken.terminate)

        async with AsyncExitStack() as takers:
            for _ in range(TAKERS):
                await takers.enter_async_context(_beside(take_all))
            async with world.session() as owner:
                # The service wins some of them back; not for ever.
                for _ in range(int(planned.hold_s / TERMINATE_EVERY_S)):
                    if not await owner.fetchval(_TERMINATE):
                        break
                    await asyncio.sleep(TERMINATE_EVERY_S / 5)
            yield


@asynccontextmanager
async def _beside(work: Callable[[], Coroutine[None, None, None]]) -> AsyncIterator[None]:
    """Let `work` go on during the block; its error ends the block."""

    async with asyncio.TaskGroup() as group:
        task = group.create_task(work())
        try:
            yield
        finally:
            task.cancel()


def _held(*statements: str) -> Act:
    """Return a fault that runs statements in one session and holds it open."""

    @asynccontextmanager
    async def act(world: World, planned: Planned) -> AsyncIterator[None]:
        async with world.session() as owner:
            for statement in statements:
                await owner.execute(statement)
            yield
            with suppress(asyncpg.PostgresConnectionError):
                await owner.execute("ROLLBACK")

    return act


FAULTS = (
    Fault(
        "postgres_killed",
        "`kill -9` of the postmaster; started again after the hold, with recovery",
        "503 meanwhile; every 200 survives the recovery; streams stay open",
        "database",
        (1.0, 5.0),
        _killed,
    ),
    Fault(
        "postgres_stopped",
        "fast stop of Postgres; started after the hold",
        "503 meanwhile; streams stay open; all of it comes back by itself",
        "database",
        (2.0, 6.0),
        _stopped,
    ),
    Fault(
        "postgres_restarted",
        "fast stop and start of Postgres at once",
        "a few 503; nobody needs a restart",
        "database",
        (0.5, 1.0),
        _restarted,
    ),
    Fault(
        "backend_killed",
        "`kill -9` of one of the service's backends: Postgres ends all sessions and recovers",
        "503 meanwhile; every 200 survives the recovery",
        "database",
        (0.5, 1.0),
        _backend_killed,
    ),
    Fault(
        "postgres_frozen",
        "SIGSTOP of all of Postgres' processes, SIGCONT after the hold, as a paused machine",
        "503 after at most 10 s; what was committed late is found by its retry",
        "database",
        (3.0, 12.0),
        _frozen,
    ),
    Fault(
        "sessions_terminated",
        f"`pg_terminate_backend` of all the service's sessions, each {TERMINATE_EVERY_S} s",
        "503 for what was under way; its retry finds its own event",
        "database",
        (2.0, 5.0),
        _terminated,
    ),
    Fault(
        "connections_used_up",
        "a stranger takes every connection, and the service's sessions are ended",
        "503 with Retry-After; no process ends",
        "database",
        (2.0, 6.0),
        _used_up,
    ),
    Fault(
        "append_locked",
        "a foreign session holds the append lock",
        "503 after at most 10 s; reads go on; nothing is lost or doubled",
        "database",
        (2.0, 8.0),
        _held("BEGIN", _LOCK),
    ),
    Fault(
        "table_locked",
        "a foreign session holds `LOCK TABLE causeway.event IN ACCESS EXCLUSIVE MODE`",
        "503 after at most 10 s; what was seen is not seen again",
        "database",
        (2.0, 8.0),
        _held("BEGIN", "LOCK TABLE causeway.event IN ACCESS EXCLUSIVE MODE"),
    ),
    Fault(
        "partitions_blocked",
        "a foreign session holds the lock of VACUUM and ANALYZE on `causeway.event`",
        "appends go on in the partitions that are there",
        "database",
        (3.0, 8.0),
        _held("BEGIN", "LOCK TABLE causeway.event IN SHARE UPDATE EXCLUSIVE MODE"),
    ),
    Fault(
        "snapshot_held",
        "a foreign session is `idle in transaction` with an old snapshot",
        "nobody waits for it",
        "database",
        (5.0, 10.0),
        _held(
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            "SELECT count(*) FROM causeway.event",
        ),
    ),
)
