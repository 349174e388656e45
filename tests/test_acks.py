"""Acknowledgements on their way to the database: batched, tried again, refused, never lost."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from service import acks as acks_module
from service.acks import AHEAD_S, LINGER_S, Acks
from service.consumer import Ack, Consumers
from service.errors import (
    AckAhead,
    LeaseLost,
    LogDiverged,
    LogUnavailable,
    Overloaded,
    Problem,
    ShardsHeld,
    UnknownConsumer,
)
from tests.consuming import NAME, held, open_consumers, put
from tests.logkeeping import Owner
from tests.running import WITHIN_S, Database, eventually
from tests.stored import fill, open_log

Outcome = tuple[str, int | None]
# Whatever writes to a consumer's place leaves the number of its transaction.
NOTE_COMMITS = """
CREATE TABLE causeway.noted (number xid8);
CREATE FUNCTION causeway.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO causeway.noted VALUES (pg_current_xact_id());
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER UPDATE ON causeway.consumer_shard EXECUTE FUNCTION causeway.note();
"""


class Counting(Consumers):
    """Consumers that take every acknowledgement, unless `outcomes` says otherwise, in order."""

    def __init__(self) -> None:
        self.batches: list[list[Ack]] = []
        self.outcomes: list[Outcome] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def ack(self, acks: Sequence[Ack]) -> list[Outcome]:
        self.batches.append(list(acks))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [self.outcomes.pop(0) if self.outcomes else ("acked", a.position) for a in acks]


@pytest.fixture
async def counting() -> Counting:
    return Counting()


@pytest.fixture
async def acks(counting: Counting) -> AsyncIterator[Acks]:
    acks = Acks(counting)
    task = asyncio.create_task(acks.run())
    yield acks
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_many_acknowledgements_share_a_batch_and_each_has_its_own_answer(
    acks: Acks, counting: Counting
) -> None:
    places = await asyncio.gather(*(acks.ack(Ack(NAME, position)) for position in range(500)))
    assert places == list(range(500))
    assert [len(batch) for batch in counting.batches] == [500]


async def test_a_storm_of_acknowledgements_costs_few_commits(
    database: Database, owner: Owner
) -> None:
    async with open_log(database) as log, open_consumers(database) as consumers:
        await fill(log, 1000)
        await put(consumers, log)
        lease = await consumers.take(NAME, 0, 1, "process/1")
        await consumers.renew([held(lease, 1000)])
        await owner.execute(NOTE_COMMITS)
        acks = Acks(consumers)
        task = asyncio.create_task(acks.run())
        clock = asyncio.get_running_loop().time
        began = clock()
        for first in range(1, 1001, 50):  # each 50 at once, and the next when they are done
            tries = (acks.ack(Ack(NAME, first + n)) for n in range(50))
            assert min(await asyncio.gather(*tries)) == first + 49  # it has the batch's furthest
        elapsed = clock() - began
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await consumers.read(NAME)).furthest_behind.position == 1000
    used = await owner.fetchval("SELECT count(DISTINCT number) FROM causeway.noted")
    assert used == 20
    assert used <= elapsed / LINGER_S


async def test_what_the_sender_has_not_written_down_yet_is_looked_at_again(
    acks: Acks, counting: Counting
) -> None:
    counting.outcomes = [("ahead", 3), ("ahead", 3), ("acked", 9)]
    assert await acks.ack(Ack(NAME, 9)) == 9
    assert len(counting.batches) == 3


async def test_what_nobody_was_sent_is_refused_after_a_moment(
    acks: Acks, counting: Counting
) -> None:
    counting.outcomes = [("ahead", 3)] * 1000
    clock = asyncio.get_running_loop().time
    began = clock()
    with pytest.raises(AckAhead) as refused:
        await acks.ack(Ack(NAME, 9))
    assert clock() - began >= AHEAD_S
    assert len(counting.batches) <= 1 + (clock() - began) / LINGER_S
    assert refused.value.details == {"position": 3}


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        ("unknown", UnknownConsumer),
        ("other_shards", ShardsHeld),
        ("lease_lost", LeaseLost),
        ("diverged", LogDiverged),
    ],
)
async def test_each_refusal_has_its_error_at_once(
    acks: Acks, counting: Counting, outcome: str, error: type[Problem]
) -> None:
    counting.outcomes = [(outcome, 3)]
    with pytest.raises(error):
        await acks.ack(Ack(NAME, 9, lease=2, digits="00000000"))
    assert len(counting.batches) == 1


async def test_a_refused_one_takes_no_other_with_it(acks: Acks, counting: Counting) -> None:
    counting.outcomes = [("acked", 4), ("lease_lost", 3), ("acked", 4)]
    first, second, third = await asyncio.gather(
        *(acks.ack(Ack(NAME, position)) for position in (3, 4, 4)), return_exceptions=True
    )
    assert (first, third) == (4, 4)
    assert isinstance(second, LeaseLost)


async def test_a_database_that_is_away_fails_its_batch_and_the_next_one_gets_through(
    acks: Acks, counting: Counting
) -> None:
    counting.error = LogUnavailable("away")
    with pytest.raises(LogUnavailable):
        await acks.ack(Ack(NAME, 1))
    counting.error = None
    assert await acks.ack(Ack(NAME, 1)) == 1


async def test_an_unknown_error_ends_the_loop_and_leaves_nobody_waiting(
    counting: Counting,
) -> None:
    acks = Acks(counting)
    run = asyncio.create_task(acks.run())
    counting.gate.clear()
    counting.error = RuntimeError("a bug")
    waiting = [asyncio.create_task(acks.ack(Ack(NAME, 1)))]
    await eventually(lambda: counting.batches)
    waiting.append(asyncio.create_task(acks.ack(Ack(NAME, 2))))  # behind the batch in flight
    await asyncio.sleep(0)
    counting.gate.set()
    for answer in await asyncio.wait_for(
        asyncio.gather(*waiting, return_exceptions=True), WITHIN_S
    ):
        assert isinstance(answer, LogUnavailable)
    with pytest.raises(RuntimeError):
        await run


async def test_a_caller_that_has_gone_hurts_nobody(acks: Acks, counting: Counting) -> None:
    counting.gate.clear()
    gone = asyncio.create_task(acks.ack(Ack(NAME, 1)))
    there = asyncio.create_task(acks.ack(Ack(NAME, 2)))
    await eventually(lambda: counting.batches)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    counting.gate.set()
    assert await there == 2
    assert await acks.ack(Ack(NAME, 3)) == 3


async def test_too_many_that_wait_are_refused_and_say_when_to_come_back(
    acks: Acks, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acks_module, "MAX_WAITING", 3)
    counting.gate.clear()
    waiting = [asyncio.create_task(acks.ack(Ack(NAME, n))) for n in range(1)]
    await eventually(lambda: counting.batches)
    waiting += [asyncio.create_task(acks.ack(Ack(NAME, n))) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await acks.ack(Ack(NAME, 9))
    assert refused.value.retry_after_s
    counting.gate.set()
    assert await asyncio.gather(*waiting) == [0, 0, 1, 2]
    assert await acks.ack(Ack(NAME, 9)) == 9


async def test_a_batch_has_a_bound(
    acks: Acks, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acks_module, "BATCH_ACKS", 40)
    await asyncio.gather(*(acks.ack(Ack(NAME, position)) for position in range(100)))
    assert [len(batch) for batch in counting.batches] == [40, 40, 20]
