"""Acknowledge in the background: for more events a second than one by one allows.

An acknowledgement covers all events before it, and the service collects them for some 30 ms. So
while one is under way the next ones wait, and only the newest of them is sent.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType

from service.answers import LeaseLost
from service.client import Event


class AckBehind:
    """Acknowledges the newest event that was noted, over and over: never two at once.

        async with AckBehind() as acks:
            async for event in subscribe(url, token, consumer="billing"):
                await handle(event)
                acks.note(event)

    What is not acknowledged `last_s` seconds after the block was left is sent again. An error of an
    acknowledgement is raised by the next `note`, or at the end of the block; of `LeaseLost`
    `on_lease_lost` is told instead, if there is one: the events will be sent again.
    """

    def __init__(
        self,
        on_lease_lost: Callable[[Event, LeaseLost], None] | None = None,
        last_s: float = 2.0,
    ) -> None:
        self._on_lease_lost = on_lease_lost
        self._last_s = last_s
        self._newest: Event | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "AckBehind":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        await asyncio.wait({task}, timeout=self._last_s)
        if not task.cancel():
            task.result()

    def note(self, event: Event) -> None:
        """This event and all before it are done."""
        self._newest = event
        task, self._task = self._task, None
        if task is not None and task.done():
            task.result()
            task = None
        self._task = task or asyncio.create_task(self._run(), name="acknowledge")

    async def _run(self) -> None:
        while (event := self._newest) is not None:
            self._newest = None
            try:
                await event.ack()
            except LeaseLost as error:
                if self._on_lease_lost is None:
                    raise
                self._on_lease_lost(event, error)
