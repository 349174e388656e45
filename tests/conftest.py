"""Fixtures: a real Postgres with a database of its own for each test, a real server on a free port.

The database is cloned from a template that is migrated once. Everything binds to 127.0.0.1.
"""

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import hypothesis
import pytest
import uvloop
from httpx2._config import DEFAULT_TIMEOUT_CONFIG

from service.config import Settings
from service.db import SESSION
from service.embedded import EmbeddedPostgres
from service.migrate import migrate
from tests.running import (
    WITHIN_S,
    Database,
    Running,
    execute_alone,
    make_settings,
    running_service,
)

if TYPE_CHECKING:
    from tests.nats_server import NatsServer

TEMPLATE = "causeway_template"
# Their services follow the log in Postgres, and once more in its mirror. Not among them:
# test_order, which has no tail, and test_pages: pages are read from Postgres in both cases.
ON_BOTH_TAILS = {"test_stream", "test_stream_slow", "test_consumer_stream"}
# The first two need that what was appended at once is read at once: a stream's messages come one by
# one. The lag of consumers is looked up more seldom over NATS.
ON_POSTGRES_ONLY = {
    "test_subscribers_at_one_cursor_share_one_chunk",
    "test_a_live_stream_that_falls_behind_goes_on_in_the_history_it_has_read",
    "test_the_lag_is_a_metric_that_vanishes_with_its_consumer",
}
ON_BOTH_LOOPS = {"test_callback"}  # sockets and TLS differ between asyncio's loop and uvloop
# Files that take long begin first, in this order, and `make test` tells xdist to keep it: by itself
# that begins with the files of most tests, and leaves those of a few long ones, that build images,
# break things or drive other programs, for the end, where the others wait for the last of them.
LONG = (
    *("test_image", "test_schemathesis", "test_bench", "test_chaos", "test_workers"),
    "test_journey",
    *("test_nats_tail", "test_mirror", "test_quality", "test_fuzz_server", "test_http_abuse"),
    *("test_dashboard_webhooks", "test_dashboard", "test_dashboard_look", "test_k8s", "test_wheel"),
    *("test_faults_failover", "test_faults_network", "test_faults_disk", "test_faults_clock"),
    *("test_demo", "test_readme", "test_relay", "test_relay_journey", "test_relay_outage"),
    *("test_consumer_journey", "test_outage", "test_server", "test_upgrade", "test_rolling_update"),
    *("test_embedded", "test_backup", "test_k8s_nats", "test_k8s_run", "test_k8s_try"),
    *("test_clients_page", "test_leaks", "test_prometheus", "test_logs", "test_scale_page"),
)
REQUIRE_ALL = bool(os.environ.get("CAUSEWAY_TEST_REQUIRE_ALL"))
_numbers = itertools.count(1)

# A client in a test is as patient as the test; httpx2's own patience is 5 s.
for _part in ("connect", "read", "write", "pool"):
    setattr(DEFAULT_TIMEOUT_CONFIG, _part, WITHIN_S)

# A busy machine is no bug: examples have no deadline of their own, and may be slow to make. They
# are the same each time, unless somebody asks for more of them: then each run looks elsewhere.
PATIENT = hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("causeway", PATIENT, derandomize=True)
hypothesis.settings.register_profile("fuzz", PATIENT, max_examples=20_000)
hypothesis.settings.load_profile(os.environ.get("CAUSEWAY_TEST_PROFILE", "causeway"))


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests of some modules on uvloop as well, which `serve` uses."""
    both = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return both if item.path.stem in ON_BOTH_LOOPS else {"asyncio": asyncio.new_event_loop}


def need_program(name: str, *others: str) -> str:
    """Return the path of a program that a test needs; skip the test, or fail it in CI."""
    for candidate in (name, *others):
        if path := shutil.which(candidate):
            return path
    if REQUIRE_ALL:
        pytest.fail(f"{name} is not installed, and CAUSEWAY_TEST_REQUIRE_ALL is set")
    pytest.skip(f"{name} is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take long first."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of some modules over both tails."""
    is_both = metafunc.module.__name__.rpartition(".")[2] in ON_BOTH_TAILS
    if is_both and "tail_settings" in metafunc.fixturenames:
        is_one = metafunc.function.__name__ in ON_POSTGRES_ONLY
        tails = ["postgres"] if is_one else ["postgres", "nats"]
        metafunc.parametrize("tail_settings", tails, indirect=True)


