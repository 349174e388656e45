"""Makes the log's partitions ahead of its head, so that no append ever has to.

Any number of processes may run it: the database lets one at a time work. An append that comes to
the end of the last partition nevertheless makes the next one itself.
"""

import asyncio
import logging

from service.errors import LogUnavailable
from service.eventlog import EventLog

log = logging.getLogger("causeway.partition")

EVERY_S = 30.0  # ten million events, a partition, take two minutes at the log's fastest


async def make_partitions(eventlog: EventLog, every_s: float = EVERY_S) -> None:
    """Keep an empty partition behind the newest one. A loop."""
    while True:
        try:
            if await eventlog.make_partitions():
                log.info("partition made")
        except LogUnavailable:
            log.warning("no partition made, the database is away")
        await asyncio.sleep(every_s)
