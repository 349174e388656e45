"""The running relay against a receiver in a process of its own: from the log to the callback."""

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import pytest
from standardwebhooks import Webhook as StandardWebhook

from service.callback import Callbacks
from service.callback_connection import Reply
from service.callback_url import CallbackUrl
from service.db import Connection
from service.deadline import Deadline
from service.delivery import OPEN_AFTER
from service.event import parse_event
from service.logs import JsonFormatter
from service.relay_watch import RelayWatch
from service.verdict import PAUSE_MAX_S
from service.webhook import Change, Webhook
from tests.bridge import body
from tests.certificates import Authority
from tests.logkeeping import id_of, sample
from tests.receiver import Received, Receiver
from tests.relayed import make_webhook
from tests.relaying import RELAY, add_to, append, pass_time, settled, states
from tests.running import WITHIN_S, Running, eventually, free_port

Start = Callable[..., Awaitable[Running]]
CLAIM_WAITS = """
SELECT count(*)
FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%claim_deliveries%'
"""
# So late that no retry comes before a test lets time pass, however busy the machine is.
FIRST_S = 500.0
FIRST_RETRY_S = 1.2 * FIRST_S  # with the most jitter
# A circuit that opens stays open until a test lets an hour pass, however long its steps take.
OPEN_S = 3600.0
HOLD_OPEN = """
CREATE FUNCTION hold_open() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.open_until > clock_timestamp() THEN
        NEW.open_until := clock_timestamp() + interval '1 hour';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER hold_open BEFORE UPDATE ON causeway.webhook
FOR EACH ROW EXECUTE FUNCTION hold_open();
"""


@pytest.fixture(autouse=True)
def _late_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.backoff.FIRST_S", FIRST_S)


@pytest.fixture(scope="module")
def process() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def receiver(process: Receiver) -> Receiver:
    """A receiver that has seen nothing yet."""
    process.reset()
    return process


def position(call: Received) -> int:
    return int(call.headers["causeway-position"])


def positions(calls: list[Received]) -> list[int]:
    return [position(call) for call in calls]


async def change_url(running: Running, webhook: Webhook, url: str) -> Webhook:
    relaying = running.service.relaying
    changed = await relaying.webhooks.change(
        webhook.webhook_id, Change(fields=frozenset({"url"}), url=url)
    )
    relaying.relay.wake()
    return changed


async def attempted(owner: Connection, count: int, within_s: float = WITHIN_S) -> None:
    """Return once `count` attempts are written down."""
    async with asyncio.timeout(within_s):
        while await owner.fetchval("SELECT count(*) FROM causeway.attempt") < count:
            await asyncio.sleep(0.02)


async def opened(running: Running, webhook: Webhook) -> Webhook:
    """Return the webhook once its circuit is open."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            webhook = await running.service.relaying.webhooks.read(webhook.webhook_id)
            if webhook.open_until is not None:
                return webhook
            await asyncio.sleep(0.02)


async def disabled(running: Running, webhook: Webhook) -> Webhook:
    """Return the webhook once it is disabled."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            webhook = await running.service.relaying.webhooks.read(webhook.webhook_id)
            if webhook.disabled_at is not None:
                return webhook
            await asyncio.sleep(0.02)


# What is sent


async def test_every_attempt_brings_the_events_bytes_and_headers_that_verify(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY)
    url = receiver.url + "/fail/1/then-good"
    hook = await add_to(running, url, headers={"X-Team": "payments"})
    assert await append(running.service.eventlog, 3, text="é€") == 3
    assert len(await receiver.wait_for(3)) == 3
    await attempted(owner, 3)
    await pass_time(owner, FIRST_RETRY_S)
    calls = await receiver.wait_for(6)
    events = {event.position: event for event in await running.service.eventlog.read_after(0)}
    attempts = defaultdict(list)
    for call in calls:
        attempts[position(call)].append(int(call.headers["causeway-attempt"]))
        assert call.body == events[position(call)].body
        assert call.headers["webhook-id"] == await id_of(running, position(call))
        assert call.headers["content-type"] == "application/json"
        assert call.headers["user-agent"].startswith("Causeway/")
        assert call.headers["x-team"] == "payments"
        StandardWebhook(hook.secret).verify(call.body, call.headers)
    assert attempts == {1: [1, 2], 2: [1, 2], 3: [1, 2]}
    assert await settled(owner, 3) == {1: "delivered", 2: "delivered", 3: "delivered"}


