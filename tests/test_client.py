"""The client: the protocol as tables and properties, and the socket against a real far side."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import event as server
from service import received
from service.answers import BACKOFF_CAP_S, backoff, refusal, retry_after_s
from service.client import (
    Diverged,
    Event,
    Hole,
    Interruption,
    Pruned,
    Refused,
    SubscribeError,
    Unreadable,
    subscribe,
)
from service.payloads import events as payloads
from service.received import Acked, parse_cloudevent
from service.subscription import Subscription
from service.wanted import filters
from tests.running import free_port

DEADLINE_S = 60.0
TOKEN = "a-token-of-the-tests"
RECEIVED = datetime(2026, 11, 23, 17, 4, 5, 123456, tzinfo=UTC)
positions = st.integers(1, 2**40)


def row(position: int, body: bytes | None = None, source: str = "default") -> server.Event:
    """An event as the server has it in its log."""
    body = b'{"content":{"item_id":%d},"type":"item.created"}' % position if body is None else body
    new = server.parse_event(body, source, RECEIVED)
    return server.Event(
        position=position,
        link=hashlib.sha256(b"%d" % position).digest(),
        received_at=new.received_at,
        source=new.source,
        type=new.type,
        topic=new.topic,
        occurred_at=new.occurred_at,
        item_id=new.item_id,
        account_id=new.account_id,
        user_uuid=new.user_uuid,
        digest=new.digest,
        body=new.body,
    )


def block(position: int) -> bytes:
    return server.cloudevent_block(row(position))


def checkpoint(position: int) -> bytes:
    return server.checkpoint_block(position, row(position).link)


def feed(subscription: Subscription[Acked], position: int) -> received.Event[Acked] | None:
    event = row(position)
    return subscription.receive(event.id, event.type, server.cloudevent_json(event).decode())


# --- the protocol, without I/O ---


@pytest.mark.parametrize(
    ("subscription", "parameters", "headers"),
    [
        (Subscription(), {}, {}),
        (Subscription(from_start=True), {"from": "start"}, {}),
        (Subscription(since="1612782588323"), {"since": "1612782588323"}, {}),
        (Subscription(since=RECEIVED), {"since": "2026-11-23T17:04:05.123456+00:00"}, {}),
        (Subscription(after=7), {}, {"Last-Event-ID": "7"}),
        (Subscription(after="7.0123abcd"), {}, {"Last-Event-ID": "7.0123abcd"}),
    ],
)
def test_first_request_says_where_to_begin(
    subscription: Subscription[None], parameters: dict[str, str], headers: dict[str, str]
) -> None:
    ask = subscription.ask()
    assert dict(ask.parameters) == {"format": "cloudevents", **parameters}
    assert ask.headers == headers


@pytest.mark.parametrize("begin", [{"from_start": True}, {"since": "0"}, {}])
def test_after_an_event_only_its_id_says_where_to_go_on(begin: dict[str, object]) -> None:
    subscription = Subscription[None](**begin)  # type: ignore[arg-type]
    feed(subscription, 5)
    ask = subscription.ask()
    assert ask.parameters == (("format", "cloudevents"),)
    assert ask.headers == {"Last-Event-ID": row(5).id}


def test_filters_repeat_their_parameter_for_each_value() -> None:
    wanted = filters(["item.*", "user.deleted"], [1, 2**40], [3], ["u"], ["shop"])
    assert wanted == (
        ("type", "item.*"),
        ("type", "user.deleted"),
        ("item_id", "1"),
        ("item_id", str(2**40)),
        ("account_id", "3"),
        ("user_uuid", "u"),
        ("source", "shop"),
    )


def test_one_string_is_no_list_of_types() -> None:
    with pytest.raises(TypeError, match="sequence of strings"):
        filters("item.created")


@pytest.mark.parametrize(
    "bad",
    [
        {"after": "x"},
        {"after": "1.XYZ"},
        {"after": -1},
        {"after": 1, "from_start": True},
        {"since": "0", "from_start": True},
        {"since": datetime(2026, 1, 1)},
    ],
)
def test_a_beginning_that_cannot_be_is_refused_at_once(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"give only one|is not an event's id|time zone"):
        subscribe("http://127.0.0.1", TOKEN, **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["", "causeway.example", "ftp://causeway.example", "http://"])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        subscribe(url, TOKEN)


@pytest.mark.parametrize("token", ["", "a\r\nb", "é"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match=r"^the token must be printable ASCII text$"):
        subscribe("http://127.0.0.1", token)


@given(positions, st.lists(st.sampled_from(["event", "checkpoint", "control", "retry"])))
def test_dense_positions_pass_whatever_stands_between(first: int, kinds: list[str]) -> None:
    subscription = Subscription[None]()
    position = first - 1
    for kind in kinds:
        before = subscription.last_id
        match kind:
            case "event":
                position += 1
                event = feed(subscription, position)
                assert event is not None
                assert (event.position, event.id) == (position, subscription.last_id)
            case "checkpoint":
                assert subscription.receive(row(position).id, "message", "") is None
                assert subscription.last_id == row(position).id
            case "control":
                assert subscription.receive(before or "", "stream.caught_up", "{}") is None
                assert subscription.last_id == before
            case _:
                assert subscription.receive(before or "", "message", "", retry_ms=900) is None
                assert subscription.last_id == before


@given(positions, st.integers(-5, 5).filter(lambda step: step != 1))
def test_any_step_but_one_is_a_hole_and_does_not_move_the_place(at: int, step: int) -> None:
    subscription = Subscription[None]()
    feed(subscription, at)
    with pytest.raises(Hole) as hole:
        feed(subscription, max(at + step, 0))
    assert hole.value.expected == at + 1
    assert subscription.last_id == row(at).id


def test_an_event_that_does_not_follow_the_id_to_start_after_is_a_hole() -> None:
    with pytest.raises(Hole, match="expected position 8, received 9"):
        feed(Subscription[None](after=7), 9)


@pytest.mark.parametrize("is_filtered_by_token", [False, True])
def test_filtered_positions_may_jump_but_never_go_back(is_filtered_by_token: bool) -> None:
    wanted = () if is_filtered_by_token else filters(types=["item.*"])
    subscription = Subscription[None](filters=wanted)
    subscription.opened(is_filtered=is_filtered_by_token)
    assert feed(subscription, 5) is not None
    assert feed(subscription, 90) is not None
    with pytest.raises(Hole):
        feed(subscription, 90)


def test_a_checkpoint_never_moves_the_place_back() -> None:
    subscription = Subscription[None](after=row(9).id)
    subscription.receive(row(3).id, "message", "")
    assert subscription.last_id == row(9).id


@given(
    st.integers(0, 10_000),
    st.floats(0.01, BACKOFF_CAP_S),
    st.floats(0, 1, exclude_max=True),
)
def test_backoff_doubles_up_to_its_cap_and_is_spread(tries: int, base: float, draw: float) -> None:
    wait = backoff(tries, base, draw)
    whole = min(BACKOFF_CAP_S, base * 2 ** min(tries, 32))
    assert whole / 2 <= wait <= whole
    assert backoff(tries + 1, base, draw) >= wait


@given(st.integers(0, 3600), st.integers(0, 10), st.floats(0, 1, exclude_max=True))
def test_retry_after_is_never_undercut(seconds: int, tries: int, draw: float) -> None:
    subscription = Subscription[None](draw=lambda: draw)
    for _ in range(tries):
        subscription.patience.next_s()
    assert subscription.patience.next_s(retry_after_s(str(seconds))) >= seconds


def test_waits_grow_until_a_connection_is_accepted() -> None:
    subscription = Subscription[None](draw=lambda: 0.999999)
    subscription.receive("", "message", "", retry_ms=2000)
    grown = [round(subscription.patience.next_s()) for _ in range(5)]
    assert grown == [2, 4, 8, 16, 30]
    subscription.opened(is_filtered=False)
    assert round(subscription.patience.next_s()) == 2


@pytest.mark.parametrize("value", [None, "", "-1", "soon", "1.5", "Mon, 23 Nov 2026 17:00:00 GMT"])
def test_retry_after_that_is_no_number_of_seconds_counts_as_none(value: str | None) -> None:
    assert retry_after_s(value) is None


def problem(code: str, message: str = "why") -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "request_id": "r"}}).encode()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "bad_request", Refused),
        (401, "unauthenticated", Refused),
        (403, "forbidden", Refused),
        (404, "not_found", Refused),
        (307, "moved", Refused),
        (409, "log_diverged", Diverged),
        (409, "position_ahead", Diverged),
        (410, "position_pruned", Pruned),
    ],
)
def test_final_answers_become_errors_with_the_servers_reason(
    status: int, code: str, kind: type[SubscribeError]
) -> None:
    error = refusal(status, problem(code))
    assert type(error) is kind
    assert "why" in str(error)
    if isinstance(error, Refused):
        assert (error.status, error.code, error.message) == (status, code, "why")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_answers_that_pass_by_themselves_are_no_errors(status: int) -> None:
    assert refusal(status, b"whatever") is None


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error":1}', b"\xff"])
def test_a_refusal_in_any_other_form_is_still_a_refusal(body: bytes) -> None:
    assert isinstance(refusal(404, body), Refused)


texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=10,
)


@given(values, st.sampled_from([None, 1]), st.booleans(), st.sampled_from(["", " ", "\n"]))
def test_the_body_is_cut_out_byte_for_byte(
    content: object, indent: int | None, is_ascii: bool, space: str
) -> None:
    text = json.dumps(
        {"type": "x", "content": content, "money": 1}, indent=indent, ensure_ascii=is_ascii
    )
    body = (space + text.replace('"money": 1', '"money": 1.10') + space).encode()
    event: received.Event[None] = parse_cloudevent(server.cloudevent_json(row(4, body)).decode())
    assert event.data == body
    assert event.json()["content"] == content
    assert str(event.json()["money"]) == "1.10"


def test_an_event_has_its_place_its_times_and_its_money() -> None:
    body = b'{"content":{"balance":90071992547409931.07},"timestamp":1612782588323,"type":"T"}'
    event: received.Event[None] = parse_cloudevent(
        server.cloudevent_json(row(1042, body, source="shop")).decode()
    )
    assert (event.id, event.position) == (row(1042).id, 1042)
    assert (event.type, event.source) == ("T", "shop")
    assert event.time == datetime(2021, 2, 8, 11, 9, 48, 323000, tzinfo=UTC)
    assert event.received_at == RECEIVED
    assert event.json()["content"]["balance"] == Decimal("90071992547409931.07")
    assert "90071" not in repr(event)


@pytest.mark.parametrize(
    "text", ["x", "[]", "{}", '{"id":"1"}', '{"id":1,"data":{}}', '{"type":"a"}']
)
def test_what_is_no_cloudevent_of_ours_is_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        parse_cloudevent(text)


# --- the socket ---


@dataclass(frozen=True, slots=True)
class Asked:
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True)
class FarSide:
    """A server that gives one scripted answer to each connection; `rest`, or no end, to more."""

    script: list[Answer]
    url: str = ""
    rest: Answer | None = None  # what it gives after its script, over and over
    asked: list[Asked] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        target = urlsplit(head[0].split(" ")[1])
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        self.asked.append(Asked(target.path, parse_qsl(target.query), headers))
        answer = self.script.pop(0) if self.script else self.rest or stream(hold=True)
        try:
            await answer(reader, writer)
        finally:
            writer.close()


@asynccontextmanager
async def far_side(*script: Answer) -> AsyncIterator[FarSide]:
    far = FarSide(list(script))
    listener = await asyncio.start_server(far.serve, "127.0.0.1", 0)
    far.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield far
    finally:
        listener.close()


def stream(*blocks: bytes, hold: bool = False, headers: str = "") -> Answer:
    """Answer with an event stream that ends, or is held open until the client leaves."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{headers}"
        writer.write(start.encode() + b"Connection: close\r\n\r\n" + b"retry: 10\n\n")
        for each in blocks:
            writer.write(each)
            await writer.drain()
        if hold:
            await reader.read()

    return answer


