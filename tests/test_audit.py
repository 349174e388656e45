"""`audit`: proves an honest log, and names the first position that somebody changed."""

import asyncio
from datetime import UTC, datetime

import pytest

from service import audit as audit_module
from service.audit import Proof, audit
from service.db import Connection, create_pool
from service.errors import LogDamaged
from service.event import NewEvent, parse_event
from service.eventlog import EventLog
from tests.bridge import TEST_EVENT, new_event
from tests.commands import Done, command
from tests.relaying import Desk, append
from tests.running import Database

EVENTS = 6


@pytest.fixture
async def log(owner: Connection) -> EventLog:
    """A log of EVENTS events of every sort, whose triggers somebody has switched off."""
    eventlog = EventLog(owner)
    now = datetime.now(UTC)
    extremes = b'{"type":"x","timestamp":1e11,"content":{"item_id":-9223372036854775808}}'
    await eventlog.append([new_event("ITEM_CREATED"), new_event(), new_event()], timeout_s=30)
    await eventlog.append([parse_event(TEST_EVENT, "retail", now)] * 2, timeout_s=30)
    await eventlog.append([parse_event(extremes, "default", now)], timeout_s=30)
    await owner.execute("ALTER TABLE causeway.event DISABLE TRIGGER ALL")
    return eventlog


async def prove(eventlog: EventLog) -> Proof:
    """Audit the whole log."""
    return await audit(eventlog, lambda _done, _total: None)


async def test_an_honest_log_is_proven_to_its_head(log: EventLog, owner: Connection) -> None:
    steps: list[tuple[int, int]] = []
    proof = await audit(log, lambda done, total: steps.append((done, total)))
    assert proof.events == EVENTS
    assert steps[-1] == (EVENTS, EVENTS)
    link = await owner.fetchval("SELECT link FROM causeway.event ORDER BY position DESC LIMIT 1")
    assert proof.checkpoint == f"{EVENTS}.{link.hex()}"


async def test_an_empty_log_is_proven(owner: Connection) -> None:
    assert (await prove(EventLog(owner))).events == 0


async def test_pages_are_chained_to_each_other(
    log: EventLog, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "PAGE_EVENTS", 2)
    assert (await prove(log)).events == EVENTS
    await owner.execute("DELETE FROM causeway.event WHERE position = 3")
    with pytest.raises(LogDamaged, match="position 3: missing; 4 follows"):
        await prove(log)


async def test_events_that_arrive_meanwhile_do_no_harm(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "PAGE_EVENTS", 2)
    bounds = log.bounds

    async def bounds_then_append() -> object:
        found = await bounds()
        await log.append([new_event(), new_event(), new_event()], timeout_s=30)
        return found

    monkeypatch.setattr(log, "bounds", bounds_then_append)
    assert (await prove(log)).events == EVENTS


CHANGES = {
    "body": (3, "body = body || ' '", "body"),
    "body_and_digest": (3, "body = 'x', digest = sha256('x')", "link"),
    "digest": (3, "digest = sha256('')", "body"),
    "link": (3, "link = sha256(link)", "link"),
    "received_at": (3, "received_at = received_at - interval '1 us'", "link"),
    "received_at_infinite": (3, "received_at = 'infinity', watermark = 'infinity'", "link"),
    "received_at_ancient": (3, "received_at = '4000-01-01 BC'", "link"),
    "source": (3, "source = 'other'", "link"),
    "type": (3, "type = 'item.deleted'", "type"),
    "topic": (1, "topic = type", "topic"),
    "item_id": (3, "item_id = item_id + 1", "item_id"),
    "item_id_null": (3, "item_id = NULL", "item_id"),
    "account_id": (3, "account_id = 1", "account_id"),
    "user_uuid": (3, "user_uuid = gen_random_uuid()", "user_uuid"),
    "occurred_at": (3, "occurred_at = occurred_at + interval '1 us'", "occurred_at"),
    "occurred_at_infinite": (3, "occurred_at = 'infinity'", "occurred_at"),
    "occurred_at_null": (3, "occurred_at = NULL", "occurred_at"),
    "watermark": (3, "watermark = watermark + interval '1 hour'", "watermark"),
    "watermark_lower": (3, "watermark = received_at - interval '1 hour'", "watermark"),
    "first_watermark": (1, "watermark = watermark + interval '1 us'", "watermark"),
    "first_body": (1, "body = '{}'", "body"),
    "last_body": (EVENTS, "body = '{}'", "body"),
    "position": (EVENTS, f"position = {EVENTS + 1}", "missing"),
}


async def test_a_changed_column_is_named_with_its_position(
    log: EventLog, owner: Connection
) -> None:
    for name, (position, change, what) in CHANGES.items():
        transaction = owner.transaction()
        await transaction.start()
        await owner.execute(f"UPDATE causeway.event SET {change} WHERE position = {position}")
        with pytest.raises(LogDamaged) as caught:
            await prove(log)
        assert caught.value.message.startswith(f"position {position}: "), name
        assert what in caught.value.message, name
        await transaction.rollback()
    assert (await prove(log)).events == EVENTS


@pytest.mark.parametrize("position", [1, 3])
async def test_a_removed_row_is_missing(log: EventLog, owner: Connection, position: int) -> None:
    await owner.execute(f"DELETE FROM causeway.event WHERE position = {position}")
    with pytest.raises(LogDamaged, match=f"position {position}: missing; {position + 1} follows"):
        await prove(log)


