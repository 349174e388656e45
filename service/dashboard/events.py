"""`/dashboard/events`: the live feed, and the log behind it; `/dashboard/stream` feeds it.

The page shows what the log holds now, newest first; its script follows the stream from there, so
that nothing falls between the two. Scrolling to the end asks for the rows before.
"""

from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.cursor import parse_query
from service.dashboard.door import Door, show_problem
from service.dashboard.search import (
    FIELDS,
    Search,
    look_back,
    parse_before,
    parse_search,
    typed_fields,
)
from service.dashboard.view import render
from service.errors import BadRequest, Problem, Unauthenticated
from service.event import event_id
from service.eventlog import Bounds, EventLog
from service.history import History
from service.payloads import EVENTS
from service.stream import Stream

# A view of the stream: no consumer can be held from here, because a GET must change nothing.
STREAM_PARAMS = frozenset({*FIELDS, "after", "format", "control"})
TYPES = ("item.*", "payment.*", *EVENTS, "TEST_EVENT")


class Events:
    """The feed's page, and its further rows."""

    def __init__(self, eventlog: EventLog, history: History) -> None:
        self._eventlog = eventlog
        self._history = history

    async def page(self, request: Request) -> Response:
        """Show the newest events that match, or those before a place or a time."""
        typed = typed_fields(request)
        bounds = await self._eventlog.bounds()
        values: dict[str, Any] = {
            "title": "Events",
            "typed": typed,
            "types": TYPES,
            "bounds": bounds,
        }
        try:
            search = parse_search(typed)
            before = await self._before(search, bounds)
        except BadRequest as error:
            return render(request, "events.html", 400, problem=error, search=None, **values)
        back = await look_back(self._history, search, before, bounds)
        head = event_id(bounds.head_position, bounds.head_link)
        return render(
            request, "events.html", problem=None, search=search, back=back, head=head, **values
        )

    async def rows(self, request: Request) -> Response:
        """Show the rows before a position, and how to get those before them."""
        search = parse_search(typed_fields(request))
        before = parse_before(request.query_params.get("before", ""))
        bounds = await self._eventlog.bounds()
        back = await look_back(self._history, search, before, bounds)
        return render(request, "rows.html", search=search, back=back, bounds=bounds)

    async def _before(self, search: Search, bounds: Bounds) -> int:
        """Return the position before which the page begins."""
        if search.at is None:
            return bounds.head_position + 1
        if isinstance(search.at, datetime):
            return await self._eventlog.find_time(search.at)
        return search.at.position + 1


class Feed:
    """`GET /dashboard/stream`: the stream itself, for a session in place of a token."""

    def __init__(self, stream: Stream, door: Door) -> None:
        self._stream = stream
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            session = await self._door.session(request)
            if session is None:
                raise Unauthenticated("the session is over: log in again")
            params = parse_query(scope["query_string"], STREAM_PARAMS)
        except Problem as problem:
            await show_problem(request, problem)(scope, receive, send)
            return
        await self._stream.serve(session.caller, params, scope, receive, send)
