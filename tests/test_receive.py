"""`POST /webhooks/bridge[/{source}]`: every answer, and what each leaves behind."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.appender import Appender
from service.db import Connection
from service.errors import BodyTooLarge
from service.event import NewEvent
from service.eventlog import Appended
from service.intake import Intake
from service.metrics import Metrics
from service.problems import RequestIds
from service.receive import ReceiveWebhook
from service.signature import HEADER, sign
from service.sources import Sources
from tests.bridge import TEST_EVENT, body, post
from tests.logkeeping import impatient
from tests.raw import WEBHOOKS, Gate, webhook_call, webhook_head, wire
from tests.running import (
    PREVIOUS_SECRET,
    SECRET,
    Database,
    Running,
    eventually,
    make_settings,
    running_service,
)

Start = Callable[..., Awaitable[Running]]
BRIDGE_IP = "63.32.31.5"
LOCK = "pg_advisory_lock(hashtext('causeway'), hashtext('append_events'))"


def sample(running: Running, name: str, **labels: str) -> float:
    """Return the value of one of the service's metrics; 0 if it was never counted."""
    return running.service.metrics.registry.get_sample_value(f"causeway_{name}", labels) or 0.0


def received(running: Running, outcome: str, source: str = "default") -> float:
    """Return how many calls were counted with `outcome`."""
    return sample(running, "webhooks_received_total", source=source, outcome=outcome)


def matched(running: Running, secret: str) -> float:
    """Return how many signatures of the default source were made with `secret`."""
    return sample(running, "signature_matches_total", source="default", secret=secret)


def error(answer: httpx2.Response) -> dict[str, str]:
    """Return the error of an answer in Causeway's form."""
    inner: dict[str, str] = answer.json()["error"]
    return inner


@asynccontextmanager
async def append_lock(database: Database) -> AsyncIterator[None]:
    """Hold the log's append lock in a foreign session, as another replica would."""
    connection = await asyncpg.connect(database.owner_dsn)
    try:
        await connection.execute(f"SELECT {LOCK}")
        yield
    finally:
        await connection.close()


# 200


async def test_a_new_event_gets_an_empty_200_with_its_position(service: Running) -> None:
    first = await post(service.url, body())
    second = await post(service.url, body())
    for answer, position in ((first, "1"), (second, "2")):
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["causeway-position"] == position
        assert "causeway-duplicate" not in answer.headers
    assert received(service, "accepted") == 2


async def test_the_same_bytes_again_get_200_and_no_new_position(service: Running) -> None:
    payload = body()
    await post(service.url, payload)
    again = await post(service.url, payload)
    assert (again.status_code, again.content) == (200, b"")
    assert again.headers["causeway-position"] == "1"
    assert again.headers["causeway-duplicate"] == "true"
    assert (await post(service.url, body())).headers["causeway-position"] == "2"
    assert received(service, "duplicate") == 1


async def test_the_same_bytes_to_another_source_are_another_event(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "other").write_text("whsec-other")
    running = await start(sources_dir=tmp_path)
    payload = body()
    await post(running.url, payload)
    other = await post(running.url, payload, source="other", secrets=("whsec-other",))
    assert other.headers["causeway-position"] == "2"
    assert "causeway-duplicate" not in other.headers
    assert received(running, "accepted", "other") == 1


async def test_a_test_event_is_new_each_time(service: Running) -> None:
    answers = [await post(service.url, TEST_EVENT) for _ in range(3)]
    assert [answer.headers["causeway-position"] for answer in answers] == ["1", "2", "3"]
    assert received(service, "duplicate") == 0


STRANGE_BODIES = [
    b'{"type":"bank.of.tomorrow","content":{"amount":1.10000000000000000001,"x":[{"y":null}]}}',
    b'\r\n{ "timestamp" : 1e3,\t"type" : "item.refreshed",\n "content":{"item_id":"no number"}}\n',
    '{"content":{"name":"Crédit été \\u00e9 🏦"},"type":"item.created"}'.encode(),
    b'{"type":"a","type":"item.deleted","content":[1,2,3]}',
    b'{"type":"item.account.updated","content":{"item_id":9223372036854775807,"balance":-0.10}}',
    b'{"type":"item.account.updated","content":{"item_id":9223372036854775808}}',
    b'{"type":"item.created","content":null,"timestamp":-1,"extra":true}',
    b'{"type":"item.created","timestamp":1e300}',
]