@pytest.fixture(scope="session")
def shared_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator["NatsServer"]:
    """A NATS server of this test run, for tests that do it no harm."""
    from tests.nats_server import nats_server  # it imports this module

    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
async def tail_settings(
    request: pytest.FixtureRequest, database: Database, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[dict[str, object]]:
    """What makes a service of the test follow the log in Postgres, or in NATS beside a mirror."""
    if getattr(request, "param", "postgres") == "postgres":
        yield {}
        return
    from tests.nats_feeder import feeding_stream

    server: NatsServer = request.getfixturevalue("shared_nats")
    monkeypatch.setattr("service.nats_tail.RETURN_S", (0.01,))
    settings: dict[str, object] = {"tail": "nats", "nats_url": server.url, "nats_check_s": 0.2}
    async with feeding_stream(database, make_settings(**settings)):
        yield settings


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The embedded Postgres of this test run, in a folder that its user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="causeway-tests-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        with EmbeddedPostgres(folder) as server:
            asyncio.run(_make_template(server))
            yield server
    finally:
        shutil.rmtree(folder)


async def _make_template(server: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(server.owner_url)
    try:
        await connection.execute(f"CREATE DATABASE {TEMPLATE}")
        with pytest.MonkeyPatch.context() as patience:
            patience.setattr("service.db.CONNECT_TIMEOUT_S", 60.0)
            await migrate(with_database(server.owner_url, TEMPLATE))
        await server.allow_service_login()
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1"
        while await connection.fetchval(sessions, TEMPLATE):  # with one it cannot be cloned
            await asyncio.sleep(0.01)
    finally:
        await connection.close()


def with_database(url: str, name: str) -> str:
    """Return the DSN of another database on the same server."""
    base, _, query = url.partition("?")
    return f"{base.rpartition('/')[0]}/{name}?{query}"


@pytest.fixture
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A migrated, empty database for one test."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    connection = await asyncpg.connect(postgres.owner_url)
    try:
        await execute_alone(connection, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        yield Database(
            owner_dsn=with_database(postgres.owner_url, name),
            service_dsn=with_database(postgres.service_url, name),
        )
        await execute_alone(connection, f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@pytest.fixture
async def owner(database: Database) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A session of the database's owner."""
    connection = await asyncpg.connect(database.owner_dsn)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no outage: whatever Postgres is asked for may take longer."""
    for module in ("db", "migrate"):
        monkeypatch.setattr(f"service.{module}.CONNECT_TIMEOUT_S", 60.0)
    monkeypatch.setattr("service.connection._CONNECT_S", WITHIN_S)
    monkeypatch.setattr("service.db.COMMAND_TIMEOUT_S", 160.0)
    monkeypatch.setattr("service.app.STALE_READ_S", WITHIN_S)
    for name in ("lock_timeout", "statement_timeout"):
        monkeypatch.setitem(SESSION, name, "150s")
    # Half of what a test waits for: one that breaks a connection counts on its end.
    monkeypatch.setitem(SESSION, "idle_in_transaction_session_timeout", "30s")


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def settings() -> Settings:
    """Settings for tests: known secrets and tokens, short times, a free port."""
    return make_settings()


@pytest.fixture
async def start(
    database: Database, tail_settings: dict[str, object]
) -> AsyncIterator[Callable[..., object]]:
    """Start a service on the test's database: `running = await start(heartbeat_s=0.2)`.

    Any number may run at once on the same log; all are stopped at the end of the test.
    """
    async with AsyncExitStack() as stack:

        async def start_one(**overrides: object) -> Running:
            settings = make_settings(**(tail_settings | overrides))
            return await stack.enter_async_context(running_service(settings, database))

        yield start_one


@pytest.fixture
async def service(database: Database, tail_settings: dict[str, object]) -> AsyncIterator[Running]:
    """A service with the settings of tests, on a database of its own."""
    async with running_service(make_settings(**tail_settings), database) as running:
        yield running


@pytest.fixture
def nats(tmp_path: Path) -> Iterator["NatsServer"]:
    """A NATS server of its own for one test."""
    from tests.nats_server import nats_server  # it imports this module

    with nats_server(tmp_path / "nats") as server:
        yield server
