"""How fast the log gets into its mirror, and what that takes an event in time.

A log that is filled first, and the mirror as a process of its own, which publishes it into a stream
with file storage. Once on a cluster of three, with three copies of each event, as in production:
there `sync_interval: always` syncs what the servers agree on, many messages at a time. Once on a
single server, which then syncs each message by itself, and cannot be faster than the disk: a write
and a sync of as many bytes, one after the other, are measured beside it. And once on a single
server with NATS' own interval of two minutes; that costs the mirror nothing but time, since what a
server loses is published again. A plain nats-py consumer proves that each sequence number is its
position. Then the time of single events, from their commit's answer to that consumer.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import nats as nats_py
from nats.aio.subscription import Subscription

from service.embedded import EmbeddedPostgres
from service.eventlog import EventLog
from tests.bench.databases import APPEND_TIMEOUT_S, fresh_database, new_events, open_log
from tests.bench.effort import Effort
from tests.bench.figures import Figure, at_least, figure, percentiles, ratio
from tests.nats_server import NatsServer, nats_cluster, nats_server
from tests.running import ROOT, WITHIN_S, Database, environment

STREAM = "CAUSEWAY"
TARGET = 10_000.0
MESSAGE_BYTES = 900  # of a typical event with its headers, on disk
LOOK_S = 0.02
LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Kind:
    """So many servers, each with a copy of every event; do they sync each write?"""

    name: str
    servers: int
    is_synced: bool


CLUSTER = Kind("three servers, each write synced", 3, True)
SYNCED = Kind("one server, each write synced", 1, True)
UNSYNCED = Kind("one server, NATS' own interval", 1, False)
KINDS = (CLUSTER, SYNCED, UNSYNCED)


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return events a second of each kind of server, the disk's own, and p50 and p99 of one."""
    rates: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
    syncs: list[float] = []
    times: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
    async with fresh_database(postgres) as database, open_log(database) as eventlog:
        fresh = new_events(seed=8)
        for _ in range(0, effort.mirror_events, 500):
            await eventlog.append(list(islice(fresh, 500)), timeout_s=APPEND_TIMEOUT_S)
        for _ in range(effort.rounds):
            for kind in KINDS:
                async with _mirroring(database, eventlog, kind) as (nats, rate):
                    rates[kind].append(rate)
                    times[kind] += await _times(nats, eventlog, effort.mirror_singles)
            syncs.append(_sync_rate())
    targets = {CLUSTER: at_least(TARGET), UNSYNCED: at_least(TARGET)}
    return [
        *(figure(f"mirror, {it.name}", "events/s", rates[it], targets.get(it)) for it in KINDS),
        figure("the disk, one write and sync after the other", "syncs/s", syncs),
        ratio("mirror to the disk, one server", rates[SYNCED], syncs, at_least(0.5)),
        *(
            found
            for kind in KINDS
            for found in percentiles(f"commit to consumer, {kind.name}", times[kind])
        ),
    ]


@asynccontextmanager
async def _mirroring(
    database: Database, eventlog: EventLog, kind: Kind
) -> AsyncIterator[tuple[NatsServer, float]]:
    """Mirror all of the log into a new server; give the server, and events a second."""
    with (
        tempfile.TemporaryDirectory(prefix="causeway-mirror-") as folder,
        _servers(Path(folder), kind) as nats,
        _worker(database, nats, copies=kind.servers),
    ):
        head = (await eventlog.bounds()).head_position
        rate = await _rate(nats, head)
        await _prove(nats, head)
        yield nats, rate


@contextmanager
def _servers(folder: Path, kind: Kind) -> Iterator[NatsServer]:
    """Give one of them."""
    if kind.servers == 1:
        with nats_server(folder, syncs=kind.is_synced) as one:
            yield one
    else:
        with nats_cluster(folder, kind.servers, syncs=kind.is_synced) as several:
            yield several[0]


async def _rate(nats: NatsServer, head: int) -> float:
    """Return events a second from the first that is seen in the stream to the last."""
    deadline = time.perf_counter() + LIMIT_S
    first, began = 0, 0.0
    while (last := await asyncio.to_thread(nats.last_sequence, STREAM) or 0) < head:
        if last and not first:
            first, began = last, time.perf_counter()
        if time.perf_counter() > deadline:
            raise RuntimeError(f"the stream is at {last} of {head} after {LIMIT_S} s")
        await asyncio.sleep(LOOK_S)
    return (head - first) / (time.perf_counter() - began)


async def _prove(nats: NatsServer, head: int) -> None:
    """Read the stream with a plain consumer: each sequence number is its position."""
    async with _reading(nats) as reader:
        for expected in range(1, head + 1):
            message = await reader.next_msg(timeout=WITHIN_S)
            found = (message.metadata.sequence.stream, (message.headers or {})["ce-position"])
            if found != (expected, str(expected)):
                raise RuntimeError(f"sequence and position are {found}, {expected} was due")


async def _times(nats: NatsServer, eventlog: EventLog, events: int) -> list[float]:
    """Append single events; return how long each takes from its commit to a consumer."""
    times = []
    head = (await eventlog.bounds()).head_position
    async with _reading(nats, after=head) as reader:
        for event in islice(new_events(seed=time.time_ns()), events):
            await eventlog.append([event], timeout_s=APPEND_TIMEOUT_S)
            committed = time.perf_counter()
            await reader.next_msg(timeout=WITHIN_S)
            times.append(time.perf_counter() - committed)
            await asyncio.sleep(0.002)
    return times


@asynccontextmanager
async def _reading(nats: NatsServer, after: int = 0) -> AsyncIterator[Subscription]:
    client = await nats_py.connect(nats.url, connect_timeout=round(WITHIN_S))
    config = nats_py.js.api.ConsumerConfig(
        deliver_policy=nats_py.js.api.DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=after + 1
    )
    try:
        yield await client.jetstream(timeout=WITHIN_S).subscribe(
            "bridge.>", stream=STREAM, ordered_consumer=True, config=config
        )
    finally:
        await client.close()


@contextmanager
def _worker(database: Database, nats: NatsServer, *, copies: int) -> Iterator[None]:
    env = environment(
        DATABASE_URL=database.service_dsn,
        CAUSEWAY_NATS_URL=nats.url,
        CAUSEWAY_NATS_REPLICAS=str(copies),
    )
    program = [sys.executable, "-m", "tests.mirror_worker"]
    with subprocess.Popen(program, env=env, cwd=ROOT) as popen:
        try:
            yield
        finally:
            popen.kill()


def _sync_rate(writes: int = 200) -> float:
    """Return how often a second the disk takes a message and says that it has it."""
    with tempfile.NamedTemporaryFile(prefix="causeway-mirror-") as file:
        began = time.perf_counter()
        for _ in range(writes):
            os.write(file.fileno(), b"x" * MESSAGE_BYTES)
            os.fsync(file.fileno())
        return writes / (time.perf_counter() - began)
