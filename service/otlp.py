"""Spans to an OpenTelemetry collector, by OTLP over HTTP. The only module that loads the SDK.

The standard `OTEL_*` variables say where to, how much and as whom; the SDK reads them. Its batches
leave in a thread of their own, and a collector that is away costs spans, never an event: they are
counted, and it is logged once that they are lost, and once that they are not any more.
"""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter

from service import __version__
from service.errors import ConfigError
from service.span import Span, first_span_id, trace_id

log = logging.getLogger("causeway.traces")

MAX_QUEUED = 8192
_KINDS = {"server": SpanKind.SERVER, "internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_PROPAGATOR = TraceContextTextMapPropagator()


class Otlp:
    """Takes spans on the event loop, and sends them from a thread."""

    def __init__(self, counter: Counter) -> None:
        """`counter` has the label `outcome`. Raises ConfigError for what the SDK does not take."""
        self._dropped = counter.labels("dropped")
        self._ids = _Ids()
        self._added = 0
        try:
            provider = TracerProvider(
                resource=_resource(), id_generator=self._ids, shutdown_on_exit=False
            )
            self._watched = _Watched(OTLPSpanExporter(), counter)
            self._processor = BatchSpanProcessor(self._watched, max_queue_size=MAX_QUEUED)
        except Exception as error:
            sentence = f"CAUSEWAY_TRACES=true: the OTEL_* settings are refused: {error}"
            raise ConfigError(sentence) from error
        provider.add_span_processor(self._processor)
        self._sampler = provider.sampler
        self._tracer = provider.get_tracer("causeway", __version__)

    def is_sampled(self, trace_id: int) -> bool:
        """Tell whether a trace is kept: as the sampler of `OTEL_TRACES_SAMPLER` says of its id."""
        decision = self._sampler.should_sample(None, trace_id, "event").decision
        return decision is Decision.RECORD_AND_SAMPLE

    def add(self, span: Span) -> None:
        """Take a span of a trace that is kept; never waits."""
        if self._added - self._watched.done >= MAX_QUEUED:
            self._dropped.inc()
            return
        self._added += 1
        self._ids.next_trace, self._ids.next_span = trace_id(span.link), span.span_id
        made = self._tracer.start_span(
            span.name,
            Context() if span.is_first else _within(span.link),
            _KINDS[span.kind],
            dict(span.attributes),
            _links(span.caller),
            span.began_ns,
        )
        if span.error is not None:
            made.set_attribute("error.type", span.error)
            made.set_status(Status(StatusCode.ERROR))
        made.end(span.ended_ns)

    async def close(self, within_s: float) -> None:
        """Send what is left, within this time; what is still under way then is given up."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]
            if not loop.is_closed():
                loop.call_soon_threadsafe(ended.set)

        # A daemon: an executor's thread would hold the process until a dead collector times out.
        threading.Thread(target=shut_down, name="traces-close", daemon=True).start()
        try:
            async with asyncio.timeout(within_s):
                await ended.wait()
        except TimeoutError:
            log.warning("traces given up at the stop", extra={"spans": self.waiting})
            self._watched.shutdown()

    @property
    def waiting(self) -> int:
        """Spans that were taken and have neither arrived nor been lost."""
        return self._added - self._watched.done


class _Ids(IdGenerator):
    """Gives what it was told: our spans know who they are."""

    next_trace = next_span = 0

    def generate_span_id(self) -> int:
        return self.next_span

    def generate_trace_id(self) -> int:
        return self.next_trace


class _Heard(logging.Handler):
    """Keeps the first thing that the SDK says of a batch: the reason in our one line."""

    first = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage()


class _Watched(SpanExporter):
    """The SDK's exporter, and what came of each batch."""

    def __init__(self, inner: SpanExporter, counter: Counter) -> None:
        self._inner = inner
        self._exported, self._failed = counter.labels("exported"), counter.labels("failed")
        self._heard = _Heard()
        self._is_failing = False
        self._is_shut = False
        self.done = 0
        logger = logging.getLogger("opentelemetry")
        logger.handlers, logger.propagate = [self._heard], False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result, self._heard.first = SpanExportResult.FAILURE, ""
        try:
            result = self._inner.export(spans)
        finally:
            is_good = result is SpanExportResult.SUCCESS
            (self._exported if is_good else self._failed).inc(len(spans))
            self.done += len(spans)
            self._report(is_good)
        return result

    def shutdown(self) -> None:
        if not self._is_shut:
            self._is_shut = True
            self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner.force_flush(timeout_millis)

    def _report(self, is_good: bool) -> None:
        if is_good and self._is_failing:
            log.info("traces are exported again")
        elif not is_good and not self._is_failing:
            log.warning("traces are not exported", extra={"reason": self._heard.first})
        self._is_failing = not is_good


def _resource() -> Resource:
    """Return who we are; `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` come first."""
    told = Resource.create()
    ours = {"service.version": __version__, "host.name": socket.gethostname()}
    mine = Resource({**ours, "process.pid": os.getpid()}).merge(told)
    if str(told.attributes[SERVICE_NAME]).startswith("unknown_service"):
        mine = mine.merge(Resource({SERVICE_NAME: "causeway"}))
    return mine


def _within(link: bytes) -> Context:
    """Return what a span of the event is within: its first span, wherever that was made."""
    first = SpanContext(trace_id(link), first_span_id(link), is_remote=True, trace_flags=_SAMPLED)
    return set_span_in_context(NonRecordingSpan(first), Context())


def _links(caller: str | None) -> list[Link]:
    if caller is None:
        return []
    found = _PROPAGATOR.extract({"traceparent": caller}, Context())
    context = get_current_span(found).get_span_context()
    return [Link(context)] if context.is_valid else []
