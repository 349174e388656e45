"""Asks for the log's head now and then: for processes in which no tail reads the log.

Tells whether the database answers, which is what makes them ready, and where the log ends.
"""

import asyncio

from service.eventlog import EventLog
from service.metrics import Metrics


class Head:
    """What this process knows of the log's end. `run` is a loop for the supervisor."""

    is_damaged = False  # whoever reads the log would find out

    def __init__(self, eventlog: EventLog, metrics: Metrics, poll_s: float) -> None:
        self._eventlog = eventlog
        self._metrics = metrics
        self._poll_s = poll_s
        self._clock = asyncio.get_running_loop().time
        self._read_at = float("-inf")
        self._head: int | None = None

    def head(self) -> int | None:
        """Return the newest position that is known of; None before the first read."""
        return self._head

    def behind_s(self) -> float:
        """Return for how long nothing could be read: infinite before the first read."""
        return self._clock() - self._read_at

    async def run(self) -> None:
        """Ask for ever. Raises LogUnavailable, for the supervisor to begin anew."""
        while True:
            bounds = await self._eventlog.bounds()
            self._read_at = self._clock()
            self._head = bounds.head_position
            self._metrics.log_head.set(self._head)
            await asyncio.sleep(self._poll_s)