async def test_unknown_types_and_fields_are_stored_byte_for_byte(
    service: Running, owner: Connection
) -> None:
    headers = service.headers | {"accept": "application/octet-stream"}
    async with httpx2.AsyncClient(headers=headers) as client:
        for position, payload in enumerate(STRANGE_BODIES, 1):
            assert (await post(service.url, payload, client=client)).status_code == 200
            assert (await client.get(f"{service.url}/events/{position}")).content == payload
    rows = await owner.fetch("SELECT body FROM causeway.event ORDER BY position")
    assert [row["body"] for row in rows] == STRANGE_BODIES


async def test_bridges_own_delay_is_measured(service: Running) -> None:
    await post(service.url, body())  # of February 2021
    assert sample(service, "source_delay_seconds_count") == 1
    assert sample(service, "source_delay_seconds_sum") > 86400 * 365
    # The documented test event is always of January 2021: sent now, it would say years.
    await post(service.url, TEST_EVENT)
    assert sample(service, "source_delay_seconds_count") == 1


# 400


NO_EVENTS = [
    b"",
    b"not json",
    b"[]",
    b'"item.created"',
    b"{}",
    b'{"type":null}',
    b'{"type":""}',
    b'{"type":17}',
    b'{"type":"a\\nb"}',
    b'{"type":"a\\u0000b"}',
    b'{"type":"' + b"x" * 129 + b'"}',
    b'{"type":"item.created"',
    b'{"type":"item.created","x":NaN}',
    b'\xff{"type":"item.created"}',
    b"[" * 50_000,
]


async def test_a_signed_body_that_is_no_event_gets_400_and_is_counted(
    service: Running, owner: Connection
) -> None:
    async with httpx2.AsyncClient() as client:
        for payload in NO_EVENTS:
            answer = await post(service.url, payload, client=client)
            assert (answer.status_code, error(answer)["code"]) == (400, "not_an_event"), payload
    assert received(service, "not_an_event") == len(NO_EVENTS)
    assert await owner.fetchval("SELECT count(*) FROM causeway.event") == 0


async def test_an_unsigned_body_is_not_even_parsed(service: Running) -> None:
    answer = await post(service.url, b"not json", secrets=("wrong",))
    assert (answer.status_code, error(answer)["code"]) == (401, "bad_signature")


# 401 and which secret it was


async def test_any_part_may_match_any_secret_and_the_metric_says_which(service: Running) -> None:
    counts = {"current": 0, "previous": 0}
    for secrets, name in (
        ((SECRET,), "current"),
        ((PREVIOUS_SECRET,), "previous"),
        ((SECRET, PREVIOUS_SECRET), "current"),
        ((PREVIOUS_SECRET, SECRET), "current"),
        (("stranger", PREVIOUS_SECRET), "previous"),
        (("stranger",), None),
        ((SECRET + " ",), None),
    ):
        answer = await post(service.url, body(), secrets=secrets)
        assert answer.status_code == (200 if name else 401)
        if name:
            counts[name] += 1
        assert {each: matched(service, each) for each in counts} == counts
    assert received(service, "bad_signature") == 2


UNUSABLE = [None, "", "v1=", "v0={good}", "v2={good}", "{good}", "v1={good}0", "v1 ={good}"]


async def test_a_missing_or_unusable_signature_gets_401_and_leaves_nothing(
    service: Running, owner: Connection
) -> None:
    payload = body()
    good = sign(payload, [SECRET]).removeprefix("v1=")
    for header in UNUSABLE:
        headers = {} if header is None else {HEADER: header.format(good=good)}
        async with httpx2.AsyncClient() as client:
            answer = await client.post(service.url + WEBHOOKS, content=payload, headers=headers)
        assert (answer.status_code, error(answer)["code"]) == (401, "bad_signature"), header
    assert received(service, "bad_signature") == len(UNUSABLE)
    assert await owner.fetchval("SELECT count(*) FROM causeway.event") == 0


async def test_a_signature_split_over_two_headers_counts(service: Running) -> None:
    payload = body()
    more = f"{HEADER}: {sign(payload, [SECRET])}\r\n"
    async with wire(service.url) as it:
        await it.send(webhook_head(len(payload), sign(payload, ["old"]), more=more) + payload)
        assert (await it.answer()).status == 200


# 403


