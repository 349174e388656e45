"""Who gets into the dashboard, with what, for how long; and what another site cannot do."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from service.auth import Tokens
from service.config import Settings
from service.dashboard.attempts import ADDRESSES_MAX, FREE, Attempts
from service.dashboard.session import CACHED_S, COOKIE, LIFETIME_S, RENEW_S, Sessions
from service.dashboard.view import POLICY
from service.db import create_pool
from service.embedded import EmbeddedPostgres
from service.filter import Filter
from tests import bridge
from tests.dashboard import ADMIN, OURS, csrf_of, logged_in, make_token, send, site
from tests.logkeeping import Owner
from tests.running import ADMIN_TOKEN, STREAM_TOKEN, Database, Process, Running, make_settings

UNSAFE = (
    *("/dashboard/logout", "/dashboard/tokens/create", "/dashboard/tokens/1/revoke"),
    *("/dashboard/consumers/billing/reset", "/dashboard/consumers/billing/delete"),
    *("/dashboard/log/audit/start", "/dashboard/webhooks/create"),
    *(
        f"/dashboard/webhooks/1/{path}"
        for path in (
            *("change", "rotate", "disable", "enable", "delete", "test"),
            *("replays/count", "replays/begin", "replays/1/cancel", "deliveries/1/replay"),
        )
    ),
)


@pytest.fixture(scope="module")
def process(postgres: EmbeddedPostgres) -> Iterator[Process]:
    with site(postgres, CAUSEWAY_TRUSTED_PROXIES="127.0.0.1") as running:
        yield running


@dataclass
class Clock:
    """A clock that tests set."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Sight:
    """Sessions on a database, at a time that tests set."""

    def __init__(self, settings: Settings, tokens: Tokens) -> None:
        self.clock = Clock()
        self.tokens = tokens
        self.sessions = Sessions(settings, tokens, self.clock)

    async def cookie(self, token: str = ADMIN_TOKEN) -> str:
        return self.sessions.begin(await self.tokens.log_in(token))


Look = Callable[..., Awaitable[Sight]]


@pytest.fixture
async def look(database: Database) -> AsyncIterator[Look]:
    """Make sessions as a process with other settings would: `await look(secret_key=...)`."""
    async with create_pool(database.service_dsn, max_size=2) as pool:

        async def sight(**overrides: object) -> Sight:
            settings = make_settings(**overrides)
            return Sight(settings, Tokens(settings, pool))

        yield sight


async def test_a_session_is_known_by_every_replica_and_by_nobody_elses(look: Look) -> None:
    one, other = await look(), await look()
    cookie = await one.cookie()
    session = await other.sessions.find(cookie)
    assert session is not None
    assert session.caller.name == "settings:admin"
    stranger = await look(admin_token="another-admin-token-0123")
    assert await stranger.sessions.find(cookie) is None


async def test_a_session_ends_after_its_lifetime_and_is_renewed_while_used(
    look: Look,
) -> None:
    seen = await look()
    cookie = await seen.cookie()
    session = await seen.sessions.find(cookie)
    assert session is not None
    assert await seen.sessions.renewed(session) is None
    seen.clock.now += RENEW_S + 1
    renewed = await seen.sessions.renewed(session)
    assert renewed is not None
    seen.clock.now += LIFETIME_S - RENEW_S - 1
    assert await seen.sessions.find(cookie) is None
    again = await seen.sessions.find(renewed)
    assert again is not None
    assert again.csrf == session.csrf  # what an open page holds stays good
    seen.clock.now += RENEW_S + 2
    assert await seen.sessions.find(renewed) is None


@pytest.mark.parametrize("part", range(4))
async def test_a_cookie_that_was_changed_is_none(look: Look, part: int) -> None:
    seen = await look()
    parts = (await seen.cookie()).split(".")
    parts[part] = {0: "1", 1: str(int(parts[1]) + 1)}.get(part, parts[part][:-1] + "_")
    assert await seen.sessions.find(".".join(parts)) is None


