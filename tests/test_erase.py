"""`causeway erase`: what goes, what stays, and that the log, its readers and its proof hold."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx2
import orjson
import pytest

from service.audit import audit
from service.client import subscribe
from service.db import Connection, create_pool
from service.erase import Erasures, Forgetting, erase_deleted_users
from service.errors import LogDamaged
from service.event import NewEvent, parse_event
from service.eventlog import EventLog
from service.filter import Filter
from service.payloads import events as bridge_events
from service.tail import Tail
from service.window import Window
from tests.bridge import USER, body, new_event, post
from tests.commands import command
from tests.dashboard import OURS
from tests.logkeeping import append as append_to
from tests.partitioned import divide
from tests.receiver import Receiver
from tests.relayed import deliver, make_webhook
from tests.relaying import RELAY, add_to, settled
from tests.running import ADMIN_TOKEN, STREAM_TOKEN, WITHIN_S, Database, Running, eventually
from tests.stored import append, open_log, positions, read_all, received

OTHER = "11111111-2222-4333-8444-555555555555"
NOW = datetime.now(UTC)
Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def erasures(database: Database) -> AsyncIterator[Erasures]:
    """Erases with the service's role."""
    async with create_pool(database.service_dsn, max_size=2) as pool:
        yield Erasures(pool)


@pytest.fixture
async def log(database: Database) -> AsyncIterator[EventLog]:
    """Six events: of the user 1, 3, 4 and (by its item) 5; of another one 2 and 6."""
    async with open_log(database) as opened:
        await append(opened, *six())
        yield opened


def six() -> list[NewEvent]:
    return [
        new_event("item.created"),
        new_event(item_id=7, user_uuid=OTHER),
        new_event("ITEM_REFRESHED"),
        new_event("user.deleted", item_id=None, account_id=None),
        new_event("item.deleted", account_id=None, user_uuid=None),
        new_event("item.deleted", item_id=7, account_id=None, user_uuid=None),
    ]


GONE = [1, 3, 4, 5]


async def erase(erasures: Erasures, user: str = USER, **options: bool) -> int:
    return (await erasures.erase_user(user, reason="test", by="tests", **options)).events


def tombstone(position: int, type_: str) -> bytes:
    return orjson.dumps({"erased": True, "position": position, "type": type_})


# What goes


async def test_bodies_go_and_the_chain_stays(
    log: EventLog, erasures: Erasures, owner: Connection
) -> None:
    before = await read_all(log)
    bounds = await log.bounds()
    assert await erase(erasures, is_dry_run=True) == 4
    assert await read_all(log) == before
    assert await erase(erasures) == 4
    after = await read_all(log)
    assert [event.position for event in after if event.is_erased] == GONE
    for was, now in zip(before, after, strict=True):
        kept = ("position", "link", "received_at", "source", "topic", "digest")
        assert all(getattr(was, name) == getattr(now, name) for name in kept)
        if not now.is_erased:
            assert now == was
            continue
        assert now.type == "causeway.erased"
        assert now.body == tombstone(now.position, was.type)
        left = (now.occurred_at, now.item_id, now.account_id, now.user_uuid)
        assert left == (None, None, None, None)
    assert await log.bounds() == bounds
    proof = await audit(log, lambda _done, _total: None)
    assert (proof.events, proof.erased) == (6, 4)
    dump = await owner.fetch(
        "SELECT event::text FROM causeway.event WHERE position = ANY ($1)", GONE
    )
    assert not any(USER in row[0] or "4568477" in row[0] for row in dump)
    assert await erase(erasures) == 0, "there is nothing left to erase"


async def test_an_erasure_is_written_down_without_naming_the_user(
    log: EventLog, erasures: Erasures, owner: Connection
) -> None:
    erasure = await erasures.erase_user(USER, reason="ticket 4711", by="dpo")
    row = await owner.fetchrow("SELECT * FROM causeway.erasure")
    assert row is not None
    assert (row["erasure_id"], row["reason"], row["erased_by"], row["events"]) == (
        *(erasure.number, "ticket 4711", "dpo", 4),
    )
    assert row["erased_at"] > NOW
    assert (
        await owner.fetchval("SELECT array_agg(position ORDER BY 1) FROM causeway.erased") == GONE
    )


async def test_the_same_bytes_are_still_known(log: EventLog, erasures: Erasures) -> None:
    events = [new_event("item.created"), new_event()]
    await append(log, *events)
    await erase(erasures)
    again = await append(log, *events)
    assert [(it.position, it.is_known) for it in again] == [(7, True), (8, True)]


