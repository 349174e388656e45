"""Erases users: their events' bodies go, the chain and every position stay.

The only caller of `sql/erase.sql`. What is left of an event is a tombstone (`event.py` spells it).
Two loops: one lets go of what the window still holds of it in this process, one erases users of
whom Bridge said `user.deleted`, if that is switched on. Errors of a database that is away leave as
LogUnavailable.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from service.config import Settings
from service.db import Querier, fetch, statements
from service.errors import LogUnavailable, PositionPruned
from service.eventlog import EventLog
from service.supervise import Supervisor
from service.window import Frame, Window

log = logging.getLogger("causeway.erase")

_SQL = statements("erase")
EVERY_S = 60.0
USERS = 10  # in one commit


@dataclass(frozen=True, slots=True)
class Erasure:
    """How many events were erased, and under which number it is written down."""

    number: int | None
    events: int


@dataclass(frozen=True, slots=True)
class Proof:
    """What the database says of a range: the anchor, the links around it, any erasure in it."""

    anchor: int
    link_before: bytes | None
    link: bytes | None
    has_erased: bool


class Erasures:
    """Erases, and knows what was erased."""

    def __init__(self, database: Querier) -> None:
        self._database = database

    async def erase_user(
        self, user_uuid: str, *, reason: str, by: str, is_dry_run: bool = False
    ) -> Erasure:
        """Erase all events of a user, and those of its items that name no user; one commit."""
        [row] = await fetch(self._database, _SQL.erase_user, user_uuid, reason, by, is_dry_run)
        return Erasure(row["erasure"], row["erased_events"])

    async def erase_deleted(self, before: datetime) -> tuple[int, int]:
        """Erase users who were deleted before `before`, some at a time; return users and events."""
        [row] = await fetch(self._database, _SQL.erase_deleted_users, before, USERS)
        return row["users"], row["erased_events"]

    async def after(self, number: int, position: int) -> tuple[list[tuple[int, int]], int]:
        """Return the erasures after `number` with the positions beyond `position` they erased.

        And the newest erasure's number, to ask with next: what is not beyond `position` is not
        looked through again.
        """
        rows = await fetch(self._database, _SQL.erased_after, number, position)
        return [tuple(row) for row in rows[:-1]], rows[-1]["erasure_id"] or 0

    async def prove(self, first: int, last: int) -> Proof:
        """Return what a copy of the events from `first` to `last` is to be compared with."""
        [row] = await fetch(self._database, _SQL.prove, first, last)
        return Proof(*row)


async def erase_deleted_users(erasures: Erasures, delay_s: float, every_s: float = EVERY_S) -> None:
    """Erase users `delay_s` after their `user.deleted` was received. A loop.

    Its place is kept in the database: begun anew, it goes on where any process has stopped.
    """
    while True:
        users = 0
        try:
            before = datetime.now(UTC) - timedelta(seconds=delay_s)
            users, events = await erasures.erase_deleted(before)
            if events:
                log.info("deleted users erased", extra={"users": users, "events": events})
        except LogUnavailable:
            log.warning("deleted users not erased, the database is away")
        if users < USERS:
            await asyncio.sleep(every_s)


def start_erasing(
    supervisor: Supervisor,
    settings: Settings,
    database: Querier,
    eventlog: EventLog,
    window: Window,
) -> None:
    """Start the loops of a process."""
    erasures = Erasures(database)
    forgetting = Forgetting(erasures, eventlog, window, settings.database_check_s)
    supervisor.start("erased", forgetting.run)
    if settings.erase_on_user_deleted:
        erase = partial(erase_deleted_users, erasures, settings.erase_delay_s)
        supervisor.start("erase", erase)


class Forgetting:
    """Puts tombstones in place of what the window still holds. `run` is a loop."""

    def __init__(
        self, erasures: Erasures, eventlog: EventLog, window: Window, every_s: float
    ) -> None:
        self._erasures = erasures
        self._eventlog = eventlog
        self._window = window
        self._every_s = every_s
        self._known = 0
        self._waiting: set[int] = set()

    async def run(self) -> None:
        """Look for erasures every so often, for ever."""
        while True:
            try:
                await self._look()
            except LogUnavailable:
                log.debug("erasures not looked up, the database is away")
            await asyncio.sleep(self._every_s)

    async def _look(self) -> None:
        if self._window.position < 0:
            return  # it holds nothing
        found, self._known = await self._erasures.after(self._known, self._window.first - 1)
        self._waiting |= {position for _, position in found}
        # What the tail has read before the erasure may come into the window after it.
        for position in sorted(self._waiting):
            if position <= self._window.position:
                await self._forget(position)
                self._waiting.discard(position)

    async def _forget(self, position: int) -> None:
        try:
            events = await self._eventlog.read_after(position - 1, limit=1, head=position)
        except PositionPruned:
            return
        self._window.replace([Frame(event) for event in events])
