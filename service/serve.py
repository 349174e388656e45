"""The service from its settings to its exit code, in one process or several; and the database.

With `DATABASE_URL` the operator's Postgres is used as it is; without, an embedded one is started,
migrated, watched and stopped again.
"""

import asyncio
import gc
import logging
import resource
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import uvloop

from service.app import LOST_LOOPS, Service, open_service
from service.config import Settings
from service.embedded import EmbeddedPostgres, default_data_dir
from service.migrate import migrate
from service.peers import Peers
from service.roles import Role, spell
from service.server import Server, listen
from service.supervise import Loop, Supervisor
from service.workers import Brief, Workers

log = logging.getLogger("causeway.serve")

# The window keeps some 100,000 objects that form no cycles; with Python's own thresholds they are
# walked through again and again: a fifth of the processor time of a webhook.
GC_THRESHOLDS = (50_000, 20, 100)
BEGIN_S = 5.0
LOOK_S = 0.01


@dataclass
class _Fatal:
    """What a loop that ended for good leaves behind; it stops what serves."""

    stop: Callable[[], None] = lambda: None
    loops: list[str] = field(default_factory=list)

    def __call__(self, loop: str) -> None:
        self.loops.append(loop)
        self.stop()


def serve(settings: Settings, *, is_migrating: bool) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code: 0, or 1 if a loop could not go on.

    `is_migrating`: apply missing migrations first, with the login of `DATABASE_URL`. The embedded
    database is always migrated.
    """
    _raise_file_limit()
    if settings.database_url is not None:
        dsn = settings.database_url.get_secret_value()
        return uvloop.run(_start(settings, dsn, dsn if is_migrating else None, None))
    with EmbeddedPostgres(settings.data_dir or default_data_dir()) as postgres:
        log.info("embedded Postgres", extra={"data_dir": str(postgres.data_dir)})
        return uvloop.run(_start(settings, postgres.service_url, postgres.owner_url, postgres))


def serve_worker(settings: Settings, brief: Brief) -> int:
    """Be one worker, on inherited sockets; return the exit code, 1 if the parent is gone."""
    own = socket.socket(fileno=brief.gathering)
    peers = Peers(brief.number, brief.ports, own)
    url = settings.database_url
    dsn = brief.dsn or (url.get_secret_value() if url else "")
    loops = {"parent": until_input_ends}
    with own, socket.socket(fileno=brief.listener) as sock:
        return uvloop.run(_serve(settings, dsn, sock, loops, peers))


async def _start(
    settings: Settings, dsn: str, owner_dsn: str | None, postgres: EmbeddedPostgres | None
) -> int:
    if owner_dsn is not None:
        await _migrate(owner_dsn)
    if postgres is not None:
        await postgres.allow_service_login()
    loops = {} if postgres is None else {"postgres": postgres.keep_running}
    with listen(settings) as sock:
        if settings.workers == 1:
            return await _serve(settings, dsn, sock, loops)
        workers = Workers(settings, sock, None if postgres is None else dsn)
        fatal = _Fatal(workers.stop)
        async with Supervisor(fatal) as supervisor:
            for name, loop in loops.items():
                supervisor.start(name, loop, max_failures=LOST_LOOPS)
            return await workers.run() or len(fatal.loops)


async def _serve(
    settings: Settings,
    dsn: str,
    sock: socket.socket,
    loops: Mapping[str, Loop],
    peers: Peers | None = None,
) -> int:
    calm_garbage_collector()
    fatal = _Fatal()
    async with open_service(settings, dsn, fatal, peers) as service:
        for name, loop in loops.items():
            service.supervisor.start(name, loop, max_failures=LOST_LOOPS)
        server = Server(service, settings)
        fatal.stop = server.stop
        if Role.STREAM in settings.roles:
            await _until_begun(service)
        host, port = sock.getsockname()[:2]
        log.info("listening", extra={"host": host, "port": port, "roles": spell(settings.roles)})
        await server.serve(sockets=[sock])
    return 1 if fatal.loops else 0


async def _until_begun(service: Service) -> None:
    """Return once streams can begin; after BEGIN_S in any case, to say what is wrong.

    After a restart browsers are back at once, and their EventSource gives up for ever at a 503.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(BEGIN_S):
            while True:
                if service.window.position >= 0:
                    return
                await asyncio.sleep(LOOK_S)


async def until_input_ends() -> None:
    """Return when whoever started this process is gone."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.read()


async def _migrate(dsn: str) -> None:
    applied = await migrate(dsn)
    log.info("schema is up to date", extra={"applied": applied})


def calm_garbage_collector() -> None:
    """Look for cycles rarely, and never among what was loaded before the start."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _raise_file_limit() -> None:
    """Each stream is a file: take as many as the system gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        log.info("open files", extra={"limit": hard})
