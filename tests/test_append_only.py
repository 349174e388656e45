"""Who may change the log: nobody by any statement; and what an audit says of who did all the same.

Beside test_migrate, test_partition, test_erase and test_audit, which try the plain statements: what
the catalog allows at all, ways around a trigger, and damage done as a superuser.
"""

import hashlib
from collections.abc import AsyncIterator

import asyncpg
import pytest

from service.audit import Proof, audit
from service.db import Connection
from service.errors import LogDamaged, LogDiverged, PositionPruned
from service.event import chain_link
from service.eventlog import EventLog
from tests.bridge import new_event
from tests.partitioned import divide
from tests.running import Database

EVENTS = 12
PARTITION = 5  # positions; event_0 holds 1 to 4, event_5 5 to 9, event_10 the rest
ROW = (
    "SELECT {} position, received_at, watermark, occurred_at, item_id, account_id, user_uuid, "
    "source, type, topic, digest, link, body FROM causeway.event WHERE position = 1"
)
OVERWRITE = "ON CONFLICT (position) DO UPDATE SET body = ''"
# What the service's role may do with each table, beside reading it. A new table has a row here.
ITS_OWN = {"SELECT", "INSERT", "UPDATE", "DELETE"}  # places, leases, deliveries: no evidence
PRIVILEGES = {
    **{name: {"SELECT"} for name in ("event", "digest", "log", "migration", "event_partition")},
    **{name: {"SELECT"} for name in ("erasure", "erased", "erasure_place")},
    **dict.fromkeys(("consumer", "consumer_shard", "webhook", "delivery", "attempt"), ITS_OWN),
    "replay": {"SELECT", "INSERT", "UPDATE"},
    "token": {"SELECT", "INSERT"},  # and UPDATE of two columns: see test_migrate
}


@pytest.fixture
async def log(owner: Connection) -> EventLog:
    """A log of EVENTS events in three partitions, seen by its owner, who is a superuser."""
    await divide(owner, PARTITION)
    eventlog = EventLog(owner)
    await eventlog.append([new_event() for _ in range(EVENTS)], timeout_s=30)
    return eventlog


@pytest.fixture
async def service(database: Database, log: EventLog) -> AsyncIterator[Connection]:
    """A session of the service's role."""
    del log
    connection = await asyncpg.connect(database.service_dsn)
    try:
        yield connection
    finally:
        await connection.close()


# What the catalog says: a new table or function is looked at without being named here.


async def test_the_services_role_has_no_privilege_but_those_it_needs(owner: Connection) -> None:
    rows = await owner.fetch(
        "SELECT relname, relispartition, array(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', "
        "'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p "
        "WHERE has_table_privilege('causeway_service', oid, p)) AS may "
        "FROM pg_class WHERE relnamespace = 'causeway'::regnamespace AND relkind IN ('r', 'p', 'v')"
    )
    found = {row["relname"]: set(row["may"]) for row in rows}
    parts = {row["relname"] for row in rows if row["relispartition"]}
    assert parts
    assert {name: may for name, may in found.items() if may} == PRIVILEGES
    assert found.keys() - PRIVILEGES.keys() == parts


async def test_the_services_role_owns_nothing_and_is_nothing_special(owner: Connection) -> None:
    role = await owner.fetchrow("SELECT * FROM pg_roles WHERE rolname = 'causeway_service'")
    assert role is not None
    flags = ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls")
    assert not any(role[flag] for flag in flags)
    assert await owner.fetch("SELECT * FROM pg_auth_members WHERE member = $1", role["oid"]) == []
    owned = "SELECT count(*) FROM pg_shdepend WHERE refobjid = $1 AND deptype = 'o'"
    assert await owner.fetchval(owned, role["oid"]) == 0
    create = "SELECT has_schema_privilege('causeway_service', 'causeway', 'CREATE')"
    assert not await owner.fetchval(create)


async def test_no_function_with_the_owners_rights_can_be_led_astray(owner: Connection) -> None:
    """Its names are found where we put them, and nobody calls it but the service's role."""
    rows = await owner.fetch(
        "SELECT proname, prosecdef, proconfig, has_function_privilege('public', oid, 'EXECUTE') "
        "AS is_public FROM pg_proc WHERE pronamespace = 'causeway'::regnamespace "
        "AND prorettype <> 'trigger'::regtype"
    )
    assert any(row["prosecdef"] for row in rows)
    for row in rows:
        if row["prosecdef"]:
            path = next(it for it in row["proconfig"] if it.startswith("search_path="))
            names = path.partition("=")[2].split(", ")
            assert (names[0], names[-1]) == ("pg_catalog", "pg_temp"), row["proname"]
            assert set(names[1:-1]) <= {"causeway"}
            assert not row["is_public"], row["proname"]


