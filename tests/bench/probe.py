"""What a running service uses, and what it says of itself: memory, files, tasks, sessions, SQL."""

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx2

from tests.running import Database, Process

MIB = 2**20
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'causeway'"
END = "SELECT coalesce(max(position), 0) FROM causeway.event"
STATEMENTS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"


@dataclass(frozen=True, slots=True)
class Use:
    """What the service uses at one moment."""

    tasks: int
    files: int
    sessions: int
    memory_bytes: int


class Probe:
    """Looks at one service process and its database."""

    def __init__(
        self,
        process: Process,
        owner: "asyncpg.Connection[asyncpg.Record]",
        client: httpx2.AsyncClient,
    ) -> None:
        self._owner = owner
        self._client = client
        self._proc = Path(f"/proc/{process.popen.pid}")

    async def use(self) -> Use:
        """Return what is used now."""
        metrics = await self.metrics()
        return Use(
            tasks=int(metrics["causeway_tasks"]),
            files=sum(1 for _ in (self._proc / "fd").iterdir()),
            sessions=await self._owner.fetchval(SESSIONS),
            memory_bytes=self.memory_bytes(),
        )

    def memory_bytes(self) -> int:
        """Return the resident memory."""
        return self._status("VmRSS")

    def forget_peak(self) -> None:
        """Let `peak_bytes` begin anew."""
        (self._proc / "clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """Return the greatest resident memory since `forget_peak`."""
        return self._status("VmHWM")

    def processor_s(self) -> float:
        """Return the processor time that was used since the start."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    async def statements(self) -> int:
        """Return the SQL statements so far: each is a transaction of its own."""
        await self._owner.execute("SELECT pg_stat_force_next_flush()")
        count: int = await self._owner.fetchval(STATEMENTS)
        return count

    async def metrics(self) -> dict[str, float]:
        """Return the service's metrics by name and labels."""
        answer = (await self._client.get("/metrics")).raise_for_status()
        lines = (line for line in answer.text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    async def head(self) -> int:
        """Return the newest position that the service knows."""
        return int((await self.metrics())["causeway_log_head_position"])

    async def end(self) -> int:
        """Return the log's newest position, which the service may not have read yet."""
        position: int = await self._owner.fetchval(END)
        return position

    def _status(self, name: str) -> int:
        match = re.search(
            rf"^{name}:\s+(\d+) kB$", (self._proc / "status").read_text(), re.MULTILINE
        )
        assert match is not None
        return int(match[1]) * 1024


@asynccontextmanager
async def probing(process: Process, database: Database) -> AsyncIterator[Probe]:
    """A probe until the end of the block."""
    owner = await asyncpg.connect(database.owner_dsn)
    try:
        async with httpx2.AsyncClient(base_url=process.url, timeout=60) as client:
            yield Probe(process, owner, client)
    finally:
        await owner.close()


def quantile_ms(
    before: dict[str, float], after: dict[str, float], name: str, percent: float, labels: str = ""
) -> float:
    """Return a percentile of what a histogram counted between two scrapes, as Prometheus would."""
    pattern = re.compile(rf'{name}_bucket{{(?:{labels},)?le="([^"]+)"(?:,{labels})?}}')
    found = [(match, series) for series in after if (match := pattern.fullmatch(series))]
    counts = sorted((float(m[1]), after[s] - before.get(s, 0.0)) for m, s in found)
    rank = percent / 100 * counts[-1][1]
    low = below = 0.0
    for bound, count in counts:
        if count >= rank:
            high = low if bound == float("inf") else bound
            share = (rank - below) / (count - below) if count > below else 1.0
            return 1000 * (low + (high - low) * share)
        low, below = bound, count
    raise AssertionError("no bucket holds all")
