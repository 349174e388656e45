"""Replays on a real database: one at once, ranges at a rate, and the order of an item kept."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.db import Pool, create_pool
from service.errors import UnknownDelivery, UnknownReplay, UnknownWebhook
from service.eventlog import EventLog
from service.filter import EVERYTHING, Filter
from service.replay import Replay, Replays, Wanted
from tests.bridge import new_event
from tests.logkeeping import Owner
from tests.relayed import deliver, make_webhook, rows, whens
from tests.running import WITHIN_S, Database, eventually
from tests.stored import append, prune

CLAIM = """
SELECT event_position, claim_id, attempt
FROM causeway.claim_deliveries(ARRAY[$1::bigint], ARRAY[1], ARRAY[$2::int], ARRAY[0::bigint],
    3600, 1000000, 50000, 100)
WHERE outcome = 'claimed'
"""
RECORD = """
SELECT change
FROM causeway.record_attempts(ARRAY[$1::bigint], ARRAY[$2::bigint], ARRAY[$3::bigint],
    ARRAY[$4::int], ARRAY[$5::text], ARRAY[0], ARRAY[30::float8], ARRAY[now()], ARRAY[5],
    ARRAY[200], ARRAY[NULL::text], ARRAY['ok'::bytea], ARRAY[NULL::float8], 1000000, 60, 1000000)
"""


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    async with create_pool(database.service_dsn, max_size=8) as pool:
        yield pool


@pytest.fixture
def replays(pool: Pool) -> Replays:
    return Replays(pool)


async def fill(pool: Pool, items: list[int], type_: str = "item.refreshed") -> None:
    await append(EventLog(pool), *(new_event(type_, item_id=item) for item in items))


def wanted(
    until: int, *, state: str = "exhausted", after: int = 0, per_s: float = 1000, **filter_: Any
) -> Wanted:
    return Wanted(state, Filter(**filter_), after, until, per_s)


async def begin(replays: Replays, webhook_id: int, wish: Wanted) -> Replay:
    events = await replays.count(webhook_id, EVERYTHING, wish)
    return await replays.create(webhook_id, wish, events, "tests")


async def pass_time(owner: Owner, seconds: float = 1.0) -> None:
    """Let the replays' rates have rested for so long."""
    await owner.execute(
        "UPDATE causeway.replay SET advanced_at = advanced_at - make_interval(secs => $1)", seconds
    )


@pytest.mark.parametrize("state", ["exhausted", "delivered"])
async def test_one_that_is_settled_is_sent_again_at_once(
    replays: Replays, pool: Pool, owner: Owner, state: str
) -> None:
    await fill(pool, [1, 2, 3])
    hook = await make_webhook(owner, 3)
    await deliver(owner, hook, state, 1, 2, 3)
    assert await replays.one(hook, 2) == "queued"
    found = await rows(owner, hook)
    assert {position: row["when"] for position, row in found.items()} == {1: "-", 2: "now", 3: "-"}
    again = found[2]
    assert (again["step"], again["attempts"], again["is_replay"]) == (0, 4, True)
    assert (again["claim"], again["settled_at"]) == (None, None)
    assert [row["attempt"] for row in await pool.fetch(CLAIM, hook, 8)] == [5]


async def test_one_that_was_never_owed_is_sent(replays: Replays, pool: Pool, owner: Owner) -> None:
    await fill(pool, [1, 2])
    hook = await make_webhook(owner, 0, topics=["payment.*"])
    assert await replays.one(hook, 2) == "queued"
    assert await whens(owner, hook) == {2: "now"}


