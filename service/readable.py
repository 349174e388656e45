"""What readers need of the log, whoever holds it: Postgres, or also the mirror's stream."""

from datetime import datetime
from typing import Protocol

from service.event import Event
from service.eventlog import PAGE_BYTES, PAGE_EVENTS, Bounds, Page
from service.filter import Filter


class ReadableLog(Protocol):
    """As `EventLog` says: the same answers, the same errors."""

    async def read_after(
        self,
        position: int,
        *,
        limit: int = PAGE_EVENTS,
        max_bytes: int = PAGE_BYTES,
        head: int | None = None,
    ) -> list[Event]: ...

    async def read_matching(
        self,
        position: int,
        until: int,
        filter_: Filter,
        *,
        limit: int = PAGE_EVENTS,
        max_bytes: int = PAGE_BYTES,
    ) -> Page: ...

    async def bounds(self) -> Bounds: ...

    async def link_at(self, position: int) -> bytes | None: ...

    async def check(self, position: int, link_digits: str | None) -> bytes: ...

    async def check_kept(self, position: int) -> None: ...

    async def find_time(self, moment: datetime) -> int: ...
