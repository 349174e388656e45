"""A Bridge to try Causeway with: it signs, sends at a rate, and retries as Bridge does.

Open loop: calls start on time however slow the answers are, up to bounds named below. Each call has
one fate, and the report counts every one. Sends to the given address and nowhere else: meant for
test instances of your own, whose log it fills.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

import httpx2

from service.client import address, is_loopback
from service.errors import ConfigError
from service.latencies import Latencies
from service.payloads import events
from service.signature import HEADER, sign

OUTSTANDING_MAX = 10_000  # calls without a fate; at so many the sender falls behind its rate
_KEEPALIVE_S = 2.0  # under what servers keep: a call must not meet a closing connection


class Fate(StrEnum):
    """What became of a call."""

    ACCEPTED = "accepted"  # 200 and a new position
    DUPLICATE = "duplicate"  # 200 and the position it had
    REFUSED = "refused"  # forged, and 401
    UNEXPECTED = "unexpected"  # a forgery or a duplicate was taken for a new event
    GIVEN_UP = "given up"  # no good answer to any try
    UNFINISHED = "unfinished"  # stopped between two tries


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send where. Fractions are of 1. Raises ConfigError for what cannot be done.

    Secrets: the current one, and while it is being changed the previous one; with `is_rotating`
    the first third is signed by the previous, the second by both, the last by the current.
    """

    url: str
    secrets: tuple[str, ...]
    source: str | None = None
    rate: float = 10.0
    count: int | None = None
    duplicates: float = 0.0
    forged: float = 0.0
    is_rotating: bool = False
    retries: int = 8
    retry_base_s: float = 1.0
    timeout_s: float = 10.0
    connections: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.secrets) <= 2:
            raise ConfigError("BRIDGE_WEBHOOK_SECRET: one or two secrets are needed, as for serve")
        if self.is_rotating and (len(self.secrets) == 1 or self.count is None):
            raise ConfigError("--rotate needs two secrets (the new and the old one) and --count")
        try:
            _ = self.target
        except ValueError as error:
            raise ConfigError(f"CAUSEWAY_URL: {error}") from error

    @property
    def target(self) -> httpx2.URL:
        """Where Bridge posts."""
        return address(self.url, "/webhooks/bridge" + (f"/{self.source}" if self.source else ""))


@dataclass(frozen=True, slots=True)
class Call:
    """One event with its signature. A forged one must get 401, one sent again must be known."""

    body: bytes
    signature: str
    is_forged: bool = False
    is_known: bool = False
    is_sent_again: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its times (Unix seconds). `position` is None unless the event has one."""

    status: int
    position: int | None
    is_duplicate: bool
    sent_at: float
    answered_at: float


@dataclass(frozen=True, slots=True)
class Report:
    """What was done: `sent` is the sum of the six fates; retries are counted beside it.

    `answers` counts each try by its status, or `no answer`. Latencies are those of 2xx answers, in
    seconds; None without any.
    """

    sent: int
    accepted: int
    duplicates: int
    refused: int
    unexpected: int
    given_up: int
    unfinished: int
    retried: int
    answers: tuple[tuple[str, int], ...]
    elapsed_s: float
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    max_s: float | None

    @property
    def is_good(self) -> bool:
        return self.unexpected == 0 and self.given_up == 0


def calls(plan: Plan, now_ms: Callable[[], int] | None = None) -> Iterator[Call]:
    """Yield the plan's calls, without end if it has no count. Pure if `now_ms` is."""
    rng = Random(plan.seed)  # noqa: S311 - it imitates, it protects nothing
    for number, (_, body) in enumerate(events(plan.seed, now_ms)):
        if number == plan.count:
            return
        secrets = _secrets(plan, number)
        if rng.random() < plan.forged:
            yield Call(body, _forgery(body, secrets, rng), is_forged=True)
        else:
            yield Call(body, sign(body, secrets), is_sent_again=rng.random() < plan.duplicates)


def judge(call: Call, answer: Answer | None, tries: int) -> Fate | None:
    """Return the call's fate after its answer (None: no answer); None if Bridge would try again.

    An event that is known at a second try was committed at the first, whose answer was lost.
    """
    if answer is None:
        return None
    if call.is_forged and answer.status == httpx2.codes.UNAUTHORIZED:
        return Fate.REFUSED
    if not 200 <= answer.status < 300:
        return None
    if call.is_forged or (call.is_known and not answer.is_duplicate):
        return Fate.UNEXPECTED
    if answer.is_duplicate and (call.is_known or tries == 0):
        return Fate.DUPLICATE
    return Fate.ACCEPTED


