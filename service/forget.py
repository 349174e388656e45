"""Forgets the digests past the duplicate window, batch by batch, so that their table stays small.

The events stay. Any number of processes may run it: the database lets one at a time work.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial

from service.errors import LogUnavailable
from service.eventlog import EventLog

log = logging.getLogger("causeway.forget")

EVERY_S = 600.0
BATCH = 10_000
PAUSE_S = 0.1  # between batches: appends and deliveries come first


async def forget_digests(eventlog: EventLog, window_s: int) -> None:
    """Forget the digests of events received more than `window_s` ago, now and then. A loop."""
    while True:
        try:
            await forget_once(eventlog, datetime.now(UTC) - timedelta(seconds=window_s))
        except LogUnavailable:
            log.warning("digests not forgotten, the database is away")
        await asyncio.sleep(EVERY_S)


async def forget_once(eventlog: EventLog, before: datetime) -> int:
    """Forget all digests of events received before `before`; return how many.

    Raises LogUnavailable.
    """
    return await until_none(partial(eventlog.forget_digests, before, limit=BATCH), BATCH)


async def until_none(forget: Callable[[], Awaitable[int]], batch: int) -> int:
    """Forget batch by batch until less than a whole one was left; return how many in all."""
    total = forgotten = await forget()
    while forgotten == batch:
        await asyncio.sleep(PAUSE_S)
        forgotten = await forget()
        total += forgotten
    return total
