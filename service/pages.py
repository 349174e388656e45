"""`GET /events` and `GET /events/{position}`: the log as pages of CloudEvents, and one event.

For readers that poll. A page says where to go on (`last_id`), also when nothing matched; `wait`
holds the answer back until there is something. Spellings by `Accept`: JSON with an envelope, a
CloudEvents batch, or NDJSON; one event also as Bridge's exact bytes.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from service.answer import Paced
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
    TooManyPages,
)
from service.event import GENESIS_POSITION, Event, cloudevent_json, event_id, one_line
from service.eventlog import EventLog, Page
from service.filter import Filter, Filterable
from service.window import Window

PARAMS = FILTER_PARAMS | START_PARAMS | {"limit", "wait"}
DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
MAX_WAIT_S = 60
SEARCH_S = 10.0  # for a match: proxies and clients give up on an answer that takes much longer
PAGE_BYTES = 1024 * 1024
OPEN_MAX = 200  # calls of a token: each may hold a page that its client does not read
JSON, BATCH, NDJSON = (
    "application/json",
    "application/cloudevents-batch+json",
    "application/x-ndjson",
)
CLOUDEVENT, BYTES = "application/cloudevents+json", "application/octet-stream"
_NUMBER = re.compile(r"[0-9]{1,9}")


class _Bell:
    """Waits for the window to grow, or for the client to go, until a deadline."""

    def __init__(self, receive: Receive, wait_s: float) -> None:
        self._receive = receive
        self._clock = asyncio.get_running_loop().time
        self.deadline = self._clock() + wait_s
        self._rung = asyncio.Event()
        self.is_client_gone = False

    def wake(self) -> None:
        self._rung.set()

    @property
    def is_over(self) -> bool:
        """True past the deadline."""
        return self._clock() >= self.deadline

    async def wait(self) -> None:
        """Return when it has rung, or at the deadline; it can ring again then."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self.deadline):
                await self._rung.wait()
        self._rung.clear()

    async def watch(self) -> None:
        """Ring when the client has gone: it must not count as one that waits."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_client_gone = True
        self.wake()


class Pages:
    """The two endpoints."""

    def __init__(
        self, eventlog: EventLog, window: Window, tokens: Tokens, send_timeout_s: float
    ) -> None:
        self._eventlog = eventlog
        self._window = window
        self._tokens = tokens
        self._send_timeout_s = send_timeout_s
        self._open: Counter[str] = Counter()
        self._clock = asyncio.get_running_loop().time

    async def list_events(self, request: Request) -> Response:
        """Answer one page of events, oldest first."""
        caller = await self._authenticate(request)
        params = parse_query(request.scope["query_string"], PARAMS)
        media_type = negotiate(request.headers.get("accept"), (JSON, BATCH, NDJSON))
        filter_ = parse_filter(params).intersect(caller.limits)
        limit = _number(params, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
        bell = _Bell(request.receive, _number(params, "wait", 0, 0, MAX_WAIT_S))
        begin = parse_begin(params, request.headers.get("last-event-id"), Start())
        with ExitStack() as stack:
            stack.enter_context(self._opened(caller))
            position = await resolve(begin, self._eventlog, self._window)
            digits = begin.link_digits if isinstance(begin, Place) else None
            page = await self._read(position, digits, filter_, limit, bell)
            headers = {"causeway-last-id": await self._last_id(page), "cache-control": "no-store"}
            body = _spell(page.events, headers["causeway-last-id"], media_type)
            return self._paced(body, headers, media_type, stack.pop_all())

    async def get_event(self, request: Request) -> Response:
        """Answer one event, by its position or its id."""
        caller = await self._authenticate(request)
        parse_query(request.scope["query_string"], ())
        media_type = negotiate(request.headers.get("accept"), (CLOUDEVENT, JSON, BYTES))
        place = parse_place(request.path_params["position"], "position")
        with ExitStack() as stack:
            stack.enter_context(self._opened(caller))
            event = await self._find(place, caller)
            body = event.body if media_type == BYTES else cloudevent_json(event)
            headers = {"causeway-id": event.id, "cache-control": "private, immutable"}
            return self._paced(body, headers, media_type, stack.pop_all())

    async def _find(self, place: Place, caller: Caller) -> Event:
        """Return an event that the caller may see. Raises what is wrong with it, or NotFound."""
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
        return events[0]

    @contextmanager
    def _opened(self, caller: Caller) -> Iterator[None]:
        """Count a call until its answer is read. Raises TooManyPages past the cap."""
        if self._open[caller.name] >= OPEN_MAX:
            raise TooManyPages(
                f"this token has {OPEN_MAX} calls for events open, as many as it may"
            )
        self._open[caller.name] += 1
        try:
            yield
        finally:
            self._open[caller.name] -= 1
            if not self._open[caller.name]:
                del self._open[caller.name]

    def _paced(
        self,
        body: bytes,
        headers: dict[str, str],
        media_type: str,
        held: AbstractContextManager[object],
    ) -> Response:
        return Paced(body, headers, media_type, held, self._send_timeout_s)

    async def _authenticate(self, request: Request) -> Caller:
        return await self._tokens.authenticate(bearer_token(request.scope["headers"]), "stream")

    async def _read(
        self, position: int, digits: str | None, filter_: Filter, limit: int, bell: _Bell
    ) -> Page:
        """Read until there is an event, or until the log's end and the bell's deadline.

        A search that takes longer than SEARCH_S ends where it is. What is read must be of the
        history that the reader has read: `digits` are those of the link at `position`, None if it
        did not say. Raises LogDiverged, PositionAhead or PositionPruned.
        """
        search_until = max(bell.deadline, self._clock() + SEARCH_S)
        matches = filter_.matcher()
        while True:
            self._window.add_waiter(bell)
            try:
                page = await self._read_once(position, filter_, limit)
                link = await self._eventlog.check(position, digits)  # after the read
                is_at_end = page.scanned_to == position
                if page.events or self._clock() >= (bell.deadline if is_at_end else search_until):
                    return page
                if is_at_end:
                    if self._window.is_closing or bell.is_client_gone:
                        return page
                    position, link = await self._pass(position, link, matches, bell)
                else:
                    position = page.scanned_to
                    link = await self._eventlog.check(position, None)
                digits = link.hex()
            finally:
                self._window.remove_waiter(bell)

    async def _pass(
        self, position: int, link: bytes, matches: Callable[[Filterable], bool], bell: _Bell
    ) -> tuple[int, bytes]:
        """Wait for the window to have a match, or for the deadline; return where to read on.

        And the link there, in the history that the reader has read: where the window has another
        one, or lacks the place, the log is asked. Whoever waits for what is rare costs the database
        nothing meanwhile.
        """
        window = self._window
        watching = asyncio.create_task(bell.watch(), name="page")
        try:
            while True:
                await bell.wait()
                if window.link_at(position) != link or bell.is_client_gone:
                    return position, link
                for frame in window.frames_after(position):
                    if matches(frame.event):
                        return position, link
                    position, link = frame.event.position, frame.event.link
                if window.is_closing or bell.is_over:
                    return position, link
                window.add_waiter(bell)
        finally:
            watching.cancel()

    async def _read_once(self, position: int, filter_: Filter, limit: int) -> Page:
        head = (await self._eventlog.bounds()).head_position
        if head <= position:
            return Page([], position)
        return await self._eventlog.read_matching(
            position, head, filter_, limit=limit, max_bytes=PAGE_BYTES
        )

    async def _last_id(self, page: Page) -> str:
        link = await self._eventlog.link_at(page.scanned_to)
        if link is None:
            raise LogUnavailable("the log is changing under this read; try again")
        return event_id(page.scanned_to, link)


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
