"""What more gateways cost Postgres, and what the mirror costs an event in time.

Real processes: a mirror (`serve --roles mirror`), a nats-server, and 1, 2, 4, 8 gateways (`serve
--roles stream`) that follow Postgres, then as many with `--tail nats`; events are appended one by
one at a fixed rate meanwhile. Counted are the commits of the whole database, the appends and the
mirror's reads among them, so the flat part is theirs; what grows is the gateways'. The latency is
from the receipt of an event to its arrival at a subscriber, measured on a gateway of each kind in
the same run, for the same events.
"""

import asyncio
import contextlib
import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from service.embedded import EmbeddedPostgres
from tests.bench.databases import APPEND_TIMEOUT_S, fresh_database, new_events, open_log
from tests.bench.effort import Effort
from tests.bench.figures import Figure, figure, percentiles
from tests.nats_server import nats_server
from tests.reader import reading
from tests.running import (
    WITHIN_S,
    Database,
    Process,
    environment,
    eventually,
    service_process,
)

COMMITS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
SETTLE_S = 1.5  # a session reports its commits once a second at the most
RECEIVED = re.compile(r'"receivedtime":"([^"]+)"')
TAILS = ("postgres", "nats")


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return commits a second for each number of gateways, and the latency of both kinds."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="causeway-gateways-")))
        server = stack.enter_context(nats_server(folder / "nats"))
        database = await stack.enter_async_context(fresh_database(postgres))
        bench = _Bench(database, server.url, folder, effort)
        await stack.enter_async_context(bench.mirroring())
        wanted = [(tail, count) for tail in TAILS for count in effort.gateway_counts]
        commits = [await bench.commits(tail, count) for tail, count in wanted]
        return [*commits, *await bench.latencies()]


class _Bench:
    def __init__(self, database: Database, url: str, folder: Path, effort: Effort) -> None:
        self._database = database
        self._url = url
        self._folder = folder
        self._effort = effort

    @asynccontextmanager
    async def mirroring(self) -> AsyncIterator[None]:
        """Run a mirror, and append for as long."""
        with self._process("mirror", "postgres"):
            appending = asyncio.create_task(self._append())
            try:
                yield
            finally:
                appending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await appending

    async def commits(self, tail: str, count: int) -> Figure:
        """Return the commits of a second with `count` gateways."""
        owner = await asyncpg.connect(self._database.owner_dsn)
        try:
            with contextlib.ExitStack() as stack:
                for _ in range(count):
                    process = await asyncio.to_thread(
                        stack.enter_context, self._process("stream", tail)
                    )
                    await _follows(process, tail)
                await asyncio.sleep(SETTLE_S)
                rates = [await self._rate(owner) for _ in range(self._effort.rounds)]
        finally:
            await owner.close()
        return figure(f"{count} gateways over {tail}", "commits/s", rates)

    async def latencies(self) -> list[Figure]:
        """Return p50 and p99 of both kinds, and what the mirror adds."""
        async with AsyncExitStack() as stack:
            times: list[list[float]] = []
            readers = []
            for tail in TAILS:
                process = await asyncio.to_thread(
                    stack.enter_context, self._process("stream", tail)
                )
                await _follows(process, tail)
                times.append([])
                readers.append(asyncio.create_task(_read(process.url, times[-1])))
            await asyncio.sleep(self._effort.gateway_s * self._effort.rounds)
            await eventually(lambda: all(len(seconds) > 1 for seconds in times))
            for reader in readers:
                reader.cancel()
            ended = await asyncio.gather(*readers, return_exceptions=True)
            assert all(isinstance(error, asyncio.CancelledError) for error in ended), ended
        found = {
            tail: percentiles(f"received to subscriber, over {tail}", seconds)
            for tail, seconds in zip(TAILS, times, strict=True)
        }
        return [*found["postgres"], *found["nats"]]

    async def _rate(self, owner: "asyncpg.Connection[asyncpg.Record]") -> float:
        before, began = await owner.fetchval(COMMITS), time.monotonic()
        await asyncio.sleep(self._effort.gateway_s)
        after, ended = await owner.fetchval(COMMITS), time.monotonic()
        return max(1.0, float(after - before)) / (ended - began)

    async def _append(self) -> None:
        events = new_events(seed=5)
        rate = self._effort.gateway_rate
        async with open_log(self._database) as eventlog:
            began = time.monotonic()
            for number, event in enumerate(events):
                left = began + number / rate - time.monotonic()
                if left > 0:
                    await asyncio.sleep(left)
                fresh = replace(event, received_at=datetime.now(UTC))
                await eventlog.append([fresh], timeout_s=APPEND_TIMEOUT_S)

    def _process(self, role: str, tail: str) -> "contextlib.AbstractContextManager[Process]":
        return _process(self._database, self._url, self._folder, role, tail)


@contextlib.contextmanager
def _process(database: Database, url: str, folder: Path, role: str, tail: str) -> Iterator[Process]:
    env = environment(DATABASE_URL=database.service_dsn, CAUSEWAY_NATS_URL=url, CAUSEWAY_TAIL=tail)
    log = folder / f"{role}-{env['CAUSEWAY_PORT']}.log"
    with service_process(env, log, "--roles", role) as process:
        yield process


async def _follows(process: Process, tail: str) -> None:
    """Return once the process follows what it is to follow."""
    async with asyncio.timeout(WITHIN_S):
        while tail == "nats" and '"source":"nats"' not in process.output().replace(" ", ""):
            await asyncio.sleep(0.1)


async def _read(url: str, seconds: list[float]) -> None:
    opened = time.time()  # what came before is read again while the window is filled: no delay
    async with reading(url, "format=cloudevents") as reader:
        while True:
            block = await reader.event()
            now = time.time()
            match = RECEIVED.search(block.data or "")
            assert match is not None
            received = datetime.fromisoformat(match[1]).timestamp()
            if received >= opened:
                seconds.append(now - received)
