"""What the benches of load share: the service, its probe, webhooks offered to it, subscribers."""

import asyncio
import math
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.embedded import EmbeddedPostgres
from tests.bench.children import Child, child
from tests.bench.databases import fresh_database
from tests.bench.figures import Figure, Target, figure
from tests.bench.probe import Probe, probing
from tests.running import Database, Process, environment, service_process

CLOSED_CONNECTIONS = 256


@dataclass(frozen=True, slots=True)
class Loaded:
    """One service process to be loaded."""

    process: Process
    database: Database
    probe: Probe

    @property
    def port(self) -> str:
        """Where it listens."""
        return self.process.url.rpartition(":")[2]

    @contextmanager
    def offering(self, connections: int = CLOSED_CONNECTIONS) -> Iterator[Child]:
        """Whoever offers it webhooks on so many connections."""
        with child("tests.bench.offer", environment(), self.port, str(connections)) as offer:
            yield offer

    @contextmanager
    def listening(self, processes: int) -> Iterator[list[Child]]:
        """So many processes that can open streams."""
        with ExitStack() as stack:
            module = "tests.bench.listener"
            yield [
                stack.enter_context(child(module, environment(), self.port))
                for _ in range(processes)
            ]


@asynccontextmanager
async def loaded(postgres: EmbeddedPostgres, **settings: str) -> AsyncIterator[Loaded]:
    """Run a service on a fresh database. One token may open all streams; it logs warnings."""
    async with fresh_database(postgres) as database:
        env = environment(
            DATABASE_URL=database.service_dsn,
            CAUSEWAY_STREAM_MAX_PER_TOKEN="20000",
            CAUSEWAY_LOG_LEVEL="warning",
            **settings,
        )
        with (
            tempfile.NamedTemporaryFile(prefix="causeway-load-", suffix=".log") as log,
            service_process(env, Path(log.name)) as process,
        ):
            async with probing(process, database) as probe:
                yield Loaded(process, database, probe)


async def ask(one: Child, **command: object) -> dict[str, Any]:
    """Send a command to a child, and wait for its answer while the loop goes on."""
    return await asyncio.to_thread(one.ask, **command)


async def ask_all(some: list[Child], **command: object) -> list[dict[str, Any]]:
    """Send a command to children, which obey at the same time; return their answers."""
    return list(await asyncio.gather(*(ask(one, **command) for one in some)))


async def most_taken(offer: Child, seconds: float) -> float:
    """Return the webhooks a second that are taken from clients that wait for their answers."""
    await ask(offer, rate=None, seconds=seconds / 4, made=0)  # warm: caches, plans
    done = await ask(offer, rate=None, seconds=seconds, made=math.ceil(seconds * 20_000))
    return float(done["statuses"]["200"]["count"] / done["elapsed_s"])


def spread_figures(
    what: str, spread: dict[str, float], target: Target | None = None
) -> list[Figure]:
    """Return p50 and p99 (this is held against `target`) of what a child measured."""
    return [
        figure(f"{what}, p50", "ms", [spread["p50_ms"]]),
        Figure(f"{what}, p99", spread["p99_ms"], "ms", spread["p50_ms"], spread["max_ms"], target),
    ]
