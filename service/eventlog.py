"""The log: append a batch, read in order, and know where it begins and ends.

The only caller of `sql/eventlog.sql`. Promises: positions are dense and given in commit order, so
whoever asks for what is after `p` misses nothing (the reasons stand in `append_events`). Errors of
a database that is away leave as `LogUnavailable`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any

from service.db import Querier, fetch, statements
from service.errors import LogDamaged, LogDiverged, PositionAhead, PositionPruned
from service.event import Event, NewEvent, event_id, tombstone
from service.filter import Filter

_SQL = statements("eventlog")
_COLUMNS = tuple(
    attrgetter(name)
    for name in (
        "received_at",
        "occurred_at",
        "item_id",
        "account_id",
        "user_uuid",
        "source",
        "type",
        "topic",
        "digest",
        "body",
        "is_repeatable",
    )
)
LAST_POSITION = 2**63 - 1
PAGE_EVENTS = 500
PAGE_BYTES = 1024 * 1024
SCAN_POSITIONS = 50_000  # how far one filtered read looks: some 20 ms at the worst


@dataclass(frozen=True, slots=True)
class Appended:
    """Where an event stands. `is_known`: it stood there before, this was a retry."""

    position: int
    is_known: bool


@dataclass(frozen=True, slots=True)
class Place:
    """A position of the log, and the little of its event that says which one it is."""

    position: int
    link: bytes
    type: str
    source: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """The log's ends. `anchor` is the place before the first event that is left."""

    log_id: str
    anchor_position: int
    anchor_link: bytes
    head_position: int
    head_link: bytes

    @property
    def first_position(self) -> int:
        """The first position that can be read, once there is one."""
        return self.anchor_position + 1


