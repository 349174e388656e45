"""One page of the log as a chunk, for a reader that has fallen below the window."""

from dataclasses import replace

from service.readable import ReadableLog
from service.window import CHUNK_BYTES, Chunk, Frame, View


async def read_page(eventlog: ReadableLog, position: int, head: int, view: View) -> Chunk | None:
    """Return what follows `position`, as `view` shows it; None if there is nothing yet.

    A filtered view looks as far as `head` at the most. Raises PositionPruned if events after
    `position` are gone, LogDamaged at a hole: neither is ever passed over in silence.
    """
    if view.filter.is_everything:
        events = await eventlog.read_after(position, max_bytes=CHUNK_BYTES, head=head)
        scanned_to = 0
    else:
        page = await eventlog.read_matching(position, head, view.filter, max_bytes=CHUNK_BYTES)
        events, scanned_to = page.events, page.scanned_to
        await eventlog.check_kept(position)
    if not events and scanned_to <= position:
        return None
    chunk = view.join((Frame(event) for event in events), scanned_to=scanned_to)
    return chunk if chunk.link else replace(chunk, link=await eventlog.link_at(chunk.position))
