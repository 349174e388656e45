"""Offers webhooks, whatever the server does with them: `... PORT CONNECTIONS`.

An open loop: each webhook is due at a moment of its own, and sent on a connection that is free; one
that finds all of them busy is not sent at all. With `rate` null it is a closed loop: the next is
sent when one is answered, which finds the most that is taken. Answers with what became of them, by
status. Each body says when it was made, by the machine's clock, which is the same for all.
"""

import select
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import Iterator
from itertools import count, islice
from statistics import quantiles
from typing import Any

from service.signature import HEADER, sign
from tests.bench.children import answer, commands
from tests.running import SECRET

BODY = '{{"content":{{"item_id":{item},"user_uuid":"{user}","bench":{n},"at":{at:.6f}}},{rest}}}'
REST = '"timestamp":1612782588323,"type":"{type}"'
USER = "9a95b38f-f98b-417a-988b-9d0d584893e7"
RARE = "item.refreshed"  # one in RARE_OF; the others are of the type COMMON
COMMON = "item.account.updated"
RARE_OF = 50
LAST_ANSWER_S = 60.0
ONSET_S = 1.0  # a server may take so long to see that a burst is none
REACH = 100  # sent in one turn at the most, before answers are looked at


class Offer:
    """The connections, what each waits for, and the delays of what was answered."""

    def __init__(self, port: int, connections: int) -> None:
        self._port = port
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._idle: deque[int] = deque()  # the longest idle first: all of them are used
        self._sent_at: dict[int, float] = {}  # by file descriptor
        self._delays: dict[int, array[float]] = {}  # by status
        self._steady: dict[int, array[float]] = {}  # of these, what was sent after ONSET_S
        self._steady_from = 0.0
        self._begun: dict[int, bytes] = {}  # answers that are not here as a whole
        self._failed = 0
        for _ in range(connections):
            self._connect()

    def run(self, requests: Iterator[bytes], rate: float | None, seconds: float) -> dict[str, Any]:
        """Offer `requests` for `seconds`, and at least one; return what became of them."""
        self._delays, self._steady, self._failed = {}, {}, 0
        began, due, sent = time.monotonic(), 0, 0
        self._steady_from = began + ONSET_S
        while (now := time.monotonic()) < began + seconds or not sent:
            expected = int(rate * (now - began)) if rate else due + len(self._idle)
            for _ in range(min(expected - due, len(self._idle), REACH)):
                self._send(next(requests))
                sent += 1
                due += 1
            if not self._idle:
                due = expected
            next_s = began + (due + 1) / rate - time.monotonic() if rate else 1.0
            self._take_answers(max(0.0, min(next_s, began + seconds - now)))
        elapsed = time.monotonic() - began
        deadline = time.monotonic() + LAST_ANSWER_S
        while self._sent_at and time.monotonic() < deadline:
            self._take_answers(0.1)
        return self._result(sent, due, elapsed)

    def _result(self, sent: int, due: int, elapsed: float) -> dict[str, Any]:
        return {
            "due": due,
            "sent": sent,
            "elapsed_s": elapsed,
            "unanswered": len(self._sent_at),
            "failed": self._failed,
            "statuses": {status: spread(delays) for status, delays in self._delays.items()},
            "steady": {status: spread(delays) for status, delays in self._steady.items()},
        }

    def _connect(self) -> None:
        sock = socket.create_connection(("127.0.0.1", self._port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets[sock.fileno()] = sock
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._idle.append(sock.fileno())

    def _send(self, request: bytes) -> None:
        number = self._idle.popleft()
        self._sent_at[number] = time.monotonic()
        self._sockets[number].send(request)

    def _take_answers(self, timeout_s: float) -> None:
        for number, _ in self._epoll.poll(timeout_s):
            try:
                piece = self._sockets[number].recv(4096)
            except ConnectionError:
                piece = b""
            received = self._begun.pop(number, b"") + piece
            if piece and not _is_whole(received):
                self._begun[number] = received
                continue
            sent_at = self._sent_at.pop(number, None)
            if not piece or b"\r\nconnection: close\r\n" in received:
                self._epoll.unregister(number)
                self._sockets.pop(number).close()
                self._connect()
            else:
                self._idle.append(number)
            if piece and sent_at is not None:
                status, delay = int(received[9:12]), time.monotonic() - sent_at
                self._delays.setdefault(status, array("d")).append(delay)
                if sent_at >= self._steady_from:
                    self._steady.setdefault(status, array("d")).append(delay)
            elif sent_at is not None:
                self._failed += 1


def _is_whole(received: bytes) -> bool:
    """True if an answer is here: an empty one, or one with an object as JSON."""
    return received.endswith(b"}") or b"content-length: 0\r\n" in received


def spread(delays: "array[float]") -> dict[str, float]:
    """Return how many there were, and their percentiles in milliseconds."""
    cuts = quantiles([*delays, delays[0]], n=100, method="inclusive")
    of = {"p50_ms": cuts[49], "p99_ms": cuts[98], "max_ms": max(delays)}
    return {"count": len(delays), **{name: 1000 * value for name, value in of.items()}}


def requests() -> Iterator[bytes]:
    """Yield distinct signed webhooks, for ever; one in RARE_OF is of the type RARE."""
    for n in count():
        kind = COMMON if n % RARE_OF else RARE
        rest = REST.format(type=kind)
        body = BODY.format(
            item=4_000_000 + n % 1000, user=USER, n=n, at=time.monotonic(), rest=rest
        ).encode()
        head = (
            "POST /webhooks/bridge HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"{HEADER}: {sign(body, (SECRET,))}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        yield head.encode() + body


def main() -> None:
    """Offer as each command says: `rate` (null: as fast as they are taken), `seconds`.

    `made`: that many are made and signed before the clock starts.
    """
    port, connections = map(int, sys.argv[1:])
    offer, fresh = Offer(port, connections), requests()
    answer(ready=True)
    for command in commands():
        made = list(islice(fresh, command.get("made", 0)))
        source = iter(made) if made else fresh
        answer(**offer.run(source, command["rate"], command["seconds"]))


if __name__ == "__main__":
    main()
