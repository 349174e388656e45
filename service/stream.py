"""`GET /stream`: the log as server-sent events, from where the reader stands, for ever.

A subscriber is a cursor. While it is within the window it takes the chunk that all at its place
share; below the window it reads pages of the log; positions are dense, so the two meet without a
seam. All that can happen to a stream is in `_follow`, one loop.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from service.auth import Tokens, bearer_token
from service.config import Settings
from service.cursor import (
    FILTER_PARAMS,
    START_PARAMS,
    Live,
    Params,
    parse_begin,
    parse_filter,
    parse_query,
    resolve,
    single,
)
from service.errors import BadRequest, LogDamaged, LogUnavailable, PositionPruned
from service.event import checkpoint_block, control_block
from service.eventlog import EventLog
from service.filter import Filter
from service.hub import Hub, Subscriber
from service.metrics import Metrics
from service.window import CHUNK_BYTES, Chunk, Frame, View, Window

log = logging.getLogger("causeway.stream")

PARAMS = FILTER_PARAMS | START_PARAMS | {"control", "format", "access_token"}
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx and its kin would hold events back
]
RETRY_MS = (1000, 5000)  # a client's wait before it reconnects, spread so that they do not herd
LOG_RETRY_S = 1.0
HEARTBEAT = b":\n\n"

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a request asked for, checked."""

    filter: Filter
    is_cloudevents: bool
    has_control: bool


