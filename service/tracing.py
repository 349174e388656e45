"""Traces: what becomes a span, and the look-up that tells which trace it belongs to.

Only with `CAUSEWAY_TRACES`; otherwise there is no `Traces`, and nothing of OpenTelemetry is loaded.
Whoever commits an event hears its position, not its link: `run` looks the links up for many at a
time, after the 200, so that no answer waits for a trace. Every buffer is bounded: what is too much
is dropped and counted. No body, secret, address or token is part of a span.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from service.callback import Answer
from service.delivery import Claimed
from service.errors import ConfigError, LogUnavailable
from service.event import Event, event_id
from service.eventlog import Appended, EventLog, Place
from service.metrics import Metrics
from service.span import Attribute, Span, first_span_id, new_span_id, trace_id, traceparent
from service.verdict import Verdict

MAX_WAITING = 10_000
BATCH = 500
GATHER_S = 0.1
FLUSH_S = 2.0


class Exporter(Protocol):
    """Where spans go."""

    def is_sampled(self, trace_id: int) -> bool:
        """Tell whether a trace is kept: the same in every process with the same settings."""

    def add(self, span: Span) -> None:
        """Take a span of a trace that is kept; never waits."""

    async def close(self, within_s: float) -> None:
        """Send what is left, within this time."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What happened at a position whose link is not known yet."""

    name: str
    position: int
    is_first: bool
    began_ns: int
    ended_ns: int
    attributes: dict[str, Attribute]
    caller: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt of the relay that has begun; `traceparent` goes with its call."""

    link: bytes
    span_id: int
    is_sampled: bool
    began_ns: int

    @property
    def traceparent(self) -> bytes:
        return traceparent(self.link, self.span_id, is_sampled=self.is_sampled)


class Traces:
    """Makes the spans. `run` is a loop for the supervisor."""

    def __init__(self, exporter: Exporter, eventlog: EventLog, metrics: Metrics) -> None:
        self._exporter = exporter
        self._eventlog = eventlog
        self._dropped = metrics.trace_spans.labels("dropped")
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._looking = asyncio.Lock()  # the loop still runs at the stop

    def received(self, appended: Appended, took_s: float, caller: bytes | None) -> None:
        """A call of Bridge, which took `took_s` until now, is answered 200.

        The first call of an event is the trace's first span; a retry is one within it.
        """
        ended_ns = time.time_ns()
        attributes: dict[str, Attribute] = {
            "http.request.method": "POST",
            "http.response.status_code": 200,
            "causeway.duplicate": appended.is_known,
        }
        self._wait(
            _Waiting(
                "receive",
                appended.position,
                not appended.is_known,
                ended_ns - int(took_s * 1e9),
                ended_ns,
                attributes,
                None if caller is None else caller.decode("latin-1"),
            )
        )

    def committed(self, appended: Sequence[Appended], took_s: float) -> None:
        """One commit, which took `took_s` until now, brought these; what was known is no news."""
        ended_ns = time.time_ns()
        began_ns = ended_ns - int(took_s * 1e9)
        attributes: dict[str, Attribute] = {"causeway.batch_events": len(appended)}
        for one in appended:
            if not one.is_known:
                self._wait(_Waiting("append", one.position, False, began_ns, ended_ns, attributes))

    def streamed(self, events: Sequence[Event], took_s: float) -> None:
        """The tail read these and put them before its streams, in `took_s` until now."""
        ended_ns = time.time_ns()
        began_ns = ended_ns - int(took_s * 1e9)
        for event in events:
            if self._exporter.is_sampled(trace_id(event.link)):
                place = Place(event.position, event.link, event.type, event.source)
                attributes = {**_identity(place), "causeway.batch_events": len(events)}
                ids, times = (event.link, new_span_id()), (began_ns, ended_ns)
                self._exporter.add(Span("stream", "internal", *ids, *times, attributes))

    def attempt(self, link: bytes | None) -> Attempt | None:
        """An attempt to deliver the event with this link begins; None: the event is gone."""
        if link is None:
            return None
        is_sampled = self._exporter.is_sampled(trace_id(link))
        return Attempt(link, new_span_id(), is_sampled, time.time_ns())

    def attempted(
        self, attempt: Attempt, claimed: Claimed, answer: Answer, verdict: Verdict
    ) -> None:
        """The attempt has ended. Neither the callback's URL nor its answer becomes part of it."""
        if not attempt.is_sampled:
            return
        attributes: dict[str, Attribute] = {
            "causeway.position": claimed.position,
            "cloudevents.event_id": claimed.id,
            "causeway.webhook": claimed.webhook_id,
            "causeway.attempt": claimed.attempt,
            "causeway.state": verdict.state,
            "http.request.method": "POST",
        }
        if answer.status is not None:
            attributes["http.response.status_code"] = answer.status
        ids = (attempt.link, attempt.span_id)
        times = (attempt.began_ns, time.time_ns())
        self._exporter.add(Span("relay", "client", *ids, *times, attributes, verdict.error))

    async def run(self) -> None:
        """Look up what waits, for ever. Raises LogUnavailable for the supervisor to begin anew."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(GATHER_S)
            await self._look_up()

    async def close(self, within_s: float) -> None:
        """Send what is left, within this time; what cannot be looked up any more is dropped."""
        began = time.monotonic()
        with suppress(TimeoutError, LogUnavailable):
            async with asyncio.timeout(within_s / 2):
                await self._look_up()
        self._dropped.inc(len(self._waiting))
        await self._exporter.close(max(0.0, within_s - (time.monotonic() - began)))

    def _wait(self, waiting: _Waiting) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._dropped.inc()
            return
        self._waiting.append(waiting)
        self._arrived.set()

    async def _look_up(self) -> None:
        async with self._looking:
            while self._waiting:
                batch = list(islice(self._waiting, BATCH))
                found = await self._eventlog.places(sorted({one.position for one in batch}))
                places = {place.position: place for place in found}
                for one in batch:
                    self._waiting.popleft()
                    if place := places.get(one.position):  # pruned, if there is none
                        self._place(one, place)
            self._arrived.clear()

    def _place(self, one: _Waiting, place: Place) -> None:
        if not self._exporter.is_sampled(trace_id(place.link)):
            return
        self._exporter.add(
            Span(
                one.name,
                "server" if one.name == "receive" else "internal",
                place.link,
                first_span_id(place.link) if one.is_first else new_span_id(),
                one.began_ns,
                one.ended_ns,
                {**_identity(place), **one.attributes},
                caller=one.caller,
            )
        )


def _identity(place: Place) -> dict[str, Attribute]:
    return {
        "causeway.position": place.position,
        "cloudevents.event_id": event_id(place.position, place.link),
        "cloudevents.event_type": place.type,
        "cloudevents.event_source": f"/bridge/{place.source}",
    }


def open_traces(stack: AsyncExitStack, eventlog: EventLog, metrics: Metrics) -> Traces:
    """Begin to export; the end of `stack` sends what is left. Raises ConfigError."""
    try:
        from service.otlp import Otlp
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise ConfigError(
            "CAUSEWAY_TRACES=true: OpenTelemetry is not installed: pip install 'causeway[otel]'"
        ) from error
    traces = Traces(Otlp(metrics.trace_spans), eventlog, metrics)
    stack.push_async_callback(traces.close, FLUSH_S)
    return traces
