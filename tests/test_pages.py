"""`GET /events` and `GET /events/{position}`: the log for readers that poll."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, cast

import httpx2
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from starlette.types import Message, Receive, Scope, Send

from service import pages
from service.answer import Paced
from service.auth import Tokens
from service.event import parse_event
from service.eventlog import EventLog, Page
from service.filter import Filter
from service.pages import Pages
from tests.bridge import body, new_event
from tests.logkeeping import (
    MARCH,
    USER_2,
    Owner,
    append,
    append_four_kinds,
    append_many,
    id_of,
    prune,
    replace_log,
)
from tests.raw import wire
from tests.running import ADMIN_TOKEN, STREAM_TOKEN, WITHIN_S, Running, eventually

Start = Callable[..., Awaitable[Running]]
BATCH = "application/cloudevents-batch+json"
NDJSON = "application/x-ndjson"
SIZE = 12_000_000  # more than the kernel keeps for who does not read
PRETTY = b'{\r\n  "type": "item.created",\n  "content": {\n\t"balance": 10.10\r  }\n}'


@pytest.fixture
async def client(service: Running) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=service.url, headers=service.headers) as opened:
        yield opened


@pytest.fixture
def long_wait(monkeypatch: pytest.MonkeyPatch) -> str:
    """What a long poll asks for whose end by itself would come too soon on a busy machine."""
    monkeypatch.setattr(pages, "MAX_WAIT_S", 3600)
    return "wait=3600"


def found(answer: httpx2.Response) -> list[int]:
    """Return the positions on a page."""
    assert answer.status_code == 200, answer.text
    return [int(event["position"]) for event in answer.json()["events"]]


def refused(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def read_cloudevent(text: bytes | str) -> CloudEvent:
    """Read it as a user of PyPI's cloudevents does, who gets it as a structured message."""
    message = HTTPMessage(
        {"content-type": "application/cloudevents+json"},
        text.encode() if isinstance(text, str) else text,
    )
    event = from_http_event(message, JSONFormat())
    assert isinstance(event, CloudEvent)
    return event


async def test_a_page_has_the_events_oldest_first_and_says_where_to_go_on(
    service: Running, client: httpx2.AsyncClient
) -> None:
    await append_many(service, 5)
    answer = await client.get("/events", params={"limit": 2})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert found(answer) == [1, 2]
    assert answer.json()["last_id"] == await id_of(service, 2) == answer.headers["causeway-last-id"]


async def test_last_id_leads_through_the_whole_log_once(
    service: Running, client: httpx2.AsyncClient
) -> None:
    await append_many(service, 25)
    seen: list[int] = []
    params: dict[str, str | int] = {"limit": 7}
    while page := found(answer := await client.get("/events", params=params)):
        seen += page
        params["after"] = answer.json()["last_id"]
    assert seen == list(range(1, 26))
    await append(service)
    assert found(await client.get("/events", params=params)) == [26]


async def test_an_empty_log_answers_an_empty_page_that_can_be_continued(
    service: Running, client: httpx2.AsyncClient
) -> None:
    answer = await client.get("/events")
    assert found(answer) == []
    await append(service)
    after = answer.json()["last_id"]
    assert found(await client.get("/events", params={"after": after})) == [1]


async def test_last_id_moves_past_what_did_not_match(
    service: Running, client: httpx2.AsyncClient
) -> None:
    await append_many(service, 5)
    answer = await client.get("/events", params={"type": "user.deleted"})
    assert found(answer) == []
    assert answer.json()["last_id"] == await id_of(service, 5)


async def test_ndjson_has_one_line_for_each_event_even_if_its_body_has_many(
    service: Running, client: httpx2.AsyncClient
) -> None:
    await append(service, new_event(), parse_event(PRETTY, "default", MARCH), new_event())
    answer = await client.get("/events", headers={"accept": NDJSON})
    assert answer.headers["content-type"].startswith(NDJSON)
    assert answer.headers["causeway-last-id"] == await id_of(service, 3)
    assert b"\r" not in answer.content
    lines = answer.content.removesuffix(b"\n").split(b"\n")
    assert [json.loads(line)["position"] for line in lines] == ["1", "2", "3"]
    assert b'"balance": 10.10' in lines[1]