async def test_one_that_the_cursor_comes_to_is_left_to_it(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    await fill(pool, [1, 2])
    hook = await make_webhook(owner, 1, topics=["item.*"])
    assert await replays.one(hook, 2) == "pending"
    assert await rows(owner, hook) == {}


async def test_one_that_waits_for_its_retry_is_due_at_once(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    await fill(pool, [1])
    hook = await make_webhook(owner, 1)
    await deliver(owner, hook, "pending", 1)
    assert await replays.one(hook, 1) == "pending"
    row = (await rows(owner, hook))[1]
    assert (row["when"], row["step"], row["is_replay"]) == ("now", 4, False)


async def test_one_that_is_being_sent_is_left_alone(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    await fill(pool, [1])
    hook = await make_webhook(owner, 0)
    assert len(await pool.fetch(CLAIM, hook, 8)) == 1
    before = await rows(owner, hook)
    assert await replays.one(hook, 1) == "pending"
    assert await rows(owner, hook) == before
    assert before[1]["when"] == "later"


async def test_what_is_not_there_is_named(replays: Replays, pool: Pool, owner: Owner) -> None:
    await fill(pool, [1, 2, 3])
    hook = await make_webhook(owner, 3)
    await deliver(owner, hook, "exhausted", 1, 3)
    await prune(owner, 2)
    for position in (1, 4):
        with pytest.raises(UnknownDelivery, match=f"position {position}"):
            await replays.one(hook, position)
    with pytest.raises(UnknownWebhook):
        await replays.one(hook + 1, 3)
    await owner.execute("UPDATE causeway.webhook SET deleted_at = now()")
    with pytest.raises(UnknownWebhook):
        await replays.one(hook, 3)
    with pytest.raises(UnknownWebhook):
        await replays.create(hook, wanted(3), 1, "tests")
    with pytest.raises(UnknownReplay):
        await replays.read(hook, 1)


async def test_exhausted_takes_those_that_match_and_no_other(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    await fill(pool, [1, 2, 1, 2, 1, 2])
    hook = await make_webhook(owner, 6)
    await deliver(owner, hook, "exhausted", 1, 2, 3, 5)
    await deliver(owner, hook, "delivered", 4)
    await deliver(owner, hook, "pending", 6)
    replay = await begin(replays, hook, wanted(4, item_ids=frozenset({1})))
    assert (replay.status, replay.events) == ("running", 2)
    await pass_time(owner)
    step = await replays.advance()
    assert (step.queued, step.is_more, step.is_open) == (2, False, True)
    assert await whens(owner, hook) == {1: "now", 2: "-", 3: "now", 4: "-", 5: "-", 6: "later"}
    done = await replays.read(hook, replay.replay_id)
    assert (done.status, done.queued, done.position, done.eta_s) == ("finished", 2, 4, None)
    assert not (await replays.advance()).is_open


async def test_all_takes_delivered_ones_and_those_never_owed_that_both_filters_match(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    await fill(pool, [1, 2, 1])
    await fill(pool, [1, 1], "payment.transaction.updated")
    hook = await make_webhook(owner, 5, topics=["item.*"])
    await deliver(owner, hook, "delivered", 2, 3)
    own = Filter(topics=frozenset({"item.*"}))
    wish = wanted(5, state="all", item_ids=frozenset({1}))
    assert await replays.count(hook, own, wish) == 2
    await replays.create(hook, wish, 2, "tests")
    await pass_time(owner)
    assert (await replays.advance()).queued == 2
    assert await whens(owner, hook) == {1: "now", 2: "-", 3: "now"}


async def test_all_hurries_what_waits_and_counts_it(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    await fill(pool, [1, 2])
    hook = await make_webhook(owner, 2)
    await deliver(owner, hook, "pending", 1)
    replay = await begin(replays, hook, wanted(2, state="all"))
    await pass_time(owner)
    await replays.advance()
    assert await whens(owner, hook) == {1: "now", 2: "now"}
    assert (await replays.read(hook, replay.replay_id)).queued == replay.events == 2


@pytest.mark.parametrize("state", ["all", "exhausted"])
@pytest.mark.parametrize(
    ("filter_", "count"),
    [
        ({"topics": frozenset({"item.*"})}, 3),
        ({"topics": frozenset({"payment.transaction.updated"})}, 1),
        ({"item_ids": frozenset({2, 9})}, 2),
        ({"account_ids": frozenset({22908770})}, 4),
        ({"user_uuids": frozenset({"9a95b38f-f98b-417a-988b-9d0d584893e7"})}, 4),
        ({"sources": frozenset({"shop"})}, 0),
    ],
)
async def test_the_count_and_the_replay_agree_for_every_filter(
    replays: Replays,
    pool: Pool,
    owner: Owner,
    state: str,
    filter_: dict[str, Any],
    count: int,
) -> None:
    await fill(pool, [1, 2, 3])
    await fill(pool, [2], "payment.transaction.updated")
    hook = await make_webhook(owner, 4)
    await deliver(owner, hook, "exhausted", 1, 2, 3, 4)
    replay = await begin(replays, hook, wanted(4, state=state, **filter_))
    await pass_time(owner)
    assert (await replays.advance()).queued == replay.events == count
    assert (await replays.read(hook, replay.replay_id)).wanted == replay.wanted


async def test_a_replay_keeps_to_its_rate(replays: Replays, pool: Pool, owner: Owner) -> None:
    await fill(pool, list(range(60)))
    hook = await make_webhook(owner, 60)
    await deliver(owner, hook, "exhausted", *range(1, 61))
    clock = asyncio.get_running_loop().time
    began = clock()
    replay = await begin(replays, hook, wanted(60, per_s=10))
    queued, took_s = [], []
    for rested_s in (0, 0.5, 0.5, 60, 0, 2):
        await pass_time(owner, rested_s)
        queued.append((await replays.advance()).queued)
        took_s.append(clock() - began)
    # However long it rested, a second's worth at most; what the calls themselves took is rest, too.
    assert max(queued) == queued[3] == queued[5] == 10
    assert 10 <= sum(queued[:3]) <= 11 + 10 * took_s[2]
    assert queued[4] <= 1 + 10 * (took_s[4] - took_s[2])
    known = await replays.read(hook, replay.replay_id)
    assert known.eta_s == (60 - sum(queued)) / 10


async def test_a_rate_below_one_a_second_is_kept_too(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    await fill(pool, [1, 2, 3])
    hook = await make_webhook(owner, 3)
    await deliver(owner, hook, "exhausted", 1, 2, 3)
    await begin(replays, hook, wanted(3, per_s=0.01))
    queued = []
    for rested_s in (50, 50, 50, 50, 1000):
        await pass_time(owner, rested_s)
        queued.append((await replays.advance()).queued)
    assert queued == [0, 1, 0, 1, 1]


async def test_nothing_is_queued_while_a_thousand_are_due(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    await fill(pool, list(range(1010)))
    hook = await make_webhook(owner, 1010)
    await deliver(owner, hook, "exhausted", *range(1, 1011))
    await owner.execute(
        "UPDATE causeway.delivery SET state = 'pending', due_at = now() WHERE position > 15"
    )
    await begin(replays, hook, wanted(1010))
    await pass_time(owner)
    assert (await replays.advance()).queued == 5
    await pass_time(owner)
    assert (await replays.advance()).queued == 0
    assert len(await pool.fetch(CLAIM, hook, 100)) == 100
    await pass_time(owner)
    assert (await replays.advance()).queued == 10


async def test_a_disabled_webhooks_replay_waits_and_a_deleted_ones_is_cancelled(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    await fill(pool, [1, 2])
    hook = await make_webhook(owner, 2)
    await deliver(owner, hook, "exhausted", 1, 2)
    replay = await begin(replays, hook, wanted(2, per_s=1))
    await pass_time(owner)
    disable = "UPDATE causeway.webhook SET disabled_at = $1, disabled_reason = $2"
    await owner.execute(disable, datetime.now(UTC), "admin")
    step = await replays.advance()
    assert (step.queued, step.is_more, step.is_open) == (0, False, True)
    await owner.execute(disable, None, None)
    assert (await replays.advance()).queued == 1
    await owner.execute("UPDATE causeway.webhook SET deleted_at = now()")
    await pass_time(owner)
    assert (await replays.advance()).queued == 0
    assert (await replays.read(hook, replay.replay_id)).status == "cancelled"
    await owner.execute("SELECT causeway.prune_deliveries(now() - interval '1 day', 100)")
    assert await owner.fetchval("SELECT count(*) FROM causeway.webhook") == 0


async def test_a_cancelled_replay_stops_and_a_finished_one_stays_finished(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    await fill(pool, [1, 2])
    hook = await make_webhook(owner, 2)
    await deliver(owner, hook, "exhausted", 1, 2)
    first = await begin(replays, hook, wanted(2, per_s=1))
    await pass_time(owner)
    await replays.advance()
    cancelled = await replays.cancel(hook, first.replay_id)
    assert (cancelled.status, cancelled.queued, cancelled.position) == ("cancelled", 1, 1)
    second = await begin(replays, hook, wanted(2))
    await pass_time(owner)
    assert (await replays.advance()).queued == 1
    assert (await replays.cancel(hook, second.replay_id)).status == "finished"
    with pytest.raises(UnknownReplay):
        await replays.cancel(hook + 1, second.replay_id)
    assert [each.replay_id for each in await replays.all(hook)] == [
        second.replay_id,
        first.replay_id,
    ]


async def test_one_look_has_a_bound_and_the_next_goes_on(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    await fill(pool, [1, 2, 2, 2, 1, 2, 1])
    hook = await make_webhook(owner, 7)
    await deliver(owner, hook, "exhausted", *range(1, 8))
    advance = "SELECT queued_events, is_more FROM causeway.advance_replays(3)"
    for state in ("all", "exhausted"):
        replay = await begin(replays, hook, wanted(7, state=state, item_ids=frozenset({1})))
        seen = []
        while (await replays.read(hook, replay.replay_id)).status == "running":
            await pass_time(owner)
            seen.append(tuple(await pool.fetchrow(advance) or ()))
            await owner.execute("UPDATE causeway.delivery SET state = 'exhausted'")
        assert seen == [(1, True), (1, True), (1, False)]


async def test_the_count_looks_through_ranges_longer_than_one_look(
    replays: Replays, pool: Pool, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.replay.SCAN_POSITIONS", 2)
    await fill(pool, [1, 2, 1, 2, 1])
    hook = await make_webhook(owner, 5)
    await deliver(owner, hook, "exhausted", 1, 2, 4, 5)
    item = frozenset({1})
    assert await replays.count(hook, EVERYTHING, wanted(5, state="all", item_ids=item)) == 3
    assert await replays.count(hook, EVERYTHING, wanted(5, item_ids=item)) == 2
    assert await replays.count(hook, EVERYTHING, wanted(5)) == 4
    assert await replays.count(hook, EVERYTHING, wanted(4, after=1, state="all")) == 3


async def test_an_ordered_webhooks_replay_sends_an_items_events_one_at_a_time(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    await fill(pool, [1, 1, 2, 1, 2])
    hook = await make_webhook(owner, 5, is_ordered=True)
    await deliver(owner, hook, "exhausted", 1, 2, 3, 4)
    await deliver(owner, hook, "pending", 5)
    await begin(replays, hook, wanted(5))
    await pass_time(owner)
    assert (await replays.advance()).queued == 4
    assert await whens(owner, hook) == {1: "now", 2: "held", 3: "held", 4: "held", 5: "later"}
    assert await replays.one(hook, 2) == "pending"
    assert (await whens(owner, hook))[2] == "held"
    for expected in (1, 2, 4):
        [claimed] = await pool.fetch(CLAIM, hook, 8)
        assert claimed["event_position"] == expected
        await pool.execute(RECORD, hook, expected, claimed["claim_id"], 5, "delivered")
    assert await replays.one(hook, 5) == "pending"
    [claimed] = await pool.fetch(CLAIM, hook, 8)
    await pool.execute(RECORD, hook, 5, claimed["claim_id"], 5, "exhausted")
    assert (await whens(owner, hook))[3] == "now"


async def test_replays_beside_claims_and_results_never_break_the_order(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    """Invariant of queue_again: at most one of a key is on its way, and none is forgotten."""
    draw = random.Random(7)
    await fill(pool, [draw.randrange(4) for _ in range(60)])
    hook = await make_webhook(owner, 0, is_ordered=True)
    on_its_way: set[int | None] = set()
    events = await EventLog(pool).read_after(0)
    items = {event.position: event.item_id for event in events}
    ends = asyncio.get_running_loop().time() + 2.5
    is_over = asyncio.Event()

    async def relay() -> None:
        while True:
            for claimed in await pool.fetch(CLAIM, hook, 3):
                position = claimed["event_position"]
                assert items[position] not in on_its_way, "two of an item at once"
                on_its_way.add(items[position])
                await asyncio.sleep(draw.random() / 500)
                on_its_way.remove(items[position])
                values = (claimed["claim_id"], claimed["attempt"])
                state = draw.choice(("delivered", "exhausted"))
                await pool.execute(RECORD, hook, position, *values, state)
            if is_over.is_set() and await is_quiet():
                return
            await asyncio.sleep(0.001)

    async def is_quiet() -> bool:
        sql = "SELECT count(*) FROM causeway.delivery WHERE state = 'pending'"
        return not on_its_way and not await pool.fetchval(sql)

    async def replay() -> None:
        while asyncio.get_running_loop().time() < ends:
            await replays.one(hook, draw.randrange(1, 61))
            if draw.random() < 0.2:
                state = draw.choice(("all", "exhausted"))
                await replays.create(hook, wanted(60, state=state), 0, "tests")
                await pass_time(owner)
            await replays.advance()
            await asyncio.sleep(0.002)
        is_over.set()

    async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(relay())
        group.create_task(replay())
    assert {row["state"] for row in (await rows(owner, hook)).values()} <= {
        "delivered",
        "exhausted",
    }


async def test_two_processes_share_a_replay_and_its_rate(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    await fill(pool, list(range(100)))
    hook = await make_webhook(owner, 100)
    await deliver(owner, hook, "exhausted", *range(1, 101))
    clock = asyncio.get_running_loop().time
    began = clock()
    replay = await begin(replays, hook, wanted(100, per_s=20))
    await pass_time(owner)
    steps = await asyncio.gather(*(Replays(pool).advance() for _ in range(6)))
    assert 20 <= sum(step.queued for step in steps) <= 21 + 20 * (clock() - began)
    for _ in range(5):
        await pass_time(owner)
        await replays.advance()
    known = await replays.read(hook, replay.replay_id)
    assert (known.status, known.queued) == ("finished", 100)
    assert set((await whens(owner, hook)).values()) == {"now"}


async def test_the_loop_goes_on_with_replays_and_wakes_the_relay(
    replays: Replays, pool: Pool, owner: Owner
) -> None:
    await fill(pool, list(range(30)))
    hook = await make_webhook(owner, 30)
    await deliver(owner, hook, "exhausted", *range(1, 31))
    woken: list[int] = []
    loop = asyncio.create_task(replays.run(lambda: woken.append(1), look_s=0.05, idle_look_s=3600))
    try:
        await asyncio.sleep(0)
        began = datetime.now(UTC)
        replay = await begin(replays, hook, wanted(29, per_s=30))
        states: list[str] = []
        while (states or ["running"])[-1] == "running":
            states.append((await replays.read(hook, replay.replay_id)).status)
            await asyncio.sleep(0.01)
        assert datetime.now(UTC) - began > timedelta(seconds=0.8)
        await eventually(lambda: woken)  # the database knows it before the loop does
        before = len(woken)
        await replays.one(hook, 30)
        await eventually(lambda: len(woken) > before)
    finally:
        loop.cancel()
