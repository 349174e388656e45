"""Mirrors the log into a JetStream stream whose sequence numbers are the positions.

One process at a time, by lease. It reads the log as the tail does and publishes each event to take
the sequence number that is its position, once. Dying anywhere, or an answer that never comes, can
neither skip nor double: it looks at the stream, proves that it fits the log, and goes on where the
stream ends. A stream that does not fit stops it until somebody has acted. The log is the truth:
what the stream loses is published again, or read from Postgres.
"""

import asyncio
import logging
from datetime import UTC, datetime

from service.erase import Erasures
from service.errors import (
    ConfigError,
    LogDamaged,
    LogUnavailable,
    MirrorUnavailable,
    Misfit,
    PositionPruned,
    StreamRefused,
)
from service.event import Event, chain_link
from service.eventlog import EventLog
from service.mirror_fit import Place, fit
from service.mirror_lease import MirrorLease
from service.mirror_metrics import MirrorMetrics
from service.mirror_stream import MirrorStream
from service.nats import Connection, connected
from service.nats_settings import NatsSettings
from service.publisher import Publisher, publishing
from service.waiting import first_of

log = logging.getLogger("causeway.mirror")

PAGE_EVENTS = 1000
PAGE_BYTES = 4 * 1024 * 1024
RETRY_S = 1.0
STANDING_BY = "standing by"