async def test_a_handler_written_for_bridge_accepts_all_before_during_and_after_a_rotation(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY)
    webhooks = running.service.relaying.webhooks
    hook = await add_to(running, receiver.url + "/bridge")
    sent = 0

    async def deliver(*secrets: str) -> int:
        """Let events be delivered to a handler that knows `secrets`; return the last's parts."""
        nonlocal sent
        await asyncio.to_thread(receiver.set_secrets, *secrets)
        await append(running.service.eventlog, 5)
        sent += 5
        calls = await receiver.wait_for(sent)
        assert [call.status for call in calls[-5:]] == [200] * 5
        return calls[-1].headers["bridgeapi-signature"].count("v1=")

    assert await deliver(hook.secret) == 1
    rotated = await webhooks.rotate(hook.webhook_id)
    assert await deliver(hook.secret) == 2
    assert await deliver(rotated.secret) == 2
    assert await deliver(rotated.secret, hook.secret) == 2
    await pass_time(owner, 24 * 3600)
    # Who holds it in memory has the time of its own clock, which did not jump: it loads it anew.
    await webhooks.change(hook.webhook_id, Change(fields=frozenset({"name"}), name="later"))
    assert await deliver(rotated.secret) == 1
    # One that knows the old secret alone is refused now: the handler does verify.
    await asyncio.to_thread(receiver.set_secrets, hook.secret)
    await append(running.service.eventlog)
    assert (await receiver.wait_for(sent + 1))[-1].status == 401


async def test_only_chosen_events_and_sources_are_sent(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY)
    eventlog = running.service.eventlog
    await add_to(running, receiver.url + "/good/types", types=["item.account.*"])
    await add_to(running, receiver.url + "/good/source", sources=["shop"])
    await append(eventlog, type_="item.account.updated")
    await append(eventlog, type_="user.deleted")
    await append(eventlog, type_="ACCOUNT_UPDATED")
    bodies = (body("user.deleted"), body("item.account.created"))
    events = [parse_event(content, "shop", datetime.now(UTC)) for content in bodies]
    await eventlog.append(events, timeout_s=30)
    running.service.relaying.relay.wake()
    await attempted(owner, 5)
    got = defaultdict(set)
    for call in await receiver.wait_for(5):
        got[call.path].add(position(call))
    assert got == {"/good/types": {1, 3, 5}, "/good/source": {4, 5}}


async def test_two_webhooks_both_get_all(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY)
    for path in ("/good/a", "/good/b"):
        await add_to(running, receiver.url + path)
    await append(running.service.eventlog, 50)
    got = defaultdict(list)
    for call in await receiver.wait_for(100):
        got[call.path].append(position(call))
    assert sorted(got["/good/a"]) == sorted(got["/good/b"]) == list(range(1, 51))
    await attempted(owner, 100)
    assert await owner.fetchval("SELECT count(*) FROM causeway.delivery WHERE attempts = 1") == 100


# What comes back


async def test_a_whole_2xx_in_time_is_a_success_however_slow_or_long(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY)
    paths = ("/good", "/slow?s=0.8", "/huge", "/status/204", "/status/299")
    for path in paths:
        await add_to(running, receiver.url + path)
    await append(running.service.eventlog)
    await attempted(owner, len(paths))
    rows = await owner.fetch("SELECT state, attempts FROM causeway.delivery")
    assert [tuple(row) for row in rows] == [("delivered", 1)] * len(paths)
    assert sample(running, "relay_attempts_total", outcome="success") == len(paths)
    kept = await owner.fetchval("SELECT max(octet_length(answer)) FROM causeway.attempt")
    assert kept == 1024


