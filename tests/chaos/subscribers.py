"""Plain subscribers: they read `/stream`, keep the last id, and resume at the next replica."""

import asyncio
import itertools
import time
from collections.abc import Sequence

from tests.chaos.history import Seen, Subscriber, Wanted, digest_of
from tests.logkeeping import SMALL_BYTES
from tests.reader import Block, Cut, Ended, Reader, reading

SILENT_S = 6.0  # three heartbeats: the connection counts as lost
OPEN_S = 5.0
PAUSE_S = 0.1
SLOW_S = 0.06  # for each event of a slow one, while it is not in a hurry
PASSING = frozenset({429, 503})
CUT = (OSError, Cut, Ended, asyncio.IncompleteReadError, TimeoutError)


def make_subscribers() -> list[Subscriber]:
    """Return who reads in a run: some all of it, some a part, one slowly."""
    accounts = frozenset({"item.account.updated"})
    return [
        Subscriber("all, first"),
        Subscriber("all, second"),
        Subscriber("all, slow", is_slow=True),
        Subscriber("one source", Wanted(sources=frozenset({"shop"}))),
        Subscriber("one type and source", Wanted(types=accounts, sources=frozenset({"shop"}))),
    ]


def query(subscriber: Subscriber) -> str:
    """Return what it asks for."""
    wanted = subscriber.wanted
    types = [f"type={name}" for name in sorted(wanted.types or ())]
    sources = [f"source={name}" for name in sorted(wanted.sources or ())]
    return "&".join(["from=start", *types, *sources])


class Subscription:
    """Reads for a subscriber, for ever. `is_hurried`: a slow one reads as fast as it can."""

    def __init__(self, subscriber: Subscriber, urls: Sequence[str], first: int) -> None:
        self._subscriber = subscriber
        self._urls = itertools.cycle([*urls[first:], *urls[:first]])
        self._last_id: str | None = None
        self.is_hurried = False

    async def run(self) -> None:
        """Read one stream after the other. A loop; what was seen is in the subscriber."""
        for url in self._urls:
            try:
                await self._read(url)
            except CUT:
                await asyncio.sleep(PAUSE_S)

    async def _read(self, url: str) -> None:
        subscriber = self._subscriber
        small = SMALL_BYTES if subscriber.is_slow and not self.is_hurried else None
        async with asyncio.timeout(OPEN_S) as opening:
            async with reading(
                url, query(subscriber), last_event_id=self._last_id, receive_bytes=small
            ) as reader:
                opening.reschedule(None)
                if reader.status != 200:
                    await self._refused(reader)
                    return
                subscriber.connections += 1
                while True:
                    await self._take(await reader.block(SILENT_S))

    async def _refused(self, reader: Reader) -> None:
        error = await reader.error()
        if reader.status not in PASSING:
            text = f"{reader.status} {error['code']} for {self._last_id}"
            if text not in self._subscriber.refusals:
                self._subscriber.refusals.append(text)
        await asyncio.sleep(PAUSE_S)

    async def _take(self, block: Block) -> None:
        if block.id is None:
            return
        self._last_id = block.id
        self._subscriber.place = block.position
        if block.is_event:
            content = (block.data or "").encode()
            seen = Seen(block.position, block.id, digest_of(content), time.monotonic())
            self._subscriber.seen.append(seen)
            if self._subscriber.is_slow and not self.is_hurried:
                await asyncio.sleep(SLOW_S)
