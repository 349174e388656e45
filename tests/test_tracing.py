"""Traces: what happened to one event, in whichever process, is one trace at a real collector."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service import otlp, tracing
from service.errors import ConfigError
from service.span import first_span_id, new_span_id, trace_id, traceparent
from tests import bridge
from tests.collector import Collector, Kept, collector
from tests.commands import command
from tests.receiver import Receiver
from tests.relaying import RELAY, add_to
from tests.running import (
    ROOT,
    SECRET,
    WITHIN_S,
    Database,
    Running,
    environment,
    eventually,
    free_port,
    make_settings,
    running_service,
    service_process,
)

Start = Callable[..., Awaitable[Running]]
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SERVER, INTERNAL, CLIENT = 2, 1, 3


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the service of this process reports to, often."""
    with collector() as kept:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", kept.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")  # else it sends a batch once more
        yield kept


async def link_of(running: Running, position: int = 1) -> bytes:
    """Return the link of an event as its readers are told it."""
    async with httpx2.AsyncClient() as client:
        answer = await client.get(f"{running.url}/events/{position}", headers=running.headers)
    return bytes.fromhex(answer.json()["link"])


def by_name(spans: list[Kept]) -> dict[str, Kept]:
    """Return spans of different names by their names."""
    found = {span.name: span for span in spans}
    assert len(found) == len(spans), [span.name for span in spans]
    return found


def lasted_ns(span: Kept) -> int:
    return span.ended_ns - span.began_ns


def spans_counted(running: Running, outcome: str) -> float:
    """Return how many spans ended so."""
    value = running.service.metrics.registry.get_sample_value(
        "causeway_trace_spans_total", {"outcome": outcome}
    )
    assert value is not None
    return value


async def test_receive_append_stream_and_relay_of_one_event_are_one_trace(
    start: Start, kept: Collector
) -> None:
    running = await start(traces=True, **RELAY)
    before_ns = time.time_ns()
    with Receiver() as receiver:
        hook = await add_to(running, f"{receiver.url}/good?token=hidden-7f3a")
        payload = bridge.body(account_id=77001122)
        headers = {"traceparent": CALLER, "authorization": "hidden-7f3a"}
        async with httpx2.AsyncClient(headers=headers) as client:
            assert (await bridge.post(running.url, payload, client=client)).status_code == 200
        [call] = await receiver.wait_for(1)
        await eventually(lambda: len(kept.spans) >= 4)
    link = await link_of(running)
    spans = by_name(kept.spans)
    assert set(spans) == {"receive", "append", "stream", "relay"}
    assert {span.trace for span in kept.spans} == {link[:16].hex()}
    first = spans["receive"]
    assert (first.span, first.parent) == (link[16:24].hex(), "")
    assert {spans[name].parent for name in ("append", "stream", "relay")} == {first.span}
    assert len({span.span for span in kept.spans}) == 4
    assert [spans[n].kind for n in ("receive", "append", "stream", "relay")] == [
        *(SERVER, INTERNAL, INTERNAL, CLIENT)
    ]
    # Where a span begins is reckoned from its end and how long it took: the order of two beginnings
    # is not for sure. One that lies within another ends before it, and took no longer.
    assert all(before_ns <= span.began_ns <= span.ended_ns for span in kept.spans)
    assert spans["append"].ended_ns <= first.ended_ns <= time.time_ns()
    assert lasted_ns(spans["append"]) <= lasted_ns(first)
    assert lasted_ns(spans["relay"]) > 0
    event = {
        "causeway.position": 1,
        "cloudevents.event_id": f"1.{link[:4].hex()}",
        "cloudevents.event_type": "item.account.updated",
        "cloudevents.event_source": "/bridge/default",
    }
    assert first.attributes == event | {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "causeway.duplicate": False,
    }
    assert first.links == (tuple(CALLER.split("-")[1:3]),)
    assert spans["append"].attributes == event | {"causeway.batch_events": 1}
    assert spans["relay"].attributes == {
        "causeway.position": 1,
        "cloudevents.event_id": event["cloudevents.event_id"],
        "causeway.webhook": hook.webhook_id,
        "causeway.attempt": 1,
        "causeway.state": "delivered",
        "http.request.method": "POST",
        "http.response.status_code": 200,
    }
    assert call.headers["traceparent"] == f"00-{first.trace}-{spans['relay'].span}-01"
    assert first.resource["service.name"] == "causeway"
    sent = b"".join(kept.raw)
    for hidden in (b"hidden-7f3a", b"77001122", bridge.USER.encode(), SECRET.encode()):
        assert hidden not in sent


