"""`causeway prune`: what goes, what stays, who is named, and what readers see meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import httpx2
import pytest

from service.audit import audit
from service.db import Connection
from service.errors import LogUnavailable, PositionPruned
from service.event import NewEvent
from service.eventlog import AuditRow, EventLog
from service.filter import EVERYTHING
from service.prune import Behind, Partition, Pruning, Rule, prune
from tests.bridge import new_event
from tests.commands import command
from tests.consuming import open_consumers, put
from tests.partitioned import divide, partitions
from tests.relayed import deliver, make_webhook
from tests.running import WITHIN_S, Database, Running, eventually
from tests.stored import append, open_log, positions, read_all, received

NOW = datetime.now(UTC)
SIZE = 10
OLD = timedelta(days=30)
WINDOW = timedelta(days=7)


@pytest.fixture
async def log(database: Database, owner: Connection) -> AsyncIterator[EventLog]:
    """A log of 45 events, one a day since 45 days, in partitions of 10 positions."""
    await divide(owner, SIZE)
    await be_patient(owner)
    async with open_log(database) as opened:
        for ago in range(45, 0, -1):
            await append(opened, aged(ago))
        yield opened


async def be_patient(owner: Connection) -> None:
    """Let whoever prunes wait an hour for readers: a test may hold it up for over a minute."""
    source = await owner.fetchval("SELECT pg_get_functiondef('causeway.lock_events'::regproc)")
    assert "1..150 LOOP" in source
    await owner.execute(source.replace("1..150 LOOP", "1..9000 LOOP"))


def aged(days: float) -> NewEvent:
    """Return an event that was received so many days ago."""
    return received(new_event(), NOW - timedelta(days=days))


async def run(
    owner: Connection,
    *,
    older_than: timedelta | None = None,
    keep_bytes: int | None = None,
    **options: bool,
) -> Pruning:
    return await prune(owner, Rule(older_than, keep_bytes, WINDOW), NOW, **options)


def firsts(pruning: Pruning) -> list[int]:
    return [partition.first_position for partition in pruning.gone]


# What goes


def test_the_rule_takes_the_oldest_and_leaves_what_it_must() -> None:
    def part(first: int, days: float | None) -> Partition:
        moment = None if days is None else NOW - timedelta(days=days)
        return Partition(first, first + 10, 100, moment)

    parts = [part(0, 50), part(10, 40), part(20, 9), part(30, 3), part(40, None), part(50, None)]
    rules: Sequence[tuple[timedelta | None, int | None, list[int]]] = (
        (None, None, []),
        (timedelta(days=60), None, []),
        (timedelta(days=45), None, [0]),
        (timedelta(days=0), None, [0, 10, 20]),  # the fourth may be sent again
        (None, 600, []),
        (None, 599, [0]),
        (None, 401, [0, 10]),
        (None, 0, [0, 10, 20]),
        (timedelta(days=45), 401, [0, 10]),
    )
    for older_than, keep_bytes, expected in rules:
        chosen = Rule(older_than, keep_bytes, WINDOW).chosen(parts, NOW)
        assert [it.first_position for it in chosen] == expected, (older_than, keep_bytes)


async def test_whole_partitions_past_the_age_go_and_the_anchor_follows(
    log: EventLog, owner: Connection
) -> None:
    links = {event.position: event.link for event in await read_all(log)}
    assert firsts(await run(owner, older_than=OLD)) == [0]
    bounds = await log.bounds()
    assert (bounds.anchor_position, bounds.anchor_link) == (9, links[9])
    assert positions(await log.read_after(9)) == list(range(10, 46))
    assert [first for first, _ in await partitions(owner)] == [10, 20, 30, 40]
    assert (await audit(log, lambda _done, _total: None)).events == 36
    with pytest.raises(PositionPruned, match="the first event left is 10"):
        await log.read_after(3)


async def test_pruning_during_an_audit_is_no_damage(
    log: EventLog, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit_after = log.audit_after

    async def then_prune(position: int, **options: int) -> list[AuditRow]:
        """Read a page; behind the first one the partition that it is of goes."""
        found = await audit_after(position, **options)
        if position == 0:
            assert firsts(await run(owner, older_than=OLD)) == [0]
        return found

    monkeypatch.setattr(log, "audit_after", then_prune)
    progress: list[tuple[int, int]] = []
    proof = await audit(log, lambda done, total: progress.append((done, total)), page_events=4)
    assert (proof.events, proof.bounds.anchor_position) == (36, 9)
    assert progress[-1] == (36, 36)
    assert await log.find_time(NOW - timedelta(days=400)) == 10
    assert firsts(await run(owner, older_than=OLD)) == []


async def test_by_size_the_oldest_go_until_it_fits(log: EventLog, owner: Connection) -> None:
    whole = await owner.fetchval(
        "SELECT sum(pg_total_relation_size(inhrelid::regclass)) FROM pg_inherits "
        "WHERE inhparent = 'causeway.event'::regclass"
    )
    assert firsts(await run(owner, keep_bytes=whole)) == []
    assert firsts(await run(owner, keep_bytes=whole - 1)) == [0]
    assert firsts(await run(owner, keep_bytes=0)) == [10, 20, 30]
    assert (await log.bounds()).anchor_position == 39


async def test_the_newest_event_stays_whatever_is_asked(
    database: Database, owner: Connection
) -> None:
    await divide(owner, 3)
    async with open_log(database) as log:
        for _ in range(5):
            await append(log, aged(400))
        assert firsts(await run(owner, older_than=OLD)) == [0]
        assert positions(await log.read_after(2)) == [3, 4, 5]
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
            await owner.execute("SELECT causeway.prune_partition(3)")
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
            await owner.execute("SELECT causeway.prune_partition(6)")
        assert (await append(log, new_event()))[0].position == 6


async def test_a_retry_of_what_is_gone_is_still_known(log: EventLog, owner: Connection) -> None:
    [first] = await log.read_after(0, limit=1)
    await run(owner, older_than=OLD)
    again = await append(log, received(new_event(), NOW))
    retry = NewEvent(
        *("default", first.type, first.topic, None, None, None, None, first.digest, first.body, NOW)
    )
    assert (await append(log, retry))[0].position == 1
    assert again[0].position == 46


async def test_a_dry_run_changes_nothing(log: EventLog, owner: Connection) -> None:
    assert firsts(await run(owner, older_than=OLD, is_dry_run=True)) == [0]
    assert positions(await read_all(log)) == list(range(1, 46))


async def test_the_services_role_can_take_nothing_out(
    log: EventLog, owner: Connection, database: Database
) -> None:
    service = await asyncpg.connect(database.service_dsn)
    try:
        for call in ("prune_partition(0)", "forget_gone(1)", "behind(9)"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await service.execute(f"SELECT causeway.{call}")
    finally:
        await service.close()


# Who is behind


async def test_nobody_is_passed_without_a_word(log: EventLog, owner: Connection) -> None:
    await owner.execute(
        "INSERT INTO causeway.consumer (name, ack_mode, lease_s) VALUES ('slow', 'explicit', 30), "
        "('fast', 'explicit', 30)"
    )
    await owner.execute(
        "INSERT INTO causeway.consumer_shard (name, shard, position, link, sent_position) "
        "SELECT name, 0, place, link, place FROM causeway.event, "
        "(VALUES ('slow', 12), ('fast', 40)) AS consumer (name, place) WHERE position = place"
    )
    behind = await make_webhook(owner, 13)
    ahead = await make_webhook(owner, 40)
    await deliver(owner, ahead, "exhausted", 14, 15)
    await deliver(owner, ahead, "pending", 16)
    await deliver(owner, ahead, "delivered", 17)
    held = await run(owner, older_than=timedelta(days=20))
    assert (firsts(held), held.is_held) == ([0], True), "the first partition nobody needs"
    assert held.behind == [
        Behind("consumer", "slow", 12, None),
        Behind("deliveries", str(ahead), 14, 3),
        Behind("webhook", str(behind), 13, None),
    ]
    assert (await log.bounds()).anchor_position == 9

    forced = await run(owner, older_than=timedelta(days=20), is_forced=True)
    assert (firsts(forced), forced.is_held, forced.behind) == ([10], False, held.behind)
    webhooks = await owner.fetch(
        "SELECT webhook_id, disabled_reason FROM causeway.webhook ORDER BY 1"
    )
    assert [tuple(row) for row in webhooks] == [(behind, "position_pruned"), (ahead, None)]
    left = await owner.fetch("SELECT position, state FROM causeway.delivery ORDER BY 1")
    assert [tuple(row) for row in left] == [(16, "pending"), (17, "delivered")], "16 ends by itself"
    assert (await run(owner, older_than=timedelta(days=15))).behind == [
        Behind("consumer", "slow", 12, None)
    ]


async def test_a_place_at_the_new_anchor_is_not_behind(log: EventLog, owner: Connection) -> None:
    webhook = await make_webhook(owner, 9)
    assert not (await run(owner, older_than=OLD)).behind
    assert await owner.fetchval(
        "SELECT disabled_at IS NULL FROM causeway.webhook WHERE webhook_id = $1", webhook
    )


async def test_a_consumer_that_was_left_behind_gets_410(
    owner: Connection, database: Database, start: Callable[..., Awaitable[Running]]
) -> None:
    await divide(owner, SIZE)
    running = await start(window_events=5)  # what is in memory is not gone
    for ago in range(45, 0, -1):
        await running.service.eventlog.append([aged(ago)], timeout_s=30)
    await eventually(lambda: running.service.window.position == 45)
    async with open_consumers(database) as consumers:
        await put(consumers, running.service.eventlog, "billing")
    await run(owner, older_than=OLD, is_forced=True)
    async with httpx2.AsyncClient(base_url=running.url, headers=running.headers) as client:
        for path in ("/stream?consumer=billing", "/stream?after=3", "/events?after=3", "/events/3"):
            answer = await client.get(path)
            assert answer.status_code == 410, path
            assert answer.json()["error"]["code"] == "position_pruned"
            assert answer.json()["error"]["first_position"] == 10


# Meanwhile


async def test_readers_and_appends_go_on_and_nobody_gets_silence(
    log: EventLog, owner: Connection
) -> None:
    """Each reader begins anywhere: it sees every position that is left, or is told 410."""
    outcomes: list[str] = []

    async def read(begin: int) -> None:
        position = begin
        try:
            while events := await log.read_after(position, limit=3, head=45):
                assert positions(events)[0] == position + 1
                position = events[-1].position
                await log.read_matching(position, 45, EVERYTHING)
                if position >= 45:
                    break
            outcomes.append("read")
        except PositionPruned:
            outcomes.append("pruned")

    async def write() -> None:
        for _ in range(30):
            await append(log, new_event())

    async with asyncio.TaskGroup() as group:
        for begin in range(40):
            group.create_task(read(begin))
        group.create_task(write())
        group.create_task(run(owner, older_than=timedelta(days=10)))
    assert len(outcomes) == 40
    assert (await log.bounds()).head_position == 75
    assert (await audit(log, lambda _done, _total: None)).bounds.anchor_position == 29


async def test_a_long_reader_holds_up_the_pruning_and_the_pruning_nobody(
    log: EventLog, owner: Connection, database: Database
) -> None:
    reader = await asyncpg.connect(database.owner_dsn)
    try:
        transaction = reader.transaction()
        await transaction.start()
        await reader.fetch("SELECT count(*) FROM causeway.event")
        pruning = asyncio.create_task(run(owner, older_than=OLD))
        for _ in range(10):
            async with asyncio.timeout(WITHIN_S):
                await append(log, new_event())
                await log.read_after(40)
            assert not pruning.done()
        await transaction.rollback()
        assert firsts(await pruning) == [0]
    finally:
        await reader.close()


@pytest.fixture
async def reader(database: Database) -> AsyncIterator[Connection]:
    """A session that reads, and so holds up whoever prunes, until `ROLLBACK`."""
    connection = await asyncpg.connect(database.owner_dsn)
    try:
        await connection.execute("BEGIN; SELECT count(*) FROM causeway.event")
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def pruner(database: Database) -> AsyncIterator[Connection]:
    """A session that prunes."""
    connection = await asyncpg.connect(database.owner_dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def until_it_prunes(owner: Connection, pid: int) -> None:
    """Return once the session `pid` tries to take a partition out."""
    sql = "SELECT query LIKE '%prune_partition%' FROM pg_stat_activity WHERE pid = $1"
    async with asyncio.timeout(WITHIN_S):
        while not await owner.fetchval(sql, pid):
            await asyncio.sleep(0.01)


async def test_a_pruning_whose_session_ends_has_changed_nothing(
    log: EventLog, owner: Connection, reader: Connection, pruner: Connection
) -> None:
    pid = pruner.get_server_pid()
    pruning = asyncio.create_task(run(pruner, older_than=timedelta(days=20)))
    await until_it_prunes(owner, pid)
    await append(log, new_event())
    # It returns once the session is gone: when the reader lets go, nobody is there to prune.
    assert await owner.fetchval("SELECT pg_terminate_backend($1, $2)", pid, int(WITHIN_S * 1000))
    with pytest.raises((LogUnavailable, asyncpg.PostgresError)):
        await pruning
    await reader.execute("ROLLBACK")
    assert positions(await read_all(log)) == list(range(1, 47))
    assert firsts(await run(owner, older_than=timedelta(days=20))) == [0, 10]
    assert (await audit(log, lambda _done, _total: None)).events == 27


async def test_a_pruning_whose_client_goes_leaves_a_log_that_can_be_read(
    log: EventLog, owner: Connection, reader: Connection, pruner: Connection
) -> None:
    """Postgres may still do what it was told: the partition is gone wholly, or not at all."""
    pid = pruner.get_server_pid()
    pruning = asyncio.create_task(run(pruner, older_than=timedelta(days=20)))
    await until_it_prunes(owner, pid)
    pruner.terminate()
    with pytest.raises((LogUnavailable, asyncpg.PostgresError)):
        await pruning
    await append(log, new_event())
    await reader.execute("ROLLBACK")
    async with asyncio.timeout(WITHIN_S):
        while await owner.fetchval("SELECT true FROM pg_stat_activity WHERE pid = $1", pid):
            await asyncio.sleep(0.01)
    anchor = (await log.bounds()).anchor_position
    assert anchor in (0, 9)
    assert positions(await log.read_after(anchor)) == list(range(anchor + 1, 47))
    gone = firsts(await run(owner, older_than=timedelta(days=20)))
    assert gone == ([10] if anchor else [0, 10])
    assert (await audit(log, lambda _done, _total: None)).events == 27


# The command


async def test_the_command_says_what_went_and_who_holds_the_rest(
    log: EventLog, owner: Connection, database: Database
) -> None:
    url = {"DATABASE_URL": database.owner_dsn}
    webhook = await make_webhook(owner, 12)
    done = await command("prune", "--older-than", "20", "--dry-run", **url)
    assert done.out.startswith("would prune positions 1 to 9, ")
    done = await command("prune", CAUSEWAY_RETENTION_S=str(20 * 86400), **url)
    assert done.code == 1
    lines = done.out.splitlines()
    assert lines[0].startswith("pruned positions 1 to 9, ")
    assert lines[1:] == [f"held back by the webhook {webhook}, at position 12"]
    done = await command("prune", "--older-than", "20", "--force", **url)
    assert done.code == 0
    assert f"left behind the webhook {webhook}, at position 12" in done.out
    done = await command("prune", "--older-than", "20", **url)
    assert (done.code, done.out) == (0, "nothing to prune\n")


async def test_the_command_asks_what_may_go(database: Database) -> None:
    for arguments, said in (
        ((), "kept for ever"),
        (("--keep-bytes", "much"), "a size such as 500GB"),
    ):
        done = await command("prune", *arguments, DATABASE_URL=database.owner_dsn)
        assert done.code == 2
        assert said in done.err
    done = await command("prune", "--older-than", "1", DATABASE_URL=database.service_dsn)
    assert done.code == 1
    assert "owner" in done.err
