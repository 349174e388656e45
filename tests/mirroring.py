"""What tests of the mirror share: a look at the stream through plain nats-py."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import nats as nats_py
import orjson
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy, StreamConfig
from nats.js.errors import ServiceUnavailableError

from service.eventlog import EventLog
from tests.bridge import new_event
from tests.nats_server import NatsServer
from tests.running import WITHIN_S, Running, eventually

STREAM = "CAUSEWAY"
# How long the service waits, in a test, before it takes what it has published for unsure. Whatever
# else it gives up it begins anew, and counts nothing.
PATIENT_S = 300
PATIENCE = (("service.nats", "PING_S"), ("service.publisher", "ACK_TIMEOUT_S"))
# What a NATS server says, or a client, while a cluster elects.
ELECTING = (TimeoutError, NoRespondersError, ServiceUnavailableError)


@asynccontextmanager
async def client_of(nats: NatsServer) -> AsyncIterator[Client]:
    """Give a plain client of the server."""
    client = await nats_py.connect(nats.url, connect_timeout=round(WITHIN_S))
    try:
        yield client
    finally:
        await client.close()


async def fill(eventlog: EventLog, events: int, **content: object) -> None:
    """Append so many events, in batches."""
    for start in range(0, events, 500):
        batch = [new_event(**content) for _ in range(min(500, events - start))]  # type: ignore[arg-type]
        await eventlog.append(batch, timeout_s=30)


def position_of(mirror: Running) -> float:
    """Return up to where a mirror says that the stream goes."""
    return value(mirror, "causeway_mirror_position")


def value(mirror: Running, name: str) -> float:
    """Return what a metric of the mirror's stream is now."""
    found = mirror.service.metrics.registry.get_sample_value(name, {"stream": STREAM})
    assert found is not None, name
    return found


def publishes(mirror: Running, outcome: str) -> float:
    """Return how many publishes ended so."""
    found = mirror.service.metrics.registry.get_sample_value(
        "causeway_mirror_publishes_total", {"outcome": outcome}
    )
    assert found is not None
    return found


async def until_level(mirror: Running, position: int, *, within_s: float = WITHIN_S) -> None:
    """Wait until the mirror says that the stream goes up to `position`."""
    await eventually(lambda: position_of(mirror) == position, within_s=within_s)


async def read_stream(nats: NatsServer) -> list[tuple[int, int, bytes]]:
    """Return all of the stream by a plain consumer: sequence number, position, body."""
    async with client_of(nats) as client:
        wanted, reader = await _subscribe(client.jetstream())
        found = []
        for _ in range(wanted):
            message = await reader.next_msg(timeout=WITHIN_S)
            position = int((message.headers or {})["ce-position"])
            found.append((message.metadata.sequence.stream, position, message.data))
        return found


async def _subscribe(jetstream: JetStreamContext) -> tuple[int, Subscription]:
    """Return how many there are, and a consumer. A cluster that elects a leader answers nobody."""
    config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
    async with asyncio.timeout(WITHIN_S):
        while True:
            with suppress(*ELECTING):  # nats-py's own TimeoutError is one
                wanted = (await jetstream.stream_info(STREAM)).state.messages
                return wanted, await jetstream.subscribe(
                    "bridge.>", stream=STREAM, ordered_consumer=True, config=config
                )


async def assert_mirrored(nats: NatsServer, eventlog: EventLog, *, after: int = 0) -> int:
    """Is the stream the log, event for event, from `after` on? Return how many there are."""
    found = await read_stream(nats)
    expected: list[tuple[int, int, bytes]] = []
    while events := await eventlog.read_after(after, limit=1000):
        expected += [(event.position, event.position, event.body) for event in events]
        after = events[-1].position
    assert found == expected
    return len(found)


async def make_stream(nats: NatsServer, **config: object) -> None:
    """Make the stream as somebody else would."""
    async with client_of(nats) as client:
        base = {"name": STREAM, "subjects": ["bridge.>"]}
        await client.jetstream(timeout=WITHIN_S).add_stream(StreamConfig(**(base | config)))  # type: ignore[arg-type]


async def ask(nats: NatsServer, verb: str, **request: object) -> dict[str, object]:
    """Return JetStream's answer to a request about the stream."""
    async with client_of(nats) as client:
        answer = await client.request(
            f"$JS.API.STREAM.{verb}", orjson.dumps(request), timeout=WITHIN_S
        )
    found: dict[str, object] = orjson.loads(answer.data)
    assert "error" not in found, found
    return found


def alone(positions: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """Return the sequence numbers, each of which must be its position."""
    assert all(sequence == position for sequence, position, _ in positions)
    return [sequence for sequence, _, _ in positions]
