"""Writes down how attempts ended, many to a commit: the next batch is what ended meanwhile.

Until its result is written an attempt holds its webhook's room, so results that wait (the database
is away) are as many as calls may be open at the most.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from service.delivery import Deliveries, Ended
from service.errors import LogUnavailable
from service.metrics import Metrics

log = logging.getLogger("causeway.recorder")

BATCH = 500
RETRY_S = 0.5


class Recorder:
    """The attempts of this process that are not written down yet. `run` is a loop.

    `on_settled` is called after each commit with the webhooks whose room it gave back, and True if
    the health of one has changed.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        metrics: Metrics,
        *,
        disable_after_s: float,
        on_settled: Callable[[set[int], bool], None],
    ) -> None:
        self._deliveries = deliveries
        self._metrics = metrics
        self._disable_after_s = disable_after_s
        self._on_settled = on_settled
        self._ended: list[Ended] = []
        self._has_ended = asyncio.Event()
        self._is_written = asyncio.Event()
        self._is_written.set()
        self.in_flight: Counter[int] = Counter()
        metrics.relay_in_flight.set_function(self.in_flight.total)

    def begin(self, webhook_id: int) -> None:
        """Take room for an attempt."""
        self.in_flight[webhook_id] += 1

    def end(self, ended: Ended) -> None:
        """Hand over the result of an attempt that has begun."""
        self._ended.append(ended)
        self._is_written.clear()
        self._has_ended.set()

    async def flushed(self, within_s: float) -> None:
        """Wait until everything that has ended is written."""
        try:
            async with asyncio.timeout(within_s):
                await self._is_written.wait()
        except TimeoutError:
            log.error("results of deliveries not written", extra={"deliveries": len(self._ended)})

    async def run(self) -> None:
        """Write results as they come, for ever; while the database is away they wait."""
        while True:
            while self._ended:  # first: begun anew, it has what the last run could not write
                await self._write(self._ended[:BATCH])
            self._is_written.set()
            self._has_ended.clear()
            await self._has_ended.wait()

    async def _write(self, batch: Sequence[Ended]) -> None:
        try:
            changes = await self._deliveries.record(batch, disable_after_s=self._disable_after_s)
        except LogUnavailable:
            log.warning("results wait, the database is away", extra={"deliveries": len(batch)})
            await asyncio.sleep(RETRY_S)
            return
        del self._ended[: len(batch)]
        for one in batch:
            self.in_flight[one.webhook_id] -= 1
        for webhook_id, change in changes:
            self.report(webhook_id, change)
        self._on_settled({one.webhook_id for one in batch}, bool(changes))

    def report(self, webhook_id: int, change: str) -> None:
        """Say what happened to a webhook: nothing of the kind goes unseen."""
        extra = {"webhook": webhook_id, "reason": change}
        if change == "opened":
            log.warning("callback fails, one probe at a time", extra=extra)
        elif change == "closed":
            log.info("callback answers again", extra=extra)
        else:
            log.error("webhook disabled", extra=extra)
            self._metrics.relay_disabled.labels(change).inc()
