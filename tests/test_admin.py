"""`/api/...`: who may, what is answered, what is refused."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from tests.bridge import body, post
from tests.running import ADMIN_TOKEN, SECRET, Running

ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}
CALLS = (
    *(("GET", "/api/tokens"), ("POST", "/api/tokens"), ("DELETE", "/api/tokens/1")),
    *(("GET", "/api/sources"), ("GET", "/api/stats"), ("GET", "/api/log/checkpoint")),
)
Start = Callable[..., Any]


@pytest.fixture(autouse=True)
def _ready_all_the_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stalls for seconds is nothing to be told of here."""
    monkeypatch.setattr("service.app.STALE_READ_S", 600.0)


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_only_an_admin_token_without_limits_may(
    service: Running, method: str, path: str
) -> None:
    async with httpx2.AsyncClient(base_url=service.url) as client:
        wish = {"name": "limited", "scope": "admin", "sources": ["default"]}
        made = await client.post("/api/tokens", json=wish, headers=ADMIN)
        limited = {"authorization": f"Bearer {made.json()['token']}"}
        for headers, status in (({}, 401), (service.headers, 403), (limited, 403)):
            answer = await client.request(method, path, headers=headers)
            assert answer.status_code == status
        assert (await client.request(method, path, headers=ADMIN)).status_code < 500
        assert (await client.get("/api/tokens?x=1", headers=ADMIN)).status_code == 400


async def test_a_token_is_made_used_and_revoked(service: Running) -> None:
    async with httpx2.AsyncClient(base_url=service.url, headers=ADMIN) as client:
        expires = datetime.now(UTC) + timedelta(days=1)
        wish = {"name": "billing", "types": ["item.*"], "expires_at": expires.isoformat()}
        made = await client.post("/api/tokens", json=wish)
        assert made.status_code == 201
        token = made.json()["token"]
        assert made.headers["cache-control"] == "no-store"
        used = {"authorization": f"Bearer {token}"}
        assert (await client.get("/events", headers=used)).status_code == 200
        [listed] = (await client.get("/api/tokens")).json()["tokens"]
        assert listed["limits"] == {"types": ["item.*"]}
        assert "token" not in listed
        url = f"/api/tokens/{listed['token_id']}"
        assert (await client.delete(url)).status_code == 204
        assert (await client.get("/events", headers=used)).status_code == 401
        assert (await client.delete(url)).status_code == 404
        [listed] = (await client.get("/api/tokens")).json()["tokens"]
        assert listed["revoked_at"] is not None


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\x00"}, "name"),
        ({"name": "a", "scope": "root"}, "scope"),
        ({"name": "a", "types": ["*.x"]}, "types"),
        ({"name": "a", "types": []}, "types"),
        ({"name": "a", "user_uuids": ["me"]}, "user_uuids"),
        ({"name": "a", "expires_at": "soon"}, "expires_at"),
        ({"name": "a", "expires_at": "2020-01-01T00:00:00Z"}, "to come"),
        ({"name": "a", "expires_at": 7}, "expires_at"),
        ({"name": "a", "expiry": 7}, "expiry"),
        ([], "object"),
    ],
)
async def test_a_wish_that_cannot_be_is_named(service: Running, wish: object, said: str) -> None:
    async with httpx2.AsyncClient(base_url=service.url, headers=ADMIN) as client:
        answer = await client.post("/api/tokens", json=wish)
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]


async def test_an_id_that_is_none_is_not_found(service: Running) -> None:
    async with httpx2.AsyncClient(base_url=service.url, headers=ADMIN) as client:
        for text in ("0", "x", "9" * 30, "-1", "%00"):
            assert (await client.delete(f"/api/tokens/{text}")).status_code == 404


async def test_sources_tell_what_came_and_which_secret_signed(service: Running) -> None:
    async with httpx2.AsyncClient(base_url=service.url, headers=ADMIN) as client:
        await service.service.administering.stats.sample()
        await post(service.url, body("item.created"))
        await post(service.url, body(), secrets=("whsec-wrong",))
        await service.service.administering.stats.sample()
        [source] = (await client.get("/api/sources")).json()["sources"]
        assert source["name"] == "default"
        assert source["secrets"] == 2
        assert source["last_event"]["type"] == "item.created"
        assert source["outcomes"] == {"accepted": 1, "bad_signature": 1}
        assert source["signature_matches"] == {"current": 1}
        assert SECRET not in str(source)


async def test_stats_say_what_is_wrong_and_count_the_day(service: Running) -> None:
    async with httpx2.AsyncClient(base_url=service.url, headers=ADMIN) as client:
        said = (await client.get("/api/stats")).json()["alarms"]
        assert [alarm["level"] for alarm in said] == ["note"]
        assert "no event yet" in said[0]["text"]
        for _ in range(3):
            await post(service.url, body())
        day = (await client.get("/api/stats?range=day")).json()
        assert sum(day["figures"]["events"]) == 3
        assert day["figures"]["events"][-1] + day["figures"]["events"][-2] == 3


async def test_a_checkpoint_is_what_an_audit_takes(service: Running) -> None:
    async with httpx2.AsyncClient(base_url=service.url, headers=ADMIN) as client:
        await post(service.url, body())
        answer = (await client.get("/api/log/checkpoint")).json()
        assert answer["position"] == 1
        position, _, link = answer["checkpoint"].partition(".")
        await service.service.eventlog.check(int(position), link)
        event = (await client.get("/events/1")).json()
        assert event["link"] == answer["link"]
