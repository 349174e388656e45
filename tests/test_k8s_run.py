"""The Deployment runs here as a kubelet would run it: its command, environment, user and probes.

The root is read-only and holds what the image would. SIGTERM comes after the
preStop hook, while Bridge still calls. Invariant: what was answered 200 is in the log, exit code 0.
The jobs run in the same way, each with the login that its Secret has.
"""

import asyncio
import os
import subprocess
import sys
import sysconfig
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx2
import pytest

from service import __version__
from tests.bridge import body, post
from tests.conftest import need_program
from tests.freezing import freezable
from tests.k8s import ROOT, Manifest, one, pod_spec
from tests.k8s import trial as trial  # fixture
from tests.running import SECRET, START_S, STREAM_TOKEN, Database, eventually, free_port

VALUES = {
    "bridge-webhook-secret": SECRET,
    "stream-token": STREAM_TOKEN,
    "admin-token": "admin-token-0123456789",
    "secret-key": "k" * 32,
}


@asynccontextmanager
async def open_to_all(dsn: str) -> AsyncIterator[tuple[str, Path]]:
    """Yield the database's URL inside the container, and the folder of a socket for every user."""
    async with freezable(dsn) as (url, _freeze):
        folder = Path(parse_qs(urlsplit(url).query)["host"][0])
        folder.chmod(0o755)
        for socket in folder.iterdir():
            socket.chmod(0o666)
        yield url.replace(str(folder), "/postgres"), folder


def mounted(pod: Manifest, folder: Path, url: str) -> list[str]:
    """Return the options that mount the pod's Secrets where its container wants them."""
    [container] = pod["containers"]
    options = []
    for mount in container["volumeMounts"]:
        place = folder / mount["name"]
        place.mkdir()
        place.chmod(0o755)
        for key, value in ({"service-url": url, "owner-url": url} | VALUES).items():
            if f"{mount['mountPath']}/{key}" in [v["value"] for v in container["env"]]:
                (place / key).write_text(value)
        options += ["--ro-bind", str(place), mount["mountPath"]]
    return options


def sandbox(pod: Manifest, mounts: list[str], env: dict[str, str], sockets: Path) -> list[str]:
    """Return the command line of the pod's container: its user, a read-only root, no capability."""
    [container] = pod["containers"]
    user = pod["securityContext"]
    same = {"/usr", "/etc/ssl", sys.prefix, sys.base_prefix, sysconfig.get_path("purelib")}
    bound = {path: path for path in same} | {
        str(ROOT / "service"): "/app/service",
        str(ROOT / "sql"): "/app/sql",
        str(sockets): "/postgres",
    }
    above = {str(folder) for path in bound.values() for folder in Path(path).parents} - {"/"}
    options = [part for path in sorted(above) for part in ("--perms", "0755", "--dir", path)]
    options += [part for path in sorted(bound) for part in ("--ro-bind", path, bound[path])]
    links = [("usr/lib", "/lib"), ("usr/lib64", "/lib64"), ("usr/bin", "/bin")]
    options += [part for link in links for part in ("--symlink", *link)]
    options += ["--perms", "0755", "--dir", "/secrets", *mounts]
    options += ["--proc", "/proc", "--dev", "/dev"]
    options += ["--remount-ro", "/", "--clearenv", "--die-with-parent", "--chdir", "/"]
    for name, value in env.items():
        options += ["--setenv", name, value]
    become = [f"--reuid={user['runAsUser']}", f"--regid={user['runAsGroup']}", "--clear-groups"]
    limits = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    command = [sys.executable, "-m", "service", *container["args"]]
    return [need_program("bwrap"), *options, "setpriv", *become, *limits, *command]


