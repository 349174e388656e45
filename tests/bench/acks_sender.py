"""Acknowledges one position after another: `... PORT CONSUMER CONNECTIONS POSITIONS`.

Each connection sends its next acknowledgement when it has the answer to the one before. Told for
how many seconds, it answers how many were accepted in which time. Anything but a 200 ends it.
"""

import select
import socket
import sys
import time

from tests.bench.children import answer, commands
from tests.running import STREAM_TOKEN

ANSWER_S = 60.0


class Sender:
    """The connections. Positions go round: at the end of the log they begin anew."""

    def __init__(self, port: int, consumer: str, connections: int, positions: int) -> None:
        self._head = (
            f"POST /consumers/{consumer}/ack HTTP/1.1\r\nHost: bench\r\n"
            f"Authorization: Bearer {STREAM_TOKEN}\r\nContent-Type: application/json\r\n"
        )
        self._positions = positions
        self._sent = 0
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._pieces: dict[int, bytes] = {}
        for _ in range(connections):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets[sock.fileno()] = sock
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def run(self, seconds: float) -> tuple[int, float]:
        """Acknowledge for `seconds`; return how many were accepted, and the time of the last."""
        began = time.monotonic()
        self._pieces = dict.fromkeys(self._sockets, b"")
        waiting, accepted = len(self._sockets), 0
        for number in self._sockets:
            self._send(number)
        while waiting:
            ready = self._epoll.poll(ANSWER_S)
            if not ready:
                raise RuntimeError(f"{waiting} acknowledgements were not answered")
            is_over = time.monotonic() - began > seconds
            for number, _ in ready:
                if not self._is_answered(number):
                    continue
                accepted += 1
                if is_over:
                    waiting -= 1
                else:
                    self._send(number)
        return accepted, time.monotonic() - began

    def _send(self, number: int) -> None:
        self._sent += 1
        body = f'{{"position":{1 + self._sent % self._positions}}}'
        request = f"{self._head}Content-Length: {len(body)}\r\n\r\n{body}"
        self._sockets[number].sendall(request.encode())

    def _is_answered(self, number: int) -> bool:
        """Take what has come; True if it is a whole answer. Raises RuntimeError for a refusal."""
        received = self._pieces[number] + self._sockets[number].recv(4096)
        is_whole = received.endswith(b"}")
        self._pieces[number] = b"" if is_whole else received
        if not received or (is_whole and not received.startswith(b"HTTP/1.1 200 ")):
            raise RuntimeError(f"an acknowledgement was refused: {received!r}")
        return is_whole


def main() -> None:
    """Acknowledge for as long as each command says."""
    port, consumer, connections, positions = sys.argv[1:]
    sender = Sender(int(port), consumer, int(connections), int(positions))
    answer(ready=True)
    for command in commands():
        accepted, elapsed_s = sender.run(command["seconds"])
        answer(accepted=accepted, elapsed_s=elapsed_s)


if __name__ == "__main__":
    main()
