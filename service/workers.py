"""`serve --workers N`: N processes of one machine that share the port, and the parent of them.

The parent binds the port, owns the embedded Postgres and serves nothing. Its workers take their
connections from one and the same queue of the kernel: what waits there for a worker that stops or
dies is taken by another. (With SO_REUSEPORT each had a queue of its own, which is lost with it.)
A worker that ended is started again, after a back-off; one that keeps ending ends all of it with
exit code 1. SIGTERM and SIGINT are handed on; each worker stops as a single process does.
"""

import asyncio
import json
import logging
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Self

from service.config import Settings
from service.peers import bind
from service.roles import spell

log = logging.getLogger("causeway.workers")

COMMAND = (sys.executable, "-m", "service.worker")
COULD_NOT_START = 3  # a worker's exit code: it said why, and another try would not help
BACKOFF_S = (0.0, 0.5, 1.0, 2.0)
MAX_FAILURES = len(BACKOFF_S) + 1
HEALTHY_S = 10.0  # a worker that ran this long starts its back-off anew
MARGIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Brief:
    """What a worker is told: its number, inherited descriptors, where the others' metrics are.

    `dsn` is that of an embedded Postgres, which the parent owns; None: the settings know.
    """

    number: int
    listener: int
    gathering: int
    ports: tuple[int, ...]
    roles: str
    tail: str
    dsn: str | None

    def spell(self) -> str:
        """Return it as an argument."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what `spell` spelt."""
        values = json.loads(text)
        return cls(**values | {"ports": tuple(values["ports"])})


class Workers:
    """The workers of one parent; `run` once."""

    def __init__(self, settings: Settings, listener: socket.socket, dsn: str | None) -> None:
        self._roles, self._tail = spell(settings.roles), settings.tail
        self._listener = listener
        self._dsn = dsn
        self._grace_s = settings.drain_s + 2 * settings.shutdown_s + MARGIN_S
        self._gathering = [bind() for _ in range(settings.workers)]
        self._processes: dict[int, Process] = {}
        self._stopping = asyncio.Event()
        self._has_failed = False
        self._loop = asyncio.get_running_loop()

    async def run(self) -> int:
        """Keep the workers running until told to stop; return 0, or 1 if not all went in order."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(sig, self.stop, sig)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(len(self._gathering)):
                    group.create_task(self._keep(number), name=f"worker {number}")
        finally:
            self._kill()
            for sock in self._gathering:
                sock.close()
        log.info("all workers stopped")
        return 1 if self._has_failed else 0

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """Send `sig` to every worker; whoever does not end in time is killed."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._listener.close()  # the port is closed when the last worker has closed it
            self._loop.call_later(self._grace_s, self._kill)
        for process in self._processes.values():
            with suppress(ProcessLookupError):  # it ended just now
                process.send_signal(sig)

    def _kill(self) -> None:
        for number, process in self._processes.items():
            log.error("worker killed, it did not stop in time", extra={"worker": number})
            with suppress(ProcessLookupError):
                process.kill()

    async def _keep(self, number: int) -> None:
        """Start a worker, again and again."""
        failures = 0
        while not self._stopping.is_set():
            began = self._loop.time()
            code = await self._run_one(number)
            if self._stopping.is_set():
                self._has_failed |= code not in (0, -signal.SIGTERM, -signal.SIGINT)
                return
            was_healthy = self._loop.time() - began >= HEALTHY_S
            failures = 0 if code == 0 else 1 if was_healthy else failures + 1
            fields = {"worker": number, "code": code, "failures": failures}
            log.error("worker ended", extra=fields)
            if failures == MAX_FAILURES or (code == COULD_NOT_START and failures == 1):
                log.error("workers keep ending, the process stops", extra=fields)
                self._has_failed = True
                self.stop()
            elif failures:
                await self._pause(BACKOFF_S[failures - 1])

    async def _pause(self, seconds: float) -> None:
        """Wait, but not for longer than until the stop."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait([stopping], timeout=seconds)
        stopping.cancel()

    async def _run_one(self, number: int) -> int:
        """Return the exit code of one worker process."""
        brief = Brief(
            number,
            self._listener.fileno(),
            self._gathering[number].fileno(),
            tuple(sock.getsockname()[1] for sock in self._gathering),
            self._roles,
            self._tail,
            self._dsn,
        )
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, brief.spell()),
            stdin=PIPE,  # never written to: its end says that we are gone
            pass_fds=(brief.listener, brief.gathering),
            start_new_session=True,  # a terminal's Ctrl-C is for us, who hand it on once
        )
        self._processes[number] = process
        log.info("worker started", extra={"worker": number, "worker_pid": process.pid})
        if self._stopping.is_set():  # meanwhile
            process.terminate()
        code = await process.wait()
        del self._processes[number]
        return code