async def test_every_partition_has_the_triggers_and_none_is_switched_off(
    log: EventLog, owner: Connection
) -> None:
    del log
    rows = await owner.fetch(
        "SELECT relname, array_agg(tgname::text ORDER BY tgname) AS names, "
        "bool_and(tgenabled IN ('O', 'A')) AS is_on FROM pg_class "
        "LEFT JOIN pg_trigger ON tgrelid = pg_class.oid AND (NOT tgisinternal OR tgparentid <> 0) "
        "WHERE relnamespace = 'causeway'::regnamespace AND relname ~ '^event(_[0-9]+)?$' "
        "AND relkind IN ('r', 'p') GROUP BY relname"
    )
    assert {row["relname"] for row in rows} >= {"event", "event_0", "event_5", "event_10"}
    for row in rows:
        assert row["names"] == ["event_is_append_only", "event_may_only_be_erased"], row["relname"]
        assert row["is_on"]


# Ways around.


AROUND = (
    "SET session_replication_role = replica",
    "SET ROLE causeway_owner",
    "ALTER TABLE causeway.event DISABLE TRIGGER ALL",
    "ALTER TABLE causeway.event_5 DISABLE TRIGGER ALL",
    "DROP TRIGGER event_is_append_only ON causeway.event_5",
    "ALTER TABLE causeway.event DETACH PARTITION causeway.event_0",
    "ALTER TABLE causeway.event RENAME TO elsewhere",
    "ALTER TABLE causeway.event ADD COLUMN a int",
    "CREATE TRIGGER a BEFORE INSERT ON causeway.event EXECUTE FUNCTION suppress()",
    "CREATE RULE a AS ON INSERT TO causeway.event DO INSTEAD NOTHING",
    "CREATE POLICY a ON causeway.event USING (false)",
    "COPY causeway.event FROM '/dev/null'",
    "COPY causeway.event TO '/tmp/stolen'",
    "COPY causeway.event TO PROGRAM 'cat'",
    "SELECT * FROM causeway.event FOR UPDATE",
    "DO $$ BEGIN LOCK TABLE causeway.event; END $$",
    "MERGE INTO causeway.event USING (SELECT 1 AS p) AS s ON position = p "
    "WHEN MATCHED THEN UPDATE SET body = ''",
    f"INSERT INTO causeway.event {ROW.format('100 +')}",
    f"INSERT INTO causeway.event_10 {ROW.format('100 +')}",
    f"INSERT INTO causeway.event {ROW.format('')} {OVERWRITE}",
    "WITH gone AS (DELETE FROM causeway.event RETURNING 1) SELECT * FROM gone",
    "DROP TABLE causeway.event CASCADE",
    "DROP TABLE causeway.event_5",
    "DROP SCHEMA causeway CASCADE",
    "ALTER SCHEMA causeway RENAME TO other",
    "DROP FUNCTION causeway.refuse_change() CASCADE",
    "ALTER FUNCTION causeway.refuse_change() RENAME TO other",
    "CREATE FUNCTION causeway.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL'",
    "ALTER ROLE causeway_service SUPERUSER",
    "REASSIGN OWNED BY causeway_owner TO causeway_service",
    "SELECT pg_read_file('/etc/passwd')",
    "ALTER SYSTEM SET fsync = off",
)


async def test_the_services_role_finds_no_way_around(service: Connection) -> None:
    for sql in AROUND:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await service.execute(sql)
            pytest.fail(sql)
    assert await service.fetchval("SELECT count(*) FROM causeway.event") == EVENTS


async def test_a_table_of_the_same_name_does_not_lead_an_append_astray(
    service: Connection, log: EventLog
) -> None:
    for name in ("event", "digest", "log", "event_partition"):
        await service.execute(f"CREATE TEMP TABLE {name} (LIKE causeway.{name})")
    await service.execute("SET search_path = pg_temp, causeway")
    (appended,) = await EventLog(service).append([new_event()], timeout_s=30)
    assert appended.position == EVENTS + 1
    assert (await prove(log)).events == EVENTS + 1


BY_THE_OWNER = (
    "MERGE INTO causeway.event USING (SELECT 1 AS p) AS s ON position = p "
    "WHEN MATCHED THEN UPDATE SET body = ''",
    f"INSERT INTO causeway.event {ROW.format('')} {OVERWRITE}",
    "WITH gone AS (DELETE FROM causeway.event_5 RETURNING 1) SELECT * FROM gone",
    "UPDATE ONLY causeway.event SET body = ''",
    "UPDATE causeway.event_5 SET position = 1",
    "TRUNCATE causeway.event_0, causeway.event_5",
    "TRUNCATE ONLY causeway.event_10 RESTART IDENTITY CASCADE",
)


