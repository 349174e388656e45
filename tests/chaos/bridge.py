"""A simulated Bridge: no ids, no order, retries with back-off until 200, sometimes one too many.

Any call may go to any replica, as a load balancer would have it. It remembers each event that it
ever sent and each answer, and ends only when each event was taken.
"""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Sequence

import httpx2

from service.signature import HEADER, sign
from tests.bridge import TEST_EVENT
from tests.chaos.history import REPEATABLE, Answer, Sent, digest_of
from tests.running import SECRET

TIMEOUT_S = 8.0  # then the answer is late, and Bridge sends the same bytes again
FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 1.0
WAITING_MAX = 2000  # events that are sent again and again; above it no new ones are made
AGAIN = 0.05  # of events are sent once more after their 200, or twice at once
ITEMS = 40
TEST_ITEM = 1234567890
SOURCES = ("default", "shop")
TYPES = (
    *("item.account.updated",) * 6,
    *("item.created", "item.refreshed", "payment.transaction.updated", REPEATABLE),
)
PAD, PADDED = "x" * 20_000, 0.02  # so large are some, so that who reads slowly falls behind


class Bridge:
    """`run` sends until `is_over`, then until all that was sent was taken."""

    def __init__(self, urls: Sequence[str], sent: list[Sent], seed: int, per_s: float) -> None:
        self._urls = urls
        self.sent = sent
        self._chance = random.Random(seed)
        self._per_s = per_s
        self._numbers = itertools.count(1)
        self._tests: dict[str, Sent] = {}
        self._waiting: set[asyncio.Task[None]] = set()
        self.is_over = False

    @property
    def waiting(self) -> int:
        """Events that were not yet taken."""
        return len(self._waiting)

    async def run(self) -> None:
        """Send, and return when everything that was sent has its 200."""
        limits = httpx2.Limits(max_connections=200, max_keepalive_connections=20)
        async with (
            httpx2.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False) as client,
            asyncio.TaskGroup() as group,
        ):
            while not self.is_over:
                await asyncio.sleep(self._chance.expovariate(self._per_s))
                if len(self._waiting) < WAITING_MAX:
                    task = group.create_task(self._deliver(client, self._make()))
                    self._waiting.add(task)
                    task.add_done_callback(self._waiting.discard)

    def _make(self) -> Sent:
        number = next(self._numbers)
        source, type_ = self._chance.choice(SOURCES), self._chance.choice(TYPES)
        if type_ == REPEATABLE:
            return self._test(source)
        item_id = 4_000_000_000 + self._chance.randrange(ITEMS)
        content = {"item_id": item_id, "user_uuid": f"{item_id:032x}", "n": number}
        if self._chance.random() < PADDED:
            content["pad"] = PAD
        text = json.dumps(
            {"content": content, "timestamp": 1_612_782_588_323 + number, "type": type_}
        )
        body = text.encode()
        event = Sent(source, type_, item_id, body, digest_of(body))
        self.sent.append(event)
        return event

    def _test(self, source: str) -> Sent:
        """Return the test event, which to the history is one event with many calls."""
        if source not in self._tests:
            event = Sent(source, REPEATABLE, TEST_ITEM, TEST_EVENT, digest_of(TEST_EVENT))
            self._tests[source] = event
            self.sent.append(event)
        return self._tests[source]

    async def _deliver(self, client: httpx2.AsyncClient, event: Sent) -> None:
        """Send one event until it has its 200, and some of them once more."""
        if self._chance.random() < AGAIN:
            await asyncio.gather(self._call(client, event), self._call(client, event))
        pause_s = FIRST_RETRY_S
        while await self._call(client, event) != 200:
            await asyncio.sleep(pause_s * self._chance.uniform(0.5, 1.5))
            pause_s = min(LONGEST_RETRY_S, pause_s * 2)
        if self._chance.random() < AGAIN:
            await self._call(client, event)

    async def _call(self, client: httpx2.AsyncClient, event: Sent) -> int:
        path = "" if event.source == "default" else f"/{event.source}"
        replica = self._chance.randrange(len(self._urls))
        url = f"{self._urls[replica]}/webhooks/bridge{path}"
        headers = {HEADER: sign(event.body, (SECRET,)), "content-type": "application/json"}
        began_at = time.monotonic()
        try:
            answer = await client.post(url, content=event.body, headers=headers)
        except httpx2.TransportError:
            status, position = 0, None
        else:
            status = answer.status_code
            position = int(answer.headers["causeway-position"]) if status == 200 else None
        event.answers.append(Answer(began_at, time.monotonic(), status, replica, position))
        return status
