"""Migrations on a real Postgres: from nothing, again, at once, and what the roles may do then."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator

import asyncpg
import pytest

from service import migrate as migrate_module
from service.db import SERVICE_ROLE, Connection, prepare
from service.embedded import EmbeddedPostgres
from service.errors import ConfigError, LogUnavailable, SchemaError
from service.migrate import Migration, check_schema, migrate, migrations
from tests.bridge import new_event
from tests.conftest import with_database
from tests.running import Database, execute_alone
from tests.stored import fill, open_log

NAMES = [step.name for step in migrations()]
LATEST = migrations()[-1].version
_numbers = itertools.count(1)


@pytest.fixture
async def empty(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """The DSN, as its owner, of a database in which nothing was ever done."""
    name = f"empty_{os.getpid()}_{next(_numbers)}"
    connection = await asyncpg.connect(postgres.owner_url)
    try:
        await execute_alone(connection, f"CREATE DATABASE {name}")
        yield with_database(postgres.owner_url, name)
        await execute_alone(connection, f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


async def applied(dsn: str) -> list[str]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT name FROM causeway.migration ORDER BY version")
        return [row["name"] for row in rows]
    finally:
        await connection.close()


async def check(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await check_schema(connection)
    finally:
        await connection.close()


# Applying


def test_the_files_are_numbered_without_a_gap() -> None:
    assert [step.version for step in migrations()] == list(range(1, len(NAMES) + 1))
    assert all(len(step.sha256) == 32 for step in migrations())


async def test_an_empty_database_gets_everything_and_then_nothing(empty: str) -> None:
    assert await migrate(empty) == NAMES
    await check(empty)
    assert await migrate(empty) == []
    assert await applied(empty) == NAMES


async def test_of_several_at_once_one_applies_and_the_others_wait(empty: str) -> None:
    results = await asyncio.gather(*(migrate(empty) for _ in range(4)))
    assert sorted(results, key=len) == [[], [], [], NAMES]
    assert await applied(empty) == NAMES


async def test_each_log_has_an_id_of_its_own(
    empty: str, postgres: EmbeddedPostgres, database: Database
) -> None:
    await migrate(empty)
    service = empty.replace(postgres.owner_url.partition("@")[0], "")  # "@/name?host=..."
    here = Database(empty, postgres.service_url.partition("@")[0] + service)
    async with open_log(database) as one, open_log(here) as other:
        assert (await one.bounds()).log_id != (await other.bounds()).log_id
        event = new_event()
        for log in (one, other):
            await log.append([event], timeout_s=30)
        assert (await one.bounds()).head_link != (await other.bounds()).head_link


@pytest.mark.parametrize(("version", "sql"), [(LATEST + 1, "SELECT 1 / 0"), (1, "")])
async def test_a_migration_that_fails_leaves_nothing_of_itself(
    empty: str, monkeypatch: pytest.MonkeyPatch, version: int, sql: str
) -> None:
    half = "CREATE TABLE causeway.half (a int);"
    # Fails by itself, or when it is written down (the number is taken).
    broken = Migration(version, "9999_broken", half + sql, bytes(32))
    known = migrations()
    monkeypatch.setattr(migrate_module, "migrations", lambda: [*known, broken])
    with pytest.raises((asyncpg.DivisionByZeroError, asyncpg.UniqueViolationError)):
        await migrate(empty)
    monkeypatch.undo()
    assert await applied(empty) == NAMES
    await check(empty)
    connection = await asyncpg.connect(empty)
    try:
        assert await connection.fetchval("SELECT to_regclass('causeway.half')") is None
    finally:
        await connection.close()


async def test_a_database_that_is_away_is_log_unavailable() -> None:
    with pytest.raises(LogUnavailable, match=r"DATABASE_URL: no database .*127\.0\.0\.1', 1\)"):
        await migrate("postgresql://nobody@127.0.0.1:1/nothing")


# What does not fit


async def test_a_database_without_the_schema_says_what_to_run(empty: str) -> None:
    with pytest.raises(SchemaError, match=rf"at version 0, .* needs {LATEST}: run `causeway migr"):
        await check(empty)


async def test_an_older_schema_says_what_to_run(owner: Connection) -> None:
    await owner.execute("DELETE FROM causeway.migration WHERE version = $1", LATEST)
    with pytest.raises(SchemaError) as caught:
        await check_schema(owner)
    assert str(caught.value) == (
        f"the database's schema is at version {LATEST - 1}, this Causeway needs {LATEST}: "
        "run `causeway migrate` (or `causeway serve --migrate`)"
    )


async def test_a_newer_schema_asks_for_a_newer_causeway(
    owner: Connection, database: Database
) -> None:
    await owner.execute(
        "INSERT INTO causeway.migration (version, name, sha256) VALUES ($1, 'x', $2)",
        LATEST + 1,
        bytes(32),
    )
    for refuse in (check_schema(owner), migrate(database.owner_dsn)):
        with pytest.raises(SchemaError, match=rf"at version {LATEST + 1}, newer.*run a newer"):
            await refuse


async def test_a_released_file_that_changed_is_refused(
    owner: Connection, database: Database
) -> None:
    await owner.execute("UPDATE causeway.migration SET sha256 = $1 WHERE version = 1", bytes(32))
    for refuse in (check_schema(owner), migrate(database.owner_dsn)):
        with pytest.raises(SchemaError, match="migration 0001_log is not the one that was appl"):
            await refuse


@pytest.fixture
async def stranger(postgres: EmbeddedPostgres, database: Database) -> AsyncIterator[str]:
    """The DSN of a login that nobody granted anything."""
    role = f"stranger_{os.getpid()}"
    server = await asyncpg.connect(postgres.owner_url)
    owner = await asyncpg.connect(database.owner_dsn)
    try:
        await server.execute(f"CREATE ROLE {role} LOGIN")
        yield f"postgresql://{role}@{database.owner_dsn.partition('@')[2]}"
        await owner.execute(f"DROP OWNED BY {role}")
        await server.execute(f"DROP ROLE {role}")
    finally:
        await owner.close()
        await server.close()


async def test_a_login_without_rights_is_told_what_to_grant(stranger: str) -> None:
    with pytest.raises(SchemaError, match="run GRANT causeway_service TO it"):
        await prepare(stranger, check_schema, wait_s=1)


async def test_a_login_that_may_not_migrate_is_told_who_may(
    stranger: str, database: Database
) -> None:
    for login in (stranger, database.service_dsn):
        with pytest.raises(SchemaError, match=r"permission denied.*as the owner of the database"):
            await migrate(login)


async def test_an_owner_who_may_make_no_role_is_told_what_a_superuser_does(
    postgres: EmbeddedPostgres, empty: str
) -> None:
    login, name = f"owner_{os.getpid()}", empty.partition("@/")[2].partition("?")[0]
    server = await asyncpg.connect(postgres.owner_url)
    await server.execute(f"CREATE ROLE {login} LOGIN")
    await server.execute(f"ALTER DATABASE {name} OWNER TO {login}")
    with_login = f"postgresql://{login}@{empty.partition('@')[2]}"
    try:
        with pytest.raises(SchemaError, match=f"GRANT {SERVICE_ROLE} TO it"):
            await migrate(with_login)
        assert await applied(with_login) == []
        await server.execute(f"GRANT {SERVICE_ROLE} TO {login}")
        assert await migrate(with_login) == NAMES
    finally:
        await execute_alone(server, f"DROP DATABASE {name} WITH (FORCE)")
        await server.execute(f"DROP ROLE {login}")
        await execute_alone(server, f"CREATE DATABASE {name}")
        await server.close()


async def test_a_postgres_that_is_too_old_is_named_before_anything_is_made(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_module, "_OLDEST_POSTGRES", 99)
    with pytest.raises(SchemaError, match="Postgres 99 or newer is needed, this one is 18"):
        await migrate(empty)
    monkeypatch.undo()
    assert await migrate(empty) == NAMES


async def test_a_login_that_can_read_but_not_act_is_told_what_to_grant(
    stranger: str, owner: Connection
) -> None:
    login = stranger.partition("//")[2].partition("@")[0]
    await owner.execute(f"GRANT USAGE ON SCHEMA causeway TO {login}")
    await owner.execute(f"GRANT SELECT ON causeway.migration TO {login}")
    with pytest.raises(SchemaError, match=f'run GRANT {SERVICE_ROLE} TO "{login}"'):
        await prepare(stranger, check_schema, wait_s=1)


# Who may do what


@pytest.fixture
async def service(database: Database) -> AsyncIterator[Connection]:
    """A session of the service's role, on a log with three events."""
    async with open_log(database) as log:
        await fill(log, 3)
    connection = await asyncpg.connect(database.service_dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def test_who_could_do_more_acts_as_the_service(database: Database) -> None:
    assert await prepare(database.owner_dsn, check_schema, wait_s=1) == SERVICE_ROLE
    assert await prepare(database.service_dsn, check_schema, wait_s=1) is None


INSERT_EVENT = (
    "INSERT INTO causeway.event SELECT position + 100, received_at, watermark, occurred_at, "
    "item_id, account_id, user_uuid, source, type, topic, digest, link, body FROM causeway.event"
)
INSERT_MIGRATION = "INSERT INTO causeway.migration (version, name, sha256) VALUES (99, 'x', '')"


@pytest.mark.parametrize(
    "sql",
    [
        INSERT_EVENT,
        "UPDATE causeway.event SET body = ''",
        "UPDATE causeway.event SET received_at = now() WHERE position = 1",
        "DELETE FROM causeway.event",
        "TRUNCATE causeway.event",
        "ALTER TABLE causeway.event DISABLE TRIGGER event_is_append_only",
        "DROP TABLE causeway.event",
        "INSERT INTO causeway.digest SELECT digest, 'other', position FROM causeway.digest",
        "UPDATE causeway.digest SET position = 1",
        "DELETE FROM causeway.digest",
        "TRUNCATE causeway.digest",
        "UPDATE causeway.log SET anchor_position = 3",
        "DELETE FROM causeway.log",
        INSERT_MIGRATION,
        "UPDATE causeway.migration SET sha256 = ''",
        "DELETE FROM causeway.migration",
        "TRUNCATE causeway.migration",
        "CREATE TABLE causeway.mine (a int)",
        "CREATE OR REPLACE FUNCTION causeway.find_time(p_time timestamptz) RETURNS bigint "
        "LANGUAGE sql AS 'SELECT 1::bigint'",
        "DELETE FROM causeway.token",
        "TRUNCATE causeway.token",
        "UPDATE causeway.token SET scope = 'admin'",
        "UPDATE causeway.token SET token_sha256 = ''",
        "UPDATE causeway.token SET topics = NULL, sources = NULL, user_uuids = NULL",
        "UPDATE causeway.token SET expires_at = NULL",
    ],
)
async def test_the_service_may_not(service: Connection, sql: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await service.execute(sql)


async def test_the_service_may_read_and_use_what_it_needs(service: Connection) -> None:
    for table in ("event", "digest", "log", "migration", "token"):
        await service.execute(f"SELECT * FROM causeway.{table}")
    await service.execute(
        "INSERT INTO causeway.token (name, scope, token_sha256) VALUES ('a', 'stream', $1)",
        bytes(32),
    )
    assert await service.execute(
        "UPDATE causeway.token SET revoked_at = now(), last_used_at = now()"
    ) == "UPDATE 1"  # fmt: skip


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE causeway.event SET body = ''",
        "UPDATE causeway.event SET body = '' WHERE false",
        "DELETE FROM causeway.event",
        "DELETE FROM causeway.event WHERE position = 1",
        "TRUNCATE causeway.event",
        "TRUNCATE causeway.event CASCADE",
    ],
)
async def test_triggers_refuse_the_owner_as_well(
    owner: Connection, service: Connection, sql: str
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="the log is append-only"):
        await owner.execute(sql)
    assert await owner.fetchval("SELECT count(*) FROM causeway.event") == 3


