"""Events out of the JetStream stream: as they are published, or a range of them.

Both are consumers that live in the memory of one server and are gone with their reader: nothing is
acknowledged, nothing is kept. A message that NATS dropped on the way is found out by the numbers
that each carries; a consumer that is gone, by its silence. A message's sequence number must be its
event's position. Whether the events continue the log is for the reader to prove.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import orjson
from nats.aio.msg import Msg
from nats.errors import Error
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from service.errors import MirrorUnavailable, NotMirrored
from service.event import Event
from service.mirrored import event_of
from service.nats import Connection, translated

HEARTBEAT_S = 0.5
SILENT_S = 1.5  # a consumer that said nothing for this long is gone
UNUSED_S = 5.0  # a consumer whose reader is gone goes after it
TAKEN_EVENTS = 1000
ANSWER_S = 2.0
_STATUS, _HEARD, _STALLED = "Status", "Nats-Last-Consumer", "Nats-Consumer-Stalled"


class StreamGone(Exception):
    """There is no stream of the name that the settings say."""


class Feed:
    """The events after a position, for ever. `take` is for one reader."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._messages: deque[Msg] = deque()
        self._arrived = asyncio.Event()
        self._delivered = 0
        self._clock = asyncio.get_running_loop().time
        self.heard_at = self._clock()

    async def arrive(self, message: Msg) -> None:
        """Keep a message until it is taken. Flow control bounds how many there can be."""
        self._messages.append(message)
        self.heard_at = self._clock()
        self._arrived.set()

    async def take(self) -> list[Event]:
        """Wait, and return what has come, oldest first; after a heartbeat that is nothing.

        Raises MirrorUnavailable if the connection or the consumer is gone, or a message was
        dropped; NotMirrored for a message that is no event of ours.
        """
        if not self._messages:
            self._arrived.clear()
            try:
                async with asyncio.timeout(SILENT_S):
                    await self._arrived.wait()
            except TimeoutError:
                raise MirrorUnavailable(f"NATS has said nothing for {SILENT_S} s") from None
        if self._connection.lost.is_set():
            raise MirrorUnavailable("the connection to NATS is lost")
        events: list[Event] = []
        while self._messages and len(events) < TAKEN_EVENTS:
            message = self._messages.popleft()
            if message.headers and _STATUS in message.headers:
                await self._answer(message)
            else:
                events.append(self._read(message))
        return events

    def lose(self) -> None:
        """Let `take` find out that the connection is lost."""
        self._arrived.set()

    def _read(self, message: Msg) -> Event:
        number, event = _numbered(message)
        if number != self._delivered + 1:
            raise MirrorUnavailable("a message was dropped on its way from NATS")
        self._delivered = number
        return event

    async def _answer(self, message: Msg) -> None:
        """Answer flow control; compare what a heartbeat says with what has come."""
        headers = message.headers or {}
        reply = message.reply or headers.get(_STALLED)
        if reply:
            with translated():
                await self._connection.client.publish(reply)
        if int(headers.get(_HEARD, self._delivered)) != self._delivered:
            raise MirrorUnavailable("a message was dropped on its way from NATS")


@asynccontextmanager
async def feeding(connection: Connection, stream: str, after: int) -> AsyncIterator[Feed]:
    """Give a feed of what follows `after` until the end of the block.

    If the stream ends before `after`, the feed begins with what comes next into it. Raises
    MirrorUnavailable, StreamGone.
    """
    feed = Feed(connection)
    client = connection.client
    inbox = client.new_inbox()
    config = _config(after + 1, SILENT_S)
    config.deliver_subject = inbox
    config.flow_control = True
    config.idle_heartbeat = HEARTBEAT_S
    watcher = asyncio.create_task(_watch(connection, feed), name="nats-feed")
    try:
        with _asking():
            await client.subscribe(inbox, cb=feed.arrive)
            await connection.jetstream.add_consumer(stream, config, timeout=ANSWER_S)
        yield feed  # its consumer goes with the connection: whoever falls back must not wait
    finally:
        watcher.cancel()


async def fetch_range(
    connection: Connection, stream: str, first: int, count: int, max_bytes: int
) -> list[Event]:
    """Return the events from `first` on, at most `count` and about `max_bytes`, oldest first.

    There may be fewer, or holes among them. Raises MirrorUnavailable, StreamGone, NotMirrored.
    """
    client = connection.client
    inbox = client.new_inbox()
    with _asking():
        subscription = await client.subscribe(inbox)
        try:
            consumer = await connection.jetstream.add_consumer(
                stream, _config(first, UNUSED_S), timeout=ANSWER_S
            )
            wanted = {"batch": count, "no_wait": True, "max_bytes": max_bytes}
            ask = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer.name}"
            await client.publish(ask, orjson.dumps(wanted), reply=inbox)
            events: list[Event] = []
            while len(events) < count:
                message = await subscription.next_msg(timeout=ANSWER_S)
                if message.headers and _STATUS in message.headers:
                    break  # there is no more of it
                events.append(_numbered(message)[1])
            await connection.jetstream.delete_consumer(stream, consumer.name)
            return events
        finally:
            with suppress(Error, OSError):
                await subscription.unsubscribe()


def _config(first: int, unused_s: float) -> ConsumerConfig:
    return ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=first,
        ack_policy=AckPolicy.NONE,
        inactive_threshold=unused_s,
        mem_storage=True,
        num_replicas=1,
    )


async def _watch(connection: Connection, feed: Feed) -> None:
    await connection.lost.wait()
    feed.lose()


@contextmanager
def _asking() -> Iterator[None]:
    """Translate errors; what is not found is the stream."""
    try:
        with translated():
            yield
    except NotFoundError as error:
        raise StreamGone("there is no such stream") from error


def _numbered(message: Msg) -> tuple[int, Event]:
    """Return the consumer's number of a message, and its event.

    The reply's end is the same with and without a domain, but for a last part that a domain adds:
    ... delivered, stream's sequence, consumer's sequence, time, pending.
    """
    parts = message.reply.split(".")
    sequence, number = (parts[5], parts[6]) if len(parts) == 9 else (parts[7], parts[8])
    event = event_of(message.headers or {}, message.data)
    if event.position != int(sequence):
        raise NotMirrored(f"the event {event.id} stands at {sequence} of the stream")
    return int(number), event
