"""One process of the service, from its settings to its exit code; and the database behind it.

With `DATABASE_URL` the operator's Postgres is used as it is; without, an embedded one is started,
migrated, watched and stopped again.
"""

import gc
import logging
import resource
from dataclasses import dataclass, field

import uvloop

from service.app import open_service
from service.config import Settings
from service.embedded import EmbeddedPostgres, default_data_dir
from service.migrate import migrate
from service.server import Server, listen

log = logging.getLogger("causeway.serve")

# The window keeps some 100,000 objects that form no cycles; with Python's own thresholds they are
# walked through again and again: a fifth of the processor time of a webhook.
GC_THRESHOLDS = (50_000, 20, 100)


@dataclass
class _Fatal:
    """What a loop that ended for good leaves behind."""

    server: Server | None = None
    loops: list[str] = field(default_factory=list)

    def __call__(self, loop: str) -> None:
        self.loops.append(loop)
        if self.server is not None:
            self.server.stop()


def serve(settings: Settings, *, is_migrating: bool) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code: 0, or 1 if a loop could not go on.

    `is_migrating`: apply missing migrations first, with the login of `DATABASE_URL`. The embedded
    database is always migrated.
    """
    _raise_file_limit()
    calm_garbage_collector()
    if settings.database_url is not None:
        dsn = settings.database_url.get_secret_value()
        return uvloop.run(_serve(settings, dsn, dsn if is_migrating else None, None))
    with EmbeddedPostgres(settings.data_dir or default_data_dir()) as postgres:
        log.info("embedded Postgres", extra={"data_dir": str(postgres.data_dir)})
        return uvloop.run(_serve(settings, postgres.service_url, postgres.owner_url, postgres))


async def _serve(
    settings: Settings, dsn: str, owner_dsn: str | None, postgres: EmbeddedPostgres | None
) -> int:
    if owner_dsn is not None:
        await _migrate(owner_dsn)
    if postgres is not None:
        await postgres.allow_service_login()
    fatal = _Fatal()
    with listen(settings) as sock:
        async with open_service(settings, dsn, fatal) as service:
            if postgres is not None:
                service.supervisor.start("postgres", postgres.keep_running, max_failures=3)
            fatal.server = server = Server(service, settings)
            host, port = sock.getsockname()[:2]
            log.info("listening", extra={"host": host, "port": port})
            await server.serve(sockets=[sock])
    return 1 if fatal.loops else 0


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
