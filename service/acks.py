"""Acknowledgements, many to a commit: thousands a second cost a few dozen commits.

An acknowledgement returns when it is on disk. One for a position that no holder was sent is
refused; but the process that sends may not have written down yet how far it got, so such a one is
looked at again for a moment before it is.
"""

import asyncio
from collections import deque
from collections.abc import Iterable

from service.consumer import Ack, Consumers, refusal
from service.errors import LogUnavailable, Overloaded

LINGER_S = 0.03  # about 30 commits a second at the most
AHEAD_S = 1.0  # for the sender's word on how far it got
BATCH_ACKS = 5000
MAX_WAITING = 50_000

Waiting = tuple[Ack, "asyncio.Future[tuple[str, int | None]]"]


class Acks:
    """Turns single acknowledgements into batches. `run` is a loop for the supervisor."""

    def __init__(self, consumers: Consumers) -> None:
        self._consumers = consumers
        self._queue: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._clock = asyncio.get_running_loop().time

    async def ack(self, ack: Ack) -> int:
        """Write `ack` down; return the consumer's place, which may be further.

        Raises UnknownConsumer, ShardsHeld, LeaseLost, AckAhead, LogDiverged; LogUnavailable if the
        database is away, Overloaded if too many wait.
        """
        deadline = self._clock() + AHEAD_S
        while True:
            outcome, place = await self._enqueue(ack)
            if outcome == "acked" and place is not None:
                return place
            if outcome != "ahead" or self._clock() >= deadline:
                raise refusal(outcome, ack, place)
            await asyncio.sleep(LINGER_S)

    async def run(self) -> None:
        """Write batch after batch, for ever. Where it ends, it fails those that wait."""
        batch: list[Waiting] = []
        try:
            while True:
                await self._arrived.wait()
                await asyncio.sleep(LINGER_S)
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_ACKS))]
                if not self._queue:
                    self._arrived.clear()
                await self._settle(batch)
        finally:
            _fail([*batch, *self._queue], "the acknowledgement may not be written: send it again")
            self._queue.clear()
            self._arrived.clear()

    async def _enqueue(self, ack: Ack) -> tuple[str, int | None]:
        if len(self._queue) >= MAX_WAITING:
            raise Overloaded("too many acknowledgements wait; try again in a moment")
        done: asyncio.Future[tuple[str, int | None]] = asyncio.get_running_loop().create_future()
        self._queue.append((ack, done))
        self._arrived.set()
        return await done

    async def _settle(self, batch: list[Waiting]) -> None:
        try:
            outcomes = await self._consumers.ack([ack for ack, _ in batch])
        except LogUnavailable as error:
            _fail(batch, error.message)
            return
        for (_, done), outcome in zip(batch, outcomes, strict=True):
            if not done.done():
                done.set_result(outcome)


def _fail(waiting: Iterable[Waiting], message: str) -> None:
    for _, done in waiting:
        if not done.done():
            done.set_exception(LogUnavailable(message))
