"""The demo: one command shows the whole way, and leaves nothing behind."""

import asyncio
import io
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from rich.console import Console

from service import demo
from service.errors import CausewayError
from tests.running import eventually

DEADLINE_S = 300.0  # it starts a Postgres, and stops it


def folder_of(pid: int) -> Path:
    """Return the folder that a demo has made, as its service is told of it."""
    [service] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    told = Path(f"/proc/{service}/environ").read_bytes().decode().split("\0")
    [data] = [one.partition("=")[2] for one in told if one.startswith("CAUSEWAY_DATA_DIR=")]
    return Path(data).parent


async def demonstrate(
    *options: str, interrupt_after_lines: int = 0
) -> tuple[int | None, str, Path]:
    """Run the command without a terminal; return its exit code, what it printed, its folder."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "demo", *options),
        env=os.environ | {"CAUSEWAY_BODY_MAX_BYTES": "not a number", "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    shown, folder = "", Path("/")
    async with asyncio.timeout(DEADLINE_S):
        while line := (await process.stdout.readline()).decode():
            shown += line
            if line.startswith("Look at it"):
                folder = folder_of(process.pid)
                assert folder.is_dir()
            if interrupt_after_lines and len(journeys(shown)) == interrupt_after_lines:
                process.send_signal(signal.SIGINT)
                interrupt_after_lines = 0
        await process.wait()
    return process.returncode, shown, folder


def journeys(shown: str) -> list[int]:
    """The positions of the events that were shown, each with its three times."""
    time = r"[\d.]+ (?:ms|s)"
    return [int(p) for p in re.findall(rf"(?m)^ +(\d+)  \S+ +{time} +{time} +{time}$", shown)]


async def test_demo_shows_each_event_once_and_sums_up() -> None:
    code, shown, folder = await demonstrate("--count", "40", "--rate", "40")
    assert code == 0, shown
    events = len(journeys(shown))
    assert sorted(journeys(shown)) == list(range(1, events + 1))
    refused = int(re.search(r"(\d+) forged: refused", shown)[1])  # type: ignore[index]
    assert events + refused == 40
    assert f"{events} events" in shown
    assert re.search(r"\d+ sent again: no second position", shown)
    assert not folder.exists()


async def test_ctrl_c_ends_the_demo_with_its_summary() -> None:
    code, shown, folder = await demonstrate("--rate", "30", interrupt_after_lines=10)
    assert code == 0, shown
    assert "received → delivered" in shown
    assert f"{len(journeys(shown))} events" in shown
    assert not folder.exists()


async def test_the_lines_to_paste_work() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "demo", "--rate", "1"),
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(DEADLINE_S):
        while line := (await process.stdout.readline()).decode():
            lines.append(line)
            if line.startswith("Each line"):
                break
        pasted = [line for line in lines if line.startswith("  ")]
        url = next(line for line in lines if "/dashboard" in line).split()[-1]
        token = next(line for line in lines if "admin token" in line).split()[-1]
        async with httpx2.AsyncClient(headers={"sec-fetch-site": "same-origin"}) as client:
            login = (await client.get(f"{url}/login")).text
            entered = await client.post(f"{url}/login", data={"token": token})
        answers = [await paste(line) for line in pasted]
        while line and "TEST_EVENT" not in line:
            line = (await process.stdout.readline()).decode()
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert len(answers) == 4, lines
    assert "Log in" in login
    assert entered.status_code == 303
    assert "causeway_session" in entered.cookies
    stream, page, metrics, webhook = answers
    assert "event: " in stream
    assert '"specversion"' in page
    assert "causeway_webhooks_received_total" in metrics
    assert "200 OK" in webhook
    assert "causeway-position" in webhook.lower()
    assert line.split()[1:3] == ["TEST_EVENT", "-"]  # it was not ours: no time of its sending
    assert process.returncode == 0


async def paste(line: str) -> str:
    """Run a line in a shell; the stream, which never ends, until an event has come."""
    line = line.replace("curl ", "curl -s ").strip()
    is_stream = "curl -s -N" in line
    shell = await asyncio.create_subprocess_shell(
        f"exec {line}" if is_stream else line, stdout=asyncio.subprocess.PIPE
    )
    assert shell.stdout is not None
    shown = ""
    while piece := (await shell.stdout.readline()).decode():
        shown += piece
        if is_stream and piece.startswith("event: "):
            shell.terminate()
            break
    rest, _ = await shell.communicate()
    return shown + rest.decode()


@pytest.mark.parametrize(
    ("then", "how"),
    [("raise SystemExit(3)", "ended"), ("import time; time.sleep(3600)", "was not ready")],
)
async def test_a_service_that_does_not_start_shows_its_last_log_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, then: str, how: str
) -> None:
    made: list[Path] = []
    ready, make_folder, said = demo._ready, demo._folder, tmp_path / "said"

    @contextmanager
    def noted() -> Iterator[Path]:
        with make_folder() as folder:
            made.append(folder)
            yield folder

    async def once_it_has_said_so(*service: Any) -> str | None:
        await eventually(said.exists)
        return await ready(*service)

    script = f"print('no luck today', flush=True); open({str(said)!r}, 'w').close(); {then}"
    monkeypatch.setattr(demo, "SERVE", (sys.executable, "-c", script))
    monkeypatch.setattr(demo, "START_S", 0.2 if how == "was not ready" else 120.0)
    monkeypatch.setattr(demo, "_folder", noted)
    monkeypatch.setattr(demo, "_ready", once_it_has_said_so)
    with pytest.raises(CausewayError, match=f"the service {how}.*\nno luck today"):
        await demo.run(demo.Wishes(), asyncio.Event(), Console(file=io.StringIO()))
    [folder] = made
    assert not folder.exists()