async def test_events_are_erased_in_every_partition(
    database: Database, owner: Connection, erasures: Erasures
) -> None:
    await divide(owner, 5)
    async with open_log(database) as log:
        await append(log, *(new_event(user_uuid=OTHER if n % 4 else USER) for n in range(23)))
        assert await erase(erasures) == 6
        assert (await audit(log, lambda _done, _total: None)).erased == 6
        page = await log.read_matching(0, 23, Filter(user_uuids=frozenset({OTHER})))
        assert len(page.events) == 17


async def test_bridges_documented_events_can_all_be_erased(
    database: Database, erasures: Erasures
) -> None:
    async with open_log(database) as log:
        supply = bridge_events(3)
        events = [parse_event(next(supply)[1], "default", NOW) for _ in range(300)]
        await append(log, *events)
        for user in {event.user_uuid for event in events if event.user_uuid}:
            await erase(erasures, user)
        left = [event for event in await read_all(log) if not event.is_erased]
        assert all(event.user_uuid is None for event in left)
        await audit(log, lambda _done, _total: None)


# What may not be done


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE causeway.event SET body = '', occurred_at = NULL, item_id = NULL, "
        "account_id = NULL, user_uuid = NULL WHERE position = 2",
        "UPDATE causeway.event SET body = 'x' WHERE position = 1",
        "UPDATE causeway.event SET type = 'x' WHERE position = 1",
        "UPDATE causeway.event_0 SET received_at = now() WHERE position = 1",
        "DELETE FROM causeway.event WHERE position = 1",
    ],
)
async def test_within_an_erasure_nothing_else_can_be_changed(
    log: EventLog, owner: Connection, change: str
) -> None:
    transaction = owner.transaction()
    await transaction.start()
    try:
        await owner.execute(f"SELECT causeway.erase_user('{USER}', 'test', 'tests', false)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="the log is append-only"):
            await owner.execute(change)
    finally:
        await transaction.rollback()


async def test_after_an_erasure_the_log_is_closed_again(
    log: EventLog, erasures: Erasures, owner: Connection
) -> None:
    await erase(erasures)
    for change in ("body = ''", "item_id = NULL"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="the log is append-only"):
            await owner.execute(f"UPDATE causeway.event SET {change} WHERE position = 1")


async def test_the_services_role_can_erase_only_by_the_function(
    log: EventLog, database: Database
) -> None:
    service = await asyncpg.connect(database.service_dsn)
    try:
        for statement in (
            "INSERT INTO causeway.erasure (reason, erased_by, events) VALUES ('', '', 1)",
            "INSERT INTO causeway.erased VALUES (1, 1)",
            "UPDATE causeway.erasure_place SET position = 100",
            "UPDATE causeway.event SET body = '' WHERE position = 1",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await service.execute(statement)
    finally:
        await service.close()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("DELETE FROM causeway.erased WHERE position = 3", "no erasure of it is written down"),
        ("UPDATE causeway.event SET item_id = 5 WHERE position = 3", "item_id is left"),
        ("UPDATE causeway.event SET topic = 'x' WHERE position = 3", "topic is not"),
        ("UPDATE causeway.event SET digest = sha256('') WHERE position = 3", "the link"),
        ("UPDATE causeway.event SET body = '{}' WHERE position = 3", "the body is not"),
        ("UPDATE causeway.event SET body = '' WHERE position = 2", "no erasure of it"),
    ],
)
async def test_an_audit_takes_no_tombstone_that_is_none(
    log: EventLog, erasures: Erasures, owner: Connection, change: str, what: str
) -> None:
    await erase(erasures)
    await owner.execute("ALTER TABLE causeway.event DISABLE TRIGGER ALL")
    await owner.execute(change)
    with pytest.raises(LogDamaged, match=what):
        await audit(log, lambda _done, _total: None)


# What readers see


