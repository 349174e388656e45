"""What administrators ask of deliveries, as the API and the dashboard both offer it.

Turns what was asked into positions of the log, and refuses what the log cannot give.
"""

import logging
from dataclasses import dataclass
from datetime import datetime

from service.cursor import Place, Start
from service.delivery_list import Delivery, DeliveryList, Look, Reach
from service.delivery_wish import Bound, Listing, ReplayWish
from service.errors import BadRequest
from service.eventlog import EventLog
from service.replay import Replay, Replays, Wanted

log = logging.getLogger("causeway.delivery_admin")

_LAST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of deliveries, newest first, where the next one begins (None: it was the last), and
    how far the webhook got."""

    deliveries: list[Delivery]
    next: int | None
    reach: Reach


class DeliveryAdmin:
    """Lists deliveries, and sends them again."""

    def __init__(self, deliveries: DeliveryList, replays: Replays, eventlog: EventLog) -> None:
        self.deliveries = deliveries
        self.replays = replays
        self._eventlog = eventlog

    async def list(self, webhook_id: int, listing: Listing) -> Listed:
        """Return a page of a webhook's deliveries. Raises UnknownWebhook."""
        reach = await self.deliveries.reach(webhook_id)
        found, next_ = await self.deliveries.page(webhook_id, await self._look(listing))
        return Listed(found, next_, reach)

    async def _look(self, listing: Listing) -> Look:
        after, until = listing.after or 0, _LAST
        if listing.before is not None:
            until = listing.before - 1
        if listing.since is not None:
            after = max(after, await self._eventlog.find_time(listing.since) - 1)
        if listing.until is not None:
            until = min(until, await self._eventlog.find_time(listing.until) - 1)
        return Look(after, until, listing.limit, listing.state, listing.filter)

    async def replay_one(self, webhook_id: int, position: int, by: str) -> str:
        """Send one event again, at once; see `Replays.one`."""
        outcome = await self.replays.one(webhook_id, position)
        fields = {"webhook": webhook_id, "position": position, "by": by}
        log.info("delivery replayed", extra=fields)
        return outcome

    async def count(self, webhook_id: int, wish: ReplayWish) -> tuple[Wanted, int]:
        """Return the wish with positions, and how many events it would send: the dry run."""
        reach = await self.deliveries.reach(webhook_id)
        wanted = await self._resolve(wish, reach)
        return wanted, await self.replays.count(webhook_id, reach.filter, wanted)

    async def begin(self, webhook_id: int, wanted: Wanted, events: int, by: str) -> Replay:
        """Begin the replay that was counted."""
        replay = await self.replays.create(webhook_id, wanted, events, by)
        fields = {"webhook": webhook_id, "replay": replay.replay_id, "events": events, "by": by}
        log.info("replay begun", extra=fields)
        return replay

    async def cancel(self, webhook_id: int, replay_id: int, by: str) -> Replay:
        """Stop a replay; what it queued is sent nevertheless."""
        replay = await self.replays.cancel(webhook_id, replay_id)
        fields = {"webhook": webhook_id, "replay": replay_id, "by": by}
        log.info("replay cancelled", extra=fields)
        return replay

    async def _resolve(self, wish: ReplayWish, reach: Reach) -> Wanted:
        """Return the wish with positions, none beyond the cursor. Raises for impossible ranges."""
        first = await self._first(wish.begin, reach)
        last = await self._last(wish.end, reach)
        if wish.end is not None and first > last and not _is_span(wish):
            raise BadRequest(f"from is after until: {first} is after {last}")
        if isinstance(wish.begin, Place) and first > reach.cursor:
            raise BadRequest(
                f"from: the webhook got to position {reach.cursor}; what follows comes by itself"
            )
        after = first - 1
        until = max(after, min(last, reach.cursor))
        return Wanted(wish.state, wish.filter, after, until, wish.per_s)

    async def _first(self, begin: Bound | None, reach: Reach) -> int:
        if begin is None or isinstance(begin, Start):
            return reach.anchor + 1
        if isinstance(begin, datetime):
            return await self._eventlog.find_time(begin)
        await self._check(begin)
        first = max(1, begin.position)
        await self._eventlog.check_kept(first - 1)
        return first

    async def _last(self, end: Bound | None, reach: Reach) -> int:
        if isinstance(end, datetime):
            return await self._eventlog.find_time(end) - 1
        if isinstance(end, Place):
            await self._check(end)
            return end.position
        return reach.head

    async def _check(self, place: Place) -> None:
        if place.link_digits is not None:
            await self._eventlog.check(place.position, place.link_digits)


def _is_span(wish: ReplayWish) -> bool:
    """True for two times in their order: nothing may have been received between them."""
    begin, end = wish.begin, wish.end
    return isinstance(begin, datetime) and isinstance(end, datetime) and begin < end
