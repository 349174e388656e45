"""The operator's commands that work on the database itself: migrate, audit, tokens.

They use `DATABASE_URL`, or the embedded database: one that runs is used as it is, one that does not
is started for as long as the command takes.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import TypeVar

from service.audit import Progress, Proof, audit, audit_deliveries
from service.auth import Tokens
from service.config import Settings
from service.cursor import parse_checkpoint
from service.db import (
    CONNECT_TIMEOUT_S,
    Connection,
    Pool,
    connect_as_owner,
    create_pool,
    prepare,
    translated,
)
from service.delivery import Deliveries
from service.embedded import EmbeddedPostgres, default_data_dir
from service.erase import Erasure, Erasures
from service.errors import ConfigError
from service.eventlog import EventLog
from service.migrate import check_schema, migrate
from service.prune import Pruning, Rule, prune

T = TypeVar("T")


def migrate_database(settings: Settings) -> list[str]:
    """Apply the missing migrations as the owner; return their names."""
    with _database(settings, is_owner=True) as dsn:
        return asyncio.run(migrate(dsn))


def audit_database(
    settings: Settings, checkpoint: str | None, on_progress: Progress
) -> tuple[Proof, int]:
    """Prove the log and the deliveries; and that the log holds `checkpoint`, `<position>.<link>`.

    Returns the log's proof, and for how many webhooks every event is accounted for. Raises
    LogDamaged, LogDiverged, PositionAhead, PositionPruned or DeliveryMissing.
    """

    async def work(pool: Pool) -> tuple[Proof, int]:
        eventlog = EventLog(pool)
        if checkpoint is not None:
            await eventlog.check(*parse_checkpoint(checkpoint, "--checkpoint"))
        proof = await audit(eventlog, on_progress)
        return proof, await audit_deliveries(Deliveries(pool))

    return _run(settings, work)


def prune_database(settings: Settings, rule: Rule, *, is_forced: bool, is_dry_run: bool) -> Pruning:
    """Prune the log as `rule` says, as the owner; see `prune`."""

    async def work(owner: Connection) -> Pruning:
        return await prune(
            owner, rule, datetime.now(UTC), is_forced=is_forced, is_dry_run=is_dry_run
        )

    return _run_as_owner(settings, work)


def erase_user(
    settings: Settings, user_uuid: str, *, reason: str, by: str, is_dry_run: bool
) -> Erasure:
    """Erase a user's events; see `Erasures.erase_user`."""

    async def work(pool: Pool) -> Erasure:
        erasures = Erasures(pool)
        return await erasures.erase_user(user_uuid, reason=reason, by=by, is_dry_run=is_dry_run)

    return _run(settings, work)


def with_tokens(settings: Settings, work: Callable[[Tokens], Awaitable[T]]) -> T:
    """Return what `work` does with the database's tokens."""
    return _run(settings, lambda pool: work(Tokens(settings, pool)))


def with_eventlog(settings: Settings, work: Callable[[EventLog], Awaitable[T]]) -> T:
    """Return what `work` does with the log."""
    return _run(settings, lambda pool: work(EventLog(pool)))


def _run(settings: Settings, work: Callable[[Pool], Awaitable[T]]) -> T:
    async def main(dsn: str) -> T:
        async with _open(dsn) as pool:
            return await work(pool)

    with _database(settings) as dsn:
        return asyncio.run(main(dsn))


def _run_as_owner(settings: Settings, work: Callable[[Connection], Awaitable[T]]) -> T:
    async def main(dsn: str) -> T:
        with translated():
            owner = await connect_as_owner(dsn)
            try:
                await check_schema(owner)
                return await work(owner)
            finally:
                await owner.close(timeout=CONNECT_TIMEOUT_S)

    with _database(settings, is_owner=True) as dsn:
        return asyncio.run(main(dsn))


@asynccontextmanager
async def _open(dsn: str) -> AsyncIterator[Pool]:
    role = await prepare(dsn, check_schema, wait_s=0)
    async with create_pool(dsn, max_size=1, role=role) as pool:
        yield pool


@contextmanager
def _database(settings: Settings, *, is_owner: bool = False) -> Iterator[str]:
    """Yield a DSN of the settings' database; the embedded one is started if it does not run."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    data_dir = settings.data_dir or default_data_dir()
    if not (data_dir / "postgres").is_dir():
        raise ConfigError(
            f"DATABASE_URL is not set, and there is no embedded database in {data_dir} "
            "(CAUSEWAY_DATA_DIR): run `causeway serve` first, or set one of them"
        )
    with EmbeddedPostgres.attach(data_dir) as postgres:
        yield postgres.owner_url if is_owner else postgres.service_url
