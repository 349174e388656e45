"""`GET /stream` over real sockets: where it begins, what it sends, and how it ends."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from service import hub as hub_module
from service.auth import Tokens
from service.event import parse_event
from service.filter import Filter
from service.stream import Stream
from service.window import Chunk, Frame, View
from tests.bridge import body, new_event
from tests.logkeeping import (
    MARCH,
    USER_2,
    Owner,
    append,
    append_four_kinds,
    append_many,
    id_of,
    positions,
    prune,
    replace_log,
    sample,
)
from tests.raw import wire
from tests.reader import Block, Ended, Reader, follow, reading
from tests.running import ADMIN_TOKEN, STREAM_TOKEN, WITHIN_S, Running, eventually

Start = Callable[..., Awaitable[Running]]


# What a stream is made of.


async def test_the_first_bytes_come_at_once_and_flush_headers_that_proxies_obey(
    service: Running,
) -> None:
    async with reading(service.url) as reader:
        first = await reader.block()
    assert reader.status == 200
    assert reader.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reader.headers["cache-control"] == "no-store"
    assert reader.headers["x-accel-buffering"] == "no"
    assert first.comments
    assert 1000 <= int(first.retry or 0) <= 5000


async def test_an_event_is_bridges_type_and_bridges_bytes_under_an_id_with_its_link(
    service: Running,
) -> None:
    payload = body("item.refreshed", balance=1234.50)
    async with reading(service.url) as reader:
        await reader.checkpoint()
        await append(service, parse_event(payload, "default", datetime.now(UTC)))
        event = await reader.event()
    assert event.event == "item.refreshed"
    assert event.data == payload.decode()
    assert event.id == await id_of(service, 1)


async def test_by_default_a_stream_is_live_and_leaves_out_what_was_before(service: Running) -> None:
    await append_many(service, 3)
    async with reading(service.url) as reader:
        assert (await reader.checkpoint()).id == await id_of(service, 3)
        await append(service)
        assert (await reader.event()).position == 4


async def test_a_client_that_loses_its_connection_before_the_first_event_loses_nothing(
    service: Running,
) -> None:
    await append_many(service, 2)
    async with reading(service.url) as reader:
        await reader.checkpoint()
    await append_many(service, 3)
    async with reading(service.url, last_event_id=reader.last_id) as again:
        assert positions(await again.events(3)) == [3, 4, 5]


async def test_cloudevents_hold_bridges_bytes_and_share_the_ids(service: Running) -> None:
    payload = b'{"content":{"balance":10.10},\n\t"timestamp":1612782588323, "type":"item.created"}'
    await append(service, parse_event(payload, "default", MARCH))
    async with reading(service.url, "from=start&format=cloudevents") as reader:
        event = await reader.event()
    assert event.id == await id_of(service, 1)
    assert event.event == "item.created"
    assert event.data is not None and event.data.endswith(f',"data":{payload.decode()}}}')
    told = event.json()
    assert told["id"] == event.id
    assert (told["type"], told["source"], told["position"]) == (
        "item.created",
        "/bridge/default",
        "1",
    )
    assert told["time"] == "2021-02-08T11:09:48.323000Z"
    assert told["receivedtime"] == "2026-03-01T00:00:00.000000Z"


async def test_head_answers_the_headers_and_opens_no_stream(service: Running) -> None:
    async with httpx2.AsyncClient(headers=service.headers, timeout=WITHIN_S) as client:
        for _ in range(2):  # the connection is good for another
            answer = await client.head(f"{service.url}/stream?from=start")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.content == b""
        refused = await client.head(f"{service.url}/stream?nonsense=1")
    assert refused.status_code == 400
    assert len(service.service.hub) == 0


async def test_a_client_that_goes_is_noticed_behind_a_request_that_waits(start: Start) -> None:
    service = await start(heartbeat_s=3600.0)
    token = f"Authorization: Bearer {STREAM_TOKEN}"
    async with wire(service.url) as it:
        await it.send(f"GET /stream HTTP/1.1\r\nHost: a\r\n{token}\r\n\r\n".encode() * 2)
        await it.reader.readuntil(b"retry: ")
        assert len(service.service.hub) == 1
    await eventually(lambda: len(service.service.hub) == 0)


async def test_other_methods_get_405_and_are_told_which_are_allowed(service: Running) -> None:
    async with reading(service.url, method="DELETE") as reader:
        error = await reader.error()
    assert (reader.status, error["code"]) == (405, "method_not_allowed")
    assert "get" in reader.headers["allow"]


# Where it begins.


@pytest.mark.parametrize("is_in_window", [True, False])
async def test_it_resumes_after_an_id_or_a_bare_position_in_header_or_query(
    start: Start, is_in_window: bool
) -> None:
    service = await start(window_events=10_000 if is_in_window else 1)
    await append_many(service, 6)
    own_id = await id_of(service, 4)
    for place in (own_id, "4"):
        async with reading(service.url, f"after={place}") as reader:
            assert positions(await reader.events(2)) == [5, 6]
        async with reading(service.url, last_event_id=place) as reader:
            assert positions(await reader.events(2)) == [5, 6]


@pytest.mark.parametrize("query", ["after=1", "from=start", "since=2020-01-01T00:00:00Z"])
async def test_the_header_wins_because_a_reconnecting_eventsource_repeats_its_query(
    service: Running, query: str
) -> None:
    await append_many(service, 5)
    async with reading(service.url, query, last_event_id=await id_of(service, 3)) as reader:
        assert positions(await reader.events(2)) == [4, 5]


async def test_from_start_begins_with_the_first_event_that_is_left(
    service: Running, owner: Owner
) -> None:
    await append_many(service, 5)
    async with reading(service.url, "from=start") as reader:
        assert positions(await reader.events(5)) == [1, 2, 3, 4, 5]
    await prune(owner, 2)
    async with reading(service.url, "from=start") as reader:
        assert positions(await reader.events(3)) == [3, 4, 5]


@pytest.mark.parametrize(
    ("since", "first"),
    [
        ("2026-03-01T02:00:00Z", 3),
        ("2026-03-01T02:00:00.000001Z", 4),
        ("2026-03-01T03:00:00%2B01:00", 3),
        ("2026-03-01T03:00:00+01:00", 3),  # a plus that nobody escaped
        ("2026-03-01T02:00:00", 3),
        ("1772330400000", 3),
        ("1772330400", 3),
        ("1970-01-01", 1),
    ],
)
async def test_since_begins_with_the_first_event_received_then_or_later(
    service: Running, since: str, first: int
) -> None:
    hours = [replace(new_event(), received_at=MARCH + timedelta(hours=n)) for n in range(5)]
    await append(service, *hours)
    async with reading(service.url, f"since={since}") as reader:
        assert (await reader.event()).position == first


async def test_since_a_time_to_come_begins_live(service: Running) -> None:
    await append_many(service, 3)
    async with reading(service.url, "since=2199-01-01") as reader:
        assert (await reader.checkpoint()).position == 3


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("nonsense=1", "nonsense"),
        ("Type=item.created", "Type"),
        ("after=x", "after"),
        ("after=-1", "after"),
        ("after=1.xyz", "after"),
        ("after=1&after=2", "after"),
        ("after=1&from=start", "after"),
        ("from=end", "from"),
        ("since=yesterday", "since"),
        ("since=99999999999999999", "since"),
        ("type=item.*.created", "type"),
        ("type=", "type"),
        ("item_id=12a", "item_id"),
        ("account_id=", "account_id"),
        ("user_uuid=42", "user_uuid"),
        ("control=yes", "control"),
        ("format=xml", "format"),
        ("source=%ff", "UTF-8"),
    ],
)
async def test_a_wish_that_cannot_be_understood_gets_400_naming_it(
    service: Running, query: str, named: str
) -> None:
    async with reading(service.url, query) as reader:
        error = await reader.error()
    assert (reader.status, error["code"]) == (400, "bad_request")
    assert named in error["message"]
    assert error["request_id"]


async def test_a_bad_last_event_id_gets_400_and_never_a_stream_from_anywhere(
    service: Running,
) -> None:
    async with reading(service.url, last_event_id="abc") as reader:
        error = await reader.error()
    assert reader.status == 400
    assert "Last-Event-ID" in error["message"]


async def test_an_id_of_another_history_gets_409_and_its_position(service: Running) -> None:
    await append_many(service, 3)
    async with reading(service.url, last_event_id="2.00000000") as reader:
        error = await reader.error()
    assert (reader.status, error["code"], error["position"]) == (409, "log_diverged", 2)
    assert await id_of(service, 2) in error["message"]


async def test_an_id_past_the_logs_end_gets_409_and_the_head(service: Running) -> None:
    await append_many(service, 3)
    async with reading(service.url, "after=4") as reader:
        error = await reader.error()
    assert (reader.status, error["code"], error["head_position"]) == (409, "position_ahead", 3)


async def test_a_pruned_place_gets_410_and_the_first_position_left(
    start: Start, owner: Owner
) -> None:
    first = await start()
    await append_many(first, 6)
    old_id = await id_of(first, 2)
    await prune(owner, 3)
    service = await start()  # whose window has not seen what was pruned
    async with reading(service.url, last_event_id=old_id) as reader:
        error = await reader.error()
    assert (reader.status, error["code"], error["first_position"]) == (410, "position_pruned", 4)
    async with reading(service.url, "after=3") as reader:
        assert positions(await reader.events(3)) == [4, 5, 6]


# Which events.


FILTERS = [
    ("type=item.created", [1]),
    ("type=item.*", [1, 2, 3]),
    ("type=item.account.updated", [2, 3]),
    ("type=ACCOUNT_UPDATED", [2, 3]),
    ("type=item.created&type=transfer.created", [1, 5]),
    ("type=*", [1, 2, 3, 4, 5]),
    ("item_id=2", [2, 4]),
    ("item_id=1&item_id=3", [1, 3]),
    ("item_id=9007199254740993", [5]),
    ("account_id=20", [2]),
    (f"user_uuid={USER_2.upper()}", [2]),
    ("source=shop", [4]),
    ("source=default", [1, 2, 3, 5]),
    ("source=shop&source=default&item_id=2", [2, 4]),
    (f"type=item.*&item_id=2&user_uuid={USER_2}", [2]),
]


@pytest.mark.parametrize("window_events", [10_000, 1])
async def test_filters_match_alike_in_the_window_and_in_the_log(
    start: Start, window_events: int
) -> None:
    service = await start(window_events=window_events)
    await append_four_kinds(service)
    for query, matching in FILTERS:
        async with reading(service.url, f"from=start&control=1&{query}") as reader:
            await reader.control("caught_up")
        assert positions(b for b in reader.seen if b.is_event) == matching, query


async def test_filters_match_live_events(service: Running) -> None:
    async with reading(service.url, "type=item.*&item_id=2&item_id=3") as reader:
        await reader.checkpoint()
        await append_four_kinds(service)
        assert positions(await reader.events(2)) == [2, 3]


# Who may read.


async def test_without_a_good_token_there_is_no_stream(service: Running) -> None:
    for token in (None, "wrong-token-0123456789", "cw_wrong-token-0123456789"):
        async with reading(service.url, token=token) as reader:
            error = await reader.error()
        assert (reader.status, error["code"]) == (401, "unauthenticated")
        assert reader.headers["www-authenticate"] == "bearer"


async def test_a_query_may_carry_a_token_of_the_scope_stream_only(service: Running) -> None:
    async with reading(service.url, f"access_token={STREAM_TOKEN}", token=None) as reader:
        assert reader.status == 200
    async with reading(service.url, f"access_token={ADMIN_TOKEN}", token=None) as reader:
        error = await reader.error()
    assert (reader.status, error["code"]) == (403, "forbidden")
    async with reading(service.url, token=ADMIN_TOKEN) as reader:
        assert reader.status == 200


async def test_a_limited_token_never_sees_an_event_outside_its_limits(
    service: Running, owner: Owner
) -> None:
    limits = Filter(topics=frozenset({"item.*"}), user_uuids=frozenset({USER_2}))
    token = await Tokens(service.settings, owner).create("limited", "stream", limits)
    await append_four_kinds(service)
    for query in ("", "&type=*", "&source=default", "&item_id=1&item_id=2", "&format=cloudevents"):
        async with reading(service.url, f"from=start&control=1{query}", token=token) as reader:
            await reader.control("caught_up")
            await append(service, new_event("item.created"))
            await append(service, new_event("item.created", user_uuid=USER_2, item_id=1))
            last = (await reader.event()).position
        seen = [b for b in reader.seen if b.is_event]
        assert all(USER_2 in (b.data or "") for b in seen), query
        assert last == service.service.window.position


async def test_a_stream_ends_when_its_token_is_revoked(
    service: Running, owner: Owner, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "TOKEN_CHECK_S", 0.05)
    running = await start()
    tokens = Tokens(running.settings, owner)
    token = await tokens.create("leaver", "stream")
    async with (
        reading(running.url, "control=1", token=token) as leaver,
        reading(running.url) as other,
    ):
        await leaver.checkpoint()
        await tokens.revoke("leaver")
        assert (await leaver.control("closing"))["reason"] == "token"
        await leaver.rest()
        await other.checkpoint()
        await append(running)
        assert (await other.event()).position == 1
    async with reading(running.url, token=token) as again:
        assert again.status == 401


# How a filtered stream's id moves.


async def test_a_filtered_streams_id_moves_after_so_many_events_that_did_not_match(
    start: Start,
) -> None:
    service = await start(checkpoint_events=10, heartbeat_s=3600)
    async with reading(service.url, "type=user.deleted") as reader:
        await reader.checkpoint()
        for _ in range(12):
            await append(service)
        assert (await reader.checkpoint()).position >= 10
    await append(service, new_event("user.deleted"), new_event())
    async with reading(service.url, "type=user.deleted", last_event_id=reader.last_id) as again:
        assert (await again.event()).position == 13


async def test_a_filtered_streams_id_moves_at_the_heartbeat(start: Start) -> None:
    service = await start(heartbeat_s=0.2)
    async with reading(service.url, "type=user.deleted") as reader:
        await reader.checkpoint()
        await append_many(service, 3)
        while (await reader.checkpoint()).id != await id_of(service, 3):
            pass
        assert (await reader.block()).comments == ("",)  # nothing new: a comment is enough


async def test_a_filtered_replay_from_the_log_moves_the_id_and_misses_nothing(start: Start) -> None:
    service = await start(checkpoint_events=50, window_events=1, heartbeat_s=3600)
    await append_many(service, 120)
    await append(service, new_event("user.deleted"))
    await append_many(service, 120)
    query = "from=start&type=user.deleted&control=1"
    async with reading(service.url, query) as reader:
        assert (await reader.event()).position == 121
        assert (await reader.control("caught_up"))["position"] == 241
    assert reader.last_id == await id_of(service, 241)


async def test_silence_is_broken_by_a_comment(start: Start) -> None:
    service = await start(heartbeat_s=0.1)
    async with reading(service.url) as reader:
        await reader.checkpoint()
        for _ in range(3):
            assert await reader.block() == Block(comments=("",))


# What a stream says about itself.


def let_them_be_old(running: Running) -> None:
    """Let all streams have reached their age."""
    for subscriber in running.service.hub._subscribers:
        subscriber.ends_at = 0.0


async def test_control_events_come_only_to_who_asked_and_carry_no_id(start: Start) -> None:
    service = await start(heartbeat_s=0.2)
    await append_many(service, 2)
    async with (
        reading(service.url, "from=start&control=1") as asked,
        reading(service.url, "from=start") as silent,
    ):
        caught_up = await asked.control("caught_up")
        await silent.events(2)
        let_them_be_old(service)
        told, plain = [*asked.seen, *await asked.rest()], [*silent.seen, *await silent.rest()]
    controls = [block for block in told if (block.event or "").startswith("stream.")]
    assert [block.event for block in controls] == ["stream.caught_up", "stream.closing"]
    assert all(block.id is None for block in controls)
    assert controls[0].json() == caught_up == {"position": 2}
    assert controls[1].json() == {"reason": "max_age"}
    assert not any((block.event or "").startswith("stream.") for block in plain)


async def test_an_old_stream_ends_in_order_with_its_last_id_and_resumes(start: Start) -> None:
    service = await start(heartbeat_s=0.2)
    async with reading(service.url, "type=user.deleted") as reader:
        await append_many(service, 5)
        let_them_be_old(service)
        blocks = await reader.rest()
    assert blocks[-1].id == await id_of(service, 5)
    assert sample(service, "stream_closed_total", reason="max_age") == 1
    await append(service, new_event("user.deleted"))
    async with reading(service.url, "type=user.deleted", last_event_id=reader.last_id) as again:
        assert (await again.event()).position == 6


# How many.


@pytest.mark.parametrize(
    ("caps", "other_token", "setting"),
    [
        ({"stream_max": 2}, ADMIN_TOKEN, "CAUSEWAY_STREAM_MAX"),
        ({"stream_max_per_token": 2}, STREAM_TOKEN, "CAUSEWAY_STREAM_MAX_PER_TOKEN"),
    ],
)
async def test_past_a_cap_a_stream_gets_429_until_another_ends(
    start: Start, caps: dict[str, int], other_token: str, setting: str
) -> None:
    service = await start(**caps)
    async with reading(service.url) as kept:
        async with reading(service.url):
            async with reading(service.url, token=other_token) as refused:
                error = await refused.error()
            assert (refused.status, error["code"]) == (429, "too_many_streams")
            assert int(refused.headers["retry-after"]) > 0
            assert setting in error["message"]
        await eventually(lambda: len(service.service.hub) == 1)
        async with reading(service.url, token=other_token) as admitted:
            assert admitted.status == 200
        assert kept.status == 200


async def test_one_tokens_cap_is_not_anothers(start: Start) -> None:
    service = await start(stream_max_per_token=1)
    async with reading(service.url), reading(service.url, token=ADMIN_TOKEN) as other:
        assert other.status == 200


async def test_a_client_that_leaves_frees_its_place_and_is_counted(service: Running) -> None:
    async with reading(service.url) as reader:
        await reader.checkpoint()
        assert sample(service, "stream_subscribers") == 1
    await eventually(lambda: sample(service, "stream_subscribers") == 0)
    assert sample(service, "stream_closed_total", reason="client") == 1


# One order for all.


async def test_readers_that_join_anywhere_during_appends_see_each_position_once_in_order(
    start: Start,
) -> None:
    service = await start(window_events=50)
    await append_many(service, 100)
    total = 2500
    rng = random.Random(7)

    async def write() -> None:
        left = total - 100
        while left:
            size = min(left, rng.randint(1, 40))
            events = [new_event() for _ in range(size)]
            await service.service.eventlog.append(events, timeout_s=30)
            left -= size

    async def read(delay_positions: int) -> None:
        await eventually(lambda: service.service.window.position >= delay_positions)
        after = rng.randint(0, service.service.window.position)
        place = await id_of(service, after) if rng.random() < 0.5 else str(after)
        async with reading(service.url, f"after={place}") as reader:
            seen = positions(await reader.events(total - after))
        assert seen == list(range(after + 1, total + 1))

    readers = [read(rng.randint(0, 2000)) for _ in range(20)]
    await asyncio.wait_for(asyncio.gather(write(), *readers), 5 * WITHIN_S)


async def test_a_filtered_reader_that_joins_during_appends_sees_every_match(start: Start) -> None:
    service = await start(window_events=20, checkpoint_events=7)
    total = 600
    types = ["user.deleted" if n % 3 == 0 else "item.created" for n in range(total)]

    async def write() -> None:
        for first in range(0, total, 5):
            events = [new_event(type_) for type_ in types[first : first + 5]]
            await service.service.eventlog.append(events, timeout_s=30)

    async def read(query: str) -> list[int]:
        async with reading(service.url, query) as reader:
            return positions(await reader.events(total // 3))

    query = "from=start&type=user.deleted"
    _, *seen = await asyncio.wait_for(
        asyncio.gather(write(), read(query), read(query)), 5 * WITHIN_S
    )
    assert seen == [list(range(1, total + 1, 3))] * 2


async def test_subscribers_at_one_cursor_share_one_chunk(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Chunk] = []
    join = View.join

    def counting(view: View, frames: Iterable[Frame], *, scanned_to: int = 0) -> Chunk:
        made.append(join(view, frames, scanned_to=scanned_to))
        return made[-1]

    monkeypatch.setattr(View, "join", counting)
    async with (
        reading(service.url) as first,
        reading(service.url) as second,
        reading(service.url, "type=item.*") as third,
        reading(service.url, "type=item.*") as fourth,
    ):
        readers: list[Reader] = [first, second, third, fourth]
        for reader in readers:
            await reader.checkpoint()
        await append(service, new_event(), new_event())
        seen = [positions(await reader.events(2)) for reader in readers]
    assert seen == [[1, 2]] * 4
    assert len(made) == 2  # one for each filter, none for each subscriber


async def test_delivery_time_counts_only_what_was_received_while_the_stream_was_open(
    service: Running,
) -> None:
    await append_many(service, 5)
    async with reading(service.url, "from=start") as reader:
        await reader.events(5)
        assert sample(service, "delivery_seconds_count", via="stream") == 0
        await append(service)
        await reader.event()
        await eventually(lambda: sample(service, "delivery_seconds_count", via="stream") == 1)
    assert sample(service, "stream_events_total") == 6


# When the log is not what it was.


async def test_a_replaced_log_ends_the_streams_and_the_old_ids_get_409(
    start: Start, owner: Owner
) -> None:
    service = await start(poll_s=0.1)
    await append_many(service, 5)
    async with reading(service.url, "after=3&control=1") as reader:
        await reader.events(2)
        await replace_log(owner, 3)
        assert (await reader.control("closing"))["reason"] == "diverged"
        with pytest.raises(Ended):
            await reader.block()
    assert sample(service, "stream_closed_total", reason="diverged") == 1
    async with reading(service.url, last_event_id=reader.last_id) as again:
        assert (again.status, (await again.error())["code"]) == (409, "position_ahead")
    await service.service.eventlog.append([new_event() for _ in range(4)], timeout_s=30)
    async with reading(service.url, last_event_id=reader.last_id) as again:
        assert (again.status, (await again.error())["code"]) == (409, "log_diverged")
    found: list[Block] = []
    await asyncio.wait_for(follow(service.url, found, until=7), WITHIN_S)
    assert positions(found) == [1, 2, 3, 4, 5, 6, 7]


async def test_the_body_comes_through_with_every_digit_and_every_line(service: Running) -> None:
    payload = b'{"content":{"balance":0.1000000000000000055511151231257827,\n"n":1e-7},"type":"x"}'
    await append(service, parse_event(payload, "default", datetime.now(UTC)))
    async with reading(service.url, "from=start") as reader:
        data = (await reader.event()).data
    assert data == payload.decode()
    parsed: Any = json.loads(data or "")
    assert parsed["type"] == "x"


async def test_a_live_stream_is_written_to_without_waking_its_task(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start(heartbeat_s=3600)  # which would wake it
    async with reading(service.url, "control=1") as reader:
        await reader.control("caught_up")

        async def woken(*_: object) -> None:
            raise AssertionError("the task was woken for what is plain")

        monkeypatch.setattr(Stream, "_deliver", woken)
        for position in range(1, 4):
            await append(service)
            assert (await reader.event()).position == position


async def test_for_a_client_that_takes_nothing_no_more_is_buffered_than_a_limit(
    start: Start,
) -> None:
    service = await start(send_timeout_s=3600)
    pad = "x" * 50_000
    async with reading(service.url, "control=1", receive_bytes=4096) as stalled:
        await stalled.control("caught_up")
        for _ in range(150):  # each alone, as a live stream gets them
            await append(service, new_event(pad=pad))
        [subscriber] = service.service.hub._subscribers
        await eventually(lambda: subscriber.sending_since is not None)
        [connection] = service.server.server_state.connections
        assert connection.transport.get_write_buffer_size() < 10 * len(pad)


async def test_a_live_stream_that_falls_behind_goes_on_in_the_history_it_has_read(
    start: Start,
) -> None:
    service = await start(window_events=10)
    async with reading(service.url, "control=1") as reader:
        await reader.control("caught_up")
        for position in range(1, 4):  # written to while its task sleeps
            await append(service)
            assert (await reader.event()).position == position
        await append(service, *(new_event() for _ in range(40)))  # at once, past the window
        assert positions(await reader.events(40)) == list(range(4, 44))
        assert "stream.fell_behind" in [block.event for block in reader.seen]
