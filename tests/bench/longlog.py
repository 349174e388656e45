"""What a log that has grown old costs: append, resume, `since=` and a rare item.

Two logs on the same Postgres: one with millions of rows, one with a thousand. The rows are appended
by the log's own function, in large batches made in Postgres, over 30 days; one event in 100,000 is
of the rare item. Resume is what a reader's id costs: the check of its link and the first page after
it, at random places. A filtered read looks at 50,000 positions, as one step of a filtered stream
does (in the short log: at all there are). The log is larger than Postgres' own cache (128 MB), but
what was just written is in the kernel's.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from statistics import median

import asyncpg

from service.embedded import EmbeddedPostgres
from service.eventlog import SCAN_POSITIONS, EventLog
from service.filter import Filter
from tests.bench.append import append_rate
from tests.bench.databases import fresh_database, new_events, open_log
from tests.bench.effort import Effort
from tests.bench.figures import Figure, Turn, alternate, figure, ratio
from tests.running import Database

SHORT_ROWS = 1000
FILL_BATCH = 5000
GROUP = 200
SPAN = timedelta(days=30)
RARE_ITEM, RARE_EVERY = 42, 100_000
LONG, SHORT = "long log", "short log"

# $1, $2: the first and the last number of a batch; $3: when the first of all came; $4: microseconds
# between two; $5: the rare item; $6: how rare.
FILL = """
SELECT count(*)
FROM (
    SELECT array_agg(at ORDER BY n) AS at, array_agg(item ORDER BY n) AS item,
        array_agg(('00000000-0000-4000-8000-' || lpad(to_hex(n % 4096), 12, '0'))::uuid ORDER BY n)
            AS users,
        array_agg('default'::text ORDER BY n) AS source,
        array_agg('item.account.updated'::text ORDER BY n) AS type,
        array_agg(sha256(body) ORDER BY n) AS digest, array_agg(body ORDER BY n) AS body,
        array_agg(false ORDER BY n) AS repeatable
    FROM (
        SELECT n, at, item, convert_to(format(
            '{"content":{"account_id":%s,"balance":%s.10,"item_id":%s,"nb_deleted_transactions":0,'
            '"nb_new_transactions":2,"nb_updated_transactions":1,"n":%s,"user_uuid":'
            '"00000000-0000-4000-8000-%s"},"timestamp":%s,"type":"item.account.updated"}',
            item * 4, n % 9973, item, n, lpad(to_hex(n % 4096), 12, '0'), 1767225600000 + n
        ), 'UTF8') AS body
        FROM (
            SELECT n, $3::timestamptz + n * $4::bigint * interval '1 microsecond' AS at,
                CASE WHEN n % $6::bigint = $6 / 2 THEN $5::bigint ELSE 4294967296 + n % 4096 END
                    AS item
            FROM generate_series($1::bigint, $2::bigint) AS n
        ) AS numbered
    ) AS made
) AS batch, causeway.append_events(at, at, item, item, users, source, type, type, digest, body,
    repeatable)