async def test_swapped_rows_are_found_at_the_first(log: EventLog, owner: Connection) -> None:
    for old, new in ((2, 99), (4, 2), (99, 4)):
        await owner.execute(f"UPDATE causeway.event SET position = {new} WHERE position = {old}")
    with pytest.raises(LogDamaged, match="position 2: the link does not follow"):
        await prove(log)


async def test_an_event_put_in_between_is_found(log: EventLog, owner: Connection) -> None:
    for move in ("position + 100 WHERE position > 2", "position - 99 WHERE position > 100"):
        await owner.execute(f"UPDATE causeway.event SET position = {move}")
    await owner.execute(
        "INSERT INTO causeway.event SELECT 3, received_at, watermark, occurred_at, item_id, "
        "account_id, user_uuid, source, type, topic, digest, link, body "
        "FROM causeway.event WHERE position = 2"
    )
    with pytest.raises(LogDamaged, match="position 3: the link does not follow"):
        await prove(log)


async def test_the_first_of_several_is_named(log: EventLog, owner: Connection) -> None:
    await owner.execute("UPDATE causeway.event SET body = 'x' WHERE position IN (2, 5)")
    with pytest.raises(LogDamaged, match="position 2: "):
        await prove(log)


async def test_a_row_that_vanishes_at_the_end_during_the_walk_is_missing(
    log: EventLog, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = await log.bounds()

    async def before() -> object:
        return bounds

    await owner.execute(f"DELETE FROM causeway.event WHERE position = {EVENTS}")
    monkeypatch.setattr(log, "bounds", before)
    with pytest.raises(LogDamaged, match=f"position {EVENTS}: missing, and everything after"):
        await prove(log)


async def test_large_bodies_do_not_fill_the_memory(owner: Connection) -> None:
    eventlog = EventLog(owner)
    big: list[NewEvent] = [new_event(text="x" * 1_000_000) for _ in range(12)]
    await eventlog.append(big, timeout_s=30)
    steps: list[int] = []
    await audit(eventlog, lambda done, _total: steps.append(done))
    assert steps[-1] == 12
    assert len(steps) > 1  # one page never holds all of them


# The command


async def run(database: Database, *arguments: str) -> Done:
    """Run `audit` with the rights of the service."""
    return await command("audit", *arguments, DATABASE_URL=database.service_dsn)


async def test_the_command_prints_a_checkpoint_that_a_later_one_can_be_held_against(
    database: Database, log: EventLog, owner: Connection
) -> None:
    first = await run(database)
    assert (first.code, first.err) == (0, "")
    assert f"{EVENTS} events are as they were appended" in first.out
    checkpoint = first.out.split()[-1]
    await log.append([new_event()], timeout_s=30)
    later = await run(database, "--checkpoint", checkpoint)
    assert (later.code, later.err) == (0, "")

    # Whoever cuts the log's end off, or writes it anew with good links, is found by it alone.
    await owner.execute(f"DELETE FROM causeway.event WHERE position >= {EVENTS}")
    cut, held = await asyncio.gather(run(database), run(database, "--checkpoint", checkpoint))
    assert cut.code == 0
    assert (held.code, held.out) == (1, "")
    assert f"never got to {EVENTS}" in held.err
    await log.append([new_event()], timeout_s=30)
    rewritten, held = await asyncio.gather(run(database), run(database, "--checkpoint", checkpoint))
    assert rewritten.code == 0
    assert (held.code, held.out) == (1, "")
    assert "restored or replaced" in held.err


async def test_the_command_names_the_damage_and_shows_no_body(
    database: Database, log: EventLog, owner: Connection
) -> None:
    del log
    await owner.execute("UPDATE causeway.event SET item_id = 7 WHERE position = 4")
    done = await run(database)
    assert (done.code, done.out) == (1, "")
    assert "position 4: item_id is not what the body says" in done.err
    assert "content" not in done.err
    assert "Traceback" not in done.err


async def test_the_command_names_an_event_that_a_webhook_was_owed_and_has_no_delivery(
    database: Database, owner: Connection
) -> None:
    async with create_pool(database.service_dsn, max_size=1) as pool:
        desk = Desk(pool)
        hook = await desk.add(types=["item.*"])
        await append(desk.eventlog, 5)
        await desk.claim(hook, room=3)  # three are deliveries, two are still in the log
        await desk.add()
        good = await run(database)
        assert (good.code, good.err) == (0, "")
        assert "every event owed has its delivery, for 2 outgoing webhooks" in good.out
        await owner.execute("DELETE FROM causeway.delivery WHERE position = 2")
        bad = await run(database)
        assert (bad.code, bad.out) == (1, "")
        assert f"webhook {hook.webhook_id} was owed the event at position 2" in bad.err


async def test_a_checkpoint_that_is_none_is_a_sentence(database: Database, log: EventLog) -> None:
    del log
    for checkpoint in ("x", "3", "3.xyz", "-1.0", "3.1234567"):
        done = await run(database, f"--checkpoint={checkpoint}")
        assert (done.code in (1, 2), done.out) == (True, "")
        assert f"--checkpoint='{checkpoint}': POSITION.LINK was expected" in done.err
        assert "Traceback" not in done.err
