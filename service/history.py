"""The log as people look at it: backwards, and in sums. The only caller of `sql/history.sql`.

For pages, not for readers that must miss nothing: those go forward, through `eventlog`. Whatever is
asked, the work is bounded; where a bound cuts an answer, the answer says how far it looked. Errors
of a database that is away leave as LogUnavailable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from time import monotonic

from service.db import Querier, fetch, statements
from service.event import Event, event_id
from service.eventlog import SCAN_POSITIONS, conditions
from service.filter import Filter

_SQL = statements("history")
BUDGET_S = 0.5  # a search that finds little stops here, and is gone on with by whoever still looks


@dataclass(frozen=True, slots=True)
class Back:
    """Events newest first, and the position down to which the log was looked through."""

    events: list[Event]
    scanned_to: int


@dataclass(frozen=True, slots=True)
class LastEvent:
    """The newest event of a source."""

    position: int
    link: bytes
    received_at: datetime
    type: str

    @property
    def id(self) -> str:
        return event_id(self.position, self.link)


class History:
    """Looks back through the log."""

    def __init__(self, readers: Querier, clock: Callable[[], float] = monotonic) -> None:
        self._readers = readers
        self._clock = clock

    async def read_back(
        self, before: int, filter_: Filter, *, first: int, limit: int, budget_s: float = BUDGET_S
    ) -> Back:
        """Return at most `limit` events before the position `before` that match, newest first.

        `first` is the first position of the log. Fewer events before `first` was reached mean that
        `budget_s` was used up: go on from `scanned_to`.
        """
        found: list[Event] = []
        deadline = self._clock() + budget_s
        while before > first and len(found) < limit:
            after = max(first, before - SCAN_POSITIONS)
            wanted = limit - len(found)
            values = (before, after, wanted, *conditions(filter_))
            rows = await fetch(self._readers, _SQL.read_back, *values)
            found += [Event(*row) for row in rows]
            before = found[-1].position if len(rows) == wanted else after
            if self._clock() >= deadline:
                break
        return Back(found, before)

    async def counts(self, moments: Sequence[datetime]) -> list[int]:
        """Return how many events were received between each two neighbours of `moments`.

        `moments` rise; there is one number less than moments.
        """
        rows = await fetch(self._readers, _SQL.positions_at, list(moments))
        positions = [row["position"] for row in rows]
        return [newer - older for older, newer in pairwise(positions)]

    async def last_of_source(self, source: str) -> LastEvent | None:
        """Return the newest event of a source; None if there is none.

        For `default` also None if none is among the newest SCAN_POSITIONS events.
        """
        rows = await fetch(self._readers, _SQL.last_of_source, source, SCAN_POSITIONS)
        return LastEvent(*rows[0]) if rows else None

    async def database_bytes(self) -> int:
        """Return the size of the whole database on disk."""
        [row] = await fetch(self._readers, _SQL.database_bytes)
        size: int = row["bytes"]
        return size
