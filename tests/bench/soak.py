"""Half of the most, for long: does memory stay flat, is anything left behind, is anything lost?

One real process with everything attached: subscribers of whom some are slow, five named consumers
that acknowledge, five callbacks of which one answers 500 and one hangs (each is owed one event in
fifty). The most that is taken is measured with all of them attached, and half of it is then offered
in an open loop. Sender, subscribers, receiver, service and Postgres share the machine's cores.

Memory is looked at sixty times. Delays are those of each webhook, and of each event at ten
subscribers, by the clients' clock; and those of all that the service's own histograms counted. The
first subscriber is looked at event by event, the others must have brought the same bytes. A slow
one must have been told that it fell behind, and still be there at the end.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

import httpx2

from service.embedded import EmbeddedPostgres
from tests.bench.children import Child
from tests.bench.effort import Effort
from tests.bench.figures import Figure, at_most, figure, ratio
from tests.bench.loaded import Loaded, ask, ask_all, loaded, most_taken, spread_figures
from tests.bench.offer import RARE
from tests.bench.probe import MIB, Use, quantile_ms
from tests.receiver import Receiver
from tests.running import ADMIN_TOKEN

PROCESSES = 2
SLOW_SHARE = 50  # one subscriber in so many
CONSUMERS = tuple(f"bench-{number}" for number in range(5))
CALLBACKS = ("/good/1", "/good/2", "/good/3", "/status/500", "/hang-head")
SHARE = 0.5
CONNECTIONS = 1000  # enough for the webhooks of a third of a second
SAMPLES = 60
ACK_EVERY_S = 0.5
LOOK_S = 0.2
RESTING_LOOKS = 4
GONE_S = 120.0  # until a stream whose client went is gone as well
TIMED = 5  # streams of each process whose events are timed
MOST_S = 4.0
KEY = "bench-0123456789-0123456789-0123456789"


@dataclass(slots=True)
class Seen:
    """What was seen while it ran."""

    most: float
    offered: dict[str, Any] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)
    uses: dict[str, Use] = field(default_factory=dict)
    memory: list[int] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    accepted: int = 0
    lag: float = 0.0


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return delays, memory, and what was left behind."""
    async with _running(postgres) as service:
        base = await _at_rest(service)
        with Receiver() as receiver, service.listening(PROCESSES) as listeners:
            async with _attached(service, receiver, listeners, effort):
                with service.offering() as closed:
                    seen = Seen(await most_taken(closed, min(MOST_S, effort.soak_s / 4)))
                await _caught_up(service, listeners)
                with service.offering(CONNECTIONS) as offer:
                    await _soak(service, offer, listeners, effort, seen)
        seen.uses["after"] = await _settled(service, base)
    return [*_figures(seen), *_left_figures(seen, base)]


@asynccontextmanager
async def _running(postgres: EmbeddedPostgres) -> AsyncIterator[Loaded]:
    settings = {
        "CAUSEWAY_SECRET_KEY": KEY,
        "CAUSEWAY_RELAY_ALLOW_HTTP": "true",
        "CAUSEWAY_RELAY_ALLOWED_NETWORKS": "127.0.0.0/8",
        "CAUSEWAY_HEARTBEAT_S": "600",  # a comment would be a difference between streams
    }
    async with loaded(postgres, **settings) as service:
        yield service