async def test_each_attempt_of_the_relay_is_a_span_and_says_how_it_ended(
    start: Start, kept: Collector
) -> None:
    running = await start(traces=True, **RELAY)
    with Receiver() as receiver:
        await add_to(running, f"{receiver.url}/status/500")
        await bridge.post(running.url, bridge.body())
        await eventually(lambda: kept.named("relay"))
    span = kept.named("relay")[0]
    assert span.is_error
    assert span.attributes["error.type"] == "server_error"
    assert span.attributes["http.response.status_code"] == 500
    assert span.attributes["causeway.state"] == "pending"


async def test_bridges_retry_is_one_more_receipt_in_the_same_trace(
    start: Start, kept: Collector
) -> None:
    running = await start(traces=True)
    payload = bridge.body()
    await bridge.post(running.url, payload)
    await bridge.post(running.url, payload)
    await eventually(lambda: len(kept.spans) >= 4)
    first, retry = sorted(kept.named("receive"), key=lambda span: span.began_ns)
    assert (first.trace, first.span, "") == (retry.trace, retry.parent, first.parent)
    assert retry.attributes["causeway.duplicate"] is True
    assert len(kept.named("append")) == len(kept.named("stream")) == 1


async def test_two_replicas_tell_of_one_trace(start: Start, kept: Collector) -> None:
    receiving = await start(traces=True, roles="ingest")
    await start(traces=True, roles="stream")
    await start(traces=True, roles="stream")
    await bridge.post(receiving.url, bridge.body())
    await eventually(lambda: len(kept.spans) >= 4)
    assert sorted(span.name for span in kept.spans) == ["append", "receive", "stream", "stream"]
    assert len({span.trace for span in kept.spans}) == 1
    [first] = kept.named("receive")
    assert {span.parent for span in kept.named("stream")} == {first.span}


async def test_what_a_process_loads_at_its_start_is_no_span(start: Start, kept: Collector) -> None:
    old = await start()
    await bridge.post(old.url, bridge.body())
    await start(traces=True, roles="stream")
    await bridge.post(old.url, bridge.body())
    await eventually(lambda: kept.spans)
    assert [span.attributes["causeway.position"] for span in kept.spans] == [2]


