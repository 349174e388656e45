"""Errors as answers: `{"error": {"code", "message", "request_id"}}`, everywhere the same.

Also gives every request its id: the caller's `X-Request-Id` if it is a sane one, else a new one.
"""

import itertools
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import cast

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import MethodNotAllowed, NotFound, Overloaded, Problem

log = logging.getLogger("causeway.http")

_SANE_ID = re.compile(rb"[A-Za-z0-9._\-]{1,64}")


class RequestIds:
    """Names requests: as the caller does, if that is a sane name, else anew."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def of(self, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """Return the id of a request with these headers; a new one each time if it brings none."""
        for key, value in headers:
            if key == b"x-request-id" and _SANE_ID.fullmatch(value):
                return str(value, "ascii")
        return f"{self._prefix}-{next(self._numbers)}"


class Front:
    """The way in: names every request, and takes the hot ones past the framework.

    Starlette's layers are ten coroutines deep: a tenth of a webhook's time, and kilobytes of every
    open stream. `endpoints` are reached without them, by method and exact path; all else goes on to
    `app`. An endpoint's errors get the same answers either way.
    """

    def __init__(
        self, app: ASGIApp, endpoints: Mapping[tuple[str, str], ASGIApp], request_ids: RequestIds
    ) -> None:
        self._app = app
        self._endpoints = endpoints
        self._request_ids = request_ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"request_id": self._request_ids.of(scope["headers"])}
        endpoint = self._endpoints.get((scope["method"], scope["path"]))
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope["path_params"] = {}
        answer = _Answer(send)
        try:
            await endpoint(scope, receive, answer)
        except Problem as error:
            if answer.has_begun:
                raise
            await (await answer_problem(Request(scope), error))(scope, receive, send)
        except Exception as error:
            if not answer.has_begun:
                await (await answer_unknown(Request(scope), error))(scope, receive, send)
            raise  # to the server, which logs it


class _Answer:
    """`send`, and whether it was used: an answer that has begun can only be cut."""

    __slots__ = ("_send", "has_begun")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        self.has_begun = True
        await self._send(message)


async def answer_problem(request: Request, exception: Exception) -> Response:
    """Answer a Problem with its own status, code and message."""
    error = cast("Problem", exception)
    # Whoever refuses an excess says how many; one line for each would be load of its own.
    is_ours = error.status >= 500 and not isinstance(error, Overloaded)
    level = logging.WARNING if is_ours else logging.DEBUG
    fields = {"code": error.code, "reason": error.message, "path": request.url.path}
    log.log(level, "request refused", extra={**fields, "request_id": request_id(request)})
    return _answer(request, error)


async def answer_http_exception(request: Request, exception: Exception) -> Response:
    """Answer what Starlette's router raises, in our form."""
    error = cast("HTTPException", exception)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        problem: Problem = MethodNotAllowed(f"this path answers {allowed}")
        return _answer(request, problem, {"allow": allowed})
    return _answer(request, NotFound(f"there is nothing at {request.url.path[:128]}"))


async def answer_unknown(request: Request, _error: Exception) -> Response:
    """Answer 500; the error itself goes on to the server, which logs it and cuts the connection."""
    problem = Problem(f"an error of ours; its log has {request_id(request)}")
    problem.closes_connection = True  # said, so that the client does not send its next call into it
    return _answer(request, problem)


def spell(problem: Problem, identity: str) -> bytes:
    """Return the body of the answer to the request of that id."""
    error = {"code": problem.code, "message": problem.message, "request_id": identity}
    return orjson.dumps({"error": {**error, **problem.details}})


def request_id(request: Request) -> str:
    """Return the request's id."""
    value: str = request.state.request_id
    return value


def _answer(request: Request, problem: Problem, headers: dict[str, str] | None = None) -> Response:
    identity = request_id(request)
    headers = {"x-request-id": identity, "cache-control": "no-store", **(headers or {})}
    if problem.retry_after_s is not None:
        headers["retry-after"] = str(problem.retry_after_s)
    if problem.closes_connection:
        headers["connection"] = "close"
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = spell(problem, identity)
    return Response(body, problem.status, headers, media_type="application/json")
