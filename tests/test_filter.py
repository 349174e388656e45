"""Filters: tables for the patterns, properties for their intersection."""

import sys
from dataclasses import dataclass
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.filter import (
    EVERYTHING,
    NAMES_OF_2019,
    PATTERNS_MAX,
    Filter,
    parse_topics,
    shard_of,
    topic_of,
)


@dataclass(frozen=True)
class Seen:
    """What a filter looks at."""

    position: int = 1
    topic: str = "item.created"
    source: str = "default"
    item_id: int | None = 1
    account_id: int | None = None
    user_uuid: str | None = None


topics = st.sampled_from(("item.created", "item.account.updated", "item", "user.deleted", "i"))
patterns = st.one_of(
    topics, topics.map(lambda topic: topic + "*"), st.sampled_from(("*", "item.*", "item.a*"))
)


def sets(values: st.SearchStrategy[object]) -> st.SearchStrategy[frozenset[object] | None]:
    return st.none() | st.frozensets(values, max_size=3)


filters = st.builds(
    Filter,
    topics=sets(patterns),
    item_ids=sets(st.integers(1, 4)),
    account_ids=sets(st.integers(1, 4)),
    user_uuids=sets(st.sampled_from("abc")),
    sources=sets(st.sampled_from(("default", "bank", "other"))),
)
seen = st.builds(
    Seen,
    topic=topics | st.text("item.acrud", max_size=12),
    source=st.sampled_from(("default", "bank")),
    item_id=st.none() | st.integers(1, 5),
    account_id=st.none() | st.integers(1, 5),
    user_uuid=st.none() | st.sampled_from("abcd"),
)


def by_definition(filter_: Filter, event: Seen) -> bool:
    """Match by the words of the docstring, without preparing anything."""

    def one(wanted: frozenset[object] | None, value: object) -> bool:
        return wanted is None or value in wanted

    def topic_fits(pattern: str) -> bool:
        if pattern.endswith("*"):
            return event.topic.startswith(pattern[:-1])
        return event.topic == pattern

    return (
        (filter_.topics is None or any(topic_fits(pattern) for pattern in filter_.topics))
        and one(filter_.item_ids, event.item_id)
        and one(filter_.account_ids, event.account_id)
        and one(filter_.user_uuids, event.user_uuid)
        and one(filter_.sources, event.source)
    )


@given(filters, seen)
def test_a_matcher_does_what_the_definition_says(filter_: Filter, event: Seen) -> None:
    assert filter_.matcher()(event) == by_definition(filter_, event)


@given(filters, filters, seen)
def test_an_intersection_matches_exactly_what_both_match(a: Filter, b: Filter, event: Seen) -> None:
    both = a.matcher()(event) and b.matcher()(event)
    assert a.intersect(b).matcher()(event) == both
    assert b.intersect(a).matcher()(event) == both


def test_a_thousand_types_are_not_compared_each_with_each() -> None:
    wish, calls = Filter(parse_topics(f"item.{n}" for n in range(1000))), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        met = wish.intersect(Filter(parse_topics(["item.*", "user.*"])))
    finally:
        sys.setprofile(before)
    assert met == wish
    assert calls < 100_000  # a pair each is millions, and a second in which nobody is answered


@given(filters)
def test_everything_changes_nothing(filter_: Filter) -> None:
    assert filter_.intersect(EVERYTHING) == EVERYTHING.intersect(filter_) == filter_
    assert EVERYTHING.matcher()(Seen())
    assert filter_.is_everything == (filter_ == Filter())


