"""One LISTEN connection a process: hears that the log has grown. A wake-up is only a hint.

Notifications get lost with their connection, and a half-open connection is deaf and says nothing:
so it is asked a question now and then, and whoever is woken by it also polls.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from service.db import connect, translated
from service.errors import LogUnavailable

log = logging.getLogger("causeway.listen")

CHANNEL = "causeway_head"
CHECK_S = 10.0
RETRY_S = 1.0


class Listener:
    """Calls `on_news` with the head that was announced, or with 0 if some may have been missed."""

    def __init__(self, dsn: str, on_news: Callable[[int], None]) -> None:
        self._dsn = dsn
        self._on_news = on_news

    async def run(self) -> None:
        """Keep one connection that LISTENs, and find out when it has gone deaf. A loop."""
        while True:
            try:
                with translated():
                    await self._listen()
            except LogUnavailable as error:
                log.warning("listen lost, polling meanwhile", extra={"reason": error.message})
            self._on_news(0)
            await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        connection = await connect(self._dsn)
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(CHANNEL, self._notified)
            self._on_news(0)  # what came before LISTEN was not heard
            while not lost.is_set():
                # On the same session: if it is half-open, this times out.
                await connection.fetchval("SELECT 1", timeout=CHECK_S / 2)
                with suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_S):
                        await lost.wait()
        finally:
            connection.terminate()

    def _notified(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._on_news(int(str(payload)))
