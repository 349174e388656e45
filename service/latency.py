"""The latency figure: from the receipt of an event to its delivery, by whatever way.

`DeliveryHistogram` is a collector of our own, because a subscriber's chunk holds many events and
must not cost as much as they would one by one.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

SHORT_BUCKETS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
# To Bridge's and the relay's two days.
LONG_BUCKETS_S = (
    *SHORT_BUCKETS_S,
    *(30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0, 86400.0, 172800.0),
)
VIA = ("stream", "webhook")


@dataclass(frozen=True, slots=True)
class Receipts:
    """When some events were received (Unix, seconds), summed up once for all who deliver them."""

    times_s: tuple[float, ...]
    oldest_s: float
    newest_s: float
    total_s: float

    @classmethod
    def of(cls, times_s: Sequence[float]) -> "Receipts":
        """Sum up `times_s`; with none, `oldest_s` is infinite: nothing to count."""
        if not times_s:
            return cls((), float("inf"), float("-inf"), 0.0)
        return cls(tuple(times_s), min(times_s), max(times_s), sum(times_s))

    def since(self, moment_s: float) -> "Receipts":
        """Return those at or after `moment_s`."""
        if self.oldest_s >= moment_s:
            return self
        return Receipts.of([time for time in self.times_s if time >= moment_s])


class DeliveryHistogram(Collector):
    """`causeway_delivery_seconds{via}`: received to written or acknowledged; the latency figure.

    A collector of our own because a subscriber's chunk holds many events: `observe_many` finds the
    bucket once where all of a chunk fall into the same one.
    """

    def __init__(self, name: str, documentation: str) -> None:
        self._name = name
        self._documentation = documentation
        self._counts = {via: [0] * (len(LONG_BUCKETS_S) + 1) for via in VIA}
        self._sums = dict.fromkeys(VIA, 0.0)

    def observe_many(self, via: str, now_s: float, receipts: Receipts) -> None:
        """Count one delivery at `now_s` (Unix, seconds) for each of `receipts` (at least one).

        A clock that ran backwards counts as no delay.
        """
        counts = self._counts[via]
        slowest = bisect_left(LONG_BUCKETS_S, now_s - receipts.oldest_s)
        fastest = bisect_left(LONG_BUCKETS_S, now_s - receipts.newest_s)
        if slowest == fastest:
            counts[slowest] += len(receipts.times_s)
        else:
            for moment in receipts.times_s:
                counts[bisect_left(LONG_BUCKETS_S, now_s - moment)] += 1
        self._sums[via] += max(0.0, now_s * len(receipts.times_s) - receipts.total_s)

    def collect(self) -> Iterable[Metric]:
        """Yield the one family, as Prometheus wants it: cumulative buckets and a sum."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=["via"])
        for via, counts in self._counts.items():
            total = 0
            buckets = []
            for bound, count in zip((*LONG_BUCKETS_S, float("inf")), counts, strict=True):
                total += count
                buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
            family.add_metric([via], buckets, self._sums[via])
        yield family