@dataclass(frozen=True, slots=True)
class Page:
    """Events oldest first, and the position up to which the log was looked through."""

    events: list[Event]
    scanned_to: int


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A row with all that an audit looks at, as it stands: an erased one has no body.

    `is_erased`: an erasure of it is written down.
    """

    event: Event
    watermark: datetime
    is_erased: bool


class EventLog:
    """The log as its readers and the one appender see it."""

    def __init__(self, readers: Querier, writer: Querier | None = None) -> None:
        self._readers = readers
        self._writer = writer if writer is not None else readers

    async def append(self, events: Sequence[NewEvent], *, timeout_s: float) -> list[Appended]:
        """Commit `events` in their order; return where each stands, in the same order.

        When it returns, the events are on disk. When it raises LogUnavailable nothing is known:
        they may be there or not, and appending them again is safe (but for repeatable ones, which
        would be new events).
        """
        columns = [[get(event) for event in events] for get in _COLUMNS]
        rows = await fetch(self._writer, _SQL.append, *columns, timeout_s=timeout_s)
        return [Appended(row["event_position"], row["is_known"]) for row in rows]

    async def read_after(
        self,
        position: int,
        *,
        limit: int = PAGE_EVENTS,
        max_bytes: int = PAGE_BYTES,
        head: int | None = None,
    ) -> list[Event]:
        """Return the events after `position`, oldest first, at most `limit`.

        Fewer if their bodies pass `max_bytes`; empty only if there is none. They are `position`
        + 1, + 2, ...: raises PositionPruned if the first of them are gone, LogDamaged if one is
        missing otherwise. Who knows that the log goes on to `head` or further says so: the read
        then costs the same however long the log is.
        """
        is_behind = head is not None and head > position
        until = position + limit if is_behind else LAST_POSITION
        rows = await fetch(self._readers, _SQL.read_after, position, limit, max_bytes, until)
        if is_behind and not rows:
            await self._check_end(position)
        events = [_event(*row) for row in rows]
        for expected, event in enumerate(events, position + 1):
            if event.position != expected:
                await self.check_kept(expected - 1)
                raise LogDamaged(expected, f"missing; {event.position} follows")
        return events

    async def read_matching(
        self,
        position: int,
        until: int,
        filter_: Filter,
        *,
        limit: int = PAGE_EVENTS,
        max_bytes: int = PAGE_BYTES,
    ) -> Page:
        """Return events after `position` and up to `until` that match, oldest first.

        One call looks at SCAN_POSITIONS positions at most, so a page may be empty before `until`:
        go on from `scanned_to`.
        """
        until = min(until, position + SCAN_POSITIONS)
        values = conditions(filter_)
        rows = await fetch(
            self._readers, _SQL.read_matching, position, until, limit, max_bytes, *values
        )
        events = [_event(*row[:-1]) for row in rows]
        is_cut = bool(rows) and (rows[0]["matched"] == limit or rows[0]["matched"] > len(rows))
        return Page(events, events[-1].position if is_cut else until)

    async def bounds(self) -> Bounds:
        """Return where the log begins and ends now."""
        rows = await fetch(self._readers, _SQL.bounds)
        if not rows:
            raise LogDamaged(0, "the log's own row is missing")
        return Bounds(str(rows[0][0]), *rows[0][1:])

    async def link_at(self, position: int) -> bytes | None:
        """Return the link at `position`, or None if it is not in the log."""
        rows = await fetch(self._readers, _SQL.link_at, position)
        return rows[0]["link"] if rows else None

    async def places(self, positions: Sequence[int]) -> list[Place]:
        """Return those of `positions` that are in the log, in any order."""
        return [Place(*row) for row in await fetch(self._readers, _SQL.places, positions)]

    async def check(self, position: int, link_digits: str | None) -> bytes:
        """Return the link at `position` if a reader that was there can go on from it.

        `link_digits` is what its id said (the first hex digits of the link it saw), or None,
        unchecked. Raises PositionPruned, PositionAhead, LogDiverged or LogDamaged; never
        silence.
        """
        link = await self.link_at(position)
        if link is None:
            raise await self._missing(position)
        if link_digits is not None and not link.hex().startswith(link_digits):
            raise LogDiverged(
                f"the event at position {position} is {event_id(position, link)}, not "
                f"{position}.{link_digits}: the log was restored or replaced since you read it",
                position=position,
            )
        return link

    async def check_kept(self, position: int) -> None:
        """Raise PositionPruned unless everything after `position` is still in the log."""
        bounds = await self.bounds()
        if position < bounds.anchor_position:
            raise _pruned(position, bounds)

    async def _check_end(self, position: int) -> None:
        """Raise PositionPruned or LogDamaged unless the log really ends at `position` or before."""
        bounds = await self.bounds()
        if position < bounds.anchor_position:
            raise _pruned(position, bounds)
        if position < bounds.head_position:
            raise LogDamaged(position + 1, "missing, and all the page that follows it")

    async def _missing(self, position: int) -> PositionPruned | LogDamaged | PositionAhead:
        bounds = await self.bounds()
        if position < bounds.anchor_position:
            return _pruned(position, bounds)
        if position <= bounds.head_position:
            return LogDamaged(position, "missing")
        return PositionAhead(
            f"the log ends at position {bounds.head_position} and never got to {position}",
            head_position=bounds.head_position,
        )

    async def find_time(self, moment: datetime) -> int:
        """Return the first position received at or after `moment`; head + 1 if none was."""
        [row] = await fetch(self._readers, _SQL.find_time, moment)
        position: int = row["position"]
        return position

    async def audit_after(
        self, position: int, *, limit: int, max_bytes: int = PAGE_BYTES
    ) -> list[AuditRow]:
        """Return the rows after `position` with all that the chain covers, oldest first.

        At most `limit`, fewer if their bodies pass `max_bytes`; empty only if there is none.
        """
        rows = await fetch(self._readers, _SQL.audit_after, position, limit, max_bytes)
        return [AuditRow(Event(*row[:-2]), *row[-2:]) for row in rows]

    async def forget_digests(self, before: datetime, *, limit: int) -> int:
        """Forget at most `limit` digests of events received before `before`; return how many."""
        [row] = await fetch(self._readers, _SQL.forget_digests, before, limit)
        forgotten: int = row["forgotten"]
        return forgotten

    async def make_partitions(self) -> int:
        """Make the partition after the newest one if there is none; return how many were made."""
        [row] = await fetch(self._readers, _SQL.make_partitions)
        made: int = row["made"]
        return made


def _event(*row: Any) -> Event:
    event = Event(*row)
    return event if event.body else tombstone(event)


def _pruned(position: int, bounds: Bounds) -> PositionPruned:
    return PositionPruned(
        f"what follows position {position} is no longer kept; the first event left is "
        f"{bounds.first_position}",
        first_position=bounds.first_position,
    )


def conditions(filter_: Filter) -> tuple[list[Any] | None, ...]:
    """Return a filter as the parameters of `read_matching`: topics to sources."""
    topics = None if filter_.topics is None else sorted(filter_.topics)
    exact, patterns = (None, topics) if filter_.has_patterns else (topics, None)
    return (
        exact,
        None if patterns is None else [_like(topic) for topic in patterns],
        *(
            None if wanted is None else list(wanted)
            for wanted in (
                filter_.item_ids,
                filter_.account_ids,
                filter_.user_uuids,
                filter_.sources,
            )
        ),
    )


def _like(topic: str) -> str:
    literal = topic.rstrip("*").replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return literal + "%" if topic.endswith("*") else literal
