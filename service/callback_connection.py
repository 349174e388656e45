"""One connection to a callback: a request out, an answer in, by the letter of HTTP/1.1.

Our own on httptools, since throughput matters: a small POST takes 15 µs of the process, where
httpcore2 took 320 and httpx2 500. An answer is read up to limits and no further. Knows nothing of
addresses, pools and timeouts: whoever cancels `exchange` has closed the connection.
"""

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import cast

import httptools

BODY_MAX_BYTES = 10 * 1024
HEAD_MAX_BYTES = 16 * 1024
_CHUNK_FRAME_BYTES = 16  # what a piece of the body may cost beside itself


class Failed(Exception):
    """A call got no whole answer; `error` is its class, one of `callback.ERRORS`."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


@dataclass(slots=True)
class Reply:
    """What came of an answer so far."""

    status: int | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header, `name` in lower case; None if there is none."""
        return next((value for key, value in self.headers if key.lower() == name), None)


class CallbackConnection(asyncio.Protocol):
    """An open connection. One exchange at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._reply = Reply()
        self._overhead_bytes = 0
        self._is_whole = False
        self.has_answered = False  # a byte came since the request
        self.is_reusable = True
        self.opened_at = self.idle_since = loop.time()

    async def exchange(self, request: bytes, reply: Reply) -> None:
        """Send `request` and fill `reply` as its answer comes. Raises Failed."""
        self._reply, self._overhead_bytes = reply, 0
        self._is_whole = self.has_answered = False
        if self._transport is None or not self.is_reusable:
            raise Failed("connection")
        self._waiter = self._loop.create_future()
        try:
            self._transport.write(request)
            await self._waiter
        except BaseException:
            self.close()
            raise
        finally:
            self._waiter = None

    def close(self) -> None:
        """Close the connection at once; nothing waits for the other end."""
        self.is_reusable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            self.close()  # nobody asked: the next answer could not be told from this
            return
        self.has_answered = True
        self._overhead_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.is_reusable = False
            if not self._is_whole:
                self._fail("protocol")
                return
        if self._overhead_bytes > HEAD_MAX_BYTES:
            self._fail("protocol")
        elif self._is_whole:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_reusable = False
        if self._waiter is None or self._waiter.done():
            return
        if exc is None and self._is_ended_by_close():
            self._waiter.set_result(None)
        else:
            self._fail("tls" if isinstance(exc, ssl.SSLError) else "connection")

    # httptools calls these while it is fed.

    def on_message_begin(self) -> None:
        if self._is_whole:
            self.is_reusable = False  # a second answer to one request
            return
        self._reply.status = None
        self._reply.headers.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_whole:
            self._reply.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if not self._parser.get_http_version().startswith("1."):
            raise httptools.HttpParserError("neither HTTP/1.1 nor 1.0")  # it takes 0.9 and 2.0
        status = self._parser.get_status_code()
        if not self._is_whole and status >= 200:
            self._reply.status = status

    def on_body(self, piece: bytes) -> None:
        self._overhead_bytes -= len(piece) + _CHUNK_FRAME_BYTES
        if self._is_whole:
            return
        body = self._reply.body
        body += piece[: BODY_MAX_BYTES - len(body)]
        if len(body) == BODY_MAX_BYTES:
            self._is_whole = True
            self.is_reusable = False  # more may follow, and is not waited for

    def on_message_complete(self) -> None:
        if self._is_whole or self._reply.status is None:  # None: an interim answer (1xx)
            return
        self._is_whole = True
        if not self._parser.should_keep_alive():
            self.is_reusable = False

    def _finish(self) -> None:
        if self._transport is None or self._transport.get_write_buffer_size():
            self.is_reusable = False  # answered before it had read the request
        if not self.is_reusable:
            self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: str) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(Failed(error))
        self.close()

    def _is_ended_by_close(self) -> bool:
        """Tell whether the answer is one whose end is the connection's (RFC 9112, section 6.3)."""
        if self._reply.status is None:
            return False
        coding = self._reply.header(b"transfer-encoding")
        if coding is not None:
            return not coding.strip().lower().endswith(b"chunked")
        return self._reply.header(b"content-length") is None
