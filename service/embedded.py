"""The embedded Postgres, for whoever sets no `DATABASE_URL`. Linux and macOS, not Windows.

Owns the data folder, its lock and one Postgres in it. Promises: what was committed is on disk; only
root and the server's own user reach it, over a Unix socket; it outlives a killed service, and the
next one takes it over. Files are left to `cluster`, tables to the migrations.

    <data_dir>/causeway.lock  held while a process owns the server    postgres/  the database
               startup.log    what the server said before log/        socket/    its socket
               binaries-*/    a copy, if the wheel is out of reach    log/       one file a weekday
"""

import asyncio
import fcntl
import logging
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import asyncpg

from service import cluster
from service.errors import CausewayError, ConfigError
from service.system_user import ENVIRONMENT, SystemUser

log = logging.getLogger("causeway.embedded")

SERVICE = "causeway_service"
START_TIMEOUT_S = 300.0  # after a crash, up to 2 GB of WAL are replayed first
STOP_TIMEOUT_S = 30.0
# At once for the clients, all is written; then, if that hangs, recovery at the next start.
STOP_ORDERS = ((signal.SIGINT, STOP_TIMEOUT_S), (signal.SIGQUIT, 10.0))
OLD_BACKENDS_TIMEOUT_S = 30.0
LOGIN_TIMEOUT_S = 60.0  # a machine that is busy at the start is no error
POLL_S = 0.01
RETRY_S = 0.2
WATCH_S = 0.5
LOG_TAIL_LINES = 15
OLD_BACKENDS = "pre-existing shared memory block"  # they see within moments that they are orphans


def default_data_dir() -> Path:
    """Return the folder that is used if `CAUSEWAY_DATA_DIR` is not set."""
    if os.geteuid() == 0:
        return Path("/var/lib/causeway")
    return Path.home() / ".local/share/causeway"


