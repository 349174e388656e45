"""A rolling update: two replicas behind nginx are replaced under load; nobody misses anything."""

import asyncio
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from tests.load import Load, under_load
from tests.nginx import nginx_before
from tests.reader import Block, follow
from tests.running import Database, Process, environment, eventually, free_port, service_process

READERS = 20
DRAIN_S = 2.0


async def replace(old: Process, env: dict[str, str], log: Path, stack: ExitStack) -> Process:
    """Stop one replica as an orchestrator does, and start its successor on the same address."""
    assert await asyncio.to_thread(old.terminate) == 0, old.output()[-3000:]
    return await asyncio.to_thread(stack.enter_context, service_process(env, log))


async def more(load: Load, count: int) -> None:
    goal = len(load.accepted) + count
    await eventually(lambda: len(load.accepted) >= goal)


async def test_two_replicas_are_replaced_under_load_and_nothing_is_lost(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environments = [
        environment(
            DATABASE_URL=database.service_dsn,
            CAUSEWAY_PORT=str(free_port()),
            CAUSEWAY_DRAIN_S=str(DRAIN_S),
        )
        for _ in range(2)
    ]
    seen: list[list[Block]] = [[] for _ in range(READERS)]
    async with AsyncExitStack() as outer:
        stack = outer.enter_context(ExitStack())
        logs = [tmp_path / "0.log", tmp_path / "1.log"]
        replicas = [
            stack.enter_context(service_process(env, log))
            for env, log in zip(environments, logs, strict=True)
        ]
        url = stack.enter_context(nginx_before([it.url for it in replicas], tmp_path / "nginx"))
        began = time.monotonic()
        async with asyncio.TaskGroup() as group, under_load(url) as load:
            readers = [group.create_task(follow(url, found)) for found in seen]
            await eventually(lambda: all(seen))  # they are spread over both
            await more(load, 100)
            for number in (0, 1):
                replicas[number] = await replace(
                    replicas[number], environments[number], logs[number], stack
                )
                await more(load, 100)
            load.is_over = True
            await eventually(lambda: len(load.accepted) == len(load.sent))
            took_s = time.monotonic() - began
            await eventually(lambda: min(map(len, seen)) >= len(load.accepted))
            for reader in readers:
                reader.cancel()
        # Streams ended with their process, and none of them was cut: each was told its last id.
        assert all('"streams":0' not in log.read_text().split("stopping")[1] for log in logs)
    expected = list(range(1, len(load.accepted) + 1))
    assert len(load.accepted) == len(load.sent)
    assert [[block.position for block in found] for found in seen] == [expected] * READERS
    assert sorted(block.data or "" for block in seen[0]) == sorted(
        payload.decode() for payload in load.accepted
    )
    with capsys.disabled():
        print(
            f"\nrolling update: {len(load.sent)} webhooks in {took_s:.0f} s, {READERS} streams; "
            f"{len(load.refused) + load.lost} calls were sent again, 0 lost, 0 twice"
        )
