"""The deliveries' SQL: claims, leases, results, circuits, order, orphans, retention."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from service.db import Connection, create_pool
from service.delivery import OPEN_AFTER
from tests.logkeeping import replace_log
from tests.relaying import Desk, append, pass_time, states
from tests.running import WITHIN_S, Database

LONG_S = 3600.0  # longer than a busy machine takes for all that a test does


@pytest.fixture
async def desk(database: Database) -> AsyncIterator[Desk]:
    async with create_pool(database.service_dsn, max_size=4) as pool:
        yield Desk(pool)


@pytest.fixture
async def other(database: Database) -> AsyncIterator[Desk]:
    """Another replica."""
    async with create_pool(database.service_dsn, max_size=4) as pool:
        yield Desk(pool)


async def opened_for_s(owner: Connection, position: int, due_in_s: float) -> float:
    """Return for how long the circuit was opened when an attempt was recorded as due so late."""
    opened_s: float = await owner.fetchval(
        "SELECT extract(epoch FROM open_until - due_at)::float8 "
        "FROM causeway.webhook JOIN causeway.delivery USING (webhook_id) WHERE position = $1",
        position,
    )
    return opened_s + due_in_s


async def test_each_event_is_claimed_once_in_order_with_its_bytes(desk: Desk) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 5)
    claimed = await desk.claim(hook)
    assert [it.position for it in claimed] == [1, 2, 3, 4, 5]
    events = await desk.eventlog.read_after(0)
    assert [(it.body, it.link, it.received_at) for it in claimed] == [
        (event.body, event.link, event.received_at) for event in events
    ]
    assert {(it.attempt, it.step, it.early_s, it.is_measured) for it in claimed} == {
        (1, 0, None, True)
    }
    assert await desk.claim(hook) == []
    assert desk.outlooks[hook.webhook_id].outcome == "idle"


async def test_room_bounds_what_is_claimed_and_more_is_said(desk: Desk) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 5)
    assert [it.position for it in await desk.claim(hook, room=2)] == [1, 2]
    assert desk.outlooks[hook.webhook_id].outcome == "more"
    assert await desk.claim(hook, room=0) == []
    assert [it.position for it in await desk.claim(hook, room=3)] == [3, 4, 5]


async def test_bytes_bound_what_is_claimed_but_always_one(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.delivery.CLAIM_BYTES", 1000)
    hook = await desk.add()
    await append(desk.eventlog, 2, text="x" * 600)
    await append(desk.eventlog, 1, text="x" * 5000)
    await append(desk.eventlog, 1)
    assert [it.position for it in await desk.claim(hook)] == [1]
    assert [it.position for it in await desk.claim(hook)] == [2]
    assert [it.position for it in await desk.claim(hook)] == [3]
    assert [it.position for it in await desk.claim(hook)] == [4]


async def test_only_chosen_types_and_sources_are_claimed(desk: Desk) -> None:
    exact = await desk.add(types=["item.refreshed"])
    pattern = await desk.add(types=["item.account.*", "user.deleted"])
    old_names = await desk.add(types=["item.account.updated"])
    source = await desk.add(sources=["other"])
    underscore = await desk.add(types=["TEST_EVENT"])
    for type_ in (
        *("item.refreshed", "item.account.updated", "user.deleted", "item.created"),
        *("ACCOUNT_UPDATED", "TESTxEVENT", "item.refreshed2"),
    ):
        await append(desk.eventlog, type_=type_)

    async def got(hook: object) -> list[int]:
        return [it.position for it in await desk.claim(hook)]  # type: ignore[arg-type]

    assert await got(exact) == [1]
    assert await got(pattern) == [2, 3, 5]
    assert await got(old_names) == [2, 5]
    assert await got(source) == []
    assert await got(underscore) == []


async def test_what_does_not_match_costs_no_write_and_is_not_looked_at_again(
    desk: Desk, owner: Connection
) -> None:
    hook = await desk.add(types=["item.refreshed"])
    await append(desk.eventlog, 10)
    assert await desk.claim(hook) == []
    assert desk.outlooks[hook.webhook_id].scanned_to == 10
    assert await owner.fetchval("SELECT cursor_position FROM causeway.webhook") == 0
    assert await desk.claim(hook, scanned_to=10) == []
    assert desk.outlooks[hook.webhook_id].scanned_to is None
    await append(desk.eventlog, type_="item.refreshed")
    assert [it.position for it in await desk.claim(hook, scanned_to=10)] == [11]
    assert await owner.fetchval("SELECT cursor_position FROM causeway.webhook") == 11


async def test_a_long_stretch_without_a_match_moves_the_cursor(
    desk: Desk, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.delivery.SCAN_POSITIONS", 1500)
    hook = await desk.add(types=["item.refreshed"])
    await append(desk.eventlog, 2000)
    await append(desk.eventlog, type_="item.refreshed")
    assert await desk.claim(hook) == []
    assert desk.outlooks[hook.webhook_id].outcome == "more"
    assert await owner.fetchval("SELECT cursor_position FROM causeway.webhook") == 1500
    assert [it.position for it in await desk.claim(hook, scanned_to=1500)] == [2001]


async def test_two_replicas_never_claim_the_same(desk: Desk, other: Desk) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 200)

    async def work(replica: Desk) -> list[int]:
        found: list[int] = []
        while True:
            found += [it.position for it in await replica.claim(hook, room=7)]
            if replica.outlooks[hook.webhook_id].outcome == "idle":
                return found

    first, second = await asyncio.gather(work(desk), work(other))
    assert sorted(first + second) == list(range(1, 201))


async def test_a_locked_webhook_is_busy_and_not_waited_for(desk: Desk, owner: Connection) -> None:
    hook = await desk.add()
    await append(desk.eventlog)
    async with owner.transaction():
        await owner.execute("SELECT FROM causeway.webhook FOR UPDATE")
        assert await asyncio.wait_for(desk.claim(hook), WITHIN_S) == []
        assert desk.outlooks[hook.webhook_id].outcome == "busy"
    assert len(await desk.claim(hook)) == 1


async def test_a_claim_returns_when_its_lease_ends(
    desk: Desk, other: Desk, owner: Connection
) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 2)
    lost = await desk.claim(hook, lease_s=3 * LONG_S)
    await pass_time(owner, 2 * LONG_S)
    assert await other.claim(hook) == []
    await pass_time(owner, LONG_S)
    again = await other.claim(hook)
    assert [(it.position, it.attempt, it.step) for it in again] == [(1, 2, 0), (2, 2, 0)]
    # What the lost one says of a failure does not count any more, its success does.
    await desk.end(lost[0], state="pending")
    await desk.end(lost[1], state="delivered")
    assert await states(owner) == {1: "pending", 2: "delivered"}
    await other.end(again[0], state="delivered")
    assert await states(owner) == {1: "delivered", 2: "delivered"}
    assert await owner.fetchval("SELECT count(*) FROM causeway.attempt") == 3


async def test_a_failure_is_due_again_at_its_time_and_not_before(
    desk: Desk, owner: Connection
) -> None:
    hook = await desk.add()
    await append(desk.eventlog)
    [claimed] = await desk.claim(hook)
    await desk.end(claimed, state="pending", due_in_s=2 * LONG_S)
    assert await desk.claim(hook) == []
    assert LONG_S < (desk.outlooks[hook.webhook_id].wait_s or 0) <= 2 * LONG_S
    await pass_time(owner, 2 * LONG_S)
    [again] = await desk.claim(hook)
    assert (again.position, again.attempt, again.step) == (1, 2, 1)
    await desk.end(again, state="exhausted")
    await pass_time(owner, 10**6)
    assert await desk.claim(hook) == []
    assert await states(owner) == {1: "exhausted"}


async def test_retries_and_new_events_share_the_room(desk: Desk, owner: Connection) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 20)
    first = await desk.claim(hook, room=20)
    await desk.end(first[0])
    await desk.end(*first[1:], state="pending", due_in_s=1.0)
    await desk.webhooks.enable(hook.webhook_id)  # closes the circuit
    hook = await desk.webhooks.read(hook.webhook_id)
    await append(desk.eventlog, 20)
    claimed = [it.position for it in await desk.claim(hook, room=10)]
    assert len([it for it in claimed if it <= 20]) == 5
    assert len([it for it in claimed if it > 20]) == 5


async def test_what_was_not_sent_is_due_at_once_and_costs_nothing(
    desk: Desk, owner: Connection
) -> None:
    hook = await desk.add()
    await append(desk.eventlog)
    [claimed] = await desk.claim(hook)
    await desk.end(claimed, state="released")
    [again] = await desk.claim(hook)
    assert (again.attempt, again.step) == (1, 0)
    assert await owner.fetchval("SELECT count(*) FROM causeway.attempt") == 0


async def test_the_circuit_opens_probes_one_by_one_and_closes(
    desk: Desk, other: Desk, owner: Connection
) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 50)
    claimed = await desk.claim(hook, room=OPEN_AFTER)
    assert await desk.end(*claimed, state="pending", due_in_s=9 * LONG_S) == ["opened"]
    assert await opened_for_s(owner, 1, 9 * LONG_S) == pytest.approx(5)
    await pass_time(owner, -LONG_S)  # so that it is open still, however late the next look comes
    assert await desk.claim(hook, room=10) == []
    assert 0 < (desk.outlooks[hook.webhook_id].wait_s or 0) <= LONG_S + 5
    await pass_time(owner, LONG_S + 5)
    [probe] = await desk.claim(hook, room=10)
    # The oldest that waits, before its time; and nobody else sends anything meanwhile.
    assert probe.position == 1
    assert 8 * LONG_S < (probe.early_s or 0) < 9 * LONG_S
    assert await other.claim(hook, room=10) == []
    assert await desk.end(probe, state="pending", due_in_s=probe.early_s) == []
    assert await opened_for_s(owner, 1, probe.early_s or 0) == pytest.approx(10)
    await pass_time(owner, -LONG_S)
    assert await desk.claim(hook, room=10) == []
    await pass_time(owner, LONG_S + 10)
    [probe] = await desk.claim(hook, room=10)
    assert probe.step == 1
    assert await desk.end(probe, state="delivered") == ["closed"]
    # What waits for its retry is hurried, the oldest first, and at no cost of a step.
    rest = await desk.claim(hook, room=50)
    assert [it.position for it in rest] == list(range(2, 51))
    assert all(it.early_s for it in rest[:4])
    await desk.end(rest[0], state="pending", due_in_s=rest[0].early_s)
    assert await desk.claim(hook) == []
    wait_s = desk.outlooks[hook.webhook_id].wait_s or 0
    assert 0 < wait_s <= 2 * LONG_S < (rest[0].early_s or 0)  # a lease; its own time is later


async def test_many_failures_at_once_open_the_circuit_for_no_longer_than_a_few(
    desk: Desk, owner: Connection
) -> None:
    """A callback that restarts must not cost its events a minute."""
    hook = await desk.add()
    await append(desk.eventlog, 50)
    claimed = await desk.claim(hook, room=40)
    assert await desk.end(*claimed[:30], state="pending", due_in_s=60.0) == ["opened"]
    assert await desk.end(*claimed[30:], state="pending", due_in_s=60.0) == []
    assert await opened_for_s(owner, 1, 60.0) == pytest.approx(5)
    await pass_time(owner, -LONG_S)
    assert await desk.claim(hook) == []
    assert 0 < (desk.outlooks[hook.webhook_id].wait_s or 0) <= LONG_S + 5


async def test_events_that_are_gone_do_not_open_the_circuit(desk: Desk) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 10)
    claimed = await desk.claim(hook)
    assert await desk.end(*claimed, state="exhausted", error="event_gone", status=None) == []
    assert (await desk.webhooks.read(hook.webhook_id)).failures == 0


async def test_a_probe_that_was_not_sent_lets_another_try(desk: Desk, owner: Connection) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 10)
    await desk.end(*await desk.claim(hook, room=OPEN_AFTER), state="pending", due_in_s=60.0)
    await pass_time(owner, 5)
    [probe] = await desk.claim(hook)
    assert await desk.end(probe, state="released") == []
    [again] = await desk.claim(hook)
    assert again.position == probe.position


async def test_a_probe_takes_a_new_event_where_nothing_waits(desk: Desk, owner: Connection) -> None:
    hook = await desk.add()
    await append(desk.eventlog, OPEN_AFTER)
    await desk.end(*await desk.claim(hook), state="exhausted")
    await append(desk.eventlog, 3)
    await pass_time(owner, 60)
    assert [it.position for it in await desk.claim(hook)] == [OPEN_AFTER + 1]


async def test_a_circuit_with_nothing_to_send_waits_for_an_event(
    desk: Desk, owner: Connection
) -> None:
    hook = await desk.add()
    await append(desk.eventlog, OPEN_AFTER)
    await desk.end(*await desk.claim(hook), state="exhausted")
    await pass_time(owner, 60)
    assert await desk.claim(hook) == []
    await append(desk.eventlog)
    assert len(await desk.claim(hook)) == 1


async def test_a_success_among_failures_keeps_the_circuit_closed(desk: Desk) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 20)
    claimed = await desk.claim(hook, room=20)
    await desk.end(*claimed[:4], state="pending")
    await desk.end(claimed[4])
    assert await desk.end(*claimed[5:9], state="pending") == []
    assert await desk.end(claimed[9], state="pending") == ["opened"]


async def test_a_pause_that_was_asked_for_holds_the_whole_webhook(
    desk: Desk, owner: Connection
) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 2)
    first, second = await desk.claim(hook, room=2)
    await desk.end(second)
    wish = {"pause_s": 2 * LONG_S, "due_in_s": 2 * LONG_S}
    assert await desk.end(first, state="pending", **wish) == ["opened"]
    await append(desk.eventlog, 1)
    await pass_time(owner, LONG_S)
    assert await desk.claim(hook) == []
    await pass_time(owner, LONG_S)
    assert len(await desk.claim(hook)) == 1


async def test_gone_disables_and_keeps_what_is_owed(desk: Desk, owner: Connection) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 2)
    first, second = await desk.claim(hook)
    assert await desk.end(first, state="pending", error="gone", status=410) == ["gone"]
    await desk.end(second)
    hook = await desk.webhooks.read(hook.webhook_id)
    assert hook.disabled_reason == "gone"
    await append(desk.eventlog)
    await pass_time(owner, 10**6)
    assert await desk.claim(hook) == []
    assert hook.webhook_id not in desk.outlooks
    hook = await desk.webhooks.enable(hook.webhook_id)
    assert [it.position for it in await desk.claim(hook)] == [1, 3]


async def test_failing_for_days_disables(desk: Desk, owner: Connection) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 2)
    first, second = await desk.claim(hook)
    await desk.end(first, state="pending")
    await pass_time(owner, 5 * 86400 - LONG_S)
    [again] = await desk.claim(hook, room=1)
    assert await desk.end(again, state="pending") == []
    await pass_time(owner, LONG_S)
    [again] = await desk.claim(hook, room=1)
    assert await desk.end(again, state="pending") == ["failing"]
    assert (await desk.webhooks.read(hook.webhook_id)).disabled_reason == "failing"
    assert second.position == 2


async def test_an_older_version_is_told_to_load_the_new_one(desk: Desk) -> None:
    hook = await desk.add()
    await append(desk.eventlog)
    await desk.webhooks.rotate(hook.webhook_id)
    assert await desk.claim(hook) == []
    assert desk.outlooks[hook.webhook_id].outcome == "changed"
    assert len(await desk.claim(await desk.webhooks.read(hook.webhook_id))) == 1


async def test_an_unknown_webhook_is_named(desk: Desk) -> None:
    hook = await desk.add()
    await append(desk.eventlog)
    assert await desk.claim() == []
    assert desk.outlooks[hook.webhook_id].outcome == "changed"


async def test_a_log_with_another_history_disables(desk: Desk, owner: Connection) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 3)
    await desk.claim(hook)
    await owner.execute("UPDATE causeway.webhook SET cursor_link = sha256('other')")
    await append(desk.eventlog)
    assert await desk.claim(hook) == []
    assert desk.outlooks[hook.webhook_id].outcome == "disabled"
    assert desk.outlooks[hook.webhook_id].reason == "log_diverged"
    assert (await desk.webhooks.read(hook.webhook_id)).disabled_reason == "log_diverged"


async def test_a_success_of_another_history_settles_nothing(
    desk: Desk, other: Desk, owner: Connection
) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 1)
    await desk.end(*await desk.claim(hook))
    await append(desk.eventlog, 1)
    [sent] = await desk.claim(hook)
    # A standby takes over that lacked it; another event gets its position.
    await owner.execute("DELETE FROM causeway.delivery WHERE position = 2")
    await owner.execute(
        "UPDATE causeway.webhook SET cursor_position = event.position, cursor_link = event.link "
        "FROM causeway.event WHERE position = 1"
    )
    await replace_log(owner, 1)
    await append(desk.eventlog, 1)
    [claimed] = await other.claim(hook)
    await desk.end(sent)
    assert await states(owner) == {1: "delivered", 2: "pending"}
    await other.end(claimed)
    assert await states(owner) == {1: "delivered", 2: "delivered"}


async def test_a_log_that_became_shorter_disables(desk: Desk, owner: Connection) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 3)
    await desk.end(*await desk.claim(hook))
    await owner.execute("ALTER TABLE causeway.event DISABLE TRIGGER ALL")
    await owner.execute("DELETE FROM causeway.event WHERE position = 3")
    assert await desk.claim(hook) == []
    assert desk.outlooks[hook.webhook_id].reason == "log_diverged"


async def test_a_cursor_before_what_is_kept_disables(desk: Desk, owner: Connection) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 5)
    link = await desk.eventlog.link_at(3)
    await owner.execute("ALTER TABLE causeway.event DISABLE TRIGGER ALL")
    await owner.execute("DELETE FROM causeway.event WHERE position <= 3")
    await owner.execute("UPDATE causeway.log SET anchor_position = 3, anchor_link = $1", link)
    assert await desk.claim(hook) == []
    assert desk.outlooks[hook.webhook_id].reason == "position_pruned"


async def test_an_event_that_is_gone_is_claimed_without_a_body(
    desk: Desk, owner: Connection
) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 2)
    claimed = await desk.claim(hook)
    await desk.end(claimed[0], state="pending")
    await owner.execute("ALTER TABLE causeway.event DISABLE TRIGGER ALL")
    await owner.execute("DELETE FROM causeway.event WHERE position = 1")
    await pass_time(owner, 10)
    [again] = await desk.claim(hook)
    assert (again.position, again.body) == (1, None)


async def test_a_back_fill_keeps_to_its_rate_and_the_rest_does_not(
    desk: Desk, owner: Connection
) -> None:
    await append(desk.eventlog, 100)
    hook = await desk.add(after=0)
    await owner.execute("UPDATE causeway.webhook SET backfilled_at = now() - interval '1 hour'")
    clock = asyncio.get_running_loop().time
    began = clock()
    first = await desk.claim(hook, room=1000, backfill_per_s=10)
    assert [it.position for it in first] == list(range(1, 11))
    assert not first[0].is_measured  # history is no delay
    soon = await desk.claim(hook, room=1000, backfill_per_s=10)
    assert len(soon) <= 10 * (clock() - began)
    assert 0 < (desk.outlooks[hook.webhook_id].wait_s or 0) <= 0.1
    await pass_time(owner, 0.5)
    later = await desk.claim(hook, room=1000, backfill_per_s=10)
    assert 5 <= len(later) <= 6 + 10 * (clock() - began)
    await pass_time(owner, 3600)
    rest = await desk.claim(hook, room=1000, backfill_per_s=1000)
    # Some of them again: their leases have ended meanwhile.
    assert {it.position for it in (*first, *soon, *later, *rest)} == set(range(1, 101))
    await append(desk.eventlog, 50)
    live = await desk.claim(hook, room=1000, backfill_per_s=0.001)
    assert [it.position for it in live] == list(range(101, 151))
    assert live[0].is_measured


async def test_a_slow_back_fill_gets_there(desk: Desk, owner: Connection) -> None:
    await append(desk.eventlog, 2)
    hook = await desk.add(after=0)
    await pass_time(owner, 3)
    assert len(await desk.claim(hook, backfill_per_s=0.5)) == 1


async def test_ordered_events_of_an_item_go_one_at_a_time(desk: Desk, owner: Connection) -> None:
    hook = await desk.add(ordered=True)
    for item in (7, 7, 8, 7, 8):
        await append(desk.eventlog, item_id=item)
    first = await desk.claim(hook)
    assert [it.position for it in first] == [1, 3]
    assert await desk.claim(hook) == []
    await desk.end(first[0], state="pending", due_in_s=LONG_S)
    await desk.end(first[1])
    [second] = await desk.claim(hook)
    assert second.position == 5
    # Item 7 waits for its first event, whatever comes.
    await append(desk.eventlog, item_id=7)
    await append(desk.eventlog, item_id=9)
    [third] = await desk.claim(hook)
    assert third.position == 7
    await desk.end(second, third)
    await pass_time(owner, LONG_S)
    [again] = await desk.claim(hook)
    assert again.position == 1
    await desk.end(again, state="exhausted")
    for expected in (2, 4, 6):
        [claimed] = await desk.claim(hook)
        assert claimed.position == expected
        await desk.end(claimed)
    assert await desk.claim(hook) == []


async def test_ordered_events_without_an_item_go_by_user_or_alone(desk: Desk) -> None:
    hook = await desk.add(ordered=True)
    for _ in range(2):
        await append(desk.eventlog, item_id=None)
    for _ in range(2):
        await append(desk.eventlog, item_id=None, user_uuid=None)
    assert [it.position for it in await desk.claim(hook)] == [1, 3, 4]


async def test_an_ordered_claim_beside_a_result_holds_nothing_for_ever(
    desk: Desk, other: Desk, owner: Connection
) -> None:
    """The race: one replica inserts a held event while another settles the one before it."""
    hook = await desk.add(ordered=True)
    await append(desk.eventlog, item_id=7)
    for n in range(2, 60):
        [claimed] = await desk.claim(hook, room=1)
        await append(desk.eventlog, item_id=7)
        await asyncio.gather(desk.end(claimed), other.claim(hook, room=1))
        rows = await owner.fetch(
            "SELECT position, due_at = 'infinity' AS is_held, claim FROM causeway.delivery "
            "WHERE state = 'pending'"
        )
        assert all(not row["is_held"] for row in rows), n
        await owner.execute("UPDATE causeway.delivery SET due_at = now(), claim = NULL")


async def test_a_row_ahead_of_an_ordered_cursor_holds_nothing_for_ever(
    desk: Desk, owner: Connection
) -> None:
    """A replay can bring an event before the cursor does; what follows it goes its way."""
    hook = await desk.add(ordered=True)
    await append(desk.eventlog, 2, item_id=7)
    await owner.execute(
        "INSERT INTO causeway.delivery (webhook_id, position, state, order_key, due_at) "
        "VALUES ($1, 1, 'delivered', '7', now())",
        hook.webhook_id,
    )
    assert [it.position for it in await desk.claim(hook)] == [2]


async def test_no_claim_finds_an_orphan(desk: Desk, owner: Connection) -> None:
    hook = await desk.add(types=["item.*"])
    await append(desk.eventlog, 10)
    await append(desk.eventlog, 3, type_="user.deleted")
    await desk.claim(hook, room=7)
    assert await desk.deliveries.orphans(hook.webhook_id, 0, 13) == (0, None)
    await desk.claim(hook, room=7)
    await owner.execute("DELETE FROM causeway.delivery WHERE position IN (4, 6)")
    assert await desk.deliveries.orphans(hook.webhook_id, 0, 13) == (2, 4)
    assert await desk.deliveries.orphans(hook.webhook_id, 4, 13) == (1, 6)


async def test_the_backlog_counts_rows_and_what_is_still_in_the_log(
    desk: Desk, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = await desk.add(types=["item.*"])
    [stand] = await desk.deliveries.backlog()
    assert (stand.pending, stand.oldest_s, stand.exhausted) == (0, None, 0)
    began = datetime.now(UTC)
    await append(desk.eventlog, 5)
    await append(desk.eventlog, 5, type_="user.deleted")
    await append(desk.eventlog, 5)
    first, second, *_ = await desk.claim(hook, room=3)
    await desk.end(first)
    await desk.end(second, state="exhausted")
    [stand] = await desk.deliveries.backlog()
    assert (stand.pending, stand.exhausted, stand.is_open) == (8, 1, False)
    assert 0 < (stand.oldest_s or 0) <= (datetime.now(UTC) - began).total_seconds()
    monkeypatch.setattr("service.delivery.SCAN_POSITIONS", 4)
    [stand] = await desk.deliveries.backlog()
    assert stand.pending == 1 + 2 + 8  # what was not looked at counts as if it matched


async def test_retention_forgets_what_was_delivered_and_nothing_else(
    desk: Desk, owner: Connection
) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 4)
    good, given_up, waiting, late = await desk.claim(hook)
    await desk.end(good, late)
    await desk.end(given_up, state="exhausted")
    await desk.end(waiting, state="pending")
    soon = datetime.now(UTC) + timedelta(seconds=60)
    assert await desk.deliveries.prune(datetime.now(UTC) - timedelta(days=1), limit=100) == 0
    assert await desk.deliveries.prune(soon, limit=1) == 1
    assert await desk.deliveries.orphans(hook.webhook_id, 0, 4) == (0, None)
    assert await desk.deliveries.prune(soon, limit=100) == 1
    assert await states(owner) == {2: "exhausted", 3: "pending"}
    assert await owner.fetchval("SELECT array_agg(position) FROM causeway.attempt") == [2, 3]
    assert await desk.deliveries.orphans(hook.webhook_id, 0, 4) == (0, None)


async def test_what_was_delivered_late_is_kept_as_long(desk: Desk, owner: Connection) -> None:
    hook = await desk.add()
    await append(desk.eventlog, 2)
    await desk.end(*await desk.claim(hook))
    await owner.execute(
        "UPDATE causeway.delivery SET settled_at = now() + interval '1 day' WHERE position = 1"
    )
    soon = datetime.now(UTC) + timedelta(seconds=60)
    assert await desk.deliveries.prune(soon, limit=100) == 1
    assert await states(owner) == {1: "delivered"}
    assert await desk.deliveries.orphans(hook.webhook_id, 0, 2) == (0, None)


async def test_a_deleted_webhook_goes_with_all_it_had(desk: Desk, owner: Connection) -> None:
    hook = await desk.add()
    kept = await desk.add()
    await append(desk.eventlog, 5)
    await desk.claim(hook)
    await desk.claim(kept)
    await desk.webhooks.delete(hook.webhook_id)
    long_ago = datetime.now(UTC) - timedelta(days=30)
    assert await desk.deliveries.prune(long_ago, limit=3) == 3
    assert await desk.deliveries.prune(long_ago, limit=100) == 2
    ids = await owner.fetch("SELECT webhook_id FROM causeway.webhook")
    assert [row["webhook_id"] for row in ids] == [kept.webhook_id]
    assert len(await states(owner)) == 5
