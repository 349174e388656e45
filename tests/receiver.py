"""A callback receiver as a real process: the far side of the relay, good and bad at the byte level.

`python -m tests.receiver` prints its port and serves until its standard input ends. What it answers
is a function from the request (`ANSWERS`, by the first part of the path); what it got and answered
is kept, and given out at `/_requests`.
"""

import argparse
import asyncio
import base64
import hmac
import http.client
import json
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, cast
from urllib.parse import parse_qs

import httptools
import uvloop

from tests.certificates import Certificate

ROOT = Path(__file__).parent.parent
HANG = None  # nothing more comes, and the connection stays open
WITHIN_S = 60.0
HUGE_PIECE = b"x" * 65536

# Bytes to send, seconds or an event to wait for, or HANG. At its end the connection is closed.
Script = Iterator[bytes | float | asyncio.Event | None]


@dataclass(frozen=True, slots=True)
class Received:
    """One call as it came, and the status it was answered with."""

    path: str  # with the query
    headers: dict[str, str]  # names in lower case
    body: bytes
    at: float  # Unix time
    status: int | None  # None: no head of an answer was sent


@dataclass(slots=True)
class Call:
    """A request on its way through the receiver."""

    target: str
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    def header(self, name: bytes) -> bytes:
        return next((value for key, value in self.headers if key.lower() == name), b"")

    def query(self, name: str, default: str) -> str:
        return parse_qs(self.target.partition("?")[2]).get(name, [default])[0]

    def part(self, index: int) -> str:
        return self.target.partition("?")[0].split("/")[index]


@dataclass(slots=True)
class State:
    """What the receiver remembers."""

    secrets: list[str]
    received: list[tuple[Call, float, int | None]] = field(default_factory=list)
    tries: Counter[bytes] = field(default_factory=Counter)
    released: asyncio.Event = field(default_factory=asyncio.Event)


def response(status: int, body: bytes = b"", *headers: bytes) -> bytes:
    """Return an answer's bytes."""
    head = b"HTTP/1.1 %d Status\r\nContent-Length: %d\r\n" % (status, len(body))
    return head + b"".join(b"%b\r\n" % header for header in headers) + b"\r\n" + body


GOOD = response(200, b"ok")
Answer = tuple[int | None, bytes | Script]


def _good(call: Call, state: State) -> Answer:
    return 200, GOOD


def _slow(call: Call, state: State) -> Answer:
    def script() -> Script:
        yield float(call.query("s", "0.5"))
        yield response(200, b"late", b"Connection: close")

    return 200, script()


def _held(call: Call, state: State) -> Answer:
    """`/held/100`: whatever comes after the hundredth call is answered when a test says so.

    With `?status=500` it is told so then.
    """
    if len(state.received) < int(call.part(2)):
        return 200, GOOD
    status = int(call.query("status", "200"))

    def script() -> Script:
        yield state.released
        yield response(status, b"released", b"Connection: close")

    return status, script()


def _hang_head(call: Call, state: State) -> Answer:
    return None, iter([b"HTTP/1.1 200 OK\r\nConte", HANG])