@pytest.mark.parametrize(
    "cookie", [None, "", "...", "s.1.n", "s.9" * 4, "s.\u0661.n.m", "-1.9.n.m"]
)
async def test_what_is_no_cookie_is_none(look: Look, cookie: str | None) -> None:
    assert await (await look()).sessions.find(cookie) is None


async def test_a_stored_tokens_session_ends_seconds_after_its_revocation(
    look: Look,
) -> None:
    seen = await look()
    cookie = await seen.cookie(await seen.tokens.create("me", "admin"))
    assert await seen.sessions.find(cookie) is not None
    await seen.tokens.revoke("me")
    seen.clock.now += CACHED_S + 0.1
    assert await seen.sessions.find(cookie) is None
    await seen.tokens.create("me", "admin")  # the name again, another token
    seen.clock.now += CACHED_S + 0.1
    assert await seen.sessions.find(cookie) is None


async def test_the_secret_key_signs_and_an_old_one_is_good_while_it_is_changed(
    look: Look,
) -> None:
    old, new = "o" * 32, "n" * 32
    before = await look(secret_key=old)
    cookie = await before.cookie()
    during = await look(secret_key=f"{new},{old}")
    assert await during.sessions.find(cookie) is not None
    after = await look(secret_key=new)
    assert await after.sessions.find(cookie) is None
    assert await after.sessions.find(await during.cookie()) is not None


async def test_a_session_that_was_ended_is_over_although_its_cookie_was_kept(
    look: Look,
) -> None:
    seen = await look()
    cookie = await seen.cookie()
    session = await seen.sessions.find(cookie)
    assert session is not None
    seen.sessions.end(session)
    assert await seen.sessions.find(cookie) is None


async def test_only_an_admin_token_without_limits_and_not_expired_gets_in(
    look: Look, process: Process, owner: Owner
) -> None:
    seen = await look()
    limited = await seen.tokens.create("limited", "admin", Filter(sources=frozenset({"a"})))
    with pytest.raises(Exception, match="without limits"):
        await seen.cookie(limited)
    soon = datetime.now(UTC) + timedelta(hours=1)
    cookie = await seen.cookie(await seen.tokens.create("short", "admin", expires_at=soon))
    assert await seen.sessions.find(cookie) is not None
    await owner.execute("UPDATE causeway.token SET expires_at = now() WHERE name = 'short'")
    seen.clock.now += CACHED_S + 0.1
    assert await seen.sessions.find(cookie) is None
    for token, status in ((STREAM_TOKEN, 403), ("wrong", 401), ("", 400)):
        answer = httpx2.post(
            f"{process.url}/dashboard/login",
            data={"token": token},
            headers=OURS | {"x-forwarded-for": f"10.0.0.{status % 256}"},
        )
        assert answer.status_code == status
        assert "set-cookie" not in answer.headers


def test_a_page_without_a_session_leads_to_the_login_and_back(process: Process) -> None:
    with httpx2.Client(base_url=process.url) as client:
        for path in ("", "/events?type=item.*", "/tokens", "/nowhere"):
            answer = client.get(f"/dashboard{path}")
            assert answer.status_code == 303, path
            assert answer.headers["location"].startswith("/dashboard/login?next=/dashboard")
        part = client.get("/dashboard/events/rows?before=9", headers={"hx-request": "true"})
        assert (part.status_code, part.headers["hx-redirect"]) == (401, "/dashboard/login")
        assert client.get("/dashboard/stream").status_code == 401
        answer = client.post(answer.headers["location"], data={"token": ADMIN_TOKEN}, headers=OURS)
        assert answer.headers["location"] == "/dashboard/nowhere"


@pytest.mark.parametrize(
    "target", ["https://evil.example", "//evil.example", "/dashboard\\evil", "/dashboardx", "/api"]
)
def test_the_login_leads_nowhere_else(process: Process, target: str) -> None:
    url = f"{process.url}/dashboard/login"
    answer = httpx2.post(url, params={"next": target}, data={"token": ADMIN_TOKEN}, headers=OURS)
    assert answer.headers["location"] == "/dashboard"


