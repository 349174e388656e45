"""The log as readers below the window see it: out of the stream where it can be, else of Postgres.

A block is a range of the stream. It is proven before anybody is served from it: its events must be
chained link by link, from the link before them to the last, and Postgres, asked once for a block,
must have these two and no erasure in it. A block is shared by all readers that pass, and proven
anew after some seconds. Everything else is asked of Postgres: filters have indexes there.
"""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from service.erase import Erasures
from service.errors import MirrorUnavailable, NotMirrored
from service.event import Event, chain_link
from service.eventlog import PAGE_BYTES, PAGE_EVENTS, Bounds, EventLog, Page
from service.filter import Filter
from service.nats_feed import StreamGone, fetch_range
from service.nats_tail import NatsTail

log = logging.getLogger("causeway.nats_log")

BLOCK_EVENTS = 500
BLOCK_BYTES = 2 * 1024 * 1024
BLOCKS = 32
PROVEN_S = 5.0  # an erasure is seen by then
LACKING_S = 60.0  # what the stream lacks is asked of Postgres for this long


@dataclass(frozen=True, slots=True)
class Block:
    """Events of the stream, dense. `at` is when it was proven."""

    events: list[Event]
    at: float

    def holds(self, position: int) -> bool:
        """True if it has the event at `position`."""
        return self.events[0].position <= position <= self.events[-1].position

    def link_at(self, position: int) -> bytes:
        """Return the link at a position that it holds."""
        return self.events[position - self.events[0].position].link

    def after(self, position: int, limit: int, max_bytes: int) -> list[Event]:
        """Return its events after `position`, as `EventLog.read_after` would."""
        found: list[Event] = []
        size = 0
        for event in self.events[position + 1 - self.events[0].position :][:limit]:
            size += len(event.body)
            if found and size > max_bytes:
                break
            found.append(event)
        return found


class MirroredLog:
    """Has what readers need of `EventLog`, and answers the same."""

    def __init__(self, eventlog: EventLog, erasures: Erasures, tail: NatsTail, stream: str) -> None:
        self._eventlog = eventlog
        self._erasures = erasures
        self._tail = tail
        self._stream = stream
        self._clock = asyncio.get_running_loop().time
        self._blocks: list[Block] = []  # the one used last is the last
        self._fetching: dict[int, asyncio.Task[Block | None]] = {}
        self._lacking: deque[tuple[int, int, float]] = deque(maxlen=BLOCKS)

    async def read_after(
        self,
        position: int,
        *,
        limit: int = PAGE_EVENTS,
        max_bytes: int = PAGE_BYTES,
        head: int | None = None,
    ) -> list[Event]:
        """Return the events after `position`, as `EventLog.read_after` does."""
        if head is not None and head > position and (block := await self._block(position + 1)):
            return block.after(position, limit, max_bytes)
        return await self._eventlog.read_after(
            position, limit=limit, max_bytes=max_bytes, head=head
        )

    async def link_at(self, position: int) -> bytes | None:
        """Return the link at `position`, as `EventLog.link_at` does."""
        known = self._link_known(position)
        return await self._eventlog.link_at(position) if known is None else known

    async def check(self, position: int, link_digits: str | None) -> bytes:
        """Return the link at `position`, or raise what `EventLog.check` raises."""
        known = self._link_known(position)
        if known is not None and known.hex().startswith(link_digits or ""):
            return known
        return await self._eventlog.check(position, link_digits)

    async def read_matching(
        self,
        position: int,
        until: int,
        filter_: Filter,
        *,
        limit: int = PAGE_EVENTS,
        max_bytes: int = PAGE_BYTES,
    ) -> Page:
        """Return events that match, from Postgres."""
        return await self._eventlog.read_matching(
            position, until, filter_, limit=limit, max_bytes=max_bytes
        )

    async def bounds(self) -> Bounds:
        """Return where the log begins and ends now."""
        return await self._eventlog.bounds()

    async def check_kept(self, position: int) -> None:
        """Raise PositionPruned unless everything after `position` is still in the log."""
        await self._eventlog.check_kept(position)

    async def find_time(self, moment: datetime) -> int:
        """Return the first position received at or after `moment`."""
        return await self._eventlog.find_time(moment)

    def _link_known(self, position: int) -> bytes | None:
        block = self._kept(position)
        return None if block is None else block.link_at(position)

    def _kept(self, position: int) -> Block | None:
        """Return a block that has `position` and was proven lately."""
        if self._tail.connection is None:
            self._blocks.clear()
            return None
        since = self._clock() - PROVEN_S
        self._blocks = [block for block in self._blocks if block.at >= since][-BLOCKS:]
        return next((block for block in reversed(self._blocks) if block.holds(position)), None)

    async def _block(self, first: int) -> Block | None:
        """Return a block that has `first`; None if Postgres is to be asked for it."""
        kept = self._kept(first)
        if kept is not None or self._tail.connection is None or self._is_lacking(first):
            return kept
        fetching = self._fetching.get(first)
        if fetching is None:
            fetching = asyncio.create_task(self._fetch(first), name="nats-block")
            self._fetching[first] = fetching
            fetching.add_done_callback(partial(self._fetched, first))
        return await asyncio.shield(fetching)

    def _is_lacking(self, position: int) -> bool:
        now = self._clock()
        return any(low <= position < high and now < end for low, high, end in self._lacking)

    def _lack(self, first: int, after: int) -> None:
        self._lacking.append((first, after, self._clock() + LACKING_S))

    def _fetched(self, first: int, fetching: "asyncio.Task[Block | None]") -> None:
        del self._fetching[first]
        block = None if fetching.cancelled() or fetching.exception() else fetching.result()
        if block is not None:
            self._blocks.append(block)

    async def _fetch(self, first: int) -> Block | None:
        connection = self._tail.connection
        if connection is None:
            return None
        at = self._clock()  # what is erased from here on is not seen
        try:
            found = await fetch_range(connection, self._stream, first, BLOCK_EVENTS, BLOCK_BYTES)
        except (MirrorUnavailable, StreamGone, NotMirrored) as error:
            log.debug("not read from the stream", extra={"reason": str(error)})
            return None
        events = _chained(found, first)
        if not events:
            self._lack(first, found[0].position if found else first + 1)
            return None
        if not await self._is_proven(events):
            self._lack(first, events[-1].position + 1)
            return None
        return Block(events, at)

    async def _is_proven(self, events: list[Event]) -> bool:
        """Does Postgres have the link before it and the last one, all of it, and no erasure in it?

        Only the link before it proves the body of the first, and a tombstone has no body to prove.
        Raises LogUnavailable: what may be erased is not shown.
        """
        first, last = events[0], events[-1]
        proof = await self._erasures.prove(first.position, last.position)
        before = proof.link_before
        if before is not None and not _follows(first, before):
            _differs(first)
        elif proof.link not in (None, last.link):
            _differs(last)
        elif before is not None and proof.link is not None and first.position > proof.anchor:
            return not proof.has_erased and not any(event.is_erased for event in events)
        return False


def _differs(event: Event) -> None:
    log.error("the stream has another event than the log", extra={"position": event.position})


def _follows(event: Event, before: bytes) -> bool:
    """Is the event's link that of its body after the link `before`?"""
    return event.link == chain_link(
        before, event.digest, event.position, event.received_at, event.source
    )


def _chained(events: list[Event], first: int) -> list[Event]:
    """Return those of `events` from `first` on, up to a hole or to one that is not linked."""
    good: list[Event] = []
    for position, event in enumerate(events, first):
        if event.position != position:
            break
        if good and not _follows(event, good[-1].link):
            break
        good.append(event)
    return good
