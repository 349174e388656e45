"""Every statement in `sql/`: it fits the schema and the role, and goes by the index it names."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.db import SESSION, SQL_DIR, Connection, connect, statements
from service.eventlog import SCAN_POSITIONS, EventLog
from tests.bridge import new_event
from tests.running import Database
from tests.stored import append

MODULES = sorted(path.stem for path in SQL_DIR.glob("*.sql"))
NAMED = [(module, name) for module in MODULES for name in vars(statements(module))]
ROWS = 20_000
# Everything but these is common: an item, an account, a user, a type and a source with four rows.
RARE = f"n % ({ROWS} / 4) = 17"
USER = "00000000-0000-4000-8000-000000000017"
FILL = f"""
INSERT INTO causeway.event (position, received_at, watermark, occurred_at, item_id, account_id,
    user_uuid, source, type, topic, digest, link, body)
SELECT n, now(), now(), now(), CASE WHEN {RARE} THEN 7 ELSE 100 + n % 9 END,
    CASE WHEN {RARE} THEN 8 ELSE 100 + n % 9 END,
    CASE WHEN {RARE} THEN '{USER}' ELSE '00000000-0000-4000-8000-000000000000' END::uuid,
    CASE WHEN {RARE} THEN 'rare' ELSE 'default' END, 'a',
    CASE WHEN {RARE} THEN 'rare.type' ELSE 'item.refreshed' END,
    sha256(n::text::bytea), sha256(n::text::bytea), convert_to(repeat('x', 300), 'UTF8')
FROM generate_series(1, {ROWS}) AS n
"""


@pytest.mark.parametrize(("module", "name"), NAMED)
async def test_each_statement_may_be_run_by_the_services_role(
    database: Database, module: str, name: str
) -> None:
    is_owners = module == "prune"  # what the service may not do
    connection = await connect(database.owner_dsn if is_owners else database.service_dsn)
    try:
        sql = getattr(statements(module), name)
        await connection.prepare(sql)
        await connection.execute(f"EXPLAIN (GENERIC_PLAN) {sql}")  # looks at privileges too
    finally:
        await connection.close()


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_each_statement_has_a_comment_and_no_other_parameters(module: str, name: str) -> None:
    comment: list[str] = []
    sql: list[str] = []
    for line in getattr(statements(module), name).splitlines():
        (comment if line.startswith("--") else sql).append(line)
    assert comment, "say what the parameters are, what it returns, which index it uses"
    text, code = " ".join(comment), "\n".join(sql)
    numbers = {int(number) for number in re.findall(r"\$(\d+)", code)}
    assert numbers == set(range(1, len(numbers) + 1))
    explained = range_of_parameters(text)
    assert numbers <= explained, f"{numbers - explained} are not explained"
    assert code.rstrip().endswith(";")


def range_of_parameters(text: str) -> set[int]:
    """Return the parameters that a comment speaks of: `$1`, `$2..$4`."""
    found: set[int] = set()
    for first, last in re.findall(r"\$(\d+)(?:\.\.\$(\d+))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def test_no_statement_is_named_twice() -> None:
    for path in SQL_DIR.glob("*.sql"):
        names = re.findall(r"^-- name: (\w+)$", path.read_text(), re.MULTILINE)
        assert len(names) == len(set(names)), path.name


def test_each_statement_is_used_by_its_module() -> None:
    for module, name in NAMED:
        source = (Path(__file__).parent.parent / "service" / f"{owner_of(module)}.py").read_text()
        assert re.search(rf"_SQL\.{name}\b", source), f"{module}.{name}"


def owner_of(sql_module: str) -> str:
    """Return the one Python module that calls the statements of a file."""
    return {"token": "auth"}.get(sql_module, sql_module)


def test_each_index_says_which_statement_needs_it() -> None:
    for path in (SQL_DIR / "migrations").glob("*.sql"):
        lines = path.read_text().splitlines()
        for n, line in enumerate(lines):
            if re.match(r"CREATE (UNIQUE )?INDEX", line):
                above = n - 1
                while re.match(r"CREATE (UNIQUE )?INDEX", lines[above]):
                    above -= 1
                assert lines[above].startswith("--"), f"{path.name}:{n + 1}"


# Plans

PARTITION = re.compile(r"^event_\d+")
# What Postgres calls an index that it makes for a partition.
AUTOMATIC = {
    "event_item_id_position_idx": "event_item",
    "event_account_id_position_idx": "event_account",
    "event_user_uuid_position_idx": "event_user",
    "event_topic_position_idx": "event_topic",
    "event_source_position_idx": "event_source",
}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every node of a plan."""
    yield plan
    for inner in plan.get("Plans", []):
        yield from nodes(inner)


def indexes(plan: dict[str, Any]) -> set[str]:
    """Return the indexes that the plan goes by; those of partitions under the whole log's names."""
    used = {node["Index Name"] for node in nodes(plan) if "Index Name" in node}
    return {AUTOMATIC.get(name, name) for name in (PARTITION.sub("event", it) for it in used)}


def scanned(plan: dict[str, Any]) -> set[str]:
    """Return the tables that the plan reads from one end to the other."""
    return {node["Relation Name"] for node in nodes(plan) if node["Node Type"] == "Seq Scan"}


