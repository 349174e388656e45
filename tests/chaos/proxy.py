"""A TCP way to a Postgres (or to anything) that can be slow, stall, break, go deaf or lose answers.

    async with proxy_to(dsn) as proxy:          # on 127.0.0.1, proxy.port
        proxy.dsn(dsn)                          # the same database, by this way
        proxy.latency_s = 0.05                  # each way
        proxy.stall(); proxy.refuse(); proxy.freeze(); proxy.reset()
        cut = proxy.lose_answer("append_events"); await cut.done.wait()
        proxy.point_to(other_dsn)               # as a virtual IP that moves
        await proxy.heal()                      # everything as in the beginning

The calls may be mixed; `heal` takes back all but the place that the proxy points to.
`is_listening` picks the connection that LISTENs: `proxy.freeze(is_listening)` makes it half-open.
Bounded: a direction holds QUEUED pieces of PIECE_BYTES at the most, then it reads no more.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.chaos.pgwire import Answers, Cut, Requests
from tests.running import free_port

PIECE_BYTES = 65536
QUEUED = 64
LINGER_NONE = struct.pack("ii", 1, 0)  # a close is a reset

Target = Path | tuple[str, int]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy: "Proxy", near: Streams, far: Streams) -> None:
        self._proxy = proxy
        self._near, self._far = near, far
        self._requests, self._answers = Requests(), Answers()
        self._cut: Cut | None = None  # its statement is with the server
        self._left_bytes = 0
        self.is_frozen = False

    def has_said(self, beginning: str) -> bool:
        """Tell whether the client has prepared or run a statement that begins so."""
        return any(said.startswith(beginning) for said in self._requests.said)

    async def run(self) -> None:
        """Pass everything on, both ways, until one side ends or the link is cut."""
        try:
            await self._pass_on()
        except BaseException:
            self.abort()
            raise

    async def _pass_on(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for source, sink, look in (
                    (self._near[0], self._far[1], self._asked),
                    (self._far[0], self._near[1], self._answered),
                ):
                    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED)
                    group.create_task(self._take(source, queue))
                    group.create_task(self._give(queue, sink, look))
        except* EOFError:  # one side has ended in order
            for _, writer in (self._near, self._far):
                writer.close()
        except* OSError:
            self.abort()

    def abort(self) -> None:
        """Reset both sides."""
        for _, writer in (self._near, self._far):
            sock = writer.get_extra_info("socket")
            is_open = sock is not None and sock.fileno() >= 0  # else the other side came first
            if is_open and sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
            writer.transport.abort()

    async def _take(
        self, source: asyncio.StreamReader, queue: "asyncio.Queue[tuple[float, bytes]]"
    ) -> None:
        clock = asyncio.get_running_loop().time
        while data := await source.read(PIECE_BYTES):
            await queue.put((clock() + self._proxy.latency_s, data))
        await queue.put((clock() + self._proxy.latency_s, b""))

    async def _give(
        self,
        queue: "asyncio.Queue[tuple[float, bytes]]",
        sink: asyncio.StreamWriter,
        look: Callable[[bytes], bytes],
    ) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - clock()))
            await self._proxy.flowing.wait()
            if self.is_frozen:
                continue  # an end is not heard either
            if not data:
                raise EOFError
            sink.write(look(data) if self._proxy.is_postgres else data)
            await sink.drain()

    def _asked(self, data: bytes) -> bytes:
        passed = bytearray()
        for message, statement in self._requests.feed(data):
            if not message:
                self._near[1].write(b"N")
            if statement is not None and (cut := self._proxy.cut_at(statement)) is not None:
                if cut.is_early:
                    self._break(cut)
                    return b""
                self._cut, self._left_bytes = cut, cut.passed_bytes or 0
            passed += message
        return bytes(passed)

    def _answered(self, data: bytes) -> bytes:
        is_complete, cut = self._answers.is_complete(data), self._cut
        if cut is None:
            return data
        if cut.passed_bytes is None:
            if is_complete:
                self._break(cut)
            return b""
        passed, self._left_bytes = data[: self._left_bytes], self._left_bytes - len(data)
        if self._left_bytes < 0:
            self._near[1].write(passed)
            self._break(cut)
            return b""
        if is_complete:  # too short an answer: the next one
            self._cut = None
            self._proxy.arm(cut)
        return passed

    def _break(self, cut: Cut) -> None:
        self._cut = None
        cut.done.set()
        if not cut.is_silent:
            raise ConnectionResetError("cut")
        self.is_frozen = True


class Proxy:
    """The way, and what is wrong with it."""

    def __init__(self, target: Target, *, is_postgres: bool = True) -> None:
        self.target = target
        self.is_postgres = is_postgres
        self.latency_s = 0.0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.links: set[Link] = set()
        self.port = 0
        self._cuts: list[Cut] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def dsn(self, dsn: str) -> str:
        """Return the DSN of the same login and database by this way."""
        parts = urlsplit(dsn)
        return f"postgresql://{parts.username}@127.0.0.1:{self.port}{parts.path}"

    def point_to(self, dsn: str) -> None:
        """Lead new connections there; what is connected stays where it is."""
        self.target = target_of(dsn)

    def stall(self) -> None:
        """Let nothing through, either way; connections stay, and new ones are taken."""
        self.flowing.clear()

    def freeze(self, which: Callable[[Link], bool] = lambda _: True) -> int:
        """Make links half-open for good: what comes is dropped. Return how many."""
        chosen = [link for link in self.links if which(link)]
        for link in chosen:
            link.is_frozen = True
        return len(chosen)

    def reset(self, which: Callable[[Link], bool] = lambda _: True) -> int:
        """Break links with a reset (RST). Return how many."""
        chosen = [link for link in self.links if which(link)]
        for link in chosen:
            link.abort()
        return len(chosen)

    def refuse(self) -> None:
        """Take no new connection: their callers get a reset. What is connected stays."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def lose_answer(self, text: str, *, is_silent: bool = False) -> Cut:
        """Cut after the next statement with `text` was carried out, before its answer is passed."""
        return self.arm(Cut(text, is_silent=is_silent))

    def lose_request(self, text: str, *, is_silent: bool = False) -> Cut:
        """Cut before the server gets the next statement with `text`."""
        return self.arm(Cut(text, is_early=True, is_silent=is_silent))

    def cut_answer(self, text: str, passed_bytes: int) -> Cut:
        """Cut in the middle of the answer to the next statement with `text`."""
        return self.arm(Cut(text, passed_bytes))

    def cut_at(self, statement: str) -> Cut | None:
        """Return what was armed for this statement; it is then armed no more."""
        for cut in self._cuts:
            if cut.text in statement:
                self._cuts.remove(cut)
                return cut
        return None

    async def heal(self) -> None:
        """Take everything back; what was half-open, and nobody can mend, is reset."""
        self.latency_s = 0.0
        self._cuts.clear()
        self.reset(lambda link: link.is_frozen)
        self.flowing.set()
        if self._server is None:
            await self.listen()

    async def listen(self) -> None:
        """Take connections; the port stays the same for ever, and nobody gets it meanwhile."""
        self.port = self.port or free_port()
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", self.port, limit=PIECE_BYTES
        )

    async def close(self) -> None:
        """End, and everything that is connected with it."""
        self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close in the loop's next turn

    def arm(self, cut: Cut) -> Cut:
        """Cut where `cut` says, at the next chance."""
        self._cuts.append(cut)
        return cut

    async def _connected(self, *near: *Streams) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            far = await _open(self.target)
        except BaseException as error:
            near[1].transport.abort()
            if not isinstance(error, OSError):
                raise
            return
        link = Link(self, near, far)
        self.links.add(link)
        try:
            await link.run()
        except asyncio.CancelledError:
            return  # by `close`; the streams of Python 3.11 would report it as an error
        finally:
            self.links.discard(link)


async def _open(target: Target) -> Streams:
    if isinstance(target, Path):
        return await asyncio.open_unix_connection(target, limit=PIECE_BYTES)
    return await asyncio.open_connection(*target, limit=PIECE_BYTES)


def target_of(dsn: str) -> Target:
    """Return where a DSN leads: a Unix socket's path, or a host and a port."""
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    port = int(query.get("port", [str(parts.port or 5432)])[0])
    host = query.get("host", [parts.hostname or "127.0.0.1"])[0]
    return Path(host) / f".s.PGSQL.{port}" if host.startswith("/") else (host, port)


def is_listening(link: Link) -> bool:
    """Tell whether it is the connection that hears notifications."""
    return link.has_said("LISTEN ")


@asynccontextmanager
async def proxy_to(dsn: str, *, is_postgres: bool = True) -> AsyncIterator[Proxy]:
    """Run a proxy to the server of `dsn` until the end of the block."""
    proxy = Proxy(target_of(dsn), is_postgres=is_postgres)
    await proxy.listen()
    try:
        yield proxy
    finally:
        await proxy.close()
