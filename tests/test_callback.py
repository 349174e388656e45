"""Calling a callback: what came of it, to which address it went, and what was kept open.

Against a receiver process where it behaves as servers do, and against a few lines of server where
a byte matters.
"""

import asyncio
import contextlib
import logging
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service import callback_pool
from service.callback import ERRORS, Answer, Callbacks, default_tls, retry_after_s
from service.callback_connection import CallbackConnection
from service.callback_url import AddressPolicy, CallbackUrl, parse_callback_url
from service.deadline import Deadline
from service.resolver import MAX_THREADS
from service.signature import HEADER, sign
from tests.certificates import Authority
from tests.receiver import Receiver
from tests.running import ROOT, eventually, free_port
from tests.test_callback_url import networks

LOCAL = AddressPolicy(networks("127.0.0.0/8", "::1"))
PATIENCE_S = 60.0
SERVICE = ROOT / "service"
HEADERS = [(b"Content-Type", b"application/json"), (b"webhook-id", b"msg_1")]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """A receiver without TLS, for all tests here."""
    with Receiver() as running:
        yield running


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority of certificates."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def _kept_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that stalls between two calls must find its connection kept."""
    monkeypatch.setattr(callback_pool, "IDLE_S", 3600.0)
    monkeypatch.setattr(callback_pool, "MAX_AGE_S", 3600.0)


