"""`/dashboard/sources`: who sends, since when, signed with which secret, and what was refused."""

from starlette.requests import Request
from starlette.responses import Response

from service.dashboard.view import render
from service.metrics import Metrics
from service.overview import Overview
from service.sample import read
from service.sources import Sources

# Outcome: what it means for whoever looks, and what to do.
REASONS = {
    "bad_signature": "no signature of ours: not Bridge, or the secret was changed there",
    "not_an_event": "signed, but not a JSON object with a type",
    "address_not_allowed": "the address is not in CAUSEWAY_ALLOWED_IPS",
    "unknown_source": "no secret is known for the source in the path",
    "body_timeout": "the body trickled in too slowly",
    "body_too_large": "longer than CAUSEWAY_BODY_MAX_BYTES",
    "log_unavailable": "Postgres could not commit it; Bridge sends it again",
    "overloaded": "more waited than may; Bridge sends it again",
    "hung_up": "the caller closed the connection",
}


class SourcesPage:
    """The sources."""

    def __init__(self, overview: Overview, sources: Sources, metrics: Metrics) -> None:
        self._overview = overview
        self._sources = sources
        self._metrics = metrics

    async def page(self, request: Request) -> Response:
        """Show every source, and the failures by reason."""
        received = read(self._metrics, 0.0, None, None).received
        names = set(self._sources.names())
        stray = {key[1]: int(n) for key, n in received.items() if key[0] not in names and n}
        return render(
            request,
            "sources.html",
            title="Sources",
            sources=await self._overview.sources(),
            stray=stray,
            reasons=REASONS,
            process=self._overview.stats.process,
        )
