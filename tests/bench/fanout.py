"""How fast events reach many subscribers, and what an idle one costs.

The real app, stream, window, uvicorn server and sockets of one process; only the log is left out:
a feeder in the process puts frames, made before, into the window. Single: one event, and the next
one when every subscriber has written it, so nothing is joined. Bursts: 50 events at a time. The
clock runs from the order to publish until the last subscriber has received the last frame, and the
bytes received must be those of all frames. The subscribers are one Python process that only counts
bytes: it takes one of the cores, and its share of the kernel's work slows all contenders alike.

Memory is the growth of the server's resident memory while streams are opened that then stand idle;
the kernel's socket buffers are not in it. sse-starlette: a queue for each client, as documented.
Nchan (nginx, one worker, in C) where it is installed: its publisher is a third process.
"""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from service.embedded import EmbeddedPostgres
from tests.bench.children import Child, child
from tests.bench.databases import fresh_database
from tests.bench.effort import Effort
from tests.bench.fanout_nchan import find_module
from tests.bench.figures import Figure, Turn, alternate, at_least, at_most, figure, ratio
from tests.bench.readers import Readers, readers
from tests.running import STREAM_TOKEN, environment

BURST = 50
SILENCE_S = 60.0
QUIET_S = "600"  # no heartbeat of ours: the others' are rarer
WARM_STREAMS = 50  # opened before memory is first looked at
REQUEST = (
    "GET /stream HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n"
    f"Authorization: Bearer {STREAM_TOKEN}\r\n\r\n"
).encode()
OURS, SINGLE, BURSTS = "Causeway", "single events", f"bursts of {BURST}"


@dataclass
class _Contender:
    """A server that streams, and its subscribers."""

    server: Child
    readers: Readers
    subscribers: int
    loads: int = 0

    async def frames_per_s(self, count: int, burst: int, _round: int = 0) -> float:
        """Publish `count` events to all, `burst` at a time; return frames a second."""
        self.loads += 1
        mark = f"bench.end.{self.loads:04d}"
        expected = self.server.ask(count=count, burst=burst, mark=mark)["bytes"]
        before = self.readers.received
        began = time.perf_counter()
        self.server.tell()
        self.readers.read_until(mark.encode(), SILENCE_S)
        elapsed = time.perf_counter() - began
        self.server.reply()
        received = self.readers.received - before
        if received < expected * self.subscribers:
            raise RuntimeError(f"{received} bytes came, not {expected * self.subscribers}")
        return count * self.subscribers / elapsed

    def idle_kilobytes(self, count: int) -> float:
        """Open `count` more streams; return how much each made the server grow."""
        before = self.server.rss_bytes()
        self.readers.open(count)
        return (self.server.rss_bytes() - before) / count / 1000


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return frames a second and kilobytes a stream of each server, and their ratios."""
    memory = {}
    async with _contenders(postgres, WARM_STREAMS) as idle:
        for name, contender in idle.items():
            memory[name] = contender.idle_kilobytes(effort.idle_streams)
    async with _contenders(postgres, effort.subscribers) as contenders:
        turns: dict[str, Turn] = {}
        for name, contender in contenders.items():
            publish = contender.frames_per_s
            turns[f"{name}, {SINGLE}"] = partial(publish, effort.single_events, 1)
            turns[f"{name}, {BURSTS}"] = partial(publish, effort.bursts * BURST, BURST)
        rates = await alternate(effort.rounds, turns)
    return [*_rate_figures(rates), *_memory_figures(memory)]


def _rate_figures(rates: dict[str, list[float]]) -> Iterator[Figure]:
    targets = {f"{OURS}, {SINGLE}": at_least(100_000), f"{OURS}, {BURSTS}": at_least(1_000_000)}
    for kind in (SINGLE, BURSTS):
        of_kind = {name: values for name, values in rates.items() if name.endswith(kind)}
        for name, values in of_kind.items():
            yield figure(name, "frames/s", values, targets.get(name))
        ours, *others = of_kind.items()
        for name, values in others:
            yield ratio(f"{OURS} to {name}", ours[1], values)


def _memory_figures(memory: dict[str, float]) -> Iterator[Figure]:
    for name, kilobytes in memory.items():
        target = at_most(16) if name == OURS else None
        yield figure(f"{name}, memory of an idle stream", "kB", [kilobytes], target)


@asynccontextmanager
async def _contenders(
    postgres: EmbeddedPostgres, subscribers: int
) -> AsyncIterator[dict[str, _Contender]]:
    """All servers that can be measured here, each with its subscribers; ours first."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(fresh_database(postgres))
        env = environment(
            DATABASE_URL=database.service_dsn,
            CAUSEWAY_PORT="0",
            CAUSEWAY_STREAM_MAX_PER_TOKEN="20000",
            CAUSEWAY_HEARTBEAT_S=QUIET_S,
            CAUSEWAY_LOG_LEVEL="warning",
            CAUSEWAY_DRAIN_S="0",
        )
        contenders = {}
        for name, module in _modules().items():
            server = stack.enter_context(child(f"tests.bench.{module}", env))
            opened = stack.enter_context(readers(server.hello["port"], REQUEST, subscribers))
            contenders[name] = _Contender(server, opened, subscribers)
        yield contenders


def _modules() -> dict[str, str]:
    modules = {OURS: "fanout_causeway", "sse-starlette": "fanout_sse_starlette"}
    return modules | ({"Nchan": "fanout_nchan"} if find_module() else {})
