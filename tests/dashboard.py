"""A dashboard for tests: a service as a process of its own, on its own database, and clients of it.

A process, because a browser is driven by blocking calls: in the test's own they would stop it.
"""

import asyncio
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from service.embedded import EmbeddedPostgres
from service.signature import HEADER, sign
from tests.bench.databases import fresh_database
from tests.chromium import Browser, chromium
from tests.running import ADMIN_TOKEN, SECRET, Process, environment, service_process

ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}
PATHS = ("", "/events", "/items", "/sources", "/consumers", "/webhooks", "/tokens", "/log")
OURS = {"sec-fetch-site": "same-origin"}


@contextmanager
def site(postgres: EmbeddedPostgres, **settings: str) -> Iterator[Process]:
    """Run a service on a new database until the end of the block."""
    runner = asyncio.Runner()
    database = fresh_database(postgres)
    with runner, tempfile.TemporaryDirectory(prefix="causeway-dashboard-") as folder:
        dsn = runner.run(database.__aenter__()).service_dsn
        try:
            env = environment(DATABASE_URL=dsn, CAUSEWAY_DRAIN_S="0", **settings)
            with service_process(env, Path(folder) / "log") as process:
                yield process
        finally:
            runner.run(database.__aexit__(None, None, None))


@contextmanager
def browsing(postgres: EmbeddedPostgres, **settings: str) -> Iterator[tuple[Process, Browser]]:
    """A site, and a browser that is logged in."""
    with (
        site(postgres, **settings) as process,
        tempfile.TemporaryDirectory(prefix="causeway-browser-") as folder,
        chromium(process.url, Path(folder)) as browser,
    ):
        browser.log_in(ADMIN_TOKEN)
        yield process, browser


def send(process: Process, body: bytes, *, secret: str = SECRET) -> int:
    """Send one call as Bridge does; return its position."""
    headers = {HEADER: sign(body, (secret,))}
    answer = httpx2.post(f"{process.url}/webhooks/bridge", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return int(answer.headers["causeway-position"])


@contextmanager
def logged_in(process: Process, token: str = ADMIN_TOKEN) -> Iterator[httpx2.Client]:
    """A client with a session, and without a browser's guards."""
    with httpx2.Client(base_url=process.url, headers=OURS) as client:
        answer = client.post("/dashboard/login", data={"token": token})
        assert answer.status_code == 303, answer.text
        yield client


def csrf_of(client: httpx2.Client) -> str:
    """Return the session's CSRF token, as a page has it."""
    found = re.search(r'data-csrf="([^"]+)"', client.get("/dashboard/log").text)
    assert found is not None
    return found[1]


def make_token(process: Process, name: str, scope: str = "stream") -> tuple[int, str]:
    """Make a token by the API; return its id and itself."""
    wish = {"name": name, "scope": scope}
    answer = httpx2.post(f"{process.url}/api/tokens", json=wish, headers=ADMIN)
    assert answer.status_code == 201, answer.text
    return answer.json()["token_id"], answer.json()["token"]
