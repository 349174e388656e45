"""Every endpoint with every credential: the table is held against the routes that the app has.

A new route fails here until it has a row: who may use it, and what they are answered to a call
that names nothing real. A new sort of route fails until every credential has an answer to it.
"""

import base64
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from starlette.routing import Route

from service.auth import Tokens
from service.dashboard.session import COOKIE
from service.db import Connection
from service.filter import Filter
from service.signature import HEADER, sign
from tests.bridge import TEST_EVENT, body, post
from tests.dashboard import OURS
from tests.relaying import KEY
from tests.running import (
    ADMIN_TOKEN,
    SECRET,
    STREAM_TOKEN,
    WITHIN_S,
    Database,
    Running,
    environment,
    make_settings,
    service_process,
)

# Who may use a route: everybody; Bridge; a reader; an administrator; a session of the dashboard,
# which sees a page, follows the feed, or acts; whoever comes to the login.
OPEN, BRIDGE, STREAM, ADMIN = "open", "bridge", "stream", "admin"
PAGE, FEED, ACT, LOGIN = "page", "feed", "act", "login"

HASH = "SELECT token_sha256 FROM causeway.token WHERE name = $1"
SHOWN_CODE = re.compile(r"<code>([a-z_]+)</code> · [0-9]{3}")

# An answer: the status, and the error's code or where it leads.
Answer = tuple[int, str]
OK: Answer = (200, "")
BAD = (400, "bad_request")
UNKNOWN = (404, "unknown_webhook")
NOWHERE = (404, "not_found")
TO_LOGIN = (303, "/dashboard/login")
UNAUTHENTICATED, FORBIDDEN = (401, "unauthenticated"), (403, "forbidden")

