"""One connection as uvicorn speaks HTTP on it, with bounds on what a stranger may cost.

A request's head must be here in time and fit `HEAD_MAX_BYTES`; requests sent ahead are counted; a
connection on which nothing happens is closed; where there are too many, those that have waited
longest without a request make room. Whatever cannot be read as one request is refused in our own
form, in its turn, and the connection is closed: nothing after it is looked at.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.refusal import (
    AHEAD,
    BROKEN,
    ENCODED,
    HEAD_MAX_BYTES,
    HEADERS_MAX,
    HUGE,
    NO_HOST,
    PIPELINE_MAX,
    SLOW,
    TUNNEL,
    UNREADABLE,
    Refusal,
    Refusals,
    Refused,
    spell,
)

log = logging.getLogger("causeway.protocol")

KEEP_ALIVE_S = 75  # longer than proxies keep theirs: they must close first
ROOM = 20  # one of so many connections goes at once where there are too many
_NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all connections of a server share; `cut` is told why one was ended."""

    head_timeout_s: float
    connections_max: int
    cut: Callable[[str], None]
    refusals: Refusals


class Protocol(HttpToolsProtocol):
    """Also gives endpoints two ways past ASGI.

    `causeway.abort` cuts the connection: closing one politely waits for a client that stalls.
    `causeway.write` is `write_chunk`: a stream that has begun need not wake a task for each event.
    """

    def __init__(self, bounds: Bounds, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._bounds = bounds
        self._due = _NEVER  # when the connection ends, unless what we wait for has come
        self._unread = 0  # bytes since the parser last made progress
        self._has_head = False  # of a request whose body is not complete
        self._is_upgrade = False
        self._is_deaf = False  # after a refusal: what follows is not looked at
        self._active: RequestResponseCycle | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(self._bounds.head_timeout_s)
        if len(self.connections) > self._bounds.connections_max:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._hang_up(self._active)  # uvicorn tells only the last one that was sent ahead

    def check(self, now: float) -> None:
        """End the connection if what it waits for is overdue. Called about once a second."""
        if now < self._due:
            return
        self._bounds.cut("slow")
        if self.transport.is_closing():
            self.transport.abort()  # whoever does not read the refusal either
        elif self._unread and not self._has_head:
            self._refuse(SLOW)
        else:
            self.transport.close()
        self._wait(self._bounds.head_timeout_s)

    def _wait(self, seconds: float) -> None:
        self._due = self.loop.time() + seconds

    def _make_room(self) -> None:
        """Cut those that have waited longest without a request; or this one, if all have one."""
        others = self.connections - {self}
        waiting = sorted(
            (it for it in others if isinstance(it, Protocol) and it._due < _NEVER),
            key=lambda it: it._due,
        )
        for it in waiting[: 1 + len(others) // ROOM] or [self]:
            self.connections.discard(it)
            it.transport.abort()
            self._bounds.cut("crowded")

    # What comes

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._is_deaf:
            return
        if not (self._unread or self._has_head) and self._is_idle:
            self._wait(self._bounds.head_timeout_s)
        self._unread += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserCallbackError as error:
            self._refuse(_reason(error))
        except httptools.HttpParserError:
            self._refuse(UNREADABLE)
        else:
            if self._unread > HEAD_MAX_BYTES:
                self._refuse(HUGE)

    @property
    def _is_idle(self) -> bool:
        return self._active is None or self._active.response_complete

    def _feed(self, data: bytes) -> None:
        """Parse; a request that wants another protocol is read again as one that does not.

        The parser takes what follows such a head for the other protocol: the body would be read as
        the next request. To go on in HTTP/1.1 is allowed (RFC 9110, 7.8), and some clients ask for
        h2c each time.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self._is_upgrade = False
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        lines = [b"%b: %b\r\n" % pair for pair in self.headers if pair[0] != b"upgrade"]
        method = self.scope["method"].encode()
        version = self.parser.get_http_version().encode()
        return b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(lines))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unread += 1  # part of a head is here, even if it came with the request before
        if self._is_idle:  # and that was answered while it was read
            self._wait(self._bounds.head_timeout_s)
        extensions: dict[str, Any] = {
            "causeway.abort": self.transport.abort,
            "causeway.write": self.write_chunk,
        }
        self.scope["extensions"] = extensions

    def on_headers_complete(self) -> None:
        self._check_head()
        if self.parser.should_upgrade():
            self._is_upgrade = True
            self.scope["method"] = self.parser.get_method().decode("ascii")
            return
        self._begin()
        self._due = _NEVER
        self._unread = 0
        self._has_head = True

    def _begin(self) -> None:
        """Hand over the request whose head is here, and good."""
        try:
            super().on_headers_complete()
        except (httptools.HttpParserInvalidURLError, AttributeError) as error:  # no path in it
            raise Refused(UNREADABLE) from error
        self.headers = []  # the trailers: nobody may add to a head that was read already

    def _check_head(self) -> None:
        """Raise Refused for a head that two readers could understand in two ways."""
        size, hosts = len(self.url), 0
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise Refused(ENCODED)
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Refused(UNREADABLE)
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise Refused(NO_HOST)
        if size > HEAD_MAX_BYTES or len(self.headers) > HEADERS_MAX:
            raise Refused(HUGE)
        if len(self.pipeline) >= PIPELINE_MAX:
            raise Refused(AHEAD)
        if self.parser.get_method() == b"CONNECT":
            raise Refused(TUNNEL)

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_upgrade:
            return
        self._unread = 0
        self._has_head = False
        if self._is_idle:  # it was answered before its body was here
            self._wait(KEEP_ALIVE_S)
        super().on_message_complete()

    # What goes

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_idle:
            is_reading = self._has_head or self._unread
            self._wait(self._bounds.head_timeout_s if is_reading else KEEP_ALIVE_S)

    def write_chunk(self, data: bytes) -> bool:
        """Write one chunk of an answer of unknown length whose head was sent, without waiting.

        False, and nothing is written, if the client is behind or gone: `send` waits or finds out.
        """
        if self.transport.is_closing():  # and `send` must not write to it before that is told
            self._hang_up(self._active)
            return False
        if self.flow.write_paused:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    @staticmethod
    def _hang_up(cycle: RequestResponseCycle | None) -> None:
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what cannot be read after all that was read before it, and close.

        Invariant: no request gets two answers, none another's
        (test_what_follows_a_request_takes_no_answer_from_it).
        """
        self._is_deaf = True
        self._bounds.cut("refused")
        self._bounds.refusals.note(refusal, self.client[0] if self.client else None)
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()
            self._has_head = False
        last = self.pipeline[0][0] if self.pipeline else self._active
        if last is not None and not last.response_complete and not last.more_body:
            last.keep_alive = False  # the rest is answered in turn, and then the end
            if last.response_started:
                self.transport.close()
            return
        is_answered = last is not None and self._has_head and last.response_started
        if not is_answered:
            self.transport.write(spell(refusal, self.server_state.default_headers))
        self._hang_up(last)
        self.transport.close()
        self._wait(self._bounds.head_timeout_s)


def _reason(error: httptools.HttpParserCallbackError) -> Refusal:
    """Return why one of our methods stopped the parser; what is unknown is an error of ours."""
    reason = error.__context__
    if isinstance(reason, Refused):
        return reason.refusal
    log.error("request not handled", exc_info=reason)
    return BROKEN
