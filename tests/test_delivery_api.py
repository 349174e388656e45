"""`/api/webhooks/{id}/deliveries...` and `/replays...` of a real service."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from service.db import connect, statements
from service.delivery_list import LOOK_DELIVERIES, DeliveryList, Look
from service.filter import Filter
from tests.bridge import USER, new_event
from tests.described import complaints
from tests.logkeeping import Owner, append, id_of, prune
from tests.receiver import Receiver
from tests.relayed import deliver, make_webhook, rows, whens
from tests.relaying import RELAY
from tests.running import ADMIN_TOKEN, STREAM_TOKEN, WITHIN_S, Database, Running, eventually
from tests.stored import received

T = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
async def service(start: Callable[..., Awaitable[Running]]) -> Running:
    """A service whose webhooks are on."""
    return await start(**RELAY)


async def call(
    running: Running, method: str, path: str, body: Any = None, *, token: str = ADMIN_TOKEN
) -> httpx2.Response:
    headers = {"authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(
        base_url=running.url, headers=headers, timeout=WITHIN_S
    ) as client:
        return await client.request(method, f"/api/webhooks/{path}".rstrip("/"), json=body)


async def good(
    running: Running, method: str, path: str, body: Any = None, *, status: int = 200
) -> Any:
    answer = await call(running, method, path, body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def refused(
    running: Running, method: str, path: str, body: Any = None
) -> tuple[int, str, str]:
    answer = await call(running, method, path, body)
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


async def fill(running: Running, count: int) -> None:
    """Append events of items 1, 2, 1, 2, ..., an hour apart."""
    events = (
        received(new_event(item_id=1 + n % 2, account_id=10 + n), T + timedelta(hours=n))
        for n in range(count)
    )
    await append(running, *events)


def positions(answer: Any) -> list[int]:
    return [delivery["position"] for delivery in answer["deliveries"]]


async def hook_with(owner: Owner, cursor: int, **states: tuple[int, ...]) -> int:
    """Make a webhook with deliveries; disabled, so that the relay leaves them as they are."""
    hook = await make_webhook(owner, cursor, is_disabled=True)
    for state, those in states.items():
        await deliver(owner, hook, state, *those)
    return hook


async def test_deliveries_are_listed_newest_first_with_all_their_fields(
    service: Running, owner: Owner
) -> None:
    await fill(service, 5)
    hook = await hook_with(owner, 3, delivered=(1,), exhausted=(2,), pending=(3,))
    await owner.execute(
        "UPDATE causeway.delivery SET status = 500, error = 'status', attempted_at = now()"
    )
    answer = await good(service, "GET", f"{hook}/deliveries")
    assert positions(answer) == [3, 2, 1]
    assert (answer["next"], answer["waiting"]) == (None, 2)
    first = answer["deliveries"][0]
    assert first["id"] == await id_of(service, 3)
    assert (first["type"], first["source"], first["item_id"]) == (
        "item.account.updated",
        "default",
        1,
    )
    assert first["received_at"] == "2026-03-01T02:00:00.000000Z"
    assert (first["state"], first["attempts"], first["in_flight"], first["held"]) == (
        "pending",
        4,
        False,
        False,
    )
    assert first["next_attempt_at"] is not None
    assert (first["last_status"], first["last_error"]) == (500, "status")
    assert (first["last_attempted_at"] is None, first["settled_at"]) == (False, None)
    settled = answer["deliveries"][1]
    assert (settled["next_attempt_at"], settled["settled_at"] is None) == (None, False)


async def test_a_pending_one_is_in_flight_or_held_or_has_a_time(
    service: Running, owner: Owner
) -> None:
    await fill(service, 4)
    hook = await hook_with(owner, 4, pending=(1, 2, 3, 4))
    set_ = "UPDATE causeway.delivery SET claim = $2, due_at = $3::timestamptz WHERE position = $1"
    later, before = datetime.now(UTC) + timedelta(hours=1), datetime.now(UTC)
    await owner.execute(set_, 1, 7, later)
    await owner.execute(set_, 2, 7, before)  # its lease has ended
    await owner.execute("UPDATE causeway.delivery SET due_at = 'infinity' WHERE position = 3")
    found = (await good(service, "GET", f"{hook}/deliveries"))["deliveries"]
    flags = {
        one["position"]: (one["in_flight"], one["held"], one["next_attempt_at"] is not None)
        for one in found
    }
    assert flags == {
        1: (True, False, False),
        2: (False, False, True),
        3: (False, True, False),
        4: (False, False, True),
    }


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("state=pending", [6, 5]),
        ("state=delivered", [2, 1]),
        ("state=exhausted", [4, 3]),
        ("type=item.*", [6, 5, 4, 3, 2, 1]),
        ("type=item.created&type=payment.*", []),
        ("item_id=1", [5, 3, 1]),
        ("item_id=1&state=pending", [5]),
        ("item_id=1&state=exhausted", [3]),
        ("item_id=1&state=delivered", [1]),
        ("account_id=11&account_id=12", [3, 2]),
        (f"user_uuid={USER}&limit=2", [6, 5]),
        ("source=shop", []),
        ("since=2026-03-01T02:00:00Z", [6, 5, 4, 3]),
        ("since=2026-03-01T02:00:00Z&until=2026-03-01T04:00:00Z", [4, 3]),
        ("since=2027-01-01", []),
        ("before=4", [3, 2, 1]),
        ("after=4", [6, 5]),
        ("after=1&before=5&limit=2", [4, 3]),
        ("before=1", []),
    ],
)
async def test_each_filter_shows_what_matches(
    service: Running, owner: Owner, query: str, expected: list[int]
) -> None:
    await fill(service, 6)
    hook = await hook_with(owner, 6, delivered=(1, 2), exhausted=(3, 4), pending=(5, 6))
    await hook_with(owner, 6, delivered=(1, 2, 3, 4, 5, 6))
    assert positions(await good(service, "GET", f"{hook}/deliveries?{query}")) == expected


@pytest.mark.parametrize("state", ["", "&state=pending", "&state=exhausted", "&state=delivered"])
async def test_pages_lead_through_all_of_them(service: Running, owner: Owner, state: str) -> None:
    await fill(service, 9)
    each = {name: tuple(range(1, 10)) for name in [state.rpartition("=")[2] or "delivered"]}
    hook = await hook_with(owner, 9, **each)
    seen: list[int] = []
    before: int | None = 10
    while before is not None:
        answer = await good(service, "GET", f"{hook}/deliveries?limit=2&before={before}{state}")
        seen += positions(answer)
        before = answer["next"]
    assert seen == [9, 8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("state", [None, "pending", "exhausted", "delivered"])
async def test_one_call_looks_at_a_bounded_number_and_says_where_to_go_on(
    service: Running,
    owner: Owner,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    state: str | None,
) -> None:
    monkeypatch.setattr("service.delivery_list.LOOK_DELIVERIES", 3)
    await fill(service, 10)
    hook = await hook_with(owner, 10, **{state or "delivered": tuple(range(1, 11))})
    connection = await connect(database.service_dsn)
    try:
        found: list[tuple[list[int], int | None]] = []
        until: int | None = 10
        while until is not None:
            look = Look(0, until, 50, state, Filter(item_ids=frozenset({2})))
            page, next_ = await DeliveryList(connection).page(hook, look)
            found.append(([one.position for one in page], next_))
            until = None if next_ is None else next_ - 1
    finally:
        await connection.close()
    assert found == [([10, 8], 8), ([6], 5), ([4, 2], 2), ([], None)]


async def test_an_event_that_is_gone_leaves_its_delivery(service: Running, owner: Owner) -> None:
    await fill(service, 3)
    hook = await hook_with(owner, 3, exhausted=(1, 3))
    await prune(owner, 2)
    answer = await good(service, "GET", f"{hook}/deliveries")
    assert positions(answer) == [3, 1]
    gone = answer["deliveries"][1]
    assert (gone["id"], gone["type"], gone["received_at"]) == (None, None, None)


async def test_one_delivery_shows_its_attempts(service: Running, owner: Owner) -> None:
    await fill(service, 2)
    hook = await hook_with(owner, 2, exhausted=(1, 2))
    await owner.execute(
        "INSERT INTO causeway.attempt VALUES ($1, 2, 1, $2, 1500, NULL, 'timeout', ''), "
        "($1, 2, 2, $2, 20, 500, 'status', $3), ($1, 1, 1, $2, 1, 200, NULL, '')",
        hook,
        T,
        b"no \xff way",
    )
    answer = await good(service, "GET", f"{hook}/deliveries/2")
    assert (answer["position"], answer["state"], answer["attempts"]) == (2, "exhausted", 4)
    started = "2026-03-01T00:00:00.000000Z"
    assert answer["tries"] == [
        {
            "number": 2,
            "started_at": started,
            "duration_seconds": 0.02,
            "status": 500,
            "error": "status",
            "answer": "no � way",
        },
        {
            "number": 1,
            "started_at": started,
            "duration_seconds": 1.5,
            "status": None,
            "error": "timeout",
            "answer": "",
        },
    ]


async def test_one_is_replayed_at_once(service: Running, owner: Owner) -> None:
    await fill(service, 2)
    hook = await hook_with(owner, 2, exhausted=(1,))
    answer = await good(service, "POST", f"{hook}/deliveries/1/replay", status=202)
    assert answer == {"position": 1, "outcome": "queued"}
    again = await good(service, "POST", f"{hook}/deliveries/1/replay", status=202)
    assert again == {"position": 1, "outcome": "pending"}
    assert (await rows(owner, hook))[1]["is_replay"]


async def test_a_dry_run_counts_and_does_nothing(service: Running, owner: Owner) -> None:
    await fill(service, 6)
    hook = await hook_with(owner, 5, exhausted=(1, 2, 3))
    answer = await good(service, "POST", f"{hook}/replays", {"dry_run": True, "item_ids": [1]})
    assert answer == {
        "dry_run": True,
        "state": "exhausted",
        "filter": {"item_ids": [1]},
        "from": 1,
        "until": 5,
        "rate": 50.0,
        "events": 2,
        "eta_seconds": 0.04,
    }
    wish = {"dry_run": True, "state": "all", "from": "start"}
    assert (await good(service, "POST", f"{hook}/replays", wish))["events"] == 5
    assert (await good(service, "GET", f"{hook}/replays")) == {"replays": []}
    assert set((await whens(owner, hook)).values()) == {"-"}


async def test_a_replay_is_begun_watched_and_ends(service: Running, owner: Owner) -> None:
    await fill(service, 6)
    hook = await hook_with(owner, 6, exhausted=(1, 2, 3, 4, 5, 6))
    made = await good(service, "POST", f"{hook}/replays", {"rate": 4, "until": 5}, status=201)
    assert (made["status"], made["events"], made["queued"]) == ("running", 5, 0)
    assert (made["from"], made["until"], made["position"], made["eta_seconds"]) == (1, 5, 0, 1.25)
    assert made["requested_by"] == "settings:admin"
    one = f"{hook}/replays/{made['id']}"
    assert await good(service, "GET", f"{hook}/replays") == {"replays": [made]}
    # Enabled for the replay, and with its circuit open: nothing is sent.
    await owner.execute(
        "UPDATE causeway.webhook SET disabled_at = NULL, disabled_reason = NULL, "
        "open_until = now() + interval '1 hour'"
    )
    seen: list[str] = []
    while "finished" not in seen:
        seen.append((await good(service, "GET", one))["status"])
    done = await good(service, "GET", one)
    assert (done["queued"], done["position"], done["eta_seconds"]) == (5, 5, None)
    assert done["finished_at"] is not None
    assert set((await whens(owner, hook)).values()) == {"now", "-"}


async def test_a_replay_is_cancelled(service: Running, owner: Owner) -> None:
    await fill(service, 3)
    hook = await hook_with(owner, 3, exhausted=(1, 2, 3))
    made = await good(service, "POST", f"{hook}/replays", {"rate": 0.01}, status=201)
    one = f"{hook}/replays/{made['id']}"
    stopped = await good(service, "DELETE", one)
    assert (stopped["status"], stopped["eta_seconds"]) == ("cancelled", None)
    assert await good(service, "DELETE", one) == stopped == await good(service, "GET", one)


@pytest.mark.parametrize(
    ("from_", "until", "range_"),
    [
        (None, None, (1, 6)),
        ("start", 3, (1, 3)),
        (2, 4, (2, 4)),
        ("2026-03-01T01:00:00Z", "2026-03-01T03:00:00Z", (2, 3)),
        ("2026-03-01T01:30:00Z", None, (3, 6)),
        ("2026-03-01T01:10:00Z", "2026-03-01T01:20:00Z", (3, 2)),
        (3, 99, (3, 6)),
        ("2027-01-01", None, (8, 7)),
    ],
)
async def test_ranges_are_of_positions_or_times_and_end_with_the_cursor(
    service: Running,
    owner: Owner,
    from_: str | int | None,
    until: str | int | None,
    range_: tuple[int, int],
) -> None:
    await fill(service, 7)
    hook = await hook_with(owner, 6)
    wish = {"dry_run": True, "from": from_, "until": until}
    answer = await good(service, "POST", f"{hook}/replays", wish)
    assert (answer["from"], answer["until"]) == range_


async def test_a_range_may_be_named_by_ids_which_are_compared(
    service: Running, owner: Owner
) -> None:
    await fill(service, 4)
    hook = await hook_with(owner, 4)
    bounds = {"from": await id_of(service, 2), "until": await id_of(service, 3)}
    answer = await good(service, "POST", f"{hook}/replays", bounds | {"dry_run": True})
    assert (answer["from"], answer["until"]) == (2, 3)
    for name in ("from", "until"):
        wrong = bounds | {name: "3.00000000"}
        assert (await refused(service, "POST", f"{hook}/replays", wrong))[:2] == (
            409,
            "log_diverged",
        )


async def test_ranges_that_cannot_be_are_named(service: Running, owner: Owner) -> None:
    await fill(service, 6)
    hook = await hook_with(owner, 5)
    await prune(owner, 2)
    path = f"{hook}/replays"
    status, code, message = await refused(service, "POST", path, {"from": 2})
    assert (status, code) == (410, "position_pruned")
    assert "the first event left is 3" in message
    for wish, what in (
        ({"from": 5, "until": 4}, "from is after until"),
        ({"from": "2026-03-02", "until": "2026-03-01"}, "from is after until"),
        ({"from": 6}, "the webhook got to position 5"),
        ({"state": "all"}, "`all` needs a beginning"),
        ({"until": "start"}, "until: a position"),
        ({"from": True}, "from: a position"),
        ({"from": "now"}, "from='now'"),
        ({"state": "pending"}, "state: one of"),
        ({"rate": 0}, "rate: events a second"),
        ({"rate": True}, "rate: events a second"),
        ({"rate": 1e9}, "rate: events a second"),
        ({"types": ["a b"]}, "types: "),
        ({"item_ids": ["1"]}, "item_ids: a list of integers"),
        ({"user_uuids": [USER.upper()]}, "user_uuids: a list of UUIDs"),
        ({"dry_run": 1}, "dry_run: true or false"),
        ({"form": 1}, "unknown field 'form'"),
        ([], "a JSON object was expected"),
    ):
        status, code, message = await refused(service, "POST", path, wish)
        assert (status, code) == (400, "bad_request")
        assert what in message, message


async def test_what_is_not_there_is_named(service: Running, owner: Owner) -> None:
    await fill(service, 2)
    hook = await hook_with(owner, 2, exhausted=(1,))
    other = await hook_with(owner, 2)
    replay = (await good(service, "POST", f"{hook}/replays", {}, status=201))["id"]
    for method, path in (
        ("GET", "deliveries"),
        ("GET", "deliveries/1"),
        ("POST", "deliveries/1/replay"),
        ("GET", "replays"),
        ("POST", "replays"),
        ("GET", f"replays/{replay}"),
        ("DELETE", f"replays/{replay}"),
    ):
        for unknown in (hook + 99, "x", 2**63, "-1"):
            body: Any = {} if path == "replays" and method == "POST" else None
            status, code, _ = await refused(service, method, f"{unknown}/{path}", body)
            assert (status, code) == (404, "unknown_webhook"), (method, path, unknown)
    for path, code in (
        ("deliveries/2", "unknown_delivery"),
        ("deliveries/0", "unknown_delivery"),
        (f"replays/{replay + 1}", "unknown_replay"),
        ("replays/x", "unknown_replay"),
        (f"replays/{2**63}", "unknown_replay"),
    ):
        assert (await refused(service, "GET", f"{hook}/{path}"))[:2] == (404, code), path
    answer = await refused(service, "POST", f"{hook}/deliveries/3/replay")
    assert answer[:2] == (404, "unknown_delivery")
    assert (await refused(service, "GET", f"{other}/replays/{replay}"))[1] == "unknown_replay"
    for path in (
        "deliveries/x",
        "deliveries?limit=501",
        "deliveries?limit=x",
        "deliveries?state=lost",
        "deliveries?since=soon",
        "deliveries?before=x",
        "deliveries?color=red",
        "replays?x=1",
    ):
        assert (await refused(service, "GET", f"{hook}/{path}"))[:2] == (400, "bad_request"), path


async def test_only_an_admin_gets_in(service: Running, owner: Owner) -> None:
    await fill(service, 1)
    hook = await hook_with(owner, 1, exhausted=(1,))
    for method, path in (
        ("GET", "deliveries"),
        ("GET", "deliveries/1"),
        ("POST", "deliveries/1/replay"),
        ("GET", "replays"),
        ("POST", "replays"),
        ("GET", "replays/1"),
        ("DELETE", "replays/1"),
    ):
        for token, status in ((STREAM_TOKEN, 403), ("nonsense", 401)):
            answer = await call(service, method, f"{hook}/{path}", token=token)
            assert answer.status_code == status, (method, path)
    assert await whens(owner, hook) == {1: "-"}


PLANS = {
    None: {"delivery_pkey"},
    "pending": {"delivery_due"},
    "exhausted": {"delivery_exhausted"},
}
MANY = """
INSERT INTO causeway.delivery (webhook_id, position, state, due_at)
SELECT $1, n, CASE WHEN n % 1000 = 1 THEN 'pending' WHEN n % 1000 = 2 THEN 'exhausted'
    ELSE 'delivered' END, now()