# Each route: who may, and what they are answered.
TABLE: dict[tuple[str, str], tuple[str, Answer]] = {
    ("POST", "/webhooks/bridge"): (BRIDGE, OK),
    ("POST", "/webhooks/bridge/{source}"): (BRIDGE, OK),
    ("GET", "/stream"): (STREAM, OK),
    ("GET", "/events"): (STREAM, OK),
    ("GET", "/events/{position}"): (STREAM, OK),
    ("GET", "/consumers"): (STREAM, OK),
    ("GET", "/consumers/{name}"): (STREAM, (404, "unknown_consumer")),
    ("PUT", "/consumers/{name}"): (STREAM, BAD),
    ("DELETE", "/consumers/{name}"): (STREAM, (404, "unknown_consumer")),
    ("POST", "/consumers/{name}/ack"): (STREAM, BAD),
    ("GET", "/api/tokens"): (ADMIN, OK),
    ("POST", "/api/tokens"): (ADMIN, BAD),
    ("DELETE", "/api/tokens/{token_id}"): (ADMIN, NOWHERE),
    ("GET", "/api/sources"): (ADMIN, OK),
    ("GET", "/api/stats"): (ADMIN, OK),
    ("GET", "/api/log/checkpoint"): (ADMIN, OK),
    ("GET", "/api/webhooks"): (ADMIN, OK),
    ("POST", "/api/webhooks"): (ADMIN, BAD),
    ("GET", "/api/webhooks/{id}"): (ADMIN, UNKNOWN),
    ("PATCH", "/api/webhooks/{id}"): (ADMIN, BAD),
    ("DELETE", "/api/webhooks/{id}"): (ADMIN, UNKNOWN),
    ("POST", "/api/webhooks/{id}/disable"): (ADMIN, UNKNOWN),
    ("POST", "/api/webhooks/{id}/enable"): (ADMIN, BAD),
    ("POST", "/api/webhooks/{id}/rotate"): (ADMIN, UNKNOWN),
    ("POST", "/api/webhooks/{id}/test"): (ADMIN, UNKNOWN),
    ("GET", "/api/webhooks/{id}/deliveries"): (ADMIN, UNKNOWN),
    ("GET", "/api/webhooks/{id}/deliveries/{position}"): (ADMIN, UNKNOWN),
    ("POST", "/api/webhooks/{id}/deliveries/{position}/replay"): (ADMIN, UNKNOWN),
    ("GET", "/api/webhooks/{id}/replays"): (ADMIN, UNKNOWN),
    ("POST", "/api/webhooks/{id}/replays"): (ADMIN, BAD),
    ("GET", "/api/webhooks/{id}/replays/{replay_id}"): (ADMIN, UNKNOWN),
    ("DELETE", "/api/webhooks/{id}/replays/{replay_id}"): (ADMIN, UNKNOWN),
    ("GET", "/metrics"): (OPEN, OK),
    ("GET", "/livez"): (OPEN, OK),
    ("GET", "/readyz"): (OPEN, OK),
    ("GET", "/openapi.json"): (OPEN, OK),
    ("GET", "/asyncapi.json"): (OPEN, OK),
    ("GET", "/dashboard/login"): (LOGIN, OK),
    ("POST", "/dashboard/login"): (LOGIN, (400, "")),
    ("GET", "/dashboard/static/{name:path}"): (OPEN, OK),
    ("GET", "/dashboard/stream"): (FEED, OK),
    ("GET", "/dashboard"): (PAGE, OK),
    ("GET", "/dashboard/alarms"): (PAGE, OK),
    ("GET", "/dashboard/stats"): (PAGE, OK),
    ("GET", "/dashboard/events"): (PAGE, OK),
    ("GET", "/dashboard/events/rows"): (PAGE, BAD),
    ("GET", "/dashboard/events/{position}"): (PAGE, OK),
    ("GET", "/dashboard/events/{position}/body"): (PAGE, OK),
    ("GET", "/dashboard/items"): (PAGE, OK),
    ("GET", "/dashboard/sources"): (PAGE, OK),
    ("GET", "/dashboard/consumers"): (PAGE, OK),
    ("GET", "/dashboard/consumers/table"): (PAGE, OK),
    ("POST", "/dashboard/consumers/{name}/reset"): (ACT, (404, "unknown_consumer")),
    ("POST", "/dashboard/consumers/{name}/delete"): (ACT, BAD),
    ("GET", "/dashboard/tokens"): (PAGE, OK),
    ("POST", "/dashboard/tokens/create"): (ACT, BAD),
    ("POST", "/dashboard/tokens/{token_id}/revoke"): (ACT, NOWHERE),
    ("GET", "/dashboard/log"): (PAGE, OK),
    ("GET", "/dashboard/log/audit"): (PAGE, OK),
    ("POST", "/dashboard/log/audit/start"): (ACT, OK),
    ("GET", "/dashboard/webhooks"): (PAGE, OK),
    ("GET", "/dashboard/webhooks/table"): (PAGE, OK),
    ("GET", "/dashboard/webhooks/new"): (PAGE, OK),
    ("POST", "/dashboard/webhooks/create"): (ACT, BAD),
    ("GET", "/dashboard/webhooks/{id}"): (PAGE, UNKNOWN),
    ("GET", "/dashboard/webhooks/{id}/standing"): (PAGE, UNKNOWN),
    ("GET", "/dashboard/webhooks/{id}/replays"): (PAGE, OK),
    ("GET", "/dashboard/webhooks/{id}/deliveries/newest"): (PAGE, UNKNOWN),
    ("GET", "/dashboard/webhooks/{id}/deliveries/rows"): (PAGE, UNKNOWN),
    ("GET", "/dashboard/webhooks/{id}/deliveries/{position}"): (PAGE, UNKNOWN),
    ("GET", "/dashboard/webhooks/{id}/deliveries/{position}/part"): (PAGE, UNKNOWN),
    ("POST", "/dashboard/webhooks/{id}/change"): (ACT, BAD),
    ("POST", "/dashboard/webhooks/{id}/rotate"): (ACT, UNKNOWN),
    ("POST", "/dashboard/webhooks/{id}/disable"): (ACT, UNKNOWN),
    ("POST", "/dashboard/webhooks/{id}/enable"): (ACT, UNKNOWN),
    ("POST", "/dashboard/webhooks/{id}/delete"): (ACT, UNKNOWN),
    ("POST", "/dashboard/webhooks/{id}/test"): (ACT, UNKNOWN),
    ("POST", "/dashboard/webhooks/{id}/replays/count"): (ACT, BAD),
    ("POST", "/dashboard/webhooks/{id}/replays/begin"): (ACT, BAD),
    ("POST", "/dashboard/webhooks/{id}/replays/{replay_id}/cancel"): (ACT, (404, "unknown_replay")),
    ("POST", "/dashboard/webhooks/{id}/deliveries/{position}/replay"): (ACT, UNKNOWN),
    ("GET", "/dashboard/{path:path}"): (PAGE, NOWHERE),
    ("POST", "/dashboard/logout"): (ACT, TO_LOGIN),  # the last: it ends the session
}
REAL = {
    "source": "default",
    "position": "1",
    "name": "nobody",
    "token_id": "999",
    "id": "999",
    "replay_id": "999",
    "name:path": "mark.svg",
    "path:path": "nowhere",
}

