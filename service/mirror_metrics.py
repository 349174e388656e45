"""The mirror's metrics: part of `Metrics`. They have no series where no mirror runs."""

from prometheus_client import CollectorRegistry, Counter, Gauge

PUBLISH_OUTCOMES = ("acked", "known", "refused", "unsure")


class MirrorMetrics:
    """What the mirror in NATS reports."""

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
