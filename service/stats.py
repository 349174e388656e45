"""The last hour of this process's figures, in memory; what is older as counts from Postgres.

Each process has its own: the figures say which one. Prometheus is the place for all of them.
"""

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from service.errors import LogUnavailable
from service.history import History
from service.metrics import Metrics
from service.sample import FIGURES, Sample, figures, read

log = logging.getLogger("causeway.stats")

EVERY_S = 5.0
KEPT = 720  # an hour
SMOOTH = 6  # samples: a figure is of the last half minute, or a quiet log would be all gaps
SIZE_EVERY_S = 60.0
# Range: how long one count is of, and how many there are.
RANGES = {
    "day": (timedelta(minutes=10), 144),
    "week": (timedelta(hours=1), 168),
    "month": (timedelta(hours=6), 120),
}
HOUR = "hour"


class Stats:
    """What the charts show. `run` is a loop for the supervisor."""

    def __init__(
        self,
        metrics: Metrics,
        history: History,
        head: Callable[[], int | None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._metrics = metrics
        self._head = head
        self._history = history
        self._now = now
        self._samples: deque[Sample] = deque(maxlen=KEPT + SMOOTH)
        self._points: deque[tuple[float, dict[str, float | None]]] = deque(maxlen=KEPT)
        self._database_bytes: float | None = None
        self._sized_at = float("-inf")
        self.process = f"{socket.gethostname()}/{os.getpid()}"

    async def run(self) -> None:
        """Take a sample every 5 seconds, for ever."""
        while True:
            await self.sample()
            await asyncio.sleep(EVERY_S)

    async def sample(self) -> None:
        """Take a sample now."""
        await self._measure_database()
        before = list(self._samples)[-SMOOTH:]
        newer = read(self._metrics, self._now(), self._head(), self._database_bytes)
        self._samples.append(newer)
        if before:
            # At the start the log was not read yet: from when it was.
            older = next((sample for sample in before if sample.head is not None), before[0])
            self._points.append((round(newer.time_s, 3), figures(older, newer)))

    async def _measure_database(self) -> None:
        if self._now() - self._sized_at < SIZE_EVERY_S:
            return
        try:
            self._database_bytes = await self._history.database_bytes()
            self._sized_at = self._now()
        except LogUnavailable:
            log.debug("database not measured, it is away")

    def window(self, seconds: float) -> tuple[Sample, Sample] | None:
        """Return the samples at the two ends of the last `seconds`; None without two."""
        if len(self._samples) < 2:
            return None
        newest = self._samples[-1]
        count = min(len(self._samples) - 1, max(1, round(seconds / EVERY_S)))
        return self._samples[-1 - count], newest

    def newest(self) -> dict[str, float | None]:
        """Return the newest figures; none of them before the second sample."""
        return self._points[-1][1] if self._points else dict.fromkeys(FIGURES)

    def hour(self, after_s: float = 0.0) -> dict[str, Any]:
        """Return the last hour's figures after a moment (Unix, seconds), oldest first."""
        skipped = sum(1 for moment, _ in self._points if moment <= after_s)
        points = list(islice(self._points, skipped, None))
        return {
            "range": HOUR,
            "process": self.process,
            "step_s": EVERY_S,
            "times": [moment for moment, _ in points],
            "figures": {name: [values[name] for _, values in points] for name in FIGURES},
        }

    async def counts(self, name: str) -> dict[str, Any]:
        """Return how many events the log received in each step of a longer range, of RANGES.

        Counted from positions: the cost is that of some hundred look-ups, whatever the log's size.
        """
        step, count = RANGES[name]
        step_s = step.total_seconds()
        end = (self._now() // step_s + 1) * step_s
        moments = [end - (count - n) * step_s for n in range(count + 1)]
        numbers = await self._history.counts([datetime.fromtimestamp(m, UTC) for m in moments])
        return {
            "range": name,
            "process": self.process,
            "step_s": step_s,
            "times": moments[:-1],
            "figures": {"events": numbers},
        }
