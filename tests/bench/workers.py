"""How many more webhooks a second two workers take than one (`serve --roles ingest --workers 2`).

The same load as `ingest` (`wrk`, distinct signed events, every one committed), on one service with
one worker and on one with two, by turns. wrk and Postgres need processor time as well: two workers
can take 1.5 times as much only where there are cores for them, so with fewer than four there is no
target, and the table says what one webhook costs in processor time: that is what more cores divide.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from service.embedded import EmbeddedPostgres
from service.payloads import events as bridge_events
from tests.bench.databases import fresh_database
from tests.bench.effort import Effort
from tests.bench.figures import Figure, alternate, at_least, figure, ratio
from tests.bench.ingest import (
    COUNT_SERVICE,
    EVENTS_PER_S,
    Contender,
    run_wrk,
    write_requests,
)
from tests.running import WITHIN_S, Database, Process, environment, service_process

CORES_FOR_TWO = 4  # two workers, Postgres, wrk
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class _Side:
    """One of the two, and what its processes used: seconds of a processor for each webhook."""

    contender: Contender
    process: Process
    costs_s: list[float] = field(default_factory=list)

    async def turn(self, file: Path, effort: Effort) -> float:
        """Return webhooks a second."""
        before = _processor_s(self.process.popen.pid)
        rate = await run_wrk(self.contender, file, effort)
        used = _processor_s(self.process.popen.pid) - before
        self.costs_s.append(used / (rate * effort.ingest_s))
        return rate


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return webhooks a second of both, and their ratio. Raises RuntimeError without wrk."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed (Debian: apt install wrk)")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="causeway-workers-")))
        sides = {}
        for name, count in (("one worker", 1), ("two workers", 2)):
            database = await stack.enter_async_context(fresh_database(postgres))
            sides[name] = stack.enter_context(_service(database, folder / f"{count}.log", count))
            await _all_listening(sides[name].process, count)
        fresh = bridge_events(seed=3)
        files = [folder / f"{number}.requests" for number in range(effort.rounds + 1)]
        for file in files:
            write_requests(file, islice(fresh, EVENTS_PER_S * effort.ingest_s))
        for side in sides.values():  # warm: connections, caches, plans
            await side.turn(files[-1], effort)
            side.costs_s.clear()
        turns = {
            name: lambda number, side=side: side.turn(files[number], effort)
            for name, side in sides.items()
        }
        rates = await alternate(effort.rounds, turns)
    cores = len(os.sched_getaffinity(0))
    target = at_least(1.5) if cores >= CORES_FOR_TWO else None
    return [
        *(figure(name, "webhooks/s", values) for name, values in rates.items()),
        ratio(
            f"two workers to one, on {cores} cores",
            rates["two workers"],
            rates["one worker"],
            target,
        ),
        *(
            figure(f"{name}, processor time of a webhook", "µs", [s * 1e6 for s in side.costs_s])
            for name, side in sides.items()
        ),
    ]


@contextmanager
def _service(database: Database, log: Path, count: int) -> Iterator[_Side]:
    env = environment(DATABASE_URL=database.service_dsn)
    with service_process(env, log, "--workers", str(count), "--roles", "ingest") as process:
        yield _Side(Contender(process.url, COUNT_SERVICE, database.owner_dsn), process)


async def _all_listening(process: Process, count: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while process.output().count('"listening"') < count:
            await asyncio.sleep(0.05)


def _processor_s(pid: int) -> float:
    """Return the processor time that a process and its children that run have used."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    fields = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in pids]
    return sum(int(found[11]) + int(found[12]) for found in fields) / TICKS_PER_S