class Simulation:
    """One run of a plan. `on_answer` hears of each answered try, `on_fate` of each fate."""

    def __init__(
        self,
        plan: Plan,
        on_answer: Callable[[Answer], None] = lambda _: None,
        on_fate: Callable[[Call, Fate], None] = lambda _call, _fate: None,
    ) -> None:
        self.plan = plan
        self.fates: Counter[Fate] = Counter()
        self.sending: set[bytes] = set()  # the bodies of the calls that have no fate yet
        self.retried = 0
        self._answers: Counter[str] = Counter()
        self._latencies = Latencies()
        self._on_answer, self._on_fate = on_answer, on_fate
        self._outstanding = asyncio.Semaphore(OUTSTANDING_MAX)
        self._connections = asyncio.Semaphore(plan.connections)
        self._target = plan.target

    async def run(self, stop: asyncio.Event) -> Report:
        """Send the plan's calls until all have their fate, and report.

        `stop` ends it early: no new calls, no more tries, and open calls get their answer.
        """
        started = time.monotonic()
        planned = calls(self.plan, lambda: time.time_ns() // 1_000_000)
        async with self._client() as client, asyncio.TaskGroup() as group:
            number = 0
            while not await stopped_within(stop, started + number / self.plan.rate):
                if (call := next(planned, None)) is None:
                    break
                await self._outstanding.acquire()
                group.create_task(self._deliver(client, call, stop))
                number += 1
        return self._report(time.monotonic() - started)

    def _client(self) -> httpx2.AsyncClient:
        most = self.plan.connections
        return httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=most, keepalive_expiry=_KEEPALIVE_S),
            timeout=None,  # `_post` has one for the whole call
            trust_env=not is_loopback(self._target),
        )

    async def _deliver(self, client: httpx2.AsyncClient, call: Call, stop: asyncio.Event) -> None:
        self.sending.add(call.body)
        try:
            fate = await self._settle(client, call, stop)
            if fate is Fate.ACCEPTED and call.is_sent_again and not stop.is_set():
                await self._settle(client, replace(call, is_known=True), stop)
        finally:
            self.sending.discard(call.body)
            self._outstanding.release()

    async def _settle(self, client: httpx2.AsyncClient, call: Call, stop: asyncio.Event) -> Fate:
        """Send a call until it has its fate, with exponential back-off between the tries."""
        tries = 0
        while (fate := judge(call, await self._post(client, call), tries)) is None:
            due = time.monotonic() + self.plan.retry_base_s * 2**tries
            if tries == self.plan.retries:
                fate = Fate.GIVEN_UP
                break
            if await stopped_within(stop, due):
                fate = Fate.UNFINISHED
                break
            tries += 1
            self.retried += 1
        self.fates[fate] += 1
        self._on_fate(call, fate)
        return fate

    async def _post(self, client: httpx2.AsyncClient, call: Call) -> Answer | None:
        headers = {HEADER: call.signature, "Content-Type": "application/json"}
        async with self._connections:
            sent_at, started = time.time(), time.perf_counter()
            try:
                async with asyncio.timeout(self.plan.timeout_s):
                    response = await client.post(self._target, content=call.body, headers=headers)
            except (TimeoutError, httpx2.RequestError):
                self._answers["no answer"] += 1
                return None
            elapsed_s = time.perf_counter() - started
        self._answers[str(response.status_code)] += 1
        if response.is_success:
            self._latencies.add(elapsed_s)
        answer = _answer(response, sent_at, sent_at + elapsed_s)
        self._on_answer(answer)
        return answer

    def _report(self, elapsed_s: float) -> Report:
        return Report(
            sent=self.fates.total(),
            accepted=self.fates[Fate.ACCEPTED],
            duplicates=self.fates[Fate.DUPLICATE],
            refused=self.fates[Fate.REFUSED],
            unexpected=self.fates[Fate.UNEXPECTED],
            given_up=self.fates[Fate.GIVEN_UP],
            unfinished=self.fates[Fate.UNFINISHED],
            retried=self.retried,
            answers=tuple(sorted(self._answers.items())),
            elapsed_s=elapsed_s,
            p50_s=self._latencies.percentile(50),
            p95_s=self._latencies.percentile(95),
            p99_s=self._latencies.percentile(99),
            max_s=self._latencies.max_s,
        )


async def stopped_within(stop: asyncio.Event, until: float) -> bool:
    """Wait until `stop` or the monotonic time `until`; return whether it was stopped."""
    if (wait_s := until - time.monotonic()) <= 0:
        await asyncio.sleep(0)
    else:
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await stop.wait()
    return stop.is_set()


def _answer(response: httpx2.Response, sent_at: float, answered_at: float) -> Answer:
    position = response.headers.get("Causeway-Position")
    is_duplicate = response.headers.get("Causeway-Duplicate") == "true"
    place = int(position) if position and position.isdecimal() else None
    return Answer(response.status_code, place, is_duplicate, sent_at, answered_at)


def _secrets(plan: Plan, number: int) -> tuple[str, ...]:
    if not plan.is_rotating or plan.count is None:
        return plan.secrets
    current, previous = plan.secrets
    phases = ((previous,), (current, previous), (current,))
    return phases[number * len(phases) // plan.count]


def _forgery(body: bytes, secrets: tuple[str, ...], rng: Random) -> str:
    """Return a header that must be refused: another key, another body, or another scheme."""
    other_key = sign(body, ("forged", *("forged" for _ in secrets[1:])))
    other_scheme = sign(body, secrets).replace("v1=", "v0=")
    return rng.choice((other_key, sign(body + b" ", secrets), other_scheme))
