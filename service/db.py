"""Postgres: connections, named statements, and what its errors mean.

Owns how a session is set up, as which role the service acts, and the one place where asyncpg's
errors become ours.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import asyncpg

from service.errors import ConfigError, LogUnavailable, SchemaError

log = logging.getLogger("causeway.db")

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
    PoolConnection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:  # generic only for the type checker
    Connection = asyncpg.Connection
    Pool = asyncpg.Pool

Querier = Pool | Connection

SQL_DIR = Path(__file__).parent.parent / "sql"
SERVICE_ROLE = "causeway_service"
_WAITS_FOR_STANDBY = "syncrep.c"  # the part of Postgres
_STATEMENT = re.compile(r"^-- name: (\w+)$", re.MULTILINE)

# A writer that dies half-open holds the append lock until the server notices: keepalives and
# timeouts make that seconds. Plans are made anew, so that filters that are NULL fold away.
SESSION: Mapping[str, str] = {
    "application_name": "causeway",
    "statement_timeout": "30s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30s",
    "plan_cache_mode": "force_custom_plan",
    "jit": "off",
}
CONNECT_TIMEOUT_S = 5.0
RETRY_S = 1.0
CANCEL_TIMEOUT_S = 2.0
CLOSE_TIMEOUT_S = 2.0
COMMAND_TIMEOUT_S = 35.0  # past statement_timeout: only a server that is gone gets there

# What asyncpg raises when Postgres is away, busy, stopping, or takes too long.
AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.LockNotAvailableError,
    asyncpg.exceptions.DeadlockDetectedError,
    asyncpg.exceptions.IdleInTransactionSessionTimeoutError,
    asyncpg.exceptions.ReadOnlySQLTransactionError,
    asyncpg.exceptions.PostgresSystemError,
)

# A login or a database that does not exist: waiting does not help.
NO_ACCESS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


def statements(module: str) -> SimpleNamespace:
    """Return the named statements of `sql/<module>.sql` as attributes."""
    parts = _STATEMENT.split((SQL_DIR / f"{module}.sql").read_text())[1:]
    named = {name: sql.strip() for name, sql in zip(parts[::2], parts[1::2], strict=True)}
    return SimpleNamespace(**named)


@contextmanager
def translated() -> Iterator[None]:
    """Turn asyncpg's errors for a database that is away into `LogUnavailable`."""
    try:
        yield
    except AWAY as error:
        if isinstance(error, ValueError):  # a value that asyncpg cannot encode: ours to mend
            raise
        raise LogUnavailable(
            f"the database cannot answer now ({type(error).__name__}); try again"
        ) from error


@contextmanager
def accessible() -> Iterator[None]:
    """Turn what waiting cannot mend, at a connect, into a ConfigError that names the setting."""
    try:
        yield
    except (*NO_ACCESS, asyncpg.exceptions.ClientConfigurationError) as error:
        raise ConfigError(f"DATABASE_URL: {error}") from error


async def fetch(
    querier: Querier, sql: str, *values: object, timeout_s: float | None = None
) -> list[asyncpg.Record]:
    """Return the rows of one statement.

    What does not answer in time is cancelled at the server, or, where that gets no answer either,
    cut: a half-open connection would hang whoever got it next. Raises LogUnavailable, also if the
    commit's wait for a synchronous standby was cut short.
    """
    with translated():
        if not isinstance(querier, asyncpg.Pool):
            with _waited_for_standby(querier):
                return await querier.fetch(sql, *values, timeout=timeout_s)
        acquired = querier.acquire(timeout=COMMAND_TIMEOUT_S)
        async with acquired as connection:
            try:
                with _left_if_read_only(connection), _waited_for_standby(connection):
                    return await connection.fetch(sql, *values, timeout=timeout_s)
            except TimeoutError:
                await _settle(connection)
                raise


@asynccontextmanager
async def transaction(querier: Querier) -> AsyncIterator[Connection]:
    """Give one session within a transaction, for statements that must stand together.

    Raises LogUnavailable, also if the commit's wait for a synchronous standby was cut short.
    """
    with translated():
        if not isinstance(querier, asyncpg.Pool):
            with _waited_for_standby(querier):
                async with querier.transaction():
                    yield querier
            return
        acquired = querier.acquire(timeout=COMMAND_TIMEOUT_S)
        async with acquired as connection:
            with _left_if_read_only(connection), _waited_for_standby(connection):
                async with connection.transaction():
                    yield cast("Connection", connection)


