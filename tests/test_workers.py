"""`serve --workers 2` as real processes: one port, one end, and nothing lost when one is killed."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.embedded import EmbeddedPostgres
from service.server import listen
from service.signature import sign
from service.workers import MAX_FAILURES, Workers
from tests.bridge import body, post
from tests.commands import command
from tests.conftest import need_program
from tests.load import RETRY_S, under_load
from tests.raw import Wire, webhook_head, wire
from tests.reader import Block, Reader, follow, reading
from tests.running import (
    SECRET,
    START_S,
    WITHIN_S,
    Database,
    Process,
    environment,
    eventually,
    free_port,
    make_settings,
    service_process,
)

WORKERS = ("--workers", "2")
# A slow machine is not what is tested: who is slow is waited for, and is not killed for it.
PATIENT = {"CAUSEWAY_SHUTDOWN_S": str(WITHIN_S)}
END_S = 3 * WITHIN_S  # more than the parent's patience with its workers


def lines_of(process: Process) -> list[dict[str, Any]]:
    """Return the log lines that are whole: the last may be half written."""
    whole = process.output().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


def logged(process: Process, message: str) -> list[dict[str, Any]]:
    """Return the log lines with a message."""
    return [line for line in lines_of(process) if line["message"] == message]


def pids(process: Process) -> dict[int, int]:
    """Return the process of each worker, the last that was started."""
    return {line["worker"]: line["worker_pid"] for line in logged(process, "worker started")}


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


async def all_listening(process: Process, count: int = 2) -> None:
    await eventually(lambda: len(logged(process, "listening")) >= count, within_s=START_S)


@pytest.fixture
def workers(database: Database, tmp_path: Path) -> Iterator[Process]:
    env = environment(DATABASE_URL=database.service_dsn, **PATIENT)
    with service_process(env, tmp_path / "log", *WORKERS) as process:
        yield process
        if process.popen.poll() is None:
            assert process.terminate(END_S) == 0, process.output()[-3000:]
    assert not any(map(is_running, pids(process).values()))


async def test_each_line_of_a_workers_log_says_which_one_it_is(workers: Process) -> None:
    await all_listening(workers)
    assert sorted(line["worker"] for line in logged(workers, "listening")) == [0, 1]
    assert workers.terminate(END_S) == 0
    lines = lines_of(workers)
    parents = {line["logger"] for line in lines if "worker" not in line}
    assert {"causeway.serve", "causeway.server", "uvicorn.error"}.isdisjoint(parents), parents
    assert {line["worker"] for line in lines if line["message"] == "stopped"} == {0, 1}


async def scrape(process: Process) -> str:
    async with httpx2.AsyncClient() as client:
        return (await client.get(f"{process.url}/metrics")).text


def by_worker(text: str, name: str) -> dict[str, float]:
    """Return a metric's sum over its other labels, by worker."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                worker = sample.labels["worker"]
                found[worker] = found.get(worker, 0) + sample.value
    return found


def is_of_database(answer: httpx2.Response) -> bool:
    """Tell whether a call was refused because Postgres was slow: no doing of the workers."""
    return answer.status_code == 503 and "the database cannot answer now" in answer.text


