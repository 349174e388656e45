"""The service with its append replaced by nothing: what HTTP, signature and parsing cost alone."""

import asyncio
import itertools
import os
from contextlib import suppress
from unittest.mock import patch

import uvloop

from service.app import open_service
from service.appender import Appender
from service.config import load
from service.event import NewEvent
from service.eventlog import Appended
from service.serve import calm_garbage_collector
from service.server import Server, listen
from tests.bench.children import answer, commands_async

_positions = itertools.count(1)


async def append_nothing(_appender: Appender, _event: NewEvent) -> Appended:
    """Say that the event is committed; it is not."""
    return Appended(next(_positions), is_known=False)


async def main() -> None:
    """Serve until the end of the input."""
    settings = load()
    calm_garbage_collector()
    with patch.object(Appender, "append", append_nothing), listen(settings) as sock:
        async with open_service(settings, os.environ["DATABASE_URL"], print) as service:
            server = Server(service, settings)
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            answer(port=sock.getsockname()[1], pid=os.getpid())
            async for _ in commands_async():
                pass
            server.stop()
            with suppress(asyncio.CancelledError):
                await serving


if __name__ == "__main__":
    uvloop.run(main())
