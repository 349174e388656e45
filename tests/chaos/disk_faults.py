"""The disk of Postgres' write-ahead log is slow, or full for a while.

To fill it a small disk is mounted, which takes root.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg

from tests.chaos.disk import Disk, missing, slow_commits, small_disk
from tests.chaos.fault import Fault
from tests.chaos.schedule import Planned
from tests.chaos.world import World

SPARE_MEGABYTES = 64
FLUSH_S = 0.1
USE_UP_S = 10.0
RECOVER_S = 60.0
LOOK_S = 0.1
_NEXT_SEGMENT = "SELECT pg_switch_wal(), pg_logical_emit_message(false, 'chaos', '')"


@asynccontextmanager
async def _full(world: World, planned: Planned) -> AsyncIterator[None]:
    postgres = world.postgres
    wal = postgres.data_dir / "postgres" / "pg_wal"
    await asyncio.to_thread(postgres.stop)
    size = sum(path.stat().st_size for path in wal.rglob("*") if path.is_file())
    with small_disk(size // 2**20 + SPARE_MEGABYTES) as disk:
        try:
            disk.hold_wal(postgres.data_dir)
            await asyncio.to_thread(postgres.start)
            disk.fill()
            await _use_up(world)
            yield
        finally:
            disk.give_back()
            await _recovered(world)
            await asyncio.to_thread(_restart_at_home, world, disk, wal)


async def _use_up(world: World) -> None:
    """Go from segment to segment of the log until there is none: Postgres panics."""
    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        async with asyncio.timeout(USE_UP_S), world.session() as owner:
            while True:
                await owner.execute(_NEXT_SEGMENT)


async def _recovered(world: World) -> None:
    """Return when Postgres takes sessions again, by itself or started once more."""
    async with asyncio.timeout(RECOVER_S):
        while True:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                async with world.session():
                    return
            if not world.postgres.is_running():
                await asyncio.to_thread(world.postgres.start)
            await asyncio.sleep(LOOK_S)


def _restart_at_home(world: World, disk: Disk, wal: Path) -> None:
    """Put the write-ahead log back where it was."""
    postgres = world.postgres
    postgres.stop()
    if wal.is_symlink():
        owner = wal.parent.stat()
        wal.unlink()
        shutil.copytree(disk.folder / "pg_wal", wal)
        for path in (wal, *wal.rglob("*")):
            shutil.chown(path, owner.st_uid, owner.st_gid)
    postgres.start()


@asynccontextmanager
async def _slow(world: World, planned: Planned) -> AsyncIterator[None]:
    async with slow_commits(world.postgres.owner_url, FLUSH_S):
        yield


FAULTS = (
    Fault(
        "disk_slow",
        f"each flush of the write-ahead log takes {FLUSH_S * 1000:.0f} ms more",
        "slower 200s, in larger batches, and nothing else",
        "database",
        (3.0, 6.0),
        _slow,
    ),
    Fault(
        "disk_full",
        "the disk of the write-ahead log is full: Postgres panics and cannot recover; then there "
        "is room",
        "503 until there is room; every 200 survives; nobody needs a restart",
        "database",
        (1.0, 3.0),
        _full,
        missing,
    ),
)
