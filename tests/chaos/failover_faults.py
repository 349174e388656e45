"""The primary dies and a synchronous standby takes its place: no 200 is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from service.embedded import EmbeddedPostgres
from tests.chaos.fault import Fault
from tests.chaos.schedule import Planned
from tests.chaos.standby import NAME, Standby, crash, set_synchronous
from tests.chaos.world import World

SYNCHRONOUS_S = 1.0  # until every backend has heard that it must wait for the standby


@asynccontextmanager
async def _failed_over(world: World, planned: Planned) -> AsyncIterator[None]:
    """What has died stays dead; the ways lead to the standby, as a virtual address would."""
    primary = world.postgres
    folder = world.folder / f"standby-{len(list(world.folder.glob('standby-*')))}"
    folder.mkdir()
    folder.chmod(0o755)
    standby = Standby(primary, folder)
    async with AsyncExitStack() as until_promoted:
        until_promoted.push_async_callback(standby.stop)
        await standby.start()
        await set_synchronous(primary, NAME)
        await asyncio.sleep(SYNCHRONOUS_S)
        await standby.caught_up()
        crash(primary)
        try:
            yield
        finally:
            await standby.promote()
            successor = EmbeddedPostgres(folder)
            world.stack.callback(successor.stop)
            await asyncio.to_thread(successor.start)  # takes over what runs there
            until_promoted.pop_all()
            world.postgres = successor
            for way in world.ways:
                way.point_to(successor.service_url)
                way.reset()


FAULTS = (
    Fault(
        "failover",
        "`kill -9` of the primary while commits wait for a synchronous standby; it is promoted",
        "no 200 is lost, no position is given out again, nobody is told 409",
        "database",
        (0.5, 2.0),
        _failed_over,
    ),
)
