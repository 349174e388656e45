"""What schemathesis is told of the service: how to get past its doors, and two more checks."""

import os
from typing import Any

import requests
import schemathesis
from requests.auth import AuthBase

from service.cursor import FILTER_PARAMS, START_PARAMS
from service.signature import HEADER, sign
from service.turn import PARAMS as TURN_PARAMS
from tests.described import codes, openapi
from tests.running import ADMIN_TOKEN, SECRET, STREAM_TOKEN

# Rules that no schema of a single parameter can say; and 30.0, which JSON Schema calls an integer.
BEYOND_SCHEMAS = (
    "goes with consumer=NAME",
    "i from 0 to n - 1",
    "the name of a source",  # printable: Unicode's own table
    "a list of sources",
    "an integer",
    "integers",
    "a whole number",
    "the number that the stream was given",
    "an event's position",
    "a position, an id or",
    "an ISO 8601 time",  # it has leap seconds
    "from is after until",
    "what follows comes by itself",  # the range lies beyond the webhook's cursor
    # Where a webhook may go on, and what a replay may send, depends on where it stands.
    *("start: ", "from: ", "until: "),
    "is not yours to set",  # headers that are ours
    "a name stands twice",
    "on one line",  # printable, too
    "a time to come",
    "is named",  # taken already
    "printable characters",
    "a list of types",
)
CALLBACK = "https://127.0.0.1:9/"  # nobody is there


class Bridge(AuthBase):
    """Signs the body's bytes as Bridge does, where the case has a signature at all."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if HEADER in request.headers:
            body = request.body or b""
            body = body.encode() if isinstance(body, str) else body
            assert isinstance(body, bytes)
            request.headers[HEADER] = sign(body, (SECRET,))
        return request


class Bearer(AuthBase):
    """Sends a token."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


CALLER = os.environ.get("CAUSEWAY_TEST_TOKEN", "without")
by_requests = schemathesis.auth.set_from_requests  # type: ignore[attr-defined]
if CALLER == "with":
    by_requests(Bridge()).apply_to(path_regex="^/webhooks")
    by_requests(Bearer(STREAM_TOKEN)).apply_to(path_regex="^/(stream|events|consumers)")
    by_requests(Bearer(ADMIN_TOKEN)).apply_to(path_regex="^/api")
elif CALLER == "reader":
    by_requests(Bearer(STREAM_TOKEN)).apply_to(path_regex="^/api")


@schemathesis.hook
def before_call(
    _context: schemathesis.HookContext, case: schemathesis.Case[Any], _kwargs: dict[str, Any]
) -> None:
    """Let good requests through: one of what excludes each other, and no long poll."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if isinstance(case.body, dict) and "url" in case.body:
        case.body["url"] = CALLBACK  # what a URL may be is beyond JSON Schema, and nobody is called
    if not case.query:
        return
    query = case.query
    if case.path == "/events" and "wait" in query:
        query["wait"] = 0
    if "consumer" in query and len(str(query)) % 2:
        for name in FILTER_PARAMS | START_PARAMS:
            query.pop(name, None)
    elif case.path == "/stream":
        for name in TURN_PARAMS:
            query.pop(name, None)
    begins = sorted(START_PARAMS & query.keys())
    kept = begins[len(str(query)) % len(begins)] if begins else None
    for name in begins:
        if name != kept:
            del query[name]


@schemathesis.check
def code_is_described(
    _context: schemathesis.CheckContext,
    response: schemathesis.Response,
    case: schemathesis.Case[Any],
) -> None:
    """An error's code is one of those that its operation shows for that status."""
    operation = openapi["paths"][case.operation.path][case.operation.method]
    described = operation["responses"].get(str(response.status_code))
    if described is None or response.status_code < 400 or not response.content:
        return
    answer = response.json()
    if "error" in answer:
        assert answer["error"]["code"] in codes(described), answer


@schemathesis.check
def what_fits_the_schemas_is_taken(
    _context: schemathesis.CheckContext,
    response: schemathesis.Response,
    case: schemathesis.Case[Any],
) -> None:
    """In place of `positive_data_acceptance`, which knows no rules between parameters."""
    is_positive = case.meta is not None and case.meta.generation.mode.is_positive
    if is_positive and response.status_code == 400 and response.content:
        message = response.json()["error"]["message"]
        assert any(rule in message for rule in BEYOND_SCHEMAS), message


@schemathesis.check
def only_administrators_administer(
    _context: schemathesis.CheckContext,
    response: schemathesis.Response,
    case: schemathesis.Case[Any],
) -> None:
    """Whoever has no token, or one that reads, gets nothing done and nothing told under /api."""
    if CALLER != "with" and case.operation.path.startswith("/api"):
        assert response.status_code in (401, 403, 405), response.status_code
