"""Waits for the first of several: events, or things to do."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

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

    Raises what the one that ended raised.
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
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
