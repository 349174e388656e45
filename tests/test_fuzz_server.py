"""Whatever is asked of a real service, it answers in a documented form, at once, and forgets it.

Every operation of the API and every path of the dashboard, with the right credentials, so that what
is sent gets far; and bytes that are hardly HTTP, on raw sockets.
"""

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.embedded import EmbeddedPostgres
from service.signature import HEADER, sign
from tests.dashboard import OURS, csrf_of, logged_in, site
from tests.described import operations
from tests.fuzz.targets import SEEDS
from tests.running import ADMIN_TOKEN, SECRET, STREAM_TOKEN, Process
from tests.test_dashboard_session import UNSAFE
from tests.test_fuzz_pure import bent

ANSWER_S = 60.0
GROWTH_MAX_BYTES = 60 * 1024 * 1024
ONE_SERVICE = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=150,
)
PAGES = (
    *("/dashboard", "/dashboard/login", "/dashboard/events", "/dashboard/events/rows"),
    *("/dashboard/events/{x}", "/dashboard/items", "/dashboard/consumers", "/dashboard/webhooks"),
    *("/dashboard/webhooks/{x}", "/dashboard/webhooks/{x}/deliveries", "/dashboard/tokens"),
    *("/dashboard/webhooks/{x}/deliveries/{x}", "/dashboard/webhooks/{x}/replays"),
    *("/dashboard/static/{x}", "/dashboard/{x}", "/dashboard/log", "/dashboard/sources"),
)
WORDS = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.sampled_from(["1", "billing", "0/1", "start", "item.*", "1.00000000", "../..", "\0", "%"]),
    st.sampled_from(["2026-11-23T09:00:00Z", "0001-01-01", "9" * 5000, "-1", "1e999", "NaN", "٣"]),
)
QUERY_NAMES = st.sampled_from(
    [
        *(
            "after",
            "from",
            "since",
            "type",
            "item_id",
            "account_id",
            "user_uuid",
            "source",
            "limit",
        ),
        *("state", "before", "until", "range", "at", "next", "format", "shard", "consumer", "x"),
    ]
)
QUERIES = st.lists(st.tuples(QUERY_NAMES, WORDS), max_size=4)
BODIES = bent([*SEEDS["bodies"], *SEEDS["event"], b"", b"{}"])
HEADER_NAMES = st.sampled_from(
    [
        *("accept", "last-event-id", "x-request-id", "x-forwarded-for", "x-forwarded-proto"),
        *("content-type", "content-encoding", "cookie", "origin", "sec-fetch-site", "range"),
        *("hx-request", "host", "if-none-match", "bridgeapi-signature", "referer"),
    ]
)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"))
HEADERS = st.dictionaries(HEADER_NAMES, VALUES.map(lambda text: text.strip()), max_size=3)
OPERATIONS = sorted({(path, method) for path, method, _ in operations()})


@pytest.fixture(scope="module")
def process(postgres: EmbeddedPostgres) -> Iterator[Process]:
    """A service with some events; when all is done it has neither failed nor grown."""
    patient = {
        f"CAUSEWAY_{name}_TIMEOUT_S": str(2 * ANSWER_S) for name in ("APPEND", "HEAD", "BODY")
    }
    with site(postgres, CAUSEWAY_TRUSTED_PROXIES="127.0.0.1", **patient) as running:
        with httpx2.Client(base_url=running.url, headers=running.headers) as client:
            for data in SEEDS["event"]:
                signed = {HEADER: sign(data, (SECRET,))}
                assert client.post("/webhooks/bridge", content=data, headers=signed).is_success
            assert client.put("/consumers/billing", json={"start": "start"}).is_success
        before = resident_bytes(running)
        yield running
        assert '"level":"error"' not in running.output()
        assert resident_bytes(running) - before < GROWTH_MAX_BYTES


def resident_bytes(process: Process) -> int:
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def check(response: httpx2.Response) -> None:
    """An answer is no error of ours; one that refuses has the form of errors, or is a page."""
    if response.url.path == "/readyz" and response.status_code == 503:
        return  # a machine that stalls may be just that: not ready
    assert response.status_code < 500, response.text
    kind = response.headers.get("content-type", "")
    if not response.content:
        return
    if response.status_code >= 400 and kind.startswith("application/json"):
        error = response.json()["error"]
        assert {"code", "message", "request_id"} <= error.keys()
    elif response.status_code >= 400:
        assert kind.startswith("text/html"), response.text


@pytest.fixture
def client(process: Process) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=process.url, timeout=ANSWER_S) as client:
        yield client


