"""The service's clock is stepped an hour forward and back: times jump, and nothing else does.

The database's clock stays right: it decides on leases, tokens and retries.
"""

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.audit import audit
from service.consumer import Consumers
from service.db import Pool, create_pool
from service.delivery import Deliveries
from service.eventlog import EventLog
from tests.bridge import body, post
from tests.chaos.clock import Clock, missing
from tests.conftest import REQUIRE_ALL
from tests.consuming import acknowledge, call, make
from tests.logkeeping import Owner
from tests.reader import Reader, reading
from tests.receiver import Receiver
from tests.relaying import KEY
from tests.running import (
    ADMIN_TOKEN,
    Database,
    Process,
    environment,
    eventually,
    service_process,
)

STEP_S = 3600  # more than the test itself takes
STEPS = (STEP_S, -STEP_S, 0)
EACH = 3
RELAY = {
    "CAUSEWAY_SECRET_KEY": KEY,
    "CAUSEWAY_RELAY_ALLOW_HTTP": "true",
    "CAUSEWAY_RELAY_ALLOWED_NETWORKS": "127.0.0.0/8",
    "CAUSEWAY_HEARTBEAT_S": "0.5",
}


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    if (lacking := missing()) is not None:
        assert not REQUIRE_ALL, lacking
        pytest.skip(lacking)
    return Clock(tmp_path)


async def test_a_clock_that_is_stepped_moves_times_and_neither_order_nor_leases(
    clock: Clock, database: Database, owner: Owner, tmp_path: Path
) -> None:
    env = environment(DATABASE_URL=database.service_dsn, **RELAY, **clock.environment())
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(create_pool(database.service_dsn, max_size=1))
        receiver = stack.enter_context(Receiver())
        process = stack.enter_context(service_process(env, tmp_path / "log"))
        await make(process.url, "billing", lease_s=2)
        token = await _make_token(process.url, datetime.now(UTC) + timedelta(seconds=STEP_S / 2))
        await make(process.url, "idle")
        for path in ("good", "status/500"):
            await _add_webhook(process.url, f"{receiver.url}/{path}")
        async with (
            reading(process.url, "from=start") as live,
            reading(process.url, "consumer=billing") as holder,
        ):
            first = body()
            for number, step in enumerate(STEPS):
                clock.step(step)
                await _send_and_see(process, live, number, first)
                # The lease is renewed by clocks that do not step: it is never lost.
                seen = await holder.events(EACH)
                assert await acknowledge(process.url, seen[-1].id or "") == EACH * (number + 1)
                assert (await call(process.url, "GET", "/events", token=token)).status_code == 200
                if number == 0:
                    await _assert_nothing_waits_for_less_than_no_time(pool)
            await _assert_times(process, owner)
        head = EACH * len(STEPS)
        await eventually(lambda: len(_taken(receiver)) == head)
        await _assert_no_negative_figure(process)
        assert "loop failed" not in process.output()
        await audit(EventLog(pool), lambda _done, _total: None)


async def _assert_nothing_waits_for_less_than_no_time(pool: Pool) -> None:
    """All that waits was received by a clock that is ahead of the database's."""
    assert (await Consumers(pool, 100).read("idle")).furthest_behind.lag_s == 0
    for backlog in await Deliveries(pool).backlog():
        assert backlog.oldest_s in (None, 0)


def _taken(receiver: Receiver) -> set[int]:
    calls = [call for call in receiver.requests() if call.status == 200]
    return {int(call.headers["causeway-position"]) for call in calls}


async def _make_token(url: str, expires_at: datetime) -> str:
    wish = {"name": "short", "scope": "stream", "expires_at": expires_at.isoformat()}
    answer = await call(url, "POST", "/api/tokens", wish, token=ADMIN_TOKEN)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


async def _add_webhook(url: str, callback: str) -> None:
    answer = await call(url, "POST", "/api/webhooks", {"url": callback}, token=ADMIN_TOKEN)
    assert answer.status_code == 201, answer.text


async def _send_and_see(process: Process, live: Reader, number: int, first: bytes) -> None:
    """New events get the next positions and are streamed at once; a retry finds its own."""
    for n in range(EACH):
        payload = first if number == n == 0 else body()
        answer = await post(process.url, payload)
        assert (answer.status_code, (await live.event()).position) == (200, EACH * number + n + 1)
    assert (await post(process.url, first)).headers["causeway-position"] == "1"


async def _assert_times(process: Process, owner: Owner) -> None:
    """`received_at` is what the clock said, the watermark never falls, `since` misses nothing."""
    rows = await owner.fetch("SELECT received_at, watermark FROM causeway.event ORDER BY position")
    now = datetime.now(UTC)
    for number, step in enumerate(STEPS):
        for row in rows[EACH * number : EACH * (number + 1)]:
            assert abs((row["received_at"] - now).total_seconds() - step) < STEP_S / 3
    watermarks = [row["watermark"] for row in rows]
    assert watermarks == sorted(watermarks)
    for moment in (now - timedelta(seconds=60), now + timedelta(seconds=STEP_S / 2)):
        wanted = {n for n, row in enumerate(rows, 1) if row["received_at"] >= moment}
        since = moment.isoformat().replace("+00:00", "Z")
        async with reading(process.url, f"since={since}") as reader:
            got = {(await reader.event()).position}
            while max(got) < len(rows):
                got.add((await reader.event()).position)
        assert wanted <= got


async def _assert_no_negative_figure(process: Process) -> None:
    async with httpx2.AsyncClient() as client:
        exposed = (await client.get(f"{process.url}/metrics")).text
    samples = [it for family in text_string_to_metric_families(exposed) for it in family.samples]
    assert any(it.name == "causeway_delivery_seconds_sum" for it in samples)
    negative = [it for it in samples if it.value < 0]
    assert negative == []
