"""A storm of resumes: many subscribers come back at once, all some way behind.

One real process whose log holds what they have missed. Each asks with the same id, all together, as
after a restart, and is caught up when it has every event up to the head. Once what they missed is
in the window, once the window is far too small for it and they read the log. Meanwhile webhooks
come at a steady rate, as they did before the storm. Statements are those of the whole service, the
ones that it makes in the same time without a storm taken off.
"""

import asyncio
import time
from typing import Any

import asyncpg

from service.embedded import EmbeddedPostgres
from tests.bench.children import Child
from tests.bench.effort import Effort
from tests.bench.figures import Figure, at_most, figure, ratio
from tests.bench.loaded import Loaded, ask, ask_all, loaded, spread_figures
from tests.bench.probe import MIB

PROCESSES = 2
RATE = 100  # webhooks a second meanwhile
SMALL_WINDOW = "100"
PLACE = (
    "SELECT position || '.' || left(encode(link, 'hex'), 8) FROM causeway.event WHERE position = $1"
)


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return how long it takes, what it costs, and what webhooks feel of it."""
    within = await _storm(postgres, effort, "in the window")
    below = await _storm(postgres, effort, "below it", CAUSEWAY_WINDOW_EVENTS=SMALL_WINDOW)
    return [*within, *below]


async def _storm(
    postgres: EmbeddedPostgres, effort: Effort, name: str, **settings: str
) -> list[Figure]:
    async with loaded(postgres, **settings) as service:
        with service.offering(64) as offer, service.listening(PROCESSES) as listeners:
            place = await _fill(service, offer, effort.storm_events)
            quiet = await _quiet(service, offer, effort.storm_while_s)
            service.probe.forget_peak()
            at_rest, statements = service.probe.memory_bytes(), await service.probe.statements()
            began = time.monotonic()
            seconds, ended, ingest = await _resume(service, offer, listeners, place, effort)
            spent = await service.probe.statements() - statements
            more_mib = max(0, service.probe.peak_bytes() - at_rest) / MIB
            usual = quiet["statements"] / quiet["elapsed_s"] * (time.monotonic() - began)
            missed = sum(report["missed"] + report["ended"] for report in ended)
            if missed or len({(r["crc"], r["size"]) for r in ended}) > 1:
                raise RuntimeError(f"not every stream brought every event: {ended}")
    p99s = [ingest["statuses"]["200"]["p99_ms"]], [quiet["statuses"]["200"]["p99_ms"]]
    return [
        figure(f"{name}: until the last is caught up", "s", [seconds], at_most(10)),
        figure(
            f"{name}: SQL statements for each",
            "",
            [max(0.0, spent - usual) / effort.storm_subscribers],
        ),
        *spread_figures(f"{name}: sent to 200, before", quiet["statuses"]["200"]),
        *spread_figures(f"{name}: sent to 200, meanwhile", ingest["statuses"]["200"]),
        ratio(f"{name}: sent to 200, meanwhile to before, p99", *p99s),
        figure(f"{name}: more memory", "MiB", [more_mib], at_most(256)),
    ]


async def _fill(service: Loaded, offer: Child, count: int) -> str:
    """Append what they will have missed; return the id that they resume with."""
    taken = 0
    while taken < count + 1:
        done = await ask(offer, rate=4000, seconds=(count + 1 - taken) / 4000 + 0.01)
        taken += done["statuses"].get("200", {"count": 0})["count"]  # the rest was refused
    owner = await asyncpg.connect(service.database.owner_dsn)
    try:
        place: str = await owner.fetchval(PLACE, taken - count)
    finally:
        await owner.close()
    while await service.probe.head() < taken:
        await asyncio.sleep(0.05)
    return place


async def _quiet(service: Loaded, offer: Child, seconds: float) -> dict[str, Any]:
    before = await service.probe.statements()
    done = await ask(offer, rate=RATE, seconds=seconds)
    return {**done, "statements": await service.probe.statements() - before}


async def _resume(
    service: Loaded, offer: Child, listeners: list[Child], place: str, effort: Effort
) -> tuple[float, list[dict[str, Any]], dict[str, Any]]:
    """Let all come back; return the seconds until the last has all, their reports, the ingest."""
    head = await service.probe.end()
    each = effort.storm_subscribers // len(listeners)
    offering = asyncio.create_task(
        _offer_until(offer, effort.storm_while_s, over := asyncio.Event())
    )
    began = time.monotonic()
    await ask_all(listeners, open=each, path="/stream", after=place)
    done = await ask_all(listeners, until=head)
    seconds = max(report["at"] for report in done) - began
    over.set()
    ingest = await offering
    head = await service.probe.end()
    await ask_all(listeners, until=head)
    return seconds, await ask_all(listeners, report=True), ingest


async def _offer_until(offer: Child, seconds: float, over: asyncio.Event) -> dict[str, Any]:
    """Offer webhooks until `over`, a while at a time; return the while with the worst p99."""
    whiles: list[dict[str, Any]] = []
    while not over.is_set() or not whiles:
        whiles.append(await ask(offer, rate=RATE, seconds=seconds))
    return max(whiles, key=lambda done: float(done["statuses"]["200"]["p99_ms"]))
