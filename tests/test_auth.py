"""Tokens: whose they are, what they may see, and that only hashes are kept."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest

from service import auth as auth_module
from service import hub as hub_module
from service.auth import Tokens, bearer_token
from service.db import Connection, Pool, create_pool
from service.errors import BadRequest, Forbidden, LogUnavailable, Unauthenticated
from service.filter import Filter, parse_topics
from tests.bridge import USER, body, post
from tests.raw import Gate
from tests.running import (
    ADMIN_TOKEN,
    STREAM_TOKEN,
    WITHIN_S,
    Database,
    Running,
    eventually,
    make_settings,
)
from tests.test_receive import Start

OTHER_USER = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    """A pool of the service's role."""
    async with create_pool(database.service_dsn, max_size=2) as it:
        yield it


@pytest.fixture
def tokens(pool: Pool) -> Tokens:
    """The tokens of the test's database, beside the bootstrap ones."""
    return Tokens(make_settings(), pool)


# Bootstrap tokens


@pytest.mark.parametrize(
    ("token", "scope", "name"),
    [
        (STREAM_TOKEN, "stream", "settings:stream"),
        (ADMIN_TOKEN, "stream", "settings:admin"),
        (ADMIN_TOKEN, "admin", "settings:admin"),
    ],
)
async def test_a_bootstrap_token_is_good_for_its_scope(
    tokens: Tokens, token: str, scope: str, name: str
) -> None:
    caller = await tokens.authenticate(token, scope)
    assert (caller.name, caller.token_id, caller.limits) == (name, None, Filter())


async def test_the_scope_stream_is_not_enough_for_admin(tokens: Tokens) -> None:
    with pytest.raises(Forbidden, match="scope admin"):
        await tokens.authenticate(STREAM_TOKEN, "admin")


@pytest.mark.parametrize(
    "token",
    [None, "", "xyzzy", STREAM_TOKEN[:-1], STREAM_TOKEN + "x", "cw_" + "a" * 43, "cw_\udcff\0"],
)
async def test_an_unknown_token_is_nobody(tokens: Tokens, token: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        await tokens.authenticate(token, "stream")
    assert not token or token not in caught.value.message


async def test_without_bootstrap_tokens_nobody_is_let_in_by_an_empty_one(pool: Pool) -> None:
    tokens = Tokens(make_settings(stream_token=None, admin_token=None), pool)
    for token in (None, "", STREAM_TOKEN):
        with pytest.raises(Unauthenticated):
            await tokens.authenticate(token, "stream")


async def test_a_query_token_counts_only_alone_and_only_for_streams(tokens: Tokens) -> None:
    caller = await tokens.authenticate(None, "stream", query_token=STREAM_TOKEN)
    assert caller.name == "settings:stream"
    with pytest.raises(Forbidden, match="query"):
        await tokens.authenticate(None, "stream", query_token=ADMIN_TOKEN)
    with pytest.raises(Unauthenticated):
        await tokens.authenticate("wrong", "stream", query_token=STREAM_TOKEN)


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (b"Bearer abc", "abc"),
        (b"bearer  abc ", "abc"),
        (b"BEARER abc", "abc"),
        (b"Basic abc", None),
        (b"Bearer", ""),
        (b"", None),
    ],
)
def test_the_header_names_its_scheme(value: bytes, token: str | None) -> None:
    assert bearer_token([(b"host", b"x"), (b"authorization", value)]) == token
    assert bearer_token([(b"host", value)]) is None


# Stored tokens


async def test_a_stored_token_is_good_until_it_is_revoked(tokens: Tokens) -> None:
    token = await tokens.create("billing", "stream")
    assert token.startswith("cw_")
    assert len(token) >= 43
    caller = await tokens.authenticate(token, "stream")
    assert (caller.name, caller.scope) == ("billing", "stream")
    assert await tokens.revoke("billing") is True
    with pytest.raises(Unauthenticated, match="revoked"):
        await tokens.authenticate(token, "stream")
    assert await tokens.revoke("billing") is False