@contextmanager
def _left_if_read_only(connection: "PoolConnection") -> Iterator[None]:
    """Cut a connection that led to a standby: a fail-over moves the address, not who is connected.

    Kept, it would be refused for as long as that server lives.
    """
    try:
        yield
    except (asyncpg.exceptions.ReadOnlySQLTransactionError, LogUnavailable) as error:
        cause = error.__cause__ if isinstance(error, LogUnavailable) else error
        if isinstance(cause, asyncpg.exceptions.ReadOnlySQLTransactionError):
            connection.terminate()
        raise


@contextmanager
def _waited_for_standby(connection: "Connection | PoolConnection") -> Iterator[None]:
    """Raise LogUnavailable if somebody cancelled the commit's wait for a synchronous standby.

    Postgres calls the statement a success then, and warns: it is committed here, and nowhere else.
    """
    warnings: list[asyncpg.PostgresLogMessage] = []

    def hear(_connection: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.server_source_filename == _WAITS_FOR_STANDBY:  # the text is translated
            warnings.append(message)

    connection.add_log_listener(hear)
    try:
        yield
    finally:
        connection.remove_log_listener(hear)
    if warnings:
        raise LogUnavailable("the wait for a synchronous standby was cut short; try again")


async def _settle(connection: "PoolConnection") -> None:
    """Wait for the server's word that it has cancelled; cut the connection if it does not come."""
    try:
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            await connection.reset()
    except AWAY:
        connection.terminate()


async def close(pool: Pool) -> None:
    """Close a pool; sessions that are in use, or whose server does not answer, are cut."""
    with suppress(TimeoutError):  # cancelled, it cuts them
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await pool.close()


async def connect(dsn: str) -> Connection:
    """Open one session of the service, set up as SESSION says."""
    return await asyncpg.connect(
        dsn,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        server_settings=dict(SESSION),
    )


async def connect_as_owner(dsn: str) -> Connection:
    """Open one session for the owner's commands, which wait for nobody.

    Raises LogUnavailable with the reason if no database answers, ConfigError if it lets nobody in.
    """
    try:
        with accessible():
            return await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S)
    except AWAY as error:
        raise LogUnavailable(_unreachable(error)) from error


def create_pool(
    dsn: str, *, max_size: int, role: str | None = None, is_pooler: bool = False
) -> Pool:
    """Return a pool that is opened when it is first used (`await pool` or `async with pool`).

    Whoever opens it also closes it, by `close` where a database that is away must not hold up.
    It opens no connection before one is asked for, so a database that is away does not stop the
    start. A dead connection is replaced when it is next asked for. Through a pooler no session
    setting and no named statement is used.
    """
    session = dict(SESSION) | ({"role": role} if role else {})
    return asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=max_size,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        server_settings=None if is_pooler else session,
        statement_cache_size=0 if is_pooler else 100,
        reset=_keep,
    )


async def _keep(_connection: Connection) -> None:
    """Save the round trip of a RESET after each use: nothing of ours stays in a session.

    asyncpg itself has rolled back a transaction that was open.
    """


async def prepare(
    dsn: str, check: Callable[[Connection], Awaitable[None]], *, wait_s: float
) -> str | None:
    """Run `check` on the database once it answers; return the role to act as.

    The service's own role if the login could do more than it may; None if it is as limited. Raises
    SchemaError as `check` does, or if the login lacks that role; ConfigError if there is no such
    login or database, or no answer within `wait_s`.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + wait_s
    while True:
        try:
            with accessible():
                connection = await connect(dsn)
            try:
                await check(connection)
                return await _service_role(connection)
            finally:
                await connection.close()
        except AWAY as error:
            if clock() >= deadline:
                raise ConfigError(_unreachable(error)) from error
            reason = f"{type(error).__name__}: {error}"
            log.warning("waiting for the database", extra={"reason": reason})
            await asyncio.sleep(RETRY_S)


def _unreachable(error: BaseException) -> str:
    return f"DATABASE_URL: no database answers: {type(error).__name__}: {error}"


async def _service_role(connection: Connection) -> str | None:
    [row] = await connection.fetch(
        "SELECT current_user AS login, pg_has_role(current_user, $1, 'MEMBER') AS is_member, "
        "has_table_privilege('causeway.event', 'UPDATE') AS can_update",
        SERVICE_ROLE,
    )
    if not row["is_member"]:
        raise SchemaError(
            f"the login {row['login']} may not act as the service: "
            f'run GRANT {SERVICE_ROLE} TO "{row["login"]}" as the owner'
        )
    return SERVICE_ROLE if row["can_update"] else None
