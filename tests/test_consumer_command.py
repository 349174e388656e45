"""`causeway consumers ...` and `causeway tail --consumer`, as an operator runs them."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.client import call, get_consumer, put_consumer
from service.filter import shard_of
from tests.bridge import body, post
from tests.commands import Done, command
from tests.consuming import patient_acks as patient_acks  # a fixture
from tests.running import ROOT, STREAM_TOKEN, Running, environment, free_port

DEADLINE_S = 90.0


async def consumers(running: Running, *arguments: str) -> Done:
    return await command("consumers", *arguments, CAUSEWAY_URL=running.url)


async def known(running: Running) -> dict[str, object]:
    answer: dict[str, object] = await call(running.url, STREAM_TOKEN, get_consumer("billing"))
    return answer


async def test_a_consumer_is_made_shown_moved_and_deleted(service: Running) -> None:
    for _ in range(3):
        assert (await post(service.url, body())).status_code == 200
    options = ("--start", "start", "--type", "item.*", "--item-id", "7", "--ack-mode", "auto")
    made = await consumers(service, "put", "billing", *options, "--lease", "9")
    assert made.code == 0, made.err
    assert made.out.startswith("billing after 0.")
    assert "3 events" in made.out
    assert '{"types": ["item.*"], "item_ids": [7]}' in made.out

    listed = await consumers(service, "list")
    assert "billing" in listed.out
    assert "0 of 1" in listed.out
    shown = await consumers(service, "show", "billing")
    assert "acks auto, lease 9 s" in shown.out
    assert "nobody" in shown.out

    moved = await consumers(service, "reset", "billing", "--start", "2")
    assert moved.out.startswith("billing after 2.")
    assert "acks auto, lease 9 s" in moved.out  # a reset changes nothing else

    gone = await consumers(service, "delete", "billing")
    assert (gone.code, gone.out) == (0, "deleted billing\n")
    assert json.loads((await consumers(service, "list", "--json")).out) == []


async def test_json_has_every_field(service: Running) -> None:
    await consumers(service, "put", "billing")
    shown = json.loads((await consumers(service, "show", "billing", "--json")).out)
    [listed] = json.loads((await consumers(service, "list", "--json")).out)
    assert shown["name"] == listed["name"] == "billing"
    assert shown.keys() == listed.keys() >= {"position", "head", "lag_events", "shards"}


async def test_an_unknown_consumer_is_one_sentence_and_exit_1(service: Running) -> None:
    done = await consumers(service, "show", "nobody")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("causeway: the server answered 404 unknown_consumer: ")
    assert len(done.err.splitlines()) == 1


async def test_a_service_that_is_away_is_one_sentence_and_exit_1() -> None:
    done = await command("consumers", "list", CAUSEWAY_URL=f"http://127.0.0.1:{free_port()}")
    assert done.code == 1
    assert done.err.startswith("causeway: http://127.0.0.1:")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("consumers", "show", ".."),
        ("tail", "--consumer", "billing", "--type", "item.*"),
        ("tail", "--consumer", "billing", "--from-start"),
        ("tail", "--consumer", "billing", "--shard", "4/4"),
        ("tail", "--shard", "0/4"),
        ("tail", "--ack"),
    ],
)
async def test_options_that_cannot_be_are_exit_2(arguments: tuple[str, ...]) -> None:
    assert (await command(*arguments)).code == 2


async def test_help_says_what_consumers_are_for() -> None:
    done = await command("consumers", "--help")
    for name in ("list", "show", "put", "reset", "delete"):
        assert name in done.out
    tail = (await command("tail", "--help")).out
    for option in ("--consumer", "--shard", "--ack"):
        assert option in tail


@asynccontextmanager
async def tail(running: Running, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "tail", "--json", "--consumer", "billing", *options),
        env=environment(CAUSEWAY_URL=running.url),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def read(process: asyncio.subprocess.Process, count: int) -> list[int]:
    assert process.stdout is not None
    lines = [await process.stdout.readline() for _ in range(count)]
    return [int(json.loads(line)["position"]) for line in lines]


async def test_tail_leaves_the_place_and_with_ack_moves_it(service: Running) -> None:
    for _ in range(30):
        assert (await post(service.url, body())).status_code == 200
    await call(service.url, STREAM_TOKEN, put_consumer("billing", start="start"))
    async with tail(service) as process:
        assert await read(process, 30) == list(range(1, 31))
        process.send_signal(signal.SIGINT)
        _, said = await process.communicate()
    assert (process.returncode, said) == (0, b"")
    assert (await known(service))["position"] == 0
    async with tail(service, "--ack") as process:
        assert await read(process, 30) == list(range(1, 31))
        while (await known(service))["position"] != 30:  # it acknowledges behind what it writes
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = await process.communicate()
    assert (process.returncode, said) == (0, b"")


async def test_tail_gets_one_shard(service: Running) -> None:
    for item in range(12):
        assert (await post(service.url, body(item_id=item))).status_code == 200
    await call(service.url, STREAM_TOKEN, put_consumer("billing", start="start"))
    events = await service.service.eventlog.read_after(0)
    for shard in (0, 1):
        own = [each.position for each in events if shard_of(each, 2) == shard]
        async with tail(service, "--shard", f"{shard}/2") as process:
            assert await read(process, len(own)) == own
