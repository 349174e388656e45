"""schemathesis tries the live service by its own document, and finds nothing.

It makes thousands of requests, good and bad ones, and chains of them. `GET /stream` is endless, so
schemathesis gets `HEAD /stream`, which takes the same way as far as the answer's headers; `GET`
itself is tried here with hypothesis.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service import stream
from service.signature import HEADER, sign
from tests import bridge
from tests.described import codes, openapi, operations
from tests.relaying import KEY
from tests.running import SECRET, Database, Process, environment, service_process

WITHIN_S = 900
SEED = "3"  # the same requests each time: a red build is the commit's fault
EVENTS = 30


@pytest.fixture
def process(database: Database, tmp_path: Path) -> Iterator[Process]:
    """A service with some events and a consumer."""
    env = environment(
        DATABASE_URL=database.service_dsn,
        CAUSEWAY_SECRET_KEY=KEY,
        CAUSEWAY_RELAY_ALLOWED_NETWORKS="127.0.0.0/8",
    )
    with service_process(env, tmp_path / "log") as running:
        with httpx2.Client(base_url=running.url, headers=running.headers) as client:
            for number in range(EVENTS):
                body = bridge.body(item_id=number % 3)
                sent = client.post(
                    "/webhooks/bridge", content=body, headers={HEADER: sign(body, (SECRET,))}
                )
                assert sent.status_code == 200
            made = client.put("/consumers/billing", json={"start": "start"})
            assert made.status_code == 201
        yield running


# Who asks, and what schemathesis is told beside what it always is.
CALLERS = {
    "with": (),
    "without": (),
    "reader": ("--include-path-regex", "^/api", "--phases", "examples,coverage"),
}


@pytest.mark.parametrize("token", CALLERS)
def test_schemathesis_finds_nothing(process: Process, tmp_path: Path, token: str) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{process.url}/openapi.json"),
            *("--exclude-operation-id", "openStream", "--checks", "all"),
            # It knows no rules between parameters: `what_fits_the_schemas_is_taken` does.
            *("--exclude-checks", "positive_data_acceptance"),
            *("--max-examples", "8", "--seed", SEED, "--no-color"),
            # How fast data is made says nothing of the service.
            *("--suppress-health-check", "all", "--request-timeout", "120"),
            *CALLERS[token],
        ],
        env=environment(
            SCHEMATHESIS_HOOKS="tests.schemathesis_hooks",
            CAUSEWAY_TEST_TOKEN=token,
        ),
        cwd=tmp_path,  # it leaves a folder behind
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None
    assert int(generated[1]) > 500
    counts = re.search(r"Selected: (\d+)/\d+\s+Tested: (\d+)", done.stdout)
    assert counts is not None
    assert counts[1] == counts[2]
    part = "/api" if token == "reader" else "/"
    meant = sum(path.startswith(part) for path, _, _ in operations())
    assert int(counts[2]) >= meant - 2  # all but `GET /stream`, which it may count with `HEAD`
    assert '"level":"error"' not in process.output()


WORDS = st.one_of(
    st.text(max_size=40),
    st.integers().map(str),
    st.from_regex(r"[0-9]{1,20}(\.[0-9a-f]{1,9})?", fullmatch=True),
    st.sampled_from(["billing", "0/1", "1/2", "0/64", "63/64", "item.*", "start", "0", "1", "\0"]),
    st.sampled_from(
        ["2026-11-23T09:00:00Z", "0001-01-01", "9999-12-31T23:59:59-23:59", "9" * 5000]
    ),
)
QUERIES = st.lists(
    st.tuples(
        st.sampled_from(sorted(stream.PARAMS - {"access_token"})) | st.text(max_size=8), WORDS
    ),
    max_size=4,
)
LAST_IDS = st.none() | st.from_regex(r"[ -~]{0,40}", fullmatch=True) | st.integers(0, 40).map(str)


@given(query=QUERIES, last_id=LAST_IDS)
@example(query=[("consumer", "\0")], last_id=None)
@example(query=[("consumer", "billing"), ("shard", "0/1"), ("wait", "0")], last_id="5")
@example(query=[("since", "9" * 5000)], last_id=None)
@example(query=[("item_id", "-" + "9" * 19)], last_id="0" * 30)
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,  # one service for all examples
        HealthCheck.too_slow,
    ],
)
def test_a_stream_answers_any_request_as_described(
    process: Process, query: list[tuple[str, str]], last_id: str | None
) -> None:
    described = openapi["paths"]["/stream"]["get"]["responses"]
    headers = {**process.headers, **({} if last_id is None else {"last-event-id": last_id})}
    with (
        httpx2.Client(base_url=process.url, headers=headers, timeout=WITHIN_S) as client,
        client.stream("GET", "/stream", params=tuple(query)) as response,
    ):
        answer = described[str(response.status_code)]
        assert response.status_code < 500
        if response.status_code != 200:
            response.read()
            assert response.json()["error"]["code"] in codes(answer)
