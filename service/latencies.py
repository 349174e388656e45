"""Durations of any number in bounded memory: their percentiles, and the greatest exactly."""

import math
from collections import Counter

_GROWTH = 1.02  # each bucket ends 2 % above the one before
_SHORTEST_S = 1e-6


class Latencies:
    """Durations in buckets: a percentile is right within 2 %."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.max_s: float | None = None

    def add(self, seconds: float) -> None:
        """Count one duration; one under a microsecond, or negative, counts as a microsecond."""
        seconds = max(seconds, _SHORTEST_S)
        self._buckets[math.ceil(math.log(seconds, _GROWTH))] += 1
        self.max_s = max(seconds, self.max_s or 0.0)

    def percentile(self, percent: float) -> float | None:
        """Return the seconds under which `percent` of the durations lie; None without any."""
        if self.max_s is None:
            return None
        rank = percent / 100 * self._buckets.total()
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return min(float(_GROWTH**bucket), self.max_s)
        return self.max_s
