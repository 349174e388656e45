"""The mirror's lease: one process of all mirrors a stream, the others stand by.

It is a lock of one Postgres session, gone with it. Two that both believe to hold it, because a
session died unseen, do no harm: the stream takes each event once, and only in its place. The only
caller of `sql/mirror_lease.sql`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.db import Connection, connect, statements, translated

_SQL = statements("mirror_lease")


class MirrorLease:
    """The lease to mirror into `stream`. `dsn` must lead past any pooler."""

    def __init__(self, dsn: str, stream: str, every_s: float) -> None:
        self._dsn = dsn
        self._stream = stream
        self._every_s = every_s

    @asynccontextmanager
    async def held(self, on_wait: Callable[[], None]) -> AsyncIterator[asyncio.Event]:
        """Wait for the lease, and hold it for the block; what is given is set if it is lost.

        `on_wait` is called while another process has it. Raises LogUnavailable.
        """
        lost = asyncio.Event()
        with translated():
            connection = await connect(self._dsn)
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await self._wait(connection, on_wait)
            yield lost
        finally:
            connection.terminate()

    async def _wait(self, connection: Connection, on_wait: Callable[[], None]) -> None:
        with translated():
            while True:
                if await connection.fetchval(_SQL.try_lease, self._stream):
                    return
                on_wait()
                await asyncio.sleep(self._every_s)
