"""The log on a real Postgres: order, duplicates, chain, bounds, look-ups, forgetting."""

import hashlib
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service import eventlog as eventlog_module
from service.db import Connection
from service.errors import LogDamaged, LogDiverged, LogUnavailable, PositionAhead, PositionPruned
from service.event import Event, NewEvent, chain_link, parse_event
from service.eventlog import Appended, EventLog
from service.filter import Filter
from tests.bridge import USER, body, new_event
from tests.running import WITHIN_S, Database, eventually
from tests.stored import (
    APPEND_LOCK,
    append,
    bridge_test,
    fill,
    open_log,
    positions,
    prune,
    read_all,
    received,
    remove,
)

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
in_one_database = hypothesis_settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
async def log(database: Database) -> AsyncIterator[EventLog]:
    async with open_log(database) as log:
        yield log


def answers(*pairs: tuple[int, bool]) -> list[Appended]:
    return [Appended(position, is_known) for position, is_known in pairs]


# Append


async def test_positions_are_dense_across_batches(log: EventLog) -> None:
    assert await append(log, new_event(), new_event()) == answers((1, False), (2, False))
    assert await append(log, new_event()) == answers((3, False))
    assert positions(await read_all(log)) == [1, 2, 3]


async def test_an_empty_batch_changes_nothing(log: EventLog) -> None:
    assert await append(log) == []
    assert await read_all(log) == []


async def test_a_retry_gets_its_first_position(log: EventLog) -> None:
    first, second, third = new_event(), new_event(), new_event()
    await append(log, first, second)
    assert await append(log, second, third, first) == answers((2, True), (3, False), (1, True))
    assert await append(log, first, second) == answers((1, True), (2, True))
    assert [event.body for event in await read_all(log)] == [first.body, second.body, third.body]


async def test_equal_bytes_in_one_batch_are_one_event(log: EventLog) -> None:
    first, second = new_event(), new_event()
    later = received(first, first.received_at + timedelta(seconds=1))
    assert await append(log, first, later, second, first) == answers(
        (1, False), (1, True), (2, False), (1, True)
    )
    assert (await read_all(log))[0].received_at == first.received_at


async def test_each_test_event_is_new(log: EventLog) -> None:
    known = new_event()
    await append(log, known, bridge_test())
    assert await append(log, bridge_test(), known, bridge_test()) == answers(
        (3, False), (1, True), (4, False)
    )
    assert await append(log, bridge_test()) == answers((5, False))
    types = [event.type for event in await read_all(log)]
    assert types == [known.type, *["TEST_EVENT"] * 4]


async def test_the_same_bytes_at_two_sources_are_two_events(log: EventLog) -> None:
    here = new_event()
    there = replace(here, source="other")
    assert await append(log, here, there) == answers((1, False), (2, False))
    assert await append(log, there, here) == answers((2, True), (1, True))
    assert [event.source for event in await read_all(log)] == ["default", "other"]


async def test_a_refused_batch_leaves_no_hole(log: EventLog) -> None:
    await fill(log, 2)
    with pytest.raises(asyncpg.CharacterNotInRepertoireError):
        await append(log, new_event(), replace(new_event(), type="a\0b"))
    assert (await append(log, new_event()))[0].position == 3


async def test_a_batch_is_one_notification_with_the_new_head(
    log: EventLog, owner: Connection
) -> None:
    heads: list[object] = []
    await owner.add_listener("causeway_head", lambda *args: heads.append(args[-1]))
    events = await fill(log, 3)
    await append(log, *events)  # all known: nothing to tell
    await append(log, bridge_test(), bridge_test())
    await append(log, events[0], new_event())
    await eventually(lambda: "6" in heads)
    assert heads == ["3", "5", "6"]