# What a credential is answered by each sort of route; None: what the table says, it is let in.
Rights = dict[str, Answer | None]
STRANGER: Rights = {
    OPEN: None,
    BRIDGE: (401, "bad_signature"),
    STREAM: UNAUTHENTICATED,
    ADMIN: UNAUTHENTICATED,
    PAGE: TO_LOGIN,
    FEED: UNAUTHENTICATED,
    ACT: TO_LOGIN,
    LOGIN: None,
}
READER: Rights = STRANGER | {STREAM: None, ADMIN: FORBIDDEN}
ADMINISTRATOR: Rights = READER | {ADMIN: None}
VISITOR: Rights = STRANGER | {PAGE: None, FEED: None, ACT: None}
FOREIGN_PAGE: Rights = VISITOR | {ACT: FORBIDDEN, LOGIN: (403, "")}


@dataclass(frozen=True, slots=True)
class Credential:
    """What a call comes with, and what it is good for."""

    rights: Rights
    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""
    form: str = ""
    is_signed: bool = False


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def tokens_of(owner: Connection) -> dict[str, Credential]:
    """Return everything that stands in a header or a query."""
    tokens = Tokens(make_settings(), owner)
    limits = Filter(sources=frozenset({"default"}))
    past = datetime.now(UTC) - timedelta(seconds=1)
    revoked = await tokens.create("revoked", "admin")
    await tokens.revoke("revoked")
    basic = base64.b64encode(f"admin:{ADMIN_TOKEN}".encode()).decode()
    stored = await tokens.create("reader", "stream")
    in_both = STRANGER | {STREAM: BAD, ADMIN: FORBIDDEN}  # who may ask is told what was wrong
    return {
        "nothing": Credential(STRANGER),
        "no token after Bearer": Credential(STRANGER, {"authorization": "Bearer"}),
        "nonsense": Credential(STRANGER, bearer("nonsense")),
        "a token that was never made": Credential(STRANGER, bearer("cw_" + "a" * 43)),
        "two thirds of a token": Credential(STRANGER, bearer(ADMIN_TOKEN[:16])),
        "another scheme": Credential(STRANGER, {"authorization": f"Basic {basic}"}),
        "no scheme": Credential(STRANGER, {"authorization": ADMIN_TOKEN}),
        "a token in a cookie": Credential(STRANGER, {"cookie": f"{COOKIE}={ADMIN_TOKEN}"}),
        "a hash of the database": Credential(
            STRANGER, bearer((await owner.fetchval(HASH, "reader")).hex())
        ),
        "expired": Credential(
            STRANGER, bearer(await tokens.create("old", "admin", Filter(), past))
        ),
        "revoked": Credential(STRANGER, bearer(revoked)),
        "Bridge's secret as a token": Credential(STRANGER, bearer(SECRET)),
        "Bridge's signature": Credential(STRANGER | {BRIDGE: None}, is_signed=True),
        "reader of the settings": Credential(READER, bearer(STREAM_TOKEN)),
        "reader": Credential(READER, bearer(stored)),
        "limited reader": Credential(READER, bearer(await tokens.create("some", "stream", limits))),
        "limited administrator": Credential(
            READER, bearer(await tokens.create("half", "admin", limits))
        ),
        "administrator of the settings": Credential(ADMINISTRATOR, bearer(ADMIN_TOKEN)),
        "administrator": Credential(ADMINISTRATOR, bearer(await tokens.create("boss", "admin"))),
        "reader in the query": Credential(STRANGER, query=f"access_token={stored}"),
        "administrator in the query": Credential(STRANGER, query=f"access_token={ADMIN_TOKEN}"),
        "reader in both": Credential(in_both, bearer(stored), query=f"access_token={stored}"),
    }


async def log_in(client: httpx2.AsyncClient, token: str = ADMIN_TOKEN) -> tuple[str, str]:
    """Return a new session's cookie and its CSRF token."""
    answer = await client.post("/dashboard/login", data={"token": token}, headers=OURS)
    cookie = f"{COOKIE}={answer.cookies[COOKIE]}"
    client.cookies.clear()
    page = (await client.get("/dashboard/log", headers={"cookie": cookie})).text
    return cookie, page.partition('data-csrf="')[2].partition('"')[0]