class Patience:
    """The deadlines of calls, for a test that ends them when it has seen what it waits for.

    So that time is up after that, however slow the machine is, and the test needs no time for it.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []  # of each deadline so far, a call's own before its parts
        self.body = b""  # what came of bodies
        self._running: list[Deadline] = []

    def end(self) -> None:
        """Let the time of all calls be up now."""
        self.end_last(len(self._running))

    def end_last(self, count: int = 1) -> None:
        """Let the time of the newest deadlines be up."""
        for deadline in self._running[-count:]:
            deadline._expire()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Patience:
    held = Patience()

    class Held(Deadline):
        def __enter__(self) -> None:
            held.seconds.append(self._seconds)
            held._running.append(self)
            super().__enter__()

        def __exit__(self, *error: Any) -> None:
            held._running.remove(self)
            super().__exit__(*error)

    class Watched(CallbackConnection):
        def on_body(self, piece: bytes) -> None:
            super().on_body(piece)
            held.body += piece

    monkeypatch.setattr("service.callback.Deadline", Held)
    monkeypatch.setattr("service.callback.CallbackConnection", Watched)
    return held


@asynccontextmanager
async def calling(
    policy: AddressPolicy = LOCAL,
    *,
    timeout_s: float = PATIENCE_S,
    tls: ssl.SSLContext | None = None,
    look_up: Callable[[str], Sequence[str]] | None = None,
    max_idle: int = 32,
) -> AsyncIterator[Callbacks]:
    """Make Callbacks for a test, and close them."""
    more = {} if look_up is None else {"look_up": look_up}
    callbacks = Callbacks(policy, timeout_s=timeout_s, tls=tls, max_idle=max_idle, **more)
    try:
        yield callbacks
    finally:
        await callbacks.close()


def at(url: str) -> CallbackUrl:
    """Return a callback URL, http or https."""
    return parse_callback_url(url, allow_http=True)


async def post(url: str, body: bytes = b"{}", *, timeout_s: float = PATIENCE_S) -> Answer:
    """Call a callback once."""
    async with calling(timeout_s=timeout_s) as callbacks:
        return await callbacks.post(at(url), HEADERS, body)


class RawServer:
    """A server of a few lines: counts connections, keeps requests and knows which are open."""

    def __init__(self, answer: Callable[["RawServer", asyncio.StreamWriter], Awaitable[None]]):
        self._answer = answer
        self.connections = 0
        self.open = 0
        self.requests: list[bytes] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                self.requests.append(head + await reader.readexactly(length))
                await self._answer(self, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def raw_server(
    answer: bytes | Callable[[RawServer, asyncio.StreamWriter], Awaitable[None]],
    *,
    is_closing: bool = False,
) -> AsyncIterator[RawServer]:
    """Serve `answer` on a free port of 127.0.0.1: its bytes to every request, or what it does."""

    async def send(server: RawServer, writer: asyncio.StreamWriter) -> None:
        assert isinstance(answer, bytes)
        writer.write(answer)
        if is_closing:
            raise ConnectionError("as asked")

    raw = RawServer(send if isinstance(answer, bytes) else answer)
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0)
    raw.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield raw
    finally:
        server.close()
        await eventually(lambda: raw.open == 0)


async def raw_answer(data: bytes, *, is_closing: bool = False) -> Answer:
    """Return what comes of an answer of these bytes."""
    async with raw_server(data, is_closing=is_closing) as server:
        return await post(server.url)


# What is sent.


async def test_the_request_is_what_was_asked_for(receiver: Receiver) -> None:
    receiver.reset()
    answer = await post(f"{receiver.url}/good?a=%20b", b'{"a":1}')
    assert (answer.status, answer.error, answer.body) == (200, None, b"ok")
    assert answer.is_success
    assert 0 < answer.duration_s < PATIENCE_S
    (received,) = receiver.requests()
    assert (received.path, received.body) == ("/good?a=%20b", b'{"a":1}')
    assert received.headers == {
        "host": f"127.0.0.1:{receiver.port}",
        "content-length": "7",
        "content-type": "application/json",
        "webhook-id": "msg_1",
    }


@pytest.mark.parametrize("size", [0, 1, 300, 3_000_000])
async def test_a_body_of_any_size_arrives_byte_for_byte(receiver: Receiver, size: int) -> None:
    receiver.reset()
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert (await post(f"{receiver.url}/good", body)).is_success
    assert receiver.requests()[0].body == body


@pytest.mark.parametrize(
    "header", [(b"X-A", b"1\r\nX-B: 2"), (b"X-A\r\nX-B", b"2"), (b"X", b"1\n2"), (b"X", b"1\r2")]
)
async def test_a_header_cannot_smuggle_another_line(header: tuple[bytes, bytes]) -> None:
    async with raw_server(OK) as server, calling() as callbacks:
        answer = await callbacks.post(at(server.url), [header], b"")
        assert (answer.status, answer.error) == (None, "protocol")
        assert server.connections == 0


# What comes back.


@pytest.mark.parametrize("status", [200, 201, 202, 301, 302, 307, 400, 404, 410, 429, 500, 599])
async def test_every_status_is_a_whole_answer(receiver: Receiver, status: int) -> None:
    answer = await post(f"{receiver.url}/status/{status}")
    assert (answer.status, answer.error, answer.body) == (status, None, b"as asked")
    assert answer.is_success is (200 <= status < 300)


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.reset()
    answer = await post(f"{receiver.url}/redirect?to={receiver.url}/good")
    assert (answer.status, answer.error) == (302, None)
    assert [received.path.partition("?")[0] for received in receiver.requests()] == ["/redirect"]


@pytest.mark.parametrize(
    ("data", "status", "body"),
    [
        (CHUNKED + b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", 200, b"abc"),
        (CHUNKED + b"1\r\na\r\n0\r\nX: y\r\n\r\n", 200, b"a"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok"),
        (b"HTTP/1.1 103 Early\r\nRetry-After: 9\r\n\r\nHTTP/1.1 102 P\r\n\r\n" + OK, 200, b"ok"),
        (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
        (OK.replace(b"OK", b"OK\r\nConnection: Upgrade\r\nUpgrade: h2", 1), 200, b"ok"),
    ],
)
async def test_every_framing_of_an_answer_is_read(data: bytes, status: int, body: bytes) -> None:
    answer = await raw_answer(data)
    assert (answer.status, answer.error, answer.body) == (status, None, body)
    assert answer.retry_after_s is None  # an interim answer's headers are not the answer's


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK", b"HTTP/1.1 200 OK\r\nConnection: close"])
async def test_an_answer_can_end_with_its_connection(head: bytes) -> None:
    answer = await raw_answer(head + b"\r\n\r\nto the end", is_closing=True)
    assert (answer.status, answer.error, answer.body) == (200, None, b"to the end")


@pytest.mark.parametrize("size", [10_239, 10_240, 10_241, 200_000])
async def test_no_more_than_10_kb_of_a_body_are_kept(size: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    answer = await raw_answer(head + b"x" * size)
    assert (answer.status, answer.error) == (200, None)
    assert answer.body == b"x" * min(size, 10_240)


async def test_a_body_in_the_smallest_chunks_is_read() -> None:
    answer = await raw_answer(CHUNKED + b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n")
    assert (answer.status, answer.error, len(answer.body)) == (200, None, 10_000)


async def test_an_endless_body_is_cut_and_the_answer_counts() -> None:
    written = 0

    async def send(server: RawServer, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            written += 65536
            await writer.drain()

    async with raw_server(send) as server:
        answer = await post(server.url)
        await eventually(lambda: server.open == 0)  # the connection was closed
    assert (answer.status, answer.error, len(answer.body)) == (200, None, 10_240)
    assert written < 32 * 1024 * 1024  # what the kernel's buffers took


async def test_a_huge_answer_of_a_process_is_cut(receiver: Receiver) -> None:
    answer = await post(f"{receiver.url}/huge")
    assert (answer.status, answer.error, len(answer.body)) == (200, None, 10_240)


# What goes wrong.


async def test_no_answer_in_time_is_a_timeout(receiver: Receiver) -> None:
    answer = await post(f"{receiver.url}/hang-head", timeout_s=0.2)
    assert (answer.status, answer.error, answer.body) == (None, "timeout", b"")
    assert answer.duration_s >= 0.19  # timers are exact to some milliseconds
    assert not answer.is_success


async def test_a_body_that_hangs_midway_is_a_timeout_even_after_200(
    receiver: Receiver, patience: Patience
) -> None:
    call = asyncio.create_task(post(f"{receiver.url}/hang-body"))
    await eventually(lambda: patience.body == b"half")
    patience.end()
    answer = await call
    assert (answer.status, answer.error, answer.body) == (200, "timeout", b"half")
    assert not answer.is_success


async def test_a_slow_answer_within_the_time_is_good(receiver: Receiver) -> None:
    answer = await post(f"{receiver.url}/slow?s=0.3")
    assert (answer.status, answer.error, answer.body) == (200, None, b"late")
    assert answer.duration_s >= 0.29


async def test_an_answer_that_drips_has_one_time_for_all(patience: Patience) -> None:
    async def drip(server: RawServer, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with raw_server(drip) as server:
        call = asyncio.create_task(post(server.url))
        await eventually(lambda: len(patience.body) > 3)
        assert len(patience.seconds) == 2  # the call's, and its part for the connect: none by byte
        patience.end()
        answer = await call
        assert (answer.status, answer.error) == (200, "timeout")


async def test_a_connection_closed_midway_is_no_answer(receiver: Receiver) -> None:
    answer = await post(f"{receiver.url}/close-midway")
    assert (answer.status, answer.error, answer.body) == (200, "connection", b"half")
    assert not answer.is_success


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n",
        CHUNKED + b"1\r\na\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
async def test_an_answer_cut_short_is_a_lost_connection(data: bytes) -> None:
    assert (await raw_answer(data, is_closing=True)).error == "connection"


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        CHUNKED + b"zz\r\n",
        b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 4_000 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000 + OK,
        CHUNKED + b"0\r\nX: " + b"x" * 20_000,
        CHUNKED + b"1;" + b"x" * 20_000,
    ],
    ids=range(14),
)
async def test_what_is_no_http_or_too_long_a_head_is_a_protocol_error(data: bytes) -> None:
    answer = await raw_answer(data)
    assert answer.error == "protocol"
    assert not answer.is_success


async def test_a_head_without_end_is_not_kept() -> None:
    async def send(server: RawServer, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with raw_server(send) as server:
        assert (await post(server.url)).error == "protocol"


async def test_a_closed_port_is_refused() -> None:
    answer = await post(f"http://127.0.0.1:{free_port()}/")
    assert (answer.status, answer.error) == (None, "refused")


async def test_a_connect_that_nobody_answers_is_a_timeout() -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # the kernel drops what comes when the queue is full
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        answer = await post(f"http://127.0.0.1:{full.getsockname()[1]}/", timeout_s=0.3)
    assert (answer.status, answer.error) == (None, "timeout")


async def test_a_cancelled_call_closes_its_connection(receiver: Receiver) -> None:
    async with raw_server(_silent) as server, calling() as callbacks:
        call = asyncio.create_task(callbacks.post(at(server.url), HEADERS, b""))
        await eventually(lambda: len(server.requests) == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await eventually(lambda: server.open == 0)


def test_every_error_is_of_the_closed_set() -> None:
    modules = ("callback", "callback_connection")
    source = "".join((SERVICE / f"{module}.py").read_text() for module in modules)
    calls = re.findall(r"(?:Failed|_Unreachable|_fail)\(([^)]*)\)|^ +error = (.*)$", source, re.M)
    named = set(re.findall(r'"([a-z_]+)"', str(calls)))
    assert named == set(ERRORS)


async def _silent(server: RawServer, writer: asyncio.StreamWriter) -> None:
    """Take requests, and answer none."""


# Retry-After.


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_read(receiver: Receiver, status: int) -> None:
    answer = await post(f"{receiver.url}/retry-after/3?status={status}")
    assert (answer.status, answer.retry_after_s) == (status, 3.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (b"0", 0.0),
        (b" 120 ", 120.0),
        (b"9" * 5000, 366 * 86400.0),
        (b"Fri, 02 Jan 2026 12:00:30 GMT", 30.0),
        (b"Friday, 02-Jan-26 12:00:30 GMT", 30.0),
        (b"Fri Jan  2 12:00:30 2026", 30.0),
        (b"Fri, 02 Jan 2026 13:00:30 +0100", 30.0),
        (b"Fri, 02 Jan 2026 11:00:00 GMT", 0.0),
        (b"Fri, 02 Jan 9999 11:00:00 GMT", 366 * 86400.0),
        (b"-1", None),
        (b"1.5", None),
        (b"\xb2", None),
        (b"", None),
        (b"soon", None),
        (b"Fri, 99 Jan 2026 12:00:30 GMT", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: bytes | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOON) == seconds


@given(st.binary() | st.text(alphabet="0123456789 :,+-JanFriGMT", max_size=40).map(str.encode))
@example(b"Fri, 02 Jan 2026 12:00:30 +" + b"9" * 30)
@example(b"Fri, 02 Jan 99999999999999999999 12:00:30 GMT")
@example(b"Fri, 01 Jan 0001 00:00:00 +2359")
def test_any_retry_after_is_seconds_or_none(value: bytes) -> None:
    seconds = retry_after_s(value, NOON)
    assert seconds is None or 0 <= seconds <= 366 * 86400


# Which address.


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"])
async def test_an_address_that_is_not_public_is_not_called(receiver: Receiver, host: str) -> None:
    receiver.reset()
    async with calling(AddressPolicy(())) as callbacks:
        url = at(f"http://{host}:{receiver.port}/good")
        answer = await callbacks.post(url, HEADERS, b"")
        assert (answer.status, answer.error) == (None, "address_denied")
        why = await callbacks.check(url) or ""
        assert "loopback" in why
        assert "CAUSEWAY_RELAY_ALLOWED_NETWORKS" in why
    assert receiver.count() == 0


async def test_the_connection_goes_to_the_judged_address(receiver: Receiver) -> None:
    """The name has no address at all but the one that we were given for it."""
    receiver.reset()
    asked: list[str] = []

    def look_up(host: str) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    async with calling(look_up=look_up) as callbacks:
        url = at(f"http://callback.invalid:{receiver.port}/good")
        assert (await callbacks.post(url, HEADERS, b"")).is_success
    assert asked == ["callback.invalid"]
    assert receiver.requests()[0].headers["host"] == f"callback.invalid:{receiver.port}"


async def test_dns_that_changes_after_the_check_is_judged_again(receiver: Receiver) -> None:
    receiver.reset()
    answers = iter([["93.184.215.14"], ["127.0.0.1"]])
    async with calling(AddressPolicy(()), look_up=lambda _: next(answers)) as callbacks:
        url = at(f"http://rebind.invalid:{receiver.port}/good")
        assert await callbacks.check(url) is None
        assert (await callbacks.post(url, HEADERS, b"")).error == "address_denied"
    assert receiver.count() == 0


async def test_an_address_that_is_not_allowed_is_passed_over(receiver: Receiver) -> None:
    policy = AddressPolicy(networks("127.0.0.1"))
    found = ["169.254.169.254", "127.0.0.2", "::1", "127.0.0.1"]
    async with calling(policy, look_up=lambda _: found) as callbacks:
        url = at(f"http://mixed.invalid:{receiver.port}/good")
        assert (await callbacks.post(url, HEADERS, b"")).is_success
        assert await callbacks.check(url) is None


async def test_the_next_address_is_tried_when_one_refuses(receiver: Receiver) -> None:
    async with calling(look_up=lambda _: ["::1", "127.0.0.1"]) as callbacks:
        url = at(f"http://both.invalid:{receiver.port}/good")
        assert (await callbacks.post(url, HEADERS, b"")).is_success


async def test_the_next_address_is_tried_when_one_swallows_everything(
    patience: Patience,
) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.2", free_port()))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        with Receiver(port=port):
            look_up = ["127.0.0.2", "127.0.0.1"]
            async with calling(look_up=lambda _: look_up) as callbacks:
                url = at(f"http://both.invalid:{port}/good")
                call = asyncio.create_task(callbacks.post(url, HEADERS, b""))
                await eventually(lambda: len(patience.seconds) == 2)
                patience.end_last()  # the first address has had its share of the time
                answer = await call
    assert answer.is_success, answer
    assert patience.seconds == [PATIENCE_S, PATIENCE_S / 2, PATIENCE_S / 2]


async def test_an_unknown_host_is_a_dns_error() -> None:
    def look_up(host: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with calling(look_up=look_up) as callbacks:
        url = at("https://nobody.invalid/")
        assert (await callbacks.post(url, HEADERS, b"")).error == "dns"
        check = await callbacks.check(url)
        assert check == "the host nobody.invalid can't be resolved: Name or service not known"


async def test_the_system_resolves_localhost(receiver: Receiver) -> None:
    assert (await post(f"http://localhost:{receiver.port}/good")).is_success


async def test_look_ups_of_one_host_at_a_time_are_one_and_hanging_ones_delay_nobody(
    receiver: Receiver, hanging: "Hanging", patience: Patience
) -> None:
    async with calling(look_up=hanging.look_up) as callbacks:
        dead = at(f"http://hanging.invalid:{receiver.port}/good")
        calls = [asyncio.create_task(callbacks.post(dead, HEADERS, b"")) for _ in range(200)]
        await eventually(lambda: len(hanging.asked) > 0)
        good = await callbacks.post(at(f"http://good.invalid:{receiver.port}/good"), HEADERS, b"")
        assert good.is_success
        patience.end()
        assert {answer.error for answer in await asyncio.gather(*calls)} == {"timeout"}
        begun = len(patience.seconds)
        check = asyncio.create_task(callbacks.check(dead))
        await eventually(lambda: len(patience.seconds) > begun)
        patience.end()
        assert "looked up" in (await check or "")
        assert hanging.asked == ["hanging.invalid"]


async def test_the_threads_of_look_ups_are_bounded(hanging: "Hanging", patience: Patience) -> None:
    async with calling(look_up=hanging.look_up) as callbacks:
        urls = [at(f"http://hanging-{n}.invalid/") for n in range(MAX_THREADS + 20)]
        calls = [asyncio.create_task(callbacks.post(url, HEADERS, b"")) for url in urls]
        await eventually(lambda: len(hanging.asked) == MAX_THREADS)
        await eventually(lambda: len(patience.seconds) == len(urls))
        patience.end()
        answers = await asyncio.gather(*calls)
        assert {answer.error for answer in answers} == {"timeout"}
        assert len(hanging.asked) == MAX_THREADS


class Hanging:
    """A look-up that hangs for hosts that say so, until the test ends."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.end = threading.Event()

    def look_up(self, host: str) -> list[str]:
        if host.startswith("hanging"):
            self.asked.append(host)
            self.end.wait()
        return ["127.0.0.1"]


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    look_up = Hanging()
    yield look_up
    look_up.end.set()


