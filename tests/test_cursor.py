"""Where a reader begins: what can be understood, what is refused by name, and what the log says."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest

from service.cursor import (
    FILTER_PARAMS,
    START_PARAMS,
    Begin,
    Live,
    Place,
    Start,
    parse_begin,
    parse_filter,
    parse_place,
    parse_query,
    resolve,
    single,
)
from service.db import Connection
from service.errors import (
    BadRequest,
    LogDiverged,
    LogUnavailable,
    PositionAhead,
    PositionPruned,
)
from service.eventlog import EventLog
from service.filter import EVERYTHING, Filter
from service.window import Frame, Window
from tests.bridge import USER, new_event
from tests.running import Database
from tests.stored import append, fill, open_log, prune, read_all, received

KNOWN = FILTER_PARAMS | START_PARAMS
NINE = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)


def begin(query: str, header: str | None = None, default: Begin | None = None) -> Begin:
    return parse_begin(parse_query(query.encode(), KNOWN), header, default or Live())


def filter_of(query: str) -> Filter:
    return parse_filter(parse_query(query.encode(), KNOWN))


# The query


def test_values_are_kept_by_name_and_in_order() -> None:
    params = parse_query(b"type=a&source=x%20y&type=b+c&type=", KNOWN)
    assert params == {"type": ["a", "b c", ""], "source": ["x y"]}
    assert parse_query(b"", KNOWN) == {}


def test_an_unknown_parameter_is_named_with_those_that_are_known() -> None:
    with pytest.raises(BadRequest, match="unknown parameter 'typo'; known are account_id, after,"):
        parse_query(b"type=a&typo=b", KNOWN)


@pytest.mark.parametrize("query", [b"type=\xff", b"type=%ff", b"&".join([b"type=a"] * 1001)])
def test_a_query_that_cannot_be_read_is_refused(query: bytes) -> None:
    with pytest.raises(BadRequest, match="the query"):
        parse_query(query, KNOWN)


def test_what_may_stand_once_may_not_stand_twice() -> None:
    params = parse_query(b"after=1&after=1&since=2", KNOWN)
    assert (single(params, "since"), single(params, "from")) == ("2", None)
    with pytest.raises(BadRequest, match="the parameter after may stand only once"):
        single(params, "after")


# The filter


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", EVERYTHING),
        ("type=item.created", Filter(topics=frozenset({"item.created"}))),
        ("type=ITEM_CREATED&type=user.*", Filter(topics=frozenset({"item.created", "user.*"}))),
        ("item_id=1&item_id=1099511627776", Filter(item_ids=frozenset({1, 2**40}))),
        ("account_id=-5", Filter(account_ids=frozenset({-5}))),
        (f"user_uuid={USER.upper()}", Filter(user_uuids=frozenset({USER}))),
        ("source=bank&source=default", Filter(sources=frozenset({"bank", "default"}))),
        (
            "type=a&item_id=1&account_id=2&source=s",
            Filter(frozenset({"a"}), frozenset({1}), frozenset({2}), None, frozenset({"s"})),
        ),
    ],
)
def test_a_filter_is_what_the_query_says(query: str, expected: Filter) -> None:
    assert filter_of(query) == expected


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63)])
@pytest.mark.parametrize("name", ["item_id", "account_id"])
def test_every_id_that_the_log_indexes_can_be_asked_for(name: str, number: int) -> None:
    assert getattr(filter_of(f"{name}={number}"), f"{name}s") == frozenset({number})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("item_id", value) for value in ("", "a", "1.0", "1e3", "0x1", " 1", "1_000", "9" * 40)),
        *(("item_id", str(value)) for value in (2**63, -(2**63) - 1)),
        *(("account_id", value) for value in ("true", "+1", "--1")),
        *(("user_uuid", value) for value in ("", "me", USER.replace("-", ""), USER + "0")),
        *(("type", value) for value in ("", "a b", "*.created", "a\0")),
        *(("source", value) for value in ("\0", "a\nb")),
    ],
)
def test_a_bad_value_is_named(name: str, value: str) -> None:
    with pytest.raises(BadRequest, match=f"{name}="):
        filter_of(urlencode({name: value}))


# The beginning


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", Live()),
        ("after=1042.9f3ac01b", Place(1042, "9f3ac01b")),
        ("after=1042", Place(1042)),
        ("after=0", Place(0)),
        ("after=+7+", Place(7)),
        ("from=start", Start()),
        ("since=2026-11-23T09:00:00Z", NINE),
        ("since=2026-11-23T10:00:00%2B01:00", NINE),
        ("since=2026-11-23T10:00:00+01:00", NINE),
        ("since=2026-11-23T09:00:00", NINE),
        ("since=2026-11-23%2009:00", NINE),
        ("since=2026-11-23T09:00:00.000001Z", NINE + timedelta(microseconds=1)),
        ("since=2026-11-23", datetime(2026, 11, 23, tzinfo=UTC)),
        ("since=20261123T090000Z", NINE),
        ("since=1795424400000", NINE),
        ("since=1795424400", NINE),
        ("since=0", datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_beginning_is_understood(query: str, expected: Begin) -> None:
    assert begin(query) == expected


def test_without_a_word_the_default_counts() -> None:
    assert begin("", default=Start()) == Start()
    assert begin("", header="", default=Start()) == Start(), "an empty header is none"


def test_the_header_wins_over_the_query() -> None:
    place = Place(7, "00000000")
    for query in ("", "after=3", "from=start", "since=2026-11-23", "after=3&from=start"):
        assert begin(query, header="7.00000000") == place


@pytest.mark.parametrize(
    ("query", "said"),
    [
        *((f"after={bad}", "after=") for bad in ("", "a", "-1", "1.", "1.9f3", "1.9F3AC01B")),
        *((f"after={bad}", "after=") for bad in ("1.9f3ac01b0", "1e3", "9" * 19, "1,2")),
        ("after=%D9%A3", "after="),
        ("from=end", "from='end': the only value is `start`"),
        ("from=", "from=''"),
        *((f"since={bad}", "since=") for bad in ("", "yesterday", "2026-13-01", "10:00", "1.5")),
        *((f"since={bad}", "since=") for bad in ("9" * 18, "-" + "9" * 18, "9" * 30)),
        ("since=%D9%A3", "since="),
        ("since=0001-01-01T00:00:00%2B14:00", "since="),
        ("since=9999-12-31T23:59:59-12:00", "since="),
        ("after=1&from=start", "only one of after, from can say where to begin"),
        ("after=1&since=1&from=start", "only one of after, from, since"),
        ("after=1&after=2", "the parameter after may stand only once"),
    ],
)
def test_what_cannot_be_understood_is_refused_by_name(query: str, said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        begin(query)
    assert said in caught.value.message


def test_a_bad_header_is_refused_and_named() -> None:
    with pytest.raises(BadRequest, match="Last-Event-ID='x'"):
        begin("after=3", header="x")


def test_a_refusal_repeats_only_the_beginning_of_a_long_value() -> None:
    with pytest.raises(BadRequest) as caught:
        parse_place("x" * 10_000, "after")
    assert len(caught.value.message) < 200


# What the log says


@pytest.fixture
async def log(database: Database) -> AsyncIterator[EventLog]:
    async with open_log(database) as log:
        yield log


class NoLog(EventLog):
    """A database that is away: whatever needs it, fails."""

    def __init__(self) -> None:
        pass

    def __getattribute__(self, name: str) -> object:
        raise LogUnavailable("away")


async def window_with(log: EventLog, *, after: int) -> Window:
    window = Window(max_events=100, max_bytes=10**6)
    window.start(after, await log.link_at(after) or b"")
    for event in await log.read_after(after):
        window.append([Frame(event)])
    return window


def unstarted() -> Window:
    return Window(max_events=1, max_bytes=1)


async def test_a_place_in_the_window_needs_no_database(log: EventLog) -> None:
    await fill(log, 5)
    window = await window_with(log, after=2)
    for event in (await read_all(log))[2:]:
        digits = event.link.hex()[:8]
        assert await resolve(Place(event.position, digits), NoLog(), window) == event.position
        assert await resolve(Place(event.position), NoLog(), window) == event.position
    assert await resolve(Live(), NoLog(), window) == 5
    with pytest.raises(LogUnavailable):
        await resolve(Place(1), NoLog(), window)


async def test_a_place_is_checked_in_the_window_and_in_the_log(log: EventLog) -> None:
    await fill(log, 5)
    window = await window_with(log, after=2)
    links = {event.position: event.link.hex()[:8] for event in await read_all(log)}
    for position, digits in links.items():
        assert await resolve(Place(position, digits), log, window) == position
        with pytest.raises(LogDiverged):
            await resolve(Place(position, links[position % 5 + 1]), log, window)
    with pytest.raises(PositionAhead):
        await resolve(Place(6), log, window)


async def test_the_beginning_of_a_pruned_log_is_what_is_left(
    log: EventLog, owner: Connection
) -> None:
    await fill(log, 5)
    await prune(owner, 3)
    window = await window_with(log, after=3)
    assert await resolve(Start(), log, window) == 3
    assert await resolve(Place(3), log, window) == 3
    with pytest.raises(PositionPruned):
        await resolve(Place(2), log, window)


async def test_live_is_the_newest_event_also_before_the_window_has_begun(log: EventLog) -> None:
    await fill(log, 4)
    assert await resolve(Live(), log, unstarted()) == 4
    assert await resolve(Start(), log, unstarted()) == 0


async def test_since_reads_from_the_first_event_at_or_after_it(log: EventLog) -> None:
    times = [NINE + timedelta(minutes=minute) for minute in range(4)]
    await append(log, *(received(new_event(), time) for time in times))
    for moment, position in (
        (NINE - timedelta(days=1), 0),
        (NINE, 0),
        (NINE + timedelta(microseconds=1), 1),
        (times[3], 3),
        (times[3] + timedelta(seconds=1), 4),
    ):
        assert await resolve(moment, log, unstarted()) == position


@pytest.mark.parametrize(
    ("moment", "position"),
    [
        (datetime.min.replace(tzinfo=UTC), 0),
        (datetime.max.replace(tzinfo=UTC), 2),
    ],
)
async def test_the_ends_of_the_calendar_are_times_too(
    log: EventLog, moment: datetime, position: int
) -> None:
    await fill(log, 2)
    wanted = begin(urlencode({"since": moment.isoformat()}))
    assert await resolve(wanted, log, unstarted()) == position