def _hang_body(call: Call, state: State) -> Answer:
    return 200, iter([b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", HANG])


def _status(call: Call, state: State) -> Answer:
    status = int(call.part(2))
    return status, response(status, b"as asked")


def _say(call: Call, state: State) -> Answer:
    """`/say/500?text=...`: that text, whatever it is."""
    status = int(call.part(2))
    return status, response(status, call.query("text", "").encode())


def _fail(call: Call, state: State) -> Answer:
    """`/fail/2/then-good`: each webhook-id fails twice; `?only=text`: where the body has it."""
    if call.query("only", "").encode() not in call.body:
        return 200, GOOD
    event = call.header(b"webhook-id")
    state.tries[event] += 1
    return (500, response(500)) if state.tries[event] <= int(call.part(2)) else (200, GOOD)


def _retry_after(call: Call, state: State) -> Answer:
    status = int(call.query("status", "429"))
    return status, response(status, b"", b"Retry-After: " + call.part(2).encode())


def _gone(call: Call, state: State) -> Answer:
    return 410, response(410)


def _redirect(call: Call, state: State) -> Answer:
    return 302, response(302, b"", b"Location: " + call.query("to", "/good").encode())


def _huge(call: Call, state: State) -> Answer:
    def script() -> Script:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        while True:
            yield b"%x\r\n%b\r\n" % (len(HUGE_PIECE), HUGE_PIECE)

    return 200, script()


def _close_midway(call: Call, state: State) -> Answer:
    return 200, iter([b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"])


def _bridge(call: Call, state: State) -> Answer:
    """A handler as one writes it for Bridge: any `v1` part that any of our secrets made."""
    digests = [hmac.new(s.encode(), call.body, "sha256").hexdigest() for s in state.secrets]
    for part in call.header(b"bridgeapi-signature").decode("ascii").split(","):
        scheme, _, claim = part.strip().partition("=")
        if scheme == "v1" and any(hmac.compare_digest(claim.lower(), d) for d in digests):
            return 200, GOOD
    return 401, response(401)


def _requests(call: Call, state: State) -> Answer:
    return 200, response(200, b"".join(_line(*entry) for entry in state.received))


def _line(call: Call, at: float, status: int | None) -> bytes:
    headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in call.headers}
    body = base64.b64encode(call.body).decode()
    line = {"path": call.target, "headers": headers, "body": body, "at": at, "status": status}
    return json.dumps(line).encode() + b"\n"


def _count(call: Call, state: State) -> Answer:
    return 200, response(200, b"%d" % len(state.received))


def _reset(call: Call, state: State) -> Answer:
    state.received.clear()
    state.tries.clear()
    return 200, GOOD


def _release(call: Call, state: State) -> Answer:
    state.released.set()
    return 200, GOOD


def _let_go(call: Call, state: State) -> Answer:
    state.released.set()
    state.released = asyncio.Event()
    return 200, GOOD


def _set_secrets(call: Call, state: State) -> Answer:
    state.secrets = json.loads(call.body)
    return 200, GOOD


ANSWERS: dict[str, Callable[[Call, State], Answer]] = {
    "good": _good,
    "slow": _slow,
    "held": _held,
    "hang-head": _hang_head,
    "hang-body": _hang_body,
    "status": _status,
    "say": _say,
    "fail": _fail,
    "retry-after": _retry_after,
    "gone": _gone,
    "redirect": _redirect,
    "huge": _huge,
    "close-midway": _close_midway,
    "bridge": _bridge,
    "_requests": _requests,
    "_count": _count,
    "_reset": _reset,
    "_release": _release,
    "_let_go": _let_go,
    "_secrets": _set_secrets,
}


class _Connection(asyncio.Protocol):
    """One connection of a caller. Plain answers are written at once, scripts by a task."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._parser = httptools.HttpRequestParser(self)
        self._writable = asyncio.Event()
        self._writable.set()
        self._script: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._script is not None:
            self._script.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._call = Call("")
        self._pieces: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self._call.target += url.decode("ascii")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._call.headers.append((name, value))

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        call = self._call
        call.body = b"".join(self._pieces)
        name = call.part(1)
        answer = ANSWERS.get(name)
        status, content = answer(call, self._state) if answer else (404, response(404))
        if not name.startswith("_"):
            self._state.received.append((call, time.time(), status))
        if isinstance(content, bytes):
            self._transport.write(content)
        else:
            self._script = asyncio.create_task(self._play(content))

    async def _play(self, script: Script) -> None:
        for step in script:
            if step is HANG:
                await asyncio.Event().wait()  # until the caller goes
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, bytes):
                self._transport.write(step)
                await self._writable.wait()
                await asyncio.sleep(0)  # a set event would not let the loop see the caller go
            else:
                await asyncio.sleep(step)
        self._transport.close()


async def serve(port: int, secrets: list[str], tls: ssl.SSLContext | None) -> None:
    """Print the port, and serve on it until the standard input ends."""
    loop = asyncio.get_running_loop()
    state = State(secrets)
    server = await loop.create_server(lambda: _Connection(state), "127.0.0.1", port, ssl=tls)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    print(server.sockets[0].getsockname()[1], flush=True)
    await ended.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="A callback receiver for tests.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--certificate", nargs=2, metavar=("CHAIN", "KEY"))
    parser.add_argument("--secret", action="append", default=[])
    arguments = parser.parse_args()
    tls = Certificate(*arguments.certificate).server_tls() if arguments.certificate else None
    uvloop.run(serve(arguments.port, arguments.secret, tls))


class Receiver:
    """A receiver in a process of its own, from `with` to its end."""

    def __init__(
        self, *, certificate: Certificate | None = None, secrets: Sequence[str] = (), port: int = 0
    ) -> None:
        self._certificate = certificate
        command = [sys.executable, "-m", "tests.receiver", "--port", str(port)]
        command += [f"--secret={secret}" for secret in secrets]
        if certificate is not None:
            command += ["--certificate", certificate.chain, certificate.key]
        self._command = command
        self.host = "127.0.0.1" if certificate is None else "localhost"

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self.popen = subprocess.Popen(self._command, cwd=ROOT, stdin=pipe, stdout=pipe)
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, "the receiver did not start"
        self.port = int(line)
        return self

    def __exit__(self, *error: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.communicate()

    @property
    def url(self) -> str:
        """The address without a path."""
        scheme = "http" if self._certificate is None else "https"
        return f"{scheme}://{self.host}:{self.port}"

    def requests(self) -> list[Received]:
        """Return all calls so far, in the order of their arrival."""
        lines = map(json.loads, self._ask("GET", "/_requests").splitlines())
        return [Received(**line | {"body": base64.b64decode(line["body"])}) for line in lines]

    def count(self) -> int:
        """Return the number of calls so far."""
        return int(self._ask("GET", "/_count"))

    def reset(self) -> None:
        """Forget all calls."""
        self._ask("POST", "/_reset")

    def release(self) -> None:
        """Let `/held` answer what it holds, and all that comes."""
        self._ask("POST", "/_release")

    def let_go(self) -> None:
        """Let `/held` answer what it holds now; it holds what comes after."""
        self._ask("POST", "/_let_go")

    def set_secrets(self, *secrets: str) -> None:
        """Let `/bridge` accept what one of `secrets` signed, and nothing else."""
        self._ask("POST", "/_secrets", json.dumps(secrets))

    async def wait_for(self, n: int, within_s: float = WITHIN_S) -> list[Received]:
        """Return all calls once there are `n` or more; fail the test if there are not in time."""
        deadline = time.monotonic() + within_s
        while (count := await asyncio.to_thread(self.count)) < n:
            assert time.monotonic() < deadline, f"{count} calls, not {n}, within {within_s} s"
            await asyncio.sleep(0.02)
        return await asyncio.to_thread(self.requests)

    def _ask(self, method: str, path: str, body: str | None = None) -> bytes:
        connection = (
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN_S)
            if self._certificate is None
            else http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=WITHIN_S, context=ssl._create_unverified_context()
            )
        )
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            assert answer.status == 200, f"{path}: {answer.status}"
            return answer.read()
        finally:
            connection.close()


if __name__ == "__main__":
    main()
