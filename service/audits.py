"""Audits in the background of a process that serves: one at a time, slowly, with its progress.

The same walk as `causeway audit`, in small pages with a pause after each, so that streams and
webhooks do not wait for it. What it found is kept until the next one.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from service.audit import Proof, audit
from service.cursor import parse_checkpoint
from service.errors import Problem
from service.eventlog import EventLog

log = logging.getLogger("causeway.audits")

PAGE_EVENTS = 250
PAUSE_S = 0.005  # about as long as a page takes: half of the time is others'


@dataclass(frozen=True, slots=True)
class State:
    """Where the audit stands. `proof` or `fault` once it has ended; neither while it runs."""

    began_at: datetime
    checkpoint: str | None = None
    done: int = 0
    total: int = 0
    ended_at: datetime | None = None
    proof: Proof | None = None
    fault: str | None = None

    @property
    def is_running(self) -> bool:
        return self.ended_at is None


class Audits:
    """The audits of this process. `run` is a loop for the supervisor."""

    def __init__(
        self, eventlog: EventLog, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._eventlog = eventlog
        self._now = now
        self._wanted = asyncio.Event()
        self.state: State | None = None

    def start(self, checkpoint: str | None = None) -> None:
        """Begin an audit; if one runs, let it. `checkpoint` (`<position>.<link>`) must hold too.

        Raises BadRequest if it is no checkpoint.
        """
        if self.state is not None and self.state.is_running:
            return
        if checkpoint is not None:
            parse_checkpoint(checkpoint, "checkpoint")
        self.state = State(self._now(), checkpoint)
        self._wanted.set()

    async def run(self) -> None:
        """Do what `start` asks for, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if self.state is not None:
                await self._audit(self.state)

    async def _audit(self, begun: State) -> None:
        proof: Proof | None = None
        fault: str | None = None
        try:
            if begun.checkpoint is not None:
                await self._eventlog.check(*parse_checkpoint(begun.checkpoint, "checkpoint"))
            proof = await audit(
                self._eventlog, self._progress, page_events=PAGE_EVENTS, pause_s=PAUSE_S
            )
        except Problem as error:
            fault = error.message
            log.error("audit failed", extra={"reason": fault, "code": error.code})
        except BaseException:
            fault = "the audit was stopped by an error of ours; the log has it"
            raise
        finally:
            done, total = (self.state.done, self.state.total) if self.state else (0, 0)
            ended = self._now()
            self.state = State(begun.began_at, begun.checkpoint, done, total, ended, proof, fault)

    def _progress(self, done: int, total: int) -> None:
        if self.state is not None:
            self.state = State(self.state.began_at, self.state.checkpoint, done, total)
