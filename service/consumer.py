"""Named consumers: the server keeps their place, and lets one holder at a time have it.

The only caller of `sql/consumer.sql`. A consumer has a filter, an acknowledgement mode and one
place for each of its shards. A lease gives a shard to one holder; its number rises with each
holder and is never given twice, and what an older one still says is refused. Errors of a database
that is away leave as LogUnavailable.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import TypeVar

import asyncpg

from service.db import Connection, Querier, fetch, statements, transaction
from service.errors import (
    AckAhead,
    ConsumerHeld,
    LeaseLost,
    LogDiverged,
    Problem,
    ShardsHeld,
    TooManyConsumers,
    UnknownConsumer,
)
from service.event import event_id
from service.filter import Filter

T = TypeVar("T")

_SQL = statements("consumer")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a consumer's events, as lists show it: its place, its holder, how far behind."""

    number: int
    position: int
    link: bytes
    sent_position: int
    held_by: str | None
    held_since: datetime | None
    lease_until: datetime | None
    lag_events: int
    lag_s: float

    @property
    def id(self) -> str:
        return event_id(self.position, self.link)


@dataclass(frozen=True, slots=True)
class Consumer:
    """A named consumer. `shards` are in the order of their numbers."""

    name: str
    ack_mode: str
    lease_s: int
    filter: Filter
    created_at: datetime
    shards: tuple[Shard, ...]

    def is_like(self, other: "Consumer") -> bool:
        """True if streams of both get the same events on the same terms."""
        ours = (self.ack_mode, self.lease_s, self.filter)
        return ours == (other.ack_mode, other.lease_s, other.filter)

    @property
    def furthest_behind(self) -> Shard:
        """The shard with the least place: what the consumer as a whole has done."""
        return min(self.shards, key=lambda shard: shard.position)


@dataclass(frozen=True, slots=True)
class Lease:
    """One shard, given to one holder. `number` is the fencing token."""

    name: str
    shard: int
    shards: int
    number: int
    position: int
    link: bytes
    sent_position: int


# (name, shard, lease, sent, done, link): `sent` is how far the holder was sent, `done` a place that
# it has got past although nobody acknowledged it, or 0; `link` the one at `sent`, None: unchecked.
Held = tuple[str, int, int, int, int, bytes | None]


@dataclass(frozen=True, slots=True)
class Ack:
    """One acknowledgement: everything up to `position` is done.

    `lease` is None where the caller does not prove that it is the holder, `digits` where it does
    not prove that it saw this history.
    """

    name: str
    position: int
    shard: int = 0
    shards: int = 1
    lease: int | None = None
    digits: str | None = None


