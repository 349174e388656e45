"""How many webhooks a second one process takes over HTTP.

`wrk` (one thread) sends distinct events, signed before, over many connections. Three servers take
turns: the service as it is (`python -m service serve`: verified, parsed, committed in groups, and
followed by the tail), the same app with the append replaced by an answer at once, and what a
competent user would write without Causeway: FastAPI and asyncpg, one row a request, in no order
that a reader could rely on (`ingest_plain.py`). wrk, the server and Postgres share the machine's
cores.
"""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import asyncpg

from service.embedded import EmbeddedPostgres
from service.payloads import events as bridge_events
from service.signature import HEADER, sign
from tests.bench.children import child
from tests.bench.databases import fresh_database
from tests.bench.effort import Effort
from tests.bench.figures import Figure, alternate, at_least, figure, ratio
from tests.running import SECRET, Database, environment, service_process

SCRIPT = Path(__file__).with_name("ingest.lua")
EVENTS_PER_S = 25_000  # more than anything here takes: a turn must not run out of events
ANSWER_S = 60  # wrk's own 2 s are less than a stall of a busy machine
PATH = "/webhooks/bridge"
COUNT_SERVICE = "SELECT count(*) FROM causeway.event"
COUNT_PLAIN = "SELECT count(*) FROM webhook_event"


@dataclass(frozen=True, slots=True)
class Contender:
    """A server that takes webhooks, and how to count what it keeps (None: nothing)."""

    url: str
    count: str | None = None
    dsn: str = ""

    async def counted(self) -> int:
        """Return how many events it has kept."""
        if self.count is None:
            return 0
        connection = await asyncpg.connect(self.dsn)
        try:
            return int(await connection.fetchval(self.count))
        finally:
            await connection.close()


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return webhooks a second of the three, and their ratios. Raises RuntimeError without wrk."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed (Debian: apt install wrk)")
    async with _contenders(postgres) as contenders:
        with tempfile.TemporaryDirectory(prefix="causeway-ingest-") as folder:
            files = [Path(folder) / f"{number}.requests" for number in range(effort.rounds + 1)]
            fresh = bridge_events(seed=2)
            for file in files:
                write_requests(file, islice(fresh, EVENTS_PER_S * effort.ingest_s))
            for contender in contenders.values():  # warm: connections, caches, plans
                await run_wrk(contender, files[-1], effort)
            turns = {
                name: lambda number, contender=contender: run_wrk(contender, files[number], effort)
                for name, contender in contenders.items()
            }
            rates = await alternate(effort.rounds, turns)
    return [
        *(figure(name, "webhooks/s", values) for name, values in rates.items()),
        ratio("service to itself without append", *_pair(rates, "without append"), at_least(0.4)),
        ratio("service to FastAPI + asyncpg", *_pair(rates, "FastAPI + asyncpg"), at_least(4)),
    ]


def _pair(rates: dict[str, list[float]], other: str) -> tuple[list[float], list[float]]:
    return rates["service"], rates[other]


@asynccontextmanager
async def _contenders(postgres: EmbeddedPostgres) -> AsyncIterator[dict[str, Contender]]:
    async with AsyncExitStack() as stack:
        ours, nothing, plain = [
            await stack.enter_async_context(fresh_database(postgres)) for _ in range(3)
        ]
        yield {
            "service": stack.enter_context(_service(ours)),
            "without append": stack.enter_context(_server("ingest_nothing", nothing)),
            "FastAPI + asyncpg": stack.enter_context(_server("ingest_plain", plain, COUNT_PLAIN)),
        }


@contextmanager
def _service(database: Database) -> Iterator[Contender]:
    with tempfile.NamedTemporaryFile(prefix="causeway-ingest-", suffix=".log") as log:
        env = environment(DATABASE_URL=database.service_dsn)
        with service_process(env, Path(log.name)) as process:
            yield Contender(process.url, COUNT_SERVICE, database.owner_dsn)


@contextmanager
def _server(module: str, database: Database, count: str | None = None) -> Iterator[Contender]:
    env = environment(DATABASE_URL=database.owner_dsn)
    with child(f"tests.bench.{module}", env) as server:
        url = f"http://127.0.0.1:{server.hello['port']}"
        yield Contender(url, count, database.owner_dsn)


def write_requests(file: Path, fresh: Iterator[tuple[str, bytes]]) -> None:
    with file.open("wb") as out:
        for _, body in fresh:
            head = (
                f"POST {PATH} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
                f"{HEADER}: {sign(body, (SECRET,))}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            request = head.encode() + body
            out.write(b"%08d" % len(request) + request)


async def run_wrk(contender: Contender, file: Path, effort: Effort) -> float:
    """Send for `ingest_s`; return webhooks a second that were answered 200.

    For longer where a stall lets none be answered in that time. Raises RuntimeError if any was not
    answered so, or if fewer events were kept than were.
    """
    before = await contender.counted()
    seconds = effort.ingest_s
    result = await _wrk(contender, file, effort.ingest_connections, seconds)
    while not result["requests"]:
        seconds *= 2
        result = await _wrk(contender, file, effort.ingest_connections, seconds)
    if contender.count is not None:
        kept = await contender.counted() - before
        if result["again"] or kept < result["requests"]:
            raise RuntimeError(f"{contender.url}: only {kept} events were kept: {result}")
    return float(result["requests"] / result["microseconds"] * 1e6)


async def _wrk(contender: Contender, file: Path, connections: int, seconds: int) -> dict[str, int]:
    """Return what became of the requests. Raises RuntimeError if any was refused or failed."""
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s"),
        *("--timeout", f"{ANSWER_S}s"),
        *("-s", SCRIPT, contender.url + PATH, "--", file),
        stdout=asyncio.subprocess.PIPE,
    )
    output = (await process.communicate())[0].decode()
    result: dict[str, int] = json.loads(output.splitlines()[-1])
    if result["refused"] or result["failed"]:
        raise RuntimeError(f"{contender.url}: not all webhooks were taken: {result}")
    return result
