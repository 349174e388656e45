"""One per process: follows the log and fills the window. Reads each new row once.

A notification wakes it, but a wake-up is only a hint: it also polls. What it reads must follow what
it read before, without a hole and on the same chain: anything else is damage or another history,
and is an alarm, never skipped.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter

from service.errors import LogDamaged, PositionPruned
from service.event import Event, chain_link
from service.eventlog import EventLog
from service.metrics import Metrics
from service.window import Frame, Window

log = logging.getLogger("causeway.tail")

PAGE_EVENTS = 1000
PAGE_BYTES = 4 * 1024 * 1024


class LogChanged(Exception):
    """The log's rows do not continue the rows that this process has handed out."""


class Tail:
    """The only one that fills the window. `run` is a loop for the supervisor."""

    def __init__(
        self,
        eventlog: EventLog,
        window: Window,
        metrics: Metrics,
        *,
        poll_s: float,
        preload_events: int,
        on_changed: Callable[[], None],
        on_read: Callable[[Sequence[Event], float], None] | None = None,
    ) -> None:
        """`on_changed` is called if the log has another history.

        `on_read` hears of events that are new to the streams, and of the seconds that took.
        """
        self._eventlog = eventlog
        self._window = window
        self._metrics = metrics
        self._poll_s = poll_s
        self._preload_events = preload_events
        self._on_changed = on_changed
        self._on_read = on_read
        self._wake = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._read_at = self._checked_at = float("-inf")
        self._known_head = self._preloaded_to = 0
        self.is_damaged = False  # for ever: a person must look, and restart
        self.has_begun = False
        metrics.tail_lag.set_function(self.lag)
        metrics.log_damaged.set_function(lambda: self.is_damaged)

    def lag(self) -> int:
        """Return how many events of the log are not yet in the window, as far as is known."""
        return max(0, self._known_head - max(0, self._window.position))

    def head(self) -> int | None:
        """Return the newest position that is known of, in the window or not; None before that."""
        return max(self._known_head, self._window.position) if self.has_begun else None

    def hear(self, head: int) -> None:
        """Look for new events now: the log is said to end at `head` (0: nobody knows)."""
        self._known_head = max(self._known_head, head)
        self._wake.set()

    def behind_s(self) -> float:
        """Return for how long nothing could be read: infinite before the first read."""
        return self._clock() - self._read_at

    async def run(self) -> None:
        """Follow the log, for ever. Raises whatever stops it, for the supervisor to begin anew."""
        await self.begin()
        with self.alarming():
            await self.follow()

    @contextmanager
    def alarming(self) -> Iterator[None]:
        """Alarm if the block meets damage or another history, and begin anew after it."""
        try:
            yield
        except (LogChanged, LogDamaged, PositionPruned) as error:
            # Pruning keeps far behind the tail; but if it ever overtakes us, that is no damage.
            self.is_damaged = self.is_damaged or not isinstance(error, PositionPruned)
            log.error("log changed under its readers", extra={"reason": str(error)})
            self._known_head = 0
            self._window.start(-1, b"")
            self._on_changed()
            raise

    async def follow(self) -> None:
        """Read on from the window's end, for ever. It may be cancelled at any point."""
        while True:
            await self._read_new()
            await self._wait()

    async def begin(self) -> None:
        """Begin the window, if it has not begun, so far back that who resumes finds its place."""
        if self._window.position >= 0:
            return
        bounds = await self._eventlog.bounds()
        self._known_head = self._preloaded_to = bounds.head_position
        start = max(bounds.anchor_position, bounds.head_position - self._preload_events)
        link = await self._eventlog.check(start, None)
        self._window.start(start, link)
        self.has_begun = True

    async def _wait(self) -> None:
        """Wait to be woken, or for `poll_s`; look at the head that often, woken or not.

        A log that was put back may be busy: its events wake us, and are below what we ask for.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._poll_s):
                await self._wake.wait()
        if self._clock() - self._checked_at >= self._poll_s:
            await self.check_head()
            self._checked_at = self._clock()

    async def _read_new(self) -> None:
        while True:
            self._wake.clear()  # before the read: what is appended after it wakes us again
            began = perf_counter()
            events = await self._eventlog.read_after(
                self._window.position, limit=PAGE_EVENTS, max_bytes=PAGE_BYTES
            )
            self._read_at = self._clock()
            if not events:
                return
            self.take(events, began)
            await asyncio.sleep(0)  # a long catch-up must not starve the streams

    def take(self, events: list[Event], began: float) -> None:
        """Hand out `events`, dense and oldest first. Raises LogChanged if they do not continue.

        `began`: when they began to be read, in seconds of `perf_counter`.
        """
        self._check_continues(events)
        self._window.append([Frame(event) for event in events])
        self._known_head = max(self._known_head, self._window.position)
        self._metrics.log_head.set(self._window.position)
        if self._on_read is not None:
            new = [event for event in events if event.position > self._preloaded_to]
            self._on_read(new, perf_counter() - began)

    def _check_continues(self, events: list[Event]) -> None:
        """Is what was read chained to what was handed out? `read_after` has looked for holes.

        Invariant: test_tail.py, test_a_hole_is_an_alarm_and_is_never_skipped.
        """
        first = events[0]
        link = chain_link(
            self._window.link, first.digest, first.position, first.received_at, first.source
        )
        if link != first.link:
            raise LogChanged(f"position {first.position} is not chained to the one before")

    async def check_head(self) -> None:
        """Is what was handed out last still in the log, if nothing follows it?

        Raises LogChanged if it is not.
        """
        # Of before the question: what comes in meanwhile (from a mirror) may be past the answer.
        position, link = self._window.position, self._window.link
        bounds = await self._eventlog.bounds()
        self._known_head = max(bounds.head_position, self._window.position)
        if bounds.head_position < position:
            raise LogChanged(f"the log ends at {bounds.head_position}, {position} was handed out")
        if bounds.head_position == position and bounds.head_link != link:
            raise LogChanged(f"position {bounds.head_position} has another link than before")
