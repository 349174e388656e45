"""The leases that streams of this process hold: renewed, written down, and lost in time.

One loop renews all of them in one statement, and with the same commit writes down how far each was
sent. A holder that could not renew for as long as its lease lasts stops sending until it knows: the
database may have given the lease to somebody else.
"""

import asyncio
import logging
import secrets
import socket
from bisect import bisect_right
from collections.abc import Callable, Sequence

from service.consumer import Consumers, Lease
from service.errors import LogUnavailable
from service.metrics import Metrics

log = logging.getLogger("causeway.lease")

FLUSH_S = 0.1  # sent positions are written this often at the most
RENEWALS = 3  # in a lease's time
PROCESS = f"{socket.gethostname()}/{secrets.token_hex(3)}"


class Hold:
    """A lease in use by one stream: how far it was sent, and whether it is still ours."""

    __slots__ = (
        "_lease_s",
        "_wake",
        "is_lost",
        "lease",
        "link",
        "matched",
        "place",
        "renew_at",
        "sent",
        "valid_until",
        "written",
    )

    def __init__(self, lease: Lease, lease_s: int, now: float, wake: Callable[[], None]) -> None:
        self.lease = lease
        self.place = lease.position
        self.sent = self.matched = self.written = lease.position
        self.link: bytes | None = lease.link
        self.is_lost = False
        self._lease_s = lease_s
        self._wake = wake
        self.renewed(now, lease.position)

    @property
    def done(self) -> int:
        """How far the place can move although nobody acknowledged: 0, or past what did not match.

        If nothing that matched is unacknowledged, all that was looked through is done.
        """
        return self.sent if self.place >= self.matched else 0

    def is_good(self, now: float) -> bool:
        """True while the lease is ours for sure."""
        return not self.is_lost and now < self.valid_until

    def note(self, sent: int, positions: Sequence[int], link: bytes | None = None) -> int:
        """The stream looked through to `sent`, and writes the events at `positions`.

        `link` is the one at `sent`, where it is known. Returns how many of the events some holder
        was sent before.
        """
        self.sent, self.link = sent, link
        if positions:
            self.matched = positions[-1]
        return bisect_right(positions, self.lease.sent_position)

    def renewed(self, now: float, place: int) -> None:
        """The database says that the lease is ours, and where the place is."""
        self.place = max(self.place, place)
        self.valid_until = now + self._lease_s
        self.renew_at = now + self._lease_s / RENEWALS
        self._wake()

    def lose(self) -> None:
        """The database says that the lease is not ours any more."""
        self.is_lost = True
        self._wake()


class Leases:
    """All holds of this process. `renew` is a loop for the supervisor."""

    def __init__(self, consumers: Consumers, metrics: Metrics) -> None:
        self._consumers = consumers
        self._metrics = metrics
        self._holds: dict[tuple[str, int, int], Hold] = {}
        self._clock = asyncio.get_running_loop().time
        # One write at a time: a renewal that lands after its release would hold the shard again.
        self._writing = asyncio.Lock()

    async def take(
        self, name: str, shard: int, shards: int, lease_s: int, wake: Callable[[], None]
    ) -> Hold:
        """Take a lease for a stream. Raises ConsumerHeld, ShardsHeld, UnknownConsumer."""
        began = self._clock()  # before the database counts: ours must not outlast it
        lease = await self._consumers.take(name, shard, shards, PROCESS)
        hold = Hold(lease, lease_s, began, wake)
        self._holds[name, shard, lease.number] = hold
        self._metrics.consumer_lease_changes.inc()
        return hold

    async def release(self, hold: Hold) -> None:
        """Give a lease back, with what is known of its place, so that the next one can begin."""
        lease = hold.lease
        self._holds.pop((lease.name, lease.shard, lease.number), None)
        if hold.is_lost:
            return
        try:
            async with self._writing:
                await self._write([hold])
                await self._consumers.release(lease)
        except LogUnavailable:
            log.warning("lease not given back, it will run out", extra={"consumer": lease.name})

    async def renew(self) -> None:
        """Renew what is due and write down what was sent, for ever."""
        while True:
            await asyncio.sleep(FLUSH_S)
            async with self._writing:
                await self._renew_due()

    async def _renew_due(self) -> None:
        now = self._clock()
        due = [
            hold
            for hold in self._holds.values()
            if hold.sent != hold.written or hold.done > hold.place or now >= hold.renew_at
        ]
        if not due:
            return
        try:
            await self._write(due)
        except LogUnavailable:
            log.warning("leases not renewed, the database is away", extra={"leases": len(due)})

    async def _write(self, holds: list[Hold]) -> None:
        began = self._clock()
        rows = [
            (hold.lease.name, hold.lease.shard, hold.lease.number, hold.sent, hold.done, hold.link)
            for hold in holds
        ]
        places = await self._consumers.renew(rows)
        for hold, row in zip(holds, rows, strict=True):
            place = places.get(row[:3])
            if place is None:
                hold.lose()
            else:
                hold.written = row[3]
                hold.renewed(began, place)
