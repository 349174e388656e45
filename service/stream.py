"""`GET /stream`: the log as server-sent events, from where the reader stands, for ever.

A subscriber is a cursor. While it is within the window it takes the chunk that all at its place
share; below the window it reads pages of the log; positions are dense, so the two meet without a
seam. All that can happen to a stream is in `_follow`, one loop.
"""

import asyncio
import logging
import random
import time
from dataclasses import replace

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from service.auth import Caller, Tokens, bearer_token
from service.catchup import CatchUp
from service.config import Settings
from service.cursor import (
    FILTER_PARAMS,
    START_PARAMS,
    Live,
    Params,
    Wish,
    parse_begin,
    parse_query,
    parse_wish,
    resolve,
    single,
)
from service.errors import (
    LogDamaged,
    LogDiverged,
    LogUnavailable,
    PositionAhead,
    PositionPruned,
    Problem,
)
from service.event import checkpoint_block
from service.filter import Filter
from service.hub import Hub, Subscriber
from service.lease import Hold
from service.metrics import Metrics
from service.readable import ReadableLog
from service.turn import PARAMS as TURN_PARAMS
from service.turn import Turn, Turns
from service.window import Chunk, View, Window
from service.writer import HEARTBEAT, Writer

log = logging.getLogger("causeway.stream")

PARAMS = FILTER_PARAMS | START_PARAMS | TURN_PARAMS | {"control", "format", "access_token"}
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx and its kin would hold events back
]
RETRY_MS = (1000, 5000)  # a client's wait before it reconnects, spread so that they do not herd
LOG_RETRY_S = 1.0


