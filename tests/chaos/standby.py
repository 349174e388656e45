"""A streaming standby of an embedded Postgres, and its promotion.

    async with standby_of(primary, is_synchronous=True) as standby:
        standby.service_url                 # read-only until it is promoted
        await standby.cut()                 # it lacks what the primary commits from now on
        await standby.join()                # it gets that, too
        crash(primary)                      # kill -9
        await standby.promote()             # returns when it takes writes

Made with pg_basebackup, with a Unix socket of its own and as the user that the primary runs as.
Synchronous: every commit at the primary waits for its disk.
"""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from service import cluster
from service.embedded import SERVICE, EmbeddedPostgres
from service.system_user import SystemUser

WITHIN_S = 60.0
NAME = "chaos_standby"
_IS_STREAMING = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
_HAS_ALL = """
SELECT coalesce(bool_and(replay_lsn >= pg_current_wal_lsn()), false) FROM pg_stat_replication
"""


class Standby:
    """A second Postgres in `folder` that follows the primary until it is promoted."""

    def __init__(self, primary: EmbeddedPostgres, folder: Path) -> None:
        self._primary = primary
        self._user = SystemUser.for_data(primary.data_dir)
        self._binaries = cluster.find_binaries(primary.data_dir, self._user)
        self._folder = folder
        self._data = folder / "postgres"

    @property
    def owner_url(self) -> str:
        """The database as its owner."""
        return self._url(cluster.OWNER)

    @property
    def service_url(self) -> str:
        """The database as the service's role."""
        return self._url(SERVICE)

    async def start(self) -> None:
        """Make it and let it stream; return when it does."""
        self._user.make_folder(self._folder / "socket")
        self._user.make_folder(self._data)
        await self._run(
            "pg_basebackup", f"--dbname={self._primary.owner_url}", f"--pgdata={self._data}",
            "--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf",
        )  # fmt: skip
        settings = {
            **{name: cluster.SETTINGS[name] for name in ("port", "shared_buffers")},
            "listen_addresses": "",
            "logging_collector": "off",
            "unix_socket_directories": str(self._folder / "socket"),
            "wal_retrieve_retry_interval": "200ms",
            "primary_conninfo": self._conninfo(),
        }
        with (self._data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        await self._control("start", "-w", "-l", str(self._data / "startup.log"))
        await _until(self._primary.owner_url, _IS_STREAMING)

    async def caught_up(self) -> None:
        """Return when it has replayed all that the primary has written."""
        await _until(self._primary.owner_url, _HAS_ALL)

    async def cut(self) -> None:
        """Let it hear no more of the primary, as if the network between them were cut."""
        await self._follow("")

    async def join(self) -> None:
        """Let it hear the primary again, and get what it missed."""
        await self._follow(self._conninfo())
        await _until(self._primary.owner_url, _IS_STREAMING)

    async def promote(self) -> None:
        """Make it the primary; return when it takes writes."""
        await self._control("promote", "-w")

    async def stop(self) -> None:
        """End it, if it runs."""
        if (self._data / "postmaster.pid").exists():
            await self._control("stop", "-w", "-m", "fast")

    async def _follow(self, conninfo: str) -> None:
        connection = await asyncpg.connect(self.owner_url)
        try:
            await connection.execute(f"ALTER SYSTEM SET primary_conninfo = '{conninfo}'")
            await connection.execute("SELECT pg_reload_conf()")
        finally:
            await connection.close()
        wanted = "SELECT count(*) = $1 FROM pg_stat_wal_receiver WHERE status = 'streaming'"
        await _until(self.owner_url, wanted, int(bool(conninfo)))

    def _conninfo(self) -> str:
        socket_dir = cluster.socket_dir(self._primary.data_dir)
        return f"host={socket_dir} port={cluster.PORT} user={cluster.OWNER} application_name={NAME}"

    def _url(self, role: str) -> str:
        where = f"host={self._folder / 'socket'}&port={cluster.PORT}"
        return f"postgresql://{role}@/{cluster.DATABASE}?{where}"

    async def _control(self, *words: str) -> None:
        await self._run("pg_ctl", "-D", str(self._data), *words)

    async def _run(self, program: str, *words: str) -> None:
        done = await asyncio.to_thread(self._user.run, self._binaries / program, *words)
        assert done.returncode == 0, done.stdout + done.stderr


def crash(postgres: EmbeddedPostgres) -> None:
    """Kill -9 the server; nobody starts it again by itself."""
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGKILL)


async def set_synchronous(primary: "EmbeddedPostgres | Standby", names: str) -> None:
    """Let commits wait for the standbys of these names; none: for nobody."""
    connection = await asyncpg.connect(primary.owner_url)
    try:
        await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()
    wanted = "SELECT current_setting('synchronous_standby_names') = $1"
    await _until(primary.owner_url, wanted, names)


@asynccontextmanager
async def standby_of(primary: EmbeddedPostgres, *, is_synchronous: bool) -> AsyncIterator[Standby]:
    """Run a standby of a running primary until the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="causeway-standby-", dir="/tmp"))
    folder.chmod(0o755)
    standby = Standby(primary, folder)
    try:
        await standby.start()
        if is_synchronous:
            await set_synchronous(primary, NAME)
        yield standby
    finally:
        await standby.stop()
        shutil.rmtree(folder)


async def _until(url: str, statement: str, *values: object) -> None:
    """Return once a statement's value is true there."""
    connection = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(WITHIN_S):
            while not await connection.fetchval(statement, *values):
                await asyncio.sleep(0.02)
    finally:
        await connection.close()
