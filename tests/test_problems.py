"""Errors as answers: one form everywhere, sane request ids, and nothing of our inside in a 500."""

from datetime import datetime

import httpx2
import pytest

from service import errors
from service.errors import CausewayError, Problem
from service.eventlog import EventLog
from service.hub import Hub
from service.stream import Stream
from tests.bridge import body, post
from tests.running import Running

INNER = "inner-detail-5b1c"


def check_form(answer: httpx2.Response, status: int, code: str) -> dict[str, object]:
    """Check an error's answer, and return its inner object."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert set(answer.json()) == {"error"}
    inner: dict[str, object] = answer.json()["error"]
    assert inner["code"] == code
    assert inner["message"]
    assert inner["request_id"] == answer.headers["x-request-id"]
    return inner


CALLS = [
    ("GET", "/", 404, "not_found"),
    ("GET", "/nothing/here", 404, "not_found"),
    ("GET", "/events/1/2", 404, "not_found"),
    ("POST", "/webhooks/bridge/a/b", 404, "not_found"),
    ("POST", "/webhooks/bridge/", 404, "not_found"),
    ("GET", "/stream/", 404, "not_found"),
    ("GET", "/webhooks/bridge", 405, "method_not_allowed"),
    ("POST", "/stream", 405, "method_not_allowed"),
    ("DELETE", "/events", 405, "method_not_allowed"),
    ("PUT", "/metrics", 405, "method_not_allowed"),
    ("POST", "/webhooks/bridge", 401, "bad_signature"),
    ("POST", "/webhooks/bridge/nobody", 404, "unknown_source"),
    ("GET", "/stream?nonsense=1", 400, "bad_request"),
    ("GET", "/events?limit=x", 400, "bad_request"),
    ("GET", "/events?after=7", 409, "position_ahead"),
    ("GET", "/events/7", 404, "not_found"),
]


async def test_every_refusal_has_the_one_form(service: Running) -> None:
    async with httpx2.AsyncClient(headers=service.headers) as client:
        for method, path, status, code in CALLS:
            answer = await client.request(method, service.url + path)
            inner = check_form(answer, status, code)
            if status == 405:
                for allowed in answer.headers["allow"].split(", "):
                    assert allowed in str(inner["message"])


async def test_a_refusal_without_a_token_says_how_to_send_one(service: Running) -> None:
    async with httpx2.AsyncClient() as client:
        answer = await client.get(f"{service.url}/stream")
    inner = check_form(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer" in str(inner["message"])


async def test_details_stand_beside_the_message(service: Running) -> None:
    await post(service.url, body())
    async with httpx2.AsyncClient(headers=service.headers) as client:
        answer = await client.get(f"{service.url}/events?after=9")
    assert check_form(answer, 409, "position_ahead")["head_position"] == 1


@pytest.mark.parametrize(
    "sent", ["abc", "7", "a" * 64, "A.b_c-9", "0af7651916cd43dd8448eb211c80319c"]
)
async def test_a_sane_request_id_is_kept(service: Running, sent: str) -> None:
    async with httpx2.AsyncClient(headers={"x-request-id": sent}) as client:
        answer = await client.get(f"{service.url}/nothing")
    assert check_form(answer, 404, "not_found")["request_id"] == sent


async def test_a_request_id_that_could_do_harm_is_replaced(service: Running) -> None:
    seen = set()
    async with httpx2.AsyncClient() as client:
        for sent in (
            "",
            "a" * 65,
            "a b",
            '"quoted"',
            "a\tb",
            "é".encode().decode("latin-1"),
            "<b>",
        ):
            headers = [(b"x-request-id", sent.encode("latin-1"))]
            answer = await client.get(f"{service.url}/nothing", headers=headers)
            seen.add(check_form(answer, 404, "not_found")["request_id"])
            assert sent not in seen
    assert len(seen) == 7


async def test_a_long_path_is_cut_in_its_answer(service: Running) -> None:
    async with httpx2.AsyncClient() as client:
        answer = await client.get(f"{service.url}/{'x' * 5000}")
    check_form(answer, 404, "not_found")
    assert len(answer.content) < 500


async def test_an_error_of_ours_is_500_in_our_form_and_shows_nothing_inner(
    service: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_self: EventLog, _moment: datetime) -> int:
        raise RuntimeError(INNER)

    monkeypatch.setattr(EventLog, "find_time", broken)
    headers = service.headers | {"x-request-id": "find-me"}
    async with httpx2.AsyncClient(headers=headers) as client:
        answer = await client.get(f"{service.url}/events?since=2026-01-01T00:00:00Z")
        inner = check_form(answer, 500, "internal_error")
        assert answer.headers["connection"] == "close", "the server cuts it: nothing more fits in"
        assert "find-me" in str(inner["message"])
        assert INNER not in answer.text + str(answer.headers)
        assert "RuntimeError" not in answer.text
        assert (await client.get(f"{service.url}/events")).status_code == 200
    assert any(record.exc_info for record in caplog.records)


async def test_an_error_of_ours_on_a_hot_way_is_answered_alike(
    service: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(INNER)

    monkeypatch.setattr(Hub, "admit", broken)
    headers = service.headers | {"x-request-id": "find-me"}
    async with httpx2.AsyncClient(headers=headers) as client:
        answer = await client.get(f"{service.url}/stream")
    inner = check_form(answer, 500, "internal_error")
    assert inner["request_id"] == "find-me"
    assert INNER not in answer.text
    assert any(record.exc_info for record in caplog.records)


async def test_an_error_of_ours_after_the_answer_has_begun_cuts_it(
    service: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError(INNER)

    monkeypatch.setattr(Stream, "_follow", broken)
    async with httpx2.AsyncClient(headers=service.headers) as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get(f"{service.url}/stream")
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == INNER


def _problems(root: type[Problem] = Problem) -> list[type[Problem]]:
    return [it for child in root.__subclasses__() for it in (child, *_problems(child))]


def test_codes_are_stable_names_and_each_has_a_line_in_the_tree() -> None:
    assert len({problem.code for problem in _problems()}) == len(_problems())
    for problem in _problems():
        assert f"{problem.__name__} " in (errors.__doc__ or "")
        assert f"{problem.status} {problem.code} " in (errors.__doc__ or "").replace("\n", " \n")
        passes_by_itself = problem.status in (429, 503) or problem.code.endswith("_held")
        assert (problem.retry_after_s is not None) == passes_by_itself


def test_every_error_of_ours_has_one_root() -> None:
    assert issubclass(Problem, CausewayError)
    assert issubclass(errors.ConfigError, CausewayError)
    assert issubclass(errors.SchemaError, CausewayError)
