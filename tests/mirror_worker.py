"""A mirror as a process of its own, and nothing else: quick to start, and to be killed.

It waits for NATS as long as a test takes: one that gives up lets another mirror in.

python -m tests.mirror_worker
"""

import asyncio
from importlib import import_module

import uvloop
from prometheus_client import CollectorRegistry

from service.config import load
from service.db import create_pool
from service.erase import Erasures
from service.eventlog import EventLog
from service.listen import Listener
from service.mirror import Mirror
from service.mirror_lease import MirrorLease
from service.mirror_metrics import MirrorMetrics
from tests.mirroring import PATIENCE, PATIENT_S


async def main() -> None:
    """Mirror until somebody ends it."""
    for module, name in PATIENCE:
        setattr(import_module(module), name, PATIENT_S)
    settings = load()
    assert settings.database_url is not None
    dsn = settings.database_url.get_secret_value()
    async with create_pool(dsn, max_size=1) as pool:
        lease = MirrorLease(dsn, settings.nats_stream, settings.poll_s)
        metrics = MirrorMetrics(CollectorRegistry())
        parts = (settings, EventLog(pool), Erasures(pool), lease, metrics)
        mirror = Mirror(*parts, poll_s=settings.poll_s)
        async with asyncio.TaskGroup() as loops:
            loops.create_task(mirror.run())
            loops.create_task(Listener(dsn, mirror.hear).run())


if __name__ == "__main__":
    uvloop.run(main())