async def plan_of(connection: Connection, sql: str, *values: object) -> dict[str, Any]:
    rows = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {sql}", *values)
    plan: dict[str, Any] = json.loads(rows)[0]["Plan"]
    return plan


MATCHING: dict[str, tuple[list[object], str]] = {
    "topics": ([["rare.type"], None, None, None, None, None], "event_topic"),
    "items": ([None, None, [7], None, None, None], "event_item"),
    "accounts": ([None, None, None, [8], None, None], "event_account"),
    "users": ([None, None, None, None, [USER], None], "event_user"),
    "sources": ([None, None, None, None, None, ["rare"]], "event_source"),
}


@pytest.mark.parametrize("is_analyzed", [True, False])
async def test_each_reader_goes_by_its_index(
    owner: Connection, database: Database, is_analyzed: bool
) -> None:
    await owner.execute("ALTER TABLE causeway.event_0 SET (autovacuum_enabled = off)")
    await owner.execute(FILL)
    if is_analyzed:
        await owner.execute("ANALYZE causeway.event")
    sql = statements("eventlog")
    connection = await connect(database.service_dsn)
    try:
        for name, (conditions, index) in MATCHING.items():
            plan = await plan_of(connection, sql.read_matching, 0, ROWS, 500, 10**6, *conditions)
            assert indexes(plan) == {index}, (name, plan)
        for statement, values in (
            (sql.read_after, (ROWS - 5, 500, 10**6, ROWS)),
            (sql.read_matching, (10, 20, 500, 10**6, *[None] * 6)),
            (sql.read_matching, (10, 20, 500, 10**6, None, ["item.%"], *[None] * 4)),
            (sql.bounds, ()),
            (sql.link_at, (5,)),
            (sql.places, ([5, ROWS],)),
            (sql.audit_after, (ROWS - 5, 500, 1_000_000)),
        ):
            plan = await plan_of(connection, statement, *values)
            assert indexes(plan) - {"erased_pkey"} == {"event_pkey"}, plan
            assert "event_0" not in scanned(plan), plan  # the one made ahead is empty
    finally:
        await connection.close()


async def test_a_filter_that_matches_much_stops_at_its_page(
    owner: Connection, database: Database
) -> None:
    await owner.execute(FILL)
    await owner.execute("ANALYZE causeway.event")
    connection = await connect(database.service_dsn)
    try:
        sql = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statements("eventlog").read_matching
        common: list[object] = [["item.refreshed"], *[None] * 5]
        rows = await connection.fetchval(sql, 0, SCAN_POSITIONS, 10, 10**6, *common)
        read = sum(
            node["Actual Rows"] for node in nodes(json.loads(rows)[0]["Plan"])
            if node.get("Relation Name") == "event_0"
        )  # fmt: skip
        assert read <= 20, "rows that no page needs were read"
    finally:
        await connection.close()


async def nested_plans(connection: Connection, *events: Any) -> list[dict[str, Any]]:
    """Append `events`; return the plan of each statement that ran within append_events."""
    messages: list[str] = []

    def keep(_: object, message: Any) -> None:
        messages.append(message.message)

    connection.add_log_listener(keep)
    await append(EventLog(connection), *events)
    connection.remove_log_listener(keep)
    found = [message.partition("plan:\n") for message in messages]
    return [json.loads(plan)["Plan"] for _, separator, plan in found if separator]


async def test_an_append_never_reads_a_whole_table(owner: Connection) -> None:
    """Neither with a plan that was made when the tables were empty, nor on unanalyzed ones."""
    for name, value in SESSION.items():
        if "." not in name and not name.startswith("tcp_"):
            await owner.execute("SELECT set_config($1, $2, false)", name, value)
    await owner.execute("SET plan_cache_mode = auto")  # the function must see to it by itself
    await owner.execute("LOAD 'auto_explain'")
    for name, setting in {
        "auto_explain.log_min_duration": "0",
        "auto_explain.log_nested_statements": "on",
        "auto_explain.log_format": "json",
        "auto_explain.log_level": "notice",
        "client_min_messages": "notice",
    }.items():
        await owner.execute("SELECT set_config($1, $2, false)", name, setting)
    for table in ("event_0", "digest"):
        await owner.execute(f"ALTER TABLE causeway.{table} SET (autovacuum_enabled = off)")
    for _ in range(8):  # more than the five calls after which a generic plan may be kept
        await nested_plans(owner, new_event())
    await owner.execute(
        "INSERT INTO causeway.digest (digest, source, position) "
        f"SELECT sha256(n::text::bytea), 'default', n FROM generate_series(1, {ROWS}) AS n"
    )
    for count in (1, 10, 500):
        plans = await nested_plans(owner, *(new_event() for _ in range(count)))
        look_ups = [plan for plan in plans if "digest_pkey" in indexes(plan)]
        assert look_ups, "the look-up of duplicates was not seen, or went another way"
        assert any("event_pkey" in indexes(plan) for plan in plans), "the head's"
        for plan in plans:
            assert scanned(plan) <= {"log"}, plan
            kinds = {node["Node Type"] for node in nodes(plan)}
            assert not kinds & {"Hash Join", "Merge Join"}, plan