async def test_proxies_of_the_environment_are_not_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with raw_server(OK) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert (await post(f"{receiver.url}/good")).is_success
        assert proxy.connections == 0


async def test_nothing_of_a_call_is_logged(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, patience: Patience
) -> None:
    caplog.set_level(logging.DEBUG)
    headers = [(b"X-Key", b"secret-header")]
    for path in ("good", "close-midway", "hang-body"):
        patience.body = b""
        async with calling() as callbacks:
            url = at(f"{receiver.url}/{path}")
            call = asyncio.create_task(callbacks.post(url, headers, b"secret-body"))
            await eventually(lambda: patience.body)
            if path == "hang-body":
                patience.end()
            await call
    assert "secret" not in caplog.text
    assert "half" not in caplog.text


# TLS.


async def test_a_certificate_of_the_host_is_trusted(authority: Authority) -> None:
    with Receiver(certificate=authority.issue("localhost", "127.0.0.1")) as receiver:
        async with calling(tls=authority.client_tls()) as callbacks:
            for host in ("localhost", "127.0.0.1"):
                url = at(f"https://{host}:{receiver.port}/good")
                for _ in range(2):
                    answer = await callbacks.post(url, HEADERS, b"{}" * 100_000)
                    assert (answer.status, answer.error, answer.body) == (200, None, b"ok")
            for path, error in (("huge", None), ("close-midway", "connection")):
                answer = await callbacks.post(at(f"{receiver.url}/{path}"), HEADERS, b"")
                assert (answer.status, answer.error) == (200, error)


