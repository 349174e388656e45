"""uvicorn, owned by us: the socket, the signals, and a shutdown in a written order.

SIGTERM: not ready any more → streams are ended one after another over the drain, each with its last
id, while webhooks are still taken and the relay's calls end → the listener closes → in-flight
appends finish → the rest is closed. uvicorn alone would wait for the streams for ever. Exit code 0.
"""

import asyncio
import logging
import socket
import sys
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.app import Service
from service.config import Settings
from service.errors import ConfigError
from service.intake import Intake

log = logging.getLogger("causeway.server")

BACKLOG = 4096
FORCE_CHECK_S = 0.1
LAST_APPENDS_S = 1.0  # for what was being answered until the last moment
TCP_USER_TIMEOUT_MS = 30_000  # a peer that acknowledges nothing for this long is gone


class Protocol(HttpToolsProtocol):
    """Refuses what the intake does not let in, and gives endpoints two ways past ASGI.

    `causeway.abort` cuts the connection: closing one politely waits for a client that stalls.
    `causeway.write` is `write_chunk`: a stream that has begun need not wake a task for each event.
    A call that the intake refuses gets no task if it is here as a whole; one whose body is still to
    come goes the usual way, and is refused there.
    """

    def __init__(self, intake: Intake, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._intake = intake
        self._refused: list[bytes] | None = None  # the body so far of a call to be refused

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._refused is not None:
            pieces, self._refused = self._refused, None
            if not self.transport.is_closing():
                super().on_headers_complete()
                for piece in pieces:
                    super().on_body(piece)

    def on_headers_complete(self) -> None:
        if self._intake.is_open(self.url) or not self._is_plain():
            super().on_headers_complete()
        else:
            self._refused = []

    def on_body(self, body: bytes) -> None:
        if self._refused is None:
            super().on_body(body)
        else:
            self._refused.append(body)

    def on_message_complete(self) -> None:
        if self._refused is None:
            super().on_message_complete()
            return
        answer = self._intake.refusal(self.url, self.headers, self.server_state.default_headers)
        if answer is not None:
            self._refused = None
            self.transport.write(answer)
            self.on_response_complete()
            return
        pieces, self._refused = self._refused, None
        super().on_headers_complete()
        for piece in pieces:
            super().on_body(piece)
        super().on_message_complete()

    def _is_plain(self) -> bool:
        """True if the call can be answered at once: nothing is before it, the client reads."""
        return (
            self._is_idle()
            and not self.flow.write_paused
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
        )

    def _is_idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first call
        return cycle is None or cycle.response_complete

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: dict[str, Any] = {
            "causeway.abort": self.transport.abort,
            "causeway.write": self.write_chunk,
        }
        self.scope["extensions"] = extensions

    def write_chunk(self, data: bytes) -> bool:
        """Write one chunk of an answer of unknown length whose head was sent, without waiting.

        False, and nothing is written, if the client is behind or gone: `send` waits or finds out.
        """
        if self.flow.write_paused or self.transport.is_closing():
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True


class Server(uvicorn.Server):
    """Serves one `Service`. `stop` does what SIGTERM does."""

    def __init__(self, service: Service, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                service.front,
                http=cast(Any, partial(Protocol, service.intake)),
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=75,  # longer than proxies keep theirs: they must close first
                timeout_graceful_shutdown=max(1, round(settings.shutdown_s)),
            )
        )
        self._service = service
        self._settings = settings

    def stop(self) -> None:
        """Begin the shutdown."""
        self.should_exit = True

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
