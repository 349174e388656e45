"""A reader of `/stream` for tests, on a raw socket: sees what was really sent, and how it ended."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

from tests.running import STREAM_TOKEN, WITHIN_S


class Ended(Exception):
    """The server ended the stream in order: the last chunk came."""


class Cut(Exception):
    """The connection ended in the middle of the answer."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of the stream. A field that was not sent is None; `comments` are without colon."""

    id: str | None = None
    event: str | None = None
    data: str | None = None
    retry: str | None = None
    comments: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        fields: dict[str, str] = {}
        comments = []
        for line in text.split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name:
                fields[name] = f"{fields[name]}\n{value}" if name in fields else value
            else:
                comments.append(value)
        return cls(**fields, comments=tuple(comments))

    @property
    def position(self) -> int:
        """The position that the block's id names."""
        assert self.id is not None
        return int(self.id.partition(".")[0])

    @property
    def is_event(self) -> bool:
        """True for one of Bridge's events."""
        return self.event is not None and self.id is not None

    @property
    def is_checkpoint(self) -> bool:
        """True for an id alone, which dispatches nothing."""
        return self.id is not None and self.event is None and self.data is None

    def json(self) -> Any:
        assert self.data is not None
        return json.loads(self.data)


@dataclass(slots=True)
class Reader:
    """One open answer of the server. `last_id` is what an EventSource would resume with."""

    status: int
    headers: dict[str, str]
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    last_id: str | None = None
    seen: list[Block] = field(default_factory=list)
    _buffer: bytes = b""

    async def block(self, within_s: float = WITHIN_S) -> Block:
        """Return the next block. Raises Ended, Cut, or TimeoutError."""
        async with asyncio.timeout(within_s):
            while b"\n\n" not in self._buffer:
                self._buffer += await self._chunk()
        text, _, self._buffer = self._buffer.partition(b"\n\n")
        block = Block.parse(text.decode())
        self.last_id = block.id or self.last_id
        self.seen.append(block)
        return block

    async def event(self, within_s: float = WITHIN_S) -> Block:
        """Return the next of Bridge's events."""
        return await self._next("is_event", within_s)

    async def checkpoint(self, within_s: float = WITHIN_S) -> Block:
        """Return the next block that is an id alone."""
        return await self._next("is_checkpoint", within_s)

    async def control(self, name: str) -> Any:
        """Return the JSON of the next control event `stream.<name>`."""
        async with asyncio.timeout(WITHIN_S):
            while (block := await self.block()).event != f"stream.{name}":
                pass
        return block.json()

    async def events(self, count: int) -> list[Block]:
        """Return the next `count` of Bridge's events."""
        return [await self.event() for _ in range(count)]

    async def rest(self) -> list[Block]:
        """Return all blocks up to an orderly end."""
        blocks = []
        while True:
            try:
                blocks.append(await self.block())
            except Ended:
                return blocks

    async def error(self) -> Any:
        """Return the `error` of an answer that is no stream."""
        async with asyncio.timeout(WITHIN_S):
            body = await self._reader.readexactly(int(self.headers["content-length"]))
        return json.loads(body)["error"]

    async def _next(self, kind: str, within_s: float) -> Block:
        async with asyncio.timeout(within_s):
            while not getattr(block := await self.block(within_s), kind):
                pass
        return block

    async def _chunk(self) -> bytes:
        try:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            chunk = (await self._reader.readexactly(size + 2))[:-2]
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Cut from error
        if not chunk:
            raise Ended
        return chunk


@asynccontextmanager
async def reading(
    url: str,
    query: str = "",
    *,
    token: str | None = STREAM_TOKEN,
    last_event_id: str | None = None,
    method: str = "GET",
    receive_bytes: int | None = None,
) -> AsyncIterator[Reader]:
    """Open `/stream?query` and read its headers; close the connection at the end.

    `receive_bytes` makes the socket's and the reader's buffers so small that who does not read
    stalls the server soon.
    """
    reader, writer = await _connect(url, receive_bytes)
    try:
        headers = [f"{method} /stream?{query} HTTP/1.1", "Host: test"]
        headers += [f"Authorization: Bearer {token}"] if token else []
        headers += [f"Last-Event-ID: {last_event_id}"] if last_event_id else []
        writer.write("\r\n".join([*headers, "", ""]).encode())
        yield await _answer(reader, writer)
    finally:
        writer.transport.abort()


async def _connect(
    url: str, receive_bytes: int | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(url)
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    if receive_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (address.hostname, address.port))
    except BaseException:
        sock.close()
        raise
    return await asyncio.open_connection(sock=sock, limit=receive_bytes or 2**20)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Reader:
    async with asyncio.timeout(WITHIN_S):
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    return Reader(int(lines[0].split()[1]), headers, reader, writer)


async def follow(
    url: str, found: list[Block], *, until: int | None = None, query: str = "from=start"
) -> None:
    """Read into `found` up to position `until` (None: for ever), and resume whenever a stream ends.

    Resumes as an EventSource does: the same query, and the last id in the header.
    """
    last_id: str | None = None

    def is_done() -> bool:
        return until is not None and bool(found) and found[-1].position >= until

    while not is_done():
        try:
            async with reading(url, query, last_event_id=last_id) as reader:
                while reader.status == 200 and not is_done():
                    block = await reader.block()
                    last_id = reader.last_id
                    if block.is_event:
                        found.append(block)
                if reader.status != 200:
                    await asyncio.sleep(0.05)
        except (OSError, Cut, Ended, asyncio.IncompleteReadError):
            await asyncio.sleep(0.05)