async def test_a_stored_admin_token_may_do_everything(tokens: Tokens) -> None:
    token = await tokens.create("ops", "admin")
    assert (await tokens.authenticate(token, "admin")).scope == "admin"
    assert (await tokens.authenticate(token, "stream")).scope == "admin"


async def test_a_token_is_good_until_it_expires(tokens: Tokens) -> None:
    past, soon = (datetime.now(UTC) + timedelta(seconds=s) for s in (-1, 3600))
    expired = await tokens.create("old", "stream", expires_at=past)
    with pytest.raises(Unauthenticated, match="expired"):
        await tokens.authenticate(expired, "stream")
    fresh = await tokens.create("new", "stream", expires_at=soon)
    assert (await tokens.authenticate(fresh, "stream")).name == "new"


async def test_limits_come_back_as_they_were_given(tokens: Tokens) -> None:
    limits = Filter(
        topics=parse_topics(["item.*", "ACCOUNT_UPDATED"]),
        sources=frozenset({"retail"}),
        user_uuids=frozenset({USER}),
    )
    token = await tokens.create("narrow", "stream", limits)
    assert (await tokens.authenticate(token, "stream")).limits == limits
    assert [it.limits for it in await tokens.all()] == [limits]


@pytest.mark.parametrize(
    ("name", "scope", "limits", "message"),
    [
        ("", "stream", Filter(), "1 to 128 characters"),
        ("n" * 129, "stream", Filter(), "1 to 128 characters"),
        ("n", "root", Filter(), "stream, admin"),
        ("n", "stream", Filter(item_ids=frozenset({1})), "sources, types or users"),
        ("n", "stream", Filter(account_ids=frozenset({1})), "sources, types or users"),
    ],
)
async def test_a_token_that_makes_no_sense_is_not_made(
    tokens: Tokens, name: str, scope: str, limits: Filter, message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        await tokens.create(name, scope, limits)
    assert await tokens.all() == []


async def test_a_name_is_taken_while_a_token_of_that_name_is_valid(tokens: Tokens) -> None:
    first = await tokens.create("app", "stream")
    with pytest.raises(BadRequest, match="'app' already: revoke it first"):
        await tokens.create("app", "stream")
    await tokens.revoke("app")
    second = await tokens.create("app", "stream")
    assert first != second
    listed = await tokens.all()
    assert [(it.name, it.revoked_at is None) for it in listed] == [("app", True), ("app", False)]


async def test_only_the_hash_is_in_the_database(tokens: Tokens, owner: Connection) -> None:
    token = await tokens.create("app", "stream")
    row = await owner.fetchrow("SELECT token::text AS everything, * FROM causeway.token AS token")
    assert row is not None
    assert row["token_sha256"] == hashlib.sha256(token.encode()).digest()
    assert token not in row["everything"]
    assert token.removeprefix("cw_") not in row["everything"]
    assert token.encode().hex() not in row["everything"]


async def test_no_error_and_no_list_shows_a_token(tokens: Tokens) -> None:
    token = await tokens.create("app", "stream")
    await tokens.revoke("app")
    with pytest.raises(Unauthenticated) as caught:
        await tokens.authenticate(token, "stream")
    assert token not in repr(caught.value) + repr(await tokens.all()) + repr(tokens.__dict__)


async def test_the_last_use_is_written_now_and_then(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_module, "TOUCH_S", 0.01)
    token = await tokens.create("app", "stream")
    await tokens.create("idle", "stream")
    await tokens.authenticate(token, "stream")
    assert [it.last_used_at for it in await tokens.all()] == [None, None]
    loop = asyncio.create_task(tokens.touch())
    try:
        async with asyncio.timeout(WITHIN_S):
            while (await tokens.all())[1].last_used_at is None:
                await asyncio.sleep(0.01)
        assert (await tokens.all())[0].last_used_at is None
    finally:
        loop.cancel()


async def test_a_last_use_waits_for_a_database_that_is_away(
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokens: Tokens,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(auth_module, "TOUCH_S", 0.01)
    gate = Gate(database, tmp_path)
    await gate.open()
    async with create_pool(gate.database.service_dsn, max_size=2) as pool:
        cut_off = Tokens(make_settings(), pool)
        await cut_off.authenticate(await tokens.create("app", "stream"), "stream")
        await gate.cut()
        with pytest.raises(LogUnavailable):
            await cut_off.authenticate("cw_any", "stream")
        assert (await cut_off.authenticate(STREAM_TOKEN, "stream")).name == "settings:stream"
        loop = asyncio.create_task(cut_off.touch())
        await eventually(lambda: caplog.text.count("last use of tokens not written") > 2)
        await gate.open()
        async with asyncio.timeout(WITHIN_S):
            while (await tokens.all())[0].last_used_at is None:
                await asyncio.sleep(0.01)
        loop.cancel()
    await gate.cut()


# Over HTTP


async def status(running: Running, path: str, token: str) -> int:
    """Return what a GET with `token` is answered, without waiting for a stream's end."""
    headers = {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers) as client,
        client.stream("GET", running.url + path) as answer,
    ):
        return answer.status_code


@pytest.mark.parametrize("path", ["/stream", "/events", "/events/1"])
async def test_every_reader_needs_a_token(service: Running, path: str) -> None:
    await post(service.url, body())
    async with httpx2.AsyncClient() as client:
        answer = await client.get(service.url + path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["error"]["code"] == "unauthenticated"
    assert await status(service, path, "cw_wrong") == 401
    assert await status(service, path, STREAM_TOKEN) == 200
    assert await status(service, path, ADMIN_TOKEN) == 200


async def test_a_limited_token_sees_only_its_own(service: Running, pool: Pool) -> None:
    tokens = Tokens(service.settings, pool)
    limits = Filter(topics=parse_topics(["item.*"]), user_uuids=frozenset({USER}))
    token = await tokens.create("narrow", "stream", limits)
    await post(service.url, body("item.created"))
    await post(service.url, body("item.created", user_uuid=OTHER_USER))
    await post(service.url, body("payment.link.updated"))
    await post(service.url, body("ITEM_REFRESHED"))
    headers = {"authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(headers=headers, base_url=service.url) as client:

        async def positions(query: str) -> list[str]:
            events = (await client.get(f"/events{query}")).json()["events"]
            return [event["position"] for event in events]

        assert await positions("") == ["1", "4"]
        assert await positions("?type=item.refreshed") == ["4"]
        assert await positions(f"?user_uuid={OTHER_USER}") == []
        assert await positions("?type=*") == ["1", "4"]
        assert (await client.get("/events/1")).status_code == 200
        assert (await client.get("/events/2")).status_code == 404
        async with client.stream("GET", "/stream?from=start") as answer:
            text = ""
            async for chunk in answer.aiter_text():
                text += chunk
                if "ITEM_REFRESHED" in text:
                    break
    assert text.count("event: ") == 2
    assert OTHER_USER not in text


async def test_revoking_ends_open_streams_of_that_token_only(
    start: Start, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "TOKEN_CHECK_S", 0.05)
    running = await start()
    tokens = Tokens(running.settings, pool)
    mine, theirs = [await tokens.create(name, "stream") for name in ("mine", "theirs")]
    ended = asyncio.create_task(_read_to_the_end(running, mine))
    others = [asyncio.create_task(_read_to_the_end(running, it)) for it in (theirs, STREAM_TOKEN)]
    await eventually(lambda: len(running.service.hub) == 3)
    await tokens.revoke("mine")
    assert "stream.closing" in await asyncio.wait_for(ended, WITHIN_S)
    assert not any(task.done() for task in others)
    value = running.service.metrics.registry.get_sample_value
    name, reason = "causeway_stream_closed_total", {"reason": "token"}
    await eventually(lambda: value(name, reason) == 1)
    assert await status(running, "/stream", mine) == 401
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _read_to_the_end(running: Running, token: str) -> str:
    headers = {"authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(headers=headers, timeout=WITHIN_S) as client:
        return (await client.get(f"{running.url}/stream?control=1")).text
