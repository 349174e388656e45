"""Holders of named consumers, with Causeway's own client: several for each shard, all willing.

Each reads at a replica of its own; while another has the lease it stands by. What is handled is
written down first and acknowledged after, as a program with a database of its own would.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing

from service.client import LeaseLost, SubscribeError, Unreachable, call, put_consumer, subscribe
from tests.chaos.history import Acked, Handled, Shard, Wanted, digest_of
from tests.running import STREAM_TOKEN

SILENT_S = 6.0
LEASE_S = 5
ACK_CHANCE = 0.3  # an acknowledgement stands for all before it
PAUSE_S = 0.2
SHARES = Wanted(types=frozenset({"item.account.updated", "item.created"}))
CONSUMERS = (
    ("ledger", "explicit", ("0/2", "1/2"), Wanted()),
    ("search", "auto", ("0/1",), SHARES),
)


def make_shards() -> list[Shard]:
    """Return all shards of the run's consumers."""
    return [
        Shard(name, spelling, wanted)
        for name, _, spellings, wanted in CONSUMERS
        for spelling in spellings
    ]


async def make_consumers(url: str) -> None:
    """Make the run's consumers."""
    for name, mode, _, wanted in CONSUMERS:
        wish = put_consumer(
            name, start="start", ack_mode=mode, lease_s=LEASE_S, types=sorted(wanted.types or ())
        )
        while True:
            try:
                await call(url, STREAM_TOKEN, wish)
            except Unreachable:  # it has just been started, and may be slow
                await asyncio.sleep(PAUSE_S)
            else:
                break


class Holder:
    """One program that works on a shard, for ever."""

    def __init__(self, shard: Shard, name: str, url: str, seed: int) -> None:
        self._shard = shard
        self._name = name
        self._url = url
        self._chance = random.Random(seed)

    async def run(self) -> None:
        """Work. A loop; what was handled and acknowledged is in the shard."""
        while True:
            try:
                await self._work()
            except SubscribeError as error:
                self._shard.refusals.append(f"{self._name}: {type(error).__name__}: {error}")
                await asyncio.sleep(PAUSE_S)

    async def _work(self) -> None:
        events = subscribe(
            self._url,
            STREAM_TOKEN,
            consumer=self._shard.consumer,
            shard=self._shard.spelling,
            idle_s=SILENT_S,
        )
        async with aclosing(events):
            async for event in events:
                assert event.hold is not None
                lease = event.hold.lease
                item_id: int = event.json()["content"]["item_id"]
                now, digest = time.monotonic(), digest_of(event.data)
                self._shard.handled.append(
                    Handled(event.position, digest, item_id, lease, self._name, now)
                )
                if self._chance.random() < ACK_CHANCE:
                    try:
                        await event.ack()
                    except LeaseLost:
                        continue  # it comes again, here or at another holder
                    self._shard.acked.append(Acked(event.position, lease, time.monotonic()))


def make_holders(shards: Sequence[Shard], urls: Sequence[str], seed: int) -> list[Holder]:
    """Return for each shard one holder at each replica."""
    return [
        Holder(shard, f"{shard.consumer} {shard.spelling} at {number}", url, seed + number)
        for shard in shards
        for number, url in enumerate(urls)
    ]
