"""Named consumers with real processes: services and clients that are killed, and four shards."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from service.eventlog import EventLog
from tests.bridge import new_event
from tests.consuming import expire, look, make
from tests.logkeeping import Owner
from tests.running import (
    ROOT,
    WITHIN_S,
    Database,
    Process,
    environment,
    eventually,
    service_process,
)
from tests.stored import append, open_log

LEASE_S = 3600  # it ends when the test says so
ITEMS = 97


@dataclass(slots=True)
class Worker:
    """A client process, and what it has written down."""

    path: Path
    popen: "subprocess.Popen[bytes]"

    def _lines(self) -> list[list[str]]:
        text = self.path.read_text() if self.path.exists() else ""
        return [line.split() for line in text.split("\n")[:-1]]

    @property
    def events(self) -> list[tuple[int, int]]:
        """Position and item of each event, in the order in which it worked on them."""
        return [(int(a), int(b)) for a, b in self._lines() if a.isdigit()]

    @property
    def leases(self) -> list[int]:
        return [int(b) for a, b in self._lines() if a == "lease"]

    @property
    def acked(self) -> int:
        """The last position that it knows to be acknowledged."""
        return max((int(b) for a, b in self._lines() if a == "acked"), default=0)

    @property
    def positions(self) -> list[int]:
        return [position for position, _ in self.events]


@contextmanager
def working(path: Path, urls: list[str], *, shard: str = "0/1", every: int = 1) -> Iterator[Worker]:
    """Run a client process until the end of the block."""
    command = [sys.executable, "-m", "tests.consumer_worker", str(path), shard, str(every), *urls]
    popen = subprocess.Popen(command, cwd=ROOT, env=environment())
    try:
        yield Worker(path, popen)
    finally:
        popen.kill()
        popen.wait()


async def taken_over(owner: Owner, condition: Callable[[], object]) -> None:
    """Let every lease run out until `condition()` is true: who lives renews its own."""
    async with asyncio.timeout(5 * WITHIN_S):  # for what takes five steps and more
        while not condition():
            await expire(owner)
            await asyncio.sleep(0.2)


async def fill(log: EventLog, count: int) -> None:
    """Commit `count` events. Items take turns: position p is of the item 1 + (p - 1) % ITEMS."""
    head = (await log.bounds()).head_position
    for first in range(head, head + count, 500):
        last = min(first + 500, head + count)
        await append(log, *(new_event(item_id=1 + n % ITEMS) for n in range(first, last)))


def services(stack: AsyncExitStack, database: Database, folder: Path, count: int) -> list[Process]:
    """Start `count` service processes on one database."""
    return [
        stack.enter_context(
            service_process(
                environment(DATABASE_URL=database.service_dsn, CAUSEWAY_HEARTBEAT_S="0.5"),
                folder / f"service-{n}.log",
            )
        )
        for n in range(count)
    ]


def assert_nothing_skipped(worked: list[list[int]], last: int) -> None:
    """Every position was worked on, and each worker's stream never went over one."""
    assert set().union(*worked) == set(range(1, last + 1))
    for positions in worked:
        for before, after in pairwise(positions):
            assert after <= before + 1, f"{before + 1} was skipped"


async def test_a_service_killed_under_its_holder_loses_nothing_for_the_standby_on_the_other(
    database: Database, owner: Owner, tmp_path: Path
) -> None:
    async with open_log(database) as log, AsyncExitStack() as stack:
        first, second = services(stack, database, tmp_path, 2)
        await fill(log, 80)
        await make(first.url, lease_s=LEASE_S)
        holder = stack.enter_context(working(tmp_path / "holder", [first.url]))
        await eventually(lambda: holder.acked >= 20)
        standby = stack.enter_context(working(tmp_path / "standby", [second.url]))
        await fill(log, 80)
        await eventually(lambda: holder.acked >= 100)
        first.kill()
        acked = holder.acked
        await fill(log, 40)
        assert not standby.events, "the lease is the dead one's until its end"
        await taken_over(owner, lambda: standby.events)
        # From the last acknowledgement; one may have been on its way when the service was killed.
        assert acked <= standby.positions[0] - 1 <= acked + 1
        assert standby.leases[0] > holder.leases[-1]
        await eventually(lambda: standby.positions[-1] == 200)
        assert_nothing_skipped([holder.positions, standby.positions], 200)
        await settled(second.url, 200)


async def settled(url: str, place: int) -> None:
    """Wait until every shard's place is `place`."""
    deadline = asyncio.get_running_loop().time() + WITHIN_S
    while {shard["position"] for shard in (await look(url))["shards"]} != {place}:
        assert asyncio.get_running_loop().time() < deadline, await look(url)
        await asyncio.sleep(0.05)


async def test_a_killed_client_is_replaced_and_what_it_had_not_confirmed_comes_again(
    database: Database, tmp_path: Path
) -> None:
    async with open_log(database) as log, AsyncExitStack() as stack:
        [service] = services(stack, database, tmp_path, 1)
        await fill(log, 300)
        await make(service.url, lease_s=LEASE_S)
        holder = stack.enter_context(working(tmp_path / "holder", [service.url], every=10))
        await eventually(lambda: holder.acked >= 100)
        holder.popen.kill()
        holder.popen.wait()
        standby = stack.enter_context(working(tmp_path / "standby", [service.url], every=10))
        await eventually(lambda: standby.events)
        assert holder.acked <= standby.positions[0] - 1 <= holder.acked + 10
        await eventually(lambda: standby.positions[-1] == 300)
        assert_nothing_skipped([holder.positions, standby.positions], 300)
        await settled(service.url, 300)


async def test_four_shards_work_through_ten_thousand_events_and_a_killed_service(
    database: Database, owner: Owner, tmp_path: Path
) -> None:
    count, shards = 10_000, 4
    async with open_log(database) as log, AsyncExitStack() as stack:
        first, second = services(stack, database, tmp_path, 2)
        # A third of it is how long a place may take to move past what is another shard's.
        await make(first.url, lease_s=24)
        urls = [first.url, second.url]
        workers = [
            stack.enter_context(
                working(
                    tmp_path / f"shard-{n}",
                    urls if n % 2 else urls[::-1],
                    shard=f"{n}/{shards}",
                    every=50,
                )
            )
            for n in range(shards)
        ]
        await eventually(lambda: all(worker.leases for worker in workers))
        await fill(log, count // 2)
        await eventually(lambda: all(worker.acked > 1000 for worker in workers))
        first.kill()
        await fill(log, count // 2)
        await taken_over(owner, lambda: seen(workers) >= count)
        await settled(second.url, count)
        assert_order_of_items(workers, count)


def seen(workers: list[Worker]) -> int:
    """Return how many different events were worked on."""
    return len({position for worker in workers for position in worker.positions})


def assert_order_of_items(workers: list[Worker], count: int) -> None:
    """Each item is in one shard, and none of its events comes before the one that precedes it."""
    assert seen(workers) == count
    owners: dict[int, int] = {}
    for number, worker in enumerate(workers):
        newest: dict[int, int] = {}
        for position, item in worker.events:
            assert owners.setdefault(item, number) == number
            # Forward to the item's next event, or back to what was not confirmed; never past one.
            assert position <= newest.get(item, item - ITEMS) + ITEMS
            newest[item] = position
    assert len(owners) == ITEMS
