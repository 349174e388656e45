"""Backups of a test's database, put back into a second cluster, as docs/backup.md says."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from service import cluster
from service.embedded import EmbeddedPostgres
from service.system_user import SystemUser
from tests.conftest import with_database
from tests.running import Database

Restore = Callable[[Path], Awaitable[Database]]


@asynccontextmanager
async def second_cluster() -> AsyncIterator[EmbeddedPostgres]:
    """A cluster of its own, in a folder that its user can reach; not started."""
    folder = Path(tempfile.mkdtemp(prefix="causeway-restored-", dir="/tmp"))
    folder.chmod(0o755)
    postgres = EmbeddedPostgres(folder)
    try:
        yield postgres
    finally:
        await asyncio.to_thread(postgres.stop)
        shutil.rmtree(folder)


async def run(postgres: EmbeddedPostgres, program: str, *arguments: str | Path) -> None:
    """Run one of Postgres' programs as the user that Postgres runs as."""
    user = SystemUser.for_data(postgres.data_dir)
    binaries = cluster.find_binaries(postgres.data_dir, user)
    done = await asyncio.to_thread(user.run, binaries / program, *arguments)
    assert done.returncode == 0, done.stderr


async def dump(postgres: EmbeddedPostgres, database: Database, file: Path) -> None:
    """Write the database down with pg_dump."""
    await run(postgres, "pg_dump", "--format=custom", f"--file={file}", database.owner_dsn)


async def restore_dump(postgres: EmbeddedPostgres, file: Path) -> Database:
    """Put a dump back into a new cluster: the service's role first, which no dump holds."""
    await asyncio.to_thread(postgres.start)
    owner = await asyncpg.connect(postgres.owner_url)
    try:
        await owner.execute("CREATE ROLE causeway_service LOGIN")
    finally:
        await owner.close()
    await run(postgres, "pg_restore", "--exit-on-error", f"--dbname={postgres.owner_url}", file)
    return Database(postgres.owner_url, postgres.service_url)


async def copy(postgres: EmbeddedPostgres, into: EmbeddedPostgres) -> None:
    """Copy the running cluster, all of its databases, with pg_basebackup."""
    user = SystemUser.for_data(into.data_dir)
    folder = user.make_folder(into.data_dir / "postgres")
    await run(
        postgres, "pg_basebackup", f"--dbname={postgres.owner_url}", f"--pgdata={folder}",
        "--checkpoint=fast",
    )  # fmt: skip


async def restore_copy(postgres: EmbeddedPostgres, name: str) -> Database:
    """Start the copy; `name` is the test's database in it."""
    await asyncio.to_thread(postgres.start)
    return Database(
        with_database(postgres.owner_url, name), with_database(postgres.service_url, name)
    )
