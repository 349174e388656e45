"""The demo: a service of its own, a Bridge that calls it, and a live reader, in one terminal.

Starts `serve` as a process with an embedded Postgres in a folder that is removed at the end, shows
each event with the time each stage took, and sums up. Touches nothing that exists.
"""

import asyncio
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
from rich.console import Console
from rich.table import Table

from service.client import subscribe
from service.config import without_settings
from service.errors import CausewayError
from service.journey import Journey, Journeys, journey_line
from service.payloads import TEST_EVENT
from service.simulate import Plan, Report, Simulation
from service.terminal import duration, until_stopped

SERVE = (sys.executable, "-m", "service", "serve")
START_S = 120.0
_STOP_S = 30.0
_ANSWER_S = 60.0
_LAST_DELIVERIES_S = 30.0
_LOG_LINES = 20
_LOG_LINE_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to show: events a second, and when to end (None: at Ctrl-C). Fractions are of 1."""

    rate: float = 5.0
    seconds: float | None = None
    count: int | None = None
    duplicates: float = 0.1
    forged: float = 0.1


@dataclass(frozen=True, slots=True)
class Access:
    """Where the demo's service is, and its secrets, made for this run."""

    url: str
    secret: str
    token: str
    admin_token: str


async def run(wishes: Wishes, stop: asyncio.Event, console: Console) -> bool:
    """Show the demo until its end or `stop`; return whether all went as promised.

    Raises `CausewayError` with the service's last log lines if it does not start.
    """
    with _folder() as folder:
        url = f"http://127.0.0.1:{_free_port()}"
        made = (secrets.token_hex(16) for _ in range(3))
        access = Access(url, *made)
        console.print("starting a service with a Postgres of its own ...", highlight=False)
        async with _service(access, folder / "data", stop):
            _say(console, _how_to_try(access))
            return await _show(wishes, access, stop, console)


async def _show(wishes: Wishes, access: Access, stop: asyncio.Event, console: Console) -> bool:
    moved = asyncio.Event()

    def show(journey: Journey) -> None:
        _say(console, journey_line(journey))
        moved.set()

    def end(_: asyncio.Task[None]) -> None:
        moved.set()
        stop.set()

    journeys = Journeys(show)
    simulation = Simulation(_plan(wishes, access), on_answer=journeys.answered)
    ended = asyncio.Event()
    reader = asyncio.create_task(
        until_stopped(ended, _read(access, journeys, simulation)), name="reader"
    )
    reader.add_done_callback(end)
    status = asyncio.create_task(_status(console, journeys), name="status")
    if wishes.seconds is not None:
        asyncio.get_running_loop().call_later(wishes.seconds, stop.set)
    try:
        report = await simulation.run(stop)
        await _drained(journeys, moved, reader)
        journeys.finish_rest()
    finally:
        ended.set()
        status.cancel()
        await asyncio.wait({reader, status})
    reader.result()
    show_summary(report, journeys, console)
    return report.is_good and journeys.undelivered == 0


def _plan(wishes: Wishes, access: Access) -> Plan:
    return Plan(
        access.url,
        (access.secret,),
        rate=wishes.rate,
        count=wishes.count,
        duplicates=wishes.duplicates,
        forged=wishes.forged,
        timeout_s=_ANSWER_S,
        seed=secrets.randbits(32),
    )


async def _read(access: Access, journeys: Journeys, simulation: Simulation) -> None:
    async with aclosing(subscribe(access.url, access.token, from_start=True)) as events:
        async for event in events:
            journeys.delivered(event, time.time())
            if event.data not in simulation.sending:  # ours may arrive before its answer does
                journeys.finish_outside(event.position)


async def _drained(journeys: Journeys, moved: asyncio.Event, reader: asyncio.Task[None]) -> None:
    """Wait until what was answered 200 has arrived, for a few seconds."""
    with suppress(TimeoutError):  # what is missing then is in the summary
        async with asyncio.timeout(_LAST_DELIVERIES_S):
            while journeys.undelivered and not reader.done():
                moved.clear()
                await moved.wait()


async def _status(console: Console, journeys: Journeys) -> None:
    """Keep a status line under the events, if there is a terminal."""
    if not console.is_terminal:
        return
    with console.status("") as line:
        while True:
            total = duration(journeys.stages["total"].percentile(50))
            line.update(f"{journeys.count} events, half within {total}; Ctrl-C for the summary")
            await asyncio.sleep(0.25)


