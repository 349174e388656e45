"""The log in pages, for readers that have fallen below the window; who stands together shares one.

After a restart thousands come back at the same place, or nearly. A page is read and joined once for
all who ask for it within a second. Pages end at multiples of PAGE_EVENTS, so that readers from
different places soon stand together. What is kept is bounded by time and bytes.
"""

import asyncio
from collections.abc import Hashable
from dataclasses import replace

from service.eventlog import PAGE_EVENTS
from service.readable import ReadableLog
from service.window import CHUNK_BYTES, Chunk, Frame, View

KEPT_S = 1.0  # an erased event is sent for so long at the most, as the window's is
KEPT_BYTES = 16 * 1024 * 1024


class CatchUp:
    """The pages that readers ask for now."""

    def __init__(self, eventlog: ReadableLog) -> None:
        self._eventlog = eventlog
        self._loop = asyncio.get_running_loop()
        self._pages: dict[Hashable, asyncio.Task[Chunk | None]] = {}
        self._kept_bytes = 0

    async def page(self, position: int, link: bytes | None, head: int, view: View) -> Chunk | None:
        """Return what follows `position`, as `view` shows it; None if there is nothing yet.

        `link` is the one at `position` in the history that the reader has read, None if it has read
        nothing. A filtered view looks as far as `head` at the most. Raises PositionPruned if events
        after `position` are gone, LogDamaged at a hole, LogDiverged or PositionAhead if the page is
        not of that history: none is ever passed over in silence. Who stops waiting does not stop
        the read: others may wait for it.
        """
        key = (position, link, view)
        page = self._pages.get(key)
        if page is None:
            page = asyncio.create_task(self._read(position, link, head, view), name="page")
            self._pages[key] = page
            page.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(page)

    async def _read(self, position: int, link: bytes | None, head: int, view: View) -> Chunk | None:
        chunk = await read_page(self._eventlog, position, head, view)
        if link is not None:  # after the read: what was read must be of the history it has read
            await self._eventlog.check(position, link.hex())
        return chunk

    def _keep(self, key: Hashable, page: "asyncio.Task[Chunk | None]") -> None:
        """Keep a page for KEPT_S; what failed, or brought nothing, is asked for anew."""
        chunk = None if page.cancelled() or page.exception() else page.result()
        size = len(chunk.data) if chunk is not None else 0
        if chunk is None or self._kept_bytes + size > KEPT_BYTES:
            self._pages.pop(key)
            return
        self._kept_bytes += size
        self._loop.call_later(KEPT_S, self._forget, key, size)

    def _forget(self, key: Hashable, size: int) -> None:
        self._pages.pop(key)
        self._kept_bytes -= size


async def read_page(eventlog: ReadableLog, position: int, head: int, view: View) -> Chunk | None:
    """Read what `CatchUp.page` returns, but for what history the reader has read."""
    if view.filter.is_everything:
        limit = PAGE_EVENTS - position % PAGE_EVENTS
        events = await eventlog.read_after(position, limit=limit, max_bytes=CHUNK_BYTES, head=head)
        scanned_to = 0
    else:
        page = await eventlog.read_matching(position, head, view.filter, max_bytes=CHUNK_BYTES)
        events, scanned_to = page.events, page.scanned_to
        await eventlog.check_kept(position)
    if not events and scanned_to <= position:
        return None
    chunk = view.join((Frame(event) for event in events), scanned_to=scanned_to)
    if chunk.link is not None:
        return chunk
    return replace(chunk, link=await eventlog.check(chunk.position, None))
