"""A real Prometheus scrapes a live service: alerts and dashboard have their answers."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.bridge import body, post
from tests.conftest import need_program
from tests.k8s import K8S
from tests.reader import reading
from tests.running import WITHIN_S, Running, free_port

MONITORING = K8S / "components" / "monitoring"
RULES = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
DASHBOARD = json.loads((MONITORING / "causeway.json").read_text())
EXPRESSIONS = [
    target["expr"].replace("$__rate_interval", "1m")
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
]
# Nobody consumes by name or has a webhook here: these are for each consumer, for each webhook.
WITHOUT_SERIES = ("causeway_consumer_", "causeway_relay_p", "causeway_relay_o")
LONG = ("rate1h", "rate1d")


def rules(*kinds: str) -> list[dict[str, Any]]:
    """Return the rules that record, or that alert."""
    return [rule for group in RULES["groups"] for rule in group["rules"] if rule.keys() & {*kinds}]


class Prometheus:
    """Its HTTP interface."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def get(self, path: str, **query: str) -> Any:
        """Return the data of an answer, which must be a good one."""
        async with httpx2.AsyncClient() as client:
            answer = await client.get(f"{self._url}/api/v1/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression has now."""
        result: list[dict[str, Any]] = (await self.get("query", query=expression))["result"]
        return result

    async def health(self) -> list[str]:
        """Return the health of each rule."""
        groups = (await self.get("rules"))["groups"]
        return [rule["health"] for group in groups for rule in group["rules"]]

    async def until(self, expression: str) -> None:
        """Return once an expression has an answer; fail the test if it has none in time."""

        async def poll() -> None:
            while not await self.query(expression):
                await asyncio.sleep(0.1)

        try:
            await asyncio.wait_for(poll(), WITHIN_S)
        except TimeoutError:
            pytest.fail(f"no answer within {WITHIN_S} s: {expression}")

    async def until_ready(self) -> None:
        """Return once it answers queries."""

        async def poll() -> None:
            async with httpx2.AsyncClient() as client:
                while True:
                    try:
                        if (await client.get(f"{self._url}/-/ready")).status_code == 200:
                            return
                    except httpx2.TransportError:
                        pass  # not listening yet
                    await asyncio.sleep(0.1)

        await asyncio.wait_for(poll(), WITHIN_S)


@pytest.fixture
async def prometheus(service: Running, tmp_path: Path) -> AsyncIterator[Prometheus]:
    """A Prometheus with our rules that scrapes the test's service as the PodMonitor would."""
    target = service.url.removeprefix("http://")
    scraped = {"targets": [target], "labels": {"pod": "causeway-0"}}
    fast = [group | {"interval": "1s"} for group in RULES["groups"]]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": fast}))
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "causeway", "static_configs": [scraped]}],
    }
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = (
        *(need_program("prometheus"), f"--config.file={tmp_path / 'prometheus.yaml'}"),
        *(f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}"),
    )
    with (tmp_path / "log").open("wb") as output:
        popen = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        made = Prometheus(f"http://127.0.0.1:{port}")
        await made.until_ready()
        yield made
    finally:
        popen.terminate()
        popen.wait(WITHIN_S)


async def test_every_expression_has_its_answer(service: Running, prometheus: Prometheus) -> None:
    async with reading(service.url):
        await prometheus.until('up{job="causeway"} == 1')
        for _ in range(3):
            assert (await post(service.url, body())).status_code == 200
        await prometheus.until("causeway_log_head_position >= 3")
        assert (await post(service.url, body())).status_code == 200
        await prometheus.until("causeway:answers_bad:ratio_rate5m")
        await prometheus.until("causeway_database_bytes > 0")
        await prometheus.until("causeway:deliveries_late:ratio_rate1d")
        await dashboard_answers(prometheus)
        await nothing_fires_that_should_not(prometheus)


async def dashboard_answers(prometheus: Prometheus) -> None:
    """Every panel shows something, but those that are about what is not there."""
    assert len(EXPRESSIONS) >= 20
    for expression in EXPRESSIONS:
        if any(name in expression for name in WITHOUT_SERIES):
            await prometheus.query(expression)
        else:
            await prometheus.until(expression)


async def nothing_fires_that_should_not(prometheus: Prometheus) -> None:
    """Every rule is evaluated without an error; a healthy service wakes nobody."""
    # The service of tests has two secrets for its source: that alone begins to count here.
    # On a busy machine deliveries may be late, one of four: promtool plays what that means.
    others = 'ALERTS{alertname!~"CausewayDeliveriesBurn.*"}'
    await prometheus.until(
        f'ALERTS{{alertname="CausewaySecretRotationHalfDone"}} and on() (count({others}) == 1)'
    )
    assert await prometheus.query('ALERTS{alertstate="firing"}') == []
    async with asyncio.timeout(WITHIN_S):
        while "unknown" in (health := await prometheus.health()):  # not evaluated yet
            await asyncio.sleep(0.1)
    assert health == ["ok"] * len(rules("record", "alert"))
    for rule in rules("alert"):
        await prometheus.query(rule["expr"])
    answers = await prometheus.query("causeway:answers_bad:ratio_rate5m")
    assert [sample["value"][1] for sample in answers] == ["0"]
