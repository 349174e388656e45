"""Every metric, declared once. Names are stable; base units; label sets are closed.

One `Metrics` is one registry: a process has one, and each test its own. Hot paths use children that
are bound here, and `DeliveryHistogram`, which counts a chunk of frames at the cost of one.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
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
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

OUTCOMES = (
    *("accepted", "duplicate", "not_an_event", "bad_signature", "address_not_allowed"),
    *("unknown_source", "body_timeout", "body_too_large", "log_unavailable", "overloaded"),
    *("hung_up",),
)
CLOSE_REASONS = (
    *(
        "client",
        "drain",
        "max_age",
        "send_timeout",
        "token",
        "diverged",
        "pruned",
        "damaged",
        "lease_lost",
        "consumer_gone",
        "refused",
        "error",
    ),
)
VIA = ("stream",)
LOGINS = ("good", "bad", "slowed")

# A second series for each counter, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


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


class Metrics:
    """All metrics of one process, in one registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._declare_receive()
        self._declare_log()
        self._declare_stream()
        self._declare_consumers()
        self._declare_dashboard()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _declare_receive(self) -> None:
        self.webhooks_received = Counter(
            "causeway_webhooks_received_total",
            "Calls of Bridge by how they ended. An unknown source counts as source `-`.",
            ["source", "outcome"],
            registry=self.registry,
        )
        self.webhook_response = Histogram(
            "causeway_webhook_response_seconds",
            "From a call's headers to its answer.",
            buckets=SHORT_BUCKETS_S,
            registry=self.registry,
        )
        self.signature_matches = Counter(
            "causeway_signature_matches_total",
            "Which of a source's secrets signed: when `previous` stays still it can go.",
            ["source", "secret"],
            registry=self.registry,
        )
        self.source_delay = Histogram(
            "causeway_source_delay_seconds",
            "From Bridge's own timestamp to the receipt.",
            buckets=LONG_BUCKETS_S,
            registry=self.registry,
        )

    def _declare_log(self) -> None:
        self.append = Histogram(
            "causeway_append_seconds",
            "From a verified event to its commit, waiting for the batch included.",
            buckets=SHORT_BUCKETS_S,
            registry=self.registry,
        )
        self.append_batch = Histogram(
            "causeway_append_batch_events",
            "Events in one commit.",
            buckets=BATCH_BUCKETS,
            registry=self.registry,
        )
        self.append_queue = Gauge(
            "causeway_append_queue_events",
            "Events that wait for their commit.",
            registry=self.registry,
        )
        self.log_head = Gauge(
            "causeway_log_head_position",
            "The newest position of the log that this process knows.",
            registry=self.registry,
        )
        self.tail_lag = Gauge(
            "causeway_tail_lag_events",
            "Events in the log that are not yet in this process's window.",
            registry=self.registry,
        )
        self.log_damaged = Gauge(
            "causeway_log_damaged",
            "1 if the tail met a hole or another history in the log: a person must act.",
            registry=self.registry,
        )

    def _declare_stream(self) -> None:
        self.delivery = DeliveryHistogram(
            "causeway_delivery_seconds",
            "From the receipt of an event to its delivery: written to the socket of a subscriber "
            "that was there when it was received (a replay of history is not a delay).",
        )
        self.registry.register(self.delivery)
        self.stream_subscribers = Gauge(
            "causeway_stream_subscribers", "Open streams.", registry=self.registry
        )
        self.stream_events = Counter(
            "causeway_stream_events_total",
            "Events written to subscribers.",
            registry=self.registry,
        )
        self.stream_closed = Counter(
            "causeway_stream_closed_total",
            "Streams that ended, by reason.",
            ["reason"],
            registry=self.registry,
        )
        for reason in CLOSE_REASONS:
            self.stream_closed.labels(reason)

    def _declare_consumers(self) -> None:
        self.consumer_lag_events = Gauge(
            "causeway_consumer_lag_events",
            "Events between a named consumer's place and the head.",
            ["consumer"],
            registry=self.registry,
        )
        self.consumer_lag_seconds = Gauge(
            "causeway_consumer_lag_seconds",
            "Time since the receipt of the first event that a named consumer has not done.",
            ["consumer"],
            registry=self.registry,
        )
        self.consumer_lease_changes = Counter(
            "causeway_consumer_lease_changes_total",
            "Leases of named consumers taken by a stream of this process.",
            registry=self.registry,
        )
        self.consumer_redeliveries = Counter(
            "causeway_consumer_redeliveries_total",
            "Events sent to a named consumer that some holder was sent before.",
            registry=self.registry,
        )

    def _declare_dashboard(self) -> None:
        self.logins = Counter(
            "causeway_dashboard_logins_total",
            "Logins to the dashboard: good, bad, or not looked at because bad ones came before.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in LOGINS:
            self.logins.labels(outcome)

    def watch_pool(self, connections: Callable[[], int], idle: Callable[[], int]) -> None:
        """Report the reading pool: `connections` it has, and how many of them are `idle`."""
        size = Gauge(
            "causeway_pool_connections", "Postgres connections for reading.", registry=self.registry
        )
        size.set_function(connections)
        free = Gauge(
            "causeway_pool_idle_connections", "Those of them not in use.", registry=self.registry
        )
        free.set_function(idle)