FORWARDED = {
    "": [([], 403), ([BRIDGE_IP], 403)],  # spoofed: our peer is no proxy of ours
    "10.0.0.0/8": [([BRIDGE_IP], 403)],
    "127.0.0.1": [
        ([], 403),
        ([BRIDGE_IP], 200),
        (["6.6.6.6"], 403),
        ([f"6.6.6.6, {BRIDGE_IP}"], 200),
        ([f"{BRIDGE_IP}, 6.6.6.6"], 403),
        ([BRIDGE_IP, "6.6.6.6"], 403),
        ([f"{BRIDGE_IP}, 10.1.2.3"], 403),
        ([f"{BRIDGE_IP}, nonsense"], 403),
        ([f"{BRIDGE_IP},"], 403),
    ],
    "127.0.0.1,10.0.0.0/8": [([BRIDGE_IP, "10.1.2.3"], 200), (["10.1.2.3"], 403)],
}


@pytest.mark.parametrize("proxies", FORWARDED)
async def test_the_allow_list_believes_only_trusted_proxies(start: Start, proxies: str) -> None:
    running = await start(allowed_ips=BRIDGE_IP, trusted_proxies=proxies)
    for forwarded, status in FORWARDED[proxies]:
        payload = body()
        more = "".join(f"X-Forwarded-For: {it}\r\n" for it in forwarded)
        async with wire(running.url) as it:
            head = webhook_head(len(payload), sign(payload, [SECRET]), more=more)
            await it.send(head + payload)
            assert (await it.answer()).status == status, forwarded
    refused = [status for _, status in FORWARDED[proxies] if status == 403]
    assert received(running, "address_not_allowed") == len(refused)


async def test_the_peer_itself_may_be_allowed(start: Start) -> None:
    running = await start(allowed_ips=f"{BRIDGE_IP},127.0.0.0/8")
    assert (await post(running.url, body())).status_code == 200


# 404 and 405


async def test_an_unknown_source_gets_404_and_no_label_of_its_own(service: Running) -> None:
    answer = await post(service.url, body(), source="made-up")
    assert (answer.status_code, error(answer)["code"]) == (404, "unknown_source")
    assert received(service, "unknown_source", "-") == 1
    assert received(service, "unknown_source", "made-up") == 0


async def test_another_method_gets_405_and_learns_which_one_it_is(service: Running) -> None:
    async with httpx2.AsyncClient() as client:
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"):
            for path in (WEBHOOKS, f"{WEBHOOKS}/default"):
                answer = await client.request(method, service.url + path)
                assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
                if method != "HEAD":
                    assert error(answer)["code"] == "method_not_allowed"


# 413


def receiver(max_bytes: int) -> tuple[ReceiveWebhook, Appender]:
    """Return the endpoint alone; nothing commits what it takes."""
    settings, metrics = make_settings(body_max_bytes=max_bytes), Metrics()

    async def commit(_events: Sequence[NewEvent]) -> list[Appended]:
        raise AssertionError("nothing may be committed here")

    appender = Appender(commit, metrics, max_events=1, max_bytes=2**20, batch_events=1)
    sources = Sources(settings)
    intake = Intake(appender, sources, metrics, RequestIds())
    return ReceiveWebhook(settings, sources, appender, intake, metrics), appender


async def test_no_more_than_the_cap_and_one_chunk_is_ever_taken() -> None:
    endpoint, _ = receiver(10_000)
    taken = 0

    async def receive() -> dict[str, object]:
        nonlocal taken
        taken += 3000
        return {"type": "http.request", "body": b"x" * 3000, "more_body": True}

    async def send(message: object) -> None:
        raise AssertionError(f"the answer is the caller's: {message}")

    signature = [(b"bridgeapi-signature", b"v1=00")]
    scope = {"type": "http", "path_params": {}, "headers": signature, "client": ("127.0.0.1", 1)}
    with pytest.raises(BodyTooLarge):
        await endpoint(scope, receive, send)
    assert taken == 12_000  # the fourth chunk passed the cap; a fifth was never asked for


async def test_a_body_of_exactly_the_cap_is_good_and_one_byte_more_is_not(start: Start) -> None:
    running = await start(body_max_bytes=2000)
    head, tail = b'{"type":"item.created","x":"', b'"}'
    full = head + b"x" * (2000 - len(head) - len(tail)) + tail
    assert (await post(running.url, full)).status_code == 200
    answer = await post(running.url, full + b" ")
    assert (answer.status_code, error(answer)["code"]) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"
    assert received(running, "body_too_large") == 1


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_an_endless_body_is_cut_while_it_is_read(start: Start, is_chunked: bool) -> None:
    running = await start(body_max_bytes=4096)
    announced = 1024**3
    chunk = b"x" * 65536
    piece = b"%x\r\n%b\r\n" % (len(chunk), chunk) if is_chunked else chunk
    sent = 0
    async with wire(running.url) as it:
        await it.send(webhook_head(None if is_chunked else announced, "v1=00"))
        with pytest.raises(ConnectionError):
            while sent < announced:
                await it.send(piece)
                sent += len(piece)
        assert sent < announced / 10  # what the kernel's buffers took, not what we would have sent
    assert received(running, "body_too_large") == 1


