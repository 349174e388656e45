"""A way to NATS that stops at a chosen message: a publish, or the answer to one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

PUBLISH = b"HPUB bridge."
ANSWER = b'"stream":"CAUSEWAY"'


@dataclass(slots=True)
class Gate:
    """Lets so many messages with `mark` pass, and then holds all that follows.

    It holds within the message that is too many, `within` bytes after its mark; if it `drops`, that
    one message is lost instead, and the next ones pass. A mark, and what is to be lost, may come in
    pieces: a piece waits for the next one.
    """

    mark: bytes
    passes: int | None = None
    within: int = 0
    drops: bool = False
    passed: int = 0
    held: bytearray = field(default_factory=bytearray)
    piece: bytes = b""
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, data: bytes) -> bytes:
        """Return what may pass of `data`; keep the rest."""
        if self.stopped.is_set():
            self.held += data
            return b""
        data, self.piece = self.piece + data, b""
        at = 0
        while (found := data.find(self.mark, at)) >= 0:
            if self.passed == self.passes and self.drops:
                following = data.find(self.mark, found + len(self.mark))
                if following < 0:
                    self.piece = data[found:]
                    return data[:found]
                data, self.passes = data[:found] + data[following:], None
                continue
            if self.passed == self.passes:
                cut = found + self.within
                self.held += data[cut:]
                self.stopped.set()
                return data[:cut]
            self.passed += 1
            at = found + len(self.mark)
        for size in range(len(self.mark) - 1, 0, -1):
            if data[at:].endswith(self.mark[:size]):
                data, self.piece = data[:-size], data[-size:]
                break
        return data

    def open(self) -> None:
        """Let all pass from now on; what was held back is lost."""
        self.passes = None
        self.piece = b""
        self.held.clear()
        self.stopped.clear()


@dataclass(slots=True)
class NatsProxy:
    """The proxy's `url`, and its two gates, for all connections together."""

    url: str
    publishes: Gate
    answers: Gate
    far: list[asyncio.StreamWriter] = field(default_factory=list)
    near: list[asyncio.StreamWriter] = field(default_factory=list)

    def open(self) -> None:
        """Hold nothing back any more; whoever is connected has to connect anew."""
        self.publishes.open()
        self.answers.open()
        for writer in (*self.near, *self.far):
            writer.transport.abort()

    @property
    def has_stopped(self) -> bool:
        """True once a gate holds something back."""
        return self.publishes.stopped.is_set() or self.answers.stopped.is_set()

    async def let_late_ones_arrive(self) -> None:
        """Hand the publishes that were held back to NATS, however long their sender is gone."""
        for writer in self.far:
            if not writer.is_closing():
                writer.write(bytes(self.publishes.held))
                await writer.drain()
        self.publishes.held.clear()


@asynccontextmanager
async def nats_proxy(
    port: int,
    *,
    publishes: int | None = None,
    answers: int | None = None,
    within: int = 0,
    drops: bool = False,
) -> AsyncIterator[NatsProxy]:
    """Pass on to a NATS server at `port`; hold back after so many publishes, or answers.

    See `Gate` for `within` and `drops`.
    """
    tasks: set[asyncio.Task[None]] = set()
    gates = (Gate(PUBLISH, publishes, within, drops), Gate(ANSWER, answers))

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: Gate, *, ends: bool
    ) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(gate.take(data))
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            if ends:
                writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        proxy.far.append(far_writer)
        proxy.near.append(writer)
        # The way to NATS stays open after its sender has died: what was held back can still arrive.
        tasks.add(asyncio.create_task(pump(reader, far_writer, gates[0], ends=False)))
        tasks.add(asyncio.create_task(pump(far_reader, writer, gates[1], ends=True)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    proxy = NatsProxy(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", *gates)
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in proxy.far:
            writer.close()
        await asyncio.sleep(0)
