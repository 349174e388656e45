"""How far each named consumer is behind, as metrics; looked up now and then, not at each scrape."""

import asyncio
import logging

from service.consumer import Consumers
from service.errors import LogUnavailable
from service.metrics import Metrics

log = logging.getLogger("causeway.lag")

EVERY_S = 5.0


async def watch_lag(consumers: Consumers, metrics: Metrics, every_s: float = EVERY_S) -> None:
    """Keep the consumers' lag in `metrics`, for ever; those that are deleted vanish from it."""
    known: set[str] = set()
    while True:
        try:
            found = {consumer.name: consumer for consumer in await consumers.all()}
        except LogUnavailable:
            log.debug("consumers' lag not looked up, the database is away")
        else:
            for name in known - found.keys():
                metrics.consumer_lag_events.remove(name)
                metrics.consumer_lag_seconds.remove(name)
            for name, consumer in found.items():
                behind = consumer.furthest_behind
                metrics.consumer_lag_events.labels(name).set(behind.lag_events)
                metrics.consumer_lag_seconds.labels(name).set(
                    max(shard.lag_s for shard in consumer.shards)
                )
            known = set(found)
        await asyncio.sleep(every_s)
