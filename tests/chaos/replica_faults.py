"""Faults of the service's own processes."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.chaos.fault import Fault
from tests.chaos.schedule import Planned
from tests.chaos.world import World


@asynccontextmanager
async def _killed(world: World, planned: Planned) -> AsyncIterator[None]:
    replica = world.replicas[planned.replica]
    await replica.end(signal.SIGKILL)
    try:
        yield
    finally:
        replica.start()


@asynccontextmanager
async def _ended(world: World, planned: Planned) -> AsyncIterator[None]:
    replica = world.replicas[planned.replica]
    code = await replica.end(signal.SIGTERM)
    if code != 0:
        world.history.ends.append(f"replica {planned.replica} ended with {code} after SIGTERM")
    try:
        yield
    finally:
        replica.start()


@asynccontextmanager
async def _frozen(world: World, planned: Planned) -> AsyncIterator[None]:
    replica = world.replicas[planned.replica]
    pids = [replica.pid, *replica.children()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def _worker_killed(world: World, planned: Planned) -> AsyncIterator[None]:
    workers = world.replicas[-1].children()
    assert workers, "the last replica has no workers"
    os.kill(workers[int(planned.draw * len(workers))], signal.SIGKILL)
    yield


FAULTS = (
    Fault(
        "replica_killed",
        "`kill -9` of a replica; started again after the hold",
        "a 200 is in the log; Bridge, streams and consumers go on at the other replica",
        "replica",
        (1.0, 4.0),
        _killed,
    ),
    Fault(
        "replica_ended",
        "SIGTERM of a replica; started again after the hold",
        "exit code 0, no 200 lost, streams end with their last id",
        "replica",
        (1.0, 3.0),
        _ended,
    ),
    Fault(
        "replica_frozen",
        "SIGSTOP of a replica (all its processes), SIGCONT after the hold",
        "the other replica appends; leases move on; what wakes up acknowledges nothing stale",
        "replica",
        (3.0, 8.0),
        _frozen,
    ),
    Fault(
        "worker_killed",
        "`kill -9` of one of two workers of a port",
        "the other worker takes its calls; the parent starts another",
        "replica",
        (0.5, 1.0),
        _worker_killed,
    ),
)
