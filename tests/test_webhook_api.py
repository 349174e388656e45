"""`/api/webhooks` over HTTP: every answer of every endpoint, and that none gives a secret away."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks

from service.payloads import TEST_EVENT
from service.webhook_body import MASK
from tests.consuming import call
from tests.logkeeping import Owner, append_many, id_of
from tests.receiver import Receiver
from tests.relaying import KEY, RELAY
from tests.running import ADMIN_TOKEN, STREAM_TOKEN, Database, Running, environment, service_process
from tests.test_consumer_api import refused

Start = Callable[..., Awaitable[Running]]
PATH = "/api/webhooks"
URL = "http://127.0.0.1:9/hook?token=url-secret"
HEADER = "header-secret-0123456789"
NEW_KEY = "another-key-0123456789-0123456789"
ENDPOINTS = [
    ("GET", PATH),
    ("POST", PATH),
    ("GET", f"{PATH}/1"),
    ("PATCH", f"{PATH}/1"),
    ("DELETE", f"{PATH}/1"),
    ("POST", f"{PATH}/1/disable"),
    ("POST", f"{PATH}/1/enable"),
    ("POST", f"{PATH}/1/rotate"),
    ("POST", f"{PATH}/1/test"),
]


@pytest.fixture
async def service(start: Start) -> Running:
    """A service whose relay may call this machine."""
    return await start(**RELAY)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


async def admin(service: Running, method: str, path: str, body: Any = None, **more: Any) -> Any:
    return await call(service.url, method, path, body, token=ADMIN_TOKEN, **more)


async def make(service: Running, **wish: Any) -> dict[str, Any]:
    """Make a webhook; return what was answered."""
    answer = await admin(service, "POST", PATH, {"url": URL} | wish)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def act(service: Running, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """Do something that must succeed; return the answer."""
    answer = await admin(service, method, path, body)
    assert answer.status_code == 200, answer.text
    described: dict[str, Any] = answer.json()
    return described


# Who may.


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
async def test_every_endpoint_needs_an_admin(service: Running, method: str, path: str) -> None:
    nobody = await call(service.url, method, path, token=None)
    refused(nobody, 401, "unauthenticated")
    reader = await call(service.url, method, path, {"url": URL}, token=STREAM_TOKEN)
    refused(reader, 403, "forbidden")
    assert await service.service.relaying.webhooks.all() == []


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
async def test_without_a_key_every_endpoint_says_what_to_set(
    start: Start, method: str, path: str
) -> None:
    service = await start()
    error = refused(await admin(service, method, path, {"url": URL}), 409, "webhooks_off")
    assert "CAUSEWAY_SECRET_KEY" in error["message"]


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
async def test_an_unknown_query_parameter_is_refused(
    service: Running, method: str, path: str
) -> None:
    refused(await admin(service, method, f"{path}?secret=1"), 400, "bad_request")


@pytest.mark.parametrize("id_", ["1", "0", "x", "-1", "1.0", "\uff19", "9" * 19, "9" * 30, "%00"])
async def test_what_is_no_webhook_is_404(service: Running, id_: str) -> None:
    for method, path in ENDPOINTS[2:]:
        answer = await admin(service, method, path.replace("/1", f"/{id_}"), content=b"{}")
        refused(answer, 404, "unknown_webhook")
    assert service.fatal == []


# Make, look, list.


async def test_a_new_webhook_is_201_and_described_with_its_secret_once(service: Running) -> None:
    await append_many(service, 3)
    wish = {
        "url": URL,
        "application": "shop",
        "name": "Billing",
        "types": ["item.*", "ACCOUNT_UPDATED"],
        "sources": ["default"],
        "headers": {"X-Api-Key": HEADER},
        "ordered": True,
        "start": 1,
    }
    answer = await admin(service, "POST", PATH, wish)
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    assert answer.headers["location"] == f"{PATH}/{made['id']}"
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert made.pop("created_at") == made.pop("enabled_at")
    id_ = made.pop("id")
    assert made == {
        "application": "shop",
        "name": "Billing",
        "url": URL,
        "types": ["item.*", "item.account.updated"],
        "sources": ["default"],
        "headers": {"X-Api-Key": MASK},
        "ordered": True,
        "state": "enabled",
        "explanation": "its last call succeeded, or none was made yet",
        "disabled_at": None,
        "disabled_reason": None,
        "failures": 0,
        "failing_since": None,
        "next_probe_at": None,
        "position": 1,
        "position_id": await id_of(service, 1),
        "head": 3,
        "lag_events": 2,
        "backfill_until": 3,
        "previous_secret_until": None,
        "created_by": "settings:admin",
    }
    for path in (PATH, f"{PATH}/{id_}"):
        look = await admin(service, "GET", path)
        assert secret not in look.text
        assert HEADER not in look.text


@pytest.mark.parametrize(
    ("begin", "place"), [("now", 4), ("start", 0), (2, 2), ("3", 3), ("1970-01-01T00:00:00Z", 0)]
)
async def test_a_webhook_begins_where_it_was_told(
    service: Running, begin: object, place: int
) -> None:
    await append_many(service, 4)
    made = await make(service, start=begin)
    assert (made["position"], made["backfill_until"]) == (place, 4)


async def test_a_webhook_begins_now_unless_told(service: Running) -> None:
    await append_many(service, 4)
    assert (await make(service))["position"] == 4


async def test_a_place_that_the_log_does_not_continue_from_is_refused(service: Running) -> None:
    await append_many(service, 2)
    for begin, code in (("1.00000000", "log_diverged"), (9, "position_ahead")):
        answer = await admin(service, "POST", PATH, {"url": URL, "start": begin})
        refused(answer, 409, code)
    assert (await act(service, "GET", PATH)) == {"webhooks": []}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "not JSON"),
        (b"[]", "a JSON object"),
        (b"{}", "url: "),
        (b'{"url": "http://127.0.0.1:9/", "secret": "x"}', "unknown field 'secret'"),
        (b'{"url": "ftp://127.0.0.1/"}', "url: "),
        (b'{"url": "http://127.0.0.1:9/", "headers": {"Host": "x"}}', "Host is not yours"),
    ],
)
async def test_a_bad_wish_is_400_and_named(service: Running, body: bytes, named: str) -> None:
    answer = await admin(service, "POST", PATH, content=body)
    assert named in refused(answer, 400, "bad_request")["message"]


@pytest.mark.parametrize("url", ["http://10.1.2.3/", "http://169.254.169.254/latest/meta-data"])
async def test_an_address_that_may_not_be_called_is_refused_when_made_and_when_changed(
    service: Running, url: str
) -> None:
    made = await make(service)
    for method, path in (("POST", PATH), ("PATCH", f"{PATH}/{made['id']}")):
        error = refused(await admin(service, method, path, {"url": url}), 400, "bad_request")
        assert "CAUSEWAY_RELAY_ALLOWED_NETWORKS" in error["message"]
    assert (await act(service, "GET", f"{PATH}/{made['id']}"))["url"] == URL


async def test_http_is_refused_unless_it_is_allowed(start: Start) -> None:
    service = await start(**RELAY | {"relay_allow_http": "false"})
    error = refused(await admin(service, "POST", PATH, {"url": URL}), 400, "bad_request")
    assert "https://" in error["message"]


async def test_the_eleventh_webhook_is_409_with_a_clear_message(service: Running) -> None:
    asked = await asyncio.gather(*(admin(service, "POST", PATH, {"url": URL}) for _ in range(12)))
    assert sorted(answer.status_code for answer in asked) == [201] * 10 + [409] * 2
    late = await admin(service, "POST", PATH, {"url": URL})
    error = refused(late, 409, "too_many_webhooks")
    assert "the application default has 10 webhooks" in error["message"]
    await make(service, application="another")


# Change, disable, enable, delete.


async def test_a_change_answers_the_webhook_as_it_is_then(service: Running) -> None:
    made = await make(service, types=["item.*"], headers={"X-Api-Key": HEADER})
    path = f"{PATH}/{made['id']}"
    changed = await act(service, "PATCH", path, {"name": "Billing", "url": "http://127.0.0.1:9/b"})
    assert (changed["name"], changed["url"]) == ("Billing", "http://127.0.0.1:9/b")
    assert (changed["types"], changed["headers"]) == (["item.*"], {"X-Api-Key": MASK})
    cleared = await act(service, "PATCH", path, {"name": None, "types": None, "headers": None})
    assert (cleared["name"], cleared["types"], cleared["headers"]) == (None, None, {})
    assert cleared == await act(service, "GET", path)
    error = refused(await admin(service, "PATCH", path, {"ordered": True}), 400, "bad_request")
    assert "make another webhook" in error["message"]


async def test_a_disabled_webhook_says_why_and_what_to_do(service: Running, owner: Owner) -> None:
    path = f"{PATH}/{(await make(service))['id']}"
    disabled = await act(service, "POST", f"{path}/disable")
    assert (disabled["state"], disabled["disabled_reason"]) == ("disabled", "admin")
    assert disabled["disabled_at"].endswith("Z")
    assert "an administrator disabled it" in disabled["explanation"]
    for reason, word in (("gone", "410"), ("failing", "days"), ("log_diverged", "with a start")):
        await owner.execute("UPDATE causeway.webhook SET disabled_reason = $1", reason)
        assert word in (await act(service, "GET", path))["explanation"]
    refused(await admin(service, "POST", f"{path}/enable"), 400, "bad_request")
    enabled = await act(service, "POST", f"{path}/enable", {"start": "now"})
    assert (enabled["state"], enabled["disabled_reason"]) == ("enabled", None)


async def test_a_failing_webhook_says_since_when_and_when_it_is_tried(
    service: Running, owner: Owner
) -> None:
    path = f"{PATH}/{(await make(service))['id']}"
    await owner.execute(
        "UPDATE causeway.webhook SET failures = 7, failing_since = now(), "
        "open_until = now() + interval '1 day'"
    )
    failing = await act(service, "GET", path)
    assert (failing["state"], failing["failures"]) == ("failing", 7)
    assert failing["failing_since"] < failing["next_probe_at"]
    assert failing["explanation"].startswith("7 calls failed since")
    again = await act(service, "POST", f"{path}/enable")
    assert (again["state"], again["failures"], again["next_probe_at"]) == ("enabled", 0, None)


async def test_an_enabled_webhook_moves_forward_only(service: Running) -> None:
    await append_many(service, 4)
    made = await make(service, start=2)
    path = f"{PATH}/{made['id']}/enable"
    await act(service, "POST", f"{PATH}/{made['id']}/disable")
    error = refused(await admin(service, "POST", path, {"start": 1}), 400, "bad_request")
    assert "moves forward only" in error["message"]
    refused(await admin(service, "POST", path, {"start": 9}), 409, "position_ahead")
    refused(await admin(service, "POST", path, {"begin": 1}), 400, "bad_request")
    assert (await act(service, "POST", path, {"start": "now"}))["position"] == 4


async def test_a_deleted_webhook_is_gone(service: Running) -> None:
    path = f"{PATH}/{(await make(service))['id']}"
    answer = await admin(service, "DELETE", path)
    assert (answer.status_code, answer.content) == (204, b"")
    refused(await admin(service, "GET", path), 404, "unknown_webhook")
    refused(await admin(service, "DELETE", path), 404, "unknown_webhook")
    assert await act(service, "GET", PATH) == {"webhooks": []}


# Rotate and test.


async def test_a_rotation_shows_the_new_secret_once_and_says_how_long_the_old_one_signs(
    service: Running,
) -> None:
    made = await make(service)
    path = f"{PATH}/{made['id']}"
    rotated = await act(service, "POST", f"{path}/rotate")
    assert rotated["secret"].startswith("whsec_")
    assert rotated["secret"] != made["secret"]
    assert rotated["previous_secret_until"] > made["created_at"]
    look = await admin(service, "GET", path)
    assert "secret" not in look.json()
    assert rotated["secret"] not in look.text


async def test_a_test_reaches_the_callback_at_once_signed_and_with_its_headers(
    service: Running, receiver: Receiver
) -> None:
    made = await make(
        service, url=f"{receiver.url}/bridge", headers={"X-Api-Key": HEADER}, types=["payment.*"]
    )
    receiver.set_secrets(made["secret"])
    began = time.perf_counter()
    tested = await act(service, "POST", f"{PATH}/{made['id']}/test")
    assert 0 < tested.pop("duration_seconds") < time.perf_counter() - began
    message_id = tested.pop("message_id")
    assert tested == {"delivered": True, "status": 200, "error": None, "answer": "ok"}
    [received] = receiver.requests()
    assert received.body == TEST_EVENT
    assert received.headers["x-api-key"] == HEADER
    assert received.headers["webhook-id"] == message_id
    assert message_id.startswith("test_")
    assert "causeway-position" not in received.headers
    standardwebhooks.Webhook(made["secret"]).verify(received.body, received.headers)


async def test_a_test_reaches_a_disabled_webhook_and_both_secrets_sign(
    service: Running, receiver: Receiver
) -> None:
    made = await make(service, url=f"{receiver.url}/bridge")
    path = f"{PATH}/{made['id']}"
    rotated = await act(service, "POST", f"{path}/rotate")
    await act(service, "POST", f"{path}/disable")
    for secret in (made["secret"], rotated["secret"]):
        receiver.set_secrets(secret)
        assert (await act(service, "POST", f"{path}/test"))["delivered"] is True


@pytest.mark.parametrize(
    ("target", "status", "error"),
    [
        ("/status/500", 500, None),
        ("/gone", 410, None),
        ("/redirect", 302, None),
        ("/hang-head", None, "timeout"),
        (None, None, "refused"),
    ],
)
async def test_a_test_that_fails_says_how_and_does_not_count(
    start: Start, receiver: Receiver, target: str | None, status: int | None, error: str | None
) -> None:
    patience = {"relay_timeout_s": 0.5} if error == "timeout" else {}
    service = await start(**RELAY | patience)
    url = URL if target is None else receiver.url + target
    path = f"{PATH}/{(await make(service, url=url))['id']}"
    tested = await act(service, "POST", f"{path}/test")
    assert (tested["delivered"], tested["status"], tested["error"]) == (False, status, error)
    described = await act(service, "GET", path)
    assert (described["state"], described["failures"]) == ("enabled", 0)


async def test_a_tests_answer_is_cut_and_what_is_no_text_is_replaced(
    service: Running, receiver: Receiver
) -> None:
    path = f"{PATH}/{(await make(service, url=receiver.url + '/huge'))['id']}"
    assert len((await act(service, "POST", f"{path}/test"))["answer"]) == 1024


async def test_a_webhook_whose_key_is_lost_is_shown_and_not_called(
    service: Running, start: Start
) -> None:
    path = f"{PATH}/{(await make(service))['id']}"
    other = await start(**RELAY | {"secret_key": NEW_KEY})
    described = await act(other, "GET", path)
    assert described["state"] == "unreadable"
    assert "CAUSEWAY_SECRET_KEY lacks the key" in described["explanation"]
    refused(await admin(other, "POST", f"{path}/test"), 409, "secret_unreadable")
    await act(other, "PATCH", path, {"headers": None})
    assert (await act(other, "POST", f"{path}/rotate"))["state"] == "enabled"


# What nobody may see.


async def test_no_line_of_the_real_process_shows_a_secret(
    database: Database, tmp_path: Path, receiver: Receiver
) -> None:
    env = environment(
        DATABASE_URL=database.service_dsn,
        CAUSEWAY_SECRET_KEY=KEY,
        CAUSEWAY_RELAY_ALLOW_HTTP="true",
        CAUSEWAY_RELAY_ALLOWED_NETWORKS="127.0.0.0/8",
        CAUSEWAY_LOG_LEVEL="debug",
    )
    with service_process(env, tmp_path / "log") as process:
        url = f"{receiver.url}/status/500?token=url-secret"
        wish = {"url": url, "headers": {"X-Api-Key": HEADER}}
        made = (await call(process.url, "POST", PATH, wish, token=ADMIN_TOKEN)).json()
        path = f"{PATH}/{made['id']}"
        bad = {"headers": {"X-Api-Key": HEADER + "\n"}, "url": url}
        answers = [
            await call(process.url, method, where, body, token=ADMIN_TOKEN)
            for method, where, body in (
                ("PATCH", path, wish),
                ("PATCH", path, bad),
                ("POST", PATH, bad),
                ("POST", f"{path}/rotate", None),
                ("POST", f"{path}/test", None),
                ("POST", f"{path}/disable", None),
                ("POST", f"{path}/enable", None),
                ("DELETE", path, None),
            )
        ]
        assert [answer.status_code for answer in answers] == [
            200,
            400,
            400,
            200,
            200,
            200,
            200,
            204,
        ]
        rotated = answers[3].json()
        assert process.terminate() == 0
    logged = process.output()
    for done in (
        "created",
        "changed",
        "secret rotated",
        "tested",
        "disabled",
        "enabled",
        "deleted",
    ):
        assert f'"webhook {done}"' in logged
    assert "request refused" in logged
    for secret in (made["secret"], rotated["secret"], HEADER, "url-secret", KEY, ADMIN_TOKEN):
        assert secret not in logged


async def test_a_database_that_is_away_is_503(
    service: Running,
) -> None:
    made = await make(service)
    await service.service.relaying.webhooks._database.close()
    for method, path in ENDPOINTS:
        body = {"url": URL} if path == PATH and method == "POST" else {}
        where = path.replace("/1", f"/{made['id']}")
        refused(await admin(service, method, where, body), 503, "log_unavailable")
