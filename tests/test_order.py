"""The promise that all else stands on: positions are dense and appear in order, whoever appends.

Writers are processes of their own, each with its own session, and a reader tails all the while.
"""

import asyncio
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg

from service.db import Connection
from service.event import Event, NewEvent
from service.eventlog import EventLog
from tests.bridge import TEST_EVENT, new_event
from tests.running import ROOT, START_S, Database, eventually
from tests.stored import (
    APPEND_LOCK,
    append,
    fill,
    open_log,
    positions,
    read_all,
    wait_until_blocked,
)

WRITERS = 3
BATCHES = 80
SHARED = 1500  # events that every writer appends, each in an order of its own
OWN = 300
TESTS = 10

# A writer: its own events, the shared ones and some tests, in shuffled batches. Prints what it got.
WRITER = """
import asyncio, random, sys
from datetime import UTC, datetime
from service import db
from service.event import parse_event
from service.eventlog import EventLog

TEST = sys.stdin.buffer.read()

def parse(body):
    return parse_event(body, "default", datetime.now(UTC))

async def main(dsn, me, shared, own, tests, batches):
    bodies = [b'{"type":"shared","n":%d}' % n for n in range(shared)]
    bodies += [b'{"type":"own","writer":%d,"n":%d}' % (me, n) for n in range(own)]
    bodies += [TEST] * tests
    random.Random(me).shuffle(bodies)
    db.CONNECT_TIMEOUT_S = float(PATIENCE_S)
    connection = await db.connect(dsn)
    # The start waits for the slowest writer.
    await connection.execute("SET lock_timeout = 0; SET statement_timeout = 0")
    log = EventLog(connection)
    size = -(-len(bodies) // batches)
    for start in range(0, len(bodies), size):
        batch = [parse(body) for body in bodies[start : start + size]]
        appended = await log.append(batch, timeout_s=float(PATIENCE_S))
        for event, place in zip(batch, appended, strict=True):
            print(place.position, int(place.is_known), event.digest.hex(), flush=False)

asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
""".replace("PATIENCE_S", str(2 * START_S))


@dataclass
class Reader:
    """Tails the log by position, as every subscriber does, and keeps all that it saw."""

    log: EventLog
    seen: list[Event] = field(default_factory=list)

    async def follow(self) -> None:
        """Read without a pause, for ever; an order that is not dense raises."""
        while True:
            page = await self.log.read_after(len(self.seen), limit=random.choice((1, 7, 500)))
            first = len(self.seen) + 1
            assert positions(page) == list(range(first, first + len(page))), "missed or twice"
            self.seen += page

    async def reach(self, position: int, task: "asyncio.Task[None]") -> None:
        """Return when all up to `position` was seen; raise what stopped the reader before."""
        await eventually(lambda: task.done() or len(self.seen) >= position)
        if task.done():
            task.result()


@asynccontextmanager
async def tailing(database: Database) -> AsyncIterator[tuple[Reader, "asyncio.Task[None]"]]:
    async with open_log(database) as log:
        reader = Reader(log)
        task = asyncio.create_task(reader.follow())
        try:
            yield reader, task
        finally:
            task.cancel()
            await asyncio.wait([task])


@dataclass(frozen=True)
class Answer:
    """What a writer was told of one event."""

    position: int
    is_known: bool
    digest: str


async def write(dsn: str, writer: int) -> list[Answer]:
    """Run one writer as a process of its own; return what it was told."""
    numbers = (writer, SHARED, OWN, TESTS, BATCHES)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WRITER, dsn, *map(str, numbers)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(TEST_EVENT)
    assert process.returncode == 0, errors.decode()
    rows = [line.split() for line in output.decode().splitlines()]
    return [Answer(int(position), known == "1", digest) for position, known, digest in rows]


async def test_three_processes_append_and_a_tailing_reader_sees_one_dense_order(
    database: Database, owner: Connection
) -> None:
    async with tailing(database) as (reader, task):
        async with owner.transaction():
            await owner.execute(APPEND_LOCK)
            writers = [
                asyncio.create_task(write(database.service_dsn, writer))
                for writer in range(WRITERS)
            ]
            await wait_until_blocked(owner, sessions=WRITERS, within_s=START_S)
        told = await asyncio.gather(*writers)
        answers = [answer for writer in told for answer in writer]
        fresh = [answer for answer in answers if not answer.is_known]
        await reader.reach(len(fresh), task)
        final = await read_all(reader.log)

    assert len(answers) == WRITERS * (SHARED + OWN + TESTS)
    assert len(final) == SHARED + WRITERS * (OWN + TESTS), "each once, tests each time"
    assert reader.seen == final, "what was read once is what is there"
    assert Counter(answer.position for answer in fresh) == Counter(positions(final))
    digests = {event.position: event.digest.hex() for event in final}
    assert all(digests[answer.position] == answer.digest for answer in answers)
    winners = {writer for writer in range(WRITERS) if has_shared(told[writer])}
    assert len(winners) > 1, "the writers did not meet: nothing was tried"


def has_shared(answers: list[Answer]) -> bool:
    """True if this writer both won and lost a race for a shared event."""
    return len({answer.is_known for answer in answers}) == 2


async def holder(dsn: str) -> Connection:
    """Open the session of a writer that will commit late."""
    return await asyncpg.connect(dsn)


async def test_a_late_commit_delays_the_others_and_is_not_skipped(
    database: Database, owner: Connection
) -> None:
    late = await holder(database.service_dsn)
    try:
        async with tailing(database) as (reader, task):
            await fill(reader.log, 2)
            transaction = late.transaction()
            await transaction.start()
            slow = [new_event(), new_event()]
            assert [a.position for a in await append(EventLog(late), *slow)] == [3, 4]
            waiting = asyncio.create_task(append(reader.log, new_event()))
            await wait_until_blocked(owner)
            await reader.reach(2, task)
            assert not waiting.done(), "a younger event must not be seen before the late one"
            await transaction.commit()
            assert [a.position for a in await waiting] == [5]
            await reader.reach(5, task)
            assert [event.body for event in reader.seen[2:4]] == [event.body for event in slow]
    finally:
        await late.close()


async def test_a_late_writer_that_gives_up_leaves_no_hole(
    database: Database, owner: Connection
) -> None:
    late = await holder(database.service_dsn)
    try:
        async with tailing(database) as (reader, task):
            known = (await fill(reader.log, 1))[0]
            transaction = late.transaction()
            await transaction.start()
            given_up: NewEvent = new_event()
            assert (await append(EventLog(late), given_up))[0].position == 2
            waiting = asyncio.create_task(append(reader.log, given_up, known))
            await wait_until_blocked(owner)
            await transaction.rollback()
            assert [(a.position, a.is_known) for a in await waiting] == [(2, False), (1, True)]
            await reader.reach(2, task)
    finally:
        await late.close()


async def test_a_writer_killed_while_it_holds_the_lock_frees_it(
    database: Database, owner: Connection
) -> None:
    late = await holder(database.service_dsn)
    async with tailing(database) as (reader, task):
        await late.execute("BEGIN")
        await append(EventLog(late), new_event())
        waiting = asyncio.create_task(append(reader.log, new_event()))
        await wait_until_blocked(owner)
        late.terminate()
        assert [a.position for a in await waiting] == [1]
        await reader.reach(1, task)