async def test_append_refuses_a_snapshot_older_than_its_lock(database: Database) -> None:
    connection = await asyncpg.connect(database.service_dsn)
    try:
        for isolation in ("repeatable_read", "serializable"):
            with pytest.raises(asyncpg.InvalidTransactionStateError, match="READ COMMITTED"):
                async with connection.transaction(isolation=isolation):
                    await append(EventLog(connection), new_event())
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("before", "within"), [("off", "on"), ("local", "on"), ("on", "on"), ("remote_apply",) * 2]
)
async def test_the_commit_waits_for_the_disk_whatever_the_session_says(
    database: Database, before: str, within: str
) -> None:
    connection = await asyncpg.connect(
        database.service_dsn, server_settings={"synchronous_commit": before}
    )
    try:
        async with connection.transaction():
            await append(EventLog(connection), new_event())
            assert await connection.fetchval("SHOW synchronous_commit") == within
        assert await connection.fetchval("SHOW synchronous_commit") == before
    finally:
        await connection.close()


async def test_a_commit_that_takes_too_long_is_log_unavailable(
    log: EventLog, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not given up before the server has said so: it would commit once the lock is free.
    monkeypatch.setattr("service.db.CANCEL_TIMEOUT_S", WITHIN_S)
    async with owner.transaction():
        await owner.execute(APPEND_LOCK)
        with pytest.raises(LogUnavailable):
            await log.append([new_event()], timeout_s=0.1)
    assert (await append(log, new_event()))[0].position == 1


# Bytes and chain


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{\r\n\t"type": "a",\r\n\t"n": 1678.10\r\n}\r\n', id="pretty"),
        pytest.param('{"type":"a","label":"Compte chèques € \U0001f3e6"}'.encode(), id="utf-8"),
        pytest.param(bytes(range(256)), id="every byte, not UTF-8"),
        pytest.param(b"x" * 300_000, id="stored apart"),
    ],
)
async def test_the_bytes_come_back_as_they_were(log: EventLog, content: bytes) -> None:
    event = replace(new_event(), body=content, digest=hashlib.sha256(content).digest())
    await append(log, event)
    [stored] = await log.read_after(0)
    assert stored.body == content
    assert stored.digest == hashlib.sha256(content).digest()


async def test_every_column_comes_back_as_it_was(log: EventLog) -> None:
    content = body("ITEM_REFRESHED", item_id=2**63 - 1, account_id=-(2**63))
    event = replace(parse_event(content, "bank", NOW), occurred_at=NOW - timedelta(days=1))
    await append(log, event)
    [stored] = await log.read_after(0)
    for name in NewEvent.__dataclass_fields__:
        assert getattr(stored, name) == getattr(event, name), name
    assert stored.user_uuid == USER


async def test_the_chain_starts_at_the_log_and_follows_the_rule(log: EventLog) -> None:
    earlier = received(new_event(), NOW - timedelta(microseconds=1))
    known = new_event()
    await append(log, known, earlier, replace(new_event(), source="été"))
    await append(log, known, new_event(), known, bridge_test())
    bounds = await log.bounds()
    link = hashlib.sha256(uuid.UUID(bounds.log_id).bytes).digest()
    assert (bounds.anchor_position, bounds.anchor_link) == (0, link)
    events = await read_all(log)
    for event in events:
        link = chain_link(link, event.digest, event.position, event.received_at, event.source)
        assert event.link == link, event.position
    assert (len(events), bounds.head_link) == (5, link)


# Read


async def test_read_after_is_bounded_by_rows(log: EventLog) -> None:
    await fill(log, 5)
    assert positions(await log.read_after(1, limit=3)) == [2, 3, 4]
    assert positions(await log.read_after(3)) == [4, 5]
    assert await log.read_after(5) == []
    assert await log.read_after(99) == []


async def test_read_after_is_bounded_by_bytes_but_gives_one(log: EventLog) -> None:
    events = await fill(log, 4)
    sizes = [len(event.body) for event in events]
    assert positions(await log.read_after(0, max_bytes=1)) == [1]
    assert positions(await log.read_after(0, max_bytes=sum(sizes[:2]))) == [1, 2]
    assert positions(await log.read_after(0, max_bytes=sum(sizes[:2]) - 1)) == [1]
    assert positions(await log.read_after(1, max_bytes=0)) == [2]


@dataclass(frozen=True)
class Case:
    """A filtered read, and how it is cut into pages."""

    after: int
    until: int
    filter: Filter
    limit: int
    max_bytes: int


ROWS = 60
TOPICS = ("item.created", "item.account.updated", "item_account", "user.deleted")
USERS = (USER, "00000000-0000-4000-8000-000000000000")


T = TypeVar("T")


