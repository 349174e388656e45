"""A way to Postgres that can become half-open, as a link does whose far end has vanished."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs, urlsplit


@asynccontextmanager
async def freezable(dsn: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """A way to the database that can become half-open: what is connected then hears no more."""
    query = parse_qs(urlsplit(dsn).query)
    name = f".s.PGSQL.{query['port'][0]}"
    connections: list[asyncio.Event] = []
    tasks: set[asyncio.Task[None]] = set()

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frozen: asyncio.Event
    ) -> None:
        try:
            while data := await reader.read(65536):
                if not frozen.is_set():
                    writer.write(data)
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(f"{query['host'][0]}/{name}")
        frozen = asyncio.Event()
        connections.append(frozen)
        for pair in ((reader, far_writer), (far_reader, writer)):
            tasks.add(asyncio.create_task(pump(*pair, frozen)))

    def freeze() -> None:
        for frozen in connections:
            frozen.set()

    with TemporaryDirectory(prefix="causeway-") as folder:
        server = await asyncio.start_unix_server(connected, Path(folder) / name)
        try:
            yield dsn.replace(query["host"][0], folder), freeze
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # the transports close in the loop's next turn
