"""A small disk for Postgres that gets full, and has room again.

    with small_disk(megabytes=400) as disk:          # a tmpfs; root only, else Missing
        postgres = EmbeddedPostgres(disk.folder)
        ...
        disk.fill(); ...; disk.give_back()

`hold_wal` puts only the write-ahead log of a stopped Postgres there: full, that is no error of a
statement but a PANIC. A tmpfs is memory, so it shows nothing of a slow disk:

    async with slow_commits(owner_url, 0.1): ...     # the commits' wait for one, and no more of it
"""

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

PIECE = b"\0" * 65536


class Missing(Exception):
    """This machine lacks what the fault needs; the message says what."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A filesystem of its own."""

    folder: Path

    @property
    def free_bytes(self) -> int:
        """How much more it holds."""
        return shutil.disk_usage(self.folder).free

    def fill(self) -> None:
        """Take all the room that is left."""
        with (self.folder / "ballast").open("ab", buffering=0) as file:
            try:
                while file.write(PIECE) == len(PIECE):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def hold_wal(self, data_dir: Path) -> None:
        """Move the write-ahead log of the stopped Postgres in `data_dir` onto this disk."""
        wal = data_dir / "postgres" / "pg_wal"
        owner, target = wal.stat(), self.folder / "pg_wal"
        shutil.move(wal, target)
        for path in (target, *target.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        wal.symlink_to(target)

    def give_back(self) -> None:
        """Give back what `fill` took."""
        (self.folder / "ballast").unlink(missing_ok=True)


def missing() -> str | None:
    """Return what this machine lacks for a small disk, or None."""
    try:
        with small_disk(megabytes=1):
            return None
    except Missing as error:
        return str(error)


@contextmanager
def small_disk(megabytes: int) -> Iterator[Disk]:
    """Mount a disk of that size until the end of the block. Raises Missing."""
    if os.geteuid() != 0:
        raise Missing("a small disk can be mounted by root only")
    folder = Path(tempfile.mkdtemp(prefix="causeway-disk-", dir="/tmp"))
    try:
        _mount("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(folder))
        try:
            yield Disk(folder)
        finally:
            _mount("umount", str(folder))
    finally:
        folder.rmdir()


def _mount(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Missing(f"a small disk cannot be mounted here: {done.stderr.strip()}")


@asynccontextmanager
async def slow_commits(owner_url: str, seconds: float) -> AsyncIterator[None]:
    """Let each flush of the write-ahead log at a commit take so much longer: 0.1 s at the most.

    By Postgres' own `commit_delay`, not by a slow device: reads and checkpoints stay fast.
    """
    connection = await asyncpg.connect(owner_url)
    settings = {"commit_delay": int(seconds * 1e6), "commit_siblings": 0}
    try:
        for name, value in settings.items():
            await connection.execute(f"ALTER SYSTEM SET {name} = {value}")
        await connection.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            for name in settings:
                await connection.execute(f"ALTER SYSTEM RESET {name}")
            await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()