def test_a_link_from_elsewhere_asks_again_from_our_own_page(process: Process) -> None:
    """The browser keeps a strict cookie back at first: nobody should have to log in twice."""
    url = f"{process.url}/dashboard/events/1"
    answer = httpx2.get(url, headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 200
    assert 'http-equiv="refresh"' in answer.text
    again = httpx2.get(url, headers={"sec-fetch-site": "same-origin"})
    assert again.status_code == 303


@pytest.mark.parametrize(
    ("forwarded", "is_secure"), [(None, False), ("https", True), ("http", False)]
)
def test_the_cookie_is_secure_behind_a_trusted_proxy_with_tls(
    process: Process, forwarded: str | None, is_secure: bool
) -> None:
    headers = OURS if forwarded is None else OURS | {"x-forwarded-proto": forwarded}
    answer = httpx2.post(
        f"{process.url}/dashboard/login", data={"token": ADMIN_TOKEN}, headers=headers
    )
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    flags = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/dashboard"} <= flags
    assert f"max-age={LIFETIME_S}" in flags
    assert ("secure" in flags) is is_secure


def test_every_answer_has_the_policy_and_is_kept_nowhere(process: Process) -> None:
    position = send(process, bridge.body())
    with logged_in(process) as client:
        for path in (
            *(
                "",
                "/login",
                "/events",
                f"/events/{position}",
                "/items",
                "/tokens",
                "/log",
                "/stats",
            ),
            *(
                "/alarms",
                "/consumers/table",
                "/nowhere",
                "/events/99999999",
                f"/events/{position}/body",
            ),
        ):
            answer = client.get(f"/dashboard{path}")
            assert answer.headers["content-security-policy"] == POLICY, path
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "same-origin"
            assert answer.headers["cache-control"] == "no-store"
        page = client.get("/dashboard").text
    assert "'unsafe" not in POLICY
    assert not re.search(r"<script(?![^>]*\ssrc=)|\son\w+=|\sstyle=|javascript:", page)


@pytest.mark.parametrize("path", UNSAFE)
def test_another_site_can_change_nothing(process: Process, path: str) -> None:
    with logged_in(process) as client:
        csrf = csrf_of(client)
        base = {name: value for name, value in client.headers.items() if name != "sec-fetch-site"}
        forged: list[tuple[dict[str, str], dict[str, str]]] = [
            ({"sec-fetch-site": "cross-site"}, {"csrf": csrf}),
            ({"sec-fetch-site": "same-site"}, {"csrf": csrf}),
            ({"origin": "https://evil.example"}, {"csrf": csrf}),
            ({"origin": "null"}, {"csrf": csrf}),
            ({}, {"csrf": csrf}),
            ({"sec-fetch-site": "same-origin"}, {}),
            ({"sec-fetch-site": "same-origin"}, {"csrf": "x" * len(csrf)}),
            ({"sec-fetch-site": "same-origin", "x-csrf-token": "ü"}, {}),
        ]
        client.headers = httpx2.Headers(base)
        for headers, form in forged:
            raw = {name.encode(): value.encode() for name, value in headers.items()}
            answer = client.post(path, data=form, headers=raw)
            assert answer.status_code == 403, (headers, form)
        assert client.get(path, headers=OURS).status_code == 404
        assert client.get("/dashboard/tokens", headers=OURS).status_code == 200  # still in


def test_a_csrf_token_is_of_one_session(process: Process) -> None:
    with logged_in(process) as one, logged_in(process) as other:
        answer = one.post("/dashboard/log/audit/start", data={"csrf": csrf_of(other)})
        assert answer.status_code == 403
        answer = one.post("/dashboard/log/audit/start", data={"csrf": csrf_of(one)})
        assert answer.status_code == 200


def test_a_browser_without_fetch_metadata_gets_in_by_its_origin(process: Process) -> None:
    url = f"{process.url}/dashboard/login"
    data = {"token": ADMIN_TOKEN}
    assert httpx2.post(url, data=data, headers={"origin": process.url}).status_code == 303
    assert httpx2.post(url, data=data, headers={"origin": "http://evil.example"}).status_code == 403
    assert httpx2.post(url, data=data).status_code == 403


def test_a_session_counts_for_nothing_outside_the_dashboard(process: Process) -> None:
    with logged_in(process) as client:
        cookie = {COOKIE: client.cookies[COOKIE]}
    for path in ("/api/tokens", "/api/stats", "/events", "/stream", "/consumers"):
        assert httpx2.get(process.url + path, cookies=cookie, headers=OURS).status_code == 401


def test_the_feed_holds_no_consumer(process: Process) -> None:
    with logged_in(process) as client:
        answer = client.get("/dashboard/stream?consumer=billing")
        assert answer.status_code == 400


def test_all_that_changes_something_is_tried_here(service: Running) -> None:
    """A new path must be put into UNSAFE."""
    posts = {
        route.path  # type: ignore[attr-defined]
        for route in service.service.app.routes
        if route.path.startswith("/dashboard/")  # type: ignore[attr-defined]
        and "POST" in (route.methods or ())  # type: ignore[attr-defined]
    }
    tried = {re.sub("/(1|billing)/", "/{}/", path) for path in UNSAFE}
    assert {re.sub(r"\{\w+\}", "{}", path) for path in posts} == tried | {"/dashboard/login"}


def test_bad_logins_are_slowed_counted_and_of_one_address(postgres: EmbeddedPostgres) -> None:
    with site(postgres, CAUSEWAY_TRUSTED_PROXIES="127.0.0.1") as own:
        url = f"{own.url}/dashboard/login"

        def log_in(token: str, address: str) -> httpx2.Response:
            headers = OURS | {"x-forwarded-for": address}
            return httpx2.post(url, data={"token": token}, headers=headers)

        for tries in range(1, 20):  # more than one where the machine stalls for a second
            for _ in range(FREE):
                assert log_in("wrong", f"10.0.1.{tries}").status_code == 401
            if (slowed := log_in(ADMIN_TOKEN, f"10.0.1.{tries}")).status_code != 303:
                break
        assert slowed.status_code == 429
        assert int(slowed.headers["retry-after"]) >= 1
        assert log_in(ADMIN_TOKEN, "10.0.0.2").status_code == 303
        metrics = httpx2.get(f"{own.url}/metrics").text
        for outcome, count in (("bad", tries * FREE), ("slowed", 1), ("good", tries)):
            assert f'causeway_dashboard_logins_total{{outcome="{outcome}"}} {count}.0' in metrics
        assert "wrong" not in own.output()
        assert ADMIN_TOKEN not in own.output()


def test_the_wait_doubles_is_bounded_and_is_forgotten() -> None:
    clock = Clock(0.0)
    attempts = Attempts(clock)
    waits = []
    for _ in range(FREE + 8):
        attempts.failed(None)
        waits.append(attempts.wait_s(None))
    assert waits == [0.0] * (FREE - 1) + [1, 2, 4, 8, 16, 32, 60, 60, 60]
    clock.now = 1000.0
    assert attempts.wait_s(None) == 0.0


def test_the_addresses_that_are_remembered_are_bounded(address: Callable[[int], object]) -> None:
    attempts = Attempts(Clock(0.0))
    for number in range(ADDRESSES_MAX + 10):
        for _ in range(FREE):
            attempts.failed(address(number))  # type: ignore[arg-type]
    assert len(attempts._failures) == ADDRESSES_MAX
    assert attempts.wait_s(address(0)) == 0.0  # type: ignore[arg-type]
    assert attempts.wait_s(address(ADDRESSES_MAX)) > 0.0  # type: ignore[arg-type]


@pytest.fixture
def address() -> Callable[[int], object]:
    from ipaddress import IPv4Address

    return lambda number: IPv4Address(0x0A000000 + number)


def test_a_logged_in_administrator_sees_tokens_that_the_api_made(process: Process) -> None:
    make_token(process, "seen-by-both")
    listed = httpx2.get(f"{process.url}/api/tokens", headers=ADMIN).json()["tokens"]
    with logged_in(process) as client:
        page = client.get("/dashboard/tokens").text
    assert all(token["name"] in page for token in listed)