@pytest.mark.parametrize("flaw", ["wrong name", "expired", "unknown authority", "by address"])
async def test_a_wrong_certificate_is_a_tls_error_and_nothing_is_sent(
    authority: Authority, tmp_path: Path, flaw: str
) -> None:
    name = "other.example" if flaw == "wrong name" else "localhost"
    issuer = Authority(tmp_path) if flaw == "unknown authority" else authority
    host = "127.0.0.1" if flaw == "by address" else "localhost"
    certificate = issuer.issue(name, is_expired=flaw == "expired")
    with Receiver(certificate=certificate) as receiver:
        async with calling(tls=authority.client_tls()) as callbacks:
            url = at(f"https://{host}:{receiver.port}/good")
            answer = await callbacks.post(url, HEADERS, b"")
        assert (answer.status, answer.error) == (None, "tls")
        assert receiver.count() == 0


async def test_the_systems_authorities_are_asked_by_default(authority: Authority) -> None:
    with Receiver(certificate=authority.issue("localhost")) as receiver:
        assert (await post(f"{receiver.url}/good")).error == "tls"


def test_the_default_verifies_and_takes_no_old_tls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    tls = default_tls()
    assert tls.minimum_version == ssl.TLSVersion.TLSv1_2
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert tls.keylog_filename is None


