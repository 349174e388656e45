"""What became of a webhook's events: its deliveries as lists, one with its attempts.

The only caller of `sql/delivery_list.sql`; it only reads. What a webhook's cursor has not passed
has no delivery yet: it waits.
"""

from dataclasses import dataclass, fields
from datetime import datetime

import asyncpg

from service.db import Querier, fetch, statements
from service.errors import UnknownDelivery
from service.event import event_id
from service.filter import EVERYTHING, Filter
from service.replay import filter_columns
from service.webhook import unknown

_SQL = statements("delivery_list")
STATES = ("pending", "delivered", "exhausted")
LOOK_DELIVERIES = 50_000  # that one call looks at: some 100 ms at the worst
ATTEMPTS = 100  # more than any schedule has; replays add to them


@dataclass(frozen=True, slots=True)
class Reach:
    """Which events are a webhook's own, how far its cursor got, and the log's ends."""

    filter: Filter
    cursor: int
    anchor: int
    head: int

    @property
    def waiting(self) -> int:
        """Positions that the cursor has not passed."""
        return max(0, self.head - self.cursor)


@dataclass(frozen=True, slots=True)
class Look:
    """Which deliveries to list: after `after` (exclusive) up to `until`, the newest `limit`."""

    after: int
    until: int
    limit: int
    state: str | None = None
    filter: Filter = EVERYTHING


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event's delivery. What the event says is None if the log no longer has it."""

    position: int
    link: bytes | None
    type: str | None
    source: str | None
    item_id: int | None
    received_at: datetime | None
    state: str
    attempts: int
    is_replay: bool
    attempted_at: datetime | None
    status: int | None
    error: str | None
    settled_at: datetime | None
    is_held: bool
    is_in_flight: bool
    next_attempt_at: datetime | None

    @property
    def id(self) -> str | None:
        return None if self.link is None else event_id(self.position, self.link)


_COLUMNS = tuple(field.name for field in fields(Delivery))


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one try ended; `answer` is the beginning of what came back."""

    number: int
    started_at: datetime
    duration_s: float
    status: int | None
    error: str | None
    answer: bytes


class DeliveryList:
    """The deliveries of all webhooks, for whoever looks at them."""

    def __init__(self, database: Querier) -> None:
        self._database = database

    async def reach(self, webhook_id: int) -> Reach:
        """Return how far a webhook got. Raises UnknownWebhook."""
        rows = await fetch(self._database, _SQL.reach, webhook_id)
        if not rows:
            raise unknown(webhook_id)
        [row] = rows
        own = Filter(topics=_set(row["topics"]), sources=_set(row["sources"]))
        return Reach(own, row["cursor_position"], row["anchor_position"], row["head_position"])

    async def page(self, webhook_id: int, look: Look) -> tuple[list[Delivery], int | None]:
        """Return deliveries, the newest first, and the position before which to go on.

        None if there are no more. One call looks at LOOK_DELIVERIES at the most, so a page may be
        short, or empty, before the end.
        """
        after = look.after
        if not look.filter.is_everything or look.state == "delivered":
            after = await self._edge(webhook_id, look)
        columns = filter_columns(look.filter)
        bounds = (webhook_id, after, look.until, look.state)
        rows = await fetch(self._database, _SQL.list, *bounds, *columns, look.limit)
        deliveries = [_delivery(row) for row in rows]
        if len(deliveries) == look.limit:
            return deliveries, deliveries[-1].position
        return deliveries, after + 1 if after > look.after else None

    async def _edge(self, webhook_id: int, look: Look) -> int:
        bounds = (webhook_id, look.after, look.until, look.state)
        rows = await fetch(self._database, _SQL.edge, *bounds, LOOK_DELIVERIES)
        return rows[0]["position"] - 1 if rows else look.after

    async def read(self, webhook_id: int, position: int) -> tuple[Delivery, list[Attempt]]:
        """Return one delivery with its attempts, the newest first, at most ATTEMPTS.

        Raises UnknownDelivery.
        """
        found, _ = await self.page(webhook_id, Look(position - 1, position, limit=1))
        if not found:
            raise UnknownDelivery(
                f"the webhook {webhook_id} has no delivery of position {position}: it was not owed "
                "that event, is not there yet, or has forgotten it"
            )
        rows = await fetch(self._database, _SQL.attempts, webhook_id, position, ATTEMPTS)
        return found[0], [_attempt(row) for row in rows]

    async def of_event(self, position: int) -> dict[int, Delivery]:
        """Return what became of one event, by webhook; those without a delivery are left out."""
        rows = await fetch(self._database, _SQL.event, position)
        return {row["webhook_id"]: _delivery(row) for row in rows}


def _delivery(row: asyncpg.Record) -> Delivery:
    return Delivery(**{name: row[name] for name in _COLUMNS})


def _attempt(row: asyncpg.Record) -> Attempt:
    return Attempt(
        row["number"],
        row["started_at"],
        row["duration_ms"] / 1000,
        row["status"],
        row["error"],
        row["answer"],
    )


def _set(values: list[str] | None) -> frozenset[str] | None:
    return None if values is None else frozenset(values)
