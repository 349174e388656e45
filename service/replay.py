"""Replays: deliveries of an outgoing webhook once more, one at once or a range at a rate.

The only caller of `sql/replay.sql`. A replay is a row with a place: any process goes on with it, a
restart loses nothing, and what is queued is sent by the relay like every other delivery. Errors of
a database that is away leave as LogUnavailable.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import asyncpg

from service.db import Querier, fetch, statements
from service.errors import UnknownDelivery, UnknownReplay
from service.eventlog import SCAN_POSITIONS
from service.filter import Filter
from service.webhook import unknown

T = TypeVar("T")

_SQL = statements("replay")
ALL, EXHAUSTED = "all", "exhausted"
STATES = (EXHAUSTED, ALL)
LOOK_S = 0.5  # while one is under way; its rate's burst is a second
IDLE_LOOK_S = 2.0  # another process may have been asked for one


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to send again: positions after `after` up to `until`, at `per_s` events a second.

    `exhausted` are the deliveries that were given up, `all` the events that match the webhook, too.
    """

    state: str
    filter: Filter
    after: int
    until: int
    per_s: float


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay, and how far it is: `queued` of `events`, looked through to `position`."""

    replay_id: int
    webhook_id: int
    requested_at: datetime
    requested_by: str
    wanted: Wanted
    events: int
    queued: int
    position: int
    finished_at: datetime | None
    cancelled_at: datetime | None

    @property
    def status(self) -> str:
        """`running`, `finished` (all is queued) or `cancelled`."""
        if self.cancelled_at is not None:
            return "cancelled"
        return "running" if self.finished_at is None else "finished"

    @property
    def eta_s(self) -> float | None:
        """Seconds until all is queued, if nothing holds it up; None once it is over."""
        if self.status != "running":
            return None
        return max(0, self.events - self.queued) / self.wanted.per_s


@dataclass(frozen=True, slots=True)
class Advance:
    """What one look did. `is_more`: look again at once; `is_open`: a replay is under way."""

    queued: int
    is_more: bool
    is_open: bool


class Replays:
    """The replays of all webhooks."""

    def __init__(self, database: Querier) -> None:
        self._database = database
        self._news = asyncio.Event()
        self._is_one_queued = False

    async def count(self, webhook_id: int, own: Filter, wanted: Wanted) -> int:
        """Return how many events a replay would send; `own` is the webhook's own filter.

        Looks at SCAN_POSITIONS at a time, so that no statement is a long one.
        """
        filter_ = wanted.filter.intersect(own) if wanted.state == ALL else wanted.filter
        if wanted.state == ALL and filter_.is_everything:
            return max(0, wanted.until - wanted.after)
        events, position = 0, wanted.after
        while position < wanted.until:
            if wanted.state == ALL:
                until = min(wanted.until, position + SCAN_POSITIONS)
                values = (position, until, *filter_columns(filter_))
                [row] = await fetch(self._database, _SQL.count_all, *values)
                position = until
            else:
                values = (position, wanted.until, *filter_columns(filter_))
                [row] = await fetch(
                    self._database, _SQL.count_exhausted, webhook_id, *values, SCAN_POSITIONS
                )
                position = row["scanned_to"]
            events += row["events"]
        return events

    async def create(
        self, webhook_id: int, wanted: Wanted, events: int, requested_by: str
    ) -> Replay:
        """Begin to send `wanted` again; `events` is what `count` said. Raises UnknownWebhook."""
        rows = await fetch(
            self._database,
            _SQL.create,
            webhook_id,
            requested_by,
            wanted.state,
            *filter_columns(wanted.filter),
            wanted.after,
            wanted.until,
            wanted.per_s,
            events,
        )
        if not rows:
            raise unknown(webhook_id)
        self._news.set()
        return await self.read(webhook_id, rows[0]["replay_id"])

    async def read(self, webhook_id: int, replay_id: int) -> Replay:
        """Return one replay of a webhook. Raises UnknownReplay."""
        rows = await fetch(self._database, _SQL.read, webhook_id, replay_id)
        if not rows:
            raise UnknownReplay(f"the webhook {webhook_id} has no replay {replay_id}")
        return _replay(rows[0])

    async def all(self, webhook_id: int) -> list[Replay]:
        """Return a webhook's replays, the newest first, at most 500."""
        rows = await fetch(self._database, _SQL.read, webhook_id, None)
        return [_replay(row) for row in rows]

    async def cancel(self, webhook_id: int, replay_id: int) -> Replay:
        """Stop a replay, unless it is over, and return it; what it queued is sent nevertheless.

        Raises UnknownReplay.
        """
        await fetch(self._database, _SQL.cancel, webhook_id, replay_id)
        return await self.read(webhook_id, replay_id)

    async def one(self, webhook_id: int, position: int) -> str:
        """Send one event again, now: `queued`, or `pending` if it is on its way anyway.

        Raises UnknownWebhook; UnknownDelivery if the log has no such event.
        """
        [row] = await fetch(self._database, _SQL.one, webhook_id, position)
        outcome: str = row["outcome"]
        if outcome == "no_webhook":
            raise unknown(webhook_id)
        if outcome == "no_event":
            raise UnknownDelivery(f"the log has no event at position {position}, or no longer")
        self._is_one_queued = True
        self._news.set()
        return outcome

    async def advance(self) -> Advance:
        """Queue what the replays under way may send now."""
        [row] = await fetch(self._database, _SQL.advance, SCAN_POSITIONS)
        return Advance(row["queued_events"], row["is_more"], row["is_open"])

    async def run(
        self,
        on_queued: Callable[[], None],
        *,
        look_s: float = LOOK_S,
        idle_look_s: float = IDLE_LOOK_S,
    ) -> None:
        """Go on with whatever replay is under way, for ever; tell the relay of what was queued."""
        while True:
            self._news.clear()
            is_one_queued, self._is_one_queued = self._is_one_queued, False
            if is_one_queued:
                on_queued()
            step = await self.advance()
            if step.queued:
                on_queued()
            if step.is_more:
                continue
            try:
                async with asyncio.timeout(look_s if step.is_open else idle_look_s):
                    await self._news.wait()
            except TimeoutError:
                pass  # nobody said so, but there may be news


def filter_columns(filter_: Filter) -> tuple[list[Any] | None, ...]:
    """Return a filter's topics, items, accounts, users and sources, as statements take them."""
    fields = (
        filter_.topics,
        filter_.item_ids,
        filter_.account_ids,
        filter_.user_uuids,
        filter_.sources,
    )
    return tuple(None if values is None else sorted(values) for values in fields)


def _replay(row: asyncpg.Record) -> Replay:
    filter_ = Filter(
        topics=_set(row["topics"]),
        item_ids=_set(row["item_ids"]),
        account_ids=_set(row["account_ids"]),
        user_uuids=_set(row["user_uuids"]),
        sources=_set(row["sources"]),
    )
    return Replay(
        replay_id=row["replay_id"],
        webhook_id=row["webhook_id"],
        requested_at=row["requested_at"],
        requested_by=row["requested_by"],
        wanted=Wanted(
            row["state"], filter_, row["after_position"], row["until_position"], row["per_s"]
        ),
        events=row["events"],
        queued=row["queued"],
        position=row["cursor_position"],
        finished_at=row["finished_at"],
        cancelled_at=row["cancelled_at"],
    )


def _set(values: list[T] | None) -> frozenset[T] | None:
    return None if values is None else frozenset(values)
