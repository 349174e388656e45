"""Named consumers in the database: places, leases, acknowledgements, shards, lag."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from service.consumer import Ack, Consumers, Lease
from service.db import create_pool, transaction
from service.errors import ConsumerHeld, LogUnavailable, ShardsHeld, UnknownConsumer
from service.eventlog import EventLog
from service.filter import Filter
from tests.bridge import USER, new_event
from tests.consuming import NAME, expire, held, open_consumers, put
from tests.logkeeping import Owner, prune, replace_log
from tests.running import WITHIN_S, Database
from tests.stored import append, fill, open_log, received

HOLDER = "process/1"


@pytest.fixture
async def consumers(database: Database) -> AsyncIterator[Consumers]:
    async with open_consumers(database) as consumers:
        yield consumers


@pytest.fixture
async def log(database: Database) -> AsyncIterator[EventLog]:
    """The log, with ten events."""
    async with open_log(database) as log:
        await fill(log, 10)
        yield log


async def take_and_send(consumers: Consumers, sent: int, name: str = NAME) -> Lease:
    """Take the lease of a consumer, as a stream that then sends up to `sent`."""
    lease = await consumers.take(name, 0, 1, HOLDER)
    assert await consumers.renew([held(lease, sent)])
    return lease


# Places.


async def test_a_new_consumer_begins_at_its_place_and_a_known_one_stays(
    consumers: Consumers, log: EventLog
) -> None:
    assert await put(consumers, log, position=4) is True
    assert await put(consumers, log, position=9) is False
    [shard] = (await consumers.read(NAME)).shards
    assert (shard.number, shard.position, shard.sent_position) == (0, 4, 4)
    assert shard.link == await log.link_at(4)
    assert (shard.held_by, shard.held_since, shard.lease_until) == (None, None, None)


async def test_a_change_keeps_the_place(consumers: Consumers, log: EventLog) -> None:
    filter_ = Filter(
        topics=frozenset({"item.*"}),
        item_ids=frozenset({-(2**63), 2**63 - 1}),
        account_ids=frozenset({3}),
        user_uuids=frozenset({USER}),
        sources=frozenset({"default", "shop"}),
    )
    await put(consumers, log, position=4)
    await put(consumers, log, ack_mode="auto", lease_s=7, filter_=filter_)
    consumer = await consumers.read(NAME)
    assert (consumer.ack_mode, consumer.lease_s, consumer.filter) == ("auto", 7, filter_)
    assert consumer.furthest_behind.position == 4


async def test_a_reset_moves_the_place_back_and_takes_the_lease_from_the_holder(
    consumers: Consumers, log: EventLog
) -> None:
    await put(consumers, log)
    lease = await take_and_send(consumers, 8)
    await consumers.ack([Ack(NAME, 8)])
    assert await put(consumers, log, position=2, is_reset=True) is False
    [shard] = (await consumers.read(NAME)).shards
    assert (shard.position, shard.sent_position, shard.held_by) == (2, 2, None)
    assert await consumers.renew([held(lease, 9, 9)]) == {}
    assert await consumers.ack([Ack(NAME, 8, lease=lease.number)]) == [("lease_lost", 2)]
    again = await consumers.take(NAME, 0, 1, HOLDER)
    assert again.number > lease.number
    assert (again.position, again.sent_position) == (2, 2)


async def test_a_change_takes_the_lease_from_its_holder_and_the_same_again_does_not(
    consumers: Consumers, log: EventLog
) -> None:
    wide = Filter(item_ids=frozenset(range(20)), topics=frozenset({"b", "a"}))
    await put(consumers, log, filter_=wide)
    lease = await take_and_send(consumers, 5)
    await put(consumers, log, filter_=wide)
    assert await consumers.renew([held(lease, 6)])
    # What the holder looked through without a match might match now.
    await put(consumers, log, filter_=Filter(item_ids=frozenset(range(21))))
    assert await consumers.renew([held(lease, 7, 7)]) == {}
    [shard] = (await consumers.read(NAME)).shards
    assert (shard.position, shard.sent_position, shard.held_by) == (0, 6, None)


async def test_a_deleted_consumer_is_unknown_and_its_holder_has_lost_it(
    consumers: Consumers, log: EventLog
) -> None:
    await put(consumers, log)
    lease = await take_and_send(consumers, 5)
    await consumers.delete(NAME)
    assert await consumers.renew([held(lease, 6)]) == {}
    assert await consumers.all() == []
    with pytest.raises(UnknownConsumer):
        await consumers.read(NAME)
    with pytest.raises(UnknownConsumer):
        await consumers.delete(NAME)
    with pytest.raises(UnknownConsumer):
        await consumers.take(NAME, 0, 1, HOLDER)
    assert await consumers.ack([Ack(NAME, 1)]) == [("unknown", None)]


async def test_a_consumer_made_anew_is_not_taken_for_the_deleted_one(
    consumers: Consumers, log: EventLog
) -> None:
    await put(consumers, log)
    old = await take_and_send(consumers, 5)
    await consumers.delete(NAME)
    await put(consumers, log)
    new = await consumers.take(NAME, 0, 1, "process/2")
    assert new.number > old.number
    assert await consumers.renew([held(old, 9, 9)]) == {}
    assert await consumers.ack([Ack(NAME, 1, lease=old.number)]) == [("lease_lost", 0)]
    assert (await consumers.read(NAME)).furthest_behind.position == 0


async def test_all_are_listed_by_name_with_their_own_shards(
    consumers: Consumers, log: EventLog
) -> None:
    for name in ("b", "a", "c"):
        await put(consumers, log, name)
    await consumers.take("a", 1, 3, HOLDER)
    found = await consumers.all()
    assert [consumer.name for consumer in found] == ["a", "b", "c"]
    assert [[shard.number for shard in consumer.shards] for consumer in found] == [
        [0, 1, 2],
        [0],
        [0],
    ]
    assert [shard.held_by for shard in found[0].shards] == [None, HOLDER, None]


# Leases.


async def test_a_lease_has_one_holder_and_the_next_one_is_told_who(
    consumers: Consumers, log: EventLog
) -> None:
    await put(consumers, log, position=3, lease_s=3600)
    before = datetime.now(UTC)
    lease = await consumers.take(NAME, 0, 1, HOLDER)
    assert (lease.name, lease.shard, lease.shards, lease.position) == (NAME, 0, 1, 3)
    assert lease.link == await log.link_at(3)
    with pytest.raises(ConsumerHeld, match=HOLDER):
        await consumers.take(NAME, 0, 1, "process/2")
    [shard] = (await consumers.read(NAME)).shards
    assert shard.held_by == HOLDER
    assert shard.held_since is not None and shard.lease_until is not None
    assert shard.held_since >= before
    # Two looks at the clock: it is a lease's time, and no more than went by between them.
    more = shard.lease_until - shard.held_since - timedelta(hours=1)
    assert timedelta(0) <= more <= datetime.now(UTC) - before


async def test_a_standby_that_looks_again_and_again_writes_nothing(
    consumers: Consumers, log: EventLog, owner: Owner
) -> None:
    await put(consumers, log)
    own_number = "SELECT pg_current_xact_id_if_assigned()"  # a transaction that writes has one
    async with owner.transaction():
        standby = Consumers(owner, 100)
        await standby.take(NAME, 0, 1, HOLDER)
        assert await owner.fetchval(own_number) is not None
    async with owner.transaction():
        for _ in range(3):
            with pytest.raises(ConsumerHeld, match=HOLDER):
                await standby.take(NAME, 0, 1, "process/2")
        assert await owner.fetchval(own_number) is None


async def test_of_many_who_want_a_lease_at_once_one_gets_it(
    consumers: Consumers, log: EventLog
) -> None:
    await put(consumers, log)
    tries = (consumers.take(NAME, 0, 1, f"process/{n}") for n in range(12))
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(outcome, Lease) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, ConsumerHeld) for outcome in outcomes) == 11


async def test_a_lease_that_ran_out_can_be_taken_and_the_old_holder_is_fenced(
    consumers: Consumers, log: EventLog, owner: Owner
) -> None:
    await put(consumers, log)
    old = await take_and_send(consumers, 6)
    await expire(owner)
    [shard] = (await consumers.read(NAME)).shards
    assert (shard.held_by, shard.lease_until) == (None, None)
    new = await consumers.take(NAME, 0, 1, "process/2")
    assert new.number > old.number
    assert (new.position, new.sent_position) == (0, 6)
    assert await consumers.renew([held(old, 9, 9)]) == {}
    assert await consumers.ack([Ack(NAME, 5, lease=old.number)]) == [("lease_lost", 0)]
    assert (await consumers.read(NAME)).shards[0].sent_position == 6


async def test_who_renews_a_lease_that_ran_out_before_another_took_it_keeps_it(
    consumers: Consumers, log: EventLog, owner: Owner
) -> None:
    await put(consumers, log)
    lease = await take_and_send(consumers, 1)
    await expire(owner)
    assert await consumers.renew([held(lease, 2)]) == {(NAME, 0, lease.number): 0}
    with pytest.raises(ConsumerHeld):
        await consumers.take(NAME, 0, 1, "process/2")


async def test_a_released_lease_can_be_taken_at_once_but_only_its_holder_releases_it(
    consumers: Consumers, log: EventLog
) -> None:
    await put(consumers, log)
    old = await consumers.take(NAME, 0, 1, HOLDER)
    await consumers.release(old)
    new = await consumers.take(NAME, 0, 1, "process/2")
    assert new.number > old.number
    await consumers.release(old)  # too late: it is another's now
    with pytest.raises(ConsumerHeld):
        await consumers.take(NAME, 0, 1, HOLDER)


async def test_renewing_answers_for_own_leases_only(consumers: Consumers, log: EventLog) -> None:
    for name in ("a", "b"):
        await put(consumers, log, name)
    ours = await consumers.take("a", 0, 1, HOLDER)
    theirs = await consumers.take("b", 0, 1, "process/2")
    foreign = ("b", 0, theirs.number - 1, 9, 9, None)
    places = await consumers.renew([foreign, held(ours, 7, 4), ("nobody", 0, 1, 9, 9, None)])
    assert places == {("a", 0, ours.number): 4}
    [shard] = (await consumers.read("b")).shards
    assert (shard.position, shard.sent_position) == (0, 0)


async def test_a_place_passes_what_its_holder_says_is_done_and_never_goes_back(
    consumers: Consumers, log: EventLog
) -> None:
    await put(consumers, log)
    lease = await consumers.take(NAME, 0, 1, HOLDER)
    key = (NAME, 0, lease.number)
    assert await consumers.renew([held(lease, 6, 6)]) == {key: 6}
    assert await consumers.renew([held(lease, 6, 3)]) == {key: 6}
    assert await consumers.renew([held(lease, 4, 0)]) == {key: 6}
    [shard] = (await consumers.read(NAME)).shards
    assert (shard.position, shard.sent_position) == (6, 6)
    assert shard.link == await log.link_at(6)


# Acknowledgements.


async def test_each_acknowledgement_of_a_batch_has_its_own_outcome(
    consumers: Consumers, log: EventLog
) -> None:
    await put(consumers, log, position=2)
    lease = await take_and_send(consumers, 8)
    digits = [(await log.check(position, None)).hex()[:8] for position in range(9)]
    outcomes = await consumers.ack(
        [
            Ack("nobody", 1),
            Ack(NAME, 4, 1, 2),
            Ack(NAME, 5, lease=lease.number + 1),
            Ack(NAME, 6, digits="00000000"),
            Ack(NAME, 9),
            Ack(NAME, 10**17),
            Ack(NAME, 3, digits=digits[3]),
            Ack(NAME, 5, lease=lease.number, digits=digits[5]),
            Ack(NAME, 4),
            Ack(NAME, 1),
        ]
    )
    assert [outcome for outcome, _ in outcomes] == [
        "unknown",
        "other_shards",
        "lease_lost",
        "diverged",
        "ahead",
        "ahead",
        "acked",
        "acked",
        "acked",
        "acked",
    ]
    assert [place for _, place in outcomes[6:]] == [5, 5, 5, 5]
    [shard] = (await consumers.read(NAME)).shards
    assert (shard.position, shard.link) == (5, await log.link_at(5))


async def test_a_place_never_moves_back(consumers: Consumers, log: EventLog) -> None:
    await put(consumers, log)
    await take_and_send(consumers, 9)
    places = [(await consumers.ack([Ack(NAME, position)]))[0] for position in (3, 7, 5, 0, 8)]
    assert places == [("acked", 3), ("acked", 7), ("acked", 7), ("acked", 7), ("acked", 8)]


async def test_what_no_holder_was_sent_cannot_be_acknowledged(
    consumers: Consumers, log: EventLog
) -> None:
    await put(consumers, log, position=2)
    assert await consumers.ack([Ack(NAME, 3)]) == [("ahead", 2)]
    await take_and_send(consumers, 99)  # past the log's end: a confused holder
    assert await consumers.ack([Ack(NAME, 11)]) == [("ahead", 2)]
    assert await consumers.ack([Ack(NAME, 10)]) == [("acked", 10)]


# Shards.


async def test_another_number_of_shards_begins_at_the_least_place_of_all(
    consumers: Consumers, log: EventLog
) -> None:
    await put(consumers, log, position=1)
    leases = [await consumers.take(NAME, shard, 3, HOLDER) for shard in range(3)]
    await consumers.renew([held(lease, 9) for lease in leases])
    await consumers.ack([Ack(NAME, place, shard, 3) for shard, place in enumerate((7, 4, 8))])
    assert (await consumers.read(NAME)).furthest_behind.number == 1
    for lease in leases:
        await consumers.release(lease)
    new = await consumers.take(NAME, 1, 2, HOLDER)
    assert new.number > max(lease.number for lease in leases)
    assert (new.position, new.link, new.sent_position) == (4, await log.link_at(4), 9)
    assert [shard.position for shard in (await consumers.read(NAME)).shards] == [4, 4]


async def test_while_a_shard_is_held_the_number_of_shards_stays(
    consumers: Consumers, log: EventLog, owner: Owner
) -> None:
    await put(consumers, log)
    await consumers.take(NAME, 0, 2, HOLDER)
    for shards in (1, 3):
        with pytest.raises(ShardsHeld):
            await consumers.take(NAME, 0, shards, "process/2")
    await consumers.take(NAME, 1, 2, "process/2")
    await expire(owner)
    assert (await consumers.take(NAME, 2, 3, "process/2")).shards == 3


async def test_a_holder_from_before_the_repartition_is_fenced_from_every_shard(
    consumers: Consumers, log: EventLog, owner: Owner
) -> None:
    await put(consumers, log)
    old = [await consumers.take(NAME, shard, 2, HOLDER) for shard in range(2)]
    await expire(owner)
    await consumers.take(NAME, 2, 3, "process/2")
    # It was sent other events than the new shard of its number: its word on them counts no more.
    assert await consumers.renew([held(lease, 9, 9) for lease in old]) == {}
    assert {shard.position for shard in (await consumers.read(NAME)).shards} == {0}
    assert {shard.sent_position for shard in (await consumers.read(NAME)).shards} == {0}
    assert await consumers.ack([Ack(NAME, 1, 0, 2, lease=old[0].number)]) == [("other_shards", 0)]


# Many processes.


async def test_a_reset_holds_for_shards_that_are_made_meanwhile(
    database: Database, consumers: Consumers, log: EventLog, owner: Owner
) -> None:
    await put(consumers, log, position=7)
    async with (
        create_pool(database.service_dsn, max_size=1) as pool,
        transaction(pool) as other,
        asyncio.timeout(WITHIN_S),
    ):
        await other.execute("SELECT causeway.take_lease($1, 1, 2, $2)", NAME, HOLDER)
        reset = asyncio.create_task(put(consumers, log, position=3, is_reset=True))
        while not await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)
    assert not await reset
    shards = (await consumers.read(NAME)).shards
    assert [(shard.position, shard.held_by) for shard in shards] == [(3, None), (3, None)]


async def test_processes_that_renew_and_ack_in_opposite_orders_never_deadlock(
    database: Database, consumers: Consumers, log: EventLog
) -> None:
    names = [f"consumer-{n}" for n in range(30)]
    for name in names:
        await put(consumers, log, name)
    leases = [await take_and_send(consumers, 10, name) for name in names]

    async def work(step: int) -> None:
        async with open_consumers(database) as own:
            for round_ in range(40):
                order = leases[::step]
                outcomes = await own.ack([Ack(lease.name, 1 + round_ // 5) for lease in order])
                assert {outcome for outcome, _ in outcomes} == {"acked"}
                assert len(await own.renew([held(lease, 10) for lease in order])) == 30

    await asyncio.wait_for(asyncio.gather(*(work(step) for step in (1, -1, 1, -1))), 5 * WITHIN_S)


# Lag.


async def test_the_lag_is_counted_from_the_first_event_that_is_not_done(
    consumers: Consumers, log: EventLog
) -> None:
    hours = [received(new_event(), datetime.now(UTC) - timedelta(hours=h)) for h in (5, 3, 1)]
    await append(log, *hours)  # positions 11 to 13
    await put(consumers, log, "near", position=12)
    await put(consumers, log, "far", position=10)
    await put(consumers, log, "there", position=13)
    before = datetime.now(UTC)
    near, far, there = [(await consumers.read(name)).shards[0] for name in ("near", "far", "there")]
    assert (near.lag_events, far.lag_events, there.lag_events) == (1, 3, 0)
    # The log's clock never goes back: what was received earlier has the time of the one before.
    first, last = [event.received_at for event in await log.read_after(10)][::2]
    for shard, since in ((far, first), (near, last)):
        most = (datetime.now(UTC) - since).total_seconds()
        least = (before - since).total_seconds()
        assert least <= shard.lag_s <= most
    assert there.lag_s == 0


async def test_a_consumer_behind_what_is_kept_is_seen_to_lag(
    consumers: Consumers, log: EventLog, owner: Owner
) -> None:
    await put(consumers, log, position=2)
    await prune(owner, 5)
    [shard] = (await consumers.read(NAME)).shards
    assert shard.lag_events == 8
    assert shard.lag_s > 0


async def test_a_place_past_the_log_is_no_negative_lag(
    consumers: Consumers, log: EventLog, owner: Owner
) -> None:
    await put(consumers, log, position=8)
    await replace_log(owner, 5)
    [shard] = (await consumers.read(NAME)).shards
    assert (shard.lag_events, shard.lag_s) == (0, 0)


# Errors of the database.


async def test_a_database_that_is_away_is_said_so(database: Database, log: EventLog) -> None:
    async with open_consumers(database) as consumers:
        await put(consumers, log)
    with pytest.raises(LogUnavailable):
        await consumers.ack([Ack(NAME, 1)])
