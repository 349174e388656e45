"""Waits for the first of several: events, or things to do; and for the end of what is cancelled."""

import asyncio
import logging
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

log = logging.getLogger("causeway.waiting")

CANCEL_AGAIN_S = 1.0

T = TypeVar("T")


async def first_of(*events: asyncio.Event, timeout_s: float) -> bool:
    """Return true once one of `events` is set, false if none is within `timeout_s`."""
    if any(event.is_set() for event in events):
        return True
    tasks = [asyncio.create_task(event.wait(), name="first-of") for event in events]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    return bool(done)


async def race(first: Coroutine[Any, Any, T], *others: Coroutine[Any, Any, Any]) -> T:
    """Run all until one ends, and end the others; return what `first` returned.

    Raises what the one that ended raised. All have ended when it returns or raises.
    """
    wanted = asyncio.create_task(first)
    tasks: list[asyncio.Task[Any]] = [wanted, *map(asyncio.create_task, others)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks[1:]:
            if task.done():
                task.result()
        return wanted.result()
    finally:
        await end(tasks)


async def end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel `tasks`, again and again until each has ended; what they raise is dropped.

    One cancellation can get lost: nats-py drops those that find it flushing, and so does Python
    3.11's `asyncio.wait_for` if what it waits for ends in the same turn; and a loop whose clean-up
    failed is started again.
    Being cancelled meanwhile changes nothing but that CancelledError is raised at the end.
    """
    cancelled: asyncio.CancelledError | None = None
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        try:
            _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
        except asyncio.CancelledError as error:
            cancelled, left = error, {task for task in left if not task.done()}
        else:
            if left:
                names = sorted(task.get_name() for task in left)
                log.warning("tasks go on after their cancellation", extra={"tasks": names})
    await asyncio.gather(*tasks, return_exceptions=True)  # so that asyncio reports none as unread
    if cancelled is not None:
        raise cancelled
