"""The schema's versions: apply what is missing, or say what to run.

Files of `sql/migrations` in the order of their numbers, each applied once, in one transaction, with
its SHA-256 kept: a released file that changed is refused. Migrations run as the owner; the service
only checks.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import asyncpg

from service.db import (
    CONNECT_TIMEOUT_S,
    SERVICE_ROLE,
    SQL_DIR,
    Connection,
    connect_as_owner,
    translated,
)
from service.errors import SchemaError

_LOCK = "SELECT pg_advisory_lock(hashtext('causeway'), hashtext('migrate'))"
_PREPARE = """
CREATE SCHEMA IF NOT EXISTS causeway;
CREATE TABLE IF NOT EXISTS causeway.migration (
    version int PRIMARY KEY,
    name text NOT NULL,
    sha256 bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
_APPLIED = "SELECT version, sha256 FROM causeway.migration ORDER BY version"
_OLDEST_POSTGRES = 15


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `sql/migrations`; `sha256` is that of its text."""

    version: int
    name: str
    sql: str
    sha256: bytes


def migrations() -> list[Migration]:
    """Return all migrations that this code knows, oldest first."""
    return [
        Migration(
            int(path.stem.split("_")[0]), path.stem, text, hashlib.sha256(text.encode()).digest()
        )
        for path in sorted((SQL_DIR / "migrations").glob("[0-9]*.sql"))
        for text in [path.read_text()]
    ]


async def migrate(dsn: str) -> list[str]:
    """Bring the database at `dsn` to this code's schema; return the names of what was applied.

    Safe to run from several places at once: one does it, the others wait and find nothing to do.
    Raises SchemaError if the schema is newer than the code, a released migration has changed or the
    login may not do it, LogUnavailable if the database is away, ConfigError if it lets nobody in.
    """
    with translated():
        connection = await connect_as_owner(dsn)
        try:
            _check_version(connection)
            with _permitted():
                await connection.execute(_LOCK)
                await connection.execute(_PREPARE)
                return [step.name for step in await _apply_missing(connection)]
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT_S)


async def _apply_missing(connection: Connection) -> list[Migration]:
    missing = _missing(await connection.fetch(_APPLIED))
    for step in missing:
        async with connection.transaction():
            await connection.execute(step.sql)
            await connection.execute(
                "INSERT INTO causeway.migration (version, name, sha256) VALUES ($1, $2, $3)",
                step.version,
                step.name,
                step.sha256,
            )
    return missing


async def check_schema(connection: Connection) -> None:
    """Raise SchemaError, which says what to run, unless the schema is exactly this code's."""
    _check_version(connection)
    try:
        applied = await connection.fetch(_APPLIED)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        applied = []
    except asyncpg.InsufficientPrivilegeError as error:
        raise SchemaError(
            "this login may not read the schema causeway: run GRANT causeway_service TO it as the "
            "owner, after `causeway migrate`"
        ) from error
    if missing := _missing(applied):
        known = missing[-1].version
        raise SchemaError(
            f"the database's schema is at version {len(applied)}, this Causeway needs {known}: "
            "run `causeway migrate` (or `causeway serve --migrate`)"
        )


def _check_version(connection: Connection) -> None:
    if connection.get_server_version().major < _OLDEST_POSTGRES:
        raise SchemaError(
            f"Postgres {_OLDEST_POSTGRES} or newer is needed, this one is "
            f"{connection.get_server_version().major}"
        )


@contextmanager
def _permitted() -> Iterator[None]:
    """Turn a right that the login lacks into a SchemaError that says who has it."""
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as error:
        raise SchemaError(
            f"this login may not bring the schema up to date ({error.args[0]}): run "
            "`causeway migrate` as the owner of the database. One who may make no roles needs "
            f"from a superuser, once: CREATE ROLE {SERVICE_ROLE}; GRANT {SERVICE_ROLE} TO it"
        ) from error


def _missing(applied: list[asyncpg.Record]) -> list[Migration]:
    """Return what is not applied yet. Raises SchemaError if what is applied is not ours."""
    known = migrations()
    if len(applied) > len(known):
        raise SchemaError(
            f"the database's schema is at version {applied[-1]['version']}, newer than this "
            f"Causeway knows ({known[-1].version}): run a newer Causeway"
        )
    for row, step in zip(applied, known, strict=False):
        if row["version"] != step.version or bytes(row["sha256"]) != step.sha256:
            raise SchemaError(
                f"migration {step.name} is not the one that was applied to this database: "
                "run the Causeway that made this schema, or a newer one"
            )
    return known[len(applied) :]