@asynccontextmanager
async def _attached(
    service: Loaded, receiver: Receiver, listeners: list[Child], effort: Effort
) -> AsyncIterator[None]:
    """Subscribers, consumers that acknowledge, and callbacks; the latter two are deleted again."""
    slow = max(1, effort.soak_subscribers // SLOW_SHARE)
    each = (effort.soak_subscribers - slow) // PROCESSES
    headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    async with httpx2.AsyncClient(
        base_url=service.process.url, headers=headers, timeout=60
    ) as client:
        for name in CONSUMERS:
            (await client.put(f"/consumers/{name}", json={})).raise_for_status()
        wishes = [{"url": receiver.url + path, "types": [RARE]} for path in CALLBACKS]
        made = [await client.post("/api/webhooks", json=wish) for wish in wishes]
        await ask_all(listeners, open=each, path="/stream", timed=TIMED)
        for name in CONSUMERS:
            await ask(listeners[0], open=1, path=f"/stream?consumer={name}")
        await ask(listeners[0], open=0, path="", slow=slow)
        acking = asyncio.create_task(_acknowledge(client, service), name="acknowledge")
        try:
            yield
        finally:
            acking.cancel()
            with suppress(asyncio.CancelledError):
                await acking
            for answer in made:
                webhook = answer.raise_for_status().json()["id"]
                (await client.delete(f"/api/webhooks/{webhook}")).raise_for_status()
            for name in CONSUMERS:
                (await client.delete(f"/consumers/{name}")).raise_for_status()


async def _acknowledge(client: httpx2.AsyncClient, service: Loaded) -> None:
    """Acknowledge for each consumer what was the head a while ago, for ever."""
    while True:
        head = await service.probe.head()
        await asyncio.sleep(ACK_EVERY_S)
        for name in CONSUMERS:
            answer = await client.post(f"/consumers/{name}/ack", json={"position": head})
            if answer.status_code not in (200, 409):  # 409: it was not sent as far as that yet
                answer.raise_for_status()


async def _caught_up(service: Loaded, listeners: list[Child]) -> None:
    """Wait until every subscriber but the slow ones has all there is."""
    await ask_all(listeners, until=await service.probe.end())


async def _soak(
    service: Loaded, offer: Child, listeners: list[Child], effort: Effort, seen: Seen
) -> None:
    await ask_all(listeners, report=True)  # the delays until now are not of the soak
    probe = service.probe
    seen.metrics.append(await probe.metrics())
    seen.uses["begin"] = await probe.use()
    offering = asyncio.create_task(ask(offer, rate=SHARE * seen.most, seconds=effort.soak_s))
    for number in range(SAMPLES):
        await asyncio.sleep(effort.soak_s / SAMPLES)
        seen.memory.append(probe.memory_bytes())
        if number == SAMPLES // 2:
            seen.uses["middle"] = await probe.use()
    seen.metrics.append(await probe.metrics())
    seen.uses["end"] = await probe.use()
    seen.lag = seen.metrics[-1]["causeway_tail_lag_events"]
    seen.offered = await offering
    await asyncio.sleep(1)
    await _caught_up(service, listeners)
    seen.reports = await ask_all(listeners, report=True)
    seen.accepted = seen.offered["statuses"]["200"]["count"]


async def _at_rest(service: Loaded) -> Use:
    """Return what is used once it stays the same: a session that was closed is seen for a while."""
    use, looks = await service.probe.use(), 0
    for _ in range(round(GONE_S / LOOK_S)):
        await asyncio.sleep(LOOK_S)
        before, use = use, await service.probe.use()
        is_same = replace(before, memory_bytes=0) == replace(use, memory_bytes=0)
        looks = looks + 1 if is_same else 0
        if looks == RESTING_LOOKS:
            break
    return use


async def _settled(service: Loaded, base: Use) -> Use:
    """Return what is used when all clients have gone: at the base, or after GONE_S."""
    for _ in range(round(GONE_S / LOOK_S)):
        use = await service.probe.use()
        if use.tasks <= base.tasks and use.files - use.sessions <= base.files - base.sessions:
            break
        await asyncio.sleep(LOOK_S)
    return use


def _figures(seen: Seen) -> Iterator[Figure]:
    before, after = seen.metrics
    third = SAMPLES // 3
    middle, last = mean(seen.memory[third : 2 * third]), mean(seen.memory[2 * third :])
    offered = seen.offered
    delays = max((r["delays"] for r in seen.reports), key=lambda delays: float(delays["p99_ms"]))
    yield figure("the most that is taken, all attached", "webhooks/s", [seen.most])
    yield figure("accepted in the soak", "webhooks/s", [seen.accepted / offered["elapsed_s"]])
    not_taken = offered["sent"] - seen.accepted
    yield figure("sent and not accepted", "webhooks", [not_taken], at_most(0))
    yield figure(
        "not sent, every connection waited", "webhooks", [offered["due"] - offered["sent"]]
    )
    yield from spread_figures("sent to answered 200", offered["statuses"]["200"])
    yield from spread_figures("sent to received", delays)
    for percent in (50, 99):
        for what, name, labels in (
            ("a 200, by /metrics", "causeway_webhook_response_seconds", ""),
            ("received to written, by /metrics", "causeway_delivery_seconds", 'via="stream"'),
        ):
            value = quantile_ms(before, after, name, percent, labels)
            yield figure(f"{what}, p{percent}", "ms", [value])
    yield figure("memory, last third", "MiB", [last / MIB])
    yield ratio("memory, last third to middle third", [last], [middle], at_most(1.05))
    yield figure("events behind at the end", "events", [seen.lag], at_most(1000))
    yield from _arrival_figures(seen)


def _arrival_figures(seen: Seen) -> Iterator[Figure]:
    """Every accepted event at every subscriber; the slow ones told, and still there."""
    total = {
        key: sum(report[key] for report in seen.reports) for key in ("unlike", "missed", "ended")
    }
    first = {(report["crc"], report["size"], report["last"]) for report in seen.reports}
    fell = sum(report["fell_behind"] for report in seen.reports)
    yield figure("streams with other bytes", "", [total["unlike"] + len(first) - 1], at_most(0))
    yield figure("holes in a stream", "", [total["missed"]], at_most(0))
    yield figure("streams that ended", "", [total["ended"]], at_most(0))
    yield figure("slow subscribers fell behind, times", "", [fell])


def _left_figures(seen: Seen, base: Use) -> Iterator[Figure]:
    for name in ("begin", "middle", "end"):
        use = seen.uses[name]
        yield figure(f"{name}: tasks", "", [use.tasks])
        yield figure(f"{name}: files", "", [use.files])
        yield figure(f"{name}: Postgres sessions", "", [use.sessions])
    after = seen.uses["after"]
    left = {
        "tasks": after.tasks - base.tasks,
        "files, sessions aside": (after.files - after.sessions) - (base.files - base.sessions),
    }
    for what, count in left.items():
        yield figure(f"left when all have gone: {what}", "", [max(0, count)], at_most(0))