async def test_cloudevents_own_library_reads_each_spelling(
    service: Running, client: httpx2.AsyncClient
) -> None:
    payload = body("item.refreshed", status_code=0)
    await append(service, parse_event(payload, "default", MARCH), new_event("TEST_EVENT"))
    ids = [await id_of(service, 1), await id_of(service, 2)]
    listed = (await client.get("/events")).json()["events"]
    batch = (await client.get("/events", headers={"accept": BATCH})).json()
    lines = (await client.get("/events", headers={"accept": NDJSON})).text.splitlines()
    alone = [(await client.get(f"/events/{id_}")).content for id_ in ids]
    for spelled in ([json.dumps(e) for e in listed], [json.dumps(e) for e in batch], lines, alone):
        events = [read_cloudevent(text) for text in spelled]
        assert [event.get_id() for event in events] == ids
        first = events[0]
        assert first.get_type() == "item.refreshed"
        assert first.get_source() == "/bridge/default"
        assert first.get_data() == json.loads(payload)
        assert first.get_extension("position") == "1"
        assert first.get_extension("receivedtime") == "2026-03-01T00:00:00.000000Z"


async def test_a_batch_is_a_bare_array(service: Running, client: httpx2.AsyncClient) -> None:
    await append_many(service, 2)
    answer = await client.get("/events", headers={"accept": BATCH})
    assert answer.headers["content-type"] == BATCH
    assert [event["position"] for event in answer.json()] == ["1", "2"]


@pytest.mark.parametrize(
    ("query", "positions"),
    [
        ("type=item.*", [1, 2, 3]),
        ("type=item.account.updated", [2, 3]),
        ("item_id=2", [2, 4]),
        ("account_id=20&account_id=30", [2, 3]),
        (f"user_uuid={USER_2}", [2]),
        ("source=shop", [4]),
        ("source=default&type=transfer.*", [5]),
        ("after=3", [4, 5]),
        ("from=start&limit=1", [1]),
        ("since=1970-01-01&type=item.created", [1]),
        ("since=2199-01-01", []),
    ],
)
async def test_pages_filter_and_begin_as_the_stream_does(
    service: Running, client: httpx2.AsyncClient, query: str, positions: list[int]
) -> None:
    await append_four_kinds(service)
    assert found(await client.get(f"/events?{query}")) == positions


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("limit=-1", "limit"),
        ("limit=1&limit=2", "limit"),
        ("limit=10000000001", "limit"),
        ("limit=0000000019999", "limit"),
        ("wait=0000000009999", "wait"),
        (f"wait={'0' * 5000}", "wait"),
        ("wait=61", "wait"),
        ("wait=1.5", "wait"),
        ("control=1", "control"),
        ("nonsense=1", "nonsense"),
        ("after=x", "after"),
    ],
)
async def test_a_bad_parameter_gets_400_naming_it(
    client: httpx2.AsyncClient, query: str, named: str
) -> None:
    answer = await client.get(f"/events?{query}")
    assert refused(answer) == (400, "bad_request")
    assert named in answer.json()["error"]["message"]


async def test_the_limits_own_bounds_are_good(service: Running, client: httpx2.AsyncClient) -> None:
    await append_many(service, 3)
    assert found(await client.get("/events?limit=1")) == [1]
    assert found(await client.get("/events?limit=1000")) == [1, 2, 3]