class Consumers:
    """All named consumers of the log."""

    def __init__(self, database: Querier, max_consumers: int) -> None:
        self._database = database
        self._max = max_consumers

    async def put(
        self,
        name: str,
        *,
        ack_mode: str,
        lease_s: int,
        filter_: Filter,
        position: int,
        link: bytes,
        is_reset: bool,
    ) -> bool:
        """Make the consumer, or change it; True if it is new.

        `position` and `link` are the place a new one begins after; a known one is moved there only
        with `is_reset`. If it is moved or changed it loses its holders: they come again, and get
        what it is now. Raises TooManyConsumers for a new one where there are as many as may be.
        """
        values = (
            *(name, ack_mode, lease_s, _list(filter_.topics), _list(filter_.item_ids)),
            *(_list(filter_.account_ids), _list(filter_.user_uuids), _list(filter_.sources)),
        )
        place = (position, link)
        async with transaction(self._database) as connection:
            made = await fetch(connection, _SQL.put, *values)
            is_new = bool(made and made[0]["is_new"])
            if is_new:
                await fetch(connection, _SQL.begin, name, *place)
                await self._hold_to_bound(connection)
            elif made or is_reset:
                moved_to = place if is_reset else (None, None)
                await fetch(connection, _SQL.take_back, name, *moved_to)
        return is_new

    async def _hold_to_bound(self, connection: Connection) -> None:
        """Raise TooManyConsumers, which takes back the one that was made."""
        [row] = await fetch(connection, _SQL.count)
        if row["consumers"] > self._max:
            raise TooManyConsumers(
                f"there are {self._max} consumers, as many as there may be "
                "(CAUSEWAY_CONSUMERS_MAX): delete one"
            )

    async def read(self, name: str) -> Consumer:
        """Return one consumer. Raises UnknownConsumer."""
        check_name(name)
        rows = await fetch(self._database, _SQL.read, name)
        if not rows:
            raise unknown(name)
        return _consumer(rows)

    async def all(self) -> list[Consumer]:
        """Return every consumer, by name."""
        rows = await fetch(self._database, _SQL.read, None)
        return [_consumer(list(group)) for _, group in groupby(rows, key=itemgetter("name"))]

    async def delete(self, name: str) -> None:
        """Forget the consumer and its place; its holders lose it. Raises UnknownConsumer."""
        check_name(name)
        if not await fetch(self._database, _SQL.delete, name):
            raise unknown(name)

    async def take(self, name: str, shard: int, shards: int, holder: str) -> Lease:
        """Take the lease of a shard for `holder`.

        Raises ConsumerHeld if somebody has it, ShardsHeld if shards of another number are held,
        UnknownConsumer.
        """
        [row] = await fetch(self._database, _SQL.take_lease, name, shard, shards, holder)
        if row["outcome"] == "taken":
            place = (row["lease"], row["place"], row["place_link"], row["sent"])
            return Lease(name, shard, shards, *place)
        if row["outcome"] == "held":
            raise ConsumerHeld(
                f"shard {shard}/{shards} of the consumer {name} is held by {row['holder']}"
            )
        raise refusal(row["outcome"], Ack(name, 0, shard, shards), None)

    async def renew(self, held: Sequence[Held]) -> dict[tuple[str, int, int], int]:
        """Renew leases; return the places of those that hold, by name, shard and lease.

        What was sent of another history (a standby that lacked it took over) is not written down.
        """
        columns = [list(column) for column in zip(*held, strict=True)]
        rows = await fetch(self._database, _SQL.renew, *columns)
        return {(row[0], row[1], row[2]): row["place"] for row in rows}

    async def release(self, lease: Lease) -> None:
        """Let the next holder in."""
        await fetch(self._database, _SQL.release, lease.name, lease.shard, lease.number)

    async def ack(self, acks: Sequence[Ack]) -> list[tuple[str, int | None]]:
        """Write acknowledgements down in one commit; return each one's outcome and place."""
        rows = await fetch(
            self._database,
            _SQL.ack,
            [ack.name for ack in acks],
            [ack.shard for ack in acks],
            [ack.shards for ack in acks],
            [ack.lease for ack in acks],
            [ack.position for ack in acks],
            [ack.digits for ack in acks],
        )
        return [(row["outcome"], row["place"]) for row in rows]


def is_name(text: str) -> bool:
    """True if a consumer can have this name."""
    return _NAME.fullmatch(text) is not None


def check_name(text: str) -> None:
    """Raise UnknownConsumer for what no consumer can be named; Postgres would refuse some of it."""
    if not is_name(text):
        raise unknown(text)


def unknown(name: str) -> UnknownConsumer:
    """Return the error for a name that no consumer has."""
    return UnknownConsumer(f"there is no consumer {name[:64]!r}: make it with PUT /consumers/NAME")


def refusal(outcome: str, ack: Ack, place: int | None) -> Problem:
    """Return the error that an outcome of the database stands for."""
    if outcome == "unknown":
        return unknown(ack.name)
    if outcome == "other_shards":
        return ShardsHeld(
            f"the consumer {ack.name} is held in another number of shards than {ack.shards}"
        )
    if outcome == "lease_lost":
        return LeaseLost(f"lease {ack.lease} of the consumer {ack.name} has another holder now")
    if outcome == "diverged":
        return LogDiverged(
            f"the event at position {ack.position} has another link than {ack.digits}: the log was "
            "restored or replaced since you read it",
            position=ack.position,
        )
    return AckAhead(
        f"position {ack.position} was not sent to the consumer {ack.name} yet", position=place or 0
    )


def _consumer(rows: Sequence[asyncpg.Record]) -> Consumer:
    first = rows[0]
    return Consumer(
        name=first["name"],
        ack_mode=first["ack_mode"],
        lease_s=first["lease_s"],
        filter=Filter(
            topics=_set(first["topics"]),
            item_ids=_set(first["item_ids"]),
            account_ids=_set(first["account_ids"]),
            user_uuids=_set(first["user_uuids"]),
            sources=_set(first["sources"]),
        ),
        created_at=first["created_at"],
        shards=tuple(
            Shard(
                row["shard"],
                row["position"],
                row["link"],
                row["sent_position"],
                row["held_by"],
                row["held_since"],
                row["lease_until"],
                row["lag_events"],
                row["lag_seconds"],
            )
            for row in rows
        ),
    )


def _set(values: list[T] | None) -> frozenset[T] | None:
    return None if values is None else frozenset(values)


def _list(values: frozenset[T] | None) -> list[T] | None:
    return None if values is None else sorted(values)  # type: ignore[type-var]