async def sessions_of(owner: Connection, client: httpx2.AsyncClient) -> dict[str, Credential]:
    """Return everything that a cookie can be."""
    tokens = Tokens(make_settings(), owner)
    cookie, csrf = await log_in(client)
    _, others_csrf = await log_in(client)
    short = await tokens.create("short", "admin")
    answer = await client.post("/dashboard/login", data={"token": short}, headers=OURS)
    over = {"cookie": f"{COOKIE}={client.cookies[COOKIE]}"} | OURS
    client.cookies.clear()
    await tokens.revoke("short")
    ours, form = {"cookie": cookie} | OURS, f"csrf={csrf}"
    assert answer.status_code == 303
    assert csrf != others_csrf != ""
    foreign = {
        "a session, from another site": {"sec-fetch-site": "cross-site"},
        "a session, from a sister site": {"sec-fetch-site": "same-site"},
        "a session, from another origin": {"origin": "https://evil.example"},
        "a session, from nowhere": {},
    }
    return {
        "a session whose token was revoked": Credential(STRANGER, over, form=form),
        "a session with another signature": Credential(
            STRANGER, ours | {"cookie": cookie[:-2] + "__"}, form=form
        ),
        **{
            name: Credential(FOREIGN_PAGE, {"cookie": cookie} | headers, form=form)
            for name, headers in foreign.items()
        },
        "a session without a CSRF token": Credential(VISITOR | {ACT: FORBIDDEN}, ours),
        "a session with another's CSRF token": Credential(
            VISITOR | {ACT: FORBIDDEN}, ours, form=f"csrf={others_csrf}"
        ),
        "a session": Credential(VISITOR, ours, form=form),  # the last: it can log out
    }


def routes_of(service: Running) -> set[tuple[str, str]]:
    """Return every method and path that the app answers."""
    routes = service.service.app.routes
    assert all(isinstance(route, Route) and route.methods for route in routes)
    return {
        (method, route.path)
        for route in routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }


def expected(row: tuple[str, str], name: str, credential: Credential) -> Answer:
    """Return what the table says of one cell, with the few that depend on more than the sort."""
    who, let_in = TABLE[row]
    method, path = row
    refusal = credential.rights[who]
    if path == "/stream" and credential.query:
        return OK if name.startswith("reader") else FORBIDDEN
    if who == LOGIN:
        if method == "GET":
            return (303, "/dashboard") if credential.rights[PAGE] is None else OK
        return let_in if "same-origin" in credential.headers.values() else (403, "")
    return let_in if refusal is None else refusal


async def call(
    client: httpx2.AsyncClient, method: str, path: str, credential: Credential
) -> tuple[Answer, str]:
    """Return what a call is answered, and its text. Of a stream only the beginning is read."""
    content = TEST_EVENT if "/webhooks/bridge" in path else b"{"
    if path.startswith("/dashboard"):
        content = credential.form.encode()
    headers = dict(credential.headers)
    if credential.is_signed:
        headers[HEADER] = sign(content, (SECRET,))
    for name, value in REAL.items():
        path = path.replace(f"{{{name}}}", value)
    url = f"{path}?{credential.query}" if credential.query else path
    async with client.stream(
        method, url, headers=headers, content=content if method not in ("GET", "HEAD") else None
    ) as answer:
        media_type = answer.headers.get("content-type", "")
        text = "" if "event-stream" in media_type else (await answer.aread()).decode()
    if location := answer.headers.get("location"):
        return (answer.status_code, location.partition("?")[0]), text
    if "json" in media_type and answer.is_error and text:
        return (answer.status_code, answer.json()["error"]["code"]), text
    shown = SHOWN_CODE.search(text)
    return (answer.status_code, shown[1] if shown else ""), text


@pytest.fixture
async def client(database: Database, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a real process that has all roles, and one event."""
    env = environment(DATABASE_URL=database.service_dsn, CAUSEWAY_SECRET_KEY=KEY)
    with service_process(env, tmp_path / "log") as process:
        assert (await post(process.url, body())).status_code == 200
        async with httpx2.AsyncClient(base_url=process.url, timeout=WITHIN_S) as it:
            yield it


async def test_every_route_has_a_row_and_every_row_a_route(service: Running) -> None:
    routes = service.service.app.routes
    assert all(isinstance(route, Route) and route.methods for route in routes)
    found = {
        (method, route.path)
        for route in routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    assert found - {("HEAD", path) for method, path in found if method == "GET"} == set(TABLE)


async def test_every_endpoint_answers_every_credential_as_the_table_says(
    client: httpx2.AsyncClient, owner: Connection
) -> None:
    credentials = await tokens_of(owner) | await sessions_of(owner, client)
    wrong = []
    for row in TABLE:
        for name, credential in credentials.items():
            awaited = expected(row, name, credential)
            found, text = await call(client, *row, credential)
            if found != awaited:
                wrong.append(f"{row}, {name}: {found}, not {awaited}")
            assert ADMIN_TOKEN not in text, (row, name)
            assert SECRET not in text, (row, name)
    assert wrong == []


async def test_head_tells_nobody_more_than_get(
    client: httpx2.AsyncClient, owner: Connection
) -> None:
    credentials = await tokens_of(owner) | await sessions_of(owner, client)
    for method, path in TABLE:
        for name in ("nothing", "revoked", "reader", "administrator", "a session"):
            if method == "GET":
                (status, _), text = await call(client, "HEAD", path, credentials[name])
                assert (status, text) == (expected(("GET", path), name, credentials[name])[0], "")
