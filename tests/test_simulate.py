"""The simulated Bridge: its events, its calls, its retries and its exact report."""

import asyncio
import io
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count, islice, pairwise

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service import terminal, traffic
from service.client import Event
from service.errors import ConfigError
from service.event import TEST_EVENT as TEST_EVENT_TYPE
from service.event import Event as LoggedEvent
from service.event import cloudevent_json, parse_event
from service.journey import Journey, Journeys
from service.latencies import Latencies
from service.payloads import EVENTS, TEST_EVENT, events
from service.received import parse_cloudevent
from service.signature import HEADER, matching_secret
from service.simulate import Answer, Call, Fate, Plan, Report, Simulation, calls, judge

NEW, OLD = "whsec-new", "whsec-old"
DEADLINE_S = 60.0
PLAN = Plan(
    "http://127.0.0.1:1",
    (NEW,),
    rate=2000.0,
    count=200,
    seed=5,
    retry_base_s=0.01,
    timeout_s=DEADLINE_S,
)


RECEIVED = datetime(2026, 11, 23, 17, 4, 5, 123456, tzinfo=UTC)


def arrived(position: int, body: bytes = b'{"type":"item.deleted"}') -> Event:
    """An event as a subscriber gets it from the server."""
    new = parse_event(body, "default", RECEIVED)
    logged = LoggedEvent(
        position=position,
        link=bytes(32),
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
    return parse_cloudevent(cloudevent_json(logged).decode())


def clock() -> Callable[[], int]:
    return count(1_700_000_000_000).__next__


# --- what it sends ---


def test_every_documented_type_comes_and_all_bodies_are_distinct() -> None:
    sent = list(islice(events(1), 20_000))
    assert {type_ for type_, _ in sent} == set(EVENTS)
    assert len({body for _, body in sent}) == len(sent)


def test_bodies_stay_distinct_while_the_clock_stands_for_a_while() -> None:
    slow = (1_700_000_000_000 + n // 1000 for n in count())
    bodies = [body for _, body in islice(events(1, slow.__next__), 20_000)]
    assert len(set(bodies)) == len(bodies)


@given(st.integers(0, 2**32))
def test_bodies_are_events_with_the_documented_content(seed: int) -> None:
    for type_, body in islice(events(seed), 50):
        envelope = json.loads(body)
        assert set(envelope) == {"content", "timestamp", "type"}
        assert envelope["type"] == type_
        assert set(envelope["content"]) == set(EVENTS[type_][1].split())
        event = parse_event(body, "default", RECEIVED)
        assert event.occurred_at is not None
        assert event.item_id == envelope["content"].get("item_id")
        assert event.item_id is None or event.item_id >= 2**32
        assert event.user_uuid == envelope["content"].get("user_uuid")


def test_bodies_vary_in_what_careless_receivers_get_wrong() -> None:
    bodies = [body for _, body in islice(events(2), 5000)]
    assert len({tuple(json.loads(body)) for body in bodies}) == 6  # each order of the three keys
    assert any(b"\n" in body for body in bodies)
    assert any("€".encode() in body for body in bodies)
    assert any(b"\\u20ac" in body for body in bodies)
    assert any(b"90071992547409931.07" in body for body in bodies)


def test_the_same_seed_and_clock_give_the_same_bytes() -> None:
    first, again, other = (list(islice(events(seed, clock()), 500)) for seed in (3, 3, 4))
    assert first == again
    assert not {body for _, body in first} & {body for _, body in other}


def test_events_are_made_faster_than_they_are_needed() -> None:
    supply = events(0)
    next(supply)  # makes the users
    took_s = []
    for _ in range(5):
        started = time.process_time()
        for _ in islice(supply, 1000):
            pass
        took_s.append(time.process_time() - started)
    assert 1000 / min(took_s) > PLAN.rate  # the best of them: a busy machine is slow at times


def test_the_test_event_is_the_documented_one() -> None:
    assert parse_event(TEST_EVENT, "default", RECEIVED).type == TEST_EVENT_TYPE
    assert len(TEST_EVENT) == 139


def test_good_calls_verify_and_forged_ones_do_not() -> None:
    plan = replace(PLAN, forged=0.3, count=500)
    planned = list(calls(plan, clock()))
    assert len(planned) == 500
    for call in planned:
        matched = matching_secret(call.body, call.signature, plan.secrets)
        assert matched == (None if call.is_forged else 0)
    assert 100 < sum(call.is_forged for call in planned) < 200


def test_a_rotation_goes_from_the_old_secret_over_both_to_the_new() -> None:
    plan = replace(PLAN, secrets=(NEW, OLD), is_rotating=True, count=300)

    def who_verifies(call: Call) -> tuple[bool, bool]:
        new, old = (matching_secret(call.body, call.signature, [s]) == 0 for s in (NEW, OLD))
        return new, old

    phases = [who_verifies(call) for call in calls(plan, clock())]
    assert phases == [(False, True)] * 100 + [(True, True)] * 100 + [(True, False)] * 100
    both = list(calls(plan, clock()))[150]
    assert both.signature.count("v1=") == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"secrets": ()},
        {"secrets": ("a", "b", "c")},
        {"is_rotating": True},
        {"is_rotating": True, "secrets": (NEW, OLD), "count": None},
        {"url": "causeway.example"},
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(PLAN, **wrong)  # type: ignore[arg-type]


# --- how it judges ---

GOOD, FORGED, AGAIN = Call(b"", ""), Call(b"", "", is_forged=True), Call(b"", "", is_known=True)


def answered(status: int, *, known: bool = False) -> Answer:
    return Answer(status, 1, known, 0.0, 0.1)


@pytest.mark.parametrize(
    ("call", "answer", "tries", "fate"),
    [
        (GOOD, answered(200), 0, Fate.ACCEPTED),
        (GOOD, answered(200), 3, Fate.ACCEPTED),
        (GOOD, answered(200, known=True), 1, Fate.ACCEPTED),  # the first answer was lost
        (GOOD, answered(200, known=True), 0, Fate.DUPLICATE),
        (AGAIN, answered(200, known=True), 0, Fate.DUPLICATE),
        (AGAIN, answered(200, known=True), 2, Fate.DUPLICATE),
        (AGAIN, answered(200), 0, Fate.UNEXPECTED),
        (FORGED, answered(401), 0, Fate.REFUSED),
        (FORGED, answered(200), 0, Fate.UNEXPECTED),
        (FORGED, answered(200, known=True), 0, Fate.UNEXPECTED),
        (FORGED, answered(503), 0, None),
        (GOOD, answered(401), 0, None),
        (GOOD, answered(503), 0, None),
        (GOOD, answered(302), 0, None),
        (GOOD, None, 0, None),
        (FORGED, None, 0, None),
    ],
)
def test_each_answer_has_its_fate(
    call: Call, answer: Answer | None, tries: int, fate: Fate | None
) -> None:
    assert judge(call, answer, tries) is fate


@given(st.lists(st.floats(1e-6, 1e5), min_size=1, max_size=300), st.sampled_from([50, 95, 99, 100]))
def test_percentiles_are_right_within_two_percent(seconds: list[float], percent: float) -> None:
    latencies = Latencies()
    for each in seconds:
        latencies.add(each)
    rank = max(0, -(-int(percent * len(seconds)) // 100) - 1)
    exact = sorted(seconds)[rank]
    measured = latencies.percentile(percent)
    assert measured is not None
    assert exact * 0.999999 <= measured <= exact * 1.020001
    assert latencies.max_s == max(seconds)


# --- a run against a real server ---

Trouble = Callable[[int, bytes], Response | None]


@dataclass(slots=True)
class Receiver:
    """The far side: it verifies, knows duplicates, gives positions; `trouble` answers instead.

    No answer is given before `answers_after` tries have come.
    """

    secrets: tuple[str, ...] = (NEW,)
    trouble: Trouble = lambda _number, _body: None
    delay_s: float = 0.0
    answers_after: int = 0
    log: dict[bytes, int] = field(default_factory=dict)
    tries: list[tuple[float, bytes]] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    matched: list[int] = field(default_factory=list)
    open_now: int = 0
    most_open: int = 0
    url: str = ""

    async def receive(self, request: Request) -> Response:
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            return await self.answer(request)
        finally:
            self.open_now -= 1

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        self.tries.append((time.monotonic(), body))
        self.paths.add(request.url.path)
        if (answer := self.trouble(len(self.tries), body)) is not None:
            return answer
        matched = matching_secret(body, request.headers.get(HEADER, ""), self.secrets)
        if matched is None:
            return Response(status_code=401)
        self.matched.append(matched)
        known = {"Causeway-Duplicate": "true"} if body in self.log else {}
        position = self.log.setdefault(body, len(self.log) + 1)
        while len(self.tries) < self.answers_after:
            await asyncio.sleep(0.01)
        await asyncio.sleep(self.delay_s)
        return Response(headers={"Causeway-Position": str(position), **known})


@asynccontextmanager
async def receiving(receiver: Receiver) -> AsyncIterator[Receiver]:
    """Serve the receiver on a free port."""
    paths = ("/webhooks/bridge", "/webhooks/bridge/{source}")
    app = Starlette(routes=[Route(path, receiver.receive, methods=["POST"]) for path in paths])
    # It keeps a connection longer than a caller does: none is closed under a call.
    config = uvicorn.Config(
        app, port=0, log_config=None, lifespan="off", timeout_keep_alive=int(DEADLINE_S)
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(DEADLINE_S):
        while not server.started:
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    receiver.url = f"http://127.0.0.1:{port}"
    try:
        yield receiver
    finally:
        server.should_exit = True
        await serving


async def simulated(plan: Plan, stop: asyncio.Event | None = None) -> Report:
    async with asyncio.timeout(DEADLINE_S):
        return await Simulation(plan).run(stop or asyncio.Event())


def fates(report: Report) -> int:
    return (
        report.accepted
        + report.duplicates
        + report.refused
        + report.unexpected
        + report.given_up
        + report.unfinished
    )


async def test_the_report_counts_exactly_what_the_receiver_saw() -> None:
    plan = replace(PLAN, duplicates=0.3, forged=0.2)
    planned = list(calls(plan, clock()))
    forged = sum(call.is_forged for call in planned)
    again = sum(call.is_sent_again for call in planned)
    async with receiving(Receiver()) as receiver:
        report = await simulated(replace(plan, url=receiver.url))
    assert report.accepted == len(receiver.log) == 200 - forged
    assert (report.refused, report.duplicates) == (forged, again)
    assert report.sent == fates(report) == len(receiver.tries) == 200 + again
    assert dict(report.answers) == {"200": 200 - forged + again, "401": forged}
    assert report.retried == report.unexpected == report.given_up == report.unfinished == 0
    assert report.is_good
    assert report.p50_s is not None
    assert report.p95_s is not None
    assert report.p99_s is not None
    assert report.max_s is not None
    assert 0 < report.p50_s <= report.p95_s <= report.p99_s <= report.max_s < DEADLINE_S
    assert receiver.paths == {"/webhooks/bridge"}


async def test_a_source_has_its_own_path() -> None:
    async with receiving(Receiver()) as receiver:
        await simulated(replace(PLAN, url=receiver.url, count=1, source="shop"))
    assert receiver.paths == {"/webhooks/bridge/shop"}


async def test_a_rotation_is_accepted_in_all_three_phases() -> None:
    plan = replace(PLAN, secrets=(NEW, OLD), is_rotating=True, count=90)
    async with receiving(Receiver(secrets=(NEW, OLD))) as receiver:
        report = await simulated(replace(plan, url=receiver.url))
    assert report.accepted == 90
    assert (receiver.matched.count(1), receiver.matched.count(0)) == (30, 60)


async def test_503_is_retried_with_growing_waits_until_200() -> None:
    def busy(number: int, _: bytes) -> Response | None:
        return Response(status_code=503) if number <= 3 else None

    async with receiving(Receiver(trouble=busy)) as receiver:
        plan = replace(PLAN, url=receiver.url, count=1, retry_base_s=0.1)
        report = await simulated(plan)
    assert (report.accepted, report.retried, report.sent) == (1, 3, 1)
    assert dict(report.answers) == {"200": 1, "503": 3}
    assert len({body for _, body in receiver.tries}) == 1
    moments = [moment for moment, _ in receiver.tries]
    waits = [later - earlier for earlier, later in pairwise(moments)]
    assert all(wait >= due for wait, due in zip(waits, (0.1, 0.2, 0.4), strict=True))


async def test_an_event_whose_answer_was_late_is_accepted_and_not_twice() -> None:
    async with receiving(Receiver()) as receiver:
        simulation = Simulation(replace(PLAN, url=receiver.url, count=1, timeout_s=0.2))

        def late_once(number: int, _: bytes) -> Response | None:
            receiver.delay_s = 0.4 if number == 1 else 0.0
            # Once one has come, the next one has all the time it needs.
            simulation.plan = replace(simulation.plan, timeout_s=DEADLINE_S)
            return None

        receiver.trouble = late_once
        async with asyncio.timeout(DEADLINE_S):
            report = await simulation.run(asyncio.Event())
    assert (report.accepted, report.duplicates) == (1, 0)
    # One, unless a busy machine took as long to bring a try to the receiver.
    assert report.retried >= 1
    assert dict(report.answers) == {"200": 1, "no answer": report.retried}
    assert len(receiver.log) == 1


async def test_what_is_never_answered_well_is_given_up_after_its_retries() -> None:
    async with receiving(Receiver(secrets=("another",))) as receiver:
        report = await simulated(replace(PLAN, url=receiver.url, count=3, retries=2))
    assert (report.given_up, report.retried, report.sent) == (3, 6, 3)
    assert not report.is_good
    assert len(receiver.tries) == 9


async def test_no_receiver_at_all_is_given_up() -> None:
    report = await simulated(replace(PLAN, count=2, retries=1))
    assert (report.given_up, dict(report.answers)) == (2, {"no answer": 4})
    assert report.p50_s is None


async def test_a_receiver_that_takes_everything_is_unexpected() -> None:
    positions = count(1)

    def careless(_number: int, _body: bytes) -> Response:
        return Response(headers={"Causeway-Position": str(next(positions))})

    plan = replace(PLAN, duplicates=0.3, forged=0.2)
    planned = list(calls(plan, clock()))
    async with receiving(Receiver(trouble=careless)) as receiver:
        report = await simulated(replace(plan, url=receiver.url))
    assert report.unexpected == sum(call.is_forged or call.is_sent_again for call in planned)
    assert not report.is_good


async def test_calls_start_on_time_however_slow_the_answers_are() -> None:
    """None waits for an answer: there is none before the last call has come."""
    async with receiving(Receiver(answers_after=50)) as receiver:
        began = time.monotonic()
        await simulated(replace(PLAN, url=receiver.url, rate=100.0, count=50))
    moments = [moment for moment, _ in receiver.tries]
    assert len(moments) == 50
    assert max(moments) - began >= 0.49  # 49 times 10 ms


async def test_no_more_calls_are_open_than_the_plan_allows() -> None:
    async with receiving(Receiver(answers_after=7, delay_s=0.05)) as receiver:
        await simulated(replace(PLAN, url=receiver.url, count=60, connections=7))
    assert receiver.most_open == 7


async def test_a_stopped_run_reports_what_was_done() -> None:
    stop = asyncio.Event()

    def then_stop(number: int, _: bytes) -> Response | None:
        if number == 30:
            stop.set()
        return Response(status_code=503) if number % 10 == 0 else None

    async with receiving(Receiver(trouble=then_stop)) as receiver:
        plan = replace(PLAN, url=receiver.url, rate=200.0, count=None, retry_base_s=600.0)
        report = await simulated(plan, stop)
    assert report.sent == fates(report) == len(receiver.tries) >= 30
    assert report.unfinished == len(receiver.tries) // 10
    assert report.accepted == len(receiver.log)
    assert report.is_good


# --- the command ---


async def simulating(
    receiver: Receiver, *options: str, interrupt_after: int | None = None
) -> tuple[int | None, str]:
    """Run `simulate` against the receiver; return its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "simulate", *options),
        env=os.environ | {"BRIDGE_WEBHOOK_SECRET": NEW, "CAUSEWAY_URL": receiver.url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(DEADLINE_S):
        while interrupt_after is not None and len(receiver.tries) < interrupt_after:
            await asyncio.sleep(0.02)
        if interrupt_after is not None:
            process.send_signal(signal.SIGINT)
        shown, _ = await process.communicate()
    return process.returncode, shown.decode()


async def test_simulate_prints_its_report_and_exits_0() -> None:
    async with receiving(Receiver()) as receiver:
        code, shown = await simulating(receiver, "--count", "20", "--rate", "500", "--forged", "1")
    assert code == 0
    assert "20 calls" in shown
    assert "401: 20" in shown


async def test_simulate_exits_1_if_anything_was_given_up() -> None:
    async with receiving(Receiver(secrets=("another",))) as receiver:
        code, shown = await simulating(receiver, "--count", "2", "--retries", "0")
    assert code == 1
    assert "401: 2" in shown


async def test_ctrl_c_gives_the_report_of_what_was_done() -> None:
    async with receiving(Receiver()) as receiver:
        code, shown = await simulating(receiver, "--rate", "200", interrupt_after=20)
    assert code == 0
    assert f"{len(receiver.tries)} calls" in shown
    assert f"200: {len(receiver.tries)}" in shown


async def test_simulate_without_a_secret_that_can_be_is_a_usage_error() -> None:
    async with receiving(Receiver()) as receiver:
        code, shown = await simulating(receiver, "--secret", "a,b,c-the-third")
    assert code == 2
    assert "BRIDGE_WEBHOOK_SECRET" in shown
    assert "c-the-third" not in shown


# --- what the terminal shows ---


async def test_the_report_is_printed_without_a_terminal_and_without_a_bar() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100)
    async with receiving(Receiver()) as receiver:
        plan = replace(PLAN, url=receiver.url, count=20)
        report = await traffic.simulate(plan, asyncio.Event(), console)
    assert out.getvalue() == ""
    traffic.show_report(report, console)
    assert "20 calls" in out.getvalue()
    assert "200: 20" in out.getvalue()


def test_an_event_is_one_line_whatever_its_body_holds() -> None:
    body = (
        b'{\n "content": {"item_id": 7, "user_uuid": "a\\u001b[31m\\n"},\n "type": "item.created"}'
    )
    event = arrived(1042, body)
    line = traffic.event_line(event, RECEIVED.timestamp() + 0.0021)
    assert line.split() == [
        "2026-11-23T17:04:05.123Z",
        "1042",
        "item.created",
        "2.1",
        "ms",
        "item",
        "7",
        "user",
        "a?[31m?",
    ]
    assert json.loads(traffic.json_line(event))["data"] == json.loads(body)
    assert "\n" not in traffic.json_line(event)


@pytest.mark.parametrize(
    "content", ["null", "[]", "7", "{}", '{"other":1}', "[" * 1010 + "]" * 1010]
)
def test_a_body_that_is_about_nobody_has_no_subject(content: str) -> None:
    body = b'{"content":%b,"type":"x"}' % content.encode()
    assert traffic.subject(arrived(1, body)) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.00004, "0.0 ms"),
        (0.0021, "2.1 ms"),
        (1.0, "1.0 s"),
        (90, "1.5 min"),
        (7200, "2.0 h"),
        (2 * 86400, "2.0 d"),
    ],
)
def test_durations_are_for_people(seconds: float | None, text: str) -> None:
    assert terminal.duration(seconds) == text


async def test_work_ends_when_it_is_stopped_and_its_error_is_raised() -> None:
    stop = asyncio.Event()

    async def work(error: Exception | None) -> None:
        stop.set()
        if error is not None:
            raise error
        await asyncio.Event().wait()

    await asyncio.wait_for(terminal.until_stopped(stop, work(None)), DEADLINE_S)
    with pytest.raises(ConfigError):
        await terminal.until_stopped(stop, work(ConfigError("wrong")))


# --- the demo's journeys ---


@pytest.fixture
def journeys() -> Iterator[tuple[Journeys, list[Journey]]]:
    done: list[Journey] = []
    yield Journeys(done.append), done


@pytest.mark.parametrize("answer_is_first", [True, False])
def test_a_journey_joins_answer_and_delivery_whichever_comes_first(
    journeys: tuple[Journeys, list[Journey]], answer_is_first: bool
) -> None:
    joined, done = journeys
    event = arrived(3)
    received = RECEIVED.timestamp()
    answer = Answer(200, 3, False, received - 0.001, received + 0.002)
    steps: list[Callable[[], None]] = [
        lambda: joined.answered(answer),
        lambda: joined.delivered(event, received + 0.004),
    ]
    for step in steps if answer_is_first else reversed(steps):
        step()
    (journey,) = done
    assert journey.commit_s == pytest.approx(0.003, abs=1e-5)
    assert journey.deliver_s == pytest.approx(0.004, abs=1e-5)
    assert journey.total_s == pytest.approx(0.005, abs=1e-5)
    assert joined.undelivered == 0
    joined.finish_outside(3)
    assert len(done) == 1


@pytest.mark.parametrize("finish", [lambda joined: joined.finish_outside(3), Journeys.finish_rest])
def test_an_event_sent_by_someone_else_is_shown_without_our_stages(
    journeys: tuple[Journeys, list[Journey]], finish: Callable[[Journeys], None]
) -> None:
    joined, done = journeys
    joined.delivered(arrived(3), RECEIVED.timestamp())
    assert done == []
    finish(joined)
    assert [journey.commit_s for journey in done] == [None]
    assert joined.stages["commit"].percentile(50) is None


async def test_a_body_is_being_sent_until_its_call_has_its_fate() -> None:
    seen: list[bool] = []
    simulation = Simulation(
        Plan("http://127.0.0.1:9", ("secret",), rate=1000.0, count=3, retries=0),
        on_fate=lambda call, _: seen.append(call.body in simulation.sending),
    )
    report = await simulation.run(asyncio.Event())
    assert (report.given_up, seen) == (3, [True] * 3)
    assert not simulation.sending


def test_duplicates_and_refusals_are_nobodys_journey(
    journeys: tuple[Journeys, list[Journey]],
) -> None:
    joined, _ = journeys
    joined.answered(Answer(200, 3, True, 0.0, 0.1))
    joined.answered(Answer(401, None, False, 0.0, 0.1))
    assert joined.undelivered == 0
