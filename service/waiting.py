"""Waits for the first of several events."""

import asyncio


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
