"""The network between the service and Postgres breaks: nothing is lost, doubled or left hanging."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx2
import pytest

from service import app as app_module
from service import db, listen
from tests.bridge import body, post
from tests.chaos.proxy import is_listening
from tests.faulty import (
    assert_all_in_log_once,
    assert_each_once,
    assert_polite,
    behind_proxy,
    by,
    wait_for_ready,
)
from tests.load import Load, under_load
from tests.logkeeping import Owner, append_large, impatient, sample
from tests.reader import reading
from tests.running import (
    START_S,
    WITHIN_S,
    Database,
    Running,
    eventually,
    make_settings,
    running_service,
)

SENDERS = 60
PATIENCE_S = 3600.0  # no other timer runs as long


@asynccontextmanager
async def late_after(
    running: Running, happened: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    """For the block, let a commit's time be up when `happened` is set: neither before nor after.

    A timeout of a second would be up before the commit where the machine is slow enough.
    """
    loop = asyncio.get_running_loop()
    call_later, late = loop.call_later, list[Callable[[], object]]()

    def keeping(delay: float, callback: Callable[..., object], *args: Any, **more: Any) -> Any:
        if PATIENCE_S / 2 < delay <= PATIENCE_S:
            late.append(partial(callback, *args))
        return call_later(delay, callback, *args, **more)

    async def end() -> None:
        await happened.wait()
        for timer in late:
            timer()

    with monkeypatch.context() as patched, impatient(running, PATIENCE_S):
        patched.setattr(loop, "call_later", keeping)
        ending = asyncio.create_task(end())
        try:
            yield
        finally:
            ending.cancel()


@pytest.mark.parametrize("is_silent", [False, True], ids=["reset", "half-open"])
async def test_a_webhook_whose_answer_was_lost_after_the_commit_finds_its_own_event_again(
    database: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    monkeypatch.setattr(db, "CANCEL_TIMEOUT_S", 0.3)
    async with (
        behind_proxy(database) as (running, proxy),
        running_service(make_settings(), by(proxy, database)) as other,
    ):
        cut = proxy.lose_answer("append_events", is_silent=is_silent)
        first, second = body(), body()
        async with late_after(running, cut.done, monkeypatch):
            assert_polite(await post(running.url, first), "log_unavailable")
        assert cut.done.is_set()
        assert await owner.fetchval("SELECT count(*) FROM causeway.event") == 1
        for payload, position in ((first, "1"), (second, "2"), (first, "1")):
            for replica in (other, running):
                answer = await post(replica.url, payload)
                assert (answer.status_code, answer.headers["causeway-position"]) == (200, position)
        assert await owner.fetchval("SELECT count(*) FROM causeway.event") == 2


async def test_a_webhook_that_was_cut_before_the_commit_leaves_nothing(
    database: Database, owner: Owner
) -> None:
    async with behind_proxy(database) as (running, proxy):
        cut = proxy.lose_request("append_events")
        payload = body()
        assert_polite(await post(running.url, payload), "log_unavailable")
        assert cut.done.is_set()
        assert await owner.fetchval("SELECT count(*) FROM causeway.event") == 0
        answer = await post(running.url, payload)
        assert (answer.status_code, answer.headers["causeway-position"]) == (200, "1")


async def test_lost_answers_under_load_on_two_replicas_lose_and_double_nothing(
    database: Database, owner: Owner
) -> None:
    async with (
        behind_proxy(database) as (running, proxy),
        running_service(make_settings(), by(proxy, database)) as other,
        reading(running.url, "from=start") as reader,
        reading(other.url, "from=start") as second,
    ):
        async with under_load(running.url) as load, under_load(other.url) as beside:
            for _ in range(10):
                cut = proxy.lose_answer("append_events")
                async with asyncio.timeout(WITHIN_S):
                    await cut.done.wait()
        for answer in load.refused + beside.refused:
            assert_polite(answer)
        load.sent += beside.sent
        load.accepted += beside.accepted
        await assert_all_in_log_once(owner, load)
        await assert_each_once(reader, len(load.accepted))
        await assert_each_once(second, len(load.accepted))


@pytest.mark.parametrize("check_s", [3600.0, 1.0], ids=["unseen", "seen"])
async def test_a_deaf_listen_connection_costs_the_poll_and_is_made_anew(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    check_s: float,
) -> None:
    monkeypatch.setattr(listen, "CHECK_S", check_s)
    caplog.set_level(logging.WARNING, "causeway.listen")
    async with (
        behind_proxy(database, poll_s=0.5) as (running, proxy),
        reading(running.url, "from=start") as reader,
    ):
        await eventually(lambda: any(is_listening(link) for link in proxy.links))
        # One, or two where the first did not answer in time and is about to go.
        deaf = {link for link in proxy.links if is_listening(link)}
        assert proxy.freeze(is_listening) == len(deaf)
        for position in range(1, 6):
            assert (await post(running.url, body())).status_code == 200
            assert (await reader.event()).position == position
        if check_s > WITHIN_S:  # it was the poll that brought them
            return
        await eventually(
            lambda: any(is_listening(link) and link not in deaf for link in proxy.links)
        )
        assert "listen lost, polling meanwhile" in caplog.messages
        assert (await post(running.url, body())).status_code == 200
        await assert_each_once(reader, 6)


def codes(load: Load) -> set[str]:
    """Return the codes of what was refused."""
    return {answer.json()["error"]["code"] for answer in load.refused}


async def test_a_stalled_way_to_postgres_gets_503_in_time_and_mends_by_itself(
    database: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "STALE_READ_S", 0.5)
    monkeypatch.setattr(db, "CONNECT_TIMEOUT_S", 1.0)
    monkeypatch.setattr(db, "CANCEL_TIMEOUT_S", 0.5)
    async with (
        behind_proxy(database, append_queue_events=20) as (running, proxy),
        reading(running.url, "from=start") as reader,
    ):
        async with under_load(running.url, senders=SENDERS) as load:
            await eventually(lambda: len(load.accepted) > 100, within_s=START_S)
            with impatient(running, 0.5):
                patient = running.service.appender._in_flight  # the batch that began before
                await eventually(lambda: running.service.appender._in_flight is not patient)
                proxy.stall()
                await wait_for_ready(running, 503)
                refused = len(load.refused)
                await eventually(lambda: len(load.refused) > refused + 2 * SENDERS)
                await eventually(lambda: codes(load) == {"log_unavailable", "overloaded"})
                assert sample(running, "append_queue_events") <= 20
            accepted = len(load.accepted)
            await proxy.heal()
            await eventually(lambda: len(load.accepted) > accepted + 100, within_s=START_S)
        await wait_for_ready(running, 200)
        assert codes(load) == {"log_unavailable", "overloaded"}
        for answer in load.refused:
            assert_polite(answer)
        assert load.errors == []
        await assert_each_once(reader, len(load.accepted))
        await assert_all_in_log_once(owner, load)
        assert running.fatal == []


async def test_a_slow_network_costs_time_for_each_batch_and_not_for_each_event(
    database: Database, owner: Owner
) -> None:
    async with (
        behind_proxy(database, append_timeout_s=2 * START_S) as (running, proxy),
        reading(running.url, "from=start") as reader,
        httpx2.AsyncClient() as client,
    ):
        appender, load = running.service.appender, Load()
        for _ in range(5):
            proxy.stall()  # until all of them wait, as they would for a network slow enough
            payloads = [body() for _ in range(SENDERS)]
            sending = (post(running.url, payload, client=client) for payload in payloads)
            calls = [asyncio.create_task(each) for each in sending]
            await eventually(
                lambda: len(appender._in_flight) + sample(running, "append_queue_events") == SENDERS
            )
            first = sample(running, "append_batch_events_count")
            proxy.latency_s = 0.2  # 400 ms there and back: one by one they would take two minutes
            proxy.flowing.set()
            answers = await asyncio.gather(*calls)
            assert {answer.status_code for answer in answers} == {200}
            assert sample(running, "append_batch_events_count") <= first + 1  # the rest, in one
            load.sent += payloads
            load.accepted += payloads
        await proxy.heal()
        await assert_each_once(reader, len(load.accepted))
        await assert_all_in_log_once(owner, load)


async def test_a_read_that_is_reset_in_mid_answer_is_503_and_a_stream_reads_again(
    database: Database,
) -> None:
    # A poll by the minute: the tail must not be the one whose read is cut.
    async with behind_proxy(database, window_events=5, poll_s=60) as (running, proxy):
        await append_large(running, 40)
        cut = proxy.cut_answer("octet_length(body)", 60_000)
        async with httpx2.AsyncClient(base_url=running.url, headers=running.headers) as client:
            while True:
                answer = await client.get("/events", params={"from": "start", "limit": 20})
                if cut.done.is_set():
                    break
                assert answer.status_code == 200  # the tail's last read, of nothing, had the cut
            assert_polite(answer, "log_unavailable")
            answer = await client.get("/events", params={"from": "start", "limit": 20})
            assert [int(event["position"]) for event in answer.json()["events"]] == [*range(1, 21)]
        cut = proxy.cut_answer("octet_length(body)", 60_000)
        async with reading(running.url, "from=start") as reader:
            await assert_each_once(reader, 40)
        assert cut.done.is_set()


async def test_a_refused_way_to_postgres_is_503_and_mends_by_itself(database: Database) -> None:
    async with behind_proxy(database) as (running, proxy):
        assert (await post(running.url, body())).status_code == 200
        proxy.refuse()
        assert proxy.reset() > 0
        assert_polite(await post(running.url, body()), "log_unavailable")
        await proxy.heal()
        assert (await post(running.url, body())).status_code == 200