@pytest.mark.parametrize("window", [1, 1000])
async def test_streams_pages_and_the_client_show_a_tombstone(
    start: Start, erasures: Erasures, window: int
) -> None:
    """From the log, and from a window that held the bodies before."""
    running = await start(window_events=window, poll_s=0.1)
    await append_to(running, *six())
    ids = [event.id for event in await read_all(running.service.eventlog)]
    await erase(erasures)
    held = running.service.window
    await eventually(
        lambda: (
            not any(
                USER.encode() in f.sse + f.cloudevent for f in held.frames_after(held.first - 1)
            )
        )
    )
    seen = []
    async for event in subscribe(running.url, STREAM_TOKEN, from_start=True):
        seen.append(event)
        if event.position == 6:
            break
    assert [event.id for event in seen] == ids
    assert [event.position for event in seen if event.is_erased] == GONE
    assert seen[2].json() == {"erased": True, "position": 3, "type": "ITEM_REFRESHED"}
    async with httpx2.AsyncClient(base_url=running.url, headers=running.headers) as client:
        pages = (await client.get("/events?type=item.*")).json()["events"]
        assert [(it["id"], it["type"]) for it in pages] == [
            (ids[n - 1], "causeway.erased" if n in GONE else pages[k]["type"])
            for k, n in enumerate([1, 2, 3, 5, 6])
        ]
        assert "time" not in pages[0]
        for accept in ("application/cloudevents+json", "application/octet-stream"):
            one = await client.get("/events/3", headers={"accept": accept})
            assert (one.status_code, one.json()["error"]["code"]) == (410, "erased")
        assert (await client.get(f"/events?user_uuid={USER}")).json()["events"] == []


async def test_an_open_stream_reads_on_through_tombstones(start: Start, erasures: Erasures) -> None:
    running = await start(poll_s=0.1)
    seen = asyncio.Queue[tuple[int, bool]]()

    async def read() -> None:
        async for event in subscribe(running.url, STREAM_TOKEN, from_start=True):
            seen.put_nowait((event.position, event.is_erased))

    reading = asyncio.create_task(read())
    try:
        await append_to(running, *six())
        assert [await asyncio.wait_for(seen.get(), WITHIN_S) for _ in range(6)] == [
            (n, False) for n in range(1, 7)
        ]
        await erase(erasures)
        await append_to(running, new_event(user_uuid=OTHER))
        assert await asyncio.wait_for(seen.get(), WITHIN_S) == (7, False)
    finally:
        reading.cancel()


async def test_what_comes_into_the_window_after_its_erasure_is_let_go_too(
    start: Start, erasures: Erasures
) -> None:
    """The tail may have read a page before the erasure, and hand it to the window after."""
    running = await start(poll_s=0.1)
    log, window = running.service.eventlog, running.service.window
    tail = running.service.tail
    assert isinstance(tail, Tail)
    read_after, is_held = tail._eventlog.read_after, asyncio.Event()
    is_late = asyncio.Event()

    async def read_late(*arguments: int, **options: int) -> object:
        is_late.set()
        events = await read_after(*arguments, **options)
        if events and not is_held.is_set():
            is_held.set()
            await erase(erasures)
            await asyncio.sleep(0.3)  # so long the look-ups of erasures see nothing to replace
        return events

    tail._eventlog.read_after = read_late  # type: ignore[method-assign,assignment]
    await is_late.wait()  # no read of before is under way
    await log.append(six(), timeout_s=30)
    await eventually(
        lambda: (
            window.position == 6
            and [f.event.position for f in window.frames_after(0) if f.event.is_erased] == GONE
        )
    )


async def test_webhooks_are_sent_nothing_of_it(
    start: Start, erasures: Erasures, owner: Connection
) -> None:
    running = await start(**RELAY)
    await append_to(running, *six())
    await erase(erasures)
    with Receiver() as receiver:
        await add_to(running, f"{receiver.url}/good", after=0)
        found = await settled(owner, 6)
        assert found == {n: "exhausted" if n in GONE else "delivered" for n in range(1, 7)}
        assert len(receiver.requests()) == 2
    errors = await owner.fetch("SELECT error FROM causeway.delivery WHERE state = 'exhausted'")
    assert {row["error"] for row in errors} == {"event_gone"}


async def test_what_waits_for_a_retry_ends_at_once(
    log: EventLog, erasures: Erasures, owner: Connection
) -> None:
    webhook = await make_webhook(owner, 6, is_ordered=True)
    await deliver(owner, webhook, "pending", 1, 2)
    await deliver(owner, webhook, "delivered", 3)
    await erase(erasures)
    rows = await owner.fetch(
        "SELECT position, due_at <= clock_timestamp() AS is_due, order_key "
        "FROM causeway.delivery ORDER BY 1"
    )
    assert [(row["position"], row["is_due"]) for row in rows] == [(1, True), (2, False), (3, True)]
    assert rows[2]["order_key"] is None


