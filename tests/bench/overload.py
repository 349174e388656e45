"""What happens when four times as many webhooks come as can be taken.

One real process, and webhooks offered in an open loop on many connections: each is sent at its
moment, whatever became of those before it (one that finds every connection busy is not sent, and
counts as such). First the most that is taken is found; then come 0.8 times as many, four times as
many, and 0.8 times again a moment later. Delays count from the moment of sending. Half a second of
overload is a burst, which the queue takes: what is sent in its first second is a figure of its own.

Twice: with the settings as they are, where the processor is the bound (the sender, the service and
Postgres share two cores, so less than four times may really be sent: the table says how much), and
with commits of ten events, where the database is.
"""

import asyncio
import math
from typing import Any

from service.embedded import EmbeddedPostgres
from tests.bench.children import Child
from tests.bench.effort import Effort
from tests.bench.figures import Figure, at_least, at_most, figure, ratio
from tests.bench.loaded import ask, loaded, most_taken, spread_figures
from tests.bench.probe import MIB

BELOW, ABOVE = 0.8, 4.0
SETTLE_S = 0.6


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return delays of what is accepted and refused, memory, and how it is afterwards."""
    processor = await _overload(postgres, effort, "processor", 256)
    commits = await _overload(postgres, effort, "commits", 16, CAUSEWAY_APPEND_BATCH_EVENTS="10")
    return [*processor, *commits]


async def _overload(
    postgres: EmbeddedPostgres, effort: Effort, name: str, waiting: int, **settings: str
) -> list[Figure]:
    async with loaded(postgres, **settings) as service:
        with service.offering(waiting) as closed:  # fewer than two batches: no overload
            most = await most_taken(closed, effort.overload_s)
        with service.offering(effort.overload_connections) as offer:
            before = await _offer(offer, BELOW * most, effort.overload_s)
            service.probe.forget_peak()
            at_rest = service.probe.memory_bytes()
            during = await _offer(offer, ABOVE * most, effort.overload_s)
            more_mib = max(0, service.probe.peak_bytes() - at_rest) / MIB
            after = await _offer(offer, BELOW * most, effort.overload_s)
    sent = [during["sent"] / during["elapsed_s"] / most]
    return [
        figure(f"{name}: the most that is taken", "webhooks/s", [most]),
        figure(f"{name}: really sent in overload, to that", "x", sent),
        *_figures(name, before, during, after, most),
        figure(f"{name}: more memory in overload", "MiB", [more_mib], at_most(64)),
    ]


async def _offer(offer: Child, rate: float, seconds: float) -> dict[str, Any]:
    done = await ask(offer, rate=rate, seconds=seconds, made=math.ceil(rate * seconds * 1.2))
    if done["unanswered"] or done["failed"] or set(done["statuses"]) - {"200", "503"}:
        raise RuntimeError(f"not every webhook got its 200 or 503: {done}")
    await asyncio.sleep(SETTLE_S)
    return done


def _figures(
    name: str, before: dict[str, Any], during: dict[str, Any], after: dict[str, Any], most: float
) -> list[Figure]:
    nothing = {"count": 0, "p50_ms": 0.0, "p99_ms": 0.0, "max_ms": 0.0}
    accepted = [done["statuses"]["200"] for done in (before, during, after)]
    refused = [done["statuses"].get("503", nothing) for done in (before, during, after)]
    steady = during["steady"].get("200", nothing)
    taken = accepted[1]["count"] / during["elapsed_s"] / most
    return [
        figure(f"{name}: refused in overload", "%", [100 * refused[1]["count"] / during["sent"]]),
        figure(
            f"{name}: refused after it",
            "%",
            [100 * refused[2]["count"] / after["sent"]],
            at_most(1),
        ),
        *spread_figures(f"{name}: accepted at {BELOW:g}", accepted[0]),
        figure(f"{name}: accepted as it begins, the slowest", "ms", [accepted[1]["max_ms"]]),
        *spread_figures(f"{name}: accepted in overload", steady),
        *spread_figures(f"{name}: refused in overload", refused[1], at_most(250)),
        *spread_figures(f"{name}: accepted after it", accepted[2]),
        ratio(
            f"{name}: accepted in overload to at {BELOW:g}, p99",
            [steady["p99_ms"]],
            [accepted[0]["p99_ms"]],
            at_most(5),
        ),
        figure(f"{name}: taken in overload, to the most", "x", [taken], at_least(0.5)),
    ]