def cut(*blocks: bytes) -> Answer:
    """Answer with a stream whose connection breaks in the middle of a chunk."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b"retry: 10\n\n" + b"".join(blocks)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"%x\r\n" % (len(body) + 100) + body)
        await writer.drain()

    return answer


def refuse(status: int, body: bytes = b"", headers: str = "") -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n{headers}"
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)

    return answer


async def take(far: FarSide, count: int, **options: object) -> list[Event]:
    """Subscribe and return the first `count` events."""
    events: list[Event] = []
    async with asyncio.timeout(DEADLINE_S):
        subscribed = subscribe(far.url, TOKEN, **options)  # type: ignore[arg-type]
        async with aclosing(subscribed):
            async for event in subscribed:
                events.append(event)
                if len(events) == count:
                    break
    return events


def places(events: Sequence[Event]) -> list[int]:
    return [event.position for event in events]


async def test_request_carries_token_filters_and_the_path_behind_a_prefix() -> None:
    async with far_side(stream(block(1))) as far:
        far.url += "/causeway/"
        await take(far, 1, types=["item.*"], item_ids=[2**40], from_start=True)
    (asked,) = far.asked
    assert asked.path == "/causeway/stream"
    assert asked.headers["authorization"] == f"bearer {TOKEN}"
    assert asked.headers["accept"] == "text/event-stream"
    assert asked.query == [
        ("format", "cloudevents"),
        ("type", "item.*"),
        ("item_id", str(2**40)),
        ("from", "start"),
    ]


@pytest.mark.parametrize("end", [stream, cut])
async def test_a_stream_that_ends_or_breaks_is_resumed_after_its_last_event(
    end: Callable[..., Answer],
) -> None:
    interruptions: list[Interruption] = []
    async with far_side(end(block(1), block(2)), stream(block(3))) as far:
        events = await take(far, 3, from_start=True, on_interruption=interruptions.append)
    assert places(events) == [1, 2, 3]
    assert far.asked[1].headers["last-event-id"] == row(2).id
    assert ("from", "start") not in far.asked[1].query
    assert [it.last_id for it in interruptions] == [row(2).id]


async def test_half_an_event_is_not_delivered_and_comes_whole_later() -> None:
    half = block(2).removesuffix(b"\n")  # all its fields, without the empty line that ends it
    async with far_side(stream(block(1), half), stream(block(2))) as far:
        events = await take(far, 2)
    assert places(events) == [1, 2]
    assert far.asked[1].headers["last-event-id"] == row(1).id


async def test_an_id_without_data_moves_the_place_and_is_no_event() -> None:
    async with far_side(
        stream(block(1), checkpoint(40), headers="Causeway-Filtered: true\r\n"), stream(block(41))
    ) as far:
        assert places(await take(far, 2)) == [1, 41]
    assert far.asked[1].headers["last-event-id"] == row(40).id


async def test_control_events_and_comments_are_not_delivered() -> None:
    control = server.control_block("caught_up", position=1)
    async with far_side(stream(block(1), control, b": still here\n\n", block(2))) as far:
        assert places(await take(far, 2)) == [1, 2]


async def test_bodies_of_bridge_arrive_byte_for_byte() -> None:
    supply = payloads(7)
    rows = [row(n, next(supply)[1]) for n in range(1, 301)]
    async with far_side(stream(*map(server.cloudevent_block, rows))) as far:
        events = await take(far, 300)
    assert [event.data for event in events] == [each.body for each in rows]


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_honoured(status: int) -> None:
    waits: list[float] = []
    times: list[float] = []

    def note(interruption: Interruption) -> None:
        waits.append(interruption.wait_s)
        times.append(asyncio.get_running_loop().time())

    async with far_side(refuse(status, headers="Retry-After: 2\r\n"), stream(block(1))) as far:
        assert places(await take(far, 1, on_interruption=note)) == [1]
        waited = asyncio.get_running_loop().time() - times[0]
    assert 2.0 <= waits[0] <= 2.5
    assert waited >= 2.0


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refuse(401, problem("unauthenticated")), Refused),
        (refuse(403, problem("forbidden")), Refused),
        (refuse(404, b"<html>"), Refused),
        (refuse(409, problem("log_diverged")), Diverged),
        (refuse(409, problem("position_ahead")), Diverged),
        (refuse(410, problem("position_pruned")), Pruned),
        (stream(block(1), block(3)), Hole),
        (stream(b"data: hello\n\n"), Unreadable),
        (refuse(200, b"<html>"), Unreadable),
    ],
)
async def test_final_answers_end_the_subscription(answer: Answer, kind: type[Exception]) -> None:
    async with far_side(answer) as far:
        with pytest.raises(kind) as raised:
            await take(far, 2)
    assert len(far.asked) == 1
    assert TOKEN not in str(raised.value)


async def test_a_hole_across_two_connections_is_seen() -> None:
    async with far_side(stream(block(1)), stream(block(3))) as far:
        with pytest.raises(Hole, match="expected position 2, received 3"):
            await take(far, 2)


async def test_a_silent_connection_is_given_up_and_resumed() -> None:
    reasons: list[str] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        following = block(2) if "last-event-id" in far.asked[-1].headers else block(1)
        await stream(following, hold=True)(reader, writer)

    async with far_side() as far:
        far.rest = silent
        events = await take(
            far, 2, idle_s=1.0, on_interruption=lambda it: reasons.append(it.reason)
        )
    assert places(events) == [1, 2]
    assert set(reasons) == {"nothing came for too long"}


async def test_comments_keep_a_connection_alive() -> None:
    async def beating(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send the event only where nothing but comments came for longer than `idle_s`.

        A machine that halts between two of them costs a connection; then it is the next one's.
        """
        await stream()(reader, writer)
        for _ in range(20):
            writer.write(b": \n\n")
            await asyncio.sleep(0.1)
        writer.write(block(1))

    async with far_side() as far:
        far.rest = beating
        assert places(await take(far, 1, idle_s=1.0)) == [1]


