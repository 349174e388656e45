"""What an HTTP client library would not do: half a request, a hang-up, a cut to the database."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from service.signature import HEADER, sign
from tests.running import SECRET, WITHIN_S, Database

WEBHOOKS = "/webhooks/bridge"


@dataclass(frozen=True, slots=True)
class Answer:
    """One response, its header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Wire:
    """One connection, written to and read from by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> Answer:
        """Read one response with a Content-Length."""
        async with asyncio.timeout(WITHIN_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (x.split(": ", 1) for x in lines)}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(status.split()[1]), headers, body)

    async def is_closed(self) -> bool:
        """Tell whether the other end closes the connection, and sends nothing more."""
        try:
            async with asyncio.timeout(WITHIN_S):
                return await self.reader.read() == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False


@asynccontextmanager
async def wire(url: str) -> AsyncIterator[Wire]:
    """Connect to the service at `url`."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


def webhook_head(
    length: int | None, signature: str | None = None, *, path: str = WEBHOOKS, more: str = ""
) -> bytes:
    """Return a call's head; `length` None announces a chunked body, `more` is further headers."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    signed = f"{HEADER}: {signature}\r\n" if signature is not None else ""
    return f"POST {path} HTTP/1.1\r\nHost: test\r\n{size}\r\n{signed}{more}\r\n".encode()


def webhook_call(payload: bytes) -> bytes:
    """Return a whole signed call."""
    return webhook_head(len(payload), sign(payload, [SECRET])) + payload


class Gate:
    """A way to the database that can be cut and opened again, as if Postgres were away."""

    def __init__(self, database: Database, folder: Path) -> None:
        query = dict(pair.split("=") for pair in database.service_dsn.split("?")[1].split("&"))
        self._behind = Path(query["host"]) / f".s.PGSQL.{query['port']}"
        self._front = folder / f".s.PGSQL.{query['port']}"
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.database = replace(
            database,
            service_dsn=database.service_dsn.replace(query["host"], str(folder)),
        )

    async def open(self) -> None:
        """Let connections through."""
        self._server = await asyncio.start_unix_server(self._serve, self._front)

    async def cut(self) -> None:
        """Refuse new connections and break the open ones."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._front.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_unix_connection(self._behind)
        self._writers |= {writer, behind_writer}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, behind_writer))
                group.create_task(_pump(behind_reader, writer))
        finally:
            self._writers -= {writer, behind_writer}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        return  # cut: the other direction ends too
    finally:
        writer.close()
