"""Follows the log in its mirror, a JetStream stream; and in Postgres while that is not possible.

The window is filled by one of the two at a time, from where it ends: so nothing is lost, doubled or
reordered by a change. What comes from the stream must follow the window link by link, as what comes
from Postgres must; if it does not, the stream is wrong, and Postgres is asked. An event that the
stream lacks (its message was deleted when a user was erased) is read from Postgres. Postgres is the
truth: now and then it is asked for the log's end, so that a mirror that lags or is dead is noticed.
"""

import asyncio
import logging
import random
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

from service.config import Settings
from service.errors import (
    ConfigError,
    LogUnavailable,
    MirrorUnavailable,
    Misfit,
    NotMirrored,
)
from service.event import GENESIS_POSITION, Event, chain_link
from service.eventlog import EventLog
from service.listen import Listener
from service.metrics import Metrics
from service.nats import Connection, Stream, connected
from service.nats_feed import Feed, StreamGone, feeding
from service.tail import Tail
from service.waiting import race
from service.window import Window

log = logging.getLogger("causeway.nats_tail")

LAG_S = 2.0  # an event that the stream has not got after this long makes it lag
RETURN_S = (1.0, 2.0, 5.0, 10.0, 20.0)  # before the stream is tried (again)
STEADY_S = 60.0  # a stream that was followed this long begins anew with the first of them
HEALED_EVENTS = 1000  # a longer hole is Postgres' to fill
LOOK_BACK = 10  # positions that are compared with the window, before the stream is believed
POLL_S = 0.1
RETRY_S = 1.0
NATS, POSTGRES = "nats", "postgres"
TROUBLES = (MirrorUnavailable, Misfit, NotMirrored, StreamGone, ConfigError)


class Lagging(MirrorUnavailable):
    """The stream does not get what the log has."""