async def test_a_caller_that_reads_gets_its_413(start: Start) -> None:
    running = await start(body_max_bytes=1024)
    async with wire(running.url) as it:
        await it.send(webhook_head(10**9, "v1=00") + b"x" * 2000)
        answer = await it.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert await it.is_closed()


# 408 and hang-ups


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_trickled_body_gets_408_and_the_connection_is_closed(
    start: Start, is_chunked: bool
) -> None:
    running = await start(body_timeout_s=0.3)

    async def trickle() -> None:
        while True:
            await it.send(b"1\r\nx\r\n" if is_chunked else b"x")
            await asyncio.sleep(0.02)

    async with wire(running.url) as it:
        await it.send(webhook_head(None if is_chunked else 10_000, "v1=00"))
        sending = asyncio.create_task(trickle())
        answer = await it.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert json.loads(answer.body)["error"]["code"] == "body_timeout"
        assert await it.is_closed()
        sending.cancel()
        await asyncio.wait([sending])
        if not sending.cancelled():
            assert isinstance(sending.exception(), ConnectionError)
    assert received(running, "body_timeout") == 1


async def test_a_hang_up_in_the_body_is_counted_and_harms_nobody(
    service: Running, owner: Connection
) -> None:
    payload = body()
    async with wire(service.url) as it:
        await it.send(webhook_call(payload)[:-1])
    await eventually(lambda: received(service, "hung_up") == 1)
    assert await owner.fetchval("SELECT count(*) FROM causeway.event") == 0
    assert (await post(service.url, payload)).headers["causeway-position"] == "1"


async def test_a_hang_up_after_the_body_does_not_stop_the_commit(
    service: Running, database: Database
) -> None:
    payload = body()
    async with append_lock(database):
        async with wire(service.url) as it:
            await it.send(webhook_call(payload))
            await eventually(lambda: matched(service, "current") == 1)
            it.writer.transport.abort()
        await eventually(lambda: not service.server.server_state.connections)
        assert received(service, "accepted") == 0
    await eventually(lambda: received(service, "accepted") == 1)
    again = await post(service.url, payload)
    assert again.headers["causeway-duplicate"] == "true"


# 503