@contextmanager
def _folder() -> Iterator[Path]:
    """Make a folder for as long as the context lasts.

    Its path is short, for the socket in it, and open to the user that Postgres runs as under root.
    """
    with tempfile.TemporaryDirectory(prefix="causeway-demo-", dir="/tmp") as name:  # nosec B108
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@asynccontextmanager
async def _service(access: Access, data: Path, stop: asyncio.Event) -> AsyncIterator[None]:
    """Run `serve` for as long as the context lasts; it is ready when the context begins."""
    process = await asyncio.create_subprocess_exec(
        *SERVE,
        env=_environment(access, data),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=_LOG_LINE_MAX_BYTES,
        start_new_session=True,  # Ctrl-C is for us: we end it when the summary is complete
    )
    log: deque[str] = deque(maxlen=_LOG_LINES)
    logging = asyncio.create_task(_keep_last(process, log), name="service log")
    try:
        if (failure := await _ready(access.url, process, stop)) is not None:
            await _end(process)
            await logging  # to its last line
            raise CausewayError(f"the service {failure}; its last log lines:\n" + "\n".join(log))
        yield
    finally:
        await _end(process)
        await logging


async def _keep_last(process: asyncio.subprocess.Process, log: deque[str]) -> None:
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    async for line in process.stdout:
        log.append(line.decode(errors="replace").rstrip())


async def _ready(url: str, process: asyncio.subprocess.Process, stop: asyncio.Event) -> str | None:
    """Wait until the service is ready, or `stop`; return what came instead, if it failed."""
    deadline = time.monotonic() + START_S
    async with httpx2.AsyncClient(timeout=2.0, trust_env=False) as client:
        while process.returncode is None and time.monotonic() < deadline:
            if stop.is_set():
                return None
            with suppress(httpx2.TransportError):  # not listening yet: that is waited for
                if (await client.get(f"{url}/readyz")).is_success:
                    return None
            await asyncio.sleep(0.05)
    return "ended" if process.returncode is not None else f"was not ready within {START_S:.0f} s"


async def _end(process: asyncio.subprocess.Process) -> None:
    """Stop the service as an orchestrator would: SIGTERM, and SIGKILL if that takes too long."""
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _environment(access: Access, data: Path) -> dict[str, str]:
    """Return our environment without any setting of a real service, and with the demo's."""
    return without_settings() | {
        "BRIDGE_WEBHOOK_SECRET": access.secret,
        "CAUSEWAY_STREAM_TOKEN": access.token,
        "CAUSEWAY_ADMIN_TOKEN": access.admin_token,
        "CAUSEWAY_DATA_DIR": str(data),
        "CAUSEWAY_HOST": "127.0.0.1",
        "CAUSEWAY_PORT": access.url.rpartition(":")[2],
        "CAUSEWAY_DRAIN_S": "0",
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _how_to_try(access: Access) -> str:
    url, bearer = access.url, f"-H 'Authorization: Bearer {access.token}'"
    test = TEST_EVENT.decode()
    return f"""\
Look at it in a browser: {url}/dashboard
Log in with the admin token: {access.admin_token}

Try it from another terminal:

  curl -N {bearer} '{url}/stream?from=start'
  curl {bearer} '{url}/events?limit=3'
  curl {url}/metrics
  body='{test}'; signature=$(printf %s "$body" | openssl dgst -sha256 -hmac '{access.secret}'); \
curl -i -H "BridgeApi-Signature: v1=${{signature##* }}" -H 'Content-Type: application/json' \
--data-binary "$body" {url}/webhooks/bridge

Each line: position, type, sent → committed, received → delivered, sent → delivered
"""


def show_summary(report: Report, journeys: Journeys, console: Console) -> None:
    """Print the times by stage, and what the service refused."""
    table = Table(title=f"{journeys.count} events")
    table.add_column("stage")
    for heading in ("p50", "p95", "p99", "longest"):
        table.add_column(heading, justify="right")
    names = ("sent → committed", "received → delivered", "sent → delivered")
    for name, latencies in zip(names, journeys.stages.values(), strict=True):
        times = [latencies.percentile(percent) for percent in (50, 95, 99)]
        table.add_row(name, *(duration(seconds) for seconds in (*times, latencies.max_s)))
    console.print(table)
    _say(console, f"{report.duplicates} sent again: no second position")
    _say(console, f"{report.refused} forged: refused")
    for name, number in (
        ("taken for new events, but forged or sent again", report.unexpected),
        ("without a good answer", report.given_up),
        ("answered 200, but not delivered yet", journeys.undelivered),
    ):
        if number:
            _say(console, f"{number} {name}")


def _say(console: Console, text: str) -> None:
    """Print text as it is: not wrapped, so that it can be pasted; markup in it means nothing."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)
