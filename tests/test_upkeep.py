"""The metrics that say what must be done before it hurts."""

import asyncio
from pathlib import Path

import pytest

from service.db import Connection, create_pool
from service.metrics import Metrics
from service.sources import Sources
from service.upkeep import watch_upkeep
from tests.running import Database, eventually, make_settings


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return a sample's value, or None if there is none."""
    return metrics.registry.get_sample_value(name, labels)


async def test_half_done_changes_and_the_size_are_shown(
    database: Database, owner: Connection, tmp_path: Path
) -> None:
    (tmp_path / "acme").write_text("whsec-new-0123456789\nwhsec-old-0123456789")
    (tmp_path / "gone").write_text("whsec-gone-0123456789")
    settings = make_settings(
        sources_dir=str(tmp_path), secret_key=f"{'n' * 32},{'o' * 32}", bridge_webhook_secret="one"
    )
    sources, metrics = Sources(settings), Metrics()
    async with create_pool(database.service_dsn, max_size=1) as pool:
        watch = asyncio.create_task(watch_upkeep(settings, sources, pool, metrics, every_s=0.02))
        follow = asyncio.create_task(sources.watch())
        await eventually(lambda: (value(metrics, "causeway_database_bytes") or 0) > 1_000_000)
        made = await owner.fetchval("SELECT count(*) FROM causeway.event_partition")
        assert value(metrics, "causeway_log_partitions") == made
        assert value(metrics, "causeway_secret_keys") == 2
        assert value(metrics, "causeway_source_secrets", source="default") == 1
        assert value(metrics, "causeway_source_secrets", source="acme") == 2
        (tmp_path / "acme").write_text("whsec-new-0123456789")
        (tmp_path / "gone").unlink()
        await eventually(lambda: value(metrics, "causeway_source_secrets", source="acme") == 1)
        await eventually(lambda: value(metrics, "causeway_source_secrets", source="gone") is None)
        assert not watch.done()
        for task in (watch, follow):
            task.cancel()
        await asyncio.gather(watch, follow, return_exceptions=True)


@pytest.mark.parametrize(("roles", "begins_at"), [("ingest,stream", 0), ("stream,relay", None)])
async def test_the_first_call_of_a_source_is_an_increase(
    database: Database, roles: str, begins_at: float | None
) -> None:
    settings, metrics = make_settings(roles=roles), Metrics()
    async with create_pool(database.service_dsn, max_size=1) as pool:
        watch = asyncio.create_task(watch_upkeep(settings, Sources(settings), pool, metrics))
        await eventually(
            lambda: value(metrics, "causeway_source_secrets", source="default") is not None
        )
        name = "causeway_webhooks_received_total"
        for outcome in ("accepted", "log_unavailable"):
            found = value(metrics, name, source="default", outcome=outcome)
            assert found == begins_at
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def test_what_was_pruned_and_erased_is_shown(database: Database, owner: Connection) -> None:
    await owner.execute("UPDATE causeway.log SET anchor_position = 2")
    await owner.execute(
        "INSERT INTO causeway.erasure (reason, erased_by, events) VALUES ('asked', 'test', 7)"
    )
    settings, metrics = make_settings(), Metrics()
    async with create_pool(database.service_dsn, max_size=1) as pool:
        watch = asyncio.create_task(
            watch_upkeep(settings, Sources(settings), pool, metrics, every_s=0.02)
        )
        await eventually(lambda: value(metrics, "causeway_erased_events") == 7)
        assert value(metrics, "causeway_log_anchor_position") == 2
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
