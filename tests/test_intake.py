"""What is refused unread: only the excess, in our form, on a connection that lives on."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Any

import pytest

from service import intake as intake_module
from service.appender import Appender
from service.errors import Overloaded
from service.event import NewEvent
from service.eventlog import Appended
from service.intake import PATIENCE_S, TURN_READS, Intake
from service.metrics import Metrics
from service.problems import RequestIds
from service.signature import sign
from service.sources import Sources
from tests.bridge import body, new_event, post
from tests.raw import webhook_call, webhook_head, wire
from tests.running import SECRET, WITHIN_S, Database, Running, eventually, make_settings
from tests.test_receive import append_lock, received, sample

Start = Callable[..., Awaitable[Running]]
URL = b"/webhooks/bridge"
BATCH, QUEUE = 5, 1000
TURN_S = 0.01


@dataclass
class Turns:
    """An intake whose clock is ours, before an appender whose commits are ours."""

    now: float = 0.0
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    def __post_init__(self) -> None:
        metrics, sources = Metrics(), Sources(make_settings())
        self.appender = Appender(
            self._commit, metrics, max_events=QUEUE, max_bytes=10**6, batch_events=BATCH
        )
        self.intake = Intake(self.appender, sources, metrics, RequestIds(), lambda: self.now)
        self.calls: set[asyncio.Task[Appended]] = set()

    async def _commit(self, events: Sequence[NewEvent]) -> list[Appended]:
        await self.gate.acquire()
        return [Appended(1, False)] * len(events)

    async def turn(self, count: int, *, commits: int = 1) -> int:
        """Let `count` calls come in one turn of the loop; return how many were let in."""
        is_open = [self.intake.is_open(URL) for _ in range(count)]
        for _ in range(sum(is_open)):
            call = asyncio.create_task(self.appender.append(new_event()))
            self.calls.add(call)
            call.add_done_callback(self.calls.discard)
        for _ in range(count - sum(is_open)):
            assert self.intake.refusal(URL, [], []) is not None
        for _ in range(commits):
            self.gate.release()
        for _ in range(10):
            await asyncio.sleep(0)
        self.now += TURN_S
        return sum(is_open)


@asynccontextmanager
async def turns() -> AsyncIterator[Turns]:
    made = Turns()
    loop = asyncio.create_task(made.appender.run())
    try:
        yield made
    finally:
        loop.cancel()
        await asyncio.gather(loop, *made.calls, return_exceptions=True)


@pytest.mark.parametrize(("calls", "commit_every"), [(2 * BATCH, 1), (BATCH, 2)])
async def test_lasting_pressure_is_overload_and_a_burst_is_not(
    calls: int, commit_every: int
) -> None:
    async with turns() as made:
        assert await made.turn(4 * BATCH) == 4 * BATCH, "a burst is let in"
        for _ in range(10):
            assert await made.turn(1) == 1
        commits = cycle([1] + [0] * (commit_every - 1))
        began = made.now
        while await made.turn(calls, commits=next(commits)) == calls:
            assert made.now - began < 2 * PATIENCE_S, "never overload"
        assert made.now - began > PATIENCE_S, "overload at once"
        for _ in range(100):
            taken = [await made.turn(calls, commits=next(commits)) for _ in range(2)]
            assert max(taken) <= BATCH, "no more than a commit takes"
            assert sum(taken) < 2 * calls


async def overload(made: Turns) -> float:
    """Let too much come until it is known; return when the last of it came."""
    while made.now < 2 * PATIENCE_S:
        await made.turn(2 * BATCH)
    assert await made.turn(4 * BATCH) <= BATCH
    return made.now


async def test_overload_is_over_when_nothing_was_refused_for_a_while() -> None:
    async with turns() as made:
        ended = await overload(made)
        while made.now - ended <= 2 * PATIENCE_S:
            assert await made.turn(2, commits=2) == 2, "what can be taken is taken"
        assert await made.turn(4 * BATCH) == 4 * BATCH, "a burst is let in again"


async def test_overload_is_over_although_a_call_is_refused_now_and_then() -> None:
    async with turns() as made:
        ended = await overload(made)
        refused = 0
        while made.now - ended <= 3 * PATIENCE_S:
            for _ in range(9):
                assert await made.turn(2, commits=2) == 2
            refused += BATCH + 1 - await made.turn(BATCH + 1, commits=2)
        assert refused, "a small burst is too much in overload"
        assert await made.turn(4 * BATCH) == 4 * BATCH, "a large one is not, once that is over"


async def test_overload_is_over_when_nothing_came_for_a_while() -> None:
    async with turns() as made:
        await overload(made)
        made.now += 2 * PATIENCE_S
        assert await made.turn(4 * BATCH) == 4 * BATCH


async def test_in_overload_only_so_much_is_read_in_a_turn_and_the_rest_in_its_order() -> None:
    async with turns() as made:
        assert all(made.intake.may_read() for _ in range(2 * TURN_READS))
        await overload(made)
        assert [made.intake.may_read() for _ in range(TURN_READS + 1)] == [True] * TURN_READS + [
            False
        ]
        seen: list[int] = []
        for number in range(3 * TURN_READS):
            made.intake.put_off(partial(seen.append, number))
        await asyncio.sleep(0)
        assert seen == list(range(TURN_READS))
        assert not made.intake.may_read(), "those that were put off come first"
        await asyncio.sleep(0)
        assert seen == list(range(2 * TURN_READS))
        made.now += 2 * PATIENCE_S
        await asyncio.sleep(0)
        assert seen == list(range(3 * TURN_READS)), "overload is over"


async def test_calls_that_were_put_off_count_with_those_that_are_not_queued_yet() -> None:
    async with turns() as made:
        await overload(made)
        let_in: list[bool] = []
        for _ in range(BATCH):
            made.intake.put_off(lambda: let_in.append(made.intake.is_open(URL)))
        assert await made.turn(BATCH - 1, commits=0) + sum(let_in) == BATCH


def fail(what: str) -> None:
    raise ValueError(what)


async def test_what_was_put_off_is_read_although_one_of_them_fails() -> None:
    async with turns() as made:
        await overload(made)
        seen: list[int] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: seen.append(0))
        made.intake.put_off(partial(fail, "this one"))
        made.intake.put_off(partial(seen.append, 2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert seen == [0, 2]


async def test_a_commit_that_hangs_is_no_overload_until_the_queue_is_full() -> None:
    async with turns() as made:
        in_flight = await made.turn(1, commits=0)
        queued = 0
        for _ in range(QUEUE // BATCH - 1):
            queued += await made.turn(BATCH, commits=0)
        assert made.now > 2 * PATIENCE_S
        assert (in_flight, queued) == (1, QUEUE - BATCH), "all were let in"
        assert await made.turn(2 * BATCH, commits=0) == BATCH, "but for what the queue cannot hold"
        assert await made.turn(1, commits=0) == 0
        with pytest.raises(Overloaded):
            made.intake.check()


async def test_nothing_but_webhooks_is_refused() -> None:
    async with turns() as made:
        while made.intake.is_open(URL):
            pass
        assert made.intake.is_open(b"/stream")
        assert made.intake.refusal(b"/webhooks/bridge/unknown", [], []) is None


@asynccontextmanager
async def full(start: Start, database: Database, **settings: object) -> AsyncIterator[Running]:
    """A service that can take nothing more: one event in flight, one in the queue for one."""
    running = await start(append_queue_events=1, append_batch_events=1, **settings)
    async with append_lock(database):
        first = asyncio.create_task(post(running.url, body()))
        await eventually(lambda: sample(running, "append_batch_events_count") == 1)
        second = asyncio.create_task(post(running.url, body()))
        await eventually(lambda: sample(running, "append_queue_events") == 1)
        yield running
    assert [(await call).status_code for call in (first, second)] == [200, 200]


async def test_calls_that_are_put_off_are_answered_in_whatever_pieces_they_come(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "TURN_READS", 1)
    running = await start()
    intake = running.service.intake
    monkeypatch.setattr(intake, "_judge", intake._overload)  # it lasts
    monkeypatch.setattr(intake, "may_read", partial(next, cycle([False, True, False])))
    intake._overload(asyncio.get_running_loop().time())
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(wire(running.url)) for _ in range(20)]
        calls = [webhook_call(body()) for _ in connections]
        for cut in (7, 100, -3):
            for connection, call in zip(connections, calls, strict=True):
                await connection.send(call[:cut])
            for connection, call in zip(connections, calls, strict=True):
                await connection.send(call[cut:] + webhook_call(body()))
        statuses = [[(await it.answer()).status for _ in range(6)] for it in connections]
    assert statuses == [[200] * 6] * 20
    assert received(running, "accepted") == 4 * 20
    assert received(running, "duplicate") == 2 * 20


async def test_what_follows_a_piece_that_was_put_off_waits_for_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start()
    reads: list[Any] = []
    monkeypatch.setattr(running.service.intake, "put_off", reads.append)
    monkeypatch.setattr(running.service.intake, "may_read", lambda: bool(reads))
    call = webhook_call(body())
    async with wire(running.url) as connection:
        await connection.send(call[:50])
        await eventually(lambda: len(reads) == 1)
        gate = reads[0].__self__
        await connection.send(call[50:100])
        await eventually(lambda: gate._put_off == [call[:50], call[50:100]])
        assert gate.flow.read_paused, "it holds no more than that"
        await connection.send(call[100:] + webhook_call(body()))
        reads[0]()
        assert [(await connection.answer()).status for _ in range(2)] == [200, 200]
    assert len(reads) == 1


async def test_a_stop_answers_what_was_put_off(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start(shutdown_s=WITHIN_S)
    reads: list[Any] = []
    monkeypatch.setattr(running.service.intake, "put_off", reads.append)
    monkeypatch.setattr(running.service.intake, "may_read", lambda: False)
    async with wire(running.url) as connection:
        await connection.send(webhook_call(body()))
        await eventually(lambda: len(reads) == 1)
        running.server.stop()
        assert (await connection.answer()).status == 200


def named_call(payload: bytes) -> bytes:
    """Return a whole signed call that brings an id of its own."""
    signature = sign(payload, [SECRET])
    return webhook_head(len(payload), signature, more="X-Request-Id: mine\r\n") + payload


async def test_the_excess_gets_its_503_without_a_task_and_the_connection_lives_on(
    start: Start, database: Database
) -> None:
    payload = body()
    async with AsyncExitStack() as stack:
        async with full(start, database) as running:
            connection = await stack.enter_async_context(wire(running.url))
            tasks = set(running.server.server_state.tasks)
            await connection.send(named_call(payload) * 2)
            for _ in range(2):
                answer = await connection.answer()
                assert (answer.status, answer.headers["x-request-id"]) == (503, "mine")
                assert int(answer.headers["retry-after"]) > 0
                refused = json.loads(answer.body)["error"]
                assert (refused["code"], refused["request_id"]) == ("overloaded", "mine")
            assert running.server.server_state.tasks == tasks
            assert received(running, "overloaded") == 2
        await connection.send(named_call(payload))
        assert (await connection.answer()).headers["causeway-position"] == "3"


async def test_a_refused_connection_is_closed_when_it_stays_silent(
    start: Start, database: Database
) -> None:
    async with full(start, database) as running, wire(running.url) as connection:
        running.server.config.timeout_keep_alive = 0  # for connections made from here on
        async with wire(running.url) as refused:
            await refused.send(webhook_call(body()))
            assert (await refused.answer()).status == 503
            assert await refused.is_closed()
        await connection.send(webhook_call(body()))
        assert (await connection.answer()).status == 503


async def test_a_call_whose_body_is_still_to_come_is_refused_the_usual_way(
    start: Start, database: Database
) -> None:
    payload = body()
    call = webhook_call(payload)
    async with full(start, database) as running:
        for cut in (len(call) - len(payload), len(call) - 1):
            async with wire(running.url) as connection:
                await connection.send(call[:cut])
                answer = await connection.answer()
                assert (answer.status, answer.headers["content-type"]) == (503, "application/json")
                assert json.loads(answer.body)["error"]["code"] == "overloaded"
        assert received(running, "overloaded") == 2


OF_EACH = {"date", "x-request-id", "content-length"}


async def test_both_ways_give_the_same_answer(start: Start, database: Database) -> None:
    call = webhook_call(body())
    async with full(start, database) as running:
        answers = []
        for sent in (call, call[:-1]):
            async with wire(running.url) as connection:
                await connection.send(sent)
                answers.append(await connection.answer())
    early, usual = answers
    assert early.headers.keys() == usual.headers.keys() >= OF_EACH
    assert [v for k, v in sorted(early.headers.items()) if k not in OF_EACH] == [
        v for k, v in sorted(usual.headers.items()) if k not in OF_EACH
    ]
    first, second = (json.loads(answer.body)["error"] for answer in answers)
    assert first | {"request_id": ""} == second | {"request_id": ""}


async def test_nobody_who_is_refused_is_asked_for_the_body_first(
    start: Start, database: Database
) -> None:
    payload = body()
    head = webhook_head(len(payload), "v1=00", more="Expect: 100-continue\r\n")
    async with full(start, database) as running:
        for sent in (head, head + payload):
            async with wire(running.url) as connection:
                await connection.send(sent)
                assert (await connection.answer()).status == 503


async def test_what_cannot_be_read_is_refused_as_ever(start: Start, database: Database) -> None:
    whole = webhook_call(body())
    target = b"POST /webhooks/bridge\xff HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n"
    chunks = webhook_head(None, "v1=00") + b"2\r\n{}\r\nzz\r\n"
    async with full(start, database) as running:
        for sent in (target, target + b"{}", chunks):
            async with wire(running.url) as connection:
                await connection.send(whole)
                assert (await connection.answer()).status == 503
                await connection.send(sent)
                assert (await connection.answer()).status == 400
                assert await connection.is_closed()
        assert received(running, "overloaded") == 3, "of those that could be read, each once"
        assert received(running, "hung_up") == 0


async def test_half_a_call_after_a_refused_one_has_no_more_time_than_any(
    start: Start, database: Database
) -> None:
    time_s = 30.0
    async with (
        full(start, database, head_timeout_s=time_s) as running,
        wire(running.url) as connection,
    ):
        await connection.send(webhook_call(body()) + b"POST /webhooks/bridge HTTP/1.1\r\nX: ")
        assert (await connection.answer()).status == 503
        [it] = [it for it in running.server.server_state.connections if it._unread]  # type: ignore[union-attr]
        it.check(asyncio.get_running_loop().time() + time_s)  # type: ignore[union-attr]
        assert (await connection.answer()).status == 408
        assert await connection.is_closed()


async def test_an_error_of_ours_is_no_bad_request(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_url: bytes) -> bool:
        raise RuntimeError("broken")

    running = await start()
    monkeypatch.setattr(running.service.intake, "is_open", fail)
    async with wire(running.url) as connection:
        await connection.send(webhook_call(body()))
        answer = await connection.answer()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (500, "internal_error")
        assert await connection.is_closed()
    [logged] = [it for it in caplog.records if it.getMessage() == "request not handled"]
    assert logged.exc_info is not None
    assert str(logged.exc_info[1]) == "broken"


async def test_a_call_after_one_that_waits_for_its_commit_is_answered_after_it(
    start: Start, database: Database
) -> None:
    running = await start(append_queue_events=1, append_batch_events=1)
    async with AsyncExitStack() as stack:
        async with append_lock(database):
            connection = await stack.enter_async_context(wire(running.url))
            await connection.send(webhook_call(body()))
            await eventually(lambda: sample(running, "append_batch_events_count") == 1)
            queued = asyncio.create_task(post(running.url, body()))
            await eventually(lambda: sample(running, "append_queue_events") == 1)
            await connection.send(webhook_call(body()))
        assert (await connection.answer()).headers["causeway-position"] == "1"
        assert (await connection.answer()).status in (200, 503)
        assert (await queued).status_code == 200


async def test_what_is_no_webhook_gets_404_even_then(start: Start, database: Database) -> None:
    async with full(start, database) as running:
        for more, code in (("/nobody", "unknown_source"), ("-other", "not_found")):
            async with wire(running.url) as connection:
                path = f"/webhooks/bridge{more}"
                await connection.send(webhook_head(2, "v1=00", path=path) + b"{}")
                answer = await connection.answer()
                assert json.loads(answer.body)["error"]["code"] == code


async def test_an_address_that_may_not_call_is_told_so_even_then(
    start: Start, database: Database
) -> None:
    away = "X-Forwarded-For: 192.0.2.1\r\n"
    allowed = {"allowed_ips": "127.0.0.0/8", "trusted_proxies": "127.0.0.0/8"}
    async with full(start, database, **allowed) as running:
        for more, code in ((away, "address_not_allowed"), ("", "overloaded")):
            async with wire(running.url) as connection:
                await connection.send(webhook_head(2, "v1=00", more=more) + b"{}")
                answer = await connection.answer()
                assert json.loads(answer.body)["error"]["code"] == code
        assert received(running, "overloaded") == 1
