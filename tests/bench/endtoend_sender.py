"""Sends webhooks at a fixed rate, whatever the server does: `... PORT RATE COUNT`.

An open loop: who is due is sent, on another connection if all are busy, so a slow server cannot
slow the sender and so hide its own delay. Answers with the monotonic times at which each was sent
and answered; the clock is the machine's, the same for all processes.
"""

import select
import socket
import sys
import time

from service.signature import HEADER, sign
from tests.bench.children import answer, commands
from tests.running import SECRET

BODY = '{{"content":{{"item_id":4568477,"user_uuid":"{user}","bench":{n}}},{rest}}}'
REST = '"timestamp":1612782588323,"type":"item.refreshed"'
USER = "9a95b38f-f98b-417a-988b-9d0d584893e7"
LAST_ANSWER_S = 60.0


class Sender:
    """The connections, and what each waits for."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._idle: list[int] = []
        self._busy: dict[int, int] = {}  # file descriptor to the number of the webhook
        self.answered: dict[int, float] = {}

    def send(self, n: int, request: bytes) -> float:
        """Send webhook `n`; return when."""
        number = self._idle.pop() if self._idle else self._connect()
        self._busy[number] = n
        now = time.monotonic()
        self._sockets[number].sendall(request)
        return now

    def take_answers(self, timeout_s: float) -> None:
        """Wait for answers until the first comes. Raises RuntimeError for one that is not 200."""
        for number, _ in self._epoll.poll(max(0.0, timeout_s)):
            received = self._sockets[number].recv(4096)
            if not received.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"a webhook was refused: {received!r}")
            self.answered[self._busy.pop(number)] = time.monotonic()
            self._idle.append(number)

    def _connect(self) -> int:
        sock = socket.create_connection(("127.0.0.1", self._port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets[sock.fileno()] = sock
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return sock.fileno()


def main() -> None:
    """Send COUNT webhooks at RATE a second when told to; say when each was sent and answered."""
    port, rate, count = (int(argument) for argument in sys.argv[1:])
    requests = [_request(n) for n in range(count)]
    sender = Sender(port)
    orders = commands()
    answer(ready=True)
    next(orders)
    began = time.monotonic()
    sent = []
    for n, request in enumerate(requests):
        due = began + n / rate
        while (left := due - time.monotonic()) > 0:
            sender.take_answers(left)
        sent.append(sender.send(n, request))
    deadline = time.monotonic() + LAST_ANSWER_S
    while len(sender.answered) < count and time.monotonic() < deadline:
        sender.take_answers(0.1)
    answer(sent=sent, answered=[sender.answered[n] for n in range(count)])


def _request(n: int) -> bytes:
    body = BODY.format(user=USER, n=n, rest=REST).encode()
    head = (
        "POST /webhooks/bridge HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"{HEADER}: {sign(body, (SECRET,))}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


if __name__ == "__main__":
    main()
