"""A log in small partitions for tests, and a look at how it is divided."""

import asyncio
from unittest.mock import patch

from service.db import Connection
from service.migrate import migrate, migrations

FIRST_EVENTS = 10_000_000


async def divide(owner: Connection, events: int) -> None:
    """Let an empty log have partitions of `events` positions, as a new one would."""
    async with owner.transaction():
        await owner.execute("UPDATE causeway.log SET partition_events = $1", events)
        names = [f"event_{first}" for first, _ in await partitions(owner)]
        for name in names[1:]:
            await owner.execute(f"DROP TABLE causeway.{name}")
        await owner.execute("DELETE FROM causeway.event_partition WHERE first_position > 0")
        await owner.execute("UPDATE causeway.event_partition SET end_position = $1", events)
        await owner.execute("ALTER TABLE causeway.event DETACH PARTITION causeway.event_0")
        await owner.execute(
            "ALTER TABLE causeway.event ATTACH PARTITION causeway.event_0 "
            f"FOR VALUES FROM (0) TO ({events})"
        )
        await owner.execute("SELECT causeway.make_partitions()")


async def partitions(owner: Connection) -> list[tuple[int, int]]:
    """Return the first and the end position of each partition, as Postgres knows them."""
    bounds: list[tuple[int, int]] = []
    for _ in range(50):  # somebody may be adding one between the two looks
        rows = await owner.fetch(
            "SELECT pg_get_expr(relpartbound, oid) AS bound FROM pg_inherits "
            "JOIN pg_class ON oid = inhrelid WHERE inhparent = 'causeway.event'::regclass"
        )
        known = await owner.fetch(
            "SELECT first_position, end_position FROM causeway.event_partition ORDER BY 1"
        )
        numbers = [
            [int(part.strip("()'")) for part in row["bound"].split() if part.strip("()'").isdigit()]
            for row in rows
        ]
        bounds = sorted((first, end) for first, end in numbers)
        if bounds == [tuple(row) for row in known]:
            return bounds
        await asyncio.sleep(0.05)
    raise AssertionError(f"what is written down is not what there is: {bounds}")


async def migrate_to(dsn: str, version: int) -> list[str]:
    """Bring a database to an older schema than the code's; return what was applied."""
    older = [step for step in migrations() if step.version <= version]
    with patch("service.migrate.migrations", lambda: older):
        return await migrate(dsn)
