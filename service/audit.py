"""Proves the log: walks the chain from the first row that is left to the newest.

Each row must follow the one before without a hole, its link must be the hash that the chain's rule
gives, its digest that of its body, and every column what the body says; a body that is gone must
have been erased by an erasure that is written down. What was changed, removed
or put in by somebody who got past the triggers is named by its position. Proves the deliveries as
well: every event that a webhook was owed is delivered, pending or exhausted.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from service.delivery import SCAN_POSITIONS, Deliveries
from service.errors import DeliveryMissing, LogDamaged, NotAnEvent
from service.event import GENESIS_POSITION, Event, chain_link, parse_event
from service.eventlog import AuditRow, Bounds, EventLog
from service.filter import topic_of

PAGE_EVENTS = 2000
PAGE_BYTES = 8 * 1024 * 1024
_PERSONAL = ("occurred_at", "item_id", "account_id", "user_uuid")
_DERIVED = ("type", "topic", "occurred_at", "item_id", "account_id", "user_uuid")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Proof:
    """What an audit has shown: this many events, up to this checkpoint, are as appended.

    Of `erased` ones among them the bodies are gone, as is written down.
    """

    events: int
    bounds: Bounds
    erased: int = 0

    @property
    def checkpoint(self) -> str:
        """`<position>.<link>`, to be kept elsewhere and given to a later audit."""
        return f"{self.bounds.head_position}.{self.bounds.head_link.hex()}"


@dataclass(slots=True)
class _Chain:
    """Where the walk stands."""

    position: int
    link: bytes
    watermark: datetime | None = None
    erased: int = 0

    def follow(self, row: AuditRow) -> None:
        """Take one step. Raises LogDamaged if `row` is not the next one."""
        event = row.event
        if event.position != self.position + 1:
            raise LogDamaged(self.position + 1, f"missing; {event.position} follows")
        if fault := self._fault(row):
            raise LogDamaged(event.position, fault)
        self.position, self.link, self.watermark = event.position, event.link, row.watermark
        self.erased += not event.body

    def _fault(self, row: AuditRow) -> str | None:
        event = row.event
        if event.body and hashlib.sha256(event.body).digest() != event.digest:
            return "the body is not the one that was received"
        link = chain_link(self.link, event.digest, event.position, event.received_at, event.source)
        if link != event.link:
            return "the link does not follow from the row before"
        if row.watermark != max(event.received_at, self._watermark_before(row)):
            return "watermark is not the greatest received_at so far"
        return _derived_fault(event) if event.body else _erased_fault(row)

    def _watermark_before(self, row: AuditRow) -> datetime:
        """The first row has none before it; for the first one left after pruning it is unknown."""
        if self.watermark is not None:
            return self.watermark
        return row.event.received_at if self.position == GENESIS_POSITION else row.watermark


def _derived_fault(event: Event) -> str | None:
    """Say which column is not what the body says, or None."""
    try:
        expected = parse_event(event.body, event.source, event.received_at)
    except NotAnEvent:
        return "the body is no event"
    wrong = [name for name in _DERIVED if getattr(event, name) != getattr(expected, name)]
    return f"{wrong[0]} is not what the body says" if wrong else None


def _erased_fault(row: AuditRow) -> str | None:
    """Say what is wrong with a tombstone, or None. Digest and link tell that it was an event."""
    if not row.is_erased:
        return "the body is gone, and no erasure of it is written down"
    left = [name for name in _PERSONAL if getattr(row.event, name) is not None]
    if left:
        return f"{left[0]} is left of an erased event"
    return None if row.event.topic == topic_of(row.event.type) else "topic is not that of the type"


async def audit(
    eventlog: EventLog,
    on_progress: Progress,
    *,
    page_events: int = PAGE_EVENTS,
    pause_s: float = 0.0,
) -> Proof:
    """Walk the whole log as it stands now; call `on_progress(done, total)` after each page.

    Small pages and a pause after each leave the event loop to others. Where pruning overtakes the
    walk it begins anew, with what is left. Raises LogDamaged naming the first bad position,
    LogUnavailable if the database is away.
    """
    bounds = await eventlog.bounds()
    chain = _Chain(bounds.anchor_position, bounds.anchor_link)
    while chain.position < bounds.head_position:
        rows = await eventlog.audit_after(chain.position, limit=page_events, max_bytes=PAGE_BYTES)
        if not rows or rows[0].event.position != chain.position + 1:
            now = await eventlog.bounds()
            if now.anchor_position > chain.position:
                bounds, chain = now, _Chain(now.anchor_position, now.anchor_link)
                continue
        if not rows:
            raise LogDamaged(chain.position + 1, "missing, and everything after it")
        for row in rows:
            chain.follow(row)
        done, total = chain.position - bounds.anchor_position, _count(bounds)
        on_progress(min(done, total), total)
        if pause_s:
            await asyncio.sleep(pause_s)
    return Proof(_count(bounds), bounds, chain.erased)


def _count(bounds: Bounds) -> int:
    return bounds.head_position - bounds.anchor_position


async def audit_deliveries(deliveries: Deliveries) -> int:
    """Look for events that a webhook was owed and that have no delivery; return how many webhooks.

    What is after a webhook's cursor is pending by definition. Raises DeliveryMissing naming the
    first one, LogUnavailable if the database is away.
    """
    backlogs = await deliveries.backlog()
    for backlog in backlogs:
        for after in range(backlog.accounted_from, backlog.cursor_position, SCAN_POSITIONS):
            orphans, first = await deliveries.orphans(
                backlog.webhook_id, after, after + SCAN_POSITIONS
            )
            if orphans:
                raise DeliveryMissing(
                    f"webhook {backlog.webhook_id} was owed the event at position {first}, which "
                    f"has no delivery, like {orphans - 1} more soon after it: replay them"
                )
    return len(backlogs)
