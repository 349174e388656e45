"""The retry schedule under a fake clock, from the first attempt to the last, two days later."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from service.backoff import ATTEMPTS, backoff
from service.db import Connection
from service.delivery import OPEN_AFTER
from tests.logkeeping import sample
from tests.receiver import Receiver
from tests.relaying import RELAY, add_to, append, pass_time, states
from tests.running import WITHIN_S, Running

Start = Callable[..., Awaitable[Running]]
SLACK_S = 4.0  # what the test itself takes between two looks at the clock
LOOK = """
SELECT delivery.state, step, attempts, claim IS NULL AS is_recorded,
    extract(epoch FROM due_at - clock_timestamp())::float8 AS due_in_s,
    extract(epoch FROM open_until - clock_timestamp())::float8 AS probe_in_s
FROM causeway.delivery
JOIN causeway.webhook USING (webhook_id)
"""


class Clock:
    """Time that passes by the test's will, and what the relay did in it."""

    def __init__(self, owner: Connection) -> None:
        self._owner = owner
        self._passed_s = 0.0
        self.attempts = 0
        self.step = 0
        self.times_s: list[float] = []  # of the attempts on the schedule
        self.pauses_s: list[float] = []  # that the delivery waits after each of them
        self.probes = 0

    async def attempt(self) -> str:
        """Wait until one more attempt is recorded; return the delivery's state then."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                row = await self._owner.fetchrow(LOOK)
                if row is not None and row["attempts"] > self.attempts and row["is_recorded"]:
                    break
                await asyncio.sleep(0.02)
        assert row["attempts"] == self.attempts + 1
        self.attempts = row["attempts"]
        self.due_in_s, self.probe_in_s = row["due_in_s"], row["probe_in_s"]
        if row["step"] == self.step:
            self.probes += 1
        else:
            assert row["step"] == self.step + 1
            self.step = row["step"]
            started_s = await self._owner.fetchval(
                "SELECT extract(epoch FROM max(started_at))::float8 FROM causeway.attempt"
            )
            self.times_s.append(started_s + self._passed_s)
            self.pauses_s.append(self.due_in_s)
        state: str = row["state"]
        return state

    async def pass_time(self, seconds: float) -> None:
        self._passed_s += seconds
        await pass_time(self._owner, seconds)


async def test_a_callback_that_always_fails_is_tried_for_two_days_then_given_up_and_kept(
    start: Start, owner: Connection
) -> None:
    with Receiver() as receiver:
        running = await start(**RELAY)
        hook = await add_to(running, receiver.url + "/status/500")
        await append(running.service.eventlog)
        clock = Clock(owner)
        while await clock.attempt() == "pending":
            is_far = clock.due_in_s > (clock.probe_in_s or 0) + 2 * SLACK_S
            if clock.probe_in_s is not None and is_far:
                # One probe of the open circuit comes before the retry's own time.
                left_s, step = clock.due_in_s - clock.probe_in_s, clock.step
                await clock.pass_time(clock.probe_in_s)
                assert await clock.attempt() == "pending"
                assert clock.step == step
                assert clock.due_in_s == pytest.approx(left_s, abs=SLACK_S)
            await clock.pass_time(clock.due_in_s)
        calls = await receiver.wait_for(clock.attempts)
    assert len(clock.times_s) == ATTEMPTS >= 12
    assert clock.probes >= ATTEMPTS - OPEN_AFTER - 1
    assert 24 * 3600 < clock.times_s[-1] - clock.times_s[0] < 48 * 3600
    for number, (before_s, after_s) in enumerate(pairwise(clock.times_s), 1):
        shortest_s, longest_s = backoff(number), backoff(number, 1.0)
        assert shortest_s is not None
        assert longest_s is not None
        assert shortest_s - 0.5 <= after_s - before_s <= longest_s + SLACK_S
        assert shortest_s - SLACK_S <= clock.pauses_s[number - 1] <= longest_s
    numbers = [int(call.headers["causeway-attempt"]) for call in calls]
    assert numbers == list(range(1, clock.attempts + 1))
    assert len({call.headers["webhook-id"] for call in calls}) == 1
    await pass_time(owner, 86400)
    assert await states(owner) == {1: "exhausted"}
    [stand] = await running.service.relaying.deliveries.backlog()
    assert (stand.pending, stand.exhausted) == (0, 1)
    assert await running.service.relaying.deliveries.orphans(hook.webhook_id, 0, 1) == (0, None)
    assert await owner.fetchval("SELECT count(*) FROM causeway.attempt") == clock.attempts
    assert sample(running, "relay_exhausted_total") == 1
    assert (await running.service.relaying.webhooks.read(hook.webhook_id)).disabled_at is None