def some(*values: T) -> st.SearchStrategy[frozenset[T]]:
    return st.frozensets(st.sampled_from(values), max_size=2)


topics = some(*TOPICS, "item.*", "item_*", "user.deleted*", "*", "none")
items, accounts, users = some(1, 2, 2**40), some(1, 9), some(*USERS)
sources = some("default", "other", "none")
none = st.none()
# Most filters restrict one field: with more, little matches and nothing is cut.
filters = st.one_of(
    st.just(Filter()),
    st.builds(Filter, topics=topics),
    st.builds(Filter, item_ids=items),
    st.builds(Filter, account_ids=accounts),
    st.builds(Filter, user_uuids=users),
    st.builds(Filter, sources=sources),
    st.builds(Filter, none | topics, none | items, none | accounts, none | users, none | sources),
)
cases = st.builds(
    Case,
    after=st.integers(0, ROWS // 3) | st.integers(0, ROWS),
    until=st.integers(ROWS // 2, ROWS) | st.integers(0, ROWS + 5),
    filter=filters,
    limit=st.integers(1, 12),
    max_bytes=st.sampled_from((0, 1, 300, 1000, 10_000, 10**9)),
)


def varied(n: int) -> NewEvent:
    """Return the n-th of events that differ in all that a filter sees; each seventh is huge."""
    content = body(
        TOPICS[n % 4], item_id=(1, 2, 3, 2**40, None)[n % 5], account_id=n % 3, n=n,
        user_uuid=USERS[n // 2 % 2], padding="x" * (9_000 if n % 7 == 0 else n),
    )  # fmt: skip
    return parse_event(content, ("default", "other")[n % 11 == 0], NOW)


@pytest.fixture
async def varied_log(log: EventLog) -> EventLog:
    await append(log, *(varied(n) for n in range(ROWS)))
    return log


def expected_page(events: list[Event], case: Case) -> list[Event]:
    """Cut the page in Python, by the rule that `read_matching` promises."""
    is_match = case.filter.matcher()
    page: list[Event] = []
    for event in events:
        if not (case.after < event.position <= case.until and is_match(event)):
            continue
        size = sum(len(taken.body) for taken in page) + len(event.body)
        if page and (len(page) == case.limit or size > case.max_bytes):
            break
        page.append(event)
    return page


@in_one_database
@given(case=cases)
async def test_a_filtered_page_is_what_python_would_choose(
    varied_log: EventLog, case: Case
) -> None:
    events = await read_all(varied_log)
    page = await varied_log.read_matching(
        case.after, case.until, case.filter, limit=case.limit, max_bytes=case.max_bytes
    )
    assert page.events == expected_page(events, case)
    is_match = case.filter.matcher()
    skipped = [e for e in events if case.after < e.position <= page.scanned_to and is_match(e)]
    assert skipped == page.events, "scanned_to passed an event that was not given"
    if not page.events:
        assert page.scanned_to == case.until, "nothing was found, so all was looked at"


@in_one_database
@given(case=cases, span=st.sampled_from((1, 7, 1000)))
async def test_filtered_pages_together_give_each_match_once(
    varied_log: EventLog, case: Case, span: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eventlog_module, "SCAN_POSITIONS", span)
        position, found, reads = case.after, list[Event](), 0
        while position < case.until:
            page = await varied_log.read_matching(
                position, case.until, case.filter, limit=case.limit, max_bytes=case.max_bytes
            )
            assert position < page.scanned_to <= min(case.until, position + span)
            position, found, reads = page.scanned_to, found + page.events, reads + 1
    whole = replace(case, limit=ROWS, max_bytes=10**9)
    assert found == expected_page(await read_all(varied_log), whole)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("item_*", {"item_account"}),
        ("item*", set(TOPICS[:3])),
        ("item%*", set()),
        ("*", set(TOPICS)),
    ],
)
async def test_only_the_star_is_a_wildcard(
    varied_log: EventLog, pattern: str, expected: set[str]
) -> None:
    page = await varied_log.read_matching(0, ROWS, Filter(topics=frozenset({pattern})))
    assert {event.topic for event in page.events} == expected


async def test_a_full_scan_says_it_looked_to_the_end(varied_log: EventLog) -> None:
    nobody = Filter(item_ids=frozenset({77}))
    assert (await varied_log.read_matching(3, ROWS, nobody)).scanned_to == ROWS
    every = await varied_log.read_matching(0, ROWS, Filter(topics=frozenset({"*"})))
    assert (len(every.events), every.scanned_to) == (ROWS, ROWS)


# Places in the log


async def test_an_empty_log_ends_where_it_begins(log: EventLog) -> None:
    bounds = await log.bounds()
    assert (bounds.anchor_position, bounds.head_position, bounds.first_position) == (0, 0, 1)
    assert bounds.head_link == bounds.anchor_link == await log.check(0, None)
    assert await log.link_at(1) is None


async def test_a_reader_that_was_there_may_go_on(log: EventLog) -> None:
    await fill(log, 3)
    link = (await read_all(log))[1].link
    assert await log.check(2, None) == link
    assert await log.check(2, link.hex()[:8]) == link
    assert await log.check(2, link.hex()) == link


async def test_a_reader_of_another_history_is_told(log: EventLog) -> None:
    await fill(log, 3)
    link = (await log.read_after(1, limit=1))[0].link
    wrong = "00000000" if link[:4] != bytes(4) else "00000001"
    with pytest.raises(LogDiverged, match=rf"2\.{link[:4].hex()}, not 2\.{wrong}") as caught:
        await log.check(2, wrong)
    assert caught.value.details == {"position": 2}


async def test_a_reader_ahead_of_the_log_is_told(log: EventLog) -> None:
    await fill(log, 3)
    with pytest.raises(PositionAhead, match="ends at position 3 and never got to 4") as caught:
        await log.check(4, None)
    assert caught.value.details == {"head_position": 3}


async def test_a_pruned_log_says_what_is_left(log: EventLog, owner: Connection) -> None:
    await fill(log, 5)
    link = (await read_all(log))[2].link
    await prune(owner, 3)
    bounds = await log.bounds()
    assert (bounds.anchor_position, bounds.first_position, bounds.head_position) == (3, 4, 5)
    assert await log.check(3, link.hex()[:8]) == link, "the anchor's link is kept"
    await log.check_kept(3)
    for refuse in (log.check(2, None), log.check_kept(2), log.read_after(2)):
        with pytest.raises(PositionPruned, match="the first event left is 4") as caught:
            await refuse
        assert caught.value.details == {"first_position": 4}
    assert positions(await log.read_after(3)) == [4, 5]
    assert (await append(log, new_event()))[0].position == 6


async def test_a_log_pruned_to_its_head_goes_on_from_there(
    log: EventLog, owner: Connection
) -> None:
    events = await fill(log, 3)
    await prune(owner, 3)
    bounds = await log.bounds()
    assert (bounds.anchor_position, bounds.head_position) == (3, 3)
    assert bounds.head_link == bounds.anchor_link
    assert await append(log, new_event(), events[0]) == answers((4, False), (1, True))
    [event] = await log.read_after(3)
    assert event.link == chain_link(
        bounds.anchor_link, event.digest, 4, event.received_at, event.source
    )


# Times


def first_at(times: list[datetime], moment: datetime, offset: int = 0) -> int:
    """Return the first position received at or after `moment`, by looking at each."""
    late = (n for n, time in enumerate(times, 1) if n > offset and time >= moment)
    return next(late, len(times) + 1)


@pytest.mark.parametrize(
    "minutes",
    [
        pytest.param([], id="empty"),
        pytest.param([5], id="one"),
        pytest.param([1, 2, 3, 4, 5, 6, 7], id="rising"),
        pytest.param([5, 1, 9, 2, 2, 9, 11, 3, 10, 12, 1], id="clocks that disagree"),
        pytest.param([3] * 9, id="all at once"),
    ],
)
async def test_find_time_is_the_first_at_or_after(log: EventLog, minutes: list[int]) -> None:
    times = [NOW + timedelta(minutes=minute) for minute in minutes]
    for time in times:  # a batch each, so that the watermark comes from the row before
        await append(log, received(new_event(), time))
    for minute in range(14):
        for offset in (-1, 0, 1):
            moment = NOW + timedelta(minutes=minute, microseconds=offset)
            assert await log.find_time(moment) == first_at(times, moment), (minute, offset)


async def test_find_time_within_a_batch_and_after_pruning(log: EventLog, owner: Connection) -> None:
    times = [NOW + timedelta(minutes=minute) for minute in (4, 2, 8, 6, 9, 7)]
    await append(log, *(received(new_event(), time) for time in times))
    for minute in range(11):
        moment = NOW + timedelta(minutes=minute)
        assert await log.find_time(moment) == first_at(times, moment), minute
    await prune(owner, 2)
    assert await log.find_time(NOW) == 3
    assert await log.find_time(NOW + timedelta(minutes=9)) == 5
    assert await log.find_time(NOW + timedelta(minutes=10)) == 7


# Forgetting


async def test_digests_are_kept_as_long_as_bridge_retries(log: EventLog) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match="2 days"):
        await log.forget_digests(datetime.now(UTC) - timedelta(hours=47), limit=10)