async def test_a_server_that_hangs_up_in_the_handshake_is_a_tls_error() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert (await post(f"https://127.0.0.1:{port}/")).error == "tls"


async def test_a_server_without_tls_is_a_tls_error() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def talk_plainly() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        talking = asyncio.create_task(asyncio.to_thread(talk_plainly))
        answer = await post(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        await talking
    assert answer.error == "tls"


async def test_a_handshake_that_hangs_is_a_timeout_and_is_closed() -> None:
    async with silent_port() as (port, open_connections):
        answer = await post(f"https://127.0.0.1:{port}/", timeout_s=0.3)
        assert (answer.status, answer.error) == (None, "timeout")
        await eventually(lambda: not open_connections)


@asynccontextmanager
async def silent_port() -> AsyncIterator[tuple[int, set[asyncio.StreamWriter]]]:
    """Accept connections and say nothing; yield the port and the open connections."""
    open_connections: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_connections.add(writer)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        open_connections.discard(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], open_connections


# What is kept open.


async def test_a_connection_is_used_again() -> None:
    async with raw_server(OK) as server:
        async with calling() as callbacks:
            for _ in range(5):
                assert (await callbacks.post(at(server.url), HEADERS, b"")).is_success
            assert (server.connections, len(server.requests)) == (1, 5)
        await eventually(lambda: server.open == 0)  # close() closes it


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20_000,
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
        OK + b"garbage",
        OK + b"H",
    ],
)
async def test_a_connection_that_cannot_be_trusted_is_not_used_again(data: bytes) -> None:
    async with raw_server(data) as server, calling() as callbacks:
        for n in (1, 2):
            answer = await callbacks.post(at(server.url), HEADERS, b"")
            assert (answer.status, answer.error) == (200, None)
            assert b"forged" not in answer.body
            assert server.connections == n


