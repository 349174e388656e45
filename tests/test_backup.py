"""A backup that was put back: who was ahead of it is told, and nothing is skipped."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import httpx2
import pytest

from service.audit import audit
from service.embedded import EmbeddedPostgres
from service.errors import LogDiverged, PositionAhead
from tests.backups import copy, dump, restore_copy, restore_dump, second_cluster
from tests.bridge import new_event
from tests.consuming import open_consumers, put
from tests.logkeeping import append, id_of
from tests.partitioned import divide
from tests.receiver import Receiver
from tests.relaying import RELAY, add_to, settled
from tests.running import Database, Running, eventually, make_settings, running_service
from tests.stored import positions, read_all

BEFORE, AFTER = 12, 5


@asynccontextmanager
async def backed_up(
    way: str,
    postgres: EmbeddedPostgres,
    database: Database,
    then: Callable[[], Awaitable[None]],
) -> AsyncIterator[Database]:
    """Back the database up, let `then` happen to it, and give what was put back elsewhere."""
    async with second_cluster() as other:
        if way == "dump":
            file = postgres.data_dir / "socket" / f"{id(other)}.dump"  # its user may write there
            await dump(postgres, database, file)
            file = file.rename(other.data_dir / "log.dump")
            await then()
            yield await restore_dump(other, file)
        else:
            await copy(postgres, other)
            await then()
            name = database.owner_dsn.partition("@/")[2].partition("?")[0]
            yield await restore_copy(other, name)


@pytest.mark.parametrize("way", ["dump", "base"])
async def test_after_a_restore_who_was_ahead_is_told_and_nothing_is_skipped(
    way: str, postgres: EmbeddedPostgres, database: Database,
    start: Callable[..., Awaitable[Running]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # A copy is of the databases of all tests of this run.
    monkeypatch.setattr("service.system_user.COMMAND_TIMEOUT_S", 600.0)
    owner = await asyncpg.connect(database.owner_dsn)
    await divide(owner, 5)
    await owner.close()
    with Receiver() as receiver:
        running = await start(**RELAY)
        async with open_consumers(database) as consumers:
            await put(consumers, running.service.eventlog, "billing")
        await append(running, *(new_event() for _ in range(BEFORE)))
        await add_to(running, f"{receiver.url}/good")  # its place is the head: BEFORE
        ids: list[str] = []

        async def go_on() -> None:
            await append(running, *(new_event() for _ in range(AFTER)))
            await eventually(lambda: len(receiver.requests()) == AFTER)
            ids.append(await id_of(running, BEFORE + AFTER))
            running.server.stop()

        async with backed_up(way, postgres, database, go_on) as restored:
            settings = make_settings(**RELAY)
            async with running_service(settings, restored) as again:
                await _look(again, restored, ids[0], receiver)


async def _look(again: Running, restored: Database, ahead: str, receiver: Receiver) -> None:
    log = again.service.eventlog
    assert positions(await read_all(log)) == list(range(1, BEFORE + 1))
    await audit(log, lambda _done, _total: None)
    async with httpx2.AsyncClient(base_url=again.url, headers=again.headers) as client:

        async def refused(code: str) -> None:
            for answer in (
                await client.get("/stream", headers={"last-event-id": ahead}),
                await client.get("/events", params={"after": ahead}),
            ):
                assert (answer.status_code, answer.json()["error"]["code"]) == (409, code)

        await refused("position_ahead")
        with pytest.raises(PositionAhead):
            await log.check(BEFORE + AFTER, ahead.partition(".")[2])
        place = (await client.get("/consumers/billing")).json()
        assert place["position"] == 0, "its place is the backup's"
        ack = await client.post("/consumers/billing/ack", json={"position": ahead})
        assert (ack.status_code, ack.json()["error"]["code"]) == (409, "ack_ahead")

        await append(again, *(new_event() for _ in range(AFTER + 1)))
        await refused("log_diverged")
        with pytest.raises(LogDiverged):
            await log.check(BEFORE + AFTER, ahead.partition(".")[2])
    assert positions(await read_all(log)) == list(range(1, BEFORE + AFTER + 2))
    # The webhook's place is the backup's too: it is owed all that came since, and gets it.
    await eventually(lambda: len(receiver.requests()) == AFTER + AFTER + 1)
    owner = await asyncpg.connect(restored.owner_dsn)
    try:
        found = await settled(owner, AFTER + 1)
        assert found == {BEFORE + n: "delivered" for n in range(1, AFTER + 2)}
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await owner.execute("DELETE FROM causeway.event_5")
    finally:
        await owner.close()