class Stream:
    """The endpoint; raw ASGI, because it lives as long as its client."""

    def __init__(
        self,
        settings: Settings,
        eventlog: ReadableLog,
        window: Window,
        hub: Hub,
        tokens: Tokens,
        turns: Turns,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._eventlog = eventlog
        self._window = window
        self._hub = hub
        self._tokens = tokens
        self._turns = turns
        self._metrics = metrics
        self._catching_up = CatchUp(eventlog)
        self._clock = asyncio.get_running_loop().time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        params = parse_query(scope["query_string"], PARAMS)
        caller = await self._tokens.authenticate(
            bearer_token(scope["headers"]), "stream", query_token=single(params, "access_token")
        )
        await self.serve(caller, params, scope, receive, send)

    async def serve(
        self, caller: Caller, params: Params, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Stream to a caller who is known already: the dashboard's have a session."""
        position, wish, turn = await self._parse(scope, caller, params)
        headers = _headers(wish.filter)
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        ways = scope["extensions"]
        subscriber = self._hub.admit(caller, position, ways["causeway.abort"])
        watcher = asyncio.create_task(_watch(receive, subscriber))
        writer = Writer(send, ways["causeway.write"], subscriber, self._clock, wish.has_control)
        try:
            if turn is not None:
                headers = [*headers, *await self._turns.take_now(subscriber, turn)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            view = self._window.view(wish.filter, is_cloudevents=wish.is_cloudevents)
            await self._follow(subscriber, view, writer, turn)
        except Problem:
            subscriber.close("refused")
            raise
        finally:
            watcher.cancel()
            self._hub.release(subscriber)
            if subscriber.hold is not None:
                await self._turns.release(subscriber.hold)

    async def _parse(
        self, scope: Scope, caller: Caller, params: Params
    ) -> tuple[int, Wish, Turn | None]:
        """Return where to begin (-1 until a consumer's lease says it), what, as which consumer."""
        wish = parse_wish(params, caller.limits)
        last_event_id = Headers(scope=scope).get("last-event-id")
        is_head = scope["method"] == "HEAD"  # changes nothing: it acknowledges nothing either
        turn = await self._turns.find(params, None if is_head else last_event_id, caller)
        if turn is not None:
            position = -1
            wish = replace(wish, filter=turn.filter.intersect(caller.limits))
        else:
            begin = parse_begin(params, last_event_id, Live())
            position = await resolve(begin, self._eventlog, self._window)
        if self._window.position < 0:
            raise LogUnavailable("this process does not follow the log yet, or not any more")
        return position, wish, turn

    async def _follow(
        self, subscriber: Subscriber, view: View, writer: Writer, turn: Turn | None
    ) -> None:
        """Everything that can happen to a stream, until it ends."""
        window = self._window
        await writer.write(await self._opening(subscriber))
        if turn is not None:
            await self._turns.stand_by(subscriber, turn, writer)
        while subscriber.closing is None:
            if subscriber.is_heartbeat_due:
                await self._beat(subscriber, writer)
            elif subscriber.hold is not None and not subscriber.hold.is_good(self._clock()):
                await self._pause(subscriber, subscriber.hold)
            elif subscriber.position >= window.position:
                await self._idle(subscriber, view, writer)
            elif window.holds(subscriber.position):
                await self._deliver(subscriber, view.chunk(subscriber.position), writer)
            else:
                await self._catch_up(subscriber, view, writer)
        await self._end(subscriber, writer)

    async def _pause(self, subscriber: Subscriber, hold: Hold) -> None:
        """The lease is lost, or could not be renewed: send nothing more that may be another's."""
        if hold.is_lost:
            subscriber.close("lease_lost")
        else:
            await subscriber.wait(self._window)

    async def _opening(self, subscriber: Subscriber) -> bytes:
        """First bytes at once: they flush the headers, and say where the stream stands."""
        retry = b"retry: %d\n\n" % random.randint(*RETRY_MS)  # noqa: S311
        opening = b": causeway\n" + retry
        if subscriber.is_standing_by:
            return opening
        return opening + await self._checkpoint(subscriber)

    async def _beat(self, subscriber: Subscriber, writer: Writer) -> None:
        """Break a silence: move the client's id if events went by that it did not want."""
        subscriber.is_heartbeat_due = False
        moved = subscriber.position != subscriber.id_position
        await writer.write(await self._checkpoint(subscriber) if moved else HEARTBEAT)

    async def _idle(self, subscriber: Subscriber, view: View, writer: Writer) -> None:
        if not subscriber.is_live and subscriber.position == self._window.position:
            subscriber.is_live = True
            await writer.control("caught_up", position=subscriber.position)
            return  # the window may have grown during the write
        await subscriber.wait(self._window, lambda: self._take(subscriber, view, writer))

    def _take(self, subscriber: Subscriber, view: View, writer: Writer) -> bool:
        """Write what has just come straight to the socket; True if that was all there is to do.

        For the many that are live: to wake a task costs more than the write. Whatever is not
        plain (a client that is behind, a checkpoint, more than a chunk) is left to `_follow`.
        """
        position, window, hold = subscriber.position, self._window, subscriber.hold
        if hold is not None and not hold.is_good(self._clock()):
            return False
        if not subscriber.is_live or position >= window.position or not window.holds(position):
            return False
        chunk = view.chunk(position)
        last_id = subscriber.id_position if chunk.sent_to is None else chunk.sent_to
        if chunk.position - last_id >= self._settings.checkpoint_events:
            return False
        if chunk.sent_to is not None:
            if not writer.write_now(chunk.data):
                return False
            self._count(subscriber, chunk)
        self._note(subscriber, chunk)
        subscriber.position, subscriber.link = chunk.position, chunk.link
        subscriber.id_position = last_id
        return chunk.position == window.position

    async def _deliver(self, subscriber: Subscriber, chunk: Chunk, writer: Writer) -> None:
        subscriber.position, subscriber.link = chunk.position, chunk.link
        self._note(subscriber, chunk)
        if chunk.sent_to is not None:
            await writer.write(chunk.data)
            subscriber.id_position = chunk.sent_to
            self._count(subscriber, chunk)
        if subscriber.position - subscriber.id_position >= self._settings.checkpoint_events:
            await writer.write(await self._checkpoint(subscriber))

    def _note(self, subscriber: Subscriber, chunk: Chunk) -> None:
        """Tell a named consumer's hold how far it was sent."""
        if subscriber.hold is not None:
            again = subscriber.hold.note(chunk.position, chunk.positions, chunk.link)
            self._metrics.consumer_redeliveries.inc(again)

    def _count(self, subscriber: Subscriber, chunk: Chunk) -> None:
        self._metrics.stream_events.inc(len(chunk.receipts.times_s))
        receipts = chunk.receipts.since(subscriber.opened_s)
        if receipts.times_s:
            self._metrics.delivery.observe_many("stream", time.time(), receipts)

    async def _catch_up(self, subscriber: Subscriber, view: View, writer: Writer) -> None:
        """Deliver one page of the log; when the database is away, try again until it is back."""
        if subscriber.is_live:
            subscriber.is_live = False
            await writer.control("fell_behind", position=subscriber.position)
        try:
            chunk = await self._catching_up.page(
                subscriber.position, subscriber.link, self._window.position, view
            )
            if chunk is not None:
                await self._deliver(subscriber, chunk, writer)
                return
        except (PositionPruned, LogDiverged, PositionAhead) as error:
            subscriber.close("pruned" if isinstance(error, PositionPruned) else "diverged")
            return
        except LogDamaged as error:
            log.error("hole in the log", extra={"position": error.position})
            subscriber.close("damaged")
            return
        except LogUnavailable as error:
            log.debug("catch-up waits for the database", extra={"reason": error.message})
        await asyncio.sleep(LOG_RETRY_S)

    async def _checkpoint(self, subscriber: Subscriber) -> bytes:
        """Return a block that moves the client's id to where the subscriber stands.

        A heartbeat instead if its link cannot be had now: the id moves another time. What was read
        says the link: the log may be of another history by now.
        """
        position = subscriber.position
        if subscriber.closing == "diverged":
            return HEARTBEAT  # the log's link there is of another history
        try:
            link = subscriber.link or self._window.link_at(position)
            link = link or await self._eventlog.link_at(position)
        except LogUnavailable:
            link = None
        if link is None:
            return HEARTBEAT
        subscriber.id_position, subscriber.link = position, link
        return checkpoint_block(position, link)

    async def _end(self, subscriber: Subscriber, writer: Writer) -> None:
        """Say goodbye, with the last id, to a client that is still there."""
        if subscriber.closing in ("client", "send_timeout"):
            return
        link = self._window.link_at(subscriber.position)
        if link is None or subscriber.is_standing_by or subscriber.closing == "diverged":
            last = b""  # it has no place, or the window's is of another history: no id for it
        else:
            last = checkpoint_block(subscriber.position, link)
        await writer.control("closing", reason=subscriber.closing)
        await writer.write(last, is_last=True)


async def _watch(receive: Receive, subscriber: Subscriber) -> None:
    """Notice that the client has gone: uvicorn's `send` says nothing then."""
    while (await receive())["type"] != "http.disconnect":
        pass
    subscriber.close("client")


def _headers(wanted: Filter) -> list[tuple[bytes, bytes]]:
    """Return the answer's headers; they tell a client whether positions may jump."""
    return HEADERS if wanted.is_everything else [*HEADERS, (b"causeway-filtered", b"true")]