async def test_the_owner_is_refused_as_well(log: EventLog, owner: Connection) -> None:
    for sql in BY_THE_OWNER:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="the log is append-only"):
            await owner.execute(sql)
            pytest.fail(sql)
    assert (await prove(log)).events == EVENTS


# What a superuser does behind the triggers' back.


async def prove(log: EventLog) -> Proof:
    return await audit(log, lambda _done, _total: None)


async def behind_the_triggers(owner: Connection, *statements: str) -> None:
    await owner.execute("SET session_replication_role = replica")
    for statement in statements:
        await owner.execute(statement)
    await owner.execute("RESET session_replication_role")


DAMAGE = {
    "UPDATE causeway.event_5 SET body = body || ' ' WHERE position = 7": "position 7: the body is",
    "UPDATE causeway.event_5 SET received_at = now() WHERE position = 8": "position 8: the link",
    "UPDATE causeway.event_5 SET type = 'x' WHERE position = 9": "position 9: type is not",
    "UPDATE causeway.event_5 SET topic = 'x' WHERE position = 5": "position 5: topic is not",
    "DELETE FROM causeway.event_5 WHERE position = 9": "position 9: missing; 10 follows",
    "TRUNCATE causeway.event_5": "position 5: missing; 10 follows",
    "DROP TABLE causeway.event_5": "position 5: missing; 10 follows",
    "ALTER TABLE causeway.event DETACH PARTITION causeway.event_0": "position 1: missing",
    f"INSERT INTO causeway.event {ROW.format(f'{EVENTS} +')}": "position 13: the link does not",
    "UPDATE causeway.log SET anchor_position = 4": "position 5: the link does not",
    "UPDATE causeway.log SET anchor_link = sha256('')": "position 1: the link does not",
}


async def test_what_was_done_behind_the_triggers_is_found_where_it_is(
    log: EventLog, owner: Connection
) -> None:
    for statement, found in DAMAGE.items():
        transaction = owner.transaction()
        await transaction.start()
        await behind_the_triggers(owner, statement)
        with pytest.raises(LogDamaged) as caught:
            await prove(log)
        assert found in str(caught.value), statement
        await transaction.rollback()
    assert (await prove(log)).events == EVENTS


async def test_a_chain_that_was_written_anew_is_found_by_every_later_checkpoint(
    log: EventLog, owner: Connection
) -> None:
    """With good links nothing inside the log can tell: that is what checkpoints are kept for."""
    rows = await owner.fetch("SELECT position, link FROM causeway.event ORDER BY position")
    checkpoints = {row["position"]: row["link"].hex() for row in rows}
    changed = 7
    await _write_anew(owner, changed)
    assert (await prove(log)).events == EVENTS
    for position, link in checkpoints.items():
        if position < changed:
            await log.check(position, link)  # so the change is after the last one that holds
        else:
            with pytest.raises(LogDiverged, match=f"position {position}"):
                await log.check(position, link)


async def _write_anew(owner: Connection, changed: int) -> None:
    """Change an event, and give it and all that follow links that are right again."""
    rows = await owner.fetch("SELECT * FROM causeway.event ORDER BY position")
    link = rows[changed - 2]["link"]
    async with owner.transaction():
        await owner.execute("SET LOCAL session_replication_role = replica")
        for row in rows[changed - 1 :]:
            body = (
                row["body"].replace(b'"n"', b'"m"') if row["position"] == changed else row["body"]
            )
            digest = hashlib.sha256(body).digest()
            link = chain_link(link, digest, row["position"], row["received_at"], row["source"])
            await owner.execute(
                "UPDATE causeway.event SET body = $2, digest = $3, link = $4 WHERE position = $1",
                *(row["position"], body, digest, link),
            )


async def test_a_beginning_that_was_cut_off_in_order_is_found_by_a_checkpoint(
    log: EventLog, owner: Connection
) -> None:
    early = await log.link_at(3)
    assert early is not None
    await behind_the_triggers(
        owner,
        "UPDATE causeway.log SET anchor_position = position, anchor_link = link "
        "FROM causeway.event WHERE position = 4",
        "TRUNCATE causeway.event_0",
    )
    assert (await prove(log)).events == EVENTS - 4  # it looks like a pruning
    with pytest.raises(PositionPruned, match="the first event left is 5"):
        await log.check(3, early.hex())
