"""The retry schedule under a fake clock, from the first attempt to the last, two days later."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from service.backoff import ATTEMPTS, backoff
from service.db import Connection
from service.delivery import OPEN_AFTER, Claimed, Deliveries, Outlook, Room
from tests.logkeeping import sample
from tests.receiver import Receiver
from tests.relaying import RELAY, add_to, append, pass_time, states
from tests.running import WITHIN_S, Running

Start = Callable[..., Awaitable[Running]]
FAR_S = 120.0  # from a probe to the retry's own time: the test itself takes less
ROUNDING_S = 0.01  # durations are kept in milliseconds
LOOK = """
SELECT delivery.state, step, attempts, claim IS NULL AS is_recorded,
    extract(epoch FROM clock_timestamp())::float8 AS now_s,
    extract(epoch FROM due_at)::float8 AS due_s,
    extract(epoch FROM open_until)::float8 AS probe_s
FROM causeway.delivery
JOIN causeway.webhook USING (webhook_id)
"""
LAST = """
SELECT extract(epoch FROM started_at)::float8 AS began_s,
    extract(epoch FROM started_at)::float8 + duration_ms / 1000.0::float8 AS ended_s
FROM causeway.attempt
ORDER BY number DESC
LIMIT 1
"""


class Clock:
    """Time that passes by the test's will, and what the relay did in it.

    However long the test takes, the relay makes one attempt each time that time has passed.
    """

    def __init__(self, owner: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
        self._owner = owner
        self._passed_s = 0.0
        self._may_attempt = asyncio.Event()
        self._may_attempt.set()
        self.attempts = 0
        self.step = 0
        self.times_s: list[float] = []  # of the attempts on the schedule
        self.shortest_s: list[float] = []  # that the delivery waits after each of them, at least
        self.longest_s: list[float] = []  # and at the most
        self.probes = 0
        self.now_s = self.due_s = 0.0
        self.probe_s: float | None = None
        claim, may_attempt = Deliveries.claim, self._may_attempt

        async def claim_one(
            deliveries: Deliveries, rooms: Sequence[Room], **terms: float
        ) -> tuple[list[Claimed], Mapping[int, Outlook]]:
            if not may_attempt.is_set():
                rooms = [replace(room, room=0) for room in rooms]
            claimed, outlooks = await claim(deliveries, rooms, **terms)
            if claimed:
                may_attempt.clear()
            return claimed, outlooks

        monkeypatch.setattr(Deliveries, "claim", claim_one)

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
        self.now_s, self.due_s, self.probe_s = row["now_s"], row["due_s"], row["probe_s"]
        if row["step"] == self.step:
            self.probes += 1
        else:
            assert row["step"] == self.step + 1
            self.step = row["step"]
            [last] = await self._owner.fetch(LAST)
            self.times_s.append(last["began_s"] + self._passed_s)
            # It was recorded after its end, and before this look.
            self.shortest_s.append(self.due_s - self.now_s)
            self.longest_s.append(self.due_s - last["ended_s"])
        state: str = row["state"]
        return state

    async def pass_until(self, moment_s: float) -> float:
        """Let time pass up to a moment, and one more attempt be made; return how much it was."""
        seconds = max(0.0, moment_s - self.now_s)
        self._passed_s += seconds
        await pass_time(self._owner, seconds)
        self._may_attempt.set()
        return seconds


async def test_a_callback_that_always_fails_is_tried_for_two_days_then_given_up_and_kept(
    start: Start, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Receiver() as receiver:
        clock = Clock(owner, monkeypatch)
        running = await start(**RELAY)
        hook = await add_to(running, receiver.url + "/status/500")
        await append(running.service.eventlog)
        while await clock.attempt() == "pending":
            if clock.probe_s is not None and clock.due_s > clock.probe_s + FAR_S:
                # One probe of the open circuit comes before the retry's own time.
                due_s, looked_s, step = clock.due_s, clock.now_s, clock.step
                passed_s = await clock.pass_until(clock.probe_s)
                assert await clock.attempt() == "pending"
                assert clock.step == step
                # That stays where it was, but for what the probe took.
                later_s = clock.due_s - (due_s - passed_s)
                assert -ROUNDING_S <= later_s <= clock.now_s - looked_s + ROUNDING_S
            await clock.pass_until(clock.due_s)
        calls = await receiver.wait_for(clock.attempts)
    assert len(clock.times_s) == ATTEMPTS >= 12
    assert clock.probes >= ATTEMPTS - OPEN_AFTER - 1
    assert 24 * 3600 < clock.times_s[-1] - clock.times_s[0] < 48 * 3600
    for number, (before_s, after_s) in enumerate(pairwise(clock.times_s), 1):
        shortest_s, longest_s = backoff(number), backoff(number, 1.0)
        assert shortest_s is not None
        assert longest_s is not None
        assert after_s - before_s >= shortest_s - ROUNDING_S
        assert clock.shortest_s[number - 1] <= longest_s
        assert clock.longest_s[number - 1] >= shortest_s - ROUNDING_S
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
