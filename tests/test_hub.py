"""The set of open streams: caps, what falls due, and the drain."""

import asyncio
from collections.abc import Callable

import pytest

from service.auth import Caller, Tokens
from service.errors import Draining, TooManyStreams
from service.hub import Hub, Subscriber
from service.metrics import Metrics
from service.window import Window
from tests.logkeeping import Owner
from tests.running import WITHIN_S, eventually, make_settings

READER = Caller("reader", "stream")
OTHER = Caller("other", "stream")


@pytest.fixture
def make_hub(owner: Owner) -> Callable[..., Hub]:
    def make(**overrides: object) -> Hub:
        settings = make_settings(**overrides)
        return Hub(settings, Tokens(settings, owner), Metrics())

    return make


def admit(
    hub: Hub, caller: Caller = READER, abort: Callable[[], None] = lambda: None
) -> Subscriber:
    return hub.admit(caller, 0, abort)


async def test_the_drain_spreads_the_ends_over_its_time_and_ends_all(
    make_hub: Callable[..., Hub],
) -> None:
    hub = make_hub()
    window = Window(max_events=1, max_bytes=1)
    clock = asyncio.get_running_loop().time

    async def end_of(subscriber: Subscriber) -> float:
        await subscriber.wait(window)
        assert subscriber.closing == "drain"
        return clock()

    ends = [asyncio.create_task(end_of(admit(hub))) for _ in range(8)]
    await asyncio.sleep(0)
    began = clock()
    await hub.drain(0.8)
    times = sorted(await asyncio.wait_for(asyncio.gather(*ends), WITHIN_S))
    for index, ended in enumerate(times):
        assert ended - began >= 0.1 * index - 0.005


async def test_nobody_is_admitted_once_the_drain_has_begun(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub()
    admit(hub)
    draining = asyncio.create_task(hub.drain(0.2))
    await asyncio.sleep(0)
    with pytest.raises(Draining) as refused:
        admit(hub)
    assert refused.value.status == 503
    assert refused.value.retry_after_s
    await draining


async def test_a_drain_of_nobody_takes_no_time(make_hub: Callable[..., Hub]) -> None:
    await asyncio.wait_for(make_hub().drain(3600), WITHIN_S)


async def test_the_caps_count_open_streams_and_forget_released_ones(
    make_hub: Callable[..., Hub],
) -> None:
    hub = make_hub(stream_max=3, stream_max_per_token=2)
    first = admit(hub)
    admit(hub)
    with pytest.raises(TooManyStreams, match="CAUSEWAY_STREAM_MAX_PER_TOKEN"):
        admit(hub)
    admit(hub, OTHER)
    with pytest.raises(TooManyStreams, match=r"CAUSEWAY_STREAM_MAX\)"):
        admit(hub, OTHER)
    hub.release(first)
    assert len(hub) == 2
    admit(hub)
    assert len(hub) == 3


async def test_streams_reach_their_age_apart_from_each_other(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(stream_max_age_s=100)
    admitted = [admit(hub) for _ in range(200)]
    ages = [subscriber.ends_at - subscriber.sent_at for subscriber in admitted]
    assert 80 - 0.001 <= min(ages) < 85
    assert 95 < max(ages) <= 100 + 0.001


async def test_the_pulse_wakes_the_silent_and_aborts_the_stalled(
    make_hub: Callable[..., Hub],
) -> None:
    hub = make_hub(heartbeat_s=0.2, send_timeout_s=0.2)
    aborted: list[bool] = []
    silent = admit(hub)
    stalled = admit(hub, abort=lambda: aborted.append(True))
    stalled.sending_since = asyncio.get_running_loop().time()
    pulse = asyncio.create_task(hub.pulse())
    await eventually(lambda: silent.is_heartbeat_due and stalled.closing == "send_timeout")
    pulse.cancel()
    assert aborted
    assert silent.closing is None


async def test_the_first_reason_to_close_counts(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub()
    subscriber = admit(hub)
    subscriber.close("max_age")
    hub.close_all("drain")
    assert subscriber.closing == "max_age"


async def test_a_stream_waits_on_while_take_does_all_there_is_to_do(
    make_hub: Callable[..., Hub],
) -> None:
    window = Window(max_events=1, max_bytes=1)
    answers = [True, True, False]
    waiting = asyncio.create_task(admit(make_hub()).wait(window, lambda: answers.pop(0)))
    await asyncio.sleep(0)
    for left in (2, 1):
        window.start(left, b"")
        await asyncio.sleep(0)
        assert len(answers) == left
        assert not waiting.done()
    window.start(0, b"")
    await asyncio.wait_for(waiting, WITHIN_S)


async def test_an_error_in_take_is_its_own_streams_and_no_others(
    make_hub: Callable[..., Hub],
) -> None:
    window, hub = Window(max_events=1, max_bytes=1), make_hub()

    def fail() -> bool:
        raise RuntimeError("broken")

    broken = asyncio.create_task(admit(hub).wait(window, fail))
    sound = [asyncio.create_task(admit(hub).wait(window)) for _ in range(8)]
    await asyncio.sleep(0)
    window.start(0, b"")
    await asyncio.wait_for(asyncio.gather(*sound), WITHIN_S)
    with pytest.raises(RuntimeError, match="broken"):
        await broken


async def test_a_stream_that_is_to_end_or_to_beat_wakes_whatever_take_could_do(
    make_hub: Callable[..., Hub],
) -> None:
    window, hub = Window(max_events=1, max_bytes=1), make_hub()
    ending, beating = admit(hub), admit(hub)
    waiting = [asyncio.create_task(it.wait(window, lambda: True)) for it in (ending, beating)]
    await asyncio.sleep(0)
    ending.close("drain")
    beating.is_heartbeat_due = True
    beating.wake()
    await asyncio.wait_for(asyncio.gather(*waiting), WITHIN_S)
