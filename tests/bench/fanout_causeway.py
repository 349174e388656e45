"""The service with its tail replaced by a feeder: real app, stream, window and server, no log read.

Started by `fanout`, with an empty database. Publishing is `Window.append` of frames made before.
"""

import asyncio
import os
from contextlib import suppress
from unittest.mock import patch

import uvloop

from service.app import Service, open_service
from service.config import load
from service.event import Event
from service.serve import calm_garbage_collector
from service.server import Server, listen
from service.tail import Tail
from service.window import Frame
from tests.bench.children import answer, commands_async
from tests.bench.load import GENESIS, prepare, publish


async def stay_idle(_tail: Tail) -> None:
    """Follow nothing: the window is the feeder's."""
    await asyncio.Event().wait()


async def feed(service: Service) -> None:
    """Publish what is asked for, until the end of the input."""
    window, hub = service.window, service.hub
    window.start(0, GENESIS)
    orders = commands_async()
    async for order in orders:
        events = prepare(order, window.position, window.link)
        frames = {event.position: Frame(event) for event in events}

        def send(burst: list[Event], frames: dict[int, Frame] = frames) -> None:
            window.append([frames[event.position] for event in burst])

        answer(bytes=sum(len(frame.sse) for frame in frames.values()))
        await anext(orders)
        # Whoever waits at the window has written all that was in it.
        await publish(events, order["burst"], send, lambda: len(window._waiters) >= len(hub))
        answer(published=len(events))


async def main() -> None:
    """Serve until the end of the input."""
    settings = load()
    calm_garbage_collector()
    with patch.object(Tail, "run", stay_idle), listen(settings) as sock:
        async with open_service(settings, os.environ["DATABASE_URL"], print) as service:
            server = Server(service, settings)
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            while not server.started:
                await asyncio.sleep(0.01)
            answer(port=sock.getsockname()[1], pid=os.getpid())
            await feed(service)
            server.stop()
            with suppress(asyncio.CancelledError):
                await serving


if __name__ == "__main__":
    uvloop.run(main())