def environment(pod: Manifest, manifests: list[Manifest], port: int) -> dict[str, str]:
    """Return what the container's environment is; the port is one that is free here."""
    [container] = pod["containers"]
    settings: dict[str, str] = {}
    if "envFrom" in container:
        settings = one(manifests, "ConfigMap", "causeway")["data"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    here = {"CAUSEWAY_HOST": "127.0.0.1", "CAUSEWAY_PORT": str(port), "CAUSEWAY_DRAIN_S": "1"}
    return settings | given | here | {"PYTHONPATH": "/app", "PYTHONDONTWRITEBYTECODE": "1"}


async def probe(container: Manifest, name: str, url: str) -> bool:
    """Ask a probe's question as the kubelet does."""
    asked = container[name]["httpGet"]
    assert asked["port"] == container["ports"][0]["name"]
    try:
        async with httpx2.AsyncClient(timeout=container[name]["timeoutSeconds"]) as client:
            return (await client.get(url + asked["path"])).is_success
    except httpx2.TransportError:
        return False


async def until(
    container: Manifest, name: str, url: str, popen: "subprocess.Popen[bytes]", log: Path
) -> None:
    """Return when a probe succeeds; fail the test if the process ends before."""
    async with asyncio.timeout(START_S):
        while not await probe(container, name, url):
            assert popen.poll() is None, log.read_text()[-2000:]
            await asyncio.sleep(0.05)


async def call_until_refused(
    url: str, popen: "subprocess.Popen[bytes]", positions: list[int]
) -> None:
    """Post event after event, until the process is gone; add the positions of the 200."""
    while popen.poll() is None:
        try:
            answer = await post(url, body())
        except httpx2.TransportError:
            await asyncio.sleep(0.05)
            continue
        if answer.status_code == 200:
            positions.append(int(answer.headers["causeway-position"]))


async def test_the_deployment_runs_as_it_says_and_loses_nothing_when_it_must_go(
    trial: list[Manifest],
    database: Database,
    owner: "asyncpg.Connection[asyncpg.Record]",
    tmp_path: Path,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become the Deployment's user")
    pod = pod_spec(one(trial, "Deployment", "causeway"))
    [container] = pod["containers"]
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", tmp_path / "log"
    tmp_path.chmod(0o755)
    async with open_to_all(database.service_dsn) as (dsn, sockets):
        mounts = mounted(pod, tmp_path, dsn)
        command = sandbox(pod, mounts, environment(pod, trial, port), sockets)
        with log.open("wb") as output:
            popen = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            for name in ("startupProbe", "livenessProbe", "readinessProbe"):
                await until(container, name, url, popen, log)
            inside = innermost(popen.pid)
            assert status(inside)["Uid"] == [str(pod["securityContext"]["runAsUser"])] * 4
            assert status(inside)["CapEff"] == ["0000000000000000"]
            assert " / ro," in Path(f"/proc/{inside}/mounts").read_text().replace(" tmpfs ", " ")
            positions: list[int] = []
            calls = asyncio.create_task(call_until_refused(url, popen, positions))
            await eventually(lambda: positions)
            hook = await asyncio.create_subprocess_exec(
                *container["lifecycle"]["preStop"]["exec"]["command"]
            )
            assert await hook.wait() == 0
            os.kill(inside, 15)
            grace_s = pod["terminationGracePeriodSeconds"]
            await asyncio.wait_for(calls, max(grace_s, START_S))
            assert popen.wait() == 0, log.read_text()[-2000:]
        finally:
            popen.kill()
            popen.wait()
    rows = await owner.fetch("SELECT position FROM causeway.event ORDER BY position")
    assert set(positions) <= {row["position"] for row in rows}


@pytest.mark.parametrize(
    ("kind", "name", "is_owner", "says"),
    [
        ("Job", f"causeway-migrate-{__version__.replace('.', '-')}", True, "nothing to apply"),
        ("CronJob", "causeway-prune", True, "nothing to prune"),
        ("CronJob", "causeway-audit", False, "checkpoint"),
    ],
)
async def test_each_job_does_what_it_is_for_with_the_login_it_has(
    trial: list[Manifest],
    database: Database,
    tmp_path: Path,
    kind: str,
    name: str,
    is_owner: bool,
    says: str,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become the job's user")
    pod = pod_spec(one(trial, kind, name))
    tmp_path.chmod(0o755)
    async with open_to_all(database.owner_dsn if is_owner else database.service_dsn) as opened:
        dsn, sockets = opened
        mounts = mounted(pod, tmp_path, dsn)
        env = environment(pod, trial, free_port()) | {"CAUSEWAY_RETENTION_S": "8640000"}
        [key] = [path.name for path in (tmp_path / "database").iterdir()]
        assert key == ("owner-url" if is_owner else "service-url")
        process = await asyncio.create_subprocess_exec(
            *sandbox(pod, mounts, env, sockets), stdout=PIPE, stderr=STDOUT
        )
        out, _ = await asyncio.wait_for(process.communicate(), START_S)
    assert process.returncode == 0, out.decode()
    assert says in out.decode()


def innermost(pid: int) -> int:
    """Return the last process of the chain that `pid` started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return innermost(int(children[0])) if children else pid


def status(pid: int) -> dict[str, list[str]]:
    """Return what the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