async def test_a_long_poll_answers_as_soon_as_a_match_comes(
    service: Running, client: httpx2.AsyncClient, long_wait: str
) -> None:
    await append_many(service, 2)
    waiting = asyncio.create_task(client.get(f"/events?after=2&{long_wait}&type=user.deleted"))
    await eventually(lambda: service.service.window._waiters)
    await append(service)  # wakes it, does not match, and must not end the wait
    done, _ = await asyncio.wait([waiting], timeout=0.5)
    assert not done
    await append(service, new_event("user.deleted"))
    assert found(await asyncio.wait_for(waiting, WITHIN_S)) == [4]


async def test_a_long_poll_is_empty_at_its_deadline(
    service: Running, client: httpx2.AsyncClient
) -> None:
    await append_many(service, 2)
    began = asyncio.get_running_loop().time()
    answer = await client.get("/events?after=2&wait=1")
    assert found(answer) == []
    assert asyncio.get_running_loop().time() - began >= 1.0
    assert answer.json()["last_id"] == await id_of(service, 2)


async def test_a_long_poll_is_not_held_back_where_there_is_something(
    service: Running, client: httpx2.AsyncClient, long_wait: str
) -> None:
    await append_many(service, 2)
    answer = await asyncio.wait_for(client.get(f"/events?after=1&{long_wait}"), WITHIN_S)
    assert found(answer) == [2]


