"""The world of a run: one real Postgres, replicas of the service, and all who send and read.

Everything runs on this machine, on free ports of 127.0.0.1, in a folder of its own, and is ended
with the block, however that ends.
"""

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from service.db import Connection
from service.embedded import EmbeddedPostgres
from service.migrate import migrate
from tests.chaos.bridge import Bridge
from tests.chaos.callbacks import make_callbacks
from tests.chaos.history import History
from tests.chaos.holders import make_consumers, make_holders, make_shards
from tests.chaos.proxy import Proxy, proxy_to
from tests.chaos.replica import Replica
from tests.chaos.subscribers import Subscription, make_subscribers
from tests.receiver import Receiver
from tests.running import ADMIN_TOKEN, ROOT, SECRET, STREAM_TOKEN, environment, free_port

KEY = "chaos-0123456789-0123456789-0123456789"
# The last replica is two processes on one port.
ARGUMENTS: tuple[tuple[str, ...], ...] = ((), ("--workers", "2"))
SETTINGS = {
    "CAUSEWAY_SECRET_KEY": KEY,
    "CAUSEWAY_RELAY_ALLOW_HTTP": "true",
    "CAUSEWAY_RELAY_ALLOWED_NETWORKS": "127.0.0.0/8",
    "CAUSEWAY_RELAY_TIMEOUT_S": "2",
    "CAUSEWAY_HEARTBEAT_S": "2",
    "CAUSEWAY_CHECKPOINT_EVENTS": "50",
    "CAUSEWAY_STREAM_MAX_AGE_S": "45",
    "CAUSEWAY_SEND_TIMEOUT_S": "10",
    # So small that who is slow, or was cut off, reads from the log again.
    "CAUSEWAY_WINDOW_EVENTS": "300",
    "CAUSEWAY_DRAIN_S": "1",
    "CAUSEWAY_SHUTDOWN_S": "30",
}
PARTITION_EVENTS = 1500  # a run fills several
SESSION_TIMEOUT_S = 60.0


@dataclass(slots=True)
class World:
    """What the faults break, and what is seen. `stack` ends what a fault leaves behind."""

    stack: AsyncExitStack
    folder: Path
    postgres: EmbeddedPostgres
    ways: list[Proxy]  # of each replica to Postgres
    replicas: list[Replica]
    receiver: Receiver
    bridge: Bridge
    history: History
    subscriptions: list[Subscription]
    secrets: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Connection]:
        """A session of the database's owner, past every fault of the way to it."""
        connection = await asyncpg.connect(
            self.postgres.owner_url,
            timeout=SESSION_TIMEOUT_S,
            command_timeout=SESSION_TIMEOUT_S,
            server_settings={"application_name": "chaos"},
        )
        try:
            yield connection
        finally:
            connection.terminate()


@asynccontextmanager
async def open_world(seed: int, per_s: float) -> AsyncIterator[World]:
    """Start everything; all of it acts when the block begins."""
    folder = Path(tempfile.mkdtemp(prefix="causeway-chaos-", dir="/tmp"))
    folder.chmod(0o755)  # for the user that Postgres runs as
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        postgres = EmbeddedPostgres(folder)
        stack.callback(postgres.stop)
        await asyncio.to_thread(postgres.start)
        await _make_database(postgres)
        ways = [await stack.enter_async_context(proxy_to(postgres.service_url)) for _ in ARGUMENTS]
        replicas = [
            _make_replica(number, folder, way.dsn(postgres.service_url))
            for number, way in enumerate(ways)
        ]
        for replica in replicas:
            stack.callback(replica.kill_now)
            replica.start()
        for replica in replicas:
            await replica.wait_until_listening()
        receiver = stack.enter_context(Receiver())
        history = History(subscribers=make_subscribers(), shards=make_shards())
        urls = [replica.url for replica in replicas]
        history.callbacks, secrets = await make_callbacks(urls[0], receiver.url)
        await asyncio.to_thread(receiver.set_secrets, *secrets)
        await make_consumers(urls[0])
        bridge = Bridge(urls, history.sent, seed, per_s)
        subscriptions = [
            Subscription(subscriber, urls, n % len(urls))
            for n, subscriber in enumerate(history.subscribers)
        ]
        servers = (stack, folder, postgres, ways, replicas, receiver)
        world = World(*servers, bridge, history, subscriptions, secrets)
        await stack.enter_async_context(_everybody(world, seed))
        yield world


@asynccontextmanager
async def _everybody(world: World, seed: int) -> AsyncIterator[None]:
    """Let all who act, act; an error of one of them ends the block."""
    urls = [replica.url for replica in world.replicas]
    loops = [world.bridge.run(), *(it.run() for it in world.subscriptions)]
    loops += [it.run() for it in make_holders(world.history.shards, urls, seed)]
    loops += [replica.keep() for replica in world.replicas]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop) for loop in loops]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _make_database(postgres: EmbeddedPostgres) -> None:
    await migrate(postgres.owner_url)
    await postgres.allow_service_login()
    owner = await asyncpg.connect(postgres.owner_url, timeout=SESSION_TIMEOUT_S)
    try:
        await owner.execute("UPDATE causeway.log SET partition_events = $1", PARTITION_EVENTS)
        await owner.execute("CREATE ROLE chaos_stranger LOGIN")
    finally:
        await owner.close()


def _make_replica(number: int, folder: Path, dsn: str) -> Replica:
    sources = folder / "sources"
    sources.mkdir(exist_ok=True)
    (sources / "shop").write_text(SECRET)
    env = environment(
        DATABASE_URL=dsn,
        CAUSEWAY_PORT=str(free_port()),
        CAUSEWAY_SOURCES_DIR=str(sources),
        **SETTINGS,
    )
    return Replica(number, env, folder / f"replica-{number}.log", *ARGUMENTS[number])


async def stop_replicas(replicas: Sequence[Replica]) -> list[str]:
    """End all replicas in order; return what was wrong with their ends."""
    codes = await asyncio.gather(*(replica.end(signal.SIGTERM) for replica in replicas))
    ends = [text for replica in replicas for text in replica.ends]
    for replica, code in zip(replicas, codes, strict=True):
        if code != 0:
            ends.append(f"replica {replica.number} ended with {code} after SIGTERM")
    return ends


def find_leaks(world: World) -> list[str]:
    """Return what no log may hold, and one does: secrets, tokens, bodies."""
    hidden = {"a secret of Bridge's": SECRET, "the key": KEY, "a body": '"user_uuid":'}
    hidden |= {"a token": STREAM_TOKEN, "the admin's token": ADMIN_TOKEN}
    hidden |= {f"a webhook's secret, {n}": it for n, it in enumerate(world.secrets)}
    logs = [*(replica.log for replica in world.replicas), *(world.folder / "log").glob("*.log")]
    return [
        f"{what} is in {log.name}"
        for log in logs
        for what, text in hidden.items()
        if text in log.read_text(errors="replace")
    ]


async def audit(postgres: EmbeddedPostgres) -> str | None:
    """Run `causeway audit`; return what it found to be wrong, or None."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "audit"),
        env=environment(DATABASE_URL=postgres.service_url),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return None if process.returncode == 0 else output.decode(errors="replace").strip()[-500:]
