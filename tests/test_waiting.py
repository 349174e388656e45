"""Races leave nothing behind, whatever the tasks do with their cancellation."""

import asyncio

import pytest

from service import waiting
from service.waiting import end, race
from tests.running import WITHIN_S


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "CANCEL_AGAIN_S", 0.02)


class Deaf:
    """Runs for ever, and drops its first `times` cancellations."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.begun = asyncio.Event()
        self.ended = False

    async def run(self) -> None:
        self.begun.set()
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not self.left:
                    self.ended = True
                    raise
                self.left -= 1


async def after(event: asyncio.Event, answer: str) -> str:
    await event.wait()
    return answer


async def broken(event: asyncio.Event) -> None:
    await event.wait()
    raise OSError("broken")


async def test_a_race_ends_what_drops_its_first_cancellation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    deaf = Deaf(1)
    async with asyncio.timeout(WITHIN_S):
        assert await race(after(deaf.begun, "won"), deaf.run()) == "won"
    assert deaf.ended
    assert "tasks go on after their cancellation" in caplog.text


async def test_a_race_raises_what_the_one_that_ended_raised() -> None:
    deaf = Deaf(1)
    async with asyncio.timeout(WITHIN_S):
        with pytest.raises(OSError, match="broken"):
            await race(deaf.run(), broken(deaf.begun))
    assert deaf.ended


async def test_a_race_that_is_cancelled_again_and_again_leaves_nothing_behind() -> None:
    deaf = Deaf(3)
    racing = asyncio.create_task(race(deaf.run(), asyncio.Event().wait()))
    await deaf.begun.wait()
    async with asyncio.timeout(WITHIN_S):
        while not racing.done():
            racing.cancel()
            await asyncio.sleep(0)
    assert deaf.ended
    assert racing.cancelled()


async def test_errors_of_tasks_that_are_ended_are_nobodys() -> None:
    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("the connection is gone")

    tasks = [asyncio.create_task(fails()) for _ in range(2)]
    await asyncio.sleep(0)
    async with asyncio.timeout(WITHIN_S):
        await end(tasks)
    assert all(task.done() for task in tasks)
