"""Many subscribers in a process of their own: `... PORT`. Told to open streams, and what came.

The first stream of all is looked at event by event: are its positions dense? The others must bring
the same events: CRC-32 and size of their bytes are compared with those of the first. How late
events are is read from their bodies, which say when they were made, for as many streams as `timed`.
Slow streams are read a little now and then.
"""

import json
import os
import re
import select
import socket
import sys
import time
from array import array
from collections.abc import Iterator
from typing import Any
from zlib import crc32

from tests.bench.children import answer
from tests.bench.offer import spread
from tests.running import STREAM_TOKEN

RECEIVE_BYTES = 256 * 1024
SLOW_BYTES = 64 * 1024
SLOW_EVERY_S = 0.25  # in 30 s more than the kernel holds for it: less is ended as hanging
POSITION = re.compile(rb"^id: (\d+)\.", re.MULTILINE)
SENT_AT = re.compile(rb'"at":(\d+\.\d+)')
PATIENCE_S = 120.0


class Stream:
    """One stream: how far into a chunk of HTTP it is, and what its chunks had in them."""

    __slots__ = ("_begun", "_head", "_left", "chunks", "crc", "is_open", "size", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_open = False
        self.crc = self.size = self.chunks = 0
        self._head = b""  # of the answer, or of a chunk
        self._left = 0  # of the chunk, its line end included
        self._begun = b""  # the chunk so far

    def take(self, data: bytes) -> Iterator[bytes]:
        """Take what was received; yield each chunk that is whole."""
        if not self.is_open:
            head, end, data = (self._head + data).partition(b"\r\n\r\n")
            if not end:
                self._head = head
                return
            if not head.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"no stream: {head!r}")
            self.is_open, self._head = True, b""
        while data:
            if not self._left:
                line, end, rest = (self._head + data).partition(b"\r\n")
                if not end:
                    self._head = line
                    return
                self._head, self._begun, data = b"", b"", rest
                self._left = int(line, 16) + 2
            piece, data = data[: self._left], data[self._left :]
            self._left -= len(piece)
            self._begun += piece
            if not self._left:
                yield self._begun[:-2]

    def count(self, chunk: bytes) -> None:
        """Count a chunk; only events must be the same in all streams."""
        if b"\ndata: " in chunk:
            self.crc = crc32(chunk, self.crc)
            self.size += len(chunk)
        self.chunks += 1


class Listener:
    """All streams of the process."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._epoll = select.epoll()
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        self._plain: dict[int, Stream] = {}
        self._slow: list[Stream] = []
        self._slow_at = time.monotonic()
        self._fell_behind = 0
        self._timed: set[int] = set()
        self._delays = array("d")
        self._ended = 0
        self._first: int | None = None
        self._positions = [0, 0]  # the first and the last that the first stream brought
        self._missed = 0

    def open(self, count: int, path: str, after: str = "", timed: int = 0) -> None:
        """Open `count` streams at once: connected one after the other, then asked for together."""
        more = f"Last-Event-ID: {after}\r\n" if after else ""
        opened = [self._connect() for _ in range(count)]
        for stream in opened:
            stream.sock.sendall(_request(path, more))
            self._plain[stream.sock.fileno()] = stream
            self._epoll.register(stream.sock.fileno(), select.EPOLLIN)
        if opened and self._first is None:
            self._first = opened[0].sock.fileno()
        self._timed |= {stream.sock.fileno() for stream in opened[:timed]}

    def open_slow(self, count: int) -> None:
        """Open `count` streams that are read rarely."""
        for _ in range(count):
            stream = self._connect(buffer_bytes=SLOW_BYTES)
            stream.sock.sendall(_request("/stream?control=1", ""))
            stream.sock.setblocking(False)
            self._slow.append(stream)

    def _connect(self, buffer_bytes: int | None = None) -> Stream:
        sock = socket.socket()
        if buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.settimeout(PATIENCE_S)
        sock.connect(("127.0.0.1", self._port))
        return Stream(sock)

    def serve(self) -> None:
        """Read and answer commands until their end."""
        commands = b""
        while True:
            if self._read(0.2):
                piece = os.read(sys.stdin.fileno(), 65536)
                if not piece:
                    return
                *lines, commands = (commands + piece).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))

    def _obey(self, command: dict[str, Any]) -> None:
        if "open" in command:
            began = time.monotonic()
            names = ("path", "after", "timed")
            self.open(command["open"], **{n: command[n] for n in names if n in command})
            self.open_slow(command.get("slow", 0))
            self._wait(lambda: all(stream.chunks for stream in self._plain.values()))
            answer(seconds=time.monotonic() - began)
        elif "until" in command:
            self._wait(lambda: self._have_all(command["until"]))
            answer(at=time.monotonic())
        elif "report" in command:
            answer(**self._report())

    def _have_all(self, position: int) -> bool:
        if self._first is None or self._positions[1] < position:
            return False
        size = self._plain[self._first].size
        return all(stream.size >= size for stream in self._plain.values())

    def _wait(self, condition: Any) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {PATIENCE_S} s: {self._report()}")
            self._read(0.05)

    def _read(self, timeout_s: float) -> bool:
        """Read what is there; True if there is a command."""
        is_told = False
        for number, _ in self._epoll.poll(timeout_s):
            if number == sys.stdin.fileno():
                is_told = True
            else:
                self._take(number, self._plain[number])
        if time.monotonic() > self._slow_at + SLOW_EVERY_S:
            self._slow_at = time.monotonic()
            self._slow = [stream for stream in self._slow if self._take_a_little(stream)]
        return is_told

    def _take_a_little(self, stream: Stream) -> bool:
        """Read some of a slow stream; False if it has ended."""
        try:
            data = stream.sock.recv(SLOW_BYTES)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            data = b""
        self._ended += not data
        self._fell_behind += data.count(b"event: stream.fell_behind")
        return bool(data)

    def _take(self, number: int, stream: Stream) -> None:
        data = stream.sock.recv(RECEIVE_BYTES)
        now = time.monotonic()
        if not data:
            self._ended += 1
            self._epoll.unregister(number)
            return
        for chunk in stream.take(data):
            if number == self._first and b"\ndata: " in chunk:
                self._look_at(chunk)
            stream.count(chunk)
            if number in self._timed:
                self._delays.extend(now - float(at) for at in SENT_AT.findall(chunk))

    def _look_at(self, chunk: bytes) -> None:
        for match in POSITION.finditer(chunk):
            position = int(match[1])
            first, last = self._positions
            self._missed += bool(last) and position != last + 1
            self._positions = [first or position, position]

    def _report(self) -> dict[str, Any]:
        plain = self._plain.values()
        first = self._plain[self._first] if self._first is not None else None
        is_like = [first is not None and (s.crc, s.size) == (first.crc, first.size) for s in plain]
        report = {
            "crc": first.crc if first else 0,
            "size": first.size if first else 0,
            "unlike": is_like.count(False),
            "ended": self._ended,
            "fell_behind": self._fell_behind,
            "missed": self._missed,
            "first": self._positions[0],
            "last": self._positions[1],
            "delays": spread(self._delays) if self._delays else {},
        }
        self._delays = array("d")
        return report


def _request(path: str, more: str) -> bytes:
    head = f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {STREAM_TOKEN}\r\n{more}"
    return f"{head}\r\n".encode()


def main() -> None:
    """Serve until the end of the input."""
    answer(ready=True)
    Listener(int(sys.argv[1])).serve()


if __name__ == "__main__":
    main()
