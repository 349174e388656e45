"""Digests past their window are forgotten batch by batch; a database that is away delays it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from service import forget as forget_module
from service.db import Connection
from service.errors import LogUnavailable
from service.eventlog import EventLog
from service.forget import forget_digests, forget_once
from tests.bridge import new_event
from tests.running import WITHIN_S, Database, eventually
from tests.stored import append, open_log, read_all, received

DAY = timedelta(days=1)


@pytest.fixture
async def log(database: Database) -> AsyncIterator[EventLog]:
    async with open_log(database) as log:
        yield log


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forget_module, "EVERY_S", 0.02)
    monkeypatch.setattr(forget_module, "PAUSE_S", 0.0)
    monkeypatch.setattr(forget_module, "BATCH", 3)


async def fill_days(log: EventLog, *ages: float) -> None:
    """Append one event for each age in days, in that order."""
    now = datetime.now(UTC)
    await append(log, *(received(new_event(), now - age * DAY) for age in ages))


async def kept(owner: Connection) -> list[int]:
    """Return the positions whose digests are known."""
    rows = await owner.fetch("SELECT position FROM causeway.digest ORDER BY position")
    return [row["position"] for row in rows]


@pytest.mark.parametrize("old", [0, 1, 3, 7])
async def test_all_that_is_old_is_forgotten_whatever_the_batches(
    log: EventLog, owner: Connection, old: int
) -> None:
    await fill_days(log, *[9.0] * old, 1, 1)
    assert await forget_once(log, datetime.now(UTC) - 7 * DAY) == old
    assert await kept(owner) == [old + 1, old + 2]
    assert len(await read_all(log)) == old + 2


async def test_the_loop_forgets_by_the_window_again_and_again(
    log: EventLog, owner: Connection
) -> None:
    await fill_days(log, 9, 8, 6, 1)
    task = asyncio.create_task(forget_digests(log, 7 * 86400))
    try:
        await wait_until_kept(owner, [3, 4])
        await fill_days(log, 0.5)
        assert not task.done()
        assert await kept(owner) == [3, 4, 5]
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_an_older_event_that_came_after_a_younger_one_is_kept_with_it(
    log: EventLog, owner: Connection
) -> None:
    """The boundary is a position: nothing younger than the window is ever forgotten."""
    await fill_days(log, 9, 1, 9, 1)
    assert await forget_once(log, datetime.now(UTC) - 7 * DAY) == 1
    assert await kept(owner) == [2, 3, 4]


async def wait_until_kept(owner: Connection, positions: list[int]) -> None:
    deadline = asyncio.get_running_loop().time() + WITHIN_S
    while await kept(owner) != positions:
        assert asyncio.get_running_loop().time() < deadline, await kept(owner)
        await asyncio.sleep(0.01)


async def test_a_database_that_is_away_is_tried_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[datetime] = []

    class Away(EventLog):
        def __init__(self) -> None:
            pass

        async def forget_digests(self, before: datetime, *, limit: int) -> int:
            calls.append(before)
            if len(calls) == 1:
                raise LogUnavailable("away")
            return 0

    began = datetime.now(UTC)
    task = asyncio.create_task(forget_digests(Away(), 7 * 86400))
    try:
        await eventually(lambda: len(calls) >= 3)
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert [record.message for record in caplog.records] == [
        "digests not forgotten, the database is away"
    ]
    assert began <= calls[0] + 7 * DAY <= datetime.now(UTC)
