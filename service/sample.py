"""One reading of this process's own metrics, and the figures that two readings make. Pure.

What a chart shows: rates and percentiles over the time between the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.registry import Collector

from service.buckets import Buckets, between, percentile
from service.metrics import Metrics

Labelled = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Sample:
    """What the metrics said at one moment (Unix, seconds)."""

    time_s: float
    head: float | None
    subscribers: float
    queue: float
    received: Labelled  # calls by (source, outcome)
    matches: Labelled  # signatures by (source, secret)
    streamed: float
    delivery: Buckets  # to subscribers
    delay: Buckets
    append: Buckets
    batches: tuple[float, float]  # commits, and events in them
    lag_events: Labelled  # by (consumer,)
    lag_s: Labelled
    relay_pending: Labelled  # by (webhook,)
    relay_oldest_s: Labelled
    relayed: Buckets  # of deliveries to webhooks
    database_bytes: float | None


# Figure: its unit, as the API names it.
FIGURES: Mapping[str, str] = {
    "events_per_s": "events/s",
    "streamed_per_s": "events/s",
    "duplicates_per_s": "calls/s",
    "signature_failures_per_s": "calls/s",
    "delivery_p50_s": "seconds",
    "delivery_p95_s": "seconds",
    "delivery_p99_s": "seconds",
    "source_delay_p50_s": "seconds",
    "source_delay_p95_s": "seconds",
    "append_p99_s": "seconds",
    "append_batch_events": "events",
    "subscribers": "streams",
    "consumer_lag_events": "events",
    "consumer_lag_s": "seconds",
    "relay_pending": "events",
    "relay_oldest_s": "seconds",
    "relay_delivery_p50_s": "seconds",
    "relay_delivery_p95_s": "seconds",
    "relay_delivery_p99_s": "seconds",
    "database_bytes": "bytes",
}


def read(
    metrics: Metrics, time_s: float, head: float | None, database_bytes: float | None
) -> Sample:
    """Read the metrics; beside them the log's newest position and the size of the database."""
    batches = _values(metrics.append_batch)
    return Sample(
        time_s=time_s,
        head=head,
        subscribers=_value(metrics.stream_subscribers),
        queue=_value(metrics.append_queue),
        received=_labelled(metrics.webhooks_received, "source", "outcome"),
        matches=_labelled(metrics.signature_matches, "source", "secret"),
        streamed=_value(metrics.stream_events),
        delivery=_buckets(metrics.delivery, via="stream"),
        delay=_buckets(metrics.source_delay),
        append=_buckets(metrics.append),
        batches=(batches.get("_count", 0.0), batches.get("_sum", 0.0)),
        lag_events=_labelled(metrics.consumer_lag_events, "consumer"),
        lag_s=_labelled(metrics.consumer_lag_seconds, "consumer"),
        relay_pending=_labelled(metrics.relay_pending, "webhook"),
        relay_oldest_s=_labelled(metrics.relay_oldest_pending, "webhook"),
        relayed=_buckets(metrics.delivery, via="webhook"),
        database_bytes=database_bytes,
    )


def figures(older: Sample, newer: Sample) -> dict[str, float | None]:
    """Return each of FIGURES for the time between two samples; None where nothing happened."""
    seconds = max(newer.time_s - older.time_s, 0.001)
    delivery = between(older.delivery, newer.delivery)
    delay = between(older.delay, newer.delay)
    relayed = between(older.relayed, newer.relayed)
    commits, events = (b - a for a, b in zip(older.batches, newer.batches, strict=True))
    return {
        "events_per_s": _rate(older.head, newer.head, seconds),
        "streamed_per_s": (newer.streamed - older.streamed) / seconds,
        "duplicates_per_s": rise(older, newer, "duplicate") / seconds,
        "signature_failures_per_s": rise(older, newer, "bad_signature") / seconds,
        "delivery_p50_s": percentile(delivery, 50),
        "delivery_p95_s": percentile(delivery, 95),
        "delivery_p99_s": percentile(delivery, 99),
        "source_delay_p50_s": percentile(delay, 50),
        "source_delay_p95_s": percentile(delay, 95),
        "append_p99_s": percentile(between(older.append, newer.append), 99),
        "append_batch_events": events / commits if commits else None,
        "subscribers": newer.subscribers,
        "consumer_lag_events": max(newer.lag_events.values(), default=0.0),
        "consumer_lag_s": max(newer.lag_s.values(), default=0.0),
        "relay_pending": sum(newer.relay_pending.values()),
        "relay_oldest_s": max(newer.relay_oldest_s.values(), default=0.0),
        "relay_delivery_p50_s": percentile(relayed, 50),
        "relay_delivery_p95_s": percentile(relayed, 95),
        "relay_delivery_p99_s": percentile(relayed, 99),
        "database_bytes": newer.database_bytes,
    }


def rise(older: Sample, newer: Sample, outcome: str, source: str | None = None) -> float:
    """Return how many calls had an outcome between two samples, of one source or of all."""
    return sum(
        count - older.received.get(key, 0.0)
        for key, count in newer.received.items()
        if key[1] == outcome and source in (None, key[0])
    )


def _rate(older: float | None, newer: float | None, seconds: float) -> float | None:
    """Return the rise a second; None while the log was not read, 0 where it was replaced."""
    return None if older is None or newer is None else max(0.0, newer - older) / seconds


def _value(metric: Collector) -> float:
    return next(iter(_labelled(metric).values()), 0.0)


def _labelled(metric: Collector, *labels: str) -> Labelled:
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for family in metric.collect()
        for sample in family.samples
    }


def _values(metric: Collector) -> dict[str, float]:
    """Map the ends of a histogram's series, `_count` and `_sum`, to their values."""
    return {
        sample.name.removeprefix(family.name): sample.value
        for family in metric.collect()
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def _buckets(metric: Collector, **labels: str) -> Buckets:
    """Return the buckets of a histogram, or of its one series with these labels."""
    return tuple(
        (float(sample.labels["le"]), sample.value)
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith("_bucket") and labels.items() <= sample.labels.items()
    )
