"""A deadline: what is late is ended by TimeoutError, what is cancelled stays cancelled."""

import asyncio

import pytest

from service.deadline import Deadline


async def test_what_is_late_is_ended() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError), Deadline(loop, 0.01):
        await asyncio.sleep(30)
    await asyncio.sleep(0)  # the task goes on as if it had not been cancelled
    assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]


async def test_what_is_in_time_goes_on_and_nothing_comes_later() -> None:
    with Deadline(asyncio.get_running_loop(), 0.01):
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)


async def test_an_error_within_passes() -> None:
    with pytest.raises(KeyError), Deadline(asyncio.get_running_loop(), 30):
        raise KeyError


async def test_a_task_that_somebody_cancels_stays_cancelled() -> None:
    async def work() -> None:
        with Deadline(asyncio.get_running_loop(), 30):
            await asyncio.sleep(30)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancel_beside_the_deadline_is_not_swallowed() -> None:
    async def work() -> None:
        with Deadline(asyncio.get_running_loop(), 0):
            await asyncio.sleep(30)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(task.cancel)  # in the same turn as the deadline
    with pytest.raises(asyncio.CancelledError):
        await task
