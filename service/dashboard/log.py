"""`/dashboard/log`: where the log begins and ends, its checkpoint, and its audit."""

from starlette.requests import Request
from starlette.responses import Response

from service.audits import Audits
from service.dashboard.door import one
from service.dashboard.view import render
from service.eventlog import EventLog
from service.history import History


class LogPage:
    """The log as a whole."""

    def __init__(self, eventlog: EventLog, history: History, audits: Audits) -> None:
        self._eventlog = eventlog
        self._history = history
        self._audits = audits

    async def page(self, request: Request) -> Response:
        """Show the log's ends, and the audit."""
        bounds = await self._eventlog.bounds()
        return render(
            request,
            "log.html",
            title="Log",
            bounds=bounds,
            checkpoint=f"{bounds.head_position}.{bounds.head_link.hex()}",
            database_bytes=await self._history.database_bytes(),
            audit=self._audits.state,
        )

    async def start_audit(self, request: Request) -> Response:
        """Begin an audit, against an earlier checkpoint if one was given."""
        self._audits.start(one(request.scope["form"], "checkpoint").strip() or None)
        return self._show(request)

    async def audit(self, request: Request) -> Response:
        """Show how far the audit is."""
        return self._show(request)

    def _show(self, request: Request) -> Response:
        return render(request, "audit.html", audit=self._audits.state)