async def test_leaving_the_loop_closes_the_connection() -> None:
    left = asyncio.Event()

    async def watching(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stream(block(1), hold=True)(reader, writer)
        left.set()

    async with far_side(watching) as far:
        await take(far, 1)
        await asyncio.wait_for(left.wait(), DEADLINE_S)


async def test_a_service_that_is_not_there_yet_is_waited_for() -> None:
    reasons: list[str] = []
    tried = asyncio.Event()

    def note(interruption: Interruption) -> None:
        reasons.append(interruption.reason)
        tried.set()

    port = free_port()
    far = FarSide([], f"http://127.0.0.1:{port}")
    taking = asyncio.create_task(take(far, 1, on_interruption=note))
    await asyncio.wait_for(tried.wait(), DEADLINE_S)
    far.script.append(stream(block(1)))
    async with await asyncio.start_server(far.serve, "127.0.0.1", port):
        assert places(await taking) == [1]
    assert reasons


# --- the command ---


@asynccontextmanager
async def tail(far: FarSide, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `tail` against the far side; it is ended with the context."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "tail", "--url", far.url, *options),
        env=os.environ | {"CAUSEWAY_STREAM_TOKEN": TOKEN},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(3 * DEADLINE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_tail_goes_on_after_a_cut_and_ctrl_c_ends_it_cleanly() -> None:
    async with (
        far_side(cut(block(1)), stream(block(2), hold=True)) as far,
        tail(far, "--from-start", "--json", "--type", "item.*") as process,
    ):
        assert process.stdout is not None
        lines = [await process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        rest, said = await process.communicate()
    assert [json.loads(line)["position"] for line in lines] == ["1", "2"]
    assert json.loads(lines[0])["data"]["content"]["item_id"] == 1
    assert ("type", "item.*") in far.asked[0].query
    assert (process.returncode, rest) == (0, b"")
    assert f"goes on after {row(1).id}" in said.decode()
    assert len(said.splitlines()) == 1


async def test_tail_of_a_refusal_is_one_sentence_and_exit_1() -> None:
    async with far_side(refuse(401, problem("unauthenticated"))) as far, tail(far) as process:
        shown, said = await process.communicate()
    assert (process.returncode, shown) == (1, b"")
    assert said == b"causeway: the server answered 401 unauthenticated: why\n"


async def test_tail_with_options_that_cannot_be_is_exit_2() -> None:
    async with far_side() as far, tail(far, "--after", "x", "--from-start") as process:
        await process.communicate()
    assert process.returncode == 2
    assert far.asked == []


def test_the_client_needs_httpx2_and_nothing_else() -> None:
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('typer', 'rich', 'orjson', 'starlette',"
        "'uvicorn', 'asyncpg', 'pydantic', 'pydantic_settings', 'prometheus_client')));"
        "import service.client"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_plain_install_says_what_to_install() -> None:
    script = "import sys; sys.modules['typer'] = None; import service.__main__ as m; m.main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'causeway[server]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
