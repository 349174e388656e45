"""The machine that figures were measured on: they mean little without it."""

import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import asyncpg

from service.embedded import EmbeddedPostgres

FSYNCS = 200
PAGE_BYTES = 8192


async def describe(postgres: EmbeddedPostgres) -> dict[str, str]:
    """Return the machine's parts by name."""
    connection = await asyncpg.connect(postgres.owner_url)
    try:
        version = await connection.fetchval("SHOW server_version")
    finally:
        await connection.close()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    sync_ms = median(fdatasyncs(postgres.data_dir, FSYNCS)) * 1000
    return {
        "CPU": f"{os.cpu_count()} cores, {_cpu_model()}",
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "Postgres": f"{version}, embedded",
        "disk": f"fdatasync of {PAGE_BYTES} bytes takes {sync_ms:.2f} ms (median of {FSYNCS})",
    }


def fdatasyncs(folder: Path, count: int) -> Iterator[float]:
    """Yield how long each of `count` appended pages took to be on the disk of `folder`; seconds."""
    path = folder / "fdatasync.tmp"
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for _ in range(count):
            os.write(file, bytes(PAGE_BYTES))
            began = time.perf_counter()
            os.fdatasync(file)
            yield time.perf_counter() - began
    finally:
        os.close(file)
        path.unlink()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()
