"""What Postgres' errors mean, how a session is set up, and what is made of one that hangs."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from service import db
from service.db import (
    SESSION,
    Connection,
    connect,
    create_pool,
    fetch,
    prepare,
    transaction,
    translated,
)
from service.errors import ConfigError, LogUnavailable
from tests.freezing import freezable
from tests.running import WITHIN_S, Database, eventually


@pytest.fixture
async def session(database: Database) -> AsyncIterator[Connection]:
    connection = await connect(database.service_dsn)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        ConnectionResetError(),
        FileNotFoundError(),
        TimeoutError(),
        TimeoutError(),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError(),
        asyncpg.ConnectionDoesNotExistError(),
        asyncpg.ConnectionFailureError(),
        asyncpg.PostgresConnectionError(),
        asyncpg.AdminShutdownError(),
        asyncpg.CrashShutdownError(),
        asyncpg.CannotConnectNowError(),
        asyncpg.QueryCanceledError(),
        asyncpg.TooManyConnectionsError(),
        asyncpg.DiskFullError(),
        asyncpg.OutOfMemoryError(),
        asyncpg.LockNotAvailableError(),
        asyncpg.IdleInTransactionSessionTimeoutError(),
        asyncpg.ReadOnlySQLTransactionError(),
        asyncpg.PostgresIOError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_database_that_is_away_is_log_unavailable(error: Exception) -> None:
    with pytest.raises(LogUnavailable, match=type(error).__name__) as caught, translated():
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a value"),
        KeyError("a key"),
        asyncpg.DataError("a value"),
        asyncpg.exceptions.ClientConfigurationError("a DSN"),
        asyncpg.UniqueViolationError(),
        asyncpg.CharacterNotInRepertoireError(),
        asyncpg.InsufficientPrivilegeError(),
        asyncpg.UndefinedTableError(),
        asyncpg.PostgresSyntaxError(),
        asyncpg.InvalidPasswordError(),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_our_own_mistakes_are_not_taken_for_it(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, translated():
        raise error
    assert caught.value is error


def test_a_message_names_the_kind_and_repeats_nothing() -> None:
    with pytest.raises(LogUnavailable) as caught, translated():
        raise asyncpg.InterfaceError("postgresql://user:secret@host")
    assert "secret" not in caught.value.message


async def test_a_value_that_cannot_be_encoded_is_our_mistake(session: Connection) -> None:
    with pytest.raises(asyncpg.DataError):
        await fetch(session, "SELECT $1::bigint", 2**63)
    with pytest.raises(asyncpg.DataError):
        await fetch(session, "SELECT $1::bytea", "text")


async def test_each_session_is_set_up(session: Connection) -> None:
    tcp = {name for name in SESSION if name.startswith("tcp_")}  # 0 over a Unix socket
    for name, value in SESSION.items():
        if name not in tcp:
            assert await session.fetchval("SELECT current_setting($1)", name) == value


@pytest.mark.parametrize(
    ("setting", "sql"),
    [
        ("statement_timeout = '50ms'", "SELECT pg_sleep(30)"),
        ("lock_timeout = '50ms'", "SELECT count(*) FROM causeway.token"),
    ],
)
async def test_what_takes_too_long_at_the_server_is_log_unavailable(
    session: Connection, owner: Connection, setting: str, sql: str
) -> None:
    async with owner.transaction():
        await owner.execute("LOCK TABLE causeway.token IN ACCESS EXCLUSIVE MODE")
        await session.execute(f"SET {setting}")
        with pytest.raises(LogUnavailable):
            await fetch(session, sql)


async def test_a_statement_cut_by_its_time_frees_its_connection(
    database: Database, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "CANCEL_TIMEOUT_S", WITHIN_S)
    async with create_pool(database.service_dsn, max_size=1) as pool:
        for _ in range(3):
            with pytest.raises(LogUnavailable):
                await fetch(pool, "SELECT pg_sleep(30)", timeout_s=0.05)
        [row] = await fetch(pool, "SELECT 1 AS one", timeout_s=30)
        assert row["one"] == 1
    busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)' AND state = $1"
    assert await owner.fetchval(busy, "active") == 0, "cancelled at the server too"


async def test_a_half_open_connection_is_cut_and_holds_up_nobody(database: Database) -> None:
    async with (
        freezable(database.service_dsn) as (dsn, freeze),
        create_pool(dsn, max_size=1) as pool,
    ):
        await fetch(pool, "SELECT 1")
        freeze()  # even the word that the statement was cancelled does not come through
        late = asyncio.create_task(fetch(pool, "SELECT 1", timeout_s=0.05))
        await asyncio.wait([late], timeout=60)
        is_over = late.done()
        late.cancel()
        assert is_over, "the link held up whoever used it"
        assert isinstance(late.exception(), LogUnavailable)
        [row] = await fetch(pool, "SELECT 2 AS two", timeout_s=30)
        assert row["two"] == 2


async def test_a_dead_connection_is_replaced_when_it_is_next_asked_for(
    database: Database, owner: Connection
) -> None:
    async with create_pool(database.service_dsn, max_size=1) as pool:
        [row] = await fetch(pool, "SELECT pg_backend_pid() AS pid")
        await owner.execute("SELECT pg_terminate_backend($1, 60000)", row["pid"])
        await eventually(lambda: pool.get_size() == 0)  # its end has been heard of
        [other] = await fetch(pool, "SELECT pg_backend_pid() AS pid")
        assert other["pid"] != row["pid"]


@pytest.mark.parametrize("is_transaction", [False, True])
async def test_a_connection_to_what_is_a_standby_now_is_cut(
    database: Database, is_transaction: bool
) -> None:
    draw = "SELECT nextval('causeway.claim')"
    async with create_pool(database.service_dsn, max_size=1) as pool:
        [[pid]] = await fetch(pool, "SELECT pg_backend_pid()")
        await fetch(pool, "SELECT set_config('default_transaction_read_only', 'on', false)")
        with pytest.raises(LogUnavailable, match="ReadOnly"):
            if is_transaction:
                async with transaction(pool) as connection:
                    await fetch(connection, draw)
            else:
                await fetch(pool, draw)
        [[other]] = await fetch(pool, "SELECT pg_backend_pid()")
        assert other != pid


async def test_a_use_of_the_pool_costs_one_round_trip(
    database: Database, session: Connection
) -> None:
    async with create_pool(database.service_dsn, max_size=1) as pool:
        [[pid]] = await fetch(pool, "SELECT pg_backend_pid()")
        await fetch(pool, "SELECT 42")
        last = await session.fetchval("SELECT query FROM pg_stat_activity WHERE pid = $1", pid)
        assert last == "SELECT 42"


async def test_a_pool_acts_as_the_role_it_is_given(database: Database) -> None:
    async with create_pool(database.owner_dsn, max_size=1, role="causeway_service") as pool:
        for _ in range(2):  # also after the connection was given back
            [row] = await fetch(pool, "SELECT current_user AS me")
            assert row["me"] == "causeway_service"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await fetch(pool, "DELETE FROM causeway.digest")


async def test_a_pool_through_a_pooler_sets_nothing_up(database: Database) -> None:
    async with create_pool(database.service_dsn, max_size=1, is_pooler=True) as pool:
        [row] = await fetch(pool, "SELECT current_setting('application_name') AS name")
        assert row["name"] == ""
        rows = await fetch(pool, "SELECT count(*) AS named FROM pg_prepared_statements")
        assert rows[0]["named"] == 0


# The start


async def accept(_: Connection) -> None:
    """A schema that fits."""


@pytest.mark.parametrize(
    ("old", "new"),
    [("causeway_service@", "nobody_here@"), ("/test_", "/not_there_")],
)
async def test_a_login_or_database_that_does_not_exist_stops_the_start(
    database: Database, old: str, new: str
) -> None:
    with pytest.raises(ConfigError, match=r"DATABASE_URL: .* does not exist"):
        await prepare(database.service_dsn.replace(old, new, 1), accept, wait_s=30)


async def test_a_database_that_does_not_answer_stops_the_start_in_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ConfigError, match="DATABASE_URL: no database answers"):
        await prepare("postgresql://me:hush@127.0.0.1:1/x", accept, wait_s=0)
    assert "hush" not in caplog.text