async def test_every_failure_is_named_kept_and_tried_again(
    start: Start, owner: Connection, receiver: Receiver, tmp_path: Path
) -> None:
    running = await start(**RELAY)
    certificate = Authority(tmp_path).issue("localhost")
    with Receiver(certificate=certificate) as wrong_tls:
        expected = {
            receiver.url + "/close-midway": ("connection", 200),
            receiver.url + "/status/500": ("server_error", 500),
            receiver.url + "/status/404": ("client_error", 404),
            receiver.url + "/status/304": ("redirect", 304),
            f"http://127.0.0.1:{free_port()}/": ("refused", None),
            f"https://127.0.0.1:{wrong_tls.port}/good": ("tls", None),
            f"https://127.0.0.1:{receiver.port}/good": ("tls", None),
        }
        hooks = {(await add_to(running, url)).webhook_id: url for url in expected}
        await append(running.service.eventlog)
        for number in (1, 2):
            await attempted(owner, number * len(expected))
            rows = await owner.fetch(
                "SELECT webhook_id, state, step, attempts, error, status, "
                "extract(epoch FROM due_at - clock_timestamp())::float8 AS due_s "
                "FROM causeway.delivery"
            )
            assert {hooks[r["webhook_id"]]: (r["error"], r["status"]) for r in rows} == expected
            for row in rows:
                assert (row["state"], row["step"], row["attempts"]) == ("pending", number, number)
                pause_s = (FIRST_S, 3 * FIRST_S)[number - 1]
                assert pause_s - 100 < row["due_s"] <= 1.2 * pause_s
            await pass_time(owner, 1.2 * pause_s)
        assert wrong_tls.count() == 0
    for error in {error for error, _ in expected.values()}:
        assert sample(running, "relay_attempts_total", outcome=error) >= 2
    assert running.fatal == []