# By itself


async def test_deleted_users_are_erased_after_the_delay(
    database: Database, erasures: Erasures, owner: Connection
) -> None:
    async with open_log(database) as log:
        then = NOW - timedelta(days=8)
        await append(log, *(received(event, then) for event in six()))
        late = new_event("user.deleted", user_uuid=OTHER, item_id=None, account_id=None)
        await append(log, received(late, NOW))
        loop = asyncio.create_task(erase_deleted_users(erasures, 7 * 86400, every_s=0.05))
        try:
            place = "SELECT position FROM causeway.erasure_place"
            async with asyncio.timeout(WITHIN_S):
                while await owner.fetchval(place) < 6:
                    await asyncio.sleep(0.02)
        finally:
            loop.cancel()
            await asyncio.wait([loop])  # one at a time may erase
        assert [it.position for it in await read_all(log) if it.is_erased] == GONE
        row = await owner.fetchrow("SELECT reason, erased_by FROM causeway.erasure")
        assert tuple(row or ()) == ("user.deleted", "causeway")
        assert await erasures.erase_deleted(NOW + timedelta(seconds=1)) == (1, 3)
        assert await erasures.erase_deleted(NOW + timedelta(seconds=1)) == (0, 0)


async def test_more_deleted_users_than_fit_in_one_commit_are_all_erased(
    database: Database, erasures: Erasures
) -> None:
    async with open_log(database) as log:
        users = [f"00000000-0000-4000-8000-{n:012d}" for n in range(25)]
        await append(log, *(new_event("user.deleted", user_uuid=it, item_id=n)
                            for n, it in enumerate(users)))  # fmt: skip
        counts = [await erasures.erase_deleted(datetime.now(UTC)) for _ in range(4)]
        assert counts == [(10, 10), (10, 10), (5, 5), (0, 0)]


async def test_a_service_erases_by_itself_only_if_told_to(start: Start, owner: Connection) -> None:
    for told in (False, True):
        running = await start(erase_on_user_deleted=told, erase_delay_s=0)
        answer = await post(running.url, body("user.deleted", user_uuid=USER))
        assert answer.status_code == 200
        names = running.service.supervisor._tasks
        assert ("erase" in names) is told
    async with asyncio.timeout(WITHIN_S):
        while not await owner.fetchval("SELECT count(*) FROM causeway.erased"):
            await asyncio.sleep(0.02)


# The command


async def test_the_command_erases_and_the_audit_says_how_many(
    log: EventLog, database: Database
) -> None:
    url = {"DATABASE_URL": database.service_dsn}
    assert (await command("erase", USER, "--dry-run", **url)).out == "would erase 4 events\n"
    assert (await command("erase", USER, "--reason", "x", **url)).out.startswith("erased 4 events")
    assert (await command("erase", USER, **url)).out == "nothing to erase\n"
    assert (await command("erase", "somebody", **url)).code == 2
    audited = await command("audit", DATABASE_URL=database.owner_dsn)
    assert "6 events are as they were appended; 4 of them are erased" in audited.out
    assert positions(await read_all(log)) == [1, 2, 3, 4, 5, 6]


async def test_what_was_erased_before_the_window_is_looked_through_once(
    log: EventLog, erasures: Erasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = Window(max_events=10, max_bytes=10**6)
    window.start(6, await log.check(6, None))
    forgetting = Forgetting(erasures, log, window, every_s=60)
    after, asked = erasures.after, []

    async def noted(number: int, position: int) -> Any:
        asked.append(number)
        return await after(number, position)

    monkeypatch.setattr(erasures, "after", noted)
    await forgetting._look()
    erased = await erasures.erase_user(USER, reason="asked for", by="support")
    for _ in range(2):
        await forgetting._look()
    assert asked == [0, 0, erased.number]


async def test_the_dashboard_gives_no_tombstone_for_what_bridge_sent(
    service: Running, erasures: Erasures
) -> None:
    assert (await post(service.url, body())).status_code == 200
    assert await erase(erasures) == 1
    async with httpx2.AsyncClient(base_url=service.url, headers=OURS) as client:
        await client.post("/dashboard/login", data={"token": ADMIN_TOKEN})
        page = (await client.get("/dashboard/events/1")).text
    assert "what Bridge sent was erased" in page
    assert "every character is Bridge's" not in page
    assert "/dashboard/events/1/body" not in page
