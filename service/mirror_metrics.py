"""The metrics of the mirror in NATS, and of the tail that reads it: part of `Metrics`.

Those of the mirror have no series where none runs.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge

PUBLISH_OUTCOMES = ("acked", "known", "refused", "unsure")
# Why the tail fell back: NATS away, the mirror behind, no stream, or one that is not the log's.
FALLBACK_REASONS = ("away", "lagging", "gone", "misfit")


class MirrorMetrics:
    """What the mirror and the tail on NATS report."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(f"causeway_mirror_{name}", meaning, ["stream"], registry=registry)

        self.active = gauge(
            "active",
            "1 in the process that mirrors the log into the stream, 0 where one stands by.",
        )
        self.misfit = gauge(
            "misfit",
            "1 if the stream does not fit the log, and the mirror stopped: a person must act.",
        )
        self.position = gauge("position", "The position up to which NATS has acknowledged the log.")
        self.lag_events = gauge("lag_events", "Events of the log that are not in the stream yet.")
        self.lag_seconds = gauge(
            "lag_seconds",
            "Time since the receipt of the first event that is not in the stream yet.",
        )
        self.publishes = Counter(
            "causeway_mirror_publishes_total",
            "Events published to NATS by how it ended; `known`: they were in the stream before, "
            "`unsure`: no answer came.",
            ["outcome"],
            registry=registry,
        )
        self.erased = Counter(
            "causeway_mirror_erased_total",
            "Messages of the stream overwritten after an erasure.",
            registry=registry,
        )
        for outcome in PUBLISH_OUTCOMES:
            self.publishes.labels(outcome)
        self._declare_tail(registry)

    def _declare_tail(self, registry: CollectorRegistry) -> None:
        self.tail_source = Gauge(
            "causeway_tail_source",
            "With CAUSEWAY_TAIL=nats, 1 for what the tail follows: `postgres` if it fell back.",
            ["source"],
            registry=registry,
        )
        self.tail_fallbacks = Counter(
            "causeway_tail_fallbacks_total",
            "How often the tail fell back from NATS to Postgres, by reason.",
            ["reason"],
            registry=registry,
        )
        for reason in FALLBACK_REASONS:
            self.tail_fallbacks.labels(reason)
