"""Ten thousand subscribers that wait: what they cost, and how soon all of them hear of an event.

One real process with its usual heartbeats; the subscribers are two processes that read what comes.
Memory is what the service grew by while they connected (the kernel's buffers are not in it), the
processor's share is measured while nothing but heartbeats is sent. Then one webhook a second comes:
each event counts once for each subscriber, from its making to its arrival, and so does its 200.
All share the machine's cores.
"""

import asyncio
import time

from service.embedded import EmbeddedPostgres
from tests.bench.effort import Effort
from tests.bench.figures import Figure, at_most, figure
from tests.bench.loaded import ask, ask_all, loaded, spread_figures

PROCESSES = 2
RATE = 1.0
WARM = 50  # streams that are open before memory is looked at


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return the cost of a subscriber, and the delays of events to all of them."""
    async with loaded(postgres) as service:
        probe, each = service.probe, effort.idle_subscribers // PROCESSES
        with service.offering(16) as offer, service.listening(PROCESSES) as listeners:
            await ask(listeners[0], open=WARM, path="/stream")
            at_rest, began = probe.memory_bytes(), time.monotonic()
            await ask_all(listeners, open=each, path="/stream", timed=each)
            connected_s = time.monotonic() - began
            grown = max(0, probe.memory_bytes() - at_rest)  # of a few streams: may be none
            kilobytes = grown / effort.idle_subscribers / 1000
            await asyncio.sleep(1)
            used, began = probe.processor_s(), time.monotonic()
            await asyncio.sleep(effort.idle_s)
            share = (probe.processor_s() - used) / (time.monotonic() - began)
            done = await ask(offer, rate=RATE, seconds=effort.idle_s + 1.5)
            await ask_all(listeners, until=await probe.end())
            reports = await ask_all(listeners, report=True)
    heard = [report["delays"] for report in reports]
    expected = done["statuses"]["200"]["count"] * effort.idle_subscribers
    if sum(delays["count"] for delays in heard) != expected:
        raise RuntimeError(f"not every subscriber heard of every event: {reports}")
    slower = max(heard, key=lambda delays: delays["p99_ms"])
    return [
        figure(f"{effort.idle_subscribers} connected in", "s", [connected_s]),
        figure("memory of one", "kB", [kilobytes], at_most(16)),
        figure("processor, heartbeats alone", "%", [100 * share], at_most(10)),
        *spread_figures("sent to received by all", slower, at_most(1000)),
        *spread_figures("sent to answered 200", done["statuses"]["200"]),
    ]
