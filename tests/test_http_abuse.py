"""HTTP as nobody would write it, on raw sockets, against real processes: bounded, unambiguous.

After each shape the connection is closed or its answers are those of as many requests as were sent,
in their order; Bridge's webhooks are answered all the while, and the log of the process shows no
error of ours.
"""

import asyncio
import gzip
import os
import re
import resource
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import asyncpg
import httpx2
import pytest

from service.embedded import EmbeddedPostgres
from service.refusal import HEAD_MAX_BYTES, PIPELINE_MAX
from service.signature import HEADER, sign
from tests.bridge import body, post
from tests.conftest import TEMPLATE, with_database
from tests.nginx import nginx_before
from tests.raw import Wire, webhook_call, webhook_head, wire
from tests.running import (
    ADMIN_TOKEN,
    SECRET,
    STREAM_TOKEN,
    WITHIN_S,
    Process,
    environment,
    execute_alone,
    service_process,
)

_, FILES = resource.getrlimit(resource.RLIMIT_NOFILE)
MANY = 4000 if FILES == resource.RLIM_INFINITY else min(4000, FILES // 2)
ROOM = MANY // 2
PATIENT_S = 300.0  # longer than a busy machine takes for what is sent at once
HASTY_S = 3.0
LAST = b"GET /livez HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
INNER = b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def process(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """One process for all that is sent at once, patient, with room for half of the connections."""
    with _serving(postgres, tmp_path_factory.mktemp("abuse") / "log", PATIENT_S) as running:
        yield running


@pytest.fixture(scope="module")
def hasty(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """One process for all that comes too slowly."""
    with _serving(postgres, tmp_path_factory.mktemp("hasty") / "log", HASTY_S) as running:
        yield running


@contextmanager
def _serving(postgres: EmbeddedPostgres, log: Path, timeout_s: float) -> Iterator[Process]:
    name = f"abuse_{os.getpid()}_{round(timeout_s)}"
    asyncio.run(_execute(postgres.owner_url, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
    env = environment(
        DATABASE_URL=with_database(postgres.service_url, name),
        CAUSEWAY_HEAD_TIMEOUT_S=str(timeout_s),
        CAUSEWAY_BODY_TIMEOUT_S=str(timeout_s),
        CAUSEWAY_APPEND_TIMEOUT_S=str(PATIENT_S),
        CAUSEWAY_CONNECTIONS_MAX=str(ROOM),
    )
    with service_process(env, log) as running:
        yield running
    asyncio.run(_execute(postgres.owner_url, f"DROP DATABASE {name} WITH (FORCE)"))


@contextmanager
def halted(process: Process) -> Iterator[None]:
    """Let a process do nothing for the block: what is sent to it meanwhile is there as a whole."""
    process.popen.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.popen.send_signal(signal.SIGCONT)


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await execute_alone(connection, statement)
    finally:
        await connection.close()


@pytest.fixture(autouse=True)
async def ingest_stays_up(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Webhooks are answered while a test goes on and after it, and nothing of ours failed."""
    name = "hasty" if "hasty" in request.fixturenames else "process"
    process: Process = request.getfixturevalue(name)
    over = asyncio.Event()
    watching = asyncio.create_task(_keep_sending(process.url, over))
    yield
    over.set()
    await watching
    assert '"level":"error"' not in process.output()
    assert "Traceback" not in process.output()


async def _keep_sending(url: str, over: asyncio.Event) -> None:
    """Send webhooks, each on a connection of its own; each that was sent in time is answered."""
    while True:
        began = time.monotonic()
        try:
            async with wire(url) as it:
                await it.send(webhook_call(body()))
                is_answered = (await it.answer()).status == 200
        except (ConnectionError, asyncio.IncompleteReadError):
            is_answered = False
        assert is_answered or time.monotonic() - began > HASTY_S
        if over.is_set() and is_answered:
            return
        await asyncio.wait([asyncio.create_task(over.wait())], timeout=0.05)


async def everything(it: Wire) -> bytes:
    """Return what comes until the connection is closed."""
    got = b""
    try:
        async with asyncio.timeout(WITHIN_S):
            while data := await it.reader.read(65536):
                got += data
    except ConnectionError:
        pass  # closed, with something of ours unread
    return got


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


async def talk(url: str, *parts: bytes) -> bytes:
    """Send parts, each a segment of its own, and return what comes until the end."""
    async with wire(url) as it:
        for part in parts:
            await it.send(part)
            await asyncio.sleep(0)
        return await everything(it)


def resident_bytes(process: Process) -> int:
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


PAYLOAD = body()
SIGNED = f"{HEADER}: {sign(PAYLOAD, [SECRET])}\r\n".encode()
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(PAYLOAD), PAYLOAD)
LENGTH = b"Content-Length: %d\r\n" % len(PAYLOAD)


def call(headers: bytes, payload: bytes = PAYLOAD, line: bytes = b"") -> bytes:
    line = line or b"POST /webhooks/bridge HTTP/1.1"
    return b"%b\r\nHost: test\r\n%b%b\r\n%b" % (line, SIGNED, headers, payload)


def get(line: bytes, headers: bytes = b"Host: test\r\n") -> bytes:
    return b"%b\r\n%b\r\n" % (line, headers)


# What is sent, before a request that closes the connection, and the statuses of the answers.
SHAPES: dict[str, tuple[bytes, list[int]]] = {
    "length and chunked": (call(b"Content-Length: 5\r\n" + CHUNKED, CHUNKS), [400]),
    "chunked and length": (call(CHUNKED + b"Content-Length: 5\r\n", CHUNKS), [400]),
    "chunked twice": (call(CHUNKED + CHUNKED, CHUNKS), [400]),
    "xchunked": (call(b"Transfer-Encoding: xchunked\r\n", CHUNKS), [501]),
    "quoted chunked": (call(b'Transfer-Encoding: "chunked"\r\n', CHUNKS), [501]),
    "gzip, chunked": (call(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS), [501]),
    "chunked, identity": (call(b"Transfer-Encoding: chunked, identity\r\n", CHUNKS), [400]),
    "space before colon": (call(b"Transfer-Encoding : chunked\r\n", CHUNKS), [400]),
    "vertical tab": (call(b"Transfer-Encoding: \x0bchunked\r\n", CHUNKS), [400]),
    "folded line": (call(b"Transfer-Encoding:\r\n chunked\r\n", CHUNKS), [400]),
    "tab before the value": (call(b"Transfer-Encoding:\tchunked\r\n", CHUNKS), [200, 200]),
    "same length twice": (call(LENGTH + LENGTH), [400]),
    "two lengths": (call(LENGTH + b"Content-Length: 0\r\n"), [400]),
    "a list of lengths": (call(b"Content-Length: 5, 5\r\n"), [400]),
    "length with plus": (call(b"Content-Length: +5\r\n"), [400]),
    "length with minus": (call(b"Content-Length: -5\r\n"), [400]),
    "length with a space": (call(b"Content-Length: 5 1\r\n"), [400]),
    "length in hex": (call(b"Content-Length: 0x10\r\n"), [400]),
    "length beyond 64 bits": (call(b"Content-Length: 99999999999999999999\r\n"), [400]),
    "empty length": (call(b"Content-Length: \r\n"), [400]),
    "bare line feeds": (call(LENGTH).replace(b"\r\n", b"\n"), [400]),
    "bare carriage returns": (call(LENGTH).replace(b"\r\n", b"\r"), [400]),
    "line feeds after the first line": (
        call(LENGTH).replace(b"\r\n", b"\n").replace(b"1.1\n", b"1.1\r\n"),
        [400],
    ),
    "chunk extension": (call(CHUNKED, CHUNKS.replace(b"\r\n", b';a="b"\r\n', 1)), [200, 200]),
    "chunk extension with line feed": (call(CHUNKED, CHUNKS.replace(b"\r\n", b";\n", 1)), [400]),
    "chunk size beyond 64 bits": (call(CHUNKED, b"1" + b"0" * 14 + CHUNKS), [400]),
    "chunk size with 0x": (call(CHUNKED, b"0x" + CHUNKS), [400]),
    "chunk size with space": (call(CHUNKED, CHUNKS.replace(b"\r\n", b" \r\n", 1)), [400]),
    "negative chunk size": (call(CHUNKED, b"-" + CHUNKS), [400]),
    "chunk without its end": (call(CHUNKED, CHUNKS.replace(b"\r\n0", b"0")), [400]),
    "length in the trailers": (
        call(CHUNKED, CHUNKS[:-2] + b"Content-Length: 40\r\n\r\n"),
        [400],
    ),
    "request in a body": (call(b"Content-Length: %d\r\n" % len(INNER), INNER), [401]),
    "absolute target": (get(b"GET http://elsewhere/livez HTTP/1.1"), [200, 200]),
    "absolute target, no path": (get(b"GET http://elsewhere HTTP/1.1"), [400]),
    "asterisk": (get(b"OPTIONS * HTTP/1.1"), [404, 200]),
    "tunnel": (get(b"CONNECT elsewhere:443 HTTP/1.1") + INNER, [405]),
    "tunnel to a path": (get(b"CONNECT /livez HTTP/1.1") + INNER, [405]),
    "NUL in a header": (get(b"GET /livez HTTP/1.1", b"Host: test\r\nX: a\0b\r\n"), [400]),
    "NUL in the path": (get(b"GET /livez\0 HTTP/1.1"), [400]),
    "bytes beyond ASCII in the path": (get(b"GET /\xff HTTP/1.1"), [400]),
    "header without a colon": (get(b"GET /livez HTTP/1.1", b"Host: test\r\nnothing\r\n"), [400]),
    "header without a name": (get(b"GET /livez HTTP/1.1", b"Host: test\r\n: x\r\n"), [400]),
    "HTTP/0.9": (b"GET /livez\r\n", [400]),
    "HTTP/0.9 by name": (get(b"GET /livez HTTP/0.9"), [400]),
    "HTTP/1.0": (get(b"GET /livez HTTP/1.0", b"Connection: keep-alive\r\n"), [200]),
    "HTTP/1.2": (get(b"GET /livez HTTP/1.2"), [400]),
    "HTTP/2.0": (get(b"GET /livez HTTP/2.0"), [400]),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "HTTP/1.0 that asks for more": (
        get(b"GET /livez HTTP/1.0", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
        [200],
    ),
    "no host": (get(b"GET /livez HTTP/1.1", b"X: y\r\n"), [400]),
    "two hosts": (get(b"GET /livez HTTP/1.1", b"Host: a\r\nHost: b\r\n"), [400]),
    "half an address as host": (get(b"GET /nowhere HTTP/1.1", b"Host: [\r\n"), [404, 200]),
    "bytes beyond ASCII as host": (get(b"GET /nowhere HTTP/1.1", b"Host: \xff\r\n"), [404, 200]),
    "websocket": (
        get(b"GET /livez HTTP/1.1", b"Host: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"),
        [200, 200],
    ),
    "h2c with a body": (call(LENGTH + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"), [200, 200]),
    "h2c with chunks": (
        call(CHUNKED + b"Connection: Upgrade\r\nUpgrade: h2c\r\n", CHUNKS),
        [200, 200],
    ),
    "close": (call(LENGTH + b"Connection: close\r\n") + INNER, [200]),
    "close among others": (call(LENGTH + b"Connection: x, close, keep-alive\r\n") + INNER, [200]),
    "another expectation": (call(LENGTH + b"Expect: the-best\r\n"), [200, 200]),
    "expectation": (call(LENGTH + b"Expect: 100-continue\r\n"), [100, 200, 200]),
    "empty lines first": (b"\r\n\r\n" + get(b"GET /livez HTTP/1.1"), [200, 200]),
    "HEAD": (get(b"HEAD /livez HTTP/1.1"), [200, 200]),
    "OPTIONS": (get(b"OPTIONS /webhooks/bridge HTTP/1.1"), [405, 200]),
    "TRACE": (get(b"TRACE /livez HTTP/1.1"), [405, 200]),
    "unknown method": (get(b"BREW /livez HTTP/1.1"), [400]),
    "two slashes": (get(b"POST //webhooks/bridge HTTP/1.1"), [404, 200]),
    "encoded slash and dots": (get(b"POST /webhooks/bridge%2f.. HTTP/1.1"), [404]),
    "dots and a semicolon": (get(b"POST /webhooks/bridge/..;/x HTTP/1.1"), [404, 200]),
    "no UTF-8": (get(b"POST /webhooks/bridge/%ff%fe%zz HTTP/1.1"), [404]),
    "encoded NUL": (get(b"POST /webhooks/bridge/%00 HTTP/1.1"), [404]),
    "encoded surrogate": (get(b"GET /%ed%a0%80 HTTP/1.1"), [404, 200]),
    "encoded line ends": (get(b"GET /dashboard%0d%0aX:y HTTP/1.1"), [404, 200]),
    "5,000 parameters": (get(b"GET /stream?" + b"a=1&" * 5000 + b" HTTP/1.1"), [400, 200]),
    "a long path": (get(b"GET /" + b"a" * 60_000 + b" HTTP/1.1"), [404, 200]),
    "a path too long": (get(b"GET /" + b"a" * HEAD_MAX_BYTES + b" HTTP/1.1"), [431]),
    "a header too long": (
        get(b"GET /livez HTTP/1.1", b"Host: test\r\nX: " + b"a" * HEAD_MAX_BYTES + b"\r\n"),
        [431],
    ),
    "too many headers": (get(b"GET /livez HTTP/1.1", b"Host: test\r\n" + b"a: b\r\n" * 200), [431]),
    "compressed": (
        webhook_call(gzip.compress(PAYLOAD)).replace(
            b"Host: test\r\n", b"Host: test\r\nContent-Encoding: gzip\r\n"
        ),
        [400, 200],
    ),
    "longer than its length": (call(LENGTH) + b"more of it\r\n", [200]),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_shape_gets_the_answers_of_what_was_sent(process: Process, shape: str) -> None:
    sent, expected = SHAPES[shape]
    answers = await talk(process.url, sent + LAST)
    assert statuses(answers) == expected, answers[-600:]
    assert b"smuggled" not in answers


async def test_the_same_bytes_in_other_segments_get_the_same_answers(process: Process) -> None:
    for shape, (sent, expected) in SHAPES.items():
        if expected[1:] and len(sent) < 2000:  # none is closed before all of it is sent
            data = sent + LAST
            parts = [data[at : at + 11] for at in range(0, len(data), 11)]
            assert statuses(await talk(process.url, *parts)) == expected, shape


async def test_every_refusal_has_the_form_of_errors_and_closes(process: Process) -> None:
    for shape, (sent, expected) in SHAPES.items():
        if expected[0] not in (400, 405, 431, 501) or len(expected) > 1:
            continue
        head, _, rest = (await talk(process.url, sent + LAST)).partition(b"\r\n\r\n")
        assert b"connection: close" in head, shape
        assert b"x-request-id: " in head, shape
        assert re.fullmatch(rb'\{"error":\{"code":"\w+","message":".+"\}\}', rest), shape
        assert b'"request_id":"' in rest, shape


async def test_behind_nginx_no_shape_becomes_two_requests(process: Process, tmp_path: Path) -> None:
    with nginx_before([process.url], tmp_path / "nginx") as url:
        async with httpx2.AsyncClient() as client, asyncio.timeout(WITHIN_S):
            while True:
                try:
                    await client.get(f"{url}/livez")
                    break
                except httpx2.TransportError:
                    await asyncio.sleep(0.02)
        for shape, (sent, expected) in SHAPES.items():
            if shape == "HTTP/0.9":
                continue  # nginx speaks it, and answers without a status
            answers = await talk(url, sent + LAST)
            final = [status for status in statuses(answers) if status != 100]
            most = len([status for status in expected if status != 100])
            # nginx refuses some itself, and drops what it does not forward.
            assert 1 <= len(final) <= max(most, 2), (shape, answers)
            assert b"smuggled" not in answers, shape


# Requests sent ahead


async def test_100_webhooks_at_once_are_answered_in_their_order(process: Process) -> None:
    calls = b"".join(webhook_call(body()) for _ in range(100))
    answers = await talk(process.url, calls + LAST)
    assert statuses(answers) == [200] * 101
    positions = [int(at) for at in re.findall(rb"causeway-position: (\d+)", answers)]
    assert len(positions) == 100
    assert positions == sorted(set(positions))


async def test_no_more_than_a_bounded_number_of_requests_waits(process: Process) -> None:
    async with wire(process.url) as it:
        with halted(process):
            await it.send(get(b"GET /livez HTTP/1.1") * 2000)
        answers = await everything(it)
    assert statuses(answers) == [200] * (PIPELINE_MAX + 1)


async def test_a_flood_of_requests_sent_ahead_takes_no_memory(process: Process) -> None:
    before = resident_bytes(process)
    flood = get(b"GET /livez HTTP/1.1") * 6000

    async def one() -> None:
        async with wire(process.url) as it:
            try:
                async with asyncio.timeout(2):
                    for _ in range(40):
                        await it.send(flood)
            except (ConnectionError, TimeoutError):
                return

    await asyncio.gather(*(one() for _ in range(10)))
    assert resident_bytes(process) - before < 50 * MIB


@pytest.mark.parametrize("rest", [b"\0\0\0", b"GET / HTTP/9.9\r\n\r\n", b"x" * 100])
async def test_what_follows_a_request_takes_no_answer_from_it(
    process: Process, rest: bytes
) -> None:
    calls = [webhook_call(body()) for _ in range(3)]
    answers = await talk(process.url, b"".join(calls) + rest)
    assert statuses(answers) == [200] * 3


async def test_a_broken_body_takes_no_answer_from_the_request_before(process: Process) -> None:
    broken = webhook_head(None, "v1=00") + b"zz\r\n"
    assert statuses(await talk(process.url, broken)) == [400]
    assert statuses(await talk(process.url, webhook_call(body()) + broken)) == [200]


async def test_a_request_that_was_answered_early_gets_no_second_answer(process: Process) -> None:
    head = b"POST /api/tokens HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with wire(process.url) as it:
        await it.send(head)
        assert (await it.answer()).status == 401
        await it.send(b"zz\r\n")
        assert await it.is_closed()


async def test_a_bad_target_is_refused_after_others_too(process: Process) -> None:
    async with wire(process.url) as it:
        await it.send(get(b"GET /livez HTTP/1.1"))
        assert (await it.answer()).status == 200
        await it.send(get(b"GET http://elsewhere HTTP/1.1"))
        assert (await it.answer()).status == 400
        assert await it.is_closed()


STREAM = (
    f"GET /stream?from=start HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {STREAM_TOKEN}\r\n\r\n"
).encode()


async def test_garbage_after_a_stream_ends_it_without_a_word(process: Process) -> None:
    async with wire(process.url) as it:
        await it.send(STREAM)
        await it.reader.readuntil(b"retry: ")
        await it.send(b"\0garbage\r\n\r\n")
        assert statuses(await everything(it)) == []


async def test_a_request_after_a_stream_waits_for_its_end(process: Process) -> None:
    async with wire(process.url) as it:
        await it.send(STREAM + webhook_call(body()))
        for _ in range(2):
            assert (await post(process.url, body())).status_code == 200
        await it.reader.readuntil(b"retry: ")
        assert statuses(await it.reader.readuntil(b"\nevent: ")) == []
    # The client is gone, unseen while it may not send: nothing of ours fails at that.
    for _ in range(5):
        assert (await post(process.url, body())).status_code == 200


async def test_trailers_add_nothing_to_a_request(process: Process) -> None:
    head = b"POST /api/tokens HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailers = b"0\r\nAuthorization: Bearer %b\r\n\r\n" % ADMIN_TOKEN.encode()
    assert statuses(await talk(process.url, head + trailers + LAST)) == [401, 200]


async def test_a_body_after_an_upgrade_is_no_request(process: Process) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n" % len(INNER)
    head = get(b"POST /api/tokens HTTP/1.1", b"Host: test\r\n" + upgrade)
    async with wire(process.url) as it:
        await it.send(head)
        assert (await it.answer()).status == 401
        await it.send(INNER + LAST)
        answers = await everything(it)
    assert statuses(answers) == [200]
    assert b"smuggled" not in answers


# Time


async def trickle(it: Wire, byte: bytes) -> None:
    """Send a byte again and again until the other end closes."""
    try:
        async with asyncio.timeout(WITHIN_S):
            while not it.reader.at_eof():
                await it.send(byte)
                await asyncio.sleep(0.02)
    except ConnectionError:
        pass


BEGINNINGS = {
    "empty lines": (b"", b"\r\n"),
    "a header": (b"GET /livez HTTP/1.1\r\nHost: test\r\nX: ", b"a"),
    "a path": (b"GET /", b"a"),
    "a second request": (get(b"GET /livez HTTP/1.1"), b"G"),
    "empty lines after a request": (get(b"GET /livez HTTP/1.1"), b"\r\n"),
    "half a request after one": (get(b"GET /livez HTTP/1.1") + b"GET /livez HTTP/1.1\r\nX: ", b"a"),
    "a body": (webhook_head(10_000, "v1=00"), b"x"),
    "a body that nobody reads": (
        get(b"POST /api/tokens HTTP/1.1", b"Host: test\r\nContent-Length: 10000\r\n"),
        b"x",
    ),
    "chunk extensions": (webhook_head(None, "v1=00") + b"1;", b"x"),
    "trailers": (webhook_head(None, "v1=00") + b"1\r\nx\r\n0\r\nX: ", b"x"),
}


async def test_every_trickle_is_cut_in_time(hasty: Process) -> None:
    async def one(beginning: str) -> None:
        begin, byte = BEGINNINGS[beginning]
        async with wire(hasty.url) as it:
            await it.send(begin)
            await trickle(it, byte)
            await everything(it)

    await asyncio.gather(*map(one, BEGINNINGS))


async def test_a_slow_head_is_told_so_in_our_form(hasty: Process) -> None:
    async with AsyncExitStack() as stack:
        with halted(hasty):  # or it is too slow for a single byte
            it = await stack.enter_async_context(wire(hasty.url))
            await it.send(b"GET /livez HTTP/1.1\r\nX: ")
        answer = await it.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert b'"code":"head_timeout"' in answer.body
        assert await it.is_closed()


async def test_a_connection_without_a_byte_is_closed_without_a_word(hasty: Process) -> None:
    async with wire(hasty.url) as it:
        assert await it.is_closed()


async def test_a_body_shorter_than_its_length_is_no_event(hasty: Process) -> None:
    payload = body()
    async with AsyncExitStack() as stack:
        with halted(hasty):
            it = await stack.enter_async_context(wire(hasty.url))
            await it.send(webhook_call(payload)[:-1])
        assert (await it.answer()).status == 408
        assert await it.is_closed()
    async with AsyncExitStack() as stack:
        with halted(hasty):
            it = await stack.enter_async_context(wire(hasty.url))
            await it.send(webhook_call(payload))
        answer = await it.answer()
    assert answer.status == 200
    assert "causeway-duplicate" not in answer.headers


async def test_many_slow_heads_keep_nobody_out(hasty: Process) -> None:
    async def one() -> None:
        async with wire(hasty.url) as it:
            await it.send(b"GET /")
            await trickle(it, b"a")

    await asyncio.gather(*(one() for _ in range(100)))


async def test_half_open_connections_make_room(process: Process) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    async with AsyncExitStack() as stack:
        for _ in range(MANY):
            await stack.enter_async_context(wire(process.url))
        async with httpx2.AsyncClient() as client:
            assert (await post(process.url, body(), client=client)).status_code == 200
            async with asyncio.timeout(WITHIN_S):
                while await _crowded(client, process.url) < MANY - ROOM:
                    await asyncio.sleep(0.05)


async def _crowded(client: httpx2.AsyncClient, url: str) -> int:
    """Return how many connections had to make room."""
    metrics = (await client.get(f"{url}/metrics")).text
    return sum(map(int, re.findall(r'connections_cut_total\{reason="crowded"\} (\d+)', metrics)))


# Size

ENDLESS = {
    "a header": (b"GET /livez HTTP/1.1\r\nHost: test\r\nX: ", b"a"),
    "headers": (b"GET /livez HTTP/1.1\r\nHost: test\r\n", b"a: b\r\n"),
    "a path": (b"GET /", b"a"),
    "empty lines": (b"", b"\r\n"),
    "a chunk extension": (webhook_head(None, "v1=00") + b"1;", b"a"),
    "trailers": (webhook_head(None, "v1=00") + b"1\r\nx\r\n0\r\n", b"a: b\r\n"),
    "a trailer": (webhook_head(None, "v1=00") + b"1\r\nx\r\n0\r\nX: ", b"a"),
    "a body": (webhook_head(10**15, "v1=00"), b"a"),
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_what_never_ends_is_cut_and_takes_no_memory(process: Process, what: str) -> None:
    begin, piece = ENDLESS[what]
    before = resident_bytes(process)
    sent = 0
    async with wire(process.url) as it:
        await it.send(begin)
        try:
            async with asyncio.timeout(WITHIN_S):
                while not it.reader.at_eof():
                    await it.send(piece * (MIB // len(piece)))
                    sent += 1
        except ConnectionError:
            pass
    assert sent < 40, f"{sent} MiB were taken"
    assert resident_bytes(process) - before < 30 * MIB


async def test_a_bomb_is_not_inflated(process: Process) -> None:
    bomb = gzip.compress(b"\0" * 100 * MIB)
    before = resident_bytes(process)
    head = webhook_head(len(bomb), sign(bomb, [SECRET]), more="Content-Encoding: gzip\r\n")
    answers = await talk(process.url, head + bomb + LAST)
    assert statuses(answers) == [400, 200]
    assert resident_bytes(process) - before < 30 * MIB
    token = f"Authorization: Bearer {ADMIN_TOKEN}\r\n"
    small = gzip.compress(b"{}" + b" " * 10 * MIB)
    head = webhook_head(len(small), path="/api/tokens", more=token + "Content-Encoding: gzip\r\n")
    assert statuses(await talk(process.url, head + small + LAST)) == [400, 200]
