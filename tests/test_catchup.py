"""Readers below the window: who stands together shares a page, and nobody gets another's."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from service import catchup
from service.catchup import CatchUp
from service.db import create_pool
from service.errors import LogDiverged, LogUnavailable
from service.event import Event, NewEvent
from service.eventlog import EventLog
from service.filter import EVERYTHING, Filter
from service.window import View, Window
from tests.bridge import new_event
from tests.running import Database, eventually

NOTHING_READ = None
TIMES = 20


class CountedLog(EventLog):
    """The log; counts the pages that are read, and fails as often as it is told."""

    reads = 0
    failures = 0

    async def read_after(self, *arguments: int, **options: int | None) -> list[Event]:
        self.reads += 1
        if self.failures:
            self.failures -= 1
            raise LogUnavailable("away")
        return await super().read_after(*arguments, **options)  # type: ignore[arg-type]


@pytest.fixture
async def log(database: Database) -> AsyncIterator[CountedLog]:
    async with create_pool(database.service_dsn, max_size=4) as pool:
        counted = CountedLog(pool)
        await counted.append(events(1200), timeout_s=30)
        yield counted


@pytest.fixture(autouse=True)
def _kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, a page is kept until the test is over."""
    monkeypatch.setattr(catchup, "KEPT_S", 3600.0)


def events(count: int) -> list[NewEvent]:
    return [new_event() for _ in range(count)]


def view(filter_: Filter = EVERYTHING) -> View:
    return Window(max_events=10, max_bytes=10**6).view(filter_, is_cloudevents=False)


async def test_a_crowd_at_one_place_costs_one_read(log: CountedLog) -> None:
    pages, everything = CatchUp(log), view()
    crowd = [pages.page(100, NOTHING_READ, 1200, everything) for _ in range(TIMES)]
    chunks = await asyncio.gather(*crowd)
    assert await pages.page(100, NOTHING_READ, 1200, everything) is chunks[0], "and it is kept"
    assert (log.reads, len(set(map(id, chunks)))) == (1, 1)
    assert chunks[0] is not None
    assert chunks[0].positions == tuple(range(101, 501))


async def test_readers_from_different_places_soon_stand_together(log: CountedLog) -> None:
    pages, everything = CatchUp(log), view()
    for begin in range(TIMES):
        position = begin
        seen: list[int] = []
        while position < 1200:
            chunk = await pages.page(position, NOTHING_READ, 1200, everything)
            assert chunk is not None
            seen += chunk.positions
            position = chunk.position
        assert seen == list(range(begin + 1, 1201))
    assert log.reads == TIMES + 2


async def test_another_view_has_pages_of_its_own(log: CountedLog) -> None:
    pages, everything, none = CatchUp(log), view(), view(Filter(topics=frozenset({"never"})))
    assert (chunk := await pages.page(0, NOTHING_READ, 1200, everything)) and chunk.data
    assert (chunk := await pages.page(0, NOTHING_READ, 1200, none)) and not chunk.data


async def test_who_has_read_another_history_gets_no_page_that_others_get(log: CountedLog) -> None:
    pages, everything = CatchUp(log), view()
    link = await log.link_at(100)
    assert await pages.page(100, link, 1200, everything)
    with pytest.raises(LogDiverged):
        await pages.page(100, bytes(32), 1200, everything)
    with pytest.raises(LogDiverged):
        await pages.page(100, bytes(32), 1200, everything)


async def test_a_failed_read_and_an_empty_one_are_not_kept(log: CountedLog) -> None:
    pages, everything = CatchUp(log), view()
    log.failures = 1
    crowd = [pages.page(0, NOTHING_READ, 1200, everything) for _ in range(3)]
    failed = await asyncio.gather(*crowd, return_exceptions=True)
    assert [type(error) for error in failed] == [LogUnavailable] * 3
    assert await pages.page(0, NOTHING_READ, 1200, everything)
    assert await pages.page(1200, NOTHING_READ, 1200, everything) is None
    await log.append(events(1), timeout_s=30)
    assert await pages.page(1200, NOTHING_READ, 1201, everything)


async def test_a_reader_that_goes_does_not_take_the_page_from_the_others(log: CountedLog) -> None:
    pages, everything = CatchUp(log), view()
    gone, stays = [
        asyncio.create_task(pages.page(0, NOTHING_READ, 1200, everything)) for _ in range(2)
    ]
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays is not None
    assert log.reads == 1


async def test_what_is_kept_is_bounded_by_bytes(
    log: CountedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, everything = CatchUp(log), view()
    first = await pages.page(0, NOTHING_READ, 1200, everything)
    assert first is not None
    monkeypatch.setattr(catchup, "KEPT_BYTES", len(first.data) + 1)
    await pages.page(500, NOTHING_READ, 1200, everything)
    await pages.page(500, NOTHING_READ, 1200, everything)
    assert log.reads == 3, "there was no room for the second page"
    assert await pages.page(0, NOTHING_READ, 1200, everything) is first


async def test_what_is_kept_is_bounded_by_time(
    log: CountedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catchup, "KEPT_S", 0.1)
    pages, everything = CatchUp(log), view()
    await pages.page(0, NOTHING_READ, 1200, everything)
    await eventually(lambda: not pages._pages)
    assert pages._kept_bytes == 0
    await pages.page(0, NOTHING_READ, 1200, everything)
    assert log.reads == 2
