"""uvicorn, owned by us: the socket, the signals, and a shutdown in a written order.

SIGTERM: not ready any more → streams are ended one after another over the drain, each with its last
id, while webhooks are still taken and the relay's calls end → the listener closes → in-flight
appends finish → the rest is closed. uvicorn alone would wait for the streams for ever. Exit code 0.
"""

import asyncio
import logging
import resource
import socket
import sys
from functools import cache, partial
from types import FrameType
from typing import Any, cast

import uvicorn

from service.app import Service
from service.config import Settings
from service.errors import ConfigError
from service.gate import Gate
from service.protocol import KEEP_ALIVE_S, Bounds, Protocol
from service.refusal import Refusals

log = logging.getLogger("causeway.server")

BACKLOG = 4096
FORCE_CHECK_S = 0.1
LAST_APPENDS_S = 1.0  # for what was being answered until the last moment
OTHER_FILES = 128  # open files that are no connections of callers
TCP_USER_TIMEOUT_MS = 30_000  # a peer that acknowledges nothing for this long is gone


class Server(uvicorn.Server):
    """Serves one `Service`. `stop` does what SIGTERM does."""

    def __init__(self, service: Service, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                service.front,
                http=cast(Any, partial(Gate, service.intake, self._bounds(service, settings))),
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(settings.shutdown_s)),
            )
        )
        self._service = service
        self._settings = settings

    @staticmethod
    def _bounds(service: Service, settings: Settings) -> Bounds:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = min(settings.connections_max, max(1, files - OTHER_FILES))
        cut = cache(service.metrics.connections_cut.labels)
        return Bounds(settings.head_timeout_s, most, lambda reason: cut(reason).inc(), Refusals())

    def stop(self) -> None:
        """Begin the shutdown."""
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections about once a second; uvicorn calls this ten times as often."""
        if counter % 10 == 0:
            self._service.metrics.connections.set(len(self.server_state.connections))
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Protocol):
                    connection.check(now)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown at SIGTERM or SIGINT; a second SIGINT does not wait for clients."""
        if self.should_exit and sig == 2:
            self.force_exit = True
        # uvicorn would keep the signal and raise it again at the end: we exit with 0.
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("stopping", extra={"streams": len(self._service.hub)})
        self._service.window.close()
        shutdown_s, clock = self._settings.shutdown_s, asyncio.get_running_loop().time
        relay = self._service.relaying.relay
        calls = asyncio.create_task(relay.drain(shutdown_s), name="drain relay")
        await self._drain()
        deadline = clock() + shutdown_s
        await super().shutdown(sockets)
        try:
            async with asyncio.timeout_at(max(deadline, clock() + LAST_APPENDS_S)):
                await self._service.appender.drained()
        except TimeoutError:
            log.error("appends still waiting at the end; their callers get no answer")
        await calls
        log.info("stopped")

    async def _drain(self) -> None:
        """End the streams over the drain time; all at once after a second SIGINT."""
        hub = self._service.hub
        drain = asyncio.create_task(hub.drain(self._settings.drain_s), name="end streams")
        while not (await asyncio.wait([drain], timeout=FORCE_CHECK_S))[0]:
            if self.force_exit:
                drain.cancel()
                hub.close_all("drain")
        if not drain.cancelled():
            drain.result()


def listen(settings: Settings) -> socket.socket:
    """Return the bound socket. Raises ConfigError naming the setting that does not work."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sys.platform == "linux":  # inherited by accepted connections
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"CAUSEWAY_HOST={settings.host} CAUSEWAY_PORT={settings.port}: {error.strerror}"
        ) from error
    return sock
