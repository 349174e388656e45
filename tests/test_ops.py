"""`/metrics`, `/livez`, `/readyz`: in every state that they tell apart."""

import asyncio
import subprocess
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service import app as app_module
from service.db import Connection
from service.latency import VIA
from service.metrics import (
    ATTEMPT_OUTCOMES,
    CLOSE_REASONS,
    CUT_REASONS,
    DISABLED_REASONS,
    LOGINS,
    OUTCOMES,
    SPAN_OUTCOMES,
)
from service.mirror_metrics import FALLBACK_REASONS, PUBLISH_OUTCOMES
from tests.bridge import body, post
from tests.conftest import need_program
from tests.raw import Gate
from tests.running import (
    ADMIN_TOKEN,
    SECRET,
    STREAM_TOKEN,
    WITHIN_S,
    Database,
    Running,
    eventually,
    make_settings,
    running_service,
)
from tests.test_receive import Start

CLOSED_LABELS = {
    "source": {"default", "-"},
    "outcome": {*OUTCOMES, *LOGINS, *ATTEMPT_OUTCOMES, *SPAN_OUTCOMES, *PUBLISH_OUTCOMES},
    "secret": {"current", "previous"},
    "reason": {*CLOSE_REASONS, *CUT_REASONS, *DISABLED_REASONS, *FALLBACK_REASONS},
    "via": set(VIA),
}


async def health(running: Running, path: str) -> tuple[int, dict[str, str]]:
    """Return the status of a health check, and what each of its parts says."""
    async with httpx2.AsyncClient() as client:
        answer = await client.get(running.url + path)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["ok"] is (answer.status_code == 200)
    checks: dict[str, str] = answer.json()["checks"]
    return answer.status_code, checks


