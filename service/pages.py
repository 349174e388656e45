"""`GET /events` and `GET /events/{position}`: the log as pages of CloudEvents, and one event.

For readers that poll. A page says where to go on (`last_id`), also when nothing matched; `wait`
holds the answer back until there is something. Spellings by `Accept`: JSON with an envelope, a
CloudEvents batch, or NDJSON; one event also as Bridge's exact bytes.
"""

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.auth import Caller, Tokens, bearer_token
from service.cursor import (
    FILTER_PARAMS,
    START_PARAMS,
    Params,
    Place,
    Start,
    parse_begin,
    parse_filter,
    parse_place,
    parse_query,
    resolve,
    single,
)
from service.errors import (
    BadRequest,
    Erased,
    LogUnavailable,
    NotAcceptable,
    NotFound,
    PositionAhead,
)
from service.event import GENESIS_POSITION, Event, cloudevent_json, event_id, one_line
from service.eventlog import EventLog, Page
from service.filter import Filter
from service.window import Window

PARAMS = FILTER_PARAMS | START_PARAMS | {"limit", "wait"}
DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
MAX_WAIT_S = 60
SEARCH_S = 10.0  # for a match: proxies and clients give up on an answer that takes much longer
PAGE_BYTES = 4 * 1024 * 1024
JSON, BATCH, NDJSON = (
    "application/json",
    "application/cloudevents-batch+json",
    "application/x-ndjson",
)
CLOUDEVENT, BYTES = "application/cloudevents+json", "application/octet-stream"
_NUMBER = re.compile(r"[0-9]{1,9}")


class _Bell:
    """Waits for the window to grow."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def wake(self) -> None:
        self._rung.set()

    async def wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rung.wait()


class Pages:
    """The two endpoints."""

    def __init__(self, eventlog: EventLog, window: Window, tokens: Tokens) -> None:
        self._eventlog = eventlog
        self._window = window
        self._tokens = tokens
        self._clock = asyncio.get_running_loop().time

    async def list_events(self, request: Request) -> Response:
        """Answer one page of events, oldest first."""
        caller = await self._authenticate(request)
        params = parse_query(request.scope["query_string"], PARAMS)
        media_type = negotiate(request.headers.get("accept"), (JSON, BATCH, NDJSON))
        filter_ = parse_filter(params).intersect(caller.limits)
        limit = _number(params, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
        deadline = self._clock() + _number(params, "wait", 0, 0, MAX_WAIT_S)
        begin = parse_begin(params, request.headers.get("last-event-id"), Start())
        position = await resolve(begin, self._eventlog, self._window)
        digits = begin.link_digits if isinstance(begin, Place) else None
        page = await self._read(position, digits, filter_, limit, deadline)
        return await self._answer(page, media_type)

    async def get_event(self, request: Request) -> Response:
        """Answer one event, by its position or its id."""
        caller = await self._authenticate(request)
        parse_query(request.scope["query_string"], ())
        media_type = negotiate(request.headers.get("accept"), (CLOUDEVENT, JSON, BYTES))
        place = parse_place(request.path_params["position"], "position")
        # One text for all: nobody learns whether there is one that their token may not see.
        missing = NotFound(f"there is no event at position {place.position}, or not for this token")
        if place.position == GENESIS_POSITION:
            raise missing
        try:
            await self._eventlog.check(place.position, place.link_digits)
        except PositionAhead as error:
            raise missing from error
        events = await self._eventlog.read_after(place.position - 1, limit=1, head=place.position)
        if not events or events[0].position != place.position:
            await self._eventlog.check_kept(place.position - 1)
            raise missing
        if not caller.limits.matcher()(events[0]):
            raise missing
        if events[0].is_erased:
            raise Erased(
                f"the body of the event at position {place.position} was erased",
                position=place.position,
            )
        body = events[0].body if media_type == BYTES else cloudevent_json(events[0])
        headers = {"causeway-id": events[0].id, "cache-control": "private, immutable"}
        return Response(body, media_type=media_type, headers=headers)

    async def _authenticate(self, request: Request) -> Caller:
        return await self._tokens.authenticate(bearer_token(request.scope["headers"]), "stream")

    async def _read(
        self, position: int, digits: str | None, filter_: Filter, limit: int, deadline: float
    ) -> Page:
        """Read until there is an event, or until the log's end and the deadline.

        A search that takes longer than SEARCH_S ends where it is. What is read must be of the
        history that the reader has read: `digits` are those of the link at `position`, None if it
        did not say. Raises LogDiverged, PositionAhead or PositionPruned.
        """
        search_until = max(deadline, self._clock() + SEARCH_S)
        while True:
            bell = _Bell()
            self._window.add_waiter(bell)
            try:
                page = await self._read_once(position, filter_, limit)
                link = await self._eventlog.check(position, digits)  # after the read
                is_at_end = page.scanned_to == position
                left = (deadline if is_at_end else search_until) - self._clock()
                if page.events or left <= 0:
                    return page
                if is_at_end:
                    if self._window.is_closing:
                        return page
                    await bell.wait(left)
                else:
                    position = page.scanned_to
                    link = await self._eventlog.check(position, None)
                digits = link.hex()
            finally:
                self._window.remove_waiter(bell)

    async def _read_once(self, position: int, filter_: Filter, limit: int) -> Page:
        head = (await self._eventlog.bounds()).head_position
        if head <= position:
            return Page([], position)
        return await self._eventlog.read_matching(
            position, head, filter_, limit=limit, max_bytes=PAGE_BYTES
        )

    async def _answer(self, page: Page, media_type: str) -> Response:
        link = await self._eventlog.link_at(page.scanned_to)
        if link is None:
            raise LogUnavailable("the log is changing under this read; try again")
        last_id = event_id(page.scanned_to, link)
        headers = {"causeway-last-id": last_id, "cache-control": "no-store"}
        return Response(_spell(page.events, last_id, media_type), 200, headers, media_type)


def negotiate(accept: str | None, offered: Sequence[str]) -> str:
    """Return the media type to answer with: the first offered of the client's best choices.

    RFC 9110, 12.5.1. Raises NotAcceptable naming what is offered.
    """
    if not accept:
        return offered[0]
    choices: list[tuple[float, str]] = []
    for part in accept.split(",")[:20]:
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            choices.append((float(quality), media_type))
        except ValueError:
            continue
    for weight, choice in sorted(choices, key=lambda item: -item[0]):
        for media_type in offered:
            if weight > 0 and choice in (media_type, f"{media_type.split('/')[0]}/*", "*/*"):
                return media_type
    raise NotAcceptable(f"Accept may name {', '.join(offered)}")


def _spell(events: list[Event], last_id: str, media_type: str) -> bytes:
    if media_type == NDJSON:
        return b"".join(one_line(cloudevent_json(event)) + b"\n" for event in events)
    array = b"[" + b",".join(cloudevent_json(event) for event in events) + b"]"
    if media_type == BATCH:
        return array
    return b'{"last_id":' + orjson.dumps(last_id) + b',"events":' + array + b"}"


def _number(params: Params, name: str, default: int, low: int, high: int) -> int:
    text = single(params, name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text) or not low <= int(text) <= high:
        raise BadRequest(f"{name}={text[:32]!r}: a number from {low} to {high} was expected")
    return int(text)
