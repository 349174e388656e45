"""Every metric, declared once. Names are stable; base units; label sets are closed.

One `Metrics` is one registry: a process has one, and each test its own. Hot paths use children that
are bound here, and the `DeliveryHistogram` of `latency.py`.
"""

import asyncio
from collections.abc import Callable

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

from service.latency import LONG_BUCKETS_S, SHORT_BUCKETS_S, DeliveryHistogram
from service.mirror_metrics import MirrorMetrics
from service.upkeep_metrics import UpkeepMetrics

BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

OUTCOMES = (
    *("accepted", "duplicate", "not_an_event", "bad_signature", "address_not_allowed"),
    *("unknown_source", "body_timeout", "body_too_large", "log_unavailable", "overloaded"),
    *("hung_up",),
)
CUT_REASONS = ("slow", "crowded", "refused")
CLOSE_REASONS = (
    *("client", "drain", "max_age", "send_timeout", "token", "diverged", "pruned", "damaged"),
    *("lease_lost", "consumer_gone", "refused", "error"),
)
LOGINS = ("good", "bad", "slowed")

# How an attempt of the relay ends: an answer's class, what went wrong before there was one, or a
# fault of ours.
ATTEMPT_OUTCOMES = (
    *("success", "redirect", "client_error", "gone", "throttled", "server_error"),
    *("address_denied", "dns", "refused", "tls", "timeout", "connection", "protocol"),
    *("event_gone", "internal"),
)
SPAN_OUTCOMES = ("exported", "failed", "dropped")
DISABLED_REASONS = ("gone", "failing", "log_diverged", "position_pruned")

# A second series for each counter, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """All metrics of one process, in one registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._declare_receive()
        self._declare_log()
        self._declare_stream()
        self._declare_consumers()
        self._declare_dashboard()
        self._declare_relay()
        self._declare_traces()
        self.upkeep = UpkeepMetrics(self.registry)
        self._declare_connections()
        self.mirror = MirrorMetrics(self.registry)
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
            "From Bridge's own timestamp to the receipt; its test event (of 2021) is left out.",
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
            "that was there when it was received, or acknowledged or given up by a webhook (a "
            "replay of history is not a delay).",
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

    def _declare_relay(self) -> None:
        self.relay_attempts = Counter(
            "causeway_relay_attempts_total",
            "Calls of callbacks by how they ended.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in ATTEMPT_OUTCOMES:
            self.relay_attempts.labels(outcome)
        self.relay_exhausted = Counter(
            "causeway_relay_exhausted_total",
            "Deliveries given up after their last attempt: kept, to be replayed.",
            registry=self.registry,
        )
        self.relay_disabled = Counter(
            "causeway_relay_disabled_total",
            "Webhooks that the relay disabled, by reason: a person must act.",
            ["reason"],
            registry=self.registry,
        )
        for reason in DISABLED_REASONS:
            self.relay_disabled.labels(reason)
        self.relay_in_flight = Gauge(
            "causeway_relay_in_flight",
            "Calls of callbacks that are open, or whose result is not written down yet.",
            registry=self.registry,
        )
        self._declare_backlog()

    def _declare_backlog(self) -> None:
        """What is known of each webhook from the database, the same in every process."""
        self.relay_pending = Gauge(
            "causeway_relay_pending",
            "Deliveries that a webhook is owed, those still in the log included.",
            ["webhook"],
            registry=self.registry,
        )
        self.relay_oldest_pending = Gauge(
            "causeway_relay_oldest_pending_seconds",
            "Time since the receipt of the oldest event that a webhook is owed.",
            ["webhook"],
            registry=self.registry,
        )
        self.relay_circuit_open = Gauge(
            "causeway_relay_circuit_open",
            "1 while a webhook's callback fails and gets one probe at a time.",
            ["webhook"],
            registry=self.registry,
        )
        self.relay_orphans = Gauge(
            "causeway_relay_orphans",
            "Events that a webhook was owed and that have no delivery: anything but 0 is a defect.",
            ["webhook"],
            registry=self.registry,
        )

    def _declare_traces(self) -> None:
        self.trace_spans = Counter(
            "causeway_trace_spans_total",
            "Spans by what came of them: exported, failed (the collector took them not), dropped "
            "(there were too many).",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in SPAN_OUTCOMES:
            self.trace_spans.labels(outcome)

    def watch_tasks(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report how many tasks `loop` has."""
        tasks = Gauge(
            "causeway_tasks",
            "Tasks of the event loop: two for each stream, one for each open call, and the loops.",
            registry=self.registry,
        )
        tasks.set_function(lambda: len(asyncio.all_tasks(loop)))

    def _declare_connections(self) -> None:
        self.connections = Gauge(
            "causeway_connections", "Open connections of callers.", registry=self.registry
        )
        self.connections_cut = Counter(
            "causeway_connections_cut_total",
            "Connections ended by us: idle or slow, making room, or no request that can be read.",
            ["reason"],
            registry=self.registry,
        )
        for reason in CUT_REASONS:
            self.connections_cut.labels(reason)

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
