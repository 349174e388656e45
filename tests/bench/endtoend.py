"""From a webhook sent to the event received, under load, beside the time of a bare commit.

One real process (`python -m service serve`), an open-loop sender in a process of its own (so that a
slow server cannot slow it down), and subscribers that note when each piece of each stream came and
look into it only afterwards. Every event counts once for each subscriber. The bare commit is one
row inserted and committed by asyncpg on the same Postgres while nothing else runs; its fdatasync
alone is shown too. An event cannot be received before its commit: the ratio says what everything
else costs.
"""

import re
import select
import socket
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import asyncpg

from service.embedded import EmbeddedPostgres
from tests.bench.children import child
from tests.bench.databases import fresh_database
from tests.bench.effort import Effort
from tests.bench.figures import Figure, at_most, percentiles
from tests.bench.machine import fdatasyncs
from tests.running import STREAM_TOKEN, Database, environment, service_process

REQUEST = (
    "GET /stream HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n"
    f"Authorization: Bearer {STREAM_TOKEN}\r\n\r\n"
).encode()
NUMBER = re.compile(rb'"bench":(\d+)}')
NUMBER_BYTES = 32  # more than one has: so much of a piece may belong to one that is cut in two
RECEIVE_BYTES = 256 * 1024
SILENCE_S = 60.0


class Recorder:
    """Streams whose bytes are kept with the time at which they came."""

    def __init__(self, port: int, count: int) -> None:
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._pieces: dict[int, list[bytes]] = {}
        self._times: dict[int, list[float]] = {}
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(REQUEST)
            number = sock.fileno()
            self._sockets[number] = sock
            self._pieces[number] = [sock.recv(RECEIVE_BYTES)]
            self._times[number] = [time.monotonic()]
            self._epoll.register(number, select.EPOLLIN)

    def record(self, count: int) -> None:
        """Receive until every stream has brought `count` events, in whichever order.

        Raises RuntimeError if nothing comes for SILENCE_S.
        """
        left = dict.fromkeys(self._sockets, count)
        rests = dict.fromkeys(self._sockets, b"")
        while any(wanted > 0 for wanted in left.values()):
            ready = self._epoll.poll(SILENCE_S)
            if not ready:
                raise RuntimeError(f"of {count} events the streams lack {left}")
            for number, _ in ready:
                piece = self._sockets[number].recv(RECEIVE_BYTES)
                if not piece:
                    raise RuntimeError("a stream ended")
                self._times[number].append(time.monotonic())
                self._pieces[number].append(piece)
                text, end = rests[number] + piece, 0
                for match in NUMBER.finditer(text):
                    left[number], end = left[number] - 1, match.end()
                rests[number] = text[end:][-NUMBER_BYTES:]

    def arrivals(self) -> Iterator[tuple[int, float]]:
        """Yield each event's number, and when it was whole; for each stream."""
        for number, pieces in self._pieces.items():
            ends = list(accumulate(map(len, pieces)))
            for match in NUMBER.finditer(b"".join(pieces)):
                yield int(match[1]), self._times[number][bisect_left(ends, match.end())]

    def close(self) -> None:
        """Close all streams."""
        self._epoll.close()
        for sock in self._sockets.values():
            sock.close()


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return p50 and p99 of the way of an event, of the answer, and of a bare commit."""
    async with fresh_database(postgres) as database:
        commits = await bare_commits(database, effort.commits)
        syncs = list(fdatasyncs(postgres.data_dir, effort.commits))
        answers, deliveries, pace = _run(database, effort)
    committed, received = (
        percentiles("a bare commit", commits),
        percentiles(f"sent to received by {effort.end_subscribers} subscribers", deliveries),
    )
    times = received[0].value / committed[0].value
    return [
        *received,
        *percentiles("sent to answered 200", answers),
        *committed,
        percentiles("fdatasync", syncs)[0],
        Figure("received to a bare commit, p50", times, "x", times, times),
        Figure("time of sending to that of its rate", pace, "x", pace, pace, at_most(1.05)),
    ]


def _run(database: Database, effort: Effort) -> tuple[list[float], list[float], float]:
    """Return the seconds to each answer, and to each event at each subscriber; and the pace.

    That is how long the sender took, to the time that its rate allows. Raises RuntimeError if an
    event came twice.
    """
    count = int(effort.end_rate * effort.end_s)
    with (
        _service(database) as port,
        child(
            "tests.bench.endtoend_sender",
            environment(),
            *map(str, (port, effort.end_rate, count)),
        ) as sender,
    ):
        recorder = Recorder(port, effort.end_subscribers)
        try:
            sender.tell()
            recorder.record(count)
            times = sender.reply()
            arrivals = list(recorder.arrivals())
        finally:
            recorder.close()
    sent, answered = times["sent"], times["answered"]
    if len(arrivals) != count * effort.end_subscribers:
        raise RuntimeError(f"{len(arrivals)} events came, not {count * effort.end_subscribers}")
    answers = [there - here for here, there in zip(sent, answered, strict=True)]
    pace = (sent[-1] - sent[0]) * effort.end_rate / count
    return answers, [arrived - sent[n] for n, arrived in arrivals], pace


@contextmanager
def _service(database: Database) -> Iterator[int]:
    env = environment(DATABASE_URL=database.service_dsn)
    with (
        tempfile.NamedTemporaryFile(prefix="causeway-endtoend-", suffix=".log") as log,
        service_process(env, Path(log.name)) as process,
    ):
        yield int(process.url.rpartition(":")[2])


async def bare_commits(database: Database, count: int) -> list[float]:
    """Return how long each single row took to be inserted and committed; seconds."""
    connection = await asyncpg.connect(database.owner_dsn)
    try:
        await connection.execute("CREATE TABLE bare (n bigint PRIMARY KEY, body bytea NOT NULL)")
        times = []
        for n in range(count):
            began = time.perf_counter()
            await connection.execute("INSERT INTO bare (n, body) VALUES ($1, $2)", n, bytes(300))
            times.append(time.perf_counter() - began)
        return times
    finally:
        await connection.close()