async def test_bytes_that_nobody_asked_for_close_a_kept_connection() -> None:
    go = asyncio.Event()

    async def send(server: RawServer, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        if server.connections == 1:
            await go.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")

    async with raw_server(send) as server, calling() as callbacks:
        await callbacks.post(at(server.url), HEADERS, b"")
        go.set()
        await eventually(lambda: server.open == 0)
        answer = await callbacks.post(at(server.url), HEADERS, b"")
        assert (answer.body, server.connections) == (b"ok", 2)


async def test_a_kept_connection_that_ended_is_replaced_at_once() -> None:
    async def once(server: RawServer, writer: asyncio.StreamWriter) -> None:
        if len(server.requests) == 2:
            raise ConnectionError("closed as the second request comes")
        writer.write(OK)

    async with raw_server(once) as server, calling() as callbacks:
        for _ in range(2):
            assert (await callbacks.post(at(server.url), HEADERS, b"1")).is_success
        assert (server.connections, len(server.requests)) == (2, 3)


async def test_a_kept_connection_is_replaced_once_and_not_for_ever() -> None:
    async def once(server: RawServer, writer: asyncio.StreamWriter) -> None:
        if len(server.requests) > 1:
            raise ConnectionError("closed without an answer")
        writer.write(OK)

    async with raw_server(once) as server, calling() as callbacks:
        await callbacks.post(at(server.url), HEADERS, b"1")
        assert (await callbacks.post(at(server.url), HEADERS, b"1")).error == "connection"
        assert len(server.requests) == 3


async def test_a_kept_connection_that_ends_after_a_byte_is_not_replaced() -> None:
    async def cut(server: RawServer, writer: asyncio.StreamWriter) -> None:
        writer.write(OK if len(server.requests) == 1 else b"H")
        await writer.drain()
        if len(server.requests) > 1:
            raise ConnectionError("closed midway")

    async with raw_server(cut) as server, calling() as callbacks:
        await callbacks.post(at(server.url), HEADERS, b"1")
        assert (await callbacks.post(at(server.url), HEADERS, b"1")).error == "connection"
        assert len(server.requests) == 2


async def test_no_more_than_so_many_connections_are_kept() -> None:
    all_came = asyncio.Event()

    async def together(server: RawServer, writer: asyncio.StreamWriter) -> None:
        if len(server.requests) == 5:
            all_came.set()
        await all_came.wait()
        writer.write(OK)

    async with raw_server(together) as server, calling(max_idle=2) as callbacks:
        await asyncio.gather(*[callbacks.post(at(server.url), HEADERS, b"") for _ in range(5)])
        await eventually(lambda: server.open == 2)
        assert server.connections == 5


async def test_an_unused_connection_is_closed_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(callback_pool, "_SWEEP_S", 0.02)
    async with raw_server(OK) as server, calling() as callbacks:
        await callbacks.post(at(server.url), HEADERS, b"")
        assert server.open == 1
        monkeypatch.setattr(callback_pool, "IDLE_S", 0.1)
        await eventually(lambda: server.open == 0)
        assert (await callbacks.post(at(server.url), HEADERS, b"")).is_success


async def test_a_busy_connection_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback_pool, "MAX_AGE_S", -1.0)
    async with raw_server(OK) as server, calling() as callbacks:
        for n in (1, 2):
            assert (await callbacks.post(at(server.url), HEADERS, b"")).is_success
            assert server.connections == n