async def test_a_full_queue_gets_503_and_the_queued_are_committed(
    start: Start, database: Database
) -> None:
    running = await start(append_queue_events=1, append_batch_events=1)
    in_flight, queued, refused = body(), body(), body()
    async with append_lock(database):
        first = asyncio.create_task(post(running.url, in_flight))
        await eventually(lambda: sample(running, "append_batch_events_count") == 1)
        second = asyncio.create_task(post(running.url, queued))
        await eventually(lambda: sample(running, "append_queue_events") == 1)
        answer = await post(running.url, refused)
        assert (answer.status_code, error(answer)["code"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) > 0
    assert [(await it).headers["causeway-position"] for it in (first, second)] == ["1", "2"]
    assert (await post(running.url, refused)).headers["causeway-position"] == "3"
    assert received(running, "overloaded") == 1


async def test_a_queue_full_of_bytes_gets_503(start: Start, database: Database) -> None:
    running = await start(append_queue_bytes=1024 * 1024, body_max_bytes=1024 * 1024)
    big = "x" * 700_000
    async with append_lock(database):
        first = asyncio.create_task(post(running.url, body(text=big)))
        await eventually(lambda: sample(running, "append_batch_events_count") == 1)
        second = asyncio.create_task(post(running.url, body(text=big)))
        await eventually(lambda: sample(running, "append_queue_events") == 1)
        answer = await post(running.url, body(text=big))
        assert (answer.status_code, error(answer)["code"]) == (503, "overloaded")
    assert [(await it).status_code for it in (first, second)] == [200, 200]


async def test_a_commit_that_takes_too_long_gets_503_and_a_retry_finds_its_place(
    start: Start, database: Database
) -> None:
    running = await start()
    payload = body()
    async with append_lock(database):
        with impatient(running):
            answer = await post(running.url, payload)
    assert (answer.status_code, error(answer)["code"]) == (503, "log_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert received(running, "log_unavailable") == 1
    assert (await post(running.url, payload)).headers["causeway-position"] == "1"


async def test_without_postgres_it_is_503_until_postgres_is_back(
    database: Database, tmp_path: Path
) -> None:
    gate = Gate(database, tmp_path)
    await gate.open()
    async with running_service(make_settings(), gate.database) as running:
        assert (await post(running.url, body())).headers["causeway-position"] == "1"
        await gate.cut()
        payload = body()
        answer = await post(running.url, payload)
        assert (answer.status_code, error(answer)["code"]) == (503, "log_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        await gate.open()
        again = await post(running.url, payload)
        assert (again.status_code, again.headers["causeway-position"]) == (200, "2")
    await gate.cut()


# Connections


async def test_a_connection_lives_on_after_answers_to_bodies_that_were_read(
    start: Start, database: Database
) -> None:
    running = await start()
    async with wire(running.url) as it:
        for payload, status in ((body(), 200), (b"[]", 400), (body(), 200)):
            await it.send(webhook_call(payload))
            answer = await it.answer()
            assert (answer.status, "connection" in answer.headers) == (status, False)
        async with append_lock(database):
            with impatient(running):
                await it.send(webhook_call(body()))
                assert (await it.answer()).status == 503
        await it.send(webhook_call(body()))
        assert (await it.answer()).status == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (webhook_head(10**6), 401),
        (webhook_head(10**6, "v1=00", path=f"{WEBHOOKS}/nobody"), 404),
    ],
)
async def test_the_connection_closes_where_the_body_was_not_read(
    service: Running, head: bytes, status: int
) -> None:
    async with wire(service.url) as it:
        await it.send(head)
        answer = await it.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert await it.is_closed()


async def test_a_forbidden_address_is_refused_before_its_body(start: Start) -> None:
    running = await start(allowed_ips=BRIDGE_IP)
    async with wire(running.url) as it:
        await it.send(webhook_head(10**6, "v1=00"))
        answer = await it.answer()
        assert (answer.status, answer.headers["connection"]) == (403, "close")
        assert await it.is_closed()


async def test_pipelined_calls_are_answered_in_their_order(service: Running) -> None:
    calls = [webhook_call(body()), webhook_call(b"[]"), webhook_call(body())]
    async with wire(service.url) as it:
        await it.send(b"".join(calls))
        answers = [await it.answer() for _ in calls]
    assert [answer.status for answer in answers] == [200, 400, 200]
    assert [answers[0].headers["causeway-position"], answers[2].headers["causeway-position"]] == [
        "1",
        "2",
    ]


async def test_a_chunked_body_and_expect_100_are_understood(service: Running) -> None:
    payload = body()
    chunks = b"".join(b"%x\r\n%b\r\n" % (1, payload[i : i + 1]) for i in range(len(payload)))
    async with wire(service.url) as it:
        head = webhook_head(None, sign(payload, [SECRET]), more="Expect: 100-continue\r\n")
        await it.send(head)
        assert (await it.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await it.send(chunks + b"0\r\n\r\n")
        assert (await it.answer()).headers["causeway-position"] == "1"


# Anything at all


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ENVELOPES = st.fixed_dictionaries(
    {},
    optional={
        "type": st.text() | JSON,
        "timestamp": JSON,
        "content": JSON
        | st.fixed_dictionaries(
            {},
            optional={"item_id": JSON, "account_id": JSON, "user_uuid": st.uuids().map(str) | JSON},
        ),
    },
).map(lambda it: json.dumps(it, ensure_ascii=False).encode("utf-8", "surrogatepass"))


@hypothesis_settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    payload=st.binary(max_size=200) | ENVELOPES,
    is_signed=st.booleans(),
    junk=st.binary(max_size=80).filter(lambda it: not set(it) & set(b"\r\n\0")),
)
async def test_nothing_that_is_sent_gives_a_5xx(
    service: Running, payload: bytes, is_signed: bool, junk: bytes
) -> None:
    header = sign(payload, [SECRET]).encode() if is_signed else junk
    call = f"POST {WEBHOOKS} HTTP/1.1\r\nContent-Length: {len(payload)}\r\n{HEADER}: ".encode()
    async with wire(service.url) as it:
        await it.send(call + header + b"\r\n\r\n" + payload)
        answer = await it.answer()
    assert answer.status in ((200, 400) if is_signed else (400, 401))
