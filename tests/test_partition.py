"""The log in partitions: made of one table, made ahead, crossed under load, closed to changes."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from service.audit import audit
from service.db import Connection, connect, statements
from service.embedded import EmbeddedPostgres
from service.errors import LogDamaged, PositionPruned
from service.eventlog import EventLog
from service.migrate import migrate, migrations
from service.partition import make_partitions
from tests.bridge import new_event
from tests.conftest import with_database
from tests.load import under_load
from tests.partitioned import FIRST_EVENTS, divide, migrate_to, partitions
from tests.running import WITHIN_S, Database, Running, execute_alone
from tests.stored import append, fill, open_log, positions, prune, read_all, remove

PLAIN = 5  # the last version whose log is one table
SMALL = 50
# It asks for the lock for a fifth of a second, lets others pass, and asks again, for a minute.
MIGRATES = """
SELECT count(*)
FROM pg_locks
WHERE relation = 'causeway.event'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@pytest.fixture
async def log(database: Database) -> AsyncIterator[EventLog]:
    """The test's log, opened with the service's role."""
    async with open_log(database) as opened:
        yield opened


@pytest.fixture
async def plain(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A database as the version before partitions left it."""
    name = f"plain_{os.getpid()}"
    connection = await asyncpg.connect(postgres.owner_url)
    try:
        await execute_alone(connection, f"CREATE DATABASE {name}")
        database = Database(
            with_database(postgres.owner_url, name), with_database(postgres.service_url, name)
        )
        await migrate_to(database.owner_dsn, PLAIN)
        yield database
        await execute_alone(connection, f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


# From one table


async def test_the_plain_table_becomes_the_first_partition(plain: Database) -> None:
    owner = await asyncpg.connect(plain.owner_dsn)
    try:
        async with open_log(plain) as log:
            events = await fill(log, 20)
            before = await read_all(log)
            table = await owner.fetchval("SELECT 'causeway.event'::regclass::oid")
            await migrate(plain.owner_dsn)
            assert await read_all(log) == before, "on sessions that had their plans"
            assert await owner.fetchval("SELECT 'causeway.event_0'::regclass::oid") == table
            assert await partitions(owner) == [
                (0, FIRST_EVENTS),
                (FIRST_EVENTS, 2 * FIRST_EVENTS),
            ]
            again, fresh = await append(log, events[3], new_event())
            assert (again.position, again.is_known, fresh.position) == (4, True, 21)
            assert (await audit(log, lambda _done, _total: None)).events == 21
    finally:
        await owner.close()


async def test_the_indexes_of_the_plain_table_are_taken_over(plain: Database) -> None:
    owner = await asyncpg.connect(plain.owner_dsn)
    try:
        indexes = (
            "SELECT array_agg(indexrelid::oid ORDER BY indexrelid) FROM pg_index "
            "WHERE indrelid = '{}'::regclass"
        )
        before = await owner.fetchval(indexes.format("causeway.event"))
        await migrate(plain.owner_dsn)
        after = await owner.fetchval(indexes.format("causeway.event_0"))
        assert after == before, "none was built again"
        attached = await owner.fetchval(
            "SELECT count(*) FROM pg_inherits JOIN pg_index ON indexrelid = inhrelid "
            "WHERE indrelid = 'causeway.event_0'::regclass"
        )
        assert attached == len(before)
    finally:
        await owner.close()


async def test_while_it_is_divided_appends_and_reads_go_on(plain: Database) -> None:
    """A reader that takes long makes the migration wait, and nobody behind it."""
    reader, owner = [await asyncpg.connect(plain.owner_dsn) for _ in range(2)]
    try:
        async with open_log(plain) as log:
            await fill(log, 10)
            transaction = reader.transaction()
            await transaction.start()
            await reader.fetch("SELECT count(*) FROM causeway.event")
            migrating = asyncio.create_task(migrate(plain.owner_dsn))
            async with asyncio.timeout(WITHIN_S):
                while not await owner.fetchval(MIGRATES):
                    await asyncio.sleep(0.02)
            for expected in range(11, 21):
                [appended] = await append(log, new_event())
                assert appended.position == expected
                assert not migrating.done()
            await transaction.rollback()
            assert await migrating == [step.name for step in migrations()[PLAIN:]]
            assert positions(await read_all(log)) == list(range(1, 21))
    finally:
        await reader.close()
        await owner.close()


async def test_a_log_that_ends_near_a_partitions_end_gets_room(plain: Database) -> None:
    owner = await asyncpg.connect(plain.owner_dsn)
    try:
        async with open_log(plain) as log:
            await fill(log, 1)
        await owner.execute("ALTER TABLE causeway.event DISABLE TRIGGER ALL")
        await owner.execute("UPDATE causeway.event SET position = $1", FIRST_EVENTS - 1)
        await migrate(plain.owner_dsn)
        assert (await partitions(owner))[0] == (0, 2 * FIRST_EVENTS)
    finally:
        await owner.close()


# Ahead of the head


async def test_the_boundary_is_crossed_under_load_without_a_hole(
    owner: Connection, start: Callable[..., Awaitable[Running]]
) -> None:
    """Nobody makes partitions ahead faster than they are filled here: the appends do it."""
    await divide(owner, SMALL)
    running = [await start() for _ in range(2)]
    async with under_load(running[0].url) as one, under_load(running[1].url) as other:
        async with asyncio.timeout(WITHIN_S):
            while len(await partitions(owner)) < 12:
                await asyncio.sleep(0.05)
    assert not one.refused
    assert not other.refused
    log = running[0].service.eventlog
    total = len(one.accepted) + len(other.accepted)
    assert positions(await read_all(log)) == list(range(1, total + 1))
    assert (await audit(log, lambda _done, _total: None)).events == total


async def test_one_batch_can_fill_several_partitions(log: EventLog, owner: Connection) -> None:
    await divide(owner, 4)
    await fill(log, 3)
    await fill(log, 14)
    assert positions(await read_all(log)) == list(range(1, 18))
    assert (await partitions(owner))[:5] == [(n, n + 4) for n in range(0, 20, 4)]
    opened = "SELECT count(opened_at) FROM causeway.event_partition"
    assert await owner.fetchval(opened) == 5
    assert [(await append(log, new_event()))[0].position for _ in range(4)] == [18, 19, 20, 21]


async def test_a_running_service_keeps_a_partition_ahead(owner: Connection, log: EventLog) -> None:
    await divide(owner, SMALL)
    await fill(log, SMALL)
    assert len(await partitions(owner)) == 2, "the append took the one that was there"
    loop = asyncio.create_task(make_partitions(log, every_s=0.05))
    try:
        async with asyncio.timeout(WITHIN_S):
            while len(await partitions(owner)) < 3:
                await asyncio.sleep(0.02)
        await asyncio.gather(*(log.make_partitions() for _ in range(4)))
        assert len(await partitions(owner)) == 3, "one ahead is enough"
    finally:
        loop.cancel()


async def test_a_partition_is_made_while_others_read_and_append(
    owner: Connection, log: EventLog, database: Database
) -> None:
    await divide(owner, SMALL)
    await fill(log, SMALL)
    reader = await asyncpg.connect(database.owner_dsn)
    try:
        async with reader.transaction():
            await reader.fetch("SELECT count(*) FROM causeway.event")
            assert await log.make_partitions() == 1
        maker = owner.transaction()
        await maker.start()
        await fill(log, SMALL)  # takes the one ahead
        assert await owner.fetchval("SELECT causeway.make_partitions()") == 1
        # It is not committed yet.
        await fill(log, 1)
        assert len(await read_all(log)) == 2 * SMALL + 1
        await maker.commit()
    finally:
        await reader.close()


async def test_a_log_that_was_cut_back_goes_on_from_where_it_ends(
    log: EventLog, owner: Connection
) -> None:
    """As a restore leaves it: the newest partition is open, and empty."""
    await divide(owner, 4)
    await fill(log, 9)
    await remove(owner, 7, 9)
    assert (await append(log, new_event()))[0].position == 7
    assert positions(await read_all(log)) == list(range(1, 8))


# What may be done to them


@pytest.mark.parametrize(
    "change",
    ["UPDATE causeway.{} SET body = ''", "DELETE FROM causeway.{}", "TRUNCATE causeway.{}"],
)
async def test_no_partition_can_be_changed_even_by_the_owner(
    log: EventLog, owner: Connection, change: str
) -> None:
    await divide(owner, 4)
    await fill(log, 9)
    for name in ("event", *(f"event_{first}" for first, _ in await partitions(owner))):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="the log is append-only"):
            await owner.execute(change.format(name))
    assert len(await read_all(log)) == 9


async def test_the_service_reaches_no_partition_but_through_the_log(
    log: EventLog, owner: Connection, database: Database
) -> None:
    await divide(owner, 4)
    await fill(log, 9)
    service = await asyncpg.connect(database.service_dsn)
    try:
        for statement in (
            "SELECT * FROM causeway.event_4",
            "INSERT INTO causeway.event_8 SELECT * FROM causeway.event WHERE position = 1",
            "DROP TABLE causeway.event_4",
            "SELECT causeway.add_partition()",
            "SELECT causeway.open_partitions(1000)",
            "SELECT causeway.lock_events()",
            "DELETE FROM causeway.event_partition",
            "UPDATE causeway.log SET partition_events = 1",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await service.execute(statement)
    finally:
        await service.close()


# What they cost


async def test_a_page_looks_at_the_partitions_in_its_range_alone(
    log: EventLog, owner: Connection, database: Database
) -> None:
    await divide(owner, 10)
    await fill(log, 205)
    service = await connect(database.service_dsn)
    try:
        sql = statements("eventlog")
        for statement, values in (
            (sql.read_after, (95, 10, 10**6, 105)),
            (sql.read_matching, (95, 105, 10, 10**6, *[None] * 6)),
        ):
            plan = await service.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *values)
            found = {name for first, _ in await partitions(owner) if (name := f"event_{first}")}
            used = {name for name in found if f'"{name}"' in json.dumps(json.loads(plan))}
            assert used == {"event_90", "event_100"}
    finally:
        await service.close()


async def test_a_page_that_should_be_there_and_is_not_is_never_passed_over(
    log: EventLog, owner: Connection
) -> None:
    await divide(owner, 10)
    await fill(log, 100)
    assert await log.read_after(100, head=100) == []
    assert positions(await log.read_after(40, limit=5, head=100)) == [41, 42, 43, 44, 45]
    await remove(owner, 41, 60)
    with pytest.raises(LogDamaged, match="position 41: missing"):
        await log.read_after(40, limit=5, head=100)
    await prune(owner, 70)
    with pytest.raises(PositionPruned, match="the first event left is 71"):
        await log.read_after(40, limit=5, head=100)
    assert await log.read_after(100, head=200) == [], "another history, which ends here"