async def test_forgetting_goes_by_batches_oldest_first(log: EventLog, owner: Connection) -> None:
    now = datetime.now(UTC)
    old = [received(new_event(), now - timedelta(days=4)) for _ in range(5)]
    young = [received(new_event(), now - timedelta(days=1)) for _ in range(2)]
    await append(log, *old, *young)
    before = now - timedelta(days=3)
    assert await log.forget_digests(before, limit=2) == 2
    left = await owner.fetch("SELECT position FROM causeway.digest ORDER BY position")
    assert [row[0] for row in left] == [3, 4, 5, 6, 7]
    assert await log.forget_digests(before, limit=100) == 3
    assert await log.forget_digests(before, limit=100) == 0
    assert await append(log, *young) == answers((6, True), (7, True))
    assert len(await read_all(log)) == 7, "the events stay"


async def test_forgotten_bytes_are_a_new_event(log: EventLog) -> None:
    event = received(new_event(), datetime.now(UTC) - timedelta(days=4))
    await append(log, event)
    assert await log.forget_digests(datetime.now(UTC) - timedelta(days=3), limit=10) == 1
    assert await append(log, event) == answers((2, False))
    assert [stored.body for stored in await read_all(log)] == [event.body] * 2


async def test_only_one_forgets_at_a_time(log: EventLog, owner: Connection) -> None:
    event = received(new_event(), datetime.now(UTC) - timedelta(days=4))
    await append(log, event)
    before = datetime.now(UTC) - timedelta(days=3)
    async with owner.transaction():
        assert await owner.fetchval("SELECT causeway.forget_digests($1, 0)", before) == 0
        assert await log.forget_digests(before, limit=10) == 0, "the other one holds the lock"
    assert await log.forget_digests(before, limit=10) == 1


