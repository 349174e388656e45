"""Group commit: one batch in flight, everything that arrives meanwhile is the next.

`append` returns when the event is on disk and not before. The queue is bounded by events and by
bytes: full means `Overloaded`, at once; `intake.py` refuses most before it comes to that. There is
no linger: a lone event is committed alone, and a crowd shares one commit. Who stops waiting does
not stop the commit.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter

from service.errors import LogUnavailable, Overloaded
from service.event import NewEvent
from service.eventlog import Appended
from service.metrics import Metrics

log = logging.getLogger("causeway.appender")

BATCH_BYTES = 8 * 1024 * 1024

Waiting = tuple[NewEvent, "asyncio.Future[Appended]"]
Commit = Callable[[Sequence[NewEvent]], Awaitable[list[Appended]]]
OnCommitted = Callable[[Sequence[Appended], float], None]


class Appender:
    """Turns single events into batches. `run` is a loop for the supervisor."""

    def __init__(
        self,
        commit: Commit,
        metrics: Metrics,
        *,
        max_events: int,
        max_bytes: int,
        batch_events: int,
        on_committed: OnCommitted | None = None,
    ) -> None:
        """`on_committed` hears of each commit, and of the seconds it took."""
        self._commit = commit
        self._metrics = metrics
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._on_committed = on_committed
        self.batch_events = batch_events
        self.is_behind = False  # the last commit left more behind than the next can take
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Waiting] = deque()
        self._queued_bytes = 0
        self._in_flight: list[Waiting] = []
        self._arrived = asyncio.Event()
        self._settled = asyncio.Event()
        metrics.append_queue.set_function(lambda: len(self._queue))

    async def append(self, event: NewEvent) -> Appended:
        """Commit `event` with whatever else is waiting; return where it stands.

        Raises Overloaded if the queue is full (nothing was queued), LogUnavailable if the commit
        failed or its answer got lost (then the event may stand in the log: retrying is safe).
        """
        if self.is_full() or (
            self._queued_bytes and self._queued_bytes + len(event.body) > self._max_bytes
        ):
            raise Overloaded("too many events wait for their commit; try again in a moment")
        began = perf_counter()
        done: asyncio.Future[Appended] = self._loop.create_future()
        self._queue.append((event, done))
        self._queued_bytes += len(event.body)
        self._arrived.set()
        appended = await done
        self._metrics.append.observe(perf_counter() - began)
        return appended

    def is_full(self, more: int = 0) -> bool:
        """True if, after `more` events, no further one would be taken, however small."""
        return len(self._queue) + more >= self._max_events or self._queued_bytes >= self._max_bytes

    def fills_a_batch(self, more: int = 0) -> bool:
        """True if what waits, and `more`, is as much as one commit takes."""
        return len(self._queue) + more >= self.batch_events or self._queued_bytes >= BATCH_BYTES

    async def run(self) -> None:
        """Commit batch after batch, for ever. Cancelled, it fails those that wait."""
        try:
            while True:
                await self._arrived.wait()
                self._in_flight = self._take_batch()
                await self._settle(self._in_flight)
                self._in_flight = []
                self._settled.set()
        finally:
            self._fail([*self._in_flight, *self._queue], LogUnavailable("the process is stopping"))
            self._in_flight = []
            self._queue.clear()
            self._queued_bytes = 0
            self._settled.set()

    async def drained(self) -> None:
        """Return when nothing waits and nothing is in flight."""
        while self._queue or self._in_flight:
            self._settled.clear()
            await self._settled.wait()

    def _take_batch(self) -> list[Waiting]:
        batch: list[Waiting] = []
        size = 0
        while self._queue and len(batch) < self.batch_events and size < BATCH_BYTES:
            waiting = self._queue.popleft()
            size += len(waiting[0].body)
            batch.append(waiting)
        self._queued_bytes -= size
        self.is_behind = self.fills_a_batch()
        if not self._queue:
            self._arrived.clear()
        return batch

    async def _settle(self, batch: list[Waiting]) -> None:
        """Commit a batch and tell each of its callers."""
        self._metrics.append_batch.observe(len(batch))
        began = perf_counter()
        try:
            appended = await self._commit([event for event, _ in batch])
        except LogUnavailable as error:
            log.warning("append failed", extra={"events": len(batch), "reason": error.message})
            self._fail(batch, error)
        except Exception as error:
            log.exception("append refused", extra={"events": len(batch)})
            await self._settle_one_by_one(batch, error)
        else:
            for (_, done), result in zip(batch, appended, strict=True):
                if not done.done():  # its caller may have gone
                    done.set_result(result)
            if self._on_committed is not None:
                self._on_committed(appended, perf_counter() - began)

    async def _settle_one_by_one(self, batch: list[Waiting], error: Exception) -> None:
        """Find the event that Postgres refuses, so that it does not take the others with it."""
        if len(batch) == 1:
            self._fail(batch, LogUnavailable(f"the event was refused ({type(error).__name__})"))
            return
        for waiting in batch:
            await self._settle([waiting])

    @staticmethod
    def _fail(batch: list[Waiting], error: LogUnavailable) -> None:
        for _, done in batch:
            if not done.done():
                done.set_exception(LogUnavailable(error.message))
