"""Connections to callbacks that wait for the next call: the newest is used first.

Bounded for each callback; an unused one is closed after a while, and a busy one is not kept for
ever, since its host may have moved to another address.
"""

import asyncio
from collections import defaultdict

from service.callback_connection import CallbackConnection

IDLE_S = 20.0  # shorter than servers commonly keep theirs
MAX_AGE_S = 300.0
_SWEEP_S = 5.0

Key = tuple[str, str, int]


class CallbackPool:
    """The unused connections, by scheme, host and port."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_idle: int) -> None:
        self._loop = loop
        self._max_idle = max_idle
        self._idle: defaultdict[Key, list[CallbackConnection]] = defaultdict(list)
        self._sweep_handle: asyncio.TimerHandle | None = None
        self._is_closed = False

    def take(self, key: Key) -> CallbackConnection | None:
        """Return an unused connection that is open as far as we know; None if there is none."""
        idle = self._idle.get(key)
        while idle:
            connection = idle.pop()
            if connection.is_reusable:
                return connection
        return None

    def put(self, key: Key, connection: CallbackConnection) -> None:
        """Keep a connection for the next call, or close it."""
        connection.idle_since = self._loop.time()
        is_old = connection.idle_since - connection.opened_at > MAX_AGE_S
        idle = self._idle[key]
        if self._is_closed or is_old or not connection.is_reusable or len(idle) >= self._max_idle:
            connection.close()
            return
        idle.append(connection)
        if self._sweep_handle is None:
            self._sweep_handle = self._loop.call_later(_SWEEP_S, self._sweep)

    def close(self) -> None:
        """Close all, and keep none from now on."""
        self._is_closed = True
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()

    def _sweep(self) -> None:
        """Close what was unused for too long, and forget what is closed."""
        oldest = self._loop.time() - IDLE_S
        for key, idle in list(self._idle.items()):
            for connection in idle:
                if connection.idle_since < oldest:
                    connection.close()
            self._idle[key] = [connection for connection in idle if connection.is_reusable]
            if not self._idle[key]:
                del self._idle[key]
        self._sweep_handle = self._loop.call_later(_SWEEP_S, self._sweep) if self._idle else None
