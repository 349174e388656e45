"""The log backwards and in sums, audits in the background, and the figures of the last hour."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from service import history as history_module
from service.audits import Audits, State
from service.db import Connection, create_pool
from service.errors import BadRequest, LogUnavailable
from service.eventlog import EventLog
from service.filter import EVERYTHING, Filter
from service.history import History
from service.metrics import Metrics
from service.stats import RANGES, Stats
from tests.bridge import body, new_event, post
from tests.running import WITHIN_S, Database, Running, eventually
from tests.stored import append, fill, open_log, positions, received, remove


@asynccontextmanager
async def open_history(database: Database) -> AsyncIterator[tuple[EventLog, History]]:
    async with (
        open_log(database) as log,
        create_pool(database.service_dsn, max_size=2) as pool,
    ):
        yield log, History(pool)


async def test_the_log_is_read_backwards_page_by_page(database: Database) -> None:
    async with open_history(database) as (log, history):
        await fill(log, 25)
        seen, before = [], 26
        while before > 1:
            back = await history.read_back(before, EVERYTHING, first=1, limit=10, budget_s=WITHIN_S)
            seen += positions(back.events)
            before = back.scanned_to
        assert seen == list(range(25, 0, -1))


async def test_only_what_matches_comes_and_the_search_says_how_far_it_looked(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "SCAN_POSITIONS", 10)
    async with open_history(database) as (log, history):
        await append(log, new_event("item.created", item_id=5))
        await fill(log, 60)
        wanted = Filter(item_ids=frozenset({5}))
        none_left = await history.read_back(62, wanted, first=1, limit=3, budget_s=WITHIN_S)
        assert (positions(none_left.events), none_left.scanned_to) == ([1], 1)
        cut = await history.read_back(62, wanted, first=1, limit=3, budget_s=0.0)
        assert (positions(cut.events), cut.scanned_to) == ([], 52)
        pattern = Filter(topics=frozenset({"item.c*"}))
        found = await history.read_back(62, pattern, first=1, limit=3, budget_s=WITHIN_S)
        assert positions(found.events) == [1]


async def test_events_are_counted_between_times(database: Database) -> None:
    start = datetime(2026, 11, 1, tzinfo=UTC)
    hours = [timedelta(hours=n) for n in range(5)]
    async with open_history(database) as (log, history):
        for hour, count in zip(hours, (3, 0, 2, 1), strict=False):
            events = [received(new_event(), start + hour) for _ in range(count)]
            if events:
                await append(log, *events)
        assert await history.counts([start + hour for hour in hours]) == [3, 0, 2, 1]


async def test_a_sources_newest_event_is_found(database: Database) -> None:
    async with open_history(database) as (log, history):
        assert await history.last_of_source("default") is None
        await fill(log, 3)
        last = await history.last_of_source("default")
        assert last is not None
        assert last.position == 3
        assert await history.last_of_source("acme") is None
        assert await history.database_bytes() > 1_000_000


async def test_the_figures_are_sampled_bounded_and_given_from_a_moment_on(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, now = 100, [1000.0]
    monkeypatch.setattr("service.stats.KEPT", kept)
    async with open_history(database) as (_, history):
        stats = Stats(Metrics(), history, lambda: int(now[0]), lambda: now[0])
        assert stats.window(300) is None
        assert stats.newest()["events_per_s"] is None
        for _ in range(kept + 20):
            await stats.sample()
            now[0] += 5
        hour = stats.hour()
        assert len(hour["times"]) == kept
        assert {len(values) for values in hour["figures"].values()} == {kept}
        assert stats.newest()["events_per_s"] == pytest.approx(1.0)
        assert len(stats.hour(hour["times"][-3])["times"]) == 2
        older, newer = stats.window(300) or pytest.fail("no samples")
        assert newer.time_s - older.time_s == 300
        for name, (_, count) in RANGES.items():
            counted = await stats.counts(name)
            assert len(counted["times"]) == len(counted["figures"]["events"]) == count


async def test_figures_go_on_while_the_database_is_away() -> None:
    class Away:
        async def database_bytes(self) -> int:
            raise LogUnavailable("away")

    stats = Stats(Metrics(), Away(), lambda: None)  # type: ignore[arg-type]
    await stats.sample()
    await stats.sample()
    assert stats.newest()["database_bytes"] is None
    assert stats.newest()["events_per_s"] is None


def ended(audits: Audits) -> State:
    assert audits.state is not None
    return audits.state


async def test_an_audit_in_the_background_proves_and_then_names_the_damage(
    database: Database, owner: Connection
) -> None:
    async with open_log(database) as log:
        audits = Audits(log)
        running = asyncio.create_task(audits.run())
        await fill(log, 600)
        with pytest.raises(BadRequest):
            audits.start("no checkpoint")
        audits.start()
        audits.start()  # one runs: it is let
        await eventually(lambda: audits.state is not None and not audits.state.is_running)
        proved = ended(audits)
        assert proved.proof is not None
        assert (proved.done, proved.total) == (600, 600)
        checkpoint = proved.proof.checkpoint
        await remove(owner, 300, 300)
        audits.start(checkpoint)
        await eventually(lambda: audits.state is not None and not audits.state.is_running)
        failed = ended(audits)
        assert failed.proof is None
        assert "position 300: missing" in (failed.fault or "")
        running.cancel()


async def test_the_stats_count_what_a_service_did(service: Running) -> None:
    stats = service.service.administering.stats
    for _ in range(3):
        await post(service.url, body())
    await eventually(lambda: service.service.window.position == 3)
    for _ in range(2):  # the service's own sample may be yet to come
        await stats.sample()
    window = stats.window(60)
    assert window is not None
    assert window[1].received[("default", "accepted")] == 3
    assert window[1].head == 3