def token_of(path: str) -> str:
    return ADMIN_TOKEN if path.startswith("/api") else STREAM_TOKEN


@given(
    operation=st.sampled_from(OPERATIONS),
    words=st.lists(WORDS, min_size=3, max_size=3),
    query=QUERIES,
    headers=HEADERS,
    body=BODIES,
)
@ONE_SERVICE
def test_the_api_answers_anything(
    client: httpx2.Client,
    operation: tuple[str, str],
    words: list[str],
    query: list[tuple[str, str]],
    headers: dict[str, str],
    body: bytes,
) -> None:
    path, method = operation
    method = "HEAD" if path == "/stream" else method  # the stream itself has no end
    signed = {HEADER: sign(body, (SECRET,))} if path.startswith("/webhooks") else {}
    url = re.sub(r"\{\w+\}", lambda _: quote(words.pop(), safe="") or "-", path)
    raw = {
        name.encode(): value.encode("latin-1")
        for name, value in {
            **signed,
            **headers,
            "authorization": f"Bearer {token_of(path)}",
        }.items()
    }
    request = client.build_request(
        method, url, params=tuple(query), headers=list(raw.items()), content=body
    )
    check(client.send(request))


@pytest.fixture
def session(process: Process) -> Iterator[tuple[httpx2.Client, str]]:
    """Somebody who is logged in, and the token of their forms."""
    with logged_in(process) as client:
        yield client, csrf_of(client)


FORMS = st.dictionaries(
    st.sampled_from(
        [
            *("name", "url", "types", "type", "events", "headers", "change_headers", "sources"),
            *("start", "place", "state", "item_ids", "from", "until", "rate", "ordered", "scope"),
            *("application", "expires", "token", "position", "days", "limits", "source", "csrf"),
        ]
    ),
    WORDS | st.sampled_from(["https://example.com/", "all", "place", "X-A: b\nX-C: d", "some"]),
    max_size=8,
)
TYPED = FORMS | st.binary(max_size=60)


@given(
    path=st.sampled_from(sorted({*PAGES, *UNSAFE} - {"/dashboard/logout"})),
    word=WORDS,
    query=QUERIES,
    headers=HEADERS,
    form=TYPED,
)
@example(path="/dashboard/login", word="", query=[], headers={"origin": "http://["}, form={})
@ONE_SERVICE
def test_the_dashboard_answers_anything(
    session: tuple[httpx2.Client, str],
    path: str,
    word: str,
    query: list[tuple[str, str]],
    headers: dict[str, str],
    form: dict[str, str] | bytes,
) -> None:
    client, csrf = session
    url = path.replace("{x}", quote(word, safe="") or "-")
    headers.pop("cookie", None)
    sent = {**OURS, "x-csrf-token": csrf, **headers}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
    if "origin" in headers:
        raw = [pair for pair in raw if pair[0] != b"sec-fetch-site"]
    content = {"content": form} if isinstance(form, bytes) else {"data": form}
    for method in ("POST", "GET"):
        body = content if method == "POST" else {}
        request = client.build_request(method, url, params=tuple(query), headers=raw, **body)
        check(client.send(request))


REQUESTS = bent(
    [
        b"POST /webhooks/bridge HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /webhooks/bridge/default HTTP/1.1\r\nHost: t\r\nBridgeApi-Signature: v1=00\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\nX: y\r\n\r\n",
        b"GET /events?limit=1 HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"PUT /consumers/a HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\n\r\n",
    ]
)


@given(requests=st.lists(REQUESTS, min_size=1, max_size=4), cuts=st.lists(st.integers(1, 200)))
@ONE_SERVICE
def test_hardly_http_is_answered_or_closed(
    process: Process, requests: list[bytes], cuts: list[int]
) -> None:
    data, got = b"".join(requests), b""
    parts = urlsplit(process.url)
    with socket.create_connection((str(parts.hostname), parts.port or 0), ANSWER_S) as connection:
        try:
            for cut in [*cuts[:5], len(data)]:
                connection.sendall(data[:cut])
                data = data[cut:]
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                got += piece
        except OSError:
            pass  # closed by the other end, with something of ours unread
    statuses = re.findall(rb"HTTP/1\.1 (\d{3}) ", got)
    assert not any(status.startswith(b"5") and status != b"501" for status in statuses), got


def test_an_origin_that_is_no_address_is_refused(process: Process) -> None:
    headers = {"origin": "http://["}
    answer = httpx2.post(f"{process.url}/dashboard/login", headers=headers, data={"token": "x"})
    assert answer.status_code == 403
