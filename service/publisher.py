"""Publishes events into the stream, in order, many at a time.

Each is published as the sequence number that is its position, and each waits for nothing: NATS
takes a connection's messages in their order, so that after one that it refuses it refuses all that
follow. A publisher that has failed once is done with. What was on its way then is unsure, and found
out by looking at the stream.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import orjson
from nats.aio.msg import Msg

from service.errors import MirrorUnavailable, Misfit
from service.event import Event
from service.mirror_metrics import MirrorMetrics
from service.mirrored import message_of, published_headers
from service.nats import Connection, translated
from service.waiting import first_of

ACK_TIMEOUT_S = 5.0
BREATH_EVENTS = 50  # acknowledgements are read meanwhile


class Publisher:
    """Made by `publishing`. `position`: NATS has acknowledged all up to there."""

    def __init__(
        self, connection: Connection, stream: str, place: int, window: int, metrics: MirrorMetrics
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._window = window
        self._metrics = metrics
        self._inbox = connection.client.new_inbox()
        self._room = asyncio.Event()
        self._failure: str | None = None
        self._wanted = 0
        self.position = self.published = place

    @property
    def answers(self) -> str:
        """The subject on which acknowledgements come."""
        return f"{self._inbox}.*"

    @property
    def in_flight(self) -> int:
        """How many events NATS has not acknowledged yet."""
        return self.published - self.position

    async def publish(self, events: Sequence[Event]) -> None:
        """Publish what follows `published`; return when half the window is free again.

        Raises MirrorUnavailable if anything went wrong, now or with what was published before;
        Misfit for an event that the server is not set up to take.
        """
        for number, event in enumerate(events, 1):
            if self.in_flight >= self._window:
                await self._wait(self._window // 2)
            await self._send(event)
            if number % BREATH_EVENTS == 0:
                await asyncio.sleep(0)
        await self._wait(self._window // 2)

    async def settle(self) -> None:
        """Wait until all is acknowledged. Raises as `publish` does."""
        await self._wait(0)

    async def hear(self, answer: Msg) -> None:
        """Take NATS' answer for the event after `position`."""
        if self._failure is None:
            self._failure = self._read(answer)
        if self._failure is not None or self.in_flight <= self._wanted:
            self._room.set()

    async def _send(self, event: Event) -> None:
        message = message_of(event)
        headers = published_headers(event, message, self._stream)
        size = len(message.body) + sum(len(name) + len(text) + 4 for name, text in headers.items())
        limit = self._connection.client.max_payload
        if size + 16 > limit:
            await self.settle()
            raise Misfit(
                f"position {event.position} is {size} bytes long with its headers, the NATS "
                f"server's max_payload is {limit}: raise it"
            )
        reply = f"{self._inbox}.{event.position}"
        with translated():
            await self._connection.client.publish(message.subject, message.body, reply, headers)
        if self._connection.lost.is_set():
            raise MirrorUnavailable("the connection to NATS is lost")
        self.published = event.position

    async def _wait(self, wanted: int) -> None:
        """Wait until at most `wanted` are in flight."""
        while self._failure is None and self.in_flight > wanted:
            before, self._wanted = self.position, wanted
            self._room.clear()
            await first_of(self._room, self._connection.lost, timeout_s=ACK_TIMEOUT_S)
            if self._connection.lost.is_set():
                self._failure = "the connection to NATS is lost"
            elif self.position == before and self._failure is None:
                self._failure = f"NATS has acknowledged nothing for {ACK_TIMEOUT_S:g} s"
        if self._failure is not None:
            raise MirrorUnavailable(self._failure)

    def _read(self, answer: Msg) -> str | None:
        """Count an answer. Return what is wrong with it, or None."""
        expected = self.position + 1
        if not answer.data:
            return "the stream is not there"
        said = orjson.loads(answer.data)
        if error := said.get("error"):
            self._metrics.publishes.labels("refused").inc()
            position = answer.subject.rpartition(".")[2]
            return f"NATS refused position {position}: {error.get('description')}"
        if said.get("seq") != expected or not answer.subject.endswith(f".{expected}"):
            return f"NATS acknowledged {said.get('seq')}, position {expected} was due"
        self._metrics.publishes.labels("known" if said.get("duplicate") else "acked").inc()
        self.position = expected
        return None


@asynccontextmanager
async def publishing(
    connection: Connection, stream: str, place: int, window: int, metrics: MirrorMetrics
) -> AsyncIterator[Publisher]:
    """Give a publisher of what follows `place`, with at most `window` events in flight.

    One for a connection: its subscription ends with that.
    """
    publisher = Publisher(connection, stream, place, window, metrics)
    with translated():
        await connection.client.subscribe(publisher.answers, cb=publisher.hear)
    try:
        yield publisher
    finally:
        metrics.publishes.labels("unsure").inc(publisher.in_flight)
