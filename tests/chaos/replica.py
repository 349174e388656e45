"""One `python -m service serve` under an orchestrator that starts it again when it ends."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.running import ROOT

WATCH_S = 0.1
RESTART_S = 0.5
START_S = 240.0
STOP_S = 90.0  # more than the parent of workers gives them


class Replica:
    """A replica on a port that stays its own, whichever process serves it."""

    def __init__(self, number: int, env: Mapping[str, str], log: Path, *arguments: str) -> None:
        self.number = number
        self.url = f"http://127.0.0.1:{env['CAUSEWAY_PORT']}"
        self.log = log
        self.arguments = arguments
        self.ends: list[str] = []  # of processes that served already, and that nobody ended
        self._port = int(env["CAUSEWAY_PORT"])
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None
        self._has_served = False

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None, "the replica is down"
        return self._process.pid

    @property
    def is_down(self) -> bool:
        """True if nobody wants it to run."""
        return self._process is None

    def start(self) -> None:
        """Start it; from now on it is kept running."""
        self._has_served = False
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve", *self.arguments],
                env=self._env,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a terminal's Ctrl-C is for the harness, which ends it
            )

    def send(self, sig: signal.Signals) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, sig)

    async def end(self, sig: signal.Signals) -> int:
        """End it by a signal and leave it down; return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(sig)
        try:
            return await asyncio.to_thread(process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return await asyncio.to_thread(process.wait)

    def kill_now(self) -> None:
        """End it and its workers at once and for good, even if they are stopped."""
        process, self._process = self._process, None
        if process is None:
            return
        workers = children_of(process.pid)
        process.kill()
        process.wait()
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def children(self) -> list[int]:
        """Return the processes that it has started, the oldest first."""
        return children_of(self.pid)

    async def keep(self) -> None:
        """Start it again whenever it ends by itself, as an orchestrator does. A loop."""
        while True:
            await asyncio.sleep(WATCH_S)
            process = self._process
            if process is None:
                continue
            if not self._has_served:
                self._has_served = await self.is_listening()
            if process.poll() is not None and process is self._process:
                if self._has_served:
                    self.ends.append(f"replica {self.number} ended with {process.returncode}")
                await asyncio.sleep(RESTART_S)
                if process is self._process:
                    self.start()

    async def is_listening(self) -> bool:
        """Tell whether the port takes connections."""
        try:
            async with asyncio.timeout(1):
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    async def wait_until_listening(self) -> None:
        """Return when the port takes connections. Raises TimeoutError with what it logged."""
        try:
            async with asyncio.timeout(START_S):
                while not await self.is_listening():
                    await asyncio.sleep(WATCH_S)
        except TimeoutError:
            raise TimeoutError(self.log.read_text()[-3000:]) from None


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started, the oldest first."""
    found = subprocess.run(
        ["pgrep", "-P", str(pid)], capture_output=True, encoding="ascii", check=False
    )
    return sorted(map(int, found.stdout.split()))