class Mirror:
    """The mirror of one process. `run` is a loop for the supervisor."""

    def __init__(
        self,
        settings: NatsSettings,
        eventlog: EventLog,
        erasures: Erasures,
        lease: MirrorLease,
        metrics: MirrorMetrics,
        *,
        poll_s: float,
    ) -> None:
        self._settings = settings
        self._eventlog = eventlog
        self._erasures = erasures
        self._lease = lease
        self._metrics = metrics
        self._poll_s = poll_s
        self._name = settings.nats_stream
        self._wake = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._known_head = 0
        self._place: int | None = None  # None: this process does not know
        self._link = b""
        self._erased = 0
        self._waiting: datetime | None = None  # receipt of the first event not yet in the stream
        self._publisher: Publisher | None = None
        self._detail = STANDING_BY
        metrics.active.labels(self._name).set(0)
        metrics.misfit.labels(self._name).set(0)
        metrics.position.labels(self._name).set_function(self.position)
        metrics.lag_events.labels(self._name).set_function(self.lag)
        metrics.lag_seconds.labels(self._name).set_function(self.lag_s)

    def hear(self, head: int) -> None:
        """Look for new events now: the log is said to end at `head` (0: nobody knows)."""
        self._known_head = max(self._known_head, head)
        self._wake.set()

    def position(self) -> int:
        """Return up to where NATS has acknowledged the log; 0 where this process does not know."""
        return self._publisher.position if self._publisher is not None else self._place or 0

    def lag(self) -> int:
        """Return how many events are not in the stream; 0 where this process does not know."""
        return 0 if self._place is None else max(0, self._known_head - self.position())

    def lag_s(self) -> float:
        """Return how long the first event that is not in the stream has been in the log."""
        if self._waiting is None:
            return 0.0
        return max(0.0, (datetime.now(UTC) - self._waiting).total_seconds())

    def says(self) -> str:
        """Return what this process does of it, or what is wrong, in words."""
        return self._detail

    async def run(self) -> None:
        """Stand by, mirror, and begin anew, for ever."""
        while True:
            try:
                async with self._lease.held(self._stand_by) as lost:
                    await self._mirror_until(lost)
            except (LogUnavailable, LogDamaged, PositionPruned) as error:
                self._say(error.message)
            await asyncio.sleep(RETRY_S)

    def _stand_by(self) -> None:
        """Another process mirrors: what this one knew is old."""
        self._place, self._link, self._waiting = None, b"", None
        self._metrics.misfit.labels(self._name).set(0)
        self._detail = STANDING_BY

    async def _mirror_until(self, lost: asyncio.Event) -> None:
        """Mirror until something fails: then one who stands by may reach NATS where we do not."""
        try:
            async with connected(self._settings, "causeway mirror") as connection:
                await self._mirror(connection, lost)
        except Misfit as error:
            self._metrics.misfit.labels(self._name).set(1)
            self._say(f"stopped: {error}. See `causeway mirror check`", is_misfit=True)
        except (MirrorUnavailable, StreamRefused, ConfigError) as error:
            self._say(str(error))
        await self._measure()

    async def _mirror(self, connection: Connection, lost: asyncio.Event) -> None:
        stream = MirrorStream(connection, self._name)
        place = await self._fit(stream)
        window = self._settings.nats_window_events
        async with publishing(
            connection, self._name, place.position, window, self._metrics
        ) as publisher:
            self._publisher = publisher
            try:
                await self._erase(stream, place)
                await self._follow(stream, publisher, connection, lost)
            finally:
                self._publisher, self._place = None, publisher.position
                self._metrics.active.labels(self._name).set(0)

    async def _fit(self, stream: MirrorStream) -> Place:
        """Return where the stream ends; make it if there is none."""
        place = await fit(stream, self._eventlog, with_deleted=True)
        if place is None:
            bounds = await self._eventlog.bounds()
            await stream.create(self._settings, bounds.log_id, bounds.first_position)
            place = await fit(stream, self._eventlog)
            log.info("stream made", extra={"stream": self._name, "first": bounds.first_position})
        if place is None:
            raise MirrorUnavailable("the stream was deleted a moment ago")
        self._place, self._link, self._erased = place.position, place.link, 0
        self._known_head = place.head
        self._metrics.active.labels(self._name).set(1)
        self._metrics.misfit.labels(self._name).set(0)
        self._detail = "mirroring"
        log.info("mirror begins", extra={"stream": self._name, "position": place.position})
        return place

    async def _follow(
        self,
        stream: MirrorStream,
        publisher: Publisher,
        connection: Connection,
        lost: asyncio.Event,
    ) -> None:
        """Publish what follows, until the connection or the lease is lost."""
        checked_at = self._clock()
        while not (lost.is_set() or connection.lost.is_set()):
            self._wake.clear()  # before the read: what is appended after it wakes us again
            events = await self._eventlog.read_after(
                publisher.published, limit=PAGE_EVENTS, max_bytes=PAGE_BYTES, head=self._known_head
            )
            self._check_continues(events)
            self._known_head = max(self._known_head, publisher.published + len(events))
            if events:
                self._waiting = self._waiting or events[0].received_at
                await publisher.publish(events)
            else:
                await publisher.settle()
                self._waiting = None
                await first_of(self._wake, connection.lost, lost, timeout_s=self._poll_s)
            if self._clock() - checked_at >= self._poll_s:
                await publisher.settle()
                self._waiting = None
                await self._check(stream, publisher)
                checked_at = self._clock()

    def _check_continues(self, events: list[Event]) -> None:
        """Is what was read chained to what was published? The log may have been replaced."""
        for event in events:
            link = chain_link(
                self._link, event.digest, event.position, event.received_at, event.source
            )
            if link != event.link:
                raise Misfit(f"position {event.position} is not chained to the one before")
            self._link = link

    async def _check(self, stream: MirrorStream, publisher: Publisher) -> None:
        """Does the stream still end where we are, and the log go on from there?"""
        place = await fit(stream, self._eventlog)
        if place is None or place.position != publisher.position:
            raise MirrorUnavailable("the stream was changed by somebody else")
        self._known_head = place.head
        await self._erase(stream, place)

    async def _erase(self, stream: MirrorStream, place: Place) -> None:
        """Overwrite what was erased from the log; what is not published yet is read erased.

        Which erasures the stream has seen is kept nowhere: after each new beginning all of them are
        held against what the stream lacks, so that a stream from a backup is erased again.
        """
        found, newest = await self._erasures.after(self._erased, place.first - 1)
        for _, position in found:
            if position <= place.position and position not in place.deleted:
                await stream.erase(position)
                self._metrics.erased.inc()
        self._erased = newest

    async def _measure(self) -> None:
        """While NATS is away: since when does the next event wait?"""
        if self._waiting is None and self._place is not None:
            waiting = await self._eventlog.read_after(self._place, limit=1)
            self._waiting = waiting[0].received_at if waiting else None
            self._known_head = (await self._eventlog.bounds()).head_position

    def _say(self, detail: str, *, is_misfit: bool = False) -> None:
        """Log what is wrong, once, and tell `/readyz`. A misfit needs a person."""
        extra = {"stream": self._name, "reason": detail}
        if detail != self._detail and is_misfit:
            log.error("mirror stopped", extra=extra)
        elif detail != self._detail:
            log.warning("mirror interrupted", extra=extra)
        self._detail = detail
