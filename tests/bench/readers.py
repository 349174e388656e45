"""Subscribers that only count: many SSE connections in one thread, one epoll, no parsing.

They share the machine's cores with the server, so they do as little as Python can: receive into one
buffer, add up the bytes, keep the last few of each connection to see its end.
"""

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

BUFFER_BYTES = 512 * 1024
TAIL_BYTES = 64  # the end of a stream's last frame: a mark stands in it
OPEN_S = 60.0


class Readers:
    """Open SSE connections to 127.0.0.1. `received` counts all their bytes since the start."""

    def __init__(self, port: int, request: bytes, count: int) -> None:
        self._port = port
        self._request = request
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._tails: dict[int, bytes] = {}
        self._buffer = bytearray(BUFFER_BYTES)
        self.received = 0
        self.open(count)

    def open(self, count: int) -> None:
        """Open `count` more. Raises RuntimeError if one is not answered with a stream."""
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", self._port), timeout=OPEN_S)
            sock.sendall(self._request)
            head = b""
            while b"\r\n\r\n" not in head:
                received = sock.recv(4096)
                head += received
                if not received or not head.startswith(b"HTTP/1.1 200 "[: len(head)]):
                    raise RuntimeError(f"no stream at port {self._port}: {head!r}")
            sock.setblocking(False)
            self._sockets[sock.fileno()] = sock
            self._tails[sock.fileno()] = b""
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def read_until(self, mark: bytes, timeout_s: float) -> None:
        """Read until each connection's newest bytes have `mark` in them.

        Raises RuntimeError if a connection ends, or if nothing comes for `timeout_s`.
        """
        waiting = set(self._sockets)
        buffer, view = self._buffer, memoryview(self._buffer)
        while waiting:
            ready = self._epoll.poll(timeout_s)
            if not ready:
                raise RuntimeError(f"{len(waiting)} readers still wait for {mark!r}")
            for number, _ in ready:
                size = self._sockets[number].recv_into(buffer)
                if not size:
                    raise RuntimeError("a stream ended")
                self.received += size
                if size >= TAIL_BYTES:
                    tail = bytes(view[size - TAIL_BYTES : size])
                else:
                    tail = self._tails[number][size - TAIL_BYTES :] + bytes(view[:size])
                self._tails[number] = tail
                if mark in tail:
                    waiting.discard(number)

    def close(self) -> None:
        """Close all connections."""
        self._epoll.close()
        for sock in self._sockets.values():
            sock.close()


@contextmanager
def readers(port: int, request: bytes, count: int) -> Iterator[Readers]:
    """Open `count` connections until the end of the block."""
    opened = Readers(port, request, count)
    try:
        yield opened
    finally:
        opened.close()
