"""How fast the log takes events, by the size of the batch.

`EventLog.append` on the embedded Postgres: distinct events of Bridge's documented types, one batch
after the other, each its own transaction and on disk when it returns. Beside it `pgbench` calls the
same SQL function with the same kind of events, prepared in a table: what is left is what Python,
its driver and the socket cost.
"""

import asyncio
import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path

import asyncpg

from service.cluster import find_binaries
from service.embedded import EmbeddedPostgres
from service.event import NewEvent
from service.eventlog import EventLog
from service.system_user import SystemUser
from tests.bench.databases import APPEND_TIMEOUT_S, fresh_database, new_events, open_log
from tests.bench.effort import Effort
from tests.bench.figures import Figure, Turn, alternate, at_least, figure, ratio
from tests.running import Database

SIZES = (1, 10, 50, 200, 500)
GROUP = 200  # the batch that targets speak of
COLUMNS = {
    "received_at": "timestamptz",
    "occurred_at": "timestamptz",
    "item_id": "bigint",
    "account_id": "bigint",
    "user_uuid": "uuid",
    "source": "text",
    "type": "text",
    "topic": "text",
    "digest": "bytea",
    "body": "bytea",
    "is_repeatable": "boolean",
}
SCRIPT = """\
\\set n :n + 1
SELECT count(*)
FROM prepared.batch, causeway.append_events({columns})
WHERE batch.n = :n;
"""


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return events a second for each size, from Python and from pgbench, and their ratios."""
    fresh = new_events(seed=1)
    async with (
        fresh_database(postgres) as ours,
        fresh_database(postgres) as theirs,
        open_log(ours) as eventlog,
        _open_pgbench(postgres, theirs, fresh) as bench,
    ):
        turns: dict[str, Turn] = {}
        for size in SIZES:
            batches = max(1, min(effort.append_batches, effort.append_events // size))
            turns[f"append, batches of {size}"] = partial(
                append_rate, eventlog, fresh, size, batches
            )
            turns[f"pgbench, batches of {size}"] = partial(bench.rate, size, batches)
        return _figures(await alternate(effort.rounds, turns))


async def append_rate(
    eventlog: EventLog, fresh: Iterator[NewEvent], size: int, batches: int, _round: int = 0
) -> float:
    """Append `batches` batches of `size` prepared events; return events a second."""
    prepared = [list(islice(fresh, size)) for _ in range(batches)]
    began = time.perf_counter()
    for batch in prepared:
        await eventlog.append(batch, timeout_s=APPEND_TIMEOUT_S)
    return size * batches / (time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class _Pgbench:
    """pgbench on a database, with a table of batches that it appends one after the other."""

    program: Path
    script: Path
    database: Database
    connection: "asyncpg.Connection[asyncpg.Record]"
    fresh: Iterator[NewEvent]

    async def rate(self, size: int, batches: int, _round: int = 0) -> float:
        """Append `batches` prepared batches of `size`; return events a second."""
        await self._prepare(size, batches)
        process = await asyncio.create_subprocess_exec(
            *(self.program, "-n", "-M", "prepared", "-c", "1", "-t", str(batches), "-D", "n=0"),
            *("-f", self.script, self.database.owner_dsn),
            stdout=asyncio.subprocess.PIPE,
        )
        output = (await process.communicate())[0].decode()
        done = re.search(r"^tps = ([0-9.]+) ", output, re.MULTILINE)
        if process.returncode != 0 or done is None:
            raise RuntimeError(f"pgbench ended with {process.returncode}: {output}")
        return float(done[1]) * size

    async def _prepare(self, size: int, batches: int) -> None:
        await self.connection.execute("TRUNCATE prepared.batch")
        get = [attrgetter(name) for name in COLUMNS]
        rows = []
        for n in range(1, batches + 1):
            batch = list(islice(self.fresh, size))
            rows.append((n, *([of(event) for event in batch] for of in get)))
        await self.connection.copy_records_to_table("batch", schema_name="prepared", records=rows)
        await self.connection.execute("VACUUM ANALYZE prepared.batch")


@asynccontextmanager
async def _open_pgbench(
    postgres: EmbeddedPostgres, database: Database, fresh: Iterator[NewEvent]
) -> AsyncIterator[_Pgbench]:
    user = SystemUser.for_data(postgres.data_dir)
    program = find_binaries(postgres.data_dir, user) / "pgbench"
    connection = await asyncpg.connect(database.owner_dsn)
    try:
        await connection.execute("CREATE SCHEMA prepared")
        columns = ", ".join(f"{name} {kind}[]" for name, kind in COLUMNS.items())
        await connection.execute(f"CREATE TABLE prepared.batch (n int PRIMARY KEY, {columns})")
        for name in COLUMNS:  # no time for unpacking in what is measured
            await connection.execute(
                f"ALTER TABLE prepared.batch ALTER COLUMN {name} SET STORAGE EXTERNAL"
            )
        with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
            script.write(SCRIPT.format(columns=", ".join(COLUMNS)))
            script.flush()
            yield _Pgbench(program, Path(script.name), database, connection, fresh)
    finally:
        await connection.close()


def _figures(rates: dict[str, list[float]]) -> list[Figure]:
    single, group = rates["append, batches of 1"], rates[f"append, batches of {GROUP}"]
    pgbench = rates[f"pgbench, batches of {GROUP}"]
    return [
        *(figure(name, "events/s", values) for name, values in sorted(rates.items(), key=_order)),
        ratio(f"batches of {GROUP} to single events", group, single, at_least(20)),
        ratio(f"append to pgbench, batches of {GROUP}", group, pgbench, at_least(0.6)),
    ]


def _order(rate: tuple[str, list[float]]) -> bool:
    return rate[0].startswith("pgbench")