class Stream:
    """The endpoint; raw ASGI, because it lives as long as its client."""

    def __init__(
        self,
        settings: Settings,
        eventlog: EventLog,
        window: Window,
        hub: Hub,
        tokens: Tokens,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._eventlog = eventlog
        self._window = window
        self._hub = hub
        self._tokens = tokens
        self._metrics = metrics
        self._clock = asyncio.get_running_loop().time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        params = parse_query(scope["query_string"], PARAMS)
        caller = await self._tokens.authenticate(
            bearer_token(scope["headers"]), "stream", query_token=single(params, "access_token")
        )
        wish = _parse_wish(params)
        begin = parse_begin(params, headers.get("last-event-id"), Live())
        position = await resolve(begin, self._eventlog, self._window)
        if self._window.position < 0:
            raise LogUnavailable("this process does not follow the log yet, or not any more")
        wanted = wish.filter.intersect(caller.limits)
        start = {"type": "http.response.start", "status": 200, "headers": _headers(wanted)}
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return
        subscriber = self._hub.admit(caller, position, scope["extensions"]["causeway.abort"])
        watcher = asyncio.create_task(_watch(receive, subscriber))
        try:
            view = self._window.view(wanted, is_cloudevents=wish.is_cloudevents)
            await send(start)
            await self._follow(
                subscriber, view, _Writer(send, subscriber, self._clock, wish.has_control)
            )
        finally:
            watcher.cancel()
            self._hub.release(subscriber)

    async def _follow(self, subscriber: Subscriber, view: View, writer: "_Writer") -> None:
        """Everything that can happen to a stream, until it ends."""
        window = self._window
        await writer.write(await self._opening(subscriber))
        while subscriber.closing is None:
            if subscriber.is_heartbeat_due:
                await self._beat(subscriber, writer)
            elif subscriber.position >= window.position:
                await self._idle(subscriber, writer)
            elif window.holds(subscriber.position):
                await self._deliver(subscriber, view.chunk(subscriber.position), writer)
            else:
                await self._catch_up(subscriber, view, writer)
        await self._end(subscriber, writer)

    async def _opening(self, subscriber: Subscriber) -> bytes:
        """First bytes at once: they flush the headers, and say where the stream stands."""
        retry = b"retry: %d\n\n" % random.randint(*RETRY_MS)  # noqa: S311
        return b": causeway\n" + retry + await self._checkpoint(subscriber)

    async def _beat(self, subscriber: Subscriber, writer: "_Writer") -> None:
        """Break a silence: move the client's id if events went by that it did not want."""
        subscriber.is_heartbeat_due = False
        moved = subscriber.position != subscriber.id_position
        await writer.write(await self._checkpoint(subscriber) if moved else HEARTBEAT)

    async def _idle(self, subscriber: Subscriber, writer: "_Writer") -> None:
        if not subscriber.is_live and subscriber.position == self._window.position:
            subscriber.is_live = True
            await writer.control("caught_up", position=subscriber.position)
            return  # the window may have grown during the write
        await subscriber.wait(self._window)

    async def _deliver(self, subscriber: Subscriber, chunk: Chunk, writer: "_Writer") -> None:
        subscriber.position = chunk.position
        if chunk.sent_to is not None:
            await writer.write(chunk.data)
            subscriber.id_position = chunk.sent_to
            self._count(subscriber, chunk)
        if subscriber.position - subscriber.id_position >= self._settings.checkpoint_events:
            await writer.write(await self._checkpoint(subscriber))

    def _count(self, subscriber: Subscriber, chunk: Chunk) -> None:
        self._metrics.stream_events.inc(len(chunk.receipts.times_s))
        receipts = chunk.receipts.since(subscriber.opened_s)
        if receipts.times_s:
            self._metrics.delivery.observe_many("stream", time.time(), receipts)

    async def _catch_up(self, subscriber: Subscriber, view: View, writer: "_Writer") -> None:
        """Deliver one page of the log; when the database is away, try again until it is back."""
        if subscriber.is_live:
            subscriber.is_live = False
            await writer.control("fell_behind", position=subscriber.position)
        try:
            chunk = await self._read(subscriber.position, view)
            if chunk is not None:
                await self._deliver(subscriber, chunk, writer)
                return
        except PositionPruned:
            subscriber.close("pruned")
            return
        except LogDamaged as error:
            log.error("hole in the log", extra={"position": error.position})
            subscriber.close("damaged")
            return
        except LogUnavailable as error:
            log.debug("catch-up waits for the database", extra={"reason": error.message})
        await asyncio.sleep(LOG_RETRY_S)

    async def _read(self, position: int, view: View) -> Chunk | None:
        """Return the log's next page as a chunk, None if there is none yet.

        Raises PositionPruned if events after `position` are gone, LogDamaged at a hole; neither is
        ever passed over in silence.
        """
        if view.filter.is_everything:
            events = await self._eventlog.read_after(position, max_bytes=CHUNK_BYTES)
            scanned_to = 0
        else:
            page = await self._eventlog.read_matching(
                position, self._window.position, view.filter, max_bytes=CHUNK_BYTES
            )
            events, scanned_to = page.events, page.scanned_to
            await self._eventlog.check_kept(position)
        if not events and scanned_to <= position:
            return None
        return view.join((Frame(event) for event in events), scanned_to=scanned_to)

    async def _checkpoint(self, subscriber: Subscriber) -> bytes:
        """Return a block that moves the client's id to where the subscriber stands.

        A heartbeat instead if its link cannot be had now: the id moves another time.
        """
        position = subscriber.position
        try:
            link = self._window.link_at(position) or await self._eventlog.link_at(position)
        except LogUnavailable:
            link = None
        if link is None:
            return HEARTBEAT
        subscriber.id_position = position
        return checkpoint_block(position, link)

    async def _end(self, subscriber: Subscriber, writer: "_Writer") -> None:
        """Say goodbye, with the last id, to a client that is still there."""
        if subscriber.closing in ("client", "send_timeout"):
            return
        link = self._window.link_at(subscriber.position)
        last = b"" if link is None else checkpoint_block(subscriber.position, link)
        await writer.control("closing", reason=subscriber.closing)
        await writer.write(last, is_last=True)


class _Writer:
    """Writes to one client, and tells the hub's pulse since when a write has been hanging."""

    __slots__ = ("_clock", "_has_control", "_send", "_subscriber")

    def __init__(self, send: Send, subscriber: Subscriber, clock: Clock, has_control: bool) -> None:
        self._send = send
        self._subscriber = subscriber
        self._clock = clock
        self._has_control = has_control

    async def write(self, data: bytes, *, is_last: bool = False) -> None:
        """Hand `data` to the socket; waits while the client takes nothing."""
        subscriber = self._subscriber
        subscriber.sending_since = self._clock()
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
        subscriber.sending_since = None
        subscriber.sent_at = self._clock()

    async def control(self, name: str, **values: str | int | None) -> None:
        """Write a control event, if the client asked for them."""
        if self._has_control:
            await self.write(control_block(name, **values))


async def _watch(receive: Receive, subscriber: Subscriber) -> None:
    """Notice that the client has gone: uvicorn's `send` says nothing then."""
    while (await receive())["type"] != "http.disconnect":
        pass
    subscriber.close("client")


def _headers(wanted: Filter) -> list[tuple[bytes, bytes]]:
    """Return the answer's headers; they tell a client whether positions may jump."""
    return HEADERS if wanted.is_everything else [*HEADERS, (b"causeway-filtered", b"true")]


def _parse_wish(params: Params) -> _Wish:
    format_ = single(params, "format") or "bridge"
    if format_ not in ("bridge", "cloudevents"):
        raise BadRequest(f"format={format_[:32]!r}: bridge or cloudevents was expected")
    control = single(params, "control") or "0"
    if control not in ("0", "1"):
        raise BadRequest(f"control={control[:32]!r}: 0 or 1 was expected")
    return _Wish(parse_filter(params), format_ == "cloudevents", control == "1")
