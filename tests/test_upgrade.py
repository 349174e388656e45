"""An old and a new version side by side, while the schema changes under the old one."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from service.audit import audit
from service.client import subscribe
from service.embedded import EmbeddedPostgres
from service.eventlog import EventLog
from service.migrate import migrate, migrations
from tests.conftest import REQUIRE_ALL, need_program, with_database
from tests.load import Load, under_load
from tests.running import (
    ROOT,
    STREAM_TOKEN,
    Database,
    environment,
    eventually,
    execute_alone,
    service_process,
)
from tests.stored import open_log, positions, read_all

FIRST_NEW = "sql/migrations/0006_partition_end.sql"  # the largest change of the schema so far
OLD = 5


@pytest.fixture(scope="module")
def old_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code as it was before that migration, out of the repository's history."""
    git = [need_program("git"), "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
    log = [*git, "log", "--diff-filter=A", "--format=%H", "--", FIRST_NEW]
    added = subprocess.run(log, capture_output=True, text=True, check=False).stdout.split()
    folder = tmp_path_factory.mktemp("old")
    archive = [*git, "archive", "--format=tar", f"{added[-1]}^"] if added else ["false"]
    done = subprocess.run(archive, capture_output=True, check=False)
    if done.returncode != 0:
        (pytest.fail if REQUIRE_ALL else pytest.skip)("the repository's history is not here")
    subprocess.run(["tar", "x", "-C", folder], input=done.stdout, check=True)
    return folder


@pytest.fixture
async def old_database(postgres: EmbeddedPostgres, old_root: Path) -> AsyncIterator[Database]:
    """A database that the old version migrated."""
    name = f"old_{os.getpid()}"
    connection = await asyncpg.connect(postgres.owner_url)
    try:
        await execute_alone(connection, f"CREATE DATABASE {name}")
        database = Database(
            with_database(postgres.owner_url, name), with_database(postgres.service_url, name)
        )
        env = environment(DATABASE_URL=database.owner_dsn, PYTHONPATH=str(old_root))
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "service", "migrate"], env=env, cwd=old_root,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert len(done.stdout.splitlines()) == OLD
        yield database
        await execute_alone(connection, f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


async def follow(url: str, seen: list[int]) -> None:
    """Read the log from its start, for ever."""
    async for event in subscribe(url, STREAM_TOKEN, from_start=True):
        seen.append(event.position)  # noqa: PERF401 - it never ends


async def test_old_and_new_serve_one_log_while_it_is_migrated(
    old_root: Path, old_database: Database, tmp_path: Path
) -> None:
    dsn = old_database.service_dsn
    old_env = environment(PYTHONPATH=str(old_root), DATABASE_URL=dsn)
    by_old: list[int] = []
    by_new: list[int] = []
    with service_process(old_env, tmp_path / "old.log", root=old_root) as old:
        async with under_load(old.url, senders=4) as before, asyncio.TaskGroup() as group:
            readers = [group.create_task(follow(old.url, by_old))]
            await eventually(lambda: len(before.accepted) > 100)
            applied = await migrate(old_database.owner_dsn)
            assert applied == [step.name for step in migrations()[OLD:]]
            with service_process(environment(DATABASE_URL=dsn), tmp_path / "new.log") as new:
                readers.append(group.create_task(follow(new.url, by_new)))
                async with under_load(new.url, senders=4) as after:
                    side_by_side = len(before.accepted) + 200
                    await eventually(
                        lambda: len(before.accepted) > side_by_side and len(after.accepted) > 200,
                        within_s=60,
                    )
                before.is_over = True
                async with open_log(old_database) as log:
                    stored = await _settled(log, before, after)
                total = list(range(1, len(stored) + 1))
                await eventually(lambda: by_old == total and by_new == total)
                for reader in readers:
                    reader.cancel()
                assert not (before.refused or after.refused or before.lost or after.lost)
                assert old.terminate() == 0
                assert new.terminate() == 0


async def _settled(log: EventLog, *loads: Load) -> list[int]:
    """Return the positions once all that was sent has its answer; each event is there once."""
    sent = [payload for load in loads for payload in load.sent]
    await eventually(lambda: sum(len(it.accepted) for it in loads) == len(sent))
    events = await read_all(log)
    assert sorted(event.body for event in events) == sorted(sent)
    assert (await audit(log, lambda _done, _total: None)).events == len(sent)
    return positions(events)