async def test_a_long_poll_for_what_is_rare_leaves_the_database_alone(
    service: Running,
    client: httpx2.AsyncClient,
    long_wait: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await append_many(service, 2)
    reads, read_once = 0, Pages._read_once

    async def counted(self: Pages, *arguments: Any) -> Page:
        nonlocal reads
        page = await read_once(self, *arguments)
        reads += 1  # now: what is appended from here on is not in it
        return page

    monkeypatch.setattr(Pages, "_read_once", counted)
    waiting = asyncio.create_task(client.get(f"/events?after=2&{long_wait}&type=user.deleted"))
    await eventually(lambda: reads == 1)
    for position in range(3, 9):
        await append(service)
        await eventually(lambda at=position: service.service.window.position == at)
    await append(service, new_event("user.deleted"))
    assert found(await asyncio.wait_for(waiting, WITHIN_S)) == [9]
    assert reads == 2


async def test_who_hangs_up_on_a_long_poll_does_not_count_any_more(
    service: Running,
    client: httpx2.AsyncClient,
    long_wait: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pages, "OPEN_MAX", 1)
    async with wire(service.url) as waiting:
        head = f"GET /events?{long_wait} HTTP/1.1\r\nHost: test"
        authorization = f"Authorization: Bearer {STREAM_TOKEN}"
        await waiting.send(f"{head}\r\n{authorization}\r\n\r\n".encode())
        await eventually(lambda: service.service.window._waiters)  # before another is counted
        await until_open(client, is_refused=True)
        admin = {"authorization": f"Bearer {ADMIN_TOKEN}"}  # each token has its own calls
        assert (await client.get("/events", headers=admin)).status_code == 200
    await until_open(client, is_refused=False)


@pytest.mark.parametrize("path", ["/events", "/events/1"])
async def test_a_client_that_does_not_read_is_cut_and_its_page_let_go(
    start: Start, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start(send_timeout_s=0.3)
    await append(service, new_event(pad="x" * SIZE))
    monkeypatch.setattr(pages, "OPEN_MAX", 1)
    is_counted, may_be_cut = asyncio.Event(), asyncio.Event()

    class Lenient(Paced):
        """Gives its client up no sooner than the test allows."""

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def leniently(message: Message) -> None:
                try:
                    await send(message)
                except asyncio.CancelledError:
                    await may_be_cut.wait()
                    raise

            is_counted.set()
            await super().__call__(scope, receive, leniently)

    monkeypatch.setattr(pages, "Paced", Lenient)
    request = f"GET {path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {STREAM_TOKEN}\r\n\r\n"
    async with (
        httpx2.AsyncClient(base_url=service.url, headers=service.headers) as client,
        wire(service.url) as silent,
    ):
        silent.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await silent.send(request.encode())
        await eventually(is_counted.is_set)
        await until_open(client, is_refused=True)
        may_be_cut.set()
        await until_open(client, is_refused=False)
        silent.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await silent.reader.readexactly(SIZE)


async def until_open(client: httpx2.AsyncClient, *, is_refused: bool) -> None:
    """Ask again and again for an empty page until it is refused, or not any more."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            answer = await client.get("/events?type=none")
            if answer.status_code == (429 if is_refused else 200):
                break
            await asyncio.sleep(0.02)
    if is_refused:
        assert refused(answer) == (429, "too_many_pages")
        assert answer.headers["retry-after"]


async def test_pages_refuse_what_the_log_cannot_continue(
    service: Running, client: httpx2.AsyncClient, owner: Owner, start: Start
) -> None:
    await append_many(service, 5)
    answer = await client.get("/events?after=2.00000000")
    assert refused(answer) == (409, "log_diverged")
    answer = await client.get("/events?after=6")
    assert refused(answer) == (409, "position_ahead")
    assert answer.json()["error"]["head_position"] == 5
    await prune(owner, 3)
    fresh = await start()
    answer = await client.get(f"{fresh.url}/events?after=1")
    assert refused(answer) == (410, "position_pruned")
    assert answer.json()["error"]["first_position"] == 4
    assert found(await client.get(f"{fresh.url}/events")) == [4, 5]


async def test_a_long_search_is_answered_with_how_far_it_got(
    service: Running, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.eventlog.SCAN_POSITIONS", 10)
    monkeypatch.setattr("service.pages.SEARCH_S", 0.0)
    await append_many(service, 25)
    await append(service, new_event("user.deleted"))
    pages: list[list[int]] = []
    after = "0"
    while not pages or not pages[-1]:
        answer = await client.get(f"/events?type=user.deleted&after={after}")
        pages.append(found(answer))
        after = answer.json()["last_id"]
    assert pages == [[], [], [26]]


@pytest.mark.parametrize("query", ["", "&type=user.deleted"])
async def test_a_long_poll_leads_nobody_over_into_another_history(
    service: Running, client: httpx2.AsyncClient, owner: Owner, long_wait: str, query: str
) -> None:
    await append_many(service, 5)
    own_id = await id_of(service, 5)
    waiting = asyncio.create_task(client.get(f"/events?after={own_id}&{long_wait}{query}"))
    await eventually(lambda: service.service.window._waiters)
    events = [*(new_event() for _ in range(4)), new_event("user.deleted")]
    async with owner.transaction():  # between the two the log would end before the reader's place
        await replace_log(owner, 2)
        await EventLog(owner).append(events, timeout_s=WITHIN_S)
    assert refused(await waiting) == (409, "log_diverged")


async def test_a_long_poll_passes_nothing_in_a_window_of_another_history(service: Running) -> None:
    await append_many(service, 7)
    eventlog, window = service.service.eventlog, service.service.window
    await eventually(lambda: window.position == 7)
    tokens = cast("Tokens", None)  # nobody is let in here
    endpoint = Pages(eventlog, window, tokens, send_timeout_s=1.0)
    link = await eventlog.check(5, None)
    for seen, place in ((bytes(32), (5, bytes(32))), (link, (7, window.link))):
        bell = pages._Bell(asyncio.Future, 0.0)
        assert await endpoint._pass(5, seen, lambda _: False, bell) == place


# One event.


async def test_one_event_is_its_exact_bytes_on_request(
    service: Running, client: httpx2.AsyncClient
) -> None:
    await append(service, parse_event(PRETTY, "default", datetime.now(UTC)))
    own_id = await id_of(service, 1)
    for name in ("1", own_id):
        answer = await client.get(f"/events/{name}", headers={"accept": "application/octet-stream"})
        assert answer.content == PRETTY
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["causeway-id"] == own_id


async def test_one_event_is_a_cloudevent_by_default(
    service: Running, client: httpx2.AsyncClient
) -> None:
    await append_many(service, 2)
    answer = await client.get("/events/2")
    assert answer.headers["content-type"] == "application/cloudevents+json"
    assert answer.json()["id"] == await id_of(service, 2)


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("4", 404, "not_found"),
        ("0", 404, "not_found"),
        ("2.00000000", 409, "log_diverged"),
        ("two", 400, "bad_request"),
        ("2?limit=1", 400, "bad_request"),
    ],
)
async def test_one_event_that_is_not_there_says_why(
    service: Running, client: httpx2.AsyncClient, name: str, status: int, code: str
) -> None:
    await append_many(service, 3)
    assert refused(await client.get(f"/events/{name}")) == (status, code)


@pytest.mark.parametrize("name", ["1", "2"])
async def test_one_event_that_was_pruned_gets_410(
    service: Running, client: httpx2.AsyncClient, owner: Owner, name: str
) -> None:
    await append_many(service, 3)
    await prune(owner, 2)
    answer = await client.get(f"/events/{name}")
    assert refused(answer) == (410, "position_pruned")
    assert answer.json()["error"]["first_position"] == 3


# Who, and how spelled.


@pytest.mark.parametrize("path", ["/events", "/events/1"])
async def test_pages_need_a_token_and_take_none_from_the_query(service: Running, path: str) -> None:
    await append(service)
    async with httpx2.AsyncClient() as stranger:
        assert refused(await stranger.get(service.url + path)) == (401, "unauthenticated")
        token = {"authorization": "Bearer not-a-token-0123456789"}
        answer = await stranger.get(service.url + path, headers=token)
        assert refused(answer) == (401, "unauthenticated")
        answer = await stranger.get(f"{service.url}{path}?access_token=stream-token-0123456789")
        assert answer.status_code in (400, 401)


async def test_a_limited_token_gets_404_for_an_event_outside_its_limits(
    service: Running, client: httpx2.AsyncClient, owner: Owner
) -> None:
    await append_four_kinds(service)
    token = await Tokens(service.settings, owner).create(
        "limited", "stream", Filter(sources=frozenset({"shop"}))
    )
    mine = {"authorization": f"Bearer {token}"}
    assert found(await client.get("/events", headers=mine)) == [4]
    assert found(await client.get("/events?source=default", headers=mine)) == []
    assert (await client.get("/events/4", headers=mine)).status_code == 200
    for accept in ("application/octet-stream", "*/*"):
        answer = await client.get("/events/1", headers=mine | {"accept": accept})
        assert refused(answer) == (404, "not_found")


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/html, application/json;q=0.9", "application/json"),
        (f"application/json;q=0.1, {NDJSON}", NDJSON),
        (BATCH.upper(), BATCH),
    ],
)
async def test_accept_chooses_the_spelling(
    client: httpx2.AsyncClient, accept: str, media_type: str
) -> None:
    answer = await client.get("/events", headers={"accept": accept})
    assert answer.headers["content-type"].startswith(media_type)


@pytest.mark.parametrize("path", ["/events", "/events/1"])
@pytest.mark.parametrize("accept", ["text/html", "image/*", "application/json;q=0"])
async def test_an_accept_that_cannot_be_met_gets_406_and_what_there_is(
    service: Running, client: httpx2.AsyncClient, path: str, accept: str
) -> None:
    await append(service)
    answer = await client.get(path, headers={"accept": accept})
    assert refused(answer) == (406, "not_acceptable")
    assert "application/json" in answer.json()["error"]["message"]


async def test_a_page_of_large_events_is_cut_and_continues(
    service: Running, client: httpx2.AsyncClient
) -> None:
    for _ in range(6):
        await append(service, *(new_event(pad="x" * 200_000) for _ in range(5)))
    seen: list[int] = []
    params: dict[str, Any] = {}
    while page := found(answer := await client.get("/events", params=params)):
        assert len(answer.content) < 1.5 * 1024 * 1024
        seen += page
        params["after"] = answer.json()["last_id"]
    assert seen == list(range(1, 31))
