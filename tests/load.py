"""A Bridge under which a service goes away: it sends each event until that has its 200."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2

from tests.bridge import body, post
from tests.running import WITHIN_S

RETRY_S = 0.02


@dataclass(slots=True)
class Load:
    """What was sent, and what was answered. `lost` counts calls that ended without an answer."""

    sent: list[bytes] = field(default_factory=list)
    accepted: list[bytes] = field(default_factory=list)
    refused: list[httpx2.Response] = field(default_factory=list)
    lost: int = 0
    errors: list[str] = field(default_factory=list)  # why they were lost
    is_over: bool = False

    async def run(self, url: str) -> None:
        """Send until the load is over."""
        async with httpx2.AsyncClient(timeout=WITHIN_S) as client:
            while not self.is_over:
                payload = body("item.created" if len(self.sent) % 2 else "user.deleted")
                self.sent.append(payload)
                while not await self._try(client, url, payload):
                    await asyncio.sleep(RETRY_S)

    async def _try(self, client: httpx2.AsyncClient, url: str, payload: bytes) -> bool:
        try:
            answer = await post(url, payload, client=client)
        except httpx2.TransportError as error:
            self.lost += 1
            self.errors.append(repr(error))
            return False
        if answer.status_code != 200:
            self.refused.append(answer)
            return False
        self.accepted.append(payload)
        return True


@asynccontextmanager
async def under_load(url: str, senders: int = 8) -> AsyncIterator[Load]:
    """Run a load during the block; after it every event that was sent has its 200."""
    load = Load()
    async with asyncio.TaskGroup() as group:
        for _ in range(senders):
            group.create_task(load.run(url))
        try:
            yield load
        finally:
            load.is_over = True