class EmbeddedPostgres:
    """One Postgres in `data_dir`: started, watched, stopped; or only used, see `attach`.

    `start` and `stop` block; any thread may call them, and they wait for each other.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self._cluster = self.data_dir / "postgres"
        self._socket_dir = cluster.socket_dir(self.data_dir)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock_file: int | None = None
        self._changing = threading.RLock()

    @classmethod
    @contextmanager
    def attach(cls, data_dir: Path) -> Iterator[Self]:
        """Use the server that lives on `data_dir`, or else start one and stop it at the end."""
        postgres = cls(data_dir)
        if postgres.is_running():
            postgres._wait_until_ready()
            yield postgres
        else:
            with postgres:
                yield postgres

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def owner_url(self) -> str:
        """The database as its owner, for migrations."""
        return self._url(cluster.OWNER)

    @property
    def service_url(self) -> str:
        """The database as the service's role; works after `allow_service_login`."""
        return self._url(SERVICE)

    @property
    def pid(self) -> int | None:
        """The server's process, or None. A stranger that has its old number does not count."""
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        pid = cluster.read_pid_file(self._cluster)[0]
        return pid if cluster.runs_on(self._cluster, pid) else None

    def is_running(self) -> bool:
        """Tell whether a server lives on the data folder, whoever started it."""
        return self.pid is not None

    def start(self) -> None:
        """Own the data folder; return when its server, new or taken over, accepts connections.

        Raises ConfigError for a folder that cannot be used or that another process owns;
        CausewayError with the end of the server's log if Postgres does not start.
        """
        with self._changing:
            self._take_lock()
            try:
                self._bring_up()
            except OSError as error:
                self.stop()
                raise ConfigError(f"CAUSEWAY_DATA_DIR={self.data_dir}: {error}") from error
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Stop the server that we own, at once for its clients, and free the data folder.

        Raises CausewayError if Postgres lives on.
        """
        with self._changing:
            if self._lock_file is None:
                return
            try:
                self._end()
            finally:
                os.close(self._lock_file)
                self._lock_file = None

    async def keep_running(self) -> None:
        """Start the server that we own again whenever it dies.

        Raises CausewayError with the end of its log if that fails; called again, it tries again.
        """
        while True:
            await asyncio.sleep(WATCH_S)
            if self._lock_file is not None and not self.is_running():
                log.error("embedded postgres died", extra={"data_dir": str(self.data_dir)})
                await asyncio.to_thread(self._repair)

    async def allow_service_login(self) -> None:
        """Let the service's role log in; the migrations that made it did not."""
        connection = await asyncpg.connect(
            self.owner_url, timeout=LOGIN_TIMEOUT_S, command_timeout=LOGIN_TIMEOUT_S
        )
        try:
            await connection.execute(f"ALTER ROLE {SERVICE} LOGIN")
        finally:
            await connection.close()

    def _url(self, role: str) -> str:
        where = f"host={self._socket_dir}&port={cluster.PORT}"
        return f"postgresql://{role}@/{cluster.DATABASE}?{where}"

    def _repair(self) -> None:
        with self._changing:
            if self._lock_file is not None:  # else `stop` came first
                self._bring_up()

    def _take_lock(self) -> None:
        if self._lock_file is not None:
            return
        try:
            cluster.make_data_dir(self.data_dir)
            file = self._open("causeway.lock")
        except OSError as error:
            raise ConfigError(f"CAUSEWAY_DATA_DIR={self.data_dir}: {error}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(file, 20).decode().strip()
            os.close(file)
            raise ConfigError(
                f"another Causeway (process {owner}) uses the data folder {self.data_dir}: "
                "stop it, or set CAUSEWAY_DATA_DIR to another folder"
            ) from None
        cluster.overwrite(file, str(os.getpid()).encode())
        self._lock_file = file

    def _open(self, name: str) -> int:
        """Open a file of ours; it belongs to the folder's owner, so that root locks nobody out."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        file = os.open(self.data_dir / name, flags, mode=0o600)
        if os.geteuid() == 0:
            folder = self.data_dir.stat()
            os.chown(file, folder.st_uid, folder.st_gid)
        return file

    def _bring_up(self) -> None:
        if cluster.read_pid_file(self._cluster)[1] == "stopping":
            self._wait_until_gone(STOP_TIMEOUT_S)
        took_over = self.is_running()
        if took_over:
            self._wait_until_ready()
        else:
            self._launch_until_ready()
        fields = {"data_dir": str(self.data_dir), "postgres_pid": self.pid, "took_over": took_over}
        log.info("embedded postgres ready", extra=fields)

    def _launch_until_ready(self) -> None:
        deadline = time.monotonic() + OLD_BACKENDS_TIMEOUT_S
        while True:
            self._launch()
            try:
                return self._wait_until_ready()
            except CausewayError as error:
                if OLD_BACKENDS not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_S)

    def _launch(self) -> None:
        user = SystemUser.for_data(self.data_dir)
        user.check_reach(self.data_dir)
        binaries = cluster.find_binaries(self.data_dir, user)
        cluster.make_cluster(self.data_dir, user, binaries)
        settings = cluster.SETTINGS | {
            "unix_socket_directories": str(user.make_folder(self._socket_dir)),
            "log_directory": str(user.make_folder(self.data_dir / "log")),
        }
        cluster.disown_pid_file(self._cluster / "postmaster.pid")
        cluster.disown_pid_file(self._socket_dir / f"{cluster.SOCKET}.lock")
        output = self._open("startup.log")
        os.ftruncate(output, 0)
        try:
            self._process = subprocess.Popen(  # noqa: S603  (our own binary, no shell)
                [
                    *(binaries / "postgres", "-D", self._cluster),
                    *(word for key, value in settings.items() for word in ("-c", f"{key}={value}")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=ENVIRONMENT,
                user=user.user,
                group=user.group,
                extra_groups=user.groups,
                start_new_session=True,  # a terminal's Ctrl-C is for the service, which stops it
            )
        finally:
            os.close(output)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while (pid := self.pid) is not None and time.monotonic() < deadline:
            if cluster.read_pid_file(self._cluster) == (pid, "ready"):
                return
            time.sleep(POLL_S)
        raise CausewayError(
            f"the embedded Postgres did not start. Its log ends:\n{self._log_tail()}"
        )

    def _wait_until_gone(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.is_running():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def _end(self) -> None:
        for order, timeout_s in STOP_ORDERS:
            pid = self.pid
            if pid is None:
                return
            with suppress(ProcessLookupError):  # it ended just now
                os.kill(pid, order)
            if self._wait_until_gone(timeout_s):
                log.info("embedded postgres stopped", extra={"signal": order.name})
                return
        raise CausewayError(f"the embedded Postgres (process {self.pid}) does not stop")

    def _log_tail(self) -> str:
        logs = sorted((self.data_dir / "log").glob("*.log"), key=lambda path: path.stat().st_mtime)
        lines: deque[str] = deque(maxlen=LOG_TAIL_LINES)
        for path in (*logs[-1:], self.data_dir / "startup.log"):
            with path.open(errors="replace") as file:
                lines.extend(file)
        return "".join(lines)
