"""A mirror for tests of its readers: publishes the log into a stream as the real one does.

It can be stopped, and misled: what `spoil` returns is published instead of an event.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from nats.errors import Error
from nats.js.api import StorageType, StreamConfig
from nats.js.errors import NotFoundError

from service.config import Settings
from service.db import create_pool
from service.errors import LogDamaged, LogUnavailable, MirrorUnavailable, PositionPruned
from service.event import Event
from service.eventlog import EventLog
from service.listen import Listener
from service.mirrored import SUBJECTS, message_of, published_headers
from service.nats import Connection, connected
from service.nats_settings import NatsSettings
from tests.running import WITHIN_S, Database

Spoil = Callable[[Event], Event]
RETRY_S = 0.05


def be_patient(monkeypatch: pytest.MonkeyPatch, *, request_s: float = 20.0) -> None:
    """Let no lag, silence or late answer of a busy machine be a reason to leave the stream.

    `request_s` is waited in vain for the answer of a server that is gone, or has no leader.
    """
    for name in ("nats_tail.LAG_S", "nats_feed.SILENT_S"):
        monkeypatch.setattr(f"service.{name}", WITHIN_S)
    for name in ("CONNECT_TIMEOUT_S", "PING_S"):
        monkeypatch.setattr(f"service.nats.{name}", round(WITHIN_S))
    for name in ("nats.REQUEST_TIMEOUT_S", "mirror_stream.REQUEST_TIMEOUT_S", "nats_feed.ANSWER_S"):
        monkeypatch.setattr(f"service.{name}", request_s)


class Feeder:
    """Keeps the stream like the log, until it is told to stop."""

    def __init__(self, database: Database, settings: NatsSettings, replicas: int = 1) -> None:
        self._database = database
        self._settings = settings
        self._replicas = replicas
        self._wake = asyncio.Event()
        self._going = asyncio.Event()
        self._going.set()
        self.spoil: Spoil = lambda event: event
        self.position = 0
        self.has_begun = False
        self._is_new = False

    def pause(self) -> None:
        """Publish no more, until `resume`."""
        self._going.clear()

    def resume(self) -> None:
        """Go on."""
        self._going.set()

    def forget(self) -> None:
        """Look at the stream anew: somebody has deleted it."""
        self._is_new = True

    async def run(self) -> None:
        """Publish what the log has, for ever."""
        async with create_pool(self._database.service_dsn, max_size=1) as pool:
            while True:
                with suppress(
                    *(MirrorUnavailable, LogUnavailable, LogDamaged, PositionPruned),
                    *(Error, TimeoutError),
                ):
                    async with connected(self._settings, "feeder") as connection:
                        await self._feed(EventLog(pool), connection)
                await asyncio.sleep(RETRY_S)

    async def listen(self) -> None:
        """Hear of new events."""
        await Listener(self._database.service_dsn, lambda _: self._wake.set()).run()

    async def _feed(self, eventlog: EventLog, connection: Connection) -> None:
        await self._going.wait()  # else a publish that found no stream would have it made anew
        self.position = await make_stream(connection, self._settings, self._replicas)
        self._is_new = False
        self.has_begun = True
        while True:
            await self._going.wait()
            if self._is_new:
                return
            self._wake.clear()
            events = await eventlog.read_after(self.position)
            if not self._going.is_set():
                continue
            await asyncio.gather(*(self._publish(connection, self.spoil(e)) for e in events))
            self.position += len(events)
            if not events:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), 0.2)
            if connection.lost.is_set():
                return

    async def _publish(self, connection: Connection, event: Event) -> None:
        message = message_of(event)
        headers = published_headers(event, message, self._settings.nats_stream)
        try:
            await connection.jetstream.publish(
                message.subject, message.body, headers=headers, timeout=WITHIN_S
            )
        except Exception as error:  # whatever it was: the next connection looks at the stream
            raise MirrorUnavailable(type(error).__name__) from error


async def make_stream(connection: Connection, settings: NatsSettings, replicas: int = 1) -> int:
    """Make the stream if there is none; return its last sequence number."""
    try:
        info = await connection.jetstream.stream_info(settings.nats_stream)
    except NotFoundError:
        config = StreamConfig(
            name=settings.nats_stream,
            subjects=[SUBJECTS],
            storage=StorageType.FILE if replicas > 1 else StorageType.MEMORY,
            num_replicas=replicas,
        )
        info = await connection.jetstream.add_stream(config)
    last: int = info.state.last_seq
    return last


@asynccontextmanager
async def feeding_stream(
    database: Database, settings: Settings, replicas: int = 1
) -> AsyncIterator[Feeder]:
    """Run a feeder until the end of the block; then delete its stream, if a server is there."""
    feeder = Feeder(database, settings, replicas)
    tasks = [asyncio.create_task(feeder.run()), asyncio.create_task(feeder.listen())]
    try:
        yield feeder
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in ended), ended
        with suppress(MirrorUnavailable):
            await delete_stream(settings)


async def delete_stream(settings: Settings) -> None:
    """Delete the stream, if there is one."""
    async with connected(settings, "test") as connection:
        with suppress(NotFoundError):
            await connection.jetstream.delete_stream(settings.nats_stream)


def other_link(at: int) -> Spoil:
    """Spoil the event at `at`: another link, with an id that fits it."""
    return lambda event: replace(event, link=bytes(32)) if event.position == at else event
