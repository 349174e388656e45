"""Which events a reader wants: a pure value, matched in memory and by the log's SQL alike.

Within a field any value may match, the fields must all match, and a field that is None does not
restrict. Types are today's names or patterns that end in `*`; names of Bridge's API 2019 mean the
same as today's. Two filters intersect to one (a token's limits and a request's wishes).
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar
from zlib import crc32

T = TypeVar("T")

# Bridge's API 2019 wrote these names; a filter for one spelling matches both (BRIDGE.md).
NAMES_OF_2019 = {
    "ITEM_CREATED": "item.created",
    "ITEM_REFRESHED": "item.refreshed",
    "ACCOUNT_CREATED": "item.account.created",
    "ACCOUNT_UPDATED": "item.account.updated",
}
PATTERNS_MAX = 100  # the database compares each with each event that it looks at
_TYPE_PATTERN = re.compile(r"[A-Za-z0-9_.\-]{1,128}\*?|\*")


def topic_of(type_: str) -> str:
    """Return the name under which filters know an event of Bridge's type `type_`."""
    return NAMES_OF_2019.get(type_, type_)


def shard_of(event: "Filterable", count: int) -> int:
    """Return which of `count` shards an event belongs to: CRC-32 of its item's id, modulo.

    Without an item it is the user's UUID, without a user the position, each as ASCII text. All
    events of an item are in one shard, so their order is kept.
    """
    key = event.item_id if event.item_id is not None else event.user_uuid or event.position
    return crc32(str(key).encode()) % count


class Filterable(Protocol):
    """What a filter looks at."""

    @property
    def position(self) -> int: ...
    @property
    def topic(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def item_id(self) -> int | None: ...
    @property
    def account_id(self) -> int | None: ...
    @property
    def user_uuid(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Filter:
    """A conjunction of sets; `EVERYTHING` has none. An empty set matches nothing."""

    topics: frozenset[str] | None = None
    item_ids: frozenset[int] | None = None
    account_ids: frozenset[int] | None = None
    user_uuids: frozenset[str] | None = None
    sources: frozenset[str] | None = None
    shard: tuple[int, int] | None = None  # (number, of how many); never part of a token's limits

    @property
    def is_everything(self) -> bool:
        return self == EVERYTHING

    @property
    def has_patterns(self) -> bool:
        """True if a topic ends in a star."""
        return self.topics is not None and any(topic[-1:] == "*" for topic in self.topics)

    def matcher(self) -> Callable[[Filterable], bool]:
        """Return a fast predicate: what can be prepared once is, only fields in use are tested."""
        tests: list[Callable[[Filterable], bool]] = []
        if (items := self.item_ids) is not None:
            tests.append(lambda event: event.item_id in items)
        if (accounts := self.account_ids) is not None:
            tests.append(lambda event: event.account_id in accounts)
        if (users := self.user_uuids) is not None:
            tests.append(lambda event: event.user_uuid in users)
        if (sources := self.sources) is not None:
            tests.append(lambda event: event.source in sources)
        if self.topics is not None:
            tests.append(self._topic_test())
        if self.shard is not None:
            number, count = self.shard
            tests.append(lambda event: shard_of(event, count) == number)
        if len(tests) == 1:
            return tests[0]
        return lambda event: all(test(event) for test in tests)

    def _topic_test(self) -> Callable[[Filterable], bool]:
        topics = self.topics or frozenset()
        exact = frozenset(topic for topic in topics if topic[-1:] != "*")
        prefixes = tuple(topic[:-1] for topic in topics - exact)
        if not prefixes:
            return lambda event: event.topic in exact
        return lambda event: event.topic in exact or event.topic.startswith(prefixes)

    def intersect(self, other: "Filter") -> "Filter":
        """Return the filter that matches exactly what both match."""
        return Filter(
            topics=_both(self.topics, other.topics, _meet_topics),
            **{
                field.name: _both(
                    getattr(self, field.name), getattr(other, field.name), frozenset.intersection
                )
                for field in fields(self)
                if field.name not in ("topics", "shard")
            },
            shard=self.shard or other.shard,
        )


EVERYTHING = Filter()


def parse_topics(patterns: Iterable[str]) -> frozenset[str] | None:
    """Return the filter's topics for the types or patterns a user wrote; None for no pattern.

    Raises ValueError naming the pattern that cannot be one, or for more than PATTERNS_MAX.
    """
    topics = frozenset(_parse_topic(pattern) for pattern in patterns)
    if sum(topic[-1:] == "*" for topic in topics) > PATTERNS_MAX:
        raise ValueError(f"at most {PATTERNS_MAX} types may end in a star")
    return topics or None


def _parse_topic(pattern: str) -> str:
    if not _TYPE_PATTERN.fullmatch(pattern):
        raise ValueError(
            f"type={pattern!r}: expected a type such as item.refreshed, or a beginning and a star "
            "such as item.*"
        )
    return topic_of(pattern)


def _both(
    a: frozenset[T] | None,
    b: frozenset[T] | None,
    meet: Callable[[frozenset[T], frozenset[T]], frozenset[T]],
) -> frozenset[T] | None:
    if a is None or b is None:
        return b if a is None else a
    return meet(a, b)


def _meet_topics(a: frozenset[str], b: frozenset[str]) -> frozenset[str]:
    """Return the patterns that match what both match, each as wide as it can be.

    Of two patterns that have something in common one covers the other. What a thousand meet is
    found by a look at the beginnings of each: pairs would be a million.
    """
    cover_a, cover_b = _Cover(a), _Cover(b)
    met = {x for x in a if cover_b.has(x)} | {y for y in b if cover_a.has(y)}
    # Without those that another one covers, so that a filter within the limits stays as it is.
    cover = _Cover(met)
    return frozenset(x for x in met if not cover.has_wider(x))


class _Cover:
    """What some patterns cover."""

    def __init__(self, patterns: Collection[str]) -> None:
        self._patterns = patterns
        self._stems = {pattern[:-1] for pattern in patterns if pattern[-1:] == "*"}
        self._lengths = sorted({len(stem) for stem in self._stems})

    def has(self, pattern: str) -> bool:
        """True if one of them matches all that `pattern` matches."""
        return pattern in self._patterns or self.has_wider(pattern)

    def has_wider(self, pattern: str) -> bool:
        """True if another one than `pattern` does."""
        is_name = pattern[-1:] != "*"
        last = len(pattern) if is_name else len(pattern) - 2
        return any(pattern[:n] in self._stems for n in self._lengths if n <= last)