async def test_hosts_do_not_share_connections(receiver: Receiver) -> None:
    async with raw_server(OK) as server, calling(look_up=lambda _: ["127.0.0.1"]) as callbacks:
        port = at(server.url).port
        for host in ("a.invalid", "b.invalid"):
            assert (await callbacks.post(at(f"http://{host}:{port}/"), HEADERS, b"")).is_success
        assert server.connections == 2


# The receiver itself.


async def test_the_receiver_fails_each_event_as_often_as_asked(receiver: Receiver) -> None:
    receiver.reset()
    url = f"{receiver.url}/fail/2/then-good"
    assert [(await post(url)).status for _ in range(4)] == [500, 500, 200, 200]
    assert [received.status for received in receiver.requests()] == [500, 500, 200, 200]


async def test_the_receiver_verifies_as_a_handler_of_bridge_does(receiver: Receiver) -> None:
    receiver.set_secrets("new", "old")
    async with calling() as callbacks:
        for secrets, status in (
            (["new"], 200), (["old", "else"], 200), (["else"], 401), ([], 401),
        ):  # fmt: skip
            header = (HEADER.encode(), sign(b"{}", secrets).encode())
            answer = await callbacks.post(at(f"{receiver.url}/bridge"), [header], b"{}")
            assert answer.status == status