class NatsTail:
    """Fills the window; has what `Tail` has, and stands in its place. `run` is a loop."""

    def __init__(
        self,
        tail: Tail,
        eventlog: EventLog,
        window: Window,
        metrics: Metrics,
        settings: Settings,
        listen: Listener | None,
    ) -> None:
        """`tail` follows Postgres meanwhile, woken by `listen` (None: by somebody else)."""
        self._tail = tail
        self._eventlog = eventlog
        self._window = window
        self._metrics = metrics
        self._settings = settings
        self._listen = listen
        self._clock = asyncio.get_running_loop().time
        self._feed: Feed | None = None
        self._falls = 0
        self._why = "it looks for the stream"
        self.connection: Connection | None = None  # while the stream is followed
        for source in (NATS, POSTGRES):
            metrics.mirror.tail_source.labels(source).set(source == POSTGRES)

    @property
    def is_damaged(self) -> bool:
        return self._tail.is_damaged

    @property
    def has_begun(self) -> bool:
        return self._tail.has_begun

    def lag(self) -> int:
        """Return how many events of the log are not yet in the window, as far as is known."""
        return self._tail.lag()

    def head(self) -> int | None:
        """Return the newest position that is known of; None before the first read."""
        return self._tail.head()

    def hear(self, head: int) -> None:
        """Note that the log is said to end at `head`."""
        self._tail.hear(head)

    def behind_s(self) -> float:
        """Return for how long neither Postgres nor the stream said where the log ends."""
        heard = float("-inf") if self._feed is None else self._feed.heard_at
        return min(self._tail.behind_s(), self._clock() - heard)

    def follows_nats(self) -> bool:
        """True while new events come from the stream."""
        return self._feed is not None

    def says(self) -> str:
        """Say which of the two is followed, and why."""
        if self._feed is not None:
            return f"the stream {self._settings.nats_stream} is followed"
        return f"Postgres is followed: {self._why}"

    async def run(self) -> None:
        """Follow the log, for ever. Raises whatever stops it, for the supervisor to begin anew."""
        await self._tail.begin()
        with self._tail.alarming():
            async with AsyncExitStack() as stack:  # of what is followed
                while True:
                    connection, feed = await race(
                        self._seek(stack), self._follow_postgres(), self._listening()
                    )
                    try:
                        self._switch(connection, feed)
                        await race(self._follow(feed), self._watch_head())
                    except TROUBLES as error:
                        self._fall(error)
                    finally:
                        self._switch(None, None)

    def _switch(self, connection: Connection | None, feed: Feed | None) -> None:
        if (feed is None) != (self._feed is None):
            log.info("tail follows", extra={"source": POSTGRES if feed is None else NATS})
        self.connection, self._feed = connection, feed
        self._metrics.mirror.tail_source.labels(NATS).set(feed is not None)
        self._metrics.mirror.tail_source.labels(POSTGRES).set(feed is None)

    # Postgres

    async def _follow_postgres(self) -> Any:
        """Do as the ordinary tail does; a database that is away is waited for."""
        while True:
            try:
                await self._tail.follow()
            except LogUnavailable as error:
                log.warning("log not read", extra={"reason": error.message})
            await asyncio.sleep(RETRY_S)

    async def _listening(self) -> Any:
        if self._listen is not None:
            await self._listen.run()
        await asyncio.Event().wait()

    async def _seek(self, stack: AsyncExitStack) -> tuple[Connection, Feed]:
        """Return a feed of the stream once it fits and keeps up, however long that takes."""
        await stack.aclose()  # a server that hangs takes its time: Postgres is followed meanwhile
        while True:
            pause_s = RETURN_S[min(self._falls, len(RETURN_S) - 1)]
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311 - no herd
            try:
                async with AsyncExitStack() as trial:
                    connection = await trial.enter_async_context(
                        connected(self._settings, "causeway-tail")
                    )
                    stream = Stream(connection, self._settings.nats_stream)
                    await self._check_fits(stream)
                    feed = await trial.enter_async_context(
                        feeding(connection, stream.name, self._window.position)
                    )
                    stack.push_async_exit(trial.pop_all())
                    return connection, feed
            except TROUBLES as error:
                self._note(error)
                self._falls += 1

    async def _check_fits(self, stream: Stream) -> None:
        """Raise unless the stream is of this history, and gets what the log has."""
        newest = self._window.position
        deadline = self._clock() + LAG_S
        while (state := await stream.state()) is None or state.last < newest:
            if state is None:
                raise StreamGone(f"there is no stream {stream.name}")
            if self._clock() > deadline:
                raise Lagging(f"the stream ends at {state.last}, the log has {newest}")
            await asyncio.sleep(POLL_S)
        if state.first > newest + 1:
            raise Misfit(f"the stream begins at {state.first}, the log ends at {newest}")
        for position in range(newest, max(newest - LOOK_BACK, GENESIS_POSITION), -1):
            link = self._window.link_at(position)
            event = None if link is None else await stream.event(position)
            if event is not None:
                if event.link != link:
                    raise Misfit(f"the stream has another event at {position} than the log")
                return

    # The stream

    async def _follow(self, feed: Feed) -> None:
        began = self._clock()
        while True:
            await self._take(await feed.take())
            if self._clock() - began > STEADY_S:
                self._falls = 0

    async def _take(self, events: list[Event]) -> None:
        """Hand out what follows the window. Raises Misfit for what does not."""
        fresh: list[Event] = []
        position, link = self._window.position, self._window.link
        for event in events:
            if event.position <= position:
                self._compare(event)
                continue
            if event.position > position + 1:
                self._tail_take(fresh)
                fresh = []
                await self._heal(event.position - 1)
                link = self._window.link
            position = event.position
            expected = chain_link(link, event.digest, position, event.received_at, event.source)
            if event.link != expected:
                self._tail_take(fresh)
                raise Misfit(f"position {position} of the stream is not chained to the one before")
            link = event.link
            fresh.append(event)
        self._tail_take(fresh)

    def _tail_take(self, events: list[Event]) -> None:
        if events:
            self._tail.take(events, perf_counter())

    def _compare(self, event: Event) -> None:
        """The stream was opened before the window's end, or has begun anew: is it the same?"""
        known = self._window.link_at(event.position)
        if known is not None and known != event.link:
            raise Misfit(f"the stream has another event at {event.position} than the log")

    async def _heal(self, last: int) -> None:
        """Read from Postgres what the stream lacks up to `last`.

        Erased events are lacking rightly. Raises Misfit if others are, LogUnavailable.
        """
        if last - self._window.position > HEALED_EVENTS:
            raise Misfit(f"the stream lacks all from {self._window.position + 1} to {last}")
        unknown: list[int] = []
        while self._window.position < last:
            after = self._window.position
            try:
                events = await self._eventlog.read_after(after, limit=last - after, head=last)
            except LogUnavailable as error:
                raise MirrorUnavailable("Postgres is away, and the stream has a hole") from error
            unknown += [event.position for event in events if not event.is_erased]
            self._tail_take(events)
            if not events:
                raise Lagging(f"Postgres does not have {after + 1}, which the stream is past")
        if unknown:
            raise Misfit(f"the stream lacks position {unknown[0]}, which was not erased")

    async def _watch_head(self) -> None:
        """Compare the window with the log's end now and then. Raises Lagging, LogChanged."""
        while True:
            await asyncio.sleep(self._settings.nats_check_s)
            try:
                await self._tail.check_head()
            except LogUnavailable as error:
                log.debug("log's end not looked up", extra={"reason": error.message})
                continue
            head, deadline = self._tail.head() or 0, self._clock() + LAG_S
            while self._window.position < head:  # once it is there, the log is looked at again
                if self._clock() > deadline:
                    raise Lagging(f"the stream brought {self._window.position}, the log has {head}")
                await asyncio.sleep(POLL_S)

    # What went wrong

    def _fall(self, error: Exception) -> None:
        """Count and tell why the stream is not followed any more."""
        self._falls += 1
        self._metrics.mirror.tail_fallbacks.labels(reason_of(error)).inc()
        self._note(error)

    def _note(self, error: Exception) -> None:
        """Log what is wrong with the stream, once for as long as it is the same."""
        if self._why != str(error):
            is_alarm = not isinstance(error, MirrorUnavailable)
            level = logging.ERROR if is_alarm else logging.WARNING
            fields = {"kind": reason_of(error), "reason": str(error)}
            log.log(level, "the log's mirror cannot be followed", extra=fields)
        self._why = str(error)


def reason_of(error: Exception) -> str:
    """Return the label of an error: away, lagging, gone or misfit."""
    if isinstance(error, Lagging):
        return "lagging"
    if isinstance(error, MirrorUnavailable | ConfigError):
        return "away"
    return "gone" if isinstance(error, StreamGone) else "misfit"