async def test_both_workers_take_calls_and_each_scrape_shows_both(workers: Process) -> None:
    await all_listening(workers)
    answers: list[httpx2.Response] = []

    async def whole() -> str:
        """Scrape until all calls are shown: a worker that takes a second to say so is left out."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                text = await scrape(workers)
                taken = by_worker(text, "causeway_webhooks_received_total")
                if sum(taken.values()) == len(answers):
                    return text

    async def has_taken_calls() -> bool:
        taken = by_worker(await whole(), "causeway_webhooks_received_total")
        return taken.keys() == {"0", "1"} and min(taken.values()) > 0

    async with asyncio.timeout(START_S):
        while not answers or not await has_taken_calls():
            # Connections of their own: each may reach either.
            answers += await asyncio.gather(*(post(workers.url, body()) for _ in range(16)))
    assert all(answer.status_code == 200 or is_of_database(answer) for answer in answers)
    for text in await asyncio.gather(*(whole() for _ in range(8))):
        taken = by_worker(text, "causeway_webhooks_received_total")
        assert taken.keys() == {"0", "1"}
        assert min(taken.values()) > 0
        assert by_worker(text, "causeway_delivery_seconds_count").keys() == {"0", "1"}


async def test_promtool_finds_nothing_wrong_with_the_metrics_of_workers(workers: Process) -> None:
    promtool = need_program("promtool")
    await all_listening(workers)
    done = await asyncio.to_thread(
        subprocess.run,
        [promtool, "check", "metrics"],
        input=await scrape(workers),
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    complaints = (done.stdout + done.stderr).splitlines()
    assert [line for line in complaints if "causeway_" in line or "error" in line.lower()] == []


async def test_workers_killed_under_load_lose_nothing_that_was_answered_200(
    workers: Process,
) -> None:
    await all_listening(workers)
    seen: list[Block] = []
    async with asyncio.TaskGroup() as group, under_load(workers.url) as load:
        reader = group.create_task(follow(workers.url, seen))
        for listening, number in enumerate((0, 1, 0), 2):
            await all_listening(workers, listening)  # who is killed has served
            goal = len(load.accepted) + 50
            await eventually(lambda goal=goal: len(load.accepted) >= goal)
            killed = pids(workers)[number]
            os.kill(killed, signal.SIGKILL)
            await eventually(lambda n=number, pid=killed: pids(workers)[n] != pid)
        await all_listening(workers, 5)
        load.is_over = True
        await eventually(lambda: len(load.accepted) == len(load.sent))
        await eventually(lambda: len(seen) >= len(load.accepted))
        reader.cancel()
    assert sorted(block.data or "" for block in seen) == sorted(map(bytes.decode, load.accepted))
    assert [block.position for block in seen] == list(range(1, len(load.accepted) + 1))


async def begun_call(stack: AsyncExitStack, url: str) -> tuple[Wire, bytes]:
    """Begin a call that a worker has taken; return its connection, and the body, yet to be sent."""
    payload = body()
    line = await stack.enter_async_context(wire(url))
    head = webhook_head(len(payload), sign(payload, [SECRET]), more="Expect: 100-continue\r\n")
    await line.send(head)
    async with asyncio.timeout(WITHIN_S):
        assert b" 100 " in await line.reader.readuntil(b"\r\n\r\n")
    return line, payload


async def answered(url: str) -> httpx2.Response:
    """Call until there is an answer: a connection may be closed before its request is read."""
    payload = body()
    while True:
        try:
            return await post(url, payload)
        except httpx2.TransportError:
            await asyncio.sleep(RETRY_S)


async def test_a_worker_that_is_asked_to_stop_is_replaced_and_no_call_fails(
    workers: Process,
) -> None:
    await all_listening(workers)
    old = pids(workers)[1]
    async with AsyncExitStack() as stack:
        begun = [await begun_call(stack, workers.url) for _ in range(16)]
        os.kill(old, signal.SIGTERM)
        await eventually(lambda: logged(workers, "stopping"))
        answers: list[httpx2.Response] = []
        for line, payload in begun:
            await line.send(payload)
            answer = await line.answer()
            assert answer.status == 200 or b"the database cannot" in answer.body, answer
        while is_running(old) or pids(workers)[1] == old:
            answers += await asyncio.gather(*(answered(workers.url) for _ in range(8)))
    assert all(answer.status_code == 200 or is_of_database(answer) for answer in answers)
    [ended] = logged(workers, "worker ended")
    assert (ended["worker"], ended["code"], ended["failures"]) == (1, 0, 0)


async def test_sigterm_ends_the_streams_of_all_workers_in_order(workers: Process) -> None:
    await all_listening(workers)
    assert (await answered(workers.url)).status_code == 200
    readers: list[Reader] = []
    stack = [reading(workers.url, "from=start") for _ in range(20)]
    try:
        readers += [await one.__aenter__() for one in stack]
        for reader in readers:
            assert (await reader.event()).position == 1
        rests = [asyncio.create_task(reader.rest()) for reader in readers]
        workers.popen.send_signal(signal.SIGTERM)
        ended = await asyncio.gather(*rests)
        assert await asyncio.to_thread(workers.popen.wait, END_S) == 0
    finally:
        for one in stack[: len(readers)]:
            await one.__aexit__(None, None, None)
    assert all(blocks[-1].is_checkpoint and blocks[-1].position == 1 for blocks in ended)


async def test_workers_whose_parent_was_killed_stop_by_themselves(
    database: Database, tmp_path: Path
) -> None:
    env = environment(DATABASE_URL=database.service_dsn, CAUSEWAY_DRAIN_S="0.2")
    with service_process(env, tmp_path / "log", *WORKERS) as process:
        await all_listening(process)
        running = pids(process).values()
        process.kill()
        await eventually(lambda: not any(map(is_running, running)))


async def test_workers_that_keep_dying_end_the_process_which_says_so(
    database: Database, tmp_path: Path
) -> None:
    env = environment(DATABASE_URL=database.service_dsn, CAUSEWAY_DRAIN_S="0.2")
    with service_process(env, tmp_path / "log", *WORKERS) as process:
        killed: set[int] = set()
        async with asyncio.timeout(START_S):
            while process.popen.poll() is None:
                pid = pids(process)[1]
                if pid not in killed:
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.02)
        assert process.popen.returncode == 1
        [line] = logged(process, "workers keep ending, the process stops")
        assert (line["worker"], line["code"], line["failures"]) == (1, -signal.SIGKILL, 5)
        ends = [it["failures"] for it in logged(process, "worker ended") if it["worker"] == 1]
        assert len(ends) == len(killed)
        # One that was killed late has run for so long that the count begins anew.
        assert ends[-MAX_FAILURES:] == [1, 2, 3, 4, 5]
        assert not any(map(is_running, pids(process).values()))


async def test_a_worker_that_cannot_start_says_why_and_ends_the_process(
    database: Database,
) -> None:
    gone = database.service_dsn.replace("/test_", "/gone_")
    done = await command("serve", *WORKERS, DATABASE_URL=gone)
    assert done.code == 1
    assert "DATABASE_URL" in done.err
    assert "does not exist" in done.err
    assert "Traceback" not in done.err


async def test_workers_follow_what_the_command_line_says(
    database: Database, tmp_path: Path
) -> None:
    nats = f"nats://127.0.0.1:{free_port()}"  # nobody is there: they say so, and follow Postgres
    env = environment(DATABASE_URL=database.service_dsn, CAUSEWAY_NATS_URL=nats, **PATIENT)
    options = (*WORKERS, "--roles", "stream", "--tail", "nats")
    with service_process(env, tmp_path / "log", *options) as process:
        await all_listening(process)
        assert {line["roles"] for line in logged(process, "listening")} == {"stream"}
        async with httpx2.AsyncClient() as client:
            answer = await client.get(f"{process.url}/readyz")
        assert "followed" in answer.json().get("notes", {}).get("tail", "")
        assert process.terminate(END_S) == 0, process.output()[-3000:]


async def test_a_port_in_use_starts_no_worker(database: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        settings = {"DATABASE_URL": database.service_dsn, "CAUSEWAY_PORT": port}
        done = await command("serve", *WORKERS, **settings)
    assert done.code == 1
    assert f"CAUSEWAY_PORT={port}" in done.err
    assert "worker" not in done.err


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder that Postgres' own user can reach; nothing is left running on it."""
    folder = Path(tempfile.mkdtemp(prefix="causeway-workers-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        with EmbeddedPostgres(folder):  # takes over what a failed test left
            pass
        shutil.rmtree(folder)


async def test_the_embedded_postgres_is_the_parents_and_comes_back_under_its_workers(
    data_dir: Path, tmp_path: Path
) -> None:
    env = environment(CAUSEWAY_DATA_DIR=str(data_dir), **PATIENT)
    with service_process(env, tmp_path / "log", *WORKERS) as process:
        await all_listening(process)
        async with under_load(process.url) as load:
            await eventually(lambda: len(load.accepted) > 50)
            server = EmbeddedPostgres(data_dir).pid
            assert server is not None
            os.kill(server, signal.SIGKILL)
            goal = len(load.accepted) + 100
            await eventually(lambda: len(load.accepted) >= goal, within_s=START_S)
        seen: list[Block] = []
        await follow(process.url, seen, until=len(load.accepted))
        assert process.terminate(END_S) == 0
        assert len(pids(process)) == len(logged(process, "worker started"))
    assert sorted(block.data or "" for block in seen) == sorted(map(bytes.decode, load.accepted))
    assert EmbeddedPostgres(data_dir).pid is None


async def test_one_that_has_just_ended_keeps_the_signal_from_nobody() -> None:
    settings = make_settings(workers=2)
    ended = await asyncio.create_subprocess_exec(need_program("true"))
    lives = await asyncio.create_subprocess_exec(need_program("sleep"), "600")
    await ended.wait()
    with listen(settings) as sock:
        parent = Workers(settings, sock, None)
        parent._processes = {0: ended, 1: lives}  # the end of the first is known, and not seen to
        try:
            parent.stop()
            assert await asyncio.wait_for(lives.wait(), WITHIN_S) == -signal.SIGTERM
            parent._kill()
        finally:
            for gathering in parent._gathering:
                gathering.close()
