"""What a person must do before it hurts, as metrics: room for the database, changes left half done.

A secret or a key that is being changed has two values for a while; the old one must go in the end.
And the counts of a source's calls begin at 0, not with the first: of a series that begins with
what went wrong, or with the only event of a night, Prometheus sees no increase.
"""

import asyncio
import logging

from service.config import Settings
from service.db import Pool, fetch, statements
from service.errors import LogUnavailable
from service.metrics import OUTCOMES, Metrics
from service.roles import Role
from service.sources import Sources

log = logging.getLogger("causeway.upkeep")

EVERY_S = 30.0
_SQL = statements("upkeep")


async def watch_upkeep(
    settings: Settings,
    sources: Sources,
    database: Pool,
    metrics: Metrics,
    every_s: float = EVERY_S,
) -> None:
    """Keep sizes, what retention took, and the number of secrets in `metrics`, for ever. A loop."""
    shown = metrics.upkeep
    known: set[str] = set()
    shown.secret_keys.set(len(settings.secret_keys))
    while True:
        names = set(sources.names())
        for name in known - names:
            shown.source_secrets.remove(name)
        for name in names - known if Role.INGEST in settings.roles else ():
            for outcome in OUTCOMES:
                metrics.webhooks_received.labels(name, outcome)
        for name in names:
            shown.source_secrets.labels(name).set(len(sources.secrets(name) or ()))
        known = names
        try:
            [row] = await fetch(database, _SQL.size)
            shown.database_bytes.set(row["database_bytes"])
            shown.log_anchor.set(row["anchor_position"])
            shown.log_partitions.set(row["partitions"])
            shown.erased_events.set(row["erased_events"])
        except LogUnavailable:
            log.debug("size not looked up, the database is away")
        await asyncio.sleep(every_s)
