"""`/dashboard`: what is wrong, in words, and the figures of the last hour, day, week or month."""

import hashlib
from dataclasses import dataclass

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.alarms import Alarm, find_alarms
from service.dashboard.view import HEADERS, render
from service.errors import BadRequest
from service.eventlog import EventLog
from service.overview import Overview
from service.stats import HOUR, RANGES


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: the figures that are its lines, and what it is called. `kind` spells values."""

    title: str
    kind: str
    figures: tuple[str, ...]
    labels: tuple[str, ...]
    hint: str


CHARTS = (
    Chart("Events", "rate", ("events_per_s",), ("received",), "appended by all replicas"),
    Chart(
        "Received to delivered",
        "seconds",
        ("delivery_p50_s", "delivery_p95_s", "delivery_p99_s"),
        ("p50", "p95", "p99"),
        "from the receipt to a subscriber's socket",
    ),
    Chart(
        "Source delay",
        "seconds",
        ("source_delay_p50_s", "source_delay_p95_s"),
        ("p50", "p95"),
        "from Bridge's own timestamp to the receipt",
    ),
    Chart(
        "Signature failures",
        "rate",
        ("signature_failures_per_s",),
        ("refused",),
        "not Bridge's, or a changed secret",
    ),
    Chart("Duplicates", "rate", ("duplicates_per_s",), ("known",), "calls that Bridge sent again"),
    Chart(
        "Append",
        "seconds",
        ("append_p99_s",),
        ("p99",),
        "from a verified event to its commit",
    ),
    Chart("Append batch", "number", ("append_batch_events",), ("events",), "events in one commit"),
    Chart("Subscribers", "number", ("subscribers",), ("streams",), "open streams of this process"),
    Chart(
        "Streamed",
        "rate",
        ("streamed_per_s",),
        ("events",),
        "events written to subscribers",
    ),
    Chart(
        "Consumer lag",
        "number",
        ("consumer_lag_events",),
        ("events",),
        "of the named consumer that is furthest behind",
    ),
    Chart(
        "Relay backlog",
        "number",
        ("relay_pending",),
        ("events",),
        "pending for all outgoing webhooks",
    ),
    Chart(
        "Relay delivery",
        "seconds",
        ("relay_delivery_p50_s", "relay_delivery_p95_s", "relay_delivery_p99_s"),
        ("p50", "p95", "p99"),
        "from the receipt to a callback's answer",
    ),
    Chart("Database", "bytes", ("database_bytes",), ("size",), "the whole database on disk"),
)
COUNTS = Chart("Events", "number", ("events",), ("received",), "appended by all replicas")


class Home:
    """The overview."""

    def __init__(self, overview: Overview, eventlog: EventLog) -> None:
        self._overview = overview
        self._eventlog = eventlog

    async def page(self, request: Request) -> Response:
        """Show the whole page."""
        range_ = _range(request)
        alarms = find_alarms(await self._overview.situation())
        return render(
            request,
            "home.html",
            title="Overview",
            alarms=alarms,
            seen=_digest(alarms),
            charts=CHARTS if range_ == HOUR else (COUNTS,),
            range=range_,
            ranges=(HOUR, *RANGES),
            process=self._overview.stats.process,
        )

    async def alarms(self, request: Request) -> Response:
        """Show what is wrong now; nothing if it is what the page shows already."""
        alarms = find_alarms(await self._overview.situation())
        seen = _digest(alarms)
        if request.query_params.get("seen") == seen:
            return Response(status_code=204, headers=HEADERS)
        return render(request, "alarms.html", alarms=alarms, seen=seen)

    async def stats(self, request: Request) -> Response:
        """Answer the figures for the charts: as `/api/stats`, from a moment on."""
        range_ = _range(request)
        stats = self._overview.stats
        if range_ == HOUR:
            shown = stats.hour(_after(request))
        else:
            shown = await stats.counts(range_)
        return Response(orjson.dumps(shown), 200, HEADERS, "application/json")


def _range(request: Request) -> str:
    range_ = request.query_params.get("range", HOUR)
    if range_ not in (HOUR, *RANGES):
        raise BadRequest(f"range={range_[:32]!r}: one of hour, {', '.join(RANGES)} was expected")
    return range_


def _after(request: Request) -> float:
    try:
        return float(request.query_params.get("after", "0"))
    except ValueError:
        raise BadRequest("after: a Unix time was expected") from None


def _digest(alarms: list[Alarm]) -> str:
    """Return what tells one list from another: an unchanged one must not be read out again."""
    return hashlib.sha256(repr(alarms).encode()).hexdigest()[:16]