@pytest.mark.parametrize(
    ("pattern", "matched", "not_matched"),
    [
        ("item.created", ["item.created"], ["item.created.x", "item", "ITEM.CREATED"]),
        ("item.*", ["item.", "item.created", "item.account.updated"], ["item", "items.created"]),
        ("item*", ["item", "items", "item.created"], ["ite", "user.item"]),
        ("*", ["item.created", "", "TEST_EVENT", "a b"], []),
        ("a.b", ["a.b"], ["axb"]),
        ("TEST_EVENT", ["TEST_EVENT"], ["TESTXEVENT", "test_event"]),
    ],
)
def test_a_pattern_is_a_name_or_a_beginning(
    pattern: str, matched: list[str], not_matched: list[str]
) -> None:
    is_match = Filter(topics=parse_topics([pattern])).matcher()
    assert [topic for topic in matched if not is_match(Seen(topic=topic))] == []
    assert [topic for topic in not_matched if is_match(Seen(topic=topic))] == []


@pytest.mark.parametrize(("old", "today"), NAMES_OF_2019.items())
def test_a_name_of_2019_and_todays_name_are_the_same_filter(old: str, today: str) -> None:
    assert topic_of(old) == topic_of(today) == today
    assert parse_topics([old]) == parse_topics([today]) == frozenset({today})


def test_bridges_four_names_of_2019_are_known() -> None:
    assert set(NAMES_OF_2019) == {
        *("ITEM_CREATED", "ITEM_REFRESHED", "ACCOUNT_CREATED", "ACCOUNT_UPDATED")
    }
    assert NAMES_OF_2019["ACCOUNT_UPDATED"] == "item.account.updated"


def test_no_type_asked_for_is_every_type() -> None:
    assert parse_topics([]) is None


@pytest.mark.parametrize("pattern", ["", "**", "*.created", "a*b", "a b", "é", "x" * 129, "a\n"])
def test_what_cannot_be_a_pattern_is_named(pattern: str) -> None:
    with pytest.raises(ValueError, match="expected a type such as") as caught:
        parse_topics(["item.created", pattern])
    assert repr(pattern) in str(caught.value)


def test_no_more_than_so_many_patterns_are_taken() -> None:
    most = [f"item.{number}*" for number in range(PATTERNS_MAX)]
    assert parse_topics([*most, *(f"user.{number}" for number in range(500))]) is not None
    with pytest.raises(ValueError, match=f"at most {PATTERNS_MAX}"):
        parse_topics([*most, "user.*"])


def test_an_event_without_the_field_does_not_match_a_filter_on_it() -> None:
    nothing = Seen(item_id=None)
    assert not Filter(item_ids=frozenset({1})).matcher()(nothing)
    assert not Filter(account_ids=frozenset({1})).matcher()(nothing)
    assert not Filter(user_uuids=frozenset({"a"})).matcher()(nothing)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [(None, False), (["a"], False), (["a", "b*"], True), (["*"], True), ([], False)],
)
def test_patterns_are_told_from_names(patterns: list[str] | None, expected: bool) -> None:
    topics = None if patterns is None else frozenset(patterns)
    assert Filter(topics=topics).has_patterns is expected


@pytest.mark.parametrize(
    ("event", "key"),
    [
        (Seen(position=9, item_id=4568477, user_uuid="u"), b"4568477"),
        (Seen(position=9, item_id=0, user_uuid="u"), b"0"),
        (Seen(position=9, item_id=-1), b"-1"),
        (Seen(position=9, item_id=None, user_uuid="9a95b38f"), b"9a95b38f"),
        (Seen(position=9, item_id=None), b"9"),
    ],
)
def test_the_shard_is_the_crc_of_item_else_user_else_position(event: Seen, key: bytes) -> None:
    for count in (1, 2, 7, 64):
        assert shard_of(event, count) == crc32(key) % count
        matching = [n for n in range(count) if Filter(shard=(n, count)).matcher()(event)]
        assert matching == [crc32(key) % count]


@given(position=st.integers(1, 2**62), count=st.integers(1, 64))
def test_all_events_of_an_item_are_in_one_shard(position: int, count: int) -> None:
    first, later = Seen(position=1), Seen(position=position, topic="i", user_uuid="another")
    assert shard_of(first, count) == shard_of(later, count)
