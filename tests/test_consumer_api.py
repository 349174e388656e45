"""`/consumers...` over HTTP: every answer of every endpoint, the refusals above all."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from service.auth import Tokens
from service.consumer import Consumers
from service.errors import LogUnavailable
from service.filter import Filter
from tests.bridge import USER
from tests.consuming import NAME, acknowledge, call, look, make
from tests.consuming import patient_acks as patient_acks  # a fixture
from tests.logkeeping import Owner, append_many, id_of, positions, prune, replace_log
from tests.raw import wire
from tests.reader import reading
from tests.running import ADMIN_TOKEN, STREAM_TOKEN, WITHIN_S, Running, eventually

Start = Callable[..., Awaitable[Running]]
PATH = f"/consumers/{NAME}"
ENDPOINTS = [
    ("GET", "/consumers"),
    ("GET", PATH),
    ("PUT", PATH),
    ("DELETE", PATH),
    ("POST", f"{PATH}/ack"),
]


def refused(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Assert that an answer is this refusal, in the form of all; return its error."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert error["request_id"]
    return error


# Make, look, list, delete.


async def test_a_new_consumer_is_201_and_described_from_its_first_moment(service: Running) -> None:
    await append_many(service, 3)
    answer = await call(service.url, "PUT", PATH, {"start": 1, "lease_s": 5})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    described = answer.json()
    created_at, lag_s = described.pop("created_at"), described.pop("lag_seconds")
    [shard] = described.pop("shards")
    assert described == {
        "name": NAME,
        "ack_mode": "explicit",
        "lease_s": 5,
        "filter": {},
        "position": 1,
        "id": await id_of(service, 1),
        "head": 3,
        "lag_events": 2,
    }
    assert created_at.endswith("Z")
    assert lag_s >= 0
    assert shard["shard"] == "0/1"
    assert (shard["position"], shard["sent_position"], shard["lag_events"]) == (1, 1, 2)
    assert (shard["held_by"], shard["held_since"], shard["lease_until"]) == (None, None, None)


@pytest.mark.parametrize(
    ("start", "place"),
    [
        ("now", 4),
        ("start", 0),
        (2, 2),
        ("2", 2),
        (0, 0),
        ("1970-01-01T00:00:00Z", 0),
        ("2199-01-01", 4),
    ],
)
async def test_a_consumer_begins_where_it_was_told(
    service: Running, start: object, place: int
) -> None:
    await append_many(service, 4)
    assert (await make(service.url, start=start))["position"] == place


async def test_a_consumer_begins_after_an_id_that_proves_itself(service: Running) -> None:
    await append_many(service, 4)
    assert (await make(service.url, start=await id_of(service, 3)))["position"] == 3
    answer = await call(service.url, "PUT", PATH, {"start": "3.00000000", "reset": True})
    refused(answer, 409, "log_diverged")
    answer = await call(service.url, "PUT", PATH, {"start": 5, "reset": True})
    refused(answer, 409, "position_ahead")
    assert (await look(service.url))["position"] == 3


async def test_an_empty_body_makes_a_consumer_that_begins_now(service: Running) -> None:
    await append_many(service, 2)
    answer = await call(service.url, "PUT", PATH, content=b"")
    assert (answer.status_code, answer.json()["position"]) == (201, 2)


async def test_the_same_put_again_changes_nothing(service: Running) -> None:
    await append_many(service, 3)
    wish: dict[str, Any] = {
        "start": "start",
        "ack_mode": "auto",
        "filter": {
            "types": ["item.*", "ITEM_CREATED"],
            "item_ids": [7, 4568477],
            "account_ids": [22908770],
            "user_uuids": [USER],
            "sources": ["shop", "default"],
        },
    }
    made = await make(service.url, **wish)
    assert made["filter"] == {
        "types": ["item.*", "item.created"],
        "item_ids": [7, 4568477],
        "account_ids": [22908770],
        "user_uuids": [USER],
        "sources": ["default", "shop"],
    }
    async with reading(service.url, f"consumer={NAME}") as reader:
        await reader.events(3)
        await acknowledge(service.url, 2)
        answer = await call(service.url, "PUT", PATH, wish)
        assert answer.status_code == 200
        assert answer.json()["position"] == 2
        assert answer.json()["created_at"] == made["created_at"]
        await append_many(service, 1)
        assert (await reader.event()).position == 4


async def test_a_change_ends_the_holders_stream_and_the_next_one_has_the_new_filter(
    service: Running,
) -> None:
    await append_many(service, 1, item_id=1)
    await make(service.url, lease_s=1, filter={"item_ids": [1]})
    async with reading(service.url, f"consumer={NAME}&control=1") as reader:
        await reader.event()
        await make(service.url, lease_s=1, filter={"item_ids": [1, 2]})
        await append_many(service, 1, item_id=2)
        assert await reader.control("closing") == {"reason": "lease_lost"}
    async with reading(service.url, f"consumer={NAME}") as reader:
        assert positions(await reader.events(2)) == [1, 2]


async def test_a_standby_from_before_a_change_comes_again_for_the_new_filter(
    service: Running,
) -> None:
    await append_many(service, 1, item_id=1)
    await make(service.url, lease_s=3600, filter={"item_ids": [1]})
    async with (
        reading(service.url, f"consumer={NAME}&control=1") as holder,
        reading(service.url, f"consumer={NAME}&control=1") as standby,
    ):
        await holder.event()
        await make(service.url, lease_s=3600, filter={"item_ids": [1, 2]})
        await append_many(service, 1, item_id=2)
        assert await standby.control("closing") == {"reason": "lease_lost"}
        assert not any(block.is_event for block in standby.seen)


async def test_a_reset_moves_the_place_and_ends_the_holders_stream(service: Running) -> None:
    await append_many(service, 5)
    await make(service.url, lease_s=1)
    async with reading(service.url, f"consumer={NAME}&control=1") as reader:
        lease = (await reader.control("lease"))["lease"]
        await reader.events(5)
        await acknowledge(service.url, 5)
        moved = await make(service.url, start=1, lease_s=1, reset=True)
        assert (moved["position"], moved["lag_events"]) == (1, 4)
        assert await reader.control("closing") == {"reason": "lease_lost"}
    late = await call(service.url, "POST", f"{PATH}/ack", {"position": 5, "lease": lease})
    refused(late, 409, "lease_lost")
    async with reading(service.url, f"consumer={NAME}") as reader:
        assert positions(await reader.events(4)) == [2, 3, 4, 5]


async def test_a_deleted_consumer_is_gone_and_its_stream_ends(service: Running) -> None:
    await append_many(service, 1)
    await make(service.url, lease_s=3600)  # which the standby does not get meanwhile
    async with (
        reading(service.url, f"consumer={NAME}&control=1") as holder,
        reading(service.url, f"consumer={NAME}&control=1") as standby,
    ):
        await holder.event()
        answer = await call(service.url, "DELETE", PATH)
        assert (answer.status_code, answer.content) == (204, b"")
        await append_many(service, 1)  # when the holder writes down that it was sent, it knows
        assert await holder.control("closing") == {"reason": "lease_lost"}
        assert await standby.control("closing") == {"reason": "consumer_gone"}
    refused(await call(service.url, "GET", PATH), 404, "unknown_consumer")
    refused(await call(service.url, "DELETE", PATH), 404, "unknown_consumer")


async def test_all_consumers_are_listed_by_name(service: Running) -> None:
    assert (await call(service.url, "GET", "/consumers")).json() == {"consumers": []}
    for name in ("b", "a"):
        await make(service.url, name)
    listed = (await call(service.url, "GET", "/consumers")).json()["consumers"]
    assert [consumer["name"] for consumer in listed] == ["a", "b"]
    assert (listed[0]["position"], listed[0]["shards"]) == (
        0,
        (await look(service.url, "a"))["shards"],
    )


async def test_a_consumer_in_shards_is_listed_with_its_filter(service: Running) -> None:
    filter_ = {"types": ["item.*"], "item_ids": [1, 2], "user_uuids": [USER]}
    await make(service.url, filter=filter_)
    async with reading(service.url, f"consumer={NAME}&shard=1/2"):
        [listed] = (await call(service.url, "GET", "/consumers")).json()["consumers"]
    assert (listed["filter"], len(listed["shards"])) == (filter_, 2)


async def test_a_long_list_lets_others_have_their_turn(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        await make(service.url, name)
    turns = 0
    seen: list[int] = []

    async def other() -> None:
        nonlocal turns
        while len(seen) < 3:
            turns += 1
            await asyncio.sleep(0)

    def covers(_limits: Filter, _filter: Filter) -> bool:
        seen.append(turns)
        return True

    monkeypatch.setattr("service.consumer_api._covers", covers)
    others = asyncio.create_task(other())
    assert (await call(service.url, "GET", "/consumers")).status_code == 200
    await others
    assert seen == sorted(set(seen))


async def test_no_more_consumers_are_made_than_there_may_be(start: Start) -> None:
    service = await start(consumers_max=2)
    for name in ("a", "b"):
        assert (await call(service.url, "PUT", f"/consumers/{name}", {})).status_code == 201
    error = refused(await call(service.url, "PUT", "/consumers/c", {}), 409, "too_many_consumers")
    assert "CAUSEWAY_CONSUMERS_MAX" in error["message"]
    refused(await call(service.url, "GET", "/consumers/c"), 404, "unknown_consumer")
    for wish in ({}, {"lease_s": 7}, {"reset": True}):  # those that are there stay as they were
        assert (await call(service.url, "PUT", "/consumers/a", wish)).status_code == 200
    assert (await call(service.url, "DELETE", "/consumers/b")).status_code == 204
    assert (await call(service.url, "PUT", "/consumers/c", {})).status_code == 201


async def test_a_holder_is_seen_with_its_times(service: Running) -> None:
    await make(service.url, lease_s=3600)
    async with reading(service.url, f"consumer={NAME}&shard=1/2"):
        free, taken = (await look(service.url))["shards"]
        assert (free["shard"], taken["shard"]) == ("0/2", "1/2")
        assert free["held_by"] is None
        assert taken["held_by"]
        assert taken["held_since"] < taken["lease_until"]


# Names and bodies that cannot be.


@pytest.mark.parametrize("name", ["A", "-a", "a-", "a b", "a" * 64, "é", "%00", "a%2Fb"])
async def test_what_no_consumer_can_be_named_is_400_for_put_and_404_for_the_rest(
    service: Running, name: str
) -> None:
    put = await call(service.url, "PUT", f"/consumers/{name}", {})
    ack = await call(service.url, "POST", f"/consumers/{name}/ack", {"position": 1})
    if "%2F" in name:
        assert {put.status_code, ack.status_code} == {404}
        return
    refused(put, 400, "bad_request")
    refused(ack, 404, "unknown_consumer")
    for method in ("GET", "DELETE"):
        refused(await call(service.url, method, f"/consumers/{name}"), 404, "unknown_consumer")
    async with reading(service.url, f"consumer={name.replace(' ', '+')}") as reader:
        if name == "é":
            assert reader.status == 400  # bytes of a query are ASCII
        else:
            assert (reader.status, (await reader.error())["code"]) == (404, "unknown_consumer")
    assert service.fatal == []


@pytest.mark.parametrize("name", ["a", "0", "a.b_c-d", "a" * 63])
async def test_a_sane_name_is_taken(service: Running, name: str) -> None:
    assert (await make(service.url, name))["name"] == name


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 5000, "JSON"),
        (b"[]", "object"),
        (b'"now"', "object"),
        (b"null", "object"),
        (b'{"Start":"now"}', "Start"),
        (b'{"start":"later"}', "start"),
        (b'{"start":-1}', "start"),
        (b'{"start":1.5}', "start"),
        (b'{"start":true}', "start"),
        (b'{"start":null}', "start"),
        (b'{"start":1000000000000000000}', "start"),
        (b'{"start":"1.xyz"}', "start"),
        (b'{"ack_mode":"manual"}', "ack_mode"),
        (b'{"ack_mode":null}', "ack_mode"),
        (b'{"lease_s":0}', "lease_s"),
        (b'{"lease_s":3601}', "lease_s"),
        (b'{"lease_s":"30"}', "lease_s"),
        (b'{"lease_s":true}', "lease_s"),
        (b'{"lease_s":1e1}', "lease_s"),
        (b'{"reset":1}', "reset"),
        (b'{"filter":[]}', "filter"),
        (b'{"filter":{"type":["a"]}}', "filter"),
        (b'{"filter":{"types":[]}}', "filter.types"),
        (b'{"filter":{"types":"item.*"}}', "filter.types"),
        (b'{"filter":{"types":["item.*.created"]}}', "filter.types"),
        (b'{"filter":{"types":["a\\u0000"]}}', "filter.types"),
        (b'{"filter":{"item_ids":["1"]}}', "filter.item_ids"),
        (b'{"filter":{"item_ids":[9223372036854775808]}}', "filter.item_ids"),
        (b'{"filter":{"item_ids":[true]}}', "filter.item_ids"),
        (b'{"filter":{"account_ids":[1.0]}}', "filter.account_ids"),
        (b'{"filter":{"user_uuids":["42"]}}', "filter.user_uuids"),
        (b'{"filter":{"sources":["a\\u0000"]}}', "filter.sources"),
        (b'{"filter":{"sources":[""]}}', "filter.sources"),
        (b'{"filter":{"item_ids":[%s]}}' % b",".join([b"1"] * 1001), "filter.item_ids"),
    ],
    ids=lambda value: value[:40].decode(errors="replace") if isinstance(value, bytes) else value,
)
async def test_a_put_that_cannot_be_understood_gets_400_naming_the_field(
    service: Running, body: bytes, named: str
) -> None:
    answer = await call(service.url, "PUT", PATH, content=body)
    assert named in refused(answer, 400, "bad_request")["message"]
    refused(await call(service.url, "GET", PATH), 404, "unknown_consumer")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "JSON"),
        (b"[1]", "object"),
        (b"{}", "position"),
        (b'{"position":null}', "position"),
        (b'{"position":-1}', "position"),
        (b'{"position":1.0}', "position"),
        (b'{"position":true}', "position"),
        (b'{"position":"one"}', "position"),
        (b'{"position":"1.9f3ac0"}', "position"),
        (b'{"position":1000000000000000000}', "position"),
        (b'{"position":1,"lease":"7"}', "lease"),
        (b'{"position":1,"lease":-7}', "lease"),
        (b'{"position":1,"lease":9223372036854775808}', "lease"),
        (b'{"position":1,"lease":true}', "lease"),
        (b'{"position":1,"shard":1}', "shard"),
        (b'{"position":1,"shard":"1"}', "shard"),
        (b'{"position":1,"shard":"2/2"}', "shard"),
        (b'{"position":1,"shard":"0/0"}', "shard"),
        (b'{"position":1,"shard":"0/65"}', "shard"),
        (b'{"position":1,"shard":"-1/2"}', "shard"),
        (b'{"position":1,"token":1}', "token"),
    ],
)
async def test_an_ack_that_cannot_be_understood_gets_400_naming_the_field(
    service: Running, body: bytes, named: str
) -> None:
    await make(service.url)
    answer = await call(service.url, "POST", f"{PATH}/ack", content=body)
    assert named in refused(answer, 400, "bad_request")["message"]


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_body_too_large_gets_413_before_it_is_read_to_its_end(
    service: Running, method: str, is_chunked: bool
) -> None:
    path = PATH if method == "PUT" else f"{PATH}/ack"
    size = "Transfer-Encoding: chunked" if is_chunked else "Content-Length: 10000000"
    head = f"{method} {path} HTTP/1.1\r\nHost: test\r\n{size}\r\n"
    head += f"Authorization: Bearer {STREAM_TOKEN}\r\n\r\n"
    piece = b" " * 70_000
    async with wire(service.url) as connection:
        await connection.send(head.encode())
        await connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
        answer = await connection.answer()
        assert answer.status == 413
        assert b'"code":"body_too_large"' in answer.body
        assert await connection.is_closed()


async def test_a_body_that_trickles_in_gets_408(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.body.TIMEOUT_S", 0.2)
    head = f"PUT {PATH} HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n"
    async with wire(service.url) as connection:
        await connection.send(f"{head}Authorization: Bearer {STREAM_TOKEN}\r\n\r\n{{".encode())
        answer = await connection.answer()
    assert (answer.status, b'"code":"body_timeout"' in answer.body) == (408, True)


# Acknowledge.


async def test_an_ack_answers_the_place_and_an_older_one_does_not_move_it_back(
    service: Running,
) -> None:
    await append_many(service, 5)
    await make(service.url)
    async with reading(service.url, f"consumer={NAME}") as reader:
        await reader.events(5)
        lease = int(reader.headers["causeway-lease"])
        assert await acknowledge(service.url, 3) == 3
        assert await acknowledge(service.url, await id_of(service, 4), lease=lease) == 4
        assert await acknowledge(service.url, 2, shard="0/1") == 4
    assert await acknowledge(service.url, 5) == 5  # a place can be moved without a stream
    assert (await look(service.url))["lag_events"] == 0


async def test_acks_that_must_not_count_are_refused(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append_many(service, 5)
    refused(
        await call(service.url, "POST", f"{PATH}/ack", {"position": 1}), 404, "unknown_consumer"
    )
    await make(service.url)
    async with reading(service.url, f"consumer={NAME}") as reader:
        await reader.events(5)
        lease = int(reader.headers["causeway-lease"])
        async with asyncio.timeout(WITHIN_S):
            while (await look(service.url))["shards"][0]["sent_position"] < 5:
                await asyncio.sleep(0.02)
        monkeypatch.setattr("service.acks.AHEAD_S", 0.1)
        for ack, code in (
            ({"position": 6}, "ack_ahead"),
            ({"position": 3, "lease": lease + 1}, "lease_lost"),
            ({"position": 3, "shard": "0/2"}, "shards_held"),
            ({"position": "3.00000000"}, "log_diverged"),
        ):
            refused(await call(service.url, "POST", f"{PATH}/ack", ack), 409, code)
    assert (await look(service.url))["position"] == 0


async def test_an_old_holders_ack_is_refused_once_another_has_taken_over(service: Running) -> None:
    await append_many(service, 3)
    await make(service.url)
    async with reading(service.url, f"consumer={NAME}") as old:
        await old.events(3)
    async with reading(service.url, f"consumer={NAME}&control=1") as new:
        await new.control("lease")
        ack = {"position": 3, "lease": int(old.headers["causeway-lease"])}
        refused(await call(service.url, "POST", f"{PATH}/ack", ack), 409, "lease_lost")
    assert (await look(service.url))["position"] == 0


# Who may.


async def test_without_a_good_token_nothing_is_answered(service: Running) -> None:
    for method, path in ENDPOINTS:
        for token in (None, "wrong-token-0123456789"):
            answer = await call(service.url, method, path, token=token)
            refused(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_an_admins_token_may_too(service: Running) -> None:
    assert (await call(service.url, "PUT", PATH, {}, token=ADMIN_TOKEN)).status_code == 201


async def test_a_limited_token_has_only_consumers_within_its_limits(
    service: Running, owner: Owner
) -> None:
    limits = Filter(topics=frozenset({"item.*"}), user_uuids=frozenset({USER}))
    token = await Tokens(service.settings, owner).create("limited", "stream", limits)
    within = {"types": ["item.created", "item.account.*"], "user_uuids": [USER]}
    for filter_ in ({}, {"types": ["item.*"]}, within | {"types": ["*"]}):
        answer = await call(service.url, "PUT", PATH, {"filter": filter_}, token=token)
        refused(answer, 403, "forbidden")
    answer = await call(service.url, "PUT", PATH, {"filter": within}, token=token)
    assert answer.status_code == 201
    await make(service.url, "all")
    async with reading(service.url, "consumer=all", token=token) as reader:
        assert (reader.status, (await reader.error())["code"]) == (403, "forbidden")
    async with reading(service.url, f"consumer={NAME}", token=token) as reader:
        assert reader.status == 200


async def test_a_limited_token_cannot_touch_what_it_may_not_see(
    service: Running, owner: Owner
) -> None:
    limits = Filter(topics=frozenset({"item.*"}))
    token = await Tokens(service.settings, owner).create("limited", "stream", limits)
    await make(service.url, "all")
    await make(service.url, "items", filter={"types": ["item.created"]})
    for method, path, body in (
        ("GET", "/consumers/all", None),
        ("PUT", "/consumers/all", {"filter": {"types": ["item.*"]}}),
        ("DELETE", "/consumers/all", None),
        ("POST", "/consumers/all/ack", {"position": 0}),
    ):
        answer = await call(service.url, method, path, body, token=token)
        refused(answer, 403, "forbidden")
    listed = (await call(service.url, "GET", "/consumers", token=token)).json()["consumers"]
    assert [consumer["name"] for consumer in listed] == ["items"]
    for method, path, body, status in (
        ("POST", "/consumers/items/ack", {"position": 0}, 200),
        ("DELETE", "/consumers/items", None, 204),
        ("GET", "/consumers/items", None, 404),
    ):
        answer = await call(service.url, method, path, body, token=token)
        assert answer.status_code == status, answer.text


async def test_other_methods_get_405_and_parameters_400(service: Running) -> None:
    for method, path in (
        ("POST", "/consumers"),
        ("POST", PATH),
        ("PATCH", PATH),
        ("GET", f"{PATH}/ack"),
    ):
        answer = await call(service.url, method, path, {})
        refused(answer, 405, "method_not_allowed")
        assert answer.headers["allow"]
    for method, path in ENDPOINTS:
        answer = await call(service.url, method, f"{path}?reset=1", {"position": 1})
        assert "reset" in refused(answer, 400, "bad_request")["message"]


# The stream's own refusals.


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("shard=2/2", "shard"),
        ("shard=0/0", "shard"),
        ("shard=0/65", "shard"),
        ("shard=a", "shard"),
        ("shard=", "shard"),
        ("shard=-1/4", "shard"),
        ("shard=0/2&shard=1/2", "shard"),
        ("wait=2", "wait"),
        ("consumer=other", "consumer"),
        ("type=item.*", "type"),
        ("item_id=1", "item_id"),
        ("account_id=1", "account_id"),
        (f"user_uuid={USER}", "user_uuid"),
        ("source=default", "source"),
        ("after=1", "after"),
        ("from=start", "from"),
        ("since=2020-01-01", "since"),
    ],
)
async def test_a_stream_of_a_consumer_refuses_what_does_not_go_with_one(
    service: Running, query: str, named: str
) -> None:
    await make(service.url)
    async with reading(service.url, f"consumer={NAME}&{query}") as reader:
        error = await reader.error()
    assert (reader.status, error["code"]) == (400, "bad_request")
    assert named in error["message"]


@pytest.mark.parametrize("query", ["shard=0/1", "wait=0"])
async def test_what_belongs_to_a_consumer_is_refused_without_one(
    service: Running, query: str
) -> None:
    async with reading(service.url, query) as reader:
        error = await reader.error()
    assert (reader.status, error["code"]) == (400, "bad_request")
    assert query.partition("=")[0] in error["message"]


async def test_a_stream_of_an_unknown_consumer_is_404(service: Running) -> None:
    async with reading(service.url, "consumer=nobody") as reader:
        assert (reader.status, (await reader.error())["code"]) == (404, "unknown_consumer")


async def test_who_would_not_wait_gets_409_while_another_holds(service: Running) -> None:
    await make(service.url, lease_s=3600)
    async with reading(service.url, f"consumer={NAME}&wait=0") as holder:
        assert holder.status == 200
        async with reading(service.url, f"consumer={NAME}&wait=0") as reader:
            assert (reader.status, (await reader.error())["code"]) == (409, "consumer_held")
            assert int(reader.headers["retry-after"]) > 0
        async with reading(service.url, f"consumer={NAME}&shard=0/2") as reader:
            assert (reader.status, (await reader.error())["code"]) == (409, "shards_held")
    await eventually(lambda: len(service.service.hub) == 0)


async def test_a_pruned_place_gets_410_and_needs_a_reset(start: Start, owner: Owner) -> None:
    first = await start()
    await append_many(first, 6)
    await make(first.url, start=2)
    await prune(owner, 4)
    service = await start()
    for _ in range(2):  # and the refused one gives the lease back
        async with reading(service.url, f"consumer={NAME}&wait=0") as reader:
            error = await reader.error()
        assert (reader.status, error["code"]) == (410, "position_pruned")
        assert error["first_position"] == 5
    assert (await make(service.url))["position"] == 2  # the same PUT is no reset
    assert (await make(service.url, reset=True))["position"] == 4
    async with reading(service.url, f"consumer={NAME}") as reader:
        assert positions(await reader.events(2)) == [5, 6]


async def test_a_place_in_another_history_gets_409(start: Start, owner: Owner) -> None:
    first = await start()
    await append_many(first, 4)
    await make(first.url, start=4)
    await replace_log(owner, 2)
    await first.service.eventlog.append([], timeout_s=30)
    service = await start()
    async with reading(service.url, f"consumer={NAME}") as reader:
        assert (reader.status, (await reader.error())["code"]) == (409, "position_ahead")
    await append_many(service, 3)
    async with reading(service.url, f"consumer={NAME}") as reader:
        error = await reader.error()
    assert (reader.status, error["code"], error["position"]) == (409, "log_diverged", 4)


async def test_a_database_that_is_away_is_503_with_retry_after(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> Any:
        raise LogUnavailable("away")

    await make(service.url)
    for name in ("read", "all", "put", "delete", "ack"):
        monkeypatch.setattr(Consumers, name, away)
    for method, path in ENDPOINTS:
        body = None if method in ("GET", "DELETE") else {"position": 1} if "ack" in path else {}
        answer = await call(service.url, method, path, body)
        refused(answer, 503, "log_unavailable")
        assert int(answer.headers["retry-after"]) > 0


async def test_many_acks_at_once_over_http_all_get_their_answer(service: Running) -> None:
    await append_many(service, 200)
    await make(service.url)
    async with reading(service.url, f"consumer={NAME}") as reader:
        await reader.events(200)
    async with httpx2.AsyncClient(headers=service.headers, timeout=WITHIN_S) as client:
        url = f"{service.url}{PATH}/ack"
        tries = (client.post(url, json={"position": position}) for position in range(1, 201))
        answers = await asyncio.gather(*tries)
    assert {answer.status_code for answer in answers} == {200}
    assert max(answer.json()["position"] for answer in answers) == 200
    assert (await look(service.url))["position"] == 200