FROM generate_series(1, 30000) AS n
"""
EVENTS = """
INSERT INTO causeway.event (position, received_at, watermark, item_id, source, type, topic, digest,
    link, body)
SELECT n, now(), now(), n % 9, 'default', 'a', 'item.refreshed', '', '', ''
FROM generate_series(1, 30000) AS n
"""


@pytest.mark.parametrize("is_analyzed", [True, False])
async def test_lists_go_by_the_indexes_that_they_name(
    owner: Owner, database: Database, is_analyzed: bool
) -> None:
    for table in ("event_0", "delivery"):
        await owner.execute(f"ALTER TABLE causeway.{table} SET (autovacuum_enabled = off)")
    await owner.execute(EVENTS)
    hook = await make_webhook(owner, 30000, is_disabled=True)
    await owner.execute(MANY, hook)
    if is_analyzed:
        await owner.execute("ANALYZE causeway.event, causeway.delivery")
    sql = statements("delivery_list")
    connection = await connect(database.service_dsn)
    try:
        for state, indexes in PLANS.items():
            values = (hook, 0, 2**63 - 1, state)
            for statement, more in ((sql.list, (*[None] * 5, 50)), (sql.edge, (LOOK_DELIVERIES,))):
                text = await connection.fetchval(
                    f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *values, *more
                )
                plan = json.loads(text)[0]["Plan"]
                names = (node["Index Name"] for node in nodes(plan) if "Index Name" in node)
                used = {re.sub(r"^event_\d+_", "event_", name) for name in names}
                scans = [
                    node
                    for node in nodes(plan)
                    if node["Node Type"] == "Seq Scan"
                    and node["Relation Name"] in ("event_0", "delivery")  # others are empty
                ]
                assert not scans, (state, plan)
                assert used - {"event_pkey"} == indexes, (state, plan)
                read = max(node["Actual Rows"] for node in nodes(plan))
                assert read <= 60 or statement is sql.edge, (state, plan)
    finally:
        await connection.close()


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for inner in plan.get("Plans", []) for node in nodes(inner))]


async def test_real_answers_are_as_described(service: Running, owner: Owner) -> None:
    await fill(service, 3)
    hook = await hook_with(owner, 3, exhausted=(1, 2), delivered=(3,))
    await owner.execute(
        "INSERT INTO causeway.attempt VALUES ($1, 1, 1, now(), 5, 500, 'x', '')", hook
    )
    root = "/api/webhooks/{id}"
    for method, path, rest, body, status in (
        ("GET", "/deliveries", "?type=item.*", None, 200),
        ("GET", "/deliveries", "?limit=0", None, 400),
        ("GET", "/deliveries/{position}", "1", None, 200),
        ("GET", "/deliveries/{position}", "9", None, 404),
        ("POST", "/deliveries/{position}/replay", "3", None, 202),
        ("POST", "/replays", "", {"dry_run": True}, 200),
        ("POST", "/replays", "", {"types": ["item.*"], "rate": 0.01}, 201),
        ("POST", "/replays", "", {"until": "3.00000000"}, 409),
        ("POST", "/replays", "", {"state": "all"}, 400),
        ("GET", "/replays", "", None, 200),
        ("GET", "/replays/{replay_id}", "1", None, 200),
        ("GET", "/replays/{replay_id}", "2", None, 404),
        ("DELETE", "/replays/{replay_id}", "1", None, 200),
    ):
        known = {"position": rest, "replay_id": rest}
        url = f"{hook}{path.format(**known)}" + (rest if rest[:1] == "?" else "")
        answer = await call(service, method, url, body)
        assert answer.status_code == status, answer.text
        assert complaints(root + path, method, answer) == []


async def test_what_is_replayed_reaches_the_callback_again(service: Running) -> None:
    with Receiver() as receiver:
        wish = {"url": f"{receiver.url}/good", "types": ["item.*"]}
        hook = (await good(service, "POST", "", wish, status=201))["id"]
        await fill(service, 4)
        await eventually(lambda: receiver.count() == 4)
        while (await good(service, "GET", f"{hook}/deliveries?state=pending"))["deliveries"]:
            await asyncio.sleep(0.01)
        receiver.reset()
        await good(service, "POST", f"{hook}/deliveries/4/replay", status=202)
        body = {"state": "all", "from": 1, "until": 3, "item_ids": [1]}
        await good(service, "POST", f"{hook}/replays", body, status=201)
        await eventually(lambda: receiver.count() == 3)
        calls = receiver.requests()
        assert sorted(int(call.headers["causeway-position"]) for call in calls) == [1, 3, 4]
        assert {call.headers["causeway-attempt"] for call in calls} == {"2"}