async def test_a_log_has_one_row_for_itself(owner: Connection) -> None:
    again = (
        "INSERT INTO causeway.log (only_one, log_id, anchor_position, anchor_link) "
        "SELECT {}, gen_random_uuid(), 0, anchor_link FROM causeway.log"
    )
    with pytest.raises(asyncpg.UniqueViolationError):
        await owner.execute(again.format("true"))
    with pytest.raises(asyncpg.CheckViolationError):
        await owner.execute(again.format("false"))


@pytest.mark.parametrize(
    ("name", "scope", "digest"),
    [("", "stream", 32), ("x" * 129, "stream", 32), ("a", "root", 32), ("a", "stream", 31)],
)
async def test_a_token_that_cannot_be_one_is_refused(
    service: Connection, name: str, scope: str, digest: int
) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await service.execute(
            "INSERT INTO causeway.token (name, scope, token_sha256) VALUES ($1, $2, $3)",
            name,
            scope,
            bytes(digest),
        )


async def test_a_login_or_database_that_does_not_exist_is_named(empty: str) -> None:
    for url in (
        empty.replace("causeway_owner", "nobody_at_all"),
        empty.replace("?", "_missing?"),
    ):
        with pytest.raises(ConfigError, match=r"DATABASE_URL: .* does not exist"):
            await migrate(url)


async def test_a_parameter_that_cannot_be_is_named(empty: str) -> None:
    with pytest.raises(ConfigError, match=r"DATABASE_URL: .*sslmode"):
        await migrate(f"{empty}&sslmode=x")
