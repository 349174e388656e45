"""The workers that share a port, for each other: whichever is scraped answers the metrics of all.

Each has a socket of its own on 127.0.0.1, bound by their parent, that gives its metrics to whoever
connects. One that does not answer within a second is left out, and missed by Prometheus as an
instance that is down would be.
"""

import asyncio
import logging
import socket
from collections.abc import Callable

from service.exposition import merge

log = logging.getLogger("causeway.peers")

HOST = "127.0.0.1"
TIMEOUT_S = 1.0
END = "# EOF\n"  # a text without it was cut short


def bind() -> socket.socket:
    """Return a socket for one worker, on a free port."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.bind((HOST, 0))
    return sock


class Peers:
    """Worker `number` of those whose sockets have `ports`; `sock` is its own."""

    def __init__(self, number: int, ports: tuple[int, ...], sock: socket.socket) -> None:
        self._number = number
        self._ports = ports
        self._sock = sock

    async def serve(self, expose: Callable[[], str]) -> None:
        """Give `expose()` to each who connects. A loop."""

        async def give(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((expose() + END).encode())
            writer.close()

        server = await asyncio.start_server(give, sock=self._sock.dup())
        async with server:
            await server.serve_forever()

    async def gather(self, own: str) -> str:
        """Return the metrics of all, `own` for this one's."""
        others = [number for number in range(len(self._ports)) if number != self._number]
        texts = await asyncio.gather(*map(self._ask, others))
        found = {number: text for number, text in zip(others, texts, strict=True) if text}
        return merge(found | {self._number: own})

    async def _ask(self, number: int) -> str:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await asyncio.open_connection(HOST, self._ports[number])
                try:
                    text = (await reader.read()).decode()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            return _missing(number, type(error).__name__)
        return text.removesuffix(END) if text.endswith(END) else _missing(number, "cut short")


def _missing(number: int, reason: str) -> str:
    log.warning("a worker's metrics are missing", extra={"worker": number, "reason": reason})
    return ""