async def test_a_sampler_takes_all_of_a_trace_or_nothing(
    start: Start, kept: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    running = await start(traces=True, **RELAY)
    await start(traces=True, roles="stream")
    with Receiver() as receiver:
        await add_to(running, f"{receiver.url}/good")
        async with httpx2.AsyncClient() as client:
            for _ in range(24):
                await bridge.post(running.url, bridge.body(), client=client)
        calls = await receiver.wait_for(24)
        flags = {
            call.headers["traceparent"][3:35]: call.headers["traceparent"][-2:] for call in calls
        }
        taken = {trace for trace, flag in flags.items() if flag == "01"}
        assert 0 < len(taken) < 24
        await eventually(lambda: len(kept.spans) >= 5 * len(taken))
    # The sampler of the standard: the lower half of the id, below the share of what there is.
    assert taken == {trace for trace in flags if int(trace[16:], 16) < 2**63}
    for trace in taken:
        names = sorted(span.name for span in kept.spans if span.trace == trace)
        assert names == ["append", "receive", "relay", "stream", "stream"]
    assert len(kept.spans) == 5 * len(taken)


async def test_a_collector_that_refuses_costs_spans_and_two_lines_and_no_event(
    start: Start, kept: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    kept.status = 400
    running = await start(traces=True)
    for n in (1, 2, 3):
        assert (await bridge.post(running.url, bridge.body())).status_code == 200
        await eventually(lambda lost=3 * n: spans_counted(running, "failed") == lost)
    kept.status = 200
    assert (await bridge.post(running.url, bridge.body())).status_code == 200
    await eventually(lambda: spans_counted(running, "exported") == 3)
    assert {span.attributes["causeway.position"] for span in kept.spans} == {4}

    def lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if "traces are" in record.getMessage()]

    await eventually(lambda: len(lines()) >= 2)  # said by another thread, after it has counted
    said = lines()
    assert [it.message for it in said] == ["traces are not exported", "traces are exported again"]
    assert "400" in str(vars(said[0])["reason"])
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_too_many_spans_are_dropped_and_counted(
    start: Start, kept: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MAX_WAITING", 4)
    monkeypatch.setattr(otlp, "MAX_QUEUED", 5)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5")
    kept.hold.set()
    running = await start(traces=True)
    posted = await asyncio.gather(*(bridge.post(running.url, bridge.body()) for _ in range(20)))
    assert {answer.status_code for answer in posted} == {200}
    await eventually(lambda: spans_counted(running, "dropped") >= 60 - 5)
    kept.hold.clear()
    await eventually(lambda: spans_counted(running, "exported") == len(kept.spans) == 5)
    assert spans_counted(running, "dropped") == 60 - 5


async def test_what_is_left_is_sent_at_the_stop(
    database: Database, kept: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", WITHIN_S)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "webhooks")
    async with running_service(make_settings(traces=True, roles="ingest"), database) as running:
        await bridge.post(running.url, bridge.body())
    assert sorted(span.name for span in kept.spans) == ["append", "receive"]
    assert {span.resource["service.name"] for span in kept.spans} == {"webhooks"}


async def test_a_collector_that_is_away_does_not_hold_the_stop(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", 0.5)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    async with running_service(make_settings(traces=True, drain_s=0), database) as running:
        await bridge.post(running.url, bridge.body())
        traces: Any = running.service.appender._on_committed
        await eventually(lambda: traces.__self__._exporter.waiting == 3)
    assert "traces given up at the stop" in caplog.messages  # and not when the exporter gives up
    await eventually(lambda: "traces-close" not in {it.name for it in threading.enumerate()})


# A service in a process of its own that cannot load OpenTelemetry at all.
WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
"""


async def test_switched_on_without_the_extra_is_said_at_the_start(
    database: Database, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    settings = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "DATABASE_URL": database.service_dsn}
    done = await command("serve", **settings, CAUSEWAY_TRACES="true")
    assert done.code == 1
    assert "CAUSEWAY_TRACES=true" in done.err
    assert "pip install 'causeway[otel]'" in done.err
    assert "Traceback" not in done.err


async def test_switched_off_nothing_of_opentelemetry_is_loaded(
    database: Database, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    env = environment(
        PYTHONPATH=f"{tmp_path}:{ROOT}",
        DATABASE_URL=database.service_dsn,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
    )
    with service_process(env, tmp_path / "log") as process:
        assert (await bridge.post(process.url, bridge.body())).status_code == 200
        assert process.terminate() == 0
    assert "opentelemetry" not in process.output()


async def test_settings_that_the_sdk_refuses_stop_the_start(
    start: Start, kept: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100000")
    with pytest.raises(ConfigError, match=r"OTEL_\* settings are refused: max_export_batch_size"):
        await start(traces=True)


def test_a_traceparent_is_as_the_standard_writes_it() -> None:
    link = bytes(range(32))
    assert trace_id(link) == 0x000102030405060708090A0B0C0D0E0F
    assert first_span_id(link) == 0x1011121314151617
    spelt = traceparent(link, 0xB7AD6B7169203331, is_sampled=False)
    assert spelt == b"00-000102030405060708090a0b0c0d0e0f-b7ad6b7169203331-00"
    assert all(0 < new_span_id() < 2**64 for _ in range(100))