"""


@dataclass(slots=True)
class _Log:
    """A filled log, and the look-ups that are timed on it."""

    eventlog: EventLog
    rows: int
    began: datetime
    lookups: int
    random: Random

    async def resume(self, _round: int) -> float:
        """Return the seconds to check an id and read the page after it; the median."""

        async def one() -> None:
            position = self._position()
            await self.eventlog.check(position, None)
            await self.eventlog.read_after(position)

        return await self._median(one)

    async def since(self, _round: int) -> float:
        """Return the seconds to find the first position of a moment; the median."""

        async def one() -> None:
            await self.eventlog.find_time(self.began + SPAN * self.random.random())

        return await self._median(one)

    async def rare(self, _round: int) -> float:
        """Return the seconds of one step of a stream that is filtered by a rare item; median."""

        async def one() -> None:
            await self.eventlog.read_matching(self._position(), self.rows, _rare())

        return await self._median(one)

    async def rare_from_start(self) -> float:
        """Return the seconds to find every event of the rare item in the whole log.

        Raises RuntimeError if they are not all found.
        """
        began = time.perf_counter()
        position, found = 0, 0
        while position < self.rows:
            page = await self.eventlog.read_matching(position, self.rows, _rare())
            position, found = page.scanned_to, found + len(page.events)
        if found != (self.rows + RARE_EVERY // 2) // RARE_EVERY:
            raise RuntimeError(f"{found} events of the rare item were found")
        return time.perf_counter() - began

    async def _median(self, one: Callable[[], Awaitable[None]]) -> float:
        times = []
        for _ in range(self.lookups):
            began = time.perf_counter()
            await one()
            times.append(time.perf_counter() - began)
        return median(times)

    def _position(self) -> int:
        """A place with a full page, or a full scan, after it where the log is long enough."""
        return self.random.randint(1, max(1, self.rows - SCAN_POSITIONS))


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return the rates and times of both logs, and their ratios."""
    rows = {LONG: effort.log_rows, SHORT: min(SHORT_ROWS, effort.log_rows)}
    async with (
        fresh_database(postgres) as long,
        fresh_database(postgres) as short,
        open_log(long) as long_log,
        open_log(short) as short_log,
    ):
        databases, logs = {LONG: long, SHORT: short}, {LONG: long_log, SHORT: short_log}
        began = datetime.now(UTC) - SPAN
        filled = {name: await _fill(databases[name], rows[name], began) for name in rows}
        read = {
            name: _Log(logs[name], rows[name], began, effort.lookups, Random(5)) for name in rows
        }
        lookups = [
            *await _compare("resume", effort, {name: log.resume for name, log in read.items()}),
            *await _compare("since=", effort, {name: log.since for name, log in read.items()}),
            *await _compare("rare item", effort, {name: log.rare for name, log in read.items()}),
        ]
        whole = await read[LONG].rare_from_start()
        rates = await _append_rates(logs, effort)
    title = f"every event of the rare item in {rows[LONG]:,} rows"
    fill = figure(f"filled by append_events, {FILL_BATCH} a batch", "events/s", [filled[LONG]])
    return [fill, *rates, *lookups, figure(title, "ms", [whole * 1000])]


async def _compare(what: str, effort: Effort, turns: dict[str, Turn]) -> list[Figure]:
    times = await alternate(effort.rounds, turns)
    return [
        *(figure(f"{what}, {name}", "ms", [t * 1000 for t in times[name]]) for name in times),
        ratio(f"{what}, {LONG} to {SHORT}", times[LONG], times[SHORT]),
    ]


async def _append_rates(logs: dict[str, EventLog], effort: Effort) -> list[Figure]:
    fresh = new_events(seed=4)
    batches = max(1, effort.append_events // GROUP)
    turns: dict[str, Turn] = {
        name: partial(append_rate, eventlog, fresh, GROUP, batches)
        for name, eventlog in logs.items()
    }
    rates = await alternate(effort.rounds, turns)
    what = f"append, batches of {GROUP}"
    return [
        *(figure(f"{what}, {name}", "events/s", rates[name]) for name in rates),
        ratio(f"{what}, {LONG} to {SHORT}", rates[LONG], rates[SHORT]),
    ]


async def _fill(database: Database, rows: int, began: datetime) -> float:
    """Append `rows` events that came over SPAN since `began`; return events a second."""
    step_us = SPAN // timedelta(microseconds=1) // rows
    connection = await asyncpg.connect(database.owner_dsn)
    try:
        started = time.perf_counter()
        for first in range(1, rows + 1, FILL_BATCH):
            last = min(rows, first + FILL_BATCH - 1)
            await connection.fetchval(FILL, first, last, began, step_us, RARE_ITEM, RARE_EVERY)
        rate = rows / (time.perf_counter() - started)
        await connection.execute("VACUUM ANALYZE causeway.event, causeway.digest")
        await connection.execute("CHECKPOINT")
        return rate
    finally:
        await connection.close()


def _rare() -> Filter:
    return Filter(item_ids=frozenset({RARE_ITEM}))