async def until(running: Running, path: str, status: int) -> dict[str, str]:
    """Return what `path` says once it answers `status`."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            found, checks = await health(running, path)
            if found == status:
                return checks
            await asyncio.sleep(0.02)


def wrong(checks: dict[str, str]) -> dict[str, str]:
    """Return the checks that do not pass."""
    return {name: text for name, text in checks.items() if text != "ok"}


async def test_a_good_service_is_live_and_ready(service: Running) -> None:
    assert await health(service, "/livez") == (200, {"loops": "ok"})
    status, checks = await health(service, "/readyz")
    assert (status, wrong(checks)) == (200, {})
    assert set(checks) == {"loops", "database", "tail", "draining"}


async def test_a_loop_that_has_ended_is_not_live(service: Running) -> None:
    async def over() -> None:
        return

    service.service.supervisor.start("short", over)
    await eventually(lambda: service.fatal == ["short"])
    assert wrong(await until(service, "/livez", 503)) == {"loops": "a loop has ended"}
    assert wrong(await until(service, "/readyz", 503)) == {"loops": "a loop has ended"}


async def test_a_database_that_is_away_is_not_ready_but_live(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "STALE_READ_S", 0.3)
    gate = Gate(database, tmp_path)
    await gate.open()
    async with running_service(make_settings(), gate.database) as running:
        await until(running, "/readyz", 200)
        await gate.cut()
        found = wrong(await until(running, "/readyz", 503))
        assert list(found) == ["database"]
        assert "could not be read" in found["database"]
        assert (await health(running, "/livez"))[0] == 200
        await gate.open()
        await until(running, "/readyz", 200)
    await gate.cut()


async def test_while_it_drains_it_is_not_ready_but_takes_webhooks(start: Start) -> None:
    running = await start(drain_s=3600.0)
    readers = [asyncio.create_task(_read(running)) for _ in range(2)]
    await eventually(lambda: len(running.service.hub) == 2)
    running.server.stop()
    found = wrong(await until(running, "/readyz", 503))
    assert list(found) == ["draining"]
    assert (await health(running, "/livez"))[0] == 200
    assert (await post(running.url, body())).status_code == 200
    async with httpx2.AsyncClient(headers=running.headers) as client:
        answer = await client.get(f"{running.url}/stream")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert int(answer.headers["retry-after"]) > 0
    running.service.hub.close_all("drain")  # the second would have its turn half an hour later
    assert all(b"stream.closing" in content for content in await asyncio.gather(*readers))
    running.server.force_exit = True


async def _read(running: Running) -> bytes:
    async with httpx2.AsyncClient(headers=running.headers, timeout=WITHIN_S) as client:
        return (await client.get(f"{running.url}/stream?control=1")).content


async def test_a_log_that_lost_its_end_is_an_alarm_and_takes_webhooks(
    service: Running, owner: Connection
) -> None:
    registry = service.service.metrics.registry
    await post(service.url, body())
    await post(service.url, body())
    await eventually(lambda: service.service.window.position == 2)
    assert registry.get_sample_value("causeway_log_damaged") == 0
    await owner.execute("ALTER TABLE causeway.event DISABLE TRIGGER ALL")
    await owner.execute("DELETE FROM causeway.event WHERE position = 2")
    await eventually(lambda: registry.get_sample_value("causeway_log_damaged") == 1)
    await until(service, "/readyz", 200)
    assert (await post(service.url, body())).headers["causeway-position"] == "2"
    assert registry.get_sample_value("causeway_log_damaged") == 1


async def test_a_tail_that_is_far_behind_is_not_ready(start: Start, owner: Connection) -> None:
    running = await start(window_events=10, poll_s=60)
    await until(running, "/readyz", 200)
    async with asyncio.timeout(WITHIN_S):
        found: dict[str, str] = {}
        while not found:  # it may not listen yet
            await owner.execute("SELECT pg_notify('causeway_head', '5000')")
            await asyncio.sleep(0.02)
            found = wrong((await health(running, "/readyz"))[1])
    assert found == {"tail": "the tail is 5000 events behind"}


async def scrape(running: Running) -> str:
    """Return the text of `/metrics`."""
    async with httpx2.AsyncClient() as client:
        answer = await client.get(f"{running.url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return answer.text


async def test_metrics_can_be_parsed_and_show_what_happened(service: Running) -> None:
    await post(service.url, body())
    await post(service.url, body(), secrets=("wrong",))
    await eventually(lambda: service.service.window.position == 1)
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(await scrape(service))
        for sample in family.samples
    }
    received = "causeway_webhooks_received_total"
    assert values[received, (("outcome", "accepted"), ("source", "default"))] == 1
    assert values[received, (("outcome", "bad_signature"), ("source", "default"))] == 1
    assert values["causeway_log_head_position", ()] == 1
    assert values["causeway_append_seconds_count", ()] == 1
    assert values["causeway_webhook_response_seconds_count", ()] == 2
    assert values["causeway_tail_lag_events", ()] == 0
    assert values["causeway_stream_subscribers", ()] == 0
    assert values["process_open_fds", ()] > 0


async def test_promtool_finds_nothing_wrong_with_our_metrics(service: Running) -> None:
    promtool = need_program("promtool")
    await post(service.url, body())
    text = await scrape(service)
    done = await asyncio.to_thread(
        subprocess.run,
        [promtool, "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    complaints = (done.stdout + done.stderr).splitlines()
    assert [line for line in complaints if "causeway_" in line or "error" in line.lower()] == []


async def test_no_caller_can_make_up_a_label(service: Running) -> None:
    async def series() -> set[str]:
        for number in range(5):
            await post(service.url, body(), source=f"source-{number}")
            await post(service.url, b"[]")
            await post(service.url, body(f"type.{number}"))
        return {
            line.rpartition(" ")[0]
            for line in (await scrape(service)).splitlines()
            if line.startswith("causeway_")
        }

    first = await series()
    async with httpx2.AsyncClient() as client:
        for number in range(5):
            await client.get(f"{service.url}/path-{number}")
            await client.get(f"{service.url}/stream", headers={"authorization": f"Bearer {number}"})
    assert await series() == first
    for family in text_string_to_metric_families(await scrape(service)):
        for sample in family.samples:
            for label, value in sample.labels.items():
                if sample.name.startswith("causeway_") and label != "le":
                    assert value in CLOSED_LABELS[label], sample


async def test_metrics_and_health_show_no_secret(service: Running) -> None:
    await post(service.url, body())
    _, checks = await health(service, "/readyz")
    shown = await scrape(service) + str(checks)
    assert not any(secret in shown for secret in (SECRET, STREAM_TOKEN, ADMIN_TOKEN))
