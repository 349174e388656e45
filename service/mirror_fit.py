"""Does the mirror's stream fit the log? Then the mirror goes on where the stream ends.

It fits if its newest event has the sequence number of its position and the log's own link there:
the link covers all that came before. What is missing in it (deleted, expired) is no harm, readers
find it in Postgres. What is missing at its end (a server that lost what it had not yet synced) is
published again.
"""

from dataclasses import dataclass

from service.errors import Misfit, NotMirrored
from service.event import Event, event_id
from service.eventlog import Bounds, EventLog
from service.mirror_stream import MirrorStream, Seen

LOOK_BACK = 1000  # how many of the newest may be missing before the oldest is asked instead


@dataclass(frozen=True, slots=True)
class Place:
    """Where the stream ends, with the log's link there, what it lacks, and where the log ends."""

    position: int
    link: bytes
    first: int
    deleted: frozenset[int]
    head: int


async def fit(
    stream: MirrorStream, eventlog: EventLog, *, with_deleted: bool = False
) -> Place | None:
    """Return where the stream ends; None if there is no stream. `with_deleted`: what it lacks, too.

    Raises Misfit, LogUnavailable or MirrorUnavailable.
    """
    seen = await stream.look(with_deleted=with_deleted)
    if seen is None:
        return None
    seen.check()
    bounds = await eventlog.bounds()  # after the look: the log is never behind its mirror
    _check_bounds(seen, bounds)
    newest = await _newest(stream, seen)
    if newest is not None:
        await _check_link(newest, eventlog)
    link = await eventlog.link_at(seen.last)
    if link is None:
        raise Misfit(f"the log has lost position {seen.last}, where the stream ends")
    return Place(seen.last, link, seen.first, seen.deleted, bounds.head_position)


def _check_bounds(seen: Seen, bounds: Bounds) -> None:
    if seen.log_id not in (None, bounds.log_id):
        raise Misfit("the stream mirrors another log")
    if seen.last > bounds.head_position:
        raise Misfit(
            f"the stream ends at {seen.last}, the log at {bounds.head_position}: the log was "
            "restored, or is another"
        )
    if seen.last < bounds.anchor_position:
        raise Misfit(
            f"the stream ends at {seen.last}, and the log no longer has what follows: it begins at "
            f"{bounds.first_position}"
        )


async def _newest(stream: MirrorStream, seen: Seen) -> Event | None:
    """Return the newest event that the stream has: the oldest, if many at its end are gone."""
    if not seen.messages:
        return None
    back = range(seen.last, max(seen.first, seen.last - LOOK_BACK) - 1, -1)
    for sequence in (*(number for number in back if number not in seen.deleted), seen.first):
        try:
            event = await stream.event(sequence)
        except NotMirrored as error:
            raise Misfit(f"sequence {sequence}: {error}") from error
        if event is None:
            continue  # it expired, or was deleted, since the look
        if event.position != sequence:
            raise Misfit(f"sequence {sequence} of the stream holds position {event.position}")
        return event
    return None


async def _check_link(event: Event, eventlog: EventLog) -> None:
    link = await eventlog.link_at(event.position)
    if link is not None and link != event.link:
        raise Misfit(
            f"position {event.position} is {event.id} in the stream, "
            f"{event_id(event.position, link)} in the log: the log was restored or replaced"
        )
