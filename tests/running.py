"""A service that runs for a test: in this process on a real socket, or as a process of its own."""

import asyncio
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx2

from service.app import Service, open_service
from service.config import Settings, variables
from service.roles import Role
from service.server import Server, listen

SECRET = "whsec-current-0123456789"
PREVIOUS_SECRET = "whsec-previous-0123456789"
STREAM_TOKEN = "stream-token-0123456789"
ADMIN_TOKEN = "admin-token-0123456789"
ROOT = Path(__file__).parent.parent
START_S = 120.0
# A condition that is awaited comes soon, or never; a machine that is busy may stall for seconds.
WITHIN_S = 60.0
# Below the ports that a kernel gives out by itself: what it gave a moment ago may be somebody
# else's, a client's as well, before the program that was told of it has bound it.
PORTS = range(10_000, 32_000)
WORKERS = 16  # at the most, with ports of their own


@dataclass(frozen=True, slots=True)
class Database:
    """DSNs of one database: as its owner, and as the service's role."""

    owner_dsn: str
    service_dsn: str


@dataclass(slots=True)
class Running:
    """A service in this process."""

    url: str
    service: Service
    server: Server
    settings: Settings
    fatal: list[str] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a reader."""
        return {"authorization": f"Bearer {STREAM_TOKEN}"}


def make_settings(**overrides: object) -> Settings:
    """Return settings for tests; `overrides` are fields of Settings.

    No limit is so short that a busy machine meets it: a test of one sets it.
    """
    defaults: dict[str, object] = {
        "bridge_webhook_secret": f"{SECRET},{PREVIOUS_SECRET}",
        "stream_token": STREAM_TOKEN,
        "admin_token": ADMIN_TOKEN,
        "port": 0,
        "drain_s": 0.2,
        "shutdown_s": 3.0,
        "poll_s": 0.2,
        "append_timeout_s": 150.0,
        "send_timeout_s": 150.0,
        "head_timeout_s": 2 * WITHIN_S,
        "body_timeout_s": 2 * WITHIN_S,
    }
    names = {field_name: name for name, field_name in variables().items()}
    return Settings(**{names[key]: value for key, value in (defaults | overrides).items()})  # type: ignore[arg-type]


@asynccontextmanager
async def running_service(
    settings: Settings, database: Database, *, is_waiting_for_nats: bool = True
) -> AsyncIterator[Running]:
    """Run a service on a free port of 127.0.0.1 until the end of the block.

    One that is to follow NATS does so when the block begins.
    """
    fatal: list[str] = []
    with listen(settings) as sock:
        async with open_service(settings, database.service_dsn, fatal.append) as service:
            server = Server(service, settings)
            task = asyncio.create_task(server.serve(sockets=[sock]), name="test-server")
            running = Running(
                f"http://127.0.0.1:{sock.getsockname()[1]}", service, server, settings, fatal
            )
            is_reading = Role.STREAM in settings.roles
            await eventually(
                lambda: server.started and (service.window.position >= 0 or not is_reading)
            )
            if settings.tail == "nats" and is_reading and is_waiting_for_nats:
                await eventually(lambda: follows_nats(service))
            try:
                yield running
            finally:
                server.stop()
                await asyncio.wait_for(task, settings.drain_s + 2 * settings.shutdown_s + WITHIN_S)


def follows_nats(service: Service) -> bool:
    """True if the service's new events come from NATS."""
    return (
        service.metrics.registry.get_sample_value("causeway_tail_source", {"source": "nats"}) == 1
    )


async def eventually(condition: object, *, within_s: float = WITHIN_S) -> None:
    """Return once `condition()` is true; fail the test if it is not within `within_s`."""
    assert callable(condition)
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.01)


@dataclass(slots=True)
class Process:
    """A service as a process of its own, `python -m service serve`."""

    url: str
    popen: "subprocess.Popen[bytes]"
    log: Path

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a reader."""
        return {"authorization": f"Bearer {STREAM_TOKEN}"}

    def kill(self) -> None:
        """End it as a crash would."""
        self.popen.kill()
        self.popen.wait()

    def terminate(self, within_s: float = WITHIN_S) -> int:
        """End it in order; return its exit code."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(within_s)

    def output(self) -> str:
        """Return all that it logged."""
        return self.log.read_text()


def environment(**settings: str) -> dict[str, str]:
    """Return a process environment with the settings of tests; `settings` are variable names."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "VIRTUAL_ENV")}
    defaults = {
        "PYTHONPATH": str(ROOT),
        "BRIDGE_WEBHOOK_SECRET": f"{SECRET},{PREVIOUS_SECRET}",
        "CAUSEWAY_STREAM_TOKEN": STREAM_TOKEN,
        "CAUSEWAY_ADMIN_TOKEN": ADMIN_TOKEN,
        "CAUSEWAY_PORT": str(free_port()),
        "CAUSEWAY_DRAIN_S": "1",
        "CAUSEWAY_HEAD_TIMEOUT_S": str(WITHIN_S),
        "CAUSEWAY_BODY_TIMEOUT_S": str(WITHIN_S),
        "CAUSEWAY_APPEND_TIMEOUT_S": str(WITHIN_S),
    }
    return kept | defaults | settings


async def execute_alone(connection: "asyncpg.Connection[asyncpg.Record]", sql: str) -> None:
    """Make or drop a database: Postgres waits no more than 5 s for those who are about to leave."""
    deadline = time.monotonic() + WITHIN_S
    while True:
        try:
            await connection.execute(sql)
        except asyncpg.ObjectInUseError:
            if time.monotonic() > deadline:
                raise
        else:
            return


def free_port() -> int:
    """Return a port of 127.0.0.1 where nobody listens, and that no other test is told of."""
    while True:
        port = next(_ports)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def _own_ports() -> Iterator[int]:
    """Yield the ports of this worker of pytest-xdist, again and again; begin anywhere."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = PORTS[worker % WORKERS :: WORKERS]
    begin = random.randrange(len(own))
    return itertools.cycle([*own[begin:], *own[:begin]])


_ports = _own_ports()


@contextmanager
def service_process(
    env: Mapping[str, str], log: Path, *arguments: str, root: Path = ROOT
) -> Iterator[Process]:
    """Run `python -m service serve` with `env` until the end of the block; wait for readiness.

    `root` is where its code is.
    """
    with log.open("ab") as output:
        popen = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", *arguments],
            env=dict(env),
            cwd=root,
            stdout=output,
            stderr=output,
        )
    process = Process(f"http://127.0.0.1:{env['CAUSEWAY_PORT']}", popen, log)
    try:
        _wait_until_ready(process)
        yield process
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.wait()


def _wait_until_ready(process: Process) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.popen.poll() is None, process.output()[-3000:]
        try:
            if httpx2.get(f"{process.url}/readyz", timeout=20).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"not ready within {START_S} s:\n{process.output()[-3000:]}")