# A database that is away


@pytest.mark.parametrize(
    "call",
    [
        lambda log: log.append([new_event()], timeout_s=1),
        lambda log: log.read_after(0),
        lambda log: log.read_matching(0, 10, Filter()),
        lambda log: log.bounds(),
        lambda log: log.link_at(1),
        lambda log: log.find_time(NOW),
        lambda log: log.forget_digests(NOW - timedelta(days=900), limit=1),
    ],
)
async def test_a_session_that_is_gone_is_log_unavailable(
    database: Database, call: Callable[[EventLog], object]
) -> None:
    connection = await asyncpg.connect(database.service_dsn)
    connection.terminate()
    with pytest.raises(LogUnavailable):
        await call(EventLog(connection))  # type: ignore[misc]


async def test_a_hole_stops_the_reader_and_names_the_position(
    log: EventLog, owner: Connection
) -> None:
    await fill(log, 5)
    await owner.execute("ALTER TABLE causeway.event DISABLE TRIGGER event_is_append_only")
    await owner.execute("DELETE FROM causeway.event WHERE position = 3")
    with pytest.raises(LogDamaged, match="position 3: missing; 4 follows") as caught:
        await log.read_after(0)
    assert caught.value.position == 3
    assert positions(await log.read_after(0, limit=2)) == [1, 2]


async def test_a_place_whose_row_is_lost_is_damage_and_not_ahead(
    log: EventLog, owner: Connection
) -> None:
    await fill(log, 5)
    await remove(owner, 2, 2)
    with pytest.raises(LogDamaged, match="position 2: missing"):
        await log.check(2, None)
