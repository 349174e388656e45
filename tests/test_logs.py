"""Promise 7: no secret, token or body is ever logged. And the form of the lines that are."""

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx2
import pytest

from service.auth import Tokens
from service.db import Connection, create_pool
from service.embedded import EmbeddedPostgres
from service.logs import JsonFormatter, brief, describe
from tests.bridge import post
from tests.raw import webhook_call, webhook_head, wire
from tests.running import (
    ROOT,
    START_S,
    WITHIN_S,
    Process,
    environment,
    make_settings,
    service_process,
)

MARK = "zq7x"  # in everything that must not be seen, and in nothing else


def hidden(what: str) -> str:
    """Return a value that must never be seen; `what` tells which one it was."""
    return f"{MARK}-{what}-0123456789abcdef"


CURRENT, PREVIOUS, OTHER = hidden("current"), hidden("previous"), hidden("other-source")
STREAM, ADMIN = hidden("stream-token"), hidden("admin-token")
REFUSED_ITEM = 666


@dataclass(slots=True)
class Seen:
    """All that the outside could see of one run."""

    lines: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    postgres: str = ""
    pages: str = ""


def payload(what: str, *, type_: str = "item.refreshed", **content: object) -> bytes:
    """Return an event whose every free part is marked."""
    fields = {"user_uuid": "9a95b38f-f98b-417a-988b-9d0d584893e7", "iban": hidden(what)} | content
    # Marked from its first bytes on: Postgres quotes the beginning of each column.
    return json.dumps({hidden("field"): 1, "type": type_, "content": fields}).encode()


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    """A whole life of a service at the level debug, with everything that can go wrong in it."""
    folder = Path(tempfile.mkdtemp(prefix="causeway-logs-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "sources").mkdir()
    (folder / "sources" / "other").write_text(OTHER)
    env = environment(
        BRIDGE_WEBHOOK_SECRET=f"{CURRENT},{PREVIOUS}",
        CAUSEWAY_SOURCES_DIR=str(folder / "sources"),
        CAUSEWAY_STREAM_TOKEN=STREAM,
        CAUSEWAY_ADMIN_TOKEN=ADMIN,
        CAUSEWAY_DATA_DIR=str(folder / "data"),
        CAUSEWAY_LOG_LEVEL="debug",
        CAUSEWAY_BODY_MAX_BYTES="4096",
        CAUSEWAY_BODY_TIMEOUT_S="10",
        CAUSEWAY_DRAIN_S="0.1",
    )
    found = Seen()
    try:
        with service_process(env, folder / "output") as process:
            try:
                asyncio.run(_live(process, folder, found))
            except TimeoutError:
                pytest.fail(f"it waited in vain; the log ends:\n{process.output()[-3000:]}")
            assert process.terminate() == 0
            found.lines = process.output().splitlines()
        logs = [folder / "data" / "startup.log", *(folder / "data" / "log").iterdir()]
        found.postgres = "\n".join(path.read_text() for path in logs if path.exists())
        yield found
    finally:
        shutil.rmtree(folder)


async def _live(process: Process, folder: Path, found: Seen) -> None:
    async def note(answer: httpx2.Response) -> None:
        await answer.aread()
        found.answers.append(f"{answer.status_code} {answer.headers} {answer.text}")

    hooks = {"response": [note]}
    with EmbeddedPostgres.attach(folder / "data") as postgres:
        owner = await asyncpg.connect(postgres.owner_url)
        async with httpx2.AsyncClient(base_url=process.url, event_hooks=hooks) as client:
            trickling = asyncio.create_task(_trickle(process.url))
            await _webhooks(process, client, folder)
            await _tokens(client, postgres, owner)
            await _errors(process, client, owner)
            await trickling
            pages = [await client.get(path) for path in ("/metrics", "/readyz", "/livez")]
            found.pages = "".join(page.text for page in pages)
        owner.terminate()  # its server died in between


async def _webhooks(process: Process, client: httpx2.AsyncClient, folder: Path) -> None:
    url = process.url
    for secrets in ((CURRENT,), (PREVIOUS,), (hidden("wrong-secret"),), ()):
        await post(url, payload("body", n=str(secrets)), secrets=secrets, client=client)
    await post(url, payload("other"), secrets=(OTHER,), source="other", client=client)
    await post(url, payload("nobody"), secrets=(CURRENT,), source="nobody", client=client)
    for bad in (
        hidden("not-json").encode(),
        payload("cut")[:-1],
        payload("line", type_=f"{hidden('type')}\n"),
        f'["{hidden("array")}"]'.encode(),
        payload("bytes") + b"\xff",
        payload("large") + b" " * 5000,
    ):
        await post(url, bad, secrets=(CURRENT,), client=client)
    async with wire(url) as it:  # hangs up
        await it.send(webhook_call(payload("hung-up"))[:-1])
    async with wire(url) as it:  # is no HTTP
        await it.send(f"GET /{hidden('url')} \x00\r\nx-{hidden('header')}\r\n\r\n".encode())
        assert await it.reader.read()
    async with wire(url) as it:  # wants another protocol
        upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n"
        token = f"Authorization: Bearer {hidden('upgrade')}\r\n"
        await it.send(webhook_head(0, hidden("signature"), more=upgrade + token))
        assert (await it.answer()).status == 401
    (folder / "sources" / "other").write_text(f"{hidden('a')},{hidden('b')},{hidden('c')}")
    await _until_logged(process, "source unreadable")


async def _trickle(url: str) -> None:
    """Send half a body, and wait beside the others until the service has had enough of it."""
    async with wire(url) as it:
        await it.send(webhook_head(500, hidden("signature")) + payload("trickle"))
        assert (await it.answer()).status == 408


async def _tokens(
    client: httpx2.AsyncClient, postgres: EmbeddedPostgres, owner: Connection
) -> None:
    async with create_pool(postgres.service_url, max_size=1) as pool:
        tokens = Tokens(make_settings(), pool)
        await tokens.create("good", "stream")
    # A token is random: let this one be one that the search can find.
    marked = f"cw_{hidden('stored')}"
    await owner.execute(
        "UPDATE causeway.token SET token_sha256 = sha256($1) WHERE name = 'good'", marked.encode()
    )
    for token, status in (
        (marked, 200),
        (STREAM, 200),
        (ADMIN, 200),
        (f"cw_{hidden('unknown')}", 401),
        (hidden("nonsense"), 401),
    ):
        headers = {"authorization": f"Bearer {token}"}
        assert (await client.get("/events", headers=headers)).status_code == status
        if status == 401:
            for path in ("/stream", f"/stream?access_token={hidden('query')}"):
                assert (await client.get(path, headers=headers)).status_code == 401
    await owner.execute("UPDATE causeway.token SET revoked_at = now() WHERE name = 'good'")
    assert (await client.get("/stream", headers={"authorization": f"Bearer {marked}"})).is_error
    for query in (
        f"access_token={hidden('query')}",
        f"access_token=cw_{hidden('query')}",
        f"access_token={ADMIN}",
        f"access_token={STREAM}&nonsense=1",
        f"access_token={STREAM}&after=x",
        f"access_token={STREAM}&access_token={hidden('query')}",
    ):
        assert (await client.get(f"/stream?{query}")).is_client_error
        assert (await client.get(f"/events?{query}")).is_client_error
    assert (await client.get("/events", headers={"authorization": f"Basic {ADMIN}"})).is_error
    assert (await client.head(f"/stream?access_token={STREAM}")).status_code == 200


async def _errors(process: Process, client: httpx2.AsyncClient, owner: Connection) -> None:
    # One whose DETAIL quotes the row, body and all.
    await owner.execute(
        "ALTER TABLE causeway.event ADD CONSTRAINT quoting "
        f"CHECK (item_id <> {REFUSED_ITEM}) NOT VALID"
    )
    refused = payload("refused", item_id=REFUSED_ITEM)
    answer = await post(process.url, refused, secrets=(CURRENT,), client=client)
    assert answer.status_code == 503
    # One of ours: the schema is not what it was at the start.
    await owner.execute("ALTER TABLE causeway.token RENAME TO elsewhere")
    headers = {"authorization": f"Bearer cw_{hidden('unlucky')}"}
    assert (await client.get("/events", headers=headers)).status_code == 500
    await owner.execute("ALTER TABLE causeway.elsewhere RENAME TO token")
    # A backend dies in the middle of an append: Postgres says what it was running.
    await owner.execute("SELECT pg_advisory_lock(hashtext('causeway'), hashtext('append_events'))")
    await _killed(process, client, owner)
    async with asyncio.timeout(START_S):
        again = payload("again")
        while (await post(process.url, again, secrets=(CURRENT,), client=client)).is_error:
            await asyncio.sleep(0.05)


async def _killed(process: Process, client: httpx2.AsyncClient, owner: Connection) -> None:
    """Kill the backend of an append that waits for the lock; one that gave up is sent again."""
    sql = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory'"
    body = payload("killed")
    async with asyncio.timeout(START_S), asyncio.TaskGroup() as group:
        pid = None
        while pid is None:
            call = group.create_task(post(process.url, body, secrets=(CURRENT,), client=client))
            while (pid := await owner.fetchval(sql)) is None and not call.done():
                await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        assert (await call).status_code == 503


async def _until_logged(process: Process, phrase: str) -> None:
    async with asyncio.timeout(WITHIN_S):
        while phrase not in process.output():
            await asyncio.sleep(0.02)


def traces(text: str) -> list[str]:
    """Return the places of `text` that show something hidden, as text or as bytes in hex."""
    spellings = (MARK, MARK.encode().hex())
    lowered = text.lower()
    return [lowered[max(0, at - 80) : at + 80] for it in spellings if (at := lowered.find(it)) >= 0]


def test_nothing_hidden_is_in_the_log(seen: Seen) -> None:
    for line in seen.lines:
        assert traces(line) == []


def test_nothing_hidden_is_in_an_error_that_is_answered(seen: Seen) -> None:
    errors = [answer for answer in seen.answers if not answer.startswith("200 ")]
    assert len(errors) > 30
    for error in errors:
        assert traces(error) == []


def test_nothing_hidden_is_in_metrics_and_health(seen: Seen) -> None:
    assert "causeway_webhooks_received_total" in seen.pages
    assert traces(seen.pages) == []


def test_nothing_hidden_is_in_the_files_of_the_embedded_postgres(seen: Seen) -> None:
    assert "quoting" in seen.postgres  # it did report the row that it refused
    assert "was terminated by signal 9" in seen.postgres
    assert traces(seen.postgres) == []


def test_the_search_would_find_what_is_hidden() -> None:
    assert traces(f"x {hidden('body')} x")
    assert traces(payload("body").hex())
    assert traces(repr(hidden("token").upper()))
    assert not traces("nothing")


def test_the_log_told_of_everything_that_went_wrong(seen: Seen) -> None:
    messages = {json.loads(line)["message"].strip() for line in seen.lines}
    assert {
        *("listening", "request refused", "append failed", "append refused", "stopped"),
        *("source unreadable", "Exception in ASGI application", "no request that can be read"),
    } <= messages
    codes = {json.loads(line).get("code") for line in seen.lines}
    assert {
        *("bad_signature", "unauthenticated", "forbidden", "not_an_event", "body_too_large"),
        *("body_timeout", "unknown_source", "bad_request", "log_unavailable"),
    } <= codes


def test_every_line_is_one_json_object(seen: Seen) -> None:
    for line in seen.lines:
        parsed = json.loads(line)
        assert list(parsed)[:4] == ["time", "level", "logger", "message"]
        assert parsed["time"].endswith("Z")
        assert parsed["level"] in ("debug", "info", "warning", "error")
        assert "Traceback" not in line


def test_every_refusal_names_the_request_that_was_answered(seen: Seen) -> None:
    parsed = [json.loads(line) for line in seen.lines if '"request refused"' in line]
    refusals = [it for it in parsed if it["path"] in ("/stream", "/events")]
    assert len(refusals) > 10
    answered = "".join(seen.answers)
    for refusal in refusals:
        assert f'"request_id":"{refusal["request_id"]}"' in answered


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_start_that_fails_says_why_and_shows_nothing_hidden(command: str) -> None:
    dsn = f"postgresql://causeway:{hidden('password')}#x@127.0.0.1/causeway"
    done = subprocess.run(
        [sys.executable, "-m", "service", command],
        env=environment(DATABASE_URL=dsn, BRIDGE_WEBHOOK_SECRET=hidden("secret")),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("causeway: DATABASE_URL: postgresql://user:password@host")
    assert "Traceback" not in done.stderr
    assert traces(done.stdout + done.stderr) == []


# The formatter


def formatted(record: logging.LogRecord) -> dict[str, object]:
    """Return a record's line, parsed."""
    line = JsonFormatter().format(record)
    assert "\n" not in line
    parsed: dict[str, object] = json.loads(line)
    return parsed


def record_of(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    """Return a record as a logger makes it."""
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("causeway.test", logging.ERROR, "x.py", 1, message, args, info)


def test_values_are_fields_and_the_line_is_one_line() -> None:
    record = record_of("a\nmessage %s", "é")
    record.__dict__ |= {"events": 3, "folder": Path("/x"), "reason": "two\nlines"}
    line = formatted(record)
    assert line["message"] == "a\nmessage é"
    assert (line["level"], line["logger"]) == ("error", "causeway.test")
    assert (line["events"], line["folder"], line["reason"]) == (3, "/x", "two\nlines")
    assert set(line) == {"time", "level", "logger", "message", "events", "folder", "reason"}


async def test_an_error_of_postgres_is_its_sqlstate_without_the_row(owner: Connection) -> None:
    await owner.execute("CREATE TABLE quoting (value text CHECK (length(value) < 3))")
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await owner.execute("INSERT INTO quoting VALUES ($1)", hidden("row"))
    assert MARK in str(caught.value.detail)  # asyncpg has it; the log must not
    line = json.dumps(formatted(record_of("loop failed", error=caught.value)))
    assert MARK not in line
    assert "CheckViolationError: SQLSTATE 23514" in line


@pytest.mark.parametrize("kind", [ValueError, TypeError, KeyError, UnicodeError])
def test_errors_that_quote_values_are_logged_without_them(kind: type[Exception]) -> None:
    assert MARK not in brief(kind(hidden("value")))


def test_causes_are_told_outermost_first_with_their_places() -> None:
    try:
        try:
            int(hidden("number"))
        except ValueError as inner:
            raise RuntimeError("the outer sentence") from inner
    except RuntimeError as error:
        lines = describe(error)
    assert lines[0] == "RuntimeError: the outer sentence"
    assert lines[1].strip().startswith(__file__)
    assert "ValueError: (values are not logged)" in lines
    assert MARK not in str(lines)
