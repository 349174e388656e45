"""What tests of the relay share: webhooks, events in the log, time that passes."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from service.db import Connection, Pool
from service.delivery import Claimed, Deliveries, Ended, Outlook, Room
from service.eventlog import EventLog
from service.filter import Filter, parse_topics
from service.seal import Sealer
from service.webhook import Webhook, Webhooks
from tests import bridge
from tests.receiver import Received
from tests.running import WITHIN_S, Running

KEY = "relay-tests-0123456789-0123456789"
# A relay that may call receivers on this machine. Its patience is much longer than a busy machine
# takes for an answer: a call that was given up for that would be made twice.
RELAY = {
    "secret_key": KEY,
    "relay_allow_http": "true",
    "relay_allowed_networks": "127.0.0.0/8",
    "relay_timeout_s": 300.0,
}
LEASE_S = 3600.0  # of claims by hand: none ends by itself during a test, however slow that is
# Every moment that the relay waits for.
_TIMES = {
    "webhook": (
        *("failing_since", "open_until", "backfilled_at", "previous_secret_until", "enabled_at"),
    ),
    "delivery": ("due_at", "retry_at"),
    "replay": ("advanced_at",),
}


async def add_webhook(
    webhooks: Webhooks,
    url: str,
    *,
    types: Sequence[str] = (),
    sources: Sequence[str] = (),
    ordered: bool = False,
    headers: Mapping[str, str] | None = None,
    application: str = "default",
    after: int | None = None,
    eventlog: EventLog,
) -> Webhook:
    """Make a webhook that begins after the position `after`, or at the head."""
    bounds = await eventlog.bounds()
    position = bounds.head_position if after is None else after
    return await webhooks.create(
        application=application,
        name=None,
        url=url,
        filter_=Filter(topics=parse_topics(types), sources=frozenset(sources) or None),
        headers=headers or {},
        is_ordered=ordered,
        position=position,
        link=await eventlog.check(position, None),
        created_by="tests",
    )


async def add_to(running: Running, url: str, **wishes: object) -> Webhook:
    """Make a webhook of a running service, and let its relay know at once."""
    relaying = running.service.relaying
    webhook = await add_webhook(
        relaying.webhooks,
        url,
        eventlog=running.service.eventlog,
        **wishes,  # type: ignore[arg-type]
    )
    relaying.relay.wake()
    return webhook


async def append(eventlog: EventLog, count: int = 1, **content: object) -> int:
    """Append distinct events; return the position of the last."""
    events = [bridge.new_event(**content) for _ in range(count)]  # type: ignore[arg-type]
    return (await eventlog.append(events, timeout_s=30))[-1].position


async def pass_time(owner: Connection, seconds: float) -> None:
    """Let `seconds` pass for all that waits: every moment is moved back by as much."""
    for table, columns in _TIMES.items():
        moved = ", ".join(f"{c} = {c} - make_interval(secs => $1)" for c in columns)
        async with owner.transaction():  # a relay that runs takes the rows in another order
            await owner.execute(f"LOCK TABLE causeway.{table} IN EXCLUSIVE MODE")
            await owner.execute(f"UPDATE causeway.{table} SET {moved}", seconds)


class Desk:
    """The relay's database, worked by hand: claims and results without a relay."""

    def __init__(self, pool: Pool) -> None:
        self.eventlog = EventLog(pool)
        self.webhooks = Webhooks(pool, Sealer([KEY]), max_per_application=10)
        self.deliveries = Deliveries(pool)

    async def add(self, url: str = "https://example.com/", **wishes: object) -> Webhook:
        """Make a webhook; see `add_webhook`."""
        return await add_webhook(self.webhooks, url, eventlog=self.eventlog, **wishes)  # type: ignore[arg-type]

    async def claim(
        self,
        *webhooks: Webhook,
        room: int = 10,
        scanned_to: int = 0,
        lease_s: float = LEASE_S,
        backfill_per_s: float = 1e6,
    ) -> list[Claimed]:
        """Claim for webhooks as they were made or last read; return what was claimed."""
        link = await self.eventlog.link_at(scanned_to)
        claimed, self.outlooks = await self.deliveries.claim(
            [Room(it.webhook_id, it.version, room, scanned_to, link) for it in webhooks],
            lease_s=lease_s,
            backfill_per_s=backfill_per_s,
        )
        return claimed

    outlooks: Mapping[int, Outlook]

    async def end(self, *claimed: Claimed, state: str = "delivered", **fields: object) -> list[str]:
        """Record how attempts ended; return the changes of health."""
        failed: dict[str, object] = {"error": "server_error", "status": 500, "due_in_s": 5.0}
        values: dict[str, object] = {"status": 200, "error": None, "due_in_s": None}
        values |= {"pending": failed, "exhausted": failed | {"due_in_s": None}}.get(state, {})
        values |= {"answer": b"", "pause_s": None, "duration_ms": 3} | fields
        ended = [
            Ended(
                webhook_id=it.webhook_id,
                position=it.position,
                claim=it.claim,
                number=it.attempt,
                state=state,
                step=it.step + (it.early_s is None and state != "released"),
                started_at=bridge.new_event().received_at,
                link=it.link,
                **values,  # type: ignore[arg-type]
            )
            for it in claimed
        ]
        changes = await self.deliveries.record(ended, disable_after_s=432000.0)
        return [change for _, change in changes]


async def states(owner: Connection) -> dict[int, str]:
    """Return the state of each delivery, by position."""
    rows = await owner.fetch("SELECT position, state FROM causeway.delivery ORDER BY 1")
    return {row["position"]: row["state"] for row in rows}


async def settled(owner: Connection, count: int, within_s: float = WITHIN_S) -> dict[int, str]:
    """Return the states once `count` deliveries are delivered or exhausted."""
    async with asyncio.timeout(within_s):
        while True:
            found = await states(owner)
            if sum(state != "pending" for state in found.values()) >= count:
                return found
            await asyncio.sleep(0.02)


def calls_of(calls: Sequence[Received]) -> Counter[int]:
    """Return how often a receiver was called for each position."""
    return Counter(int(call.headers["causeway-position"]) for call in calls)