class ByHand(Deadline):
    """A deadline that comes when a test says so."""

    open: ClassVar[set["ByHand"]] = set()

    def __enter__(self) -> None:
        super().__enter__()
        self.open.add(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.open.discard(self)
        super().__exit__(kind, error, trace)


async def test_a_call_whose_time_is_up_is_a_timeout_with_what_came_until_then(
    start: Start, owner: Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[Reply] = []
    exchange = Callbacks._exchange

    async def noted(self: Callbacks, url: CallbackUrl, request: bytes, reply: Reply) -> None:
        replies.append(reply)
        await exchange(self, url, request, reply)

    monkeypatch.setattr(Callbacks, "_exchange", noted)
    monkeypatch.setattr("service.callback.Deadline", ByHand)
    running = await start(**RELAY)
    expected = {
        receiver.url + "/hang-head": ("timeout", None),
        receiver.url + "/hang-body": ("timeout", 200),
    }
    hooks = {(await add_to(running, url)).webhook_id: url for url in expected}
    await append(running.service.eventlog)
    await receiver.wait_for(2)
    await eventually(lambda: any(reply.status == 200 for reply in replies))
    for deadline in list(ByHand.open):
        deadline._expire()
    await attempted(owner, 2)
    rows = await owner.fetch(
        "SELECT webhook_id, state, step, attempts, error, status FROM causeway.delivery"
    )
    assert {hooks[row["webhook_id"]]: (row["error"], row["status"]) for row in rows} == expected
    assert {(row["state"], row["step"], row["attempts"]) for row in rows} == {("pending", 1, 1)}
    assert sample(running, "relay_attempts_total", outcome="timeout") == 2
    assert running.fatal == []


async def test_gone_disables_and_what_was_owed_is_sent_once_it_is_enabled(
    start: Start, owner: Connection, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    running = await start(**RELAY)
    relaying = running.service.relaying
    hook = await add_to(running, receiver.url + "/gone")
    await append(running.service.eventlog)
    assert (await disabled(running, hook)).disabled_reason == "gone"
    await eventually(lambda: sample(running, "relay_disabled_total", reason="gone") == 1)
    [record] = [r for r in caplog.records if r.getMessage() == "webhook disabled"]
    assert (record.levelno, record.__dict__["webhook"]) == (logging.ERROR, hook.webhook_id)
    assert record.__dict__["reason"] == "gone"
    await change_url(running, hook, receiver.url + "/good")
    await append(running.service.eventlog)
    await pass_time(owner, 86400)
    await claimed_nothing(running)
    assert await states(owner) == {1: "pending"}
    assert receiver.count() == 1
    await relaying.webhooks.enable(hook.webhook_id)
    calls = await receiver.wait_for(3)
    assert [(call.path, position(call)) for call in calls[:1]] == [("/gone", 1)]
    assert {(call.path, position(call)) for call in calls[1:]} == {("/good", 1), ("/good", 2)}
    assert await settled(owner, 2) == {1: "delivered", 2: "delivered"}


async def claimed_nothing(running: Running) -> None:
    """Let the relay look twice for work."""
    deliveries = running.service.relaying.deliveries
    looks = 0
    claim = deliveries.claim

    async def count(*arguments: object, **options: object) -> object:
        nonlocal looks
        result = await claim(*arguments, **options)  # type: ignore[arg-type]
        looks += 1
        return result

    deliveries.claim = count  # type: ignore[method-assign,assignment]
    try:
        await eventually(lambda: looks >= 2)
    finally:
        deliveries.claim = claim  # type: ignore[method-assign]


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_pauses_the_whole_webhook(
    start: Start, owner: Connection, receiver: Receiver, status: int
) -> None:
    running = await start(**RELAY)
    hook = await add_to(running, f"{receiver.url}/retry-after/400?status={status}")
    await append(running.service.eventlog)
    await opened(running, hook)
    await append(running.service.eventlog, 3)
    await change_url(running, hook, receiver.url + "/good")
    await pass_time(owner, 200)
    await claimed_nothing(running)
    assert receiver.count() == 1
    await pass_time(owner, 200)
    assert positions(await receiver.wait_for(5))[:2] == [1, 1]  # the one that was refused, first
    assert set((await settled(owner, 4)).values()) == {"delivered"}
    assert sample(running, "relay_attempts_total", outcome="throttled") == 1


async def test_no_retry_after_pauses_for_longer_than_an_hour(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY)
    hook = await add_to(running, receiver.url + "/retry-after/1000000")
    await append(running.service.eventlog)
    await opened(running, hook)
    [row] = await owner.fetch(
        "SELECT extract(epoch FROM open_until - clock_timestamp())::float8 AS pause_s, "
        "extract(epoch FROM due_at - clock_timestamp())::float8 AS due_s "
        "FROM causeway.webhook JOIN causeway.delivery USING (webhook_id)"
    )
    assert PAUSE_MAX_S - 100 < row["pause_s"] <= PAUSE_MAX_S
    assert PAUSE_MAX_S - 100 < row["due_s"] <= PAUSE_MAX_S


async def test_a_redirect_to_a_private_address_is_a_failure_and_never_followed(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY)
    with Receiver() as private:
        await add_to(running, f"{receiver.url}/redirect?to={private.url}/good")
        await append(running.service.eventlog, 2)
        await attempted(owner, 2)
        await pass_time(owner, FIRST_RETRY_S)
        await attempted(owner, 4)
        assert private.count() == 0
    assert receiver.count() == 4
    assert await states(owner) == {1: "pending", 2: "pending"}
    assert sample(running, "relay_attempts_total", outcome="redirect") == 4


async def test_a_private_address_is_not_called_unless_it_is_allowed(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY | {"relay_allowed_networks": ""})
    await add_to(running, receiver.url + "/good")
    await append(running.service.eventlog, 2)
    await attempted(owner, 2)
    assert receiver.count() == 0
    assert await owner.fetchval("SELECT array_agg(DISTINCT error) FROM causeway.attempt") == [
        "address_denied"
    ]
    assert await states(owner) == {1: "pending", 2: "pending"}


async def test_a_url_that_the_settings_no_longer_allow_is_not_called_and_is_an_error(
    start: Start, owner: Connection, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    running = await start(**RELAY | {"relay_allow_http": "false"})
    await add_to(running, receiver.url + "/good")
    await append(running.service.eventlog)
    await attempted(owner, 1)
    assert receiver.count() == 0
    assert await states(owner) == {1: "pending"}
    assert "a webhook's URL is not allowed" in [record.getMessage() for record in caplog.records]


# The trouble of one, and what it costs the others


async def test_a_dead_callback_gets_one_probe_at_a_time(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY | {"relay_concurrency": 8, "shutdown_s": 0.5})
    await owner.execute(HOLD_OPEN)
    hook = await add_to(running, receiver.url + "/held/0?status=500")
    await append(running.service.eventlog, 30)
    await receiver.wait_for(8)  # as many as may be open at once
    # Whichever fails first opens the circuit: nothing is claimed between the first and the last.
    await owner.execute("UPDATE causeway.webhook SET failures = $1", OPEN_AFTER - 1)
    await asyncio.to_thread(receiver.let_go)
    await attempted(owner, 8)
    await opened(running, hook)
    for probe in (9, 10, 11):
        await claimed_nothing(running)
        assert receiver.count() == probe - 1
        await pass_time(owner, OPEN_S)
        await receiver.wait_for(probe)
        await append(running.service.eventlog, 5)
        await claimed_nothing(running)
        assert receiver.count() == probe
        await asyncio.to_thread(receiver.let_go)
        await attempted(owner, probe)
    assert await owner.fetchval("SELECT max(step) FROM causeway.delivery") <= 2


async def test_a_backlog_flows_at_once_oldest_first_when_the_callback_is_back(
    start: Start, owner: Connection
) -> None:
    running = await start(**RELAY | {"relay_concurrency": 1})
    await owner.execute(HOLD_OPEN)
    port = free_port()  # nobody is there yet
    hook = await add_to(running, f"http://127.0.0.1:{port}/good")
    await append(running.service.eventlog, 20)
    await attempted(owner, OPEN_AFTER)
    await opened(running, hook)
    assert sample(running, "relay_attempts_total", outcome="refused") == OPEN_AFTER
    await owner.execute(  # late on their schedule, the oldest due first
        "UPDATE causeway.delivery SET step = 9, "
        "due_at = clock_timestamp() + interval '6 hours' + position * interval '1 second'"
    )
    with Receiver(port=port) as back:
        await pass_time(owner, OPEN_S)
        calls = await back.wait_for(20)
        assert positions(calls) == list(range(1, 21))
        assert set((await settled(owner, 20)).values()) == {"delivered"}
        assert back.count() == 20
    assert (await running.service.relaying.webhooks.read(hook.webhook_id)).state == "enabled"


async def test_nine_dead_webhooks_do_not_delay_the_tenth(start: Start, receiver: Receiver) -> None:
    """Whose calls hang until the end of the test: none of them has to end before the tenth's."""
    running = await start(**RELAY | {"relay_timeout_s": 300.0, "shutdown_s": 0.5})
    await add_to(running, receiver.url + "/good/tenth")
    refused = f"http://127.0.0.1:{free_port()}/"
    for n in range(3):
        await add_to(running, f"{receiver.url}/hang-head/{n}")
        await add_to(running, f"{receiver.url}/hang-body/{n}")
        await add_to(running, f"{refused}{n}")
    for head in (50, 100):  # the second half when all room of the dead is taken
        await append(running.service.eventlog, 50)
        async with asyncio.timeout(WITHIN_S):
            while len(tenth := [c for c in receiver.requests() if c.path == "/good/tenth"]) < head:
                await asyncio.sleep(0.05)
        assert sorted(positions(tenth)) == list(range(1, head + 1))
        full = 6 * running.settings.relay_concurrency
        await eventually(lambda most=full: sample(running, "relay_in_flight") >= most)
    registry = running.service.metrics.registry
    ended = {"outcome": "timeout"}
    assert not registry.get_sample_value("causeway_relay_attempts_total", ended)
    await eventually(
        lambda: sample(running, "relay_attempts_total", outcome="refused") >= 3 * OPEN_AFTER
    )


# Order


def item(call: Received) -> int:
    item_id: int = json.loads(call.body)["content"]["item_id"]
    return item_id


async def test_an_ordered_webhook_sends_one_at_a_time_of_each_item_in_order(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY)
    await add_to(running, f"{receiver.url}/held/0", ordered=True)
    for n in range(12):
        await append(running.service.eventlog, item_id=n % 3)
    for turn in (1, 2, 3, 4):
        # One of each item is open at once, and no item's next one before its answer.
        calls = await receiver.wait_for(3 * turn)
        assert sorted(map(item, calls[-3:])) == [0, 1, 2]
        await claimed_nothing(running)
        assert receiver.count() == 3 * turn
        await asyncio.to_thread(receiver.let_go)
    await settled(owner, 12)
    for wanted in range(3):
        own = [call for call in calls if item(call) == wanted]
        assert positions(own) == sorted(positions(own))


async def test_a_failed_event_of_an_ordered_webhook_holds_its_item_and_no_other(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY)
    url = receiver.url + "/fail/1/then-good?only=%22item_id%22:%207,"
    await add_to(running, url, ordered=True)
    for item_id in (7, 8, 7, 8, 7, 9):
        await append(running.service.eventlog, item_id=item_id)
    assert await settled(owner, 3) == {
        1: "pending",
        3: "pending",
        5: "pending",
        2: "delivered",
        4: "delivered",
        6: "delivered",
    }
    await claimed_nothing(running)
    assert positions([c for c in await receiver.wait_for(4) if item(c) == 7]) == [1]
    for done in (3, 4, 5):
        await attempted(owner, 2 * done - 2)  # the item's next one has failed, too
        await pass_time(owner, FIRST_RETRY_S)
        await settled(owner, done + 1)
    sevens = [call for call in await receiver.wait_for(9) if item(call) == 7]
    assert positions(sevens) == [1, 1, 3, 3, 5, 5]
    assert [call.status for call in sevens] == [500, 200] * 3


# What an administrator changes


async def test_what_is_made_changed_disabled_and_enabled_counts_without_a_restart(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY)
    webhooks, eventlog = running.service.relaying.webhooks, running.service.eventlog
    await append(eventlog)
    hook = await add_to(running, receiver.url + "/good/first")
    await append(eventlog)
    await settled(owner, 1)
    await change_url(running, hook, receiver.url + "/good/second")
    await append(eventlog)
    await settled(owner, 2)
    await webhooks.disable(hook.webhook_id, "admin")
    await append(eventlog)
    await claimed_nothing(running)
    assert receiver.count() == 2
    await webhooks.enable(hook.webhook_id)
    await settled(owner, 3)
    await webhooks.delete(hook.webhook_id)
    await append(eventlog)
    await claimed_nothing(running)
    calls = await receiver.wait_for(3)
    assert [(call.path, position(call)) for call in calls] == [
        *(("/good/first", 2), ("/good/second", 3), ("/good/second", 4)),
    ]


async def test_a_back_fill_comes_in_order_at_its_rate(start: Start, receiver: Receiver) -> None:
    rate = 20
    running = await start(**RELAY | {"relay_backfill_per_s": rate, "relay_concurrency": 1})
    await append(running.service.eventlog, 40)
    began = time.time()
    await add_to(running, receiver.url + "/good", after=5)
    calls = await receiver.wait_for(35)
    assert positions(calls) == list(range(6, 41))
    for n, call in enumerate(calls, 1):
        assert call.at >= began + n / rate - 0.05


# What is seen


@pytest.fixture
def _quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.relaying.RelayWatch", partial(RelayWatch, every_s=0.05))


def delivered(running: Running) -> float:
    return sample(running, "delivery_seconds_count", via="webhook")


@pytest.mark.usefixtures("_quick_watch")
async def test_the_backlog_and_the_circuit_are_metrics_and_vanish_with_the_webhook(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY)
    hook = await add_to(running, receiver.url + "/status/500")
    label = {"webhook": str(hook.webhook_id)}

    def shows(**expected: float) -> bool:
        registry = running.service.metrics.registry
        return all(
            registry.get_sample_value(f"causeway_relay_{name}", label) == value
            for name, value in expected.items()
        )

    await eventually(lambda: shows(pending=0, oldest_pending_seconds=0, circuit_open=0, orphans=0))
    await append(running.service.eventlog, 40)
    await opened(running, hook)
    await eventually(lambda: shows(pending=40, circuit_open=1, orphans=0))
    await eventually(lambda: sample(running, "relay_oldest_pending_seconds", **label) > 0.5)
    await change_url(running, hook, receiver.url + "/good")
    await pass_time(owner, 60)
    await eventually(lambda: shows(pending=0, oldest_pending_seconds=0, circuit_open=0, orphans=0))
    await eventually(lambda: sample(running, "relay_in_flight") == 0)
    await running.service.relaying.webhooks.delete(hook.webhook_id)
    await eventually(lambda: not shows(pending=0) and not shows(circuit_open=0))


@pytest.mark.usefixtures("_quick_watch")
async def test_an_event_without_a_delivery_is_a_metric_and_an_error(
    start: Start, owner: Connection, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    running = await start(**RELAY)
    hook = await add_to(running, receiver.url + "/good")
    async with owner.transaction():
        # Nobody looks before the row is lost.
        await owner.execute("LOCK TABLE causeway.webhook IN EXCLUSIVE MODE")
        await append(running.service.eventlog, 3)
        link = await running.service.eventlog.link_at(2)
        await owner.execute(
            "UPDATE causeway.webhook SET cursor_position = 2, cursor_link = $1", link
        )
    await settled(owner, 1)
    label, registry = {"webhook": str(hook.webhook_id)}, running.service.metrics.registry
    await eventually(lambda: registry.get_sample_value("causeway_relay_orphans", label) == 2)
    [record] = [r for r in caplog.records if r.getMessage() == "events without a delivery"]
    assert record.__dict__["first_position"] == 1


async def test_the_latency_figure_counts_what_was_given_up_and_no_history_and_no_replay(
    start: Start, owner: Connection, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.backoff.ATTEMPTS", 2)
    running = await start(**RELAY)
    eventlog = running.service.eventlog
    await append(eventlog, 2)
    await add_to(running, receiver.url + "/good/with-history", after=0)
    failing = await add_to(running, receiver.url + "/status/500")
    await settled(owner, 2)
    assert delivered(running) == 0  # what it asked for was no delay
    await append(eventlog)
    await attempted(owner, 4)
    await eventually(lambda: delivered(running) == 1)
    await pass_time(owner, FIRST_RETRY_S)
    await attempted(owner, 5)
    assert delivered(running) == 2
    assert sample(running, "relay_exhausted_total") == 1
    assert sample(running, "delivery_seconds_sum", via="webhook") > 0
    for webhook_id in (failing.webhook_id - 1, failing.webhook_id):
        answer = await owner.fetchval("SELECT causeway.replay_delivery($1, 3)", webhook_id)
        assert answer == "queued"
    await attempted(owner, 7)
    await pass_time(owner, FIRST_RETRY_S)
    await attempted(owner, 8)
    assert sample(running, "relay_exhausted_total") == 2
    assert delivered(running) == 2
    assert sample(running, "relay_attempts_total", outcome="success") == 4
    assert sample(running, "relay_attempts_total", outcome="server_error") == 4


async def test_a_webhook_that_fails_for_days_is_disabled_aloud(
    start: Start, owner: Connection, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    running = await start(**RELAY)
    hook = await add_to(running, receiver.url + "/status/500")
    await append(running.service.eventlog)
    await attempted(owner, 1)
    await pass_time(owner, running.settings.relay_disable_after_s / 2)
    await attempted(owner, 2)
    assert (await running.service.relaying.webhooks.read(hook.webhook_id)).state == "enabled"
    await pass_time(owner, running.settings.relay_disable_after_s / 2)
    assert (await disabled(running, hook)).disabled_reason == "failing"
    await eventually(lambda: sample(running, "relay_disabled_total", reason="failing") == 1)
    [record] = [r for r in caplog.records if r.getMessage() == "webhook disabled"]
    assert (record.levelno, record.__dict__["reason"]) == (logging.ERROR, "failing")
    assert await states(owner) == {1: "pending"}


async def test_without_a_key_nothing_is_called_and_webhooks_are_an_error_in_the_log(
    start: Start,
    owner: Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.relay.RELOAD_S", 3600.0)  # it says so once more then
    running = await start(**{key: value for key, value in RELAY.items() if key != "secret_key"})
    await claimed_nothing(running)
    assert "webhook not called" not in [record.getMessage() for record in caplog.records]
    webhook_id = await make_webhook(owner, 0)
    await append(running.service.eventlog)
    await claimed_nothing(running)
    [record] = [r for r in caplog.records if r.getMessage() == "webhook not called"]
    assert (record.levelno, record.__dict__["webhook"]) == (logging.ERROR, webhook_id)
    assert "CAUSEWAY_SECRET_KEY" in record.__dict__["reason"]
    assert await states(owner) == {}
    assert running.fatal == []


async def test_no_secret_header_url_or_body_is_ever_logged(
    start: Start, owner: Connection, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    running = await start(**RELAY)
    paths = ("good", "status/500", "gone", "close-midway", "retry-after/9", "redirect")
    hooks = [
        await add_to(
            running, f"{receiver.url}/{path}?key=in-the-url", headers={"X-Key": "in-a-header"}
        )
        for path in paths
    ]
    secrets = [hook.secret for hook in hooks]
    secrets += [
        (await running.service.relaying.webhooks.rotate(h.webhook_id)).secret for h in hooks
    ]
    await append(running.service.eventlog, 6, text="in-the-body")
    await attempted(owner, 6 * len(paths) - 10)
    await disabled(running, hooks[2])
    await opened(running, hooks[1])
    await eventually(lambda: "webhook disabled" in caplog.text)
    await eventually(lambda: "one probe at a time" in caplog.text)
    lines = [JsonFormatter().format(record) for record in caplog.records]
    hidden = ["in-the-url", "in-a-header", "in-the-body", str(RELAY["secret_key"])]
    hidden += [secret.removeprefix("whsec_") for secret in secrets]
    for line in (*lines, caplog.text):
        assert not [what for what in hidden if what in line]
    assert any("in-the-body" in call.body.decode() for call in await receiver.wait_for(1))


@pytest.fixture
def _patient_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.relay.FLUSH_S", WITHIN_S)


@pytest.mark.usefixtures("_patient_flush")
async def test_the_drain_waits_for_what_a_claim_under_way_brings(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY)
    await add_to(running, receiver.url + "/slow?s=0.3")
    await claimed_nothing(running)
    async with owner.transaction():
        async with running.service.relaying.relay._claiming:  # the next claim finds the events
            await owner.execute("LOCK TABLE causeway.delivery IN ACCESS EXCLUSIVE MODE")
            await append(running.service.eventlog, 3)
        async with asyncio.timeout(WITHIN_S):
            while not await owner.fetchval(CLAIM_WAITS):
                await asyncio.sleep(0.02)
        draining = asyncio.create_task(running.service.relaying.relay.drain(WITHIN_S))
        done, _ = await asyncio.wait([draining], timeout=0.2)
        assert not done
    await draining
    assert await states(owner) == {1: "delivered", 2: "delivered", 3: "delivered"}
    assert sample(running, "relay_in_flight") == 0


@pytest.mark.usefixtures("_patient_flush")
async def test_calls_that_the_drain_cuts_are_due_at_once_for_another_and_cost_nothing(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**RELAY)
    hook = await add_to(running, receiver.url + "/hang-head")
    await append(running.service.eventlog, 3)
    await receiver.wait_for(3)
    await running.service.relaying.relay.drain(0.1)
    rows = await owner.fetch("SELECT claim, attempts, step, error FROM causeway.delivery")
    assert [tuple(row) for row in rows] == [(None, 0, 0, None)] * 3
    await change_url(running, hook, receiver.url + "/good")
    await start(**RELAY)
    assert await settled(owner, 3) == {1: "delivered", 2: "delivered", 3: "delivered"}
    assert receiver.count() == 6
    assert (await running.service.relaying.webhooks.read(hook.webhook_id)).failures == 0
