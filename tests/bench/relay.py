"""How fast webhooks are delivered, what that costs the database, how late they are, what they hold.

One real process (`python -m service serve`) and a callback receiver, a process of its own, that
answers at once. Throughput: the log is filled while the callback is away, then the receiver counts.
Statements are all transactions of the database meanwhile, whoever's they are. Received to 2xx comes
from the attempts in the database: from Bridge's call to the end of the callback's answer, one event
at a time at a rate, beside a bare commit. Memory is what a process holds more with so many
deliveries pending at a dead callback than with none.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import islice
from pathlib import Path
from statistics import quantiles

import asyncpg
import httpx2

from service.embedded import EmbeddedPostgres
from tests import bridge
from tests.bench.databases import APPEND_TIMEOUT_S, fresh_database, new_events, open_log
from tests.bench.effort import Effort
from tests.bench.endtoend import bare_commits
from tests.bench.figures import Figure, at_least, at_most, figure, percentiles
from tests.receiver import Receiver
from tests.running import ADMIN_TOKEN, Database, Process, environment, free_port, service_process

BATCH = 500
WITHIN_S = 120.0
SETTLE_S = 1.5  # until the server has counted its transactions
TRANSACTIONS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
TIMES = """
SELECT extract(epoch FROM attempt.started_at - event.received_at)::float8
    + attempt.duration_ms / 1000.0::float8 AS seconds
FROM causeway.attempt
JOIN causeway.event USING (position)
WHERE attempt.status = 200
"""


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return deliveries and statements, delays, and memory."""
    figures = await _throughput(postgres, effort)
    for rate in (50, 200):
        figures += await _delays(postgres, effort, rate)
    return [*figures, *await _memory(postgres, effort)]


async def _throughput(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    rates, statements = [], []
    for _ in range(effort.rounds):
        async with _running(postgres) as (database, process):
            port = free_port()
            await _add(process, f"http://127.0.0.1:{port}/good")
            await _fill(database, effort.relay_events)
            rate, transactions = await _drain(database, port, effort.relay_events)
            rates.append(rate)
            statements.append(transactions / effort.relay_events)
    return [
        figure("delivered by one process", "deliveries/s", rates, at_least(1500)),
        figure("SQL statements for each delivery", "", statements, at_most(1)),
    ]


async def _drain(database: Database, port: int, count: int) -> tuple[float, int]:
    """Let the callback come; return deliveries a second, and the transactions that they took."""
    owner = await asyncpg.connect(database.owner_dsn)
    try:
        before = await owner.fetchval(TRANSACTIONS)
        with Receiver(port=port) as receiver:
            await receiver.wait_for(count // 10, WITHIN_S)
            begun, began = await asyncio.to_thread(receiver.count), time.monotonic()
            while (ended := await asyncio.to_thread(receiver.count)) < count * 9 // 10:
                await asyncio.sleep(0.1)
            rate = (ended - begun) / (time.monotonic() - began)
            await receiver.wait_for(count, WITHIN_S)
            await asyncio.sleep(SETTLE_S)
        return rate, await owner.fetchval(TRANSACTIONS) - before
    finally:
        await owner.close()


async def _delays(postgres: EmbeddedPostgres, effort: Effort, rate: int) -> list[Figure]:
    """Return p50 and p95 from received to 2xx at `rate` events a second, and of a bare commit."""
    count = max(10, int(rate * effort.relay_s))
    async with _running(postgres) as (database, process):
        with Receiver() as receiver:
            await _add(process, f"{receiver.url}/good")
            async with httpx2.AsyncClient() as client:
                await _send(client, process, rate, count)
            await receiver.wait_for(count, WITHIN_S)
            await asyncio.sleep(SETTLE_S)
        owner = await asyncpg.connect(database.owner_dsn)
        try:
            delays = [row["seconds"] for row in await owner.fetch(TIMES)]
        finally:
            await owner.close()
        commits = await bare_commits(database, effort.commits)
    if len(delays) != count:
        raise RuntimeError(f"{len(delays)} deliveries of {count}")
    what = f"received to 2xx, {rate} events/s"
    return [
        *(_percentile(what, delays, p) for p in (50, 95)),
        *percentiles(f"a bare commit beside it, {rate} events/s", commits)[:1],
    ]


async def _send(client: httpx2.AsyncClient, process: Process, rate: int, count: int) -> None:
    """Post events one at a time, each at its moment."""
    began = time.monotonic()
    for n in range(count):
        await asyncio.sleep(max(0.0, began + n / rate - time.monotonic()))
        answer = await bridge.post(process.url, bridge.body(), client=client)
        answer.raise_for_status()


def _percentile(what: str, seconds: list[float], p: int) -> Figure:
    ms = sorted(1000 * second for second in seconds)
    return Figure(
        f"{what}, p{p}", quantiles(ms, n=100, method="inclusive")[p - 1], "ms", ms[0], ms[-1]
    )


async def _memory(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return how much more a process holds once so many deliveries wait for a dead callback."""
    async with _running(postgres) as (database, process):
        await _fill(database, effort.relay_pending)  # the window holds the newest, webhooks or not
        await asyncio.sleep(SETTLE_S)
        before = _resident_bytes(process)
        await _add(process, f"http://127.0.0.1:{free_port()}/", start="start")
        owner = await asyncpg.connect(database.owner_dsn)
        try:
            async with asyncio.timeout(WITHIN_S):
                while not await owner.fetchval("SELECT open_until FROM causeway.webhook"):
                    await asyncio.sleep(0.1)
        finally:
            await owner.close()
        await asyncio.sleep(SETTLE_S)
        more = (_resident_bytes(process) - before) / 2**20
    what = f"more memory with {effort.relay_pending} deliveries pending"
    return [Figure(what, more, "MiB", more, more)]


def _resident_bytes(process: Process) -> int:
    """Return what the process has in memory."""
    pages = int(Path(f"/proc/{process.popen.pid}/statm").read_text().split()[1])
    return pages * 4096


@asynccontextmanager
async def _running(postgres: EmbeddedPostgres) -> AsyncIterator[tuple[Database, Process]]:
    async with fresh_database(postgres) as database:
        with _service(database) as process:
            yield database, process


@contextmanager
def _service(database: Database) -> Iterator[Process]:
    env = environment(
        DATABASE_URL=database.service_dsn,
        CAUSEWAY_SECRET_KEY="bench-0123456789-0123456789-0123456789",
        CAUSEWAY_RELAY_ALLOW_HTTP="true",
        CAUSEWAY_RELAY_ALLOWED_NETWORKS="127.0.0.0/8",
        CAUSEWAY_RELAY_BACKFILL_PER_S="1000000",
    )
    with (
        tempfile.NamedTemporaryFile(prefix="causeway-relay-", suffix=".log") as log,
        service_process(env, Path(log.name)) as process,
    ):
        yield process


async def _add(process: Process, url: str, start: object = "now") -> None:
    headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    async with httpx2.AsyncClient(headers=headers) as client:
        answer = await client.post(f"{process.url}/api/webhooks", json={"url": url, "start": start})
        answer.raise_for_status()


async def _fill(database: Database, count: int) -> None:
    fresh = new_events(seed=1)
    async with open_log(database) as eventlog:
        for _ in range(0, count, BATCH):
            await eventlog.append(list(islice(fresh, BATCH)), timeout_s=APPEND_TIMEOUT_S)
