"""How outgoing webhooks stand, as metrics; that no event was forgotten; what may be forgotten.

All of it is asked of the database now and then, and is the same in every process.
"""

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial

from service.delivery import SCAN_POSITIONS, Backlog, Deliveries
from service.errors import LogUnavailable
from service.forget import until_none
from service.metrics import Metrics
from service.webhook import Webhooks

log = logging.getLogger("causeway.relay_watch")

EVERY_S = 5.0
PRUNE_EVERY_S = 600.0
PRUNE_BATCH = 5000
RESEAL_EVERY_S = 600.0


class RelayWatch:
    """Watches the webhooks' backlog. `run` is a loop for the supervisor."""

    def __init__(self, deliveries: Deliveries, metrics: Metrics, every_s: float = EVERY_S) -> None:
        self._deliveries = deliveries
        self._metrics = metrics
        self._every_s = every_s
        self._known: set[str] = set()
        self._checked: dict[int, int] = {}
        self._orphans: dict[int, int] = {}

    def orphans(self) -> Mapping[int, int]:
        """Return how many events without a delivery this process found, by webhook."""
        return self._orphans

    async def run(self) -> None:
        """Keep the webhooks' backlog in the metrics, for ever; the deleted ones vanish."""
        while True:
            try:
                backlogs = await self._deliveries.backlog()
                self._show(backlogs)
                for backlog in backlogs:
                    await self._check(backlog)
            except LogUnavailable:
                log.debug("backlog not looked up, the database is away")
            await asyncio.sleep(self._every_s)

    def _show(self, backlogs: list[Backlog]) -> None:
        found = {str(backlog.webhook_id): backlog for backlog in backlogs}
        for label in self._known - found.keys():
            self._metrics.relay_pending.remove(label)
            self._metrics.relay_oldest_pending.remove(label)
            self._metrics.relay_circuit_open.remove(label)
            self._metrics.relay_orphans.remove(label)
        for label, backlog in found.items():
            self._metrics.relay_pending.labels(label).set(backlog.pending)
            self._metrics.relay_oldest_pending.labels(label).set(backlog.oldest_s or 0.0)
            self._metrics.relay_circuit_open.labels(label).set(backlog.is_open)
            self._metrics.relay_orphans.labels(label).set(self._orphans.get(backlog.webhook_id, 0))
        self._known = set(found)

    async def _check(self, backlog: Backlog) -> None:
        """Look for orphans in what the cursor has passed since the last look, page by page."""
        id_ = backlog.webhook_id
        after = max(self._checked.get(id_, 0), backlog.accounted_from)
        until = min(backlog.cursor_position, after + SCAN_POSITIONS)
        if until <= after:
            return
        orphans, first = await self._deliveries.orphans(id_, after, until)
        self._checked[id_] = until
        if orphans:
            self._orphans[id_] = self._orphans.get(id_, 0) + orphans
            extra = {"webhook": id_, "orphans": orphans, "first_position": first}
            log.error("events without a delivery", extra=extra)
        self._metrics.relay_orphans.labels(str(id_)).set(self._orphans.get(id_, 0))


async def prune_deliveries(deliveries: Deliveries, retention_s: float) -> None:
    """Forget deliveries past their retention, and deleted webhooks, now and then. A loop."""
    while True:
        try:
            before = datetime.now(UTC) - timedelta(seconds=retention_s)
            await until_none(partial(deliveries.prune, before, limit=PRUNE_BATCH), PRUNE_BATCH)
        except LogUnavailable:
            log.warning("deliveries not pruned, the database is away")
        await asyncio.sleep(PRUNE_EVERY_S)


async def keep_sealed(webhooks: Webhooks) -> None:
    """Seal with the newest key what an older one sealed, now and then. A loop.

    While a key is being changed an old replica may still seal with the old one.
    """
    while True:
        try:
            await webhooks.reseal()
        except LogUnavailable:
            log.warning("secrets not sealed anew, the database is away")
        await asyncio.sleep(RESEAL_EVERY_S)
