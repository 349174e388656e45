"""sse-starlette as its documentation has it: a queue for each client, a generator that empties it.

uvicorn with uvloop and httptools, no access log. Each `ServerSentEvent` is made once and shared.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import uvicorn
import uvloop
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from service.event import Event
from tests.bench.children import answer, commands_async
from tests.bench.load import GENESIS, prepare, publish

queues: set[asyncio.Queue[ServerSentEvent]] = set()


async def stream(_request: Request) -> EventSourceResponse:
    """Subscribe."""
    return EventSourceResponse(follow())


async def follow() -> AsyncIterator[ServerSentEvent]:
    """Yield events for as long as the client is there."""
    queue: asyncio.Queue[ServerSentEvent] = asyncio.Queue()
    queues.add(queue)
    try:
        while True:
            yield await queue.get()
    finally:
        queues.discard(queue)


def send(burst: list[ServerSentEvent]) -> None:
    """Give a burst to every client."""
    for queue in queues:
        for event in burst:
            queue.put_nowait(event)


async def feed() -> None:
    """Publish what is asked for, until the end of the input."""
    position = 0
    orders = commands_async()
    async for order in orders:
        events = prepare(order, position, GENESIS)
        position += len(events)
        blocks = {event.position: _block(event) for event in events}

        def send_burst(burst: list[Event], blocks: dict[int, ServerSentEvent] = blocks) -> None:
            send([blocks[event.position] for event in burst])

        answer(bytes=sum(len(block.encode()) for block in blocks.values()))
        await anext(orders)
        await publish(events, order["burst"], send_burst, lambda: all(q.empty() for q in queues))
        answer(published=len(events))


def _block(event: Event) -> ServerSentEvent:
    return ServerSentEvent(event.body.decode(), event=event.type, id=event.id)


async def main() -> None:
    """Serve until the end of the input."""
    app = Starlette(routes=[Route("/stream", stream)])
    config = uvicorn.Config(
        app, http="httptools", lifespan="off", access_log=False, log_level="warning"
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as sock:
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started:
            await asyncio.sleep(0.01)
        answer(port=sock.getsockname()[1], pid=os.getpid())
        await feed()
        server.should_exit = True
        await serving


if __name__ == "__main__":
    uvloop.run(main())
