"""What a thief of the database, of the logs or of the process list finds: no secret that works.

One life of a real process with every sort of secret, at the level debug; then a whole dump of its
database, all that it printed, its command line and its answers are searched, in every spelling.
"""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx2

from service.dashboard.session import COOKIE
from service.db import Connection
from service.embedded import EmbeddedPostgres
from tests import bridge
from tests.backups import run
from tests.commands import command
from tests.dashboard import ADMIN, OURS
from tests.receiver import Receiver
from tests.relaying import KEY
from tests.running import (
    ADMIN_TOKEN,
    PREVIOUS_SECRET,
    SECRET,
    STREAM_TOKEN,
    WITHIN_S,
    Database,
    Process,
    environment,
    service_process,
)

SOURCE_SECRET = "source-secret-0123456789/+="
HEADER_VALUE = "custom-header-value-0123456789/+="
RELAY = {
    "CAUSEWAY_SECRET_KEY": KEY,
    "CAUSEWAY_RELAY_ALLOW_HTTP": "true",
    "CAUSEWAY_RELAY_ALLOWED_NETWORKS": "127.0.0.0/8",
    "CAUSEWAY_LOG_LEVEL": "debug",
}


def spellings(secret: str) -> Iterator[bytes]:
    """Yield a secret as it is, in hex, in every base64 that it can be a part of, and escaped.

    A secret of ours that has a base64 of its own (`whsec_...`) is looked for as its bytes, too.
    """
    values = {secret.encode(), secret.encode("utf-16-le"), secret[::-1].encode()}
    for prefix in ("whsec_", "cw_"):
        if secret.startswith(prefix):
            values.add(secret.removeprefix(prefix).encode())
            text = secret.removeprefix(prefix).translate(str.maketrans("-_", "+/"))
            values.add(base64.b64decode(text + "=" * (-len(text) % 4)))
    for value in values:
        yield value
        yield value.hex().encode()
        yield value.hex().upper().encode()
        yield quote(value).encode()
        yield quote(value, safe="").encode()
        for shift in range(3):
            # The bytes around it are unknown: the characters that they share are left out.
            encoded = base64.b64encode(b"\0" * shift + value + b"\0" * 3)
            inner = encoded[-(-shift * 8 // 6) : (shift + len(value)) * 8 // 6]
            yield inner
            yield inner.translate(bytes.maketrans(b"+/", b"-_"))


def found_in(content: bytes, secrets: dict[str, str]) -> set[str]:
    return {
        name
        for name, secret in secrets.items()
        if any(spelling in content for spelling in spellings(secret))
    }


def test_the_search_would_find_a_secret_in_every_spelling() -> None:
    key = base64.b64encode(bytes(range(200, 232))).decode()
    for secret in (HEADER_VALUE, f"whsec_{key}"):
        plain = secret.encode()
        for content in (
            plain,
            plain.hex().encode(),
            quote(plain, safe="").encode(),
            *(base64.b64encode(b"x" * n + plain + b"y") for n in range(3)),
            *(base64.urlsafe_b64encode(b"x" * n + plain + b"y") for n in range(3)),
        ):
            assert found_in(b"before " + content + b" after", {"it": secret}) == {"it"}
    assert found_in(bytes(range(200, 232)), {"it": f"whsec_{key}"}) == {"it"}
    assert found_in(bytes(range(200, 232)).hex().encode(), {"it": f"whsec_{key}"}) == {"it"}
    assert found_in(b"nothing", {"it": HEADER_VALUE}) == set()


async def test_no_secret_is_in_the_database_the_output_or_the_command_line(
    postgres: EmbeddedPostgres, database: Database, owner: Connection, tmp_path: Path
) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "acme").write_text(SOURCE_SECRET)
    env = environment(
        DATABASE_URL=database.service_dsn, CAUSEWAY_SOURCES_DIR=f"{tmp_path}/sources", **RELAY
    )
    secrets = {
        "Bridge's": SECRET,
        "Bridge's previous": PREVIOUS_SECRET,
        "a source's": SOURCE_SECRET,
        "the secret key": KEY,
        "a custom header": HEADER_VALUE,
        "the settings' admin token": ADMIN_TOKEN,
        "the settings' stream token": STREAM_TOKEN,
    }
    with Receiver() as receiver, service_process(env, tmp_path / "log") as process:
        secrets |= await _live(process, receiver, database, owner)
        assert receiver.requests()[-1].headers["x-api-key"] == HEADER_VALUE
        running = Path(f"/proc/{process.popen.pid}/cmdline").read_bytes()
        assert process.terminate() == 0
    file = postgres.data_dir / "socket" / f"{database.owner_dsn[-6:-1]}.sql"  # its user may write
    await run(postgres, "pg_dump", f"--file={file}", database.owner_dsn)
    dumped = file.read_bytes()
    file.unlink()
    for table in ("token", "webhook", "delivery", "attempt", "event"):
        rows = dumped.partition(f"COPY causeway.{table}".encode())[2].partition(b"\n\\.")[0]
        assert rows.count(b"\n") >= 1, f"nothing of {table} is in the dump: it proves nothing"
    output = process.output().encode()
    assert b"request refused" in output
    assert b"webhook secret rotated" in output
    assert len(secrets) == 15
    for content in (dumped, output, running):
        assert found_in(content, secrets) == set()


async def _live(
    process: Process, receiver: Receiver, database: Database, owner: Connection
) -> dict[str, str]:
    """Use all that has a secret; return those that were made."""
    async with httpx2.AsyncClient(base_url=process.url, headers=ADMIN, timeout=WITHIN_S) as client:
        made = await _webhook(client, receiver, owner)
        wish = {"name": "billing", "sources": ["default"]}
        by_api = (await client.post("/api/tokens", json=wish)).json()["token"]
        by_command = await command("token", "create", "ops", DATABASE_URL=database.service_dsn)
        made |= {"a token": by_api, "a command's token": by_command.out.split()[-1]}
    async with httpx2.AsyncClient(base_url=process.url, timeout=WITHIN_S) as client:
        for token in (by_api, "cw_" + by_api[:2:-1], ADMIN_TOKEN):
            await client.get("/events", headers={"authorization": f"Bearer {token}"})
            await client.get(f"/events?access_token={token}")
            await client.head(f"/stream?access_token={token}")
        for token in ("wrong", ADMIN_TOKEN):
            answer = await client.post("/dashboard/login", data={"token": token}, headers=OURS)
        cookie = answer.cookies[COOKIE]
        page = (await client.get("/dashboard/log")).text
        csrf = page.partition('data-csrf="')[2].partition('"')[0]
        form = {"csrf": csrf, "name": "by-hand", "scope": "stream"}
        shown = await client.post("/dashboard/tokens/create", data=form, headers=OURS)
        by_hand = "cw_" + shown.text.partition('value="cw_')[2].partition('"')[0]
    assert len(by_hand) == len(by_api)
    return made | {"a session": cookie, "a CSRF token": csrf, "a page's token": by_hand}


async def _webhook(
    client: httpx2.AsyncClient, receiver: Receiver, owner: Connection
) -> dict[str, str]:
    """Make a webhook, let it fail and then deliver, rotate it twice; return its three secrets."""
    wish = {"url": f"{receiver.url}/status/500", "headers": {"X-Api-Key": HEADER_VALUE}}
    made = (await client.post("/api/webhooks", json=wish)).json()
    path = f"/api/webhooks/{made['id']}"
    url = str(client.base_url).rstrip("/")
    await bridge.post(url, bridge.body())
    await bridge.post(url, bridge.body(), secrets=(SOURCE_SECRET,), source="acme")
    await bridge.post(url, bridge.body(), secrets=("a-wrong-secret",))
    async with asyncio.timeout(WITHIN_S):
        while await owner.fetchval("SELECT count(*) FROM causeway.attempt") < 2:
            await asyncio.sleep(0.05)
    secrets = [made["secret"]]
    for _ in range(2):
        secrets.append((await client.post(f"{path}/rotate")).json()["secret"])
        await client.post(f"{path}/test")
    return {f"webhook secret {n}": secret for n, secret in enumerate(secrets)}
