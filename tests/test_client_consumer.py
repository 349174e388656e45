"""The client of a named consumer: the protocol without I/O, and both clients on a real service."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, closing
from datetime import UTC, datetime

import pytest

from service import event as server
from service import received
from service.answers import refusal
from service.client import (
    Call,
    Event,
    Hole,
    Interruption,
    LeaseLost,
    OtherFilter,
    Refused,
    SyncEvent,
    Unreachable,
    Unreadable,
    call,
    call_sync,
    delete_consumer,
    get_consumer,
    list_consumers,
    put_consumer,
    reset_consumer,
    subscribe,
    subscribe_sync,
)
from service.consumer_calls import Need
from service.filter import shard_of
from service.subscription import Subscription
from service.wanted import filter_body, filters
from tests.bridge import body, post
from tests.consuming import patient_acks as patient_acks  # a fixture
from tests.logkeeping import Owner
from tests.running import STREAM_TOKEN, Running, eventually, free_port
from tests.test_client import (
    checkpoint,
    far_side,
    feed,
    problem,
    refuse,
    row,
    stream,
)

DEADLINE_S = 60.0
RELEASED = "SELECT lease_until <= clock_timestamp() FROM causeway.consumer_shard"


def lease_block(number: int, position: int) -> tuple[str, str, str]:
    """The id that a parser has by then, the name and the data of the control event."""
    data = json.dumps({"lease": number, "position": position})
    return row(position).id, "stream.lease", data


# --- the protocol, without I/O ---


def test_a_consumer_is_asked_for_with_its_shard_and_control_events() -> None:
    ask = Subscription[None](consumer="billing", shard="1/4").ask()
    assert ask.parameters == (
        ("format", "cloudevents"),
        ("consumer", "billing"),
        ("shard", "1/4"),
        ("control", "1"),
    )
    assert ask.headers == {}


@pytest.mark.parametrize("bad", ["", "4/4", "a/b", "1", "-1/4", "0/0", "1/4 "])
def test_a_shard_that_cannot_be_is_refused_at_once(bad: str) -> None:
    with pytest.raises(ValueError, match="i/n was expected"):
        subscribe("http://127.0.0.1", "token", consumer="billing", shard=bad)


def test_a_shard_without_a_consumer_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="shard goes with consumer"):
        subscribe_sync("http://127.0.0.1", "token", shard="0/2")


def test_an_acknowledgement_proves_the_event_the_shard_and_the_lease() -> None:
    sent: list[Call] = []
    subscription = Subscription[None](consumer="billing", shard="1/4")
    subscription.send = sent.append
    subscription.opened(is_filtered=True, lease="7")
    event = feed(subscription, 5)
    assert event is not None
    event.ack()
    assert (sent[0].method, sent[0].path) == ("POST", "/consumers/billing/ack")
    assert sent[0].body == {"position": row(5).id, "shard": "1/4", "lease": 7}


def test_an_event_keeps_the_lease_of_its_own_connection() -> None:
    sent: list[Call] = []
    subscription = Subscription[None](consumer="billing")
    subscription.send = sent.append
    subscription.opened(is_filtered=False, lease="7")
    old = feed(subscription, 5)
    subscription.opened(is_filtered=False, lease="8")
    new = feed(subscription, 5)
    assert old is not None
    assert new is not None
    old.ack()
    new.ack()
    assert [each.body and each.body["lease"] for each in sent] == [7, 8]


def test_an_event_without_a_consumer_has_nothing_to_acknowledge() -> None:
    event = feed(Subscription[None](), 1)
    assert event is not None
    with pytest.raises(RuntimeError, match="subscribe with consumer=NAME"):
        event.ack()


def test_a_standby_becomes_the_holder_where_the_service_says() -> None:
    subscription = Subscription[None](consumer="billing")
    subscription.opened(is_filtered=False)
    assert subscription.receive(row(90).id, "message", "") is None
    assert subscription.ask().headers == {}  # what a standby is told is no place to go on from
    assert subscription.receive(*lease_block(3, 40)) is None
    assert subscription.ask().headers == {"Last-Event-ID": row(40).id}
    event = feed(subscription, 41)
    assert event is not None
    assert event.hold is not None
    assert event.hold.lease == 3


def test_a_hole_after_the_consumers_place_is_seen() -> None:
    subscription = Subscription[None](consumer="billing")
    subscription.opened(is_filtered=False, lease="1")
    subscription.receive(row(40).id, "message", "")
    with pytest.raises(Hole, match="expected position 41, received 43"):
        feed(subscription, 43)


def test_a_new_connection_may_begin_before_the_last_event() -> None:
    subscription = Subscription[None](consumer="billing")
    subscription.opened(is_filtered=False, lease="1")
    feed(subscription, 9)
    assert subscription.ask().headers == {"Last-Event-ID": row(9).id}  # `auto` goes by it
    subscription.opened(is_filtered=False, lease="2")
    subscription.receive(row(3).id, "message", "")
    assert feed(subscription, 4) is not None
    assert subscription.last_id == row(4).id


def test_an_event_before_the_lease_is_unreadable() -> None:
    subscription = Subscription[None](consumer="billing")
    subscription.opened(is_filtered=False)
    with pytest.raises(Unreadable, match="stands by"):
        feed(subscription, 1)


@pytest.mark.parametrize("data", ["", "[]", "{}", '{"lease":"x","position":1}', '{"lease":1}'])
def test_a_lease_in_another_form_is_unreadable(data: str) -> None:
    with pytest.raises(Unreadable):
        Subscription[None](consumer="billing").receive("", "stream.lease", data)


def test_the_servers_reason_for_an_end_is_told() -> None:
    subscription = Subscription[None](consumer="billing")
    subscription.receive("", "stream.closing", '{"reason":"lease_lost"}')
    assert subscription.ended() == "the server ended the stream: lease_lost"
    subscription.opened(is_filtered=False)
    assert subscription.ended() == "the server ended the stream"


@pytest.mark.parametrize("code", ["consumer_held", "shards_held"])
def test_a_held_consumer_is_waited_for(code: str) -> None:
    assert refusal(409, problem(code)) is None


def test_a_lost_lease_has_an_error_of_its_own_and_the_future_is_refused() -> None:
    assert isinstance(refusal(409, problem("lease_lost")), LeaseLost)
    error = refusal(409, problem("ack_ahead"))
    assert isinstance(error, Refused)
    assert error.code == "ack_ahead"


def test_a_consumers_filter_is_spelled_as_the_service_answers_it() -> None:
    wanted = filters(["item.*", "ITEM_CREATED", "item.*"], [2, 1], [], ["ABC"], ["shop"])
    assert filter_body(wanted) == {
        "types": ["item.*", "item.created"],
        "item_ids": [1, 2],
        "user_uuids": ["abc"],
        "sources": ["shop"],
    }


def test_a_needed_consumer_is_made_once_and_never_changed() -> None:
    need = Need("billing", "start", {"types": ["item.*"]})
    missing = need.missing(None)
    assert missing is not None
    assert missing.body == {"start": "start", "filter": {"types": ["item.*"]}}
    assert need.missing({"filter": {"types": ["item.*"]}}) is None
    with pytest.raises(OtherFilter, match="put_consumer"):
        need.missing({"filter": {}})
    assert Need("billing", "start").missing({"filter": {"types": ["item.*"]}}) is None


def test_a_start_is_a_name_a_place_or_a_time() -> None:
    at = datetime(2026, 11, 23, tzinfo=UTC)
    starts = [put_consumer("a", start=start).body for start in ("now", 7, at)]
    assert [each and each["start"] for each in starts] == ["now", 7, "2026-11-23T00:00:00+00:00"]
    with pytest.raises(ValueError, match="time zone"):
        put_consumer("a", start=datetime(2026, 1, 1))


def test_a_name_cannot_lead_to_another_path() -> None:
    assert get_consumer("a/../b?c").path == "/consumers/a%2F..%2Fb%3Fc"
    for name in ("", ".", ".."):
        with pytest.raises(ValueError, match="not a consumer's name"):
            get_consumer(name)


# --- both clients on a real service ---


Take = Callable[..., Awaitable[list[received.Event[object]]]]


async def append(running: Running, count: int, *, item_id: int = 1) -> None:
    for _ in range(count):
        assert (await post(running.url, body(item_id=item_id))).status_code == 200


async def take(running: Running, count: int, *, acked: int = 0, **wishes: object) -> list[Event]:
    """Receive `count` events by way of a consumer, acknowledging the first `acked`."""
    events: list[Event] = []
    subscribed: AsyncGenerator[Event, None] = subscribe(
        running.url,
        STREAM_TOKEN,
        **wishes,  # type: ignore[arg-type]
    )
    async with asyncio.timeout(DEADLINE_S), aclosing(subscribed):
        async for event in subscribed:
            events.append(event)
            if len(events) <= acked:
                await event.ack()
            if len(events) == count:
                break
    return events


async def take_sync(
    running: Running, count: int, *, acked: int = 0, **wishes: object
) -> list[SyncEvent]:
    """The same with the other client, in a thread."""

    def read() -> list[SyncEvent]:
        events: list[SyncEvent] = []
        subscribed = subscribe_sync(running.url, STREAM_TOKEN, **wishes)  # type: ignore[arg-type]
        with closing(subscribed):
            for event in subscribed:
                events.append(event)
                if len(events) <= acked:
                    event.ack()
                if len(events) == count:
                    break
        return events

    return await asyncio.wait_for(asyncio.to_thread(read), DEADLINE_S)


both = pytest.mark.parametrize("taken", [take, take_sync])


def places(events: list[received.Event[object]]) -> list[int]:
    return [event.position for event in events]


@both
async def test_the_next_one_goes_on_after_the_last_acknowledgement(
    taken: Take, service: Running
) -> None:
    await append(service, 5)
    await call(service.url, STREAM_TOKEN, put_consumer("billing", start="start"))
    assert places(await taken(service, 4, acked=2, consumer="billing")) == [1, 2, 3, 4]
    assert places(await taken(service, 3, consumer="billing")) == [3, 4, 5]


@both
async def test_a_subscription_that_says_what_it_wants_makes_the_consumer(
    taken: Take, service: Running
) -> None:
    await post(service.url, body("item.created"))
    await post(service.url, body("user.deleted"))
    await post(service.url, body("item.refreshed"))
    wishes = {"consumer": "billing", "types": ["item.*"], "from_start": True}
    assert places(await taken(service, 2, acked=1, **wishes)) == [1, 3]
    assert places(await taken(service, 1, **wishes)) == [3]
    with pytest.raises(OtherFilter, match=r"user\.deleted"):
        await taken(service, 1, consumer="billing", types=["user.deleted"])


@both
async def test_an_unknown_consumer_is_refused(taken: Take, service: Running) -> None:
    with pytest.raises(Refused) as raised:
        await taken(service, 1, consumer="nobody")
    assert (raised.value.status, raised.value.code) == (404, "unknown_consumer")


@both
async def test_each_shard_gets_its_own_events(taken: Take, service: Running) -> None:
    for item in range(20):
        await append(service, 1, item_id=item)
    await call(service.url, STREAM_TOKEN, put_consumer("billing", start="start"))
    rows = await service.service.eventlog.read_after(0)
    for shard in (0, 1):
        own = [each.position for each in rows if shard_of(each, 2) == shard]
        events = await taken(service, len(own), consumer="billing", shard=f"{shard}/2")
        assert places(events) == own


async def test_a_standby_is_silent_and_goes_on_from_the_last_acknowledgement(
    service: Running,
) -> None:
    await append(service, 4)
    await call(service.url, STREAM_TOKEN, put_consumer("billing", start="start", lease_s=3600))
    holder = subscribe(service.url, STREAM_TOKEN, consumer="billing")
    first = await anext(holder)
    waiting = asyncio.create_task(take(service, 3, consumer="billing"))
    async with asyncio.timeout(DEADLINE_S):
        await eventually(lambda: len(service.service.hub) == 2)
        await append(service, 1)
        assert await first.ack() == 1
        second = await anext(holder)
        assert not waiting.done()
        await holder.aclose()
        assert [event.position for event in await waiting] == [2, 3, 4]
        with pytest.raises(LeaseLost):
            await second.ack()
    known = await call(service.url, STREAM_TOKEN, get_consumer("billing"))
    assert known["position"] == 1


async def test_an_event_can_be_acknowledged_after_the_loop_was_left(service: Running) -> None:
    await append(service, 2)
    await call(service.url, STREAM_TOKEN, put_consumer("billing", start="start"))
    [event] = await take(service, 1, consumer="billing")
    assert await event.ack() == 1
    [late] = await take_sync(service, 1, consumer="billing")
    assert await asyncio.to_thread(late.ack) == 2


async def test_an_acknowledgement_outlasts_a_service_that_is_away() -> None:
    lease = "Causeway-Lease: 4\r\n"
    opened = stream(checkpoint(0), server.cloudevent_block(row(1)), hold=True, headers=lease)
    answer = b'{"position":1}'
    away = refuse(503, problem("log_unavailable"))
    interruptions: list[str] = []
    async with far_side(opened, away, refuse(200, answer)) as far, asyncio.timeout(DEADLINE_S):
        events = subscribe(
            far.url,
            "t",
            consumer="billing",
            on_interruption=lambda it: interruptions.append(it.reason),
        )
        async with aclosing(events):
            event = await anext(events)
            assert await event.ack() == 1
    assert [asked.path for asked in far.asked[1:]] == ["/consumers/billing/ack"] * 2
    assert interruptions == ["the server answered 503 log_unavailable"]


async def test_another_number_of_shards_is_waited_for() -> None:
    held = refuse(409, problem("shards_held"), headers="Retry-After: 0\r\n")
    lease = "Causeway-Lease: 4\r\n"
    opened = stream(checkpoint(0), server.cloudevent_block(row(1)), headers=lease)
    async with far_side(held, opened) as far, asyncio.timeout(DEADLINE_S):
        events = subscribe(far.url, "t", consumer="billing", shard="0/6")
        async with aclosing(events):
            assert (await anext(events)).position == 1


async def test_a_reset_moves_the_place_and_keeps_the_rest(service: Running) -> None:
    await append(service, 3)
    wish = put_consumer("billing", start=3, types=["item.*"], ack_mode="auto", lease_s=9)
    made = await call(service.url, STREAM_TOKEN, wish)
    assert made["position"] == 3
    moved = await call(service.url, STREAM_TOKEN, reset_consumer(made, 1))
    assert moved["position"] == 1
    for field in ("filter", "ack_mode", "lease_s", "created_at"):
        assert moved[field] == made[field]


def test_a_single_call_does_not_wait_for_a_service_that_is_away() -> None:
    with pytest.raises(Unreachable):
        call_sync(f"http://127.0.0.1:{free_port()}", "t", list_consumers())


async def test_calls_list_show_and_delete(service: Running) -> None:
    await call(service.url, STREAM_TOKEN, put_consumer("billing"))

    def rest() -> list[str]:
        names = call_sync(service.url, STREAM_TOKEN, list_consumers())["consumers"]
        assert call_sync(service.url, STREAM_TOKEN, delete_consumer("billing")) is None
        return [each["name"] for each in names]

    assert await asyncio.to_thread(rest) == ["billing"]
    with pytest.raises(Refused, match="unknown_consumer"):
        await call(service.url, STREAM_TOKEN, get_consumer("billing"))


async def test_auto_goes_on_where_the_interrupted_loop_was(service: Running) -> None:
    await append(service, 3)
    await call(service.url, STREAM_TOKEN, put_consumer("billing", start="start", ack_mode="auto"))
    events = subscribe(service.url, STREAM_TOKEN, consumer="billing")
    async with asyncio.timeout(DEADLINE_S), aclosing(events):
        assert [(await anext(events)).position for _ in range(3)] == [1, 2, 3]
        following = asyncio.create_task(anext(events))
        service.service.hub.close_all("max_age")
        await append(service, 1)
        assert (await following).position == 4
    known = await call(service.url, STREAM_TOKEN, get_consumer("billing"))
    assert known["position"] >= 3


async def test_a_reset_takes_the_loop_back_and_refuses_its_older_events(service: Running) -> None:
    await append(service, 3)
    wish = put_consumer("billing", start="start", lease_s=1)  # renewed, or lost, thrice a second
    made = await call(service.url, STREAM_TOKEN, wish)
    reasons: list[str] = []
    events = subscribe(
        service.url,
        STREAM_TOKEN,
        consumer="billing",
        on_interruption=lambda it: reasons.append(it.reason),
    )
    async with asyncio.timeout(DEADLINE_S), aclosing(events):
        old = [await anext(events) for _ in range(3)]
        assert await old[1].ack() == 2
        await call(service.url, STREAM_TOKEN, reset_consumer(made, "start"))
        again = await anext(events)
        assert again.position == 1
        with pytest.raises(LeaseLost):
            await old[2].ack()
        assert await again.ack() == 1
    assert reasons == ["the server ended the stream: lease_lost"]


async def test_leaving_the_loop_does_not_harm_an_acknowledgement_under_way() -> None:
    opened = stream(
        checkpoint(0),
        server.cloudevent_block(row(1)),
        hold=True,
        headers="Causeway-Lease: 4\r\n",
    )
    asked = asyncio.Event()

    async def never(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()

    interruptions: list[Interruption] = []
    async with (
        far_side(opened, never, refuse(200, b'{"position":1}')) as far,
        asyncio.timeout(DEADLINE_S),
    ):
        events = subscribe(far.url, "t", consumer="billing", on_interruption=interruptions.append)
        async with aclosing(events):
            event = await anext(events)
            acked = asyncio.ensure_future(event.ack())
            await asked.wait()
        assert await acked == 1
    assert interruptions == []  # it was not the service that cut it


async def test_an_event_of_a_shard_that_is_no_more_has_lost_its_lease(service: Running) -> None:
    await append(service, 2)
    await call(service.url, STREAM_TOKEN, put_consumer("billing", start="start"))
    [old] = await take(service, 1, consumer="billing")
    rows = await service.service.eventlog.read_after(0)
    shard = f"{shard_of(rows[0], 2)}/2"
    [new] = await take(service, 1, consumer="billing", shard=shard)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(LeaseLost):
            await old.ack()
        assert await new.ack() == 1


async def test_an_event_that_a_killed_process_sent_last_comes_again_and_ends_no_loop(
    service: Running, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(service, 2)
    # It does not run out by itself: only the end of the loop releases it.
    wish = put_consumer("billing", start="start", lease_s=3600)
    await call(service.url, STREAM_TOKEN, wish)
    sent = await take(service, 2, consumer="billing")
    async with asyncio.timeout(DEADLINE_S):
        while not await owner.fetchval(RELEASED):
            await asyncio.sleep(0.02)
    # It was killed before it wrote down how far it had sent.
    await owner.execute("UPDATE causeway.consumer_shard SET sent_position = 0")
    monkeypatch.setattr("service.acks.AHEAD_S", 0.1)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(LeaseLost, match="position 2 was not sent"):
            await sent[-1].ack()
        assert [event.position for event in await take(service, 2, consumer="billing")] == [1, 2]
