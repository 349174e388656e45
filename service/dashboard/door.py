"""The door: who may come in, and what may be changed by whom.

A request that changes something must pass three tests, each of which would do: the cookie is
SameSite=Strict; the browser says that it comes from our own page (Sec-Fetch-Site, or Origin where a
browser sends no Sec-Fetch-Site); and it carries the session's CSRF token. The cookie is good for
`/dashboard` alone, and for nothing of the API.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from service.address import Address, caller_address, came_by_tls
from service.auth import Tokens
from service.body import read_body
from service.config import Settings
from service.dashboard.attempts import Attempts
from service.dashboard.session import COOKIE, LIFETIME_S, Session, Sessions
from service.dashboard.view import HEADERS, render
from service.errors import BadRequest, Forbidden, Problem, Unauthenticated
from service.metrics import Metrics
from service.problems import request_id
from service.words import span

log = logging.getLogger("causeway.dashboard")

HOME, LOGIN = "/dashboard", "/dashboard/login"
_FIELDS_MAX = 100

Page = Callable[[Request], Awaitable[Response]]
Form = dict[str, list[str]]


class Door:
    """Lets in, and out."""

    def __init__(
        self, settings: Settings, tokens: Tokens, sessions: Sessions, metrics: Metrics
    ) -> None:
        self._proxies = settings.trusted_proxies
        self._tokens = tokens
        self._sessions = sessions
        self._logins = metrics.logins
        self._attempts = Attempts()

    def guard(self, page: Page, *, is_quiet: bool = False) -> Page:
        """Return a page that only a session can see; errors of the service are shown as they are.

        `is_quiet`: the page asks by itself, nobody need be there, and the session is not renewed.
        """

        async def guarded(request: Request) -> Response:
            try:
                session = await self.session(request)
                if session is None:
                    return _to_login(request)
                request.scope["session"] = session
                if request.method not in ("GET", "HEAD"):
                    request.scope["form"] = await _checked_form(request, session)
                response = await page(request)
            except Problem as problem:
                return show_problem(request, problem)
            if not is_quiet and (cookie := await self._sessions.renewed(session)):
                self._set_cookie(request, response, cookie)
            return response

        return guarded

    async def session(self, request: Request) -> Session | None:
        """Return the session that a request belongs to."""
        return await self._sessions.find(request.cookies.get(COOKIE))

    async def login(self, request: Request) -> Response:
        """Show the login (GET); let in whoever has an admin token (POST)."""
        try:
            if request.method == "POST":
                return await self._log_in(request)
            if await self.session(request) is not None:
                return RedirectResponse(_target(request), 303, HEADERS)
        except Problem as problem:
            return _login_page(request, problem.message, problem.status)
        return _login_page(request)

    async def _log_in(self, request: Request) -> Response:
        check_origin(request)
        address = self._address(request)
        if wait_s := self._attempts.wait_s(address):
            self._logins.labels("slowed").inc()
            message = f"Too many bad logins from your address: wait {span(max(1.0, wait_s))}."
            response = _login_page(request, message, 429)
            response.headers["retry-after"] = str(int(wait_s) + 1)
            return response
        token = one(await read_form(request), "token").strip()
        if not token:
            return _login_page(request, "Paste an admin token.", 400)
        try:
            holder = await self._tokens.log_in(token)
        except (Unauthenticated, Forbidden) as error:
            self._attempts.failed(address)
            self._logins.labels("bad").inc()
            log.warning("bad login to the dashboard", extra={"address": str(address)})
            return _login_page(request, error.message, error.status)
        self._attempts.succeeded(address)
        self._logins.labels("good").inc()
        log.info("login to the dashboard", extra={"token": holder.caller.name})
        response = RedirectResponse(_target(request), 303, HEADERS)
        self._set_cookie(request, response, self._sessions.begin(holder))
        return response

    async def logout(self, request: Request) -> Response:
        """End the session."""
        self._sessions.end(request.scope["session"])
        response = RedirectResponse(LOGIN, 303, HEADERS)
        response.delete_cookie(COOKIE, path=HOME, httponly=True, samesite="strict")
        return response

    def _set_cookie(self, request: Request, response: Response, value: str) -> None:
        response.set_cookie(
            COOKIE,
            value,
            max_age=LIFETIME_S,
            path=HOME,
            secure=self._is_tls(request),
            httponly=True,
            samesite="strict",
        )

    def _is_tls(self, request: Request) -> bool:
        forwarded = request.headers.getlist("x-forwarded-proto")
        return came_by_tls(request.scope["scheme"], _peer(request), forwarded, self._proxies)

    def _address(self, request: Request) -> Address | None:
        forwarded = request.headers.getlist("x-forwarded-for")
        return caller_address(_peer(request), forwarded, self._proxies)


def check_origin(request: Request) -> None:
    """Raise Forbidden unless the browser says that the request comes from a page of ours."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin", "")
    if site is None:
        is_ours = origin.partition("://")[2] == request.headers.get("host", "") != ""
    else:
        is_ours = site == "same-origin"
    if not is_ours:
        raise Forbidden("this did not come from a page of this dashboard: open it and try there")


async def read_form(request: Request) -> Form:
    """Return the values of a form by name. Raises BadRequest, BodyTooLarge, BodyTimeout."""
    body = await read_body(request.stream())
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, max_num_fields=_FIELDS_MAX, errors="strict"
        )
    except ValueError as error:
        raise BadRequest("the form is not UTF-8, or has too many fields") from error
    form: Form = {}
    for name, value in pairs:
        form.setdefault(name, []).append(value)
    return form


def one(form: Form, name: str) -> str:
    """Return the first value of a field; empty if it is missing."""
    return form.get(name, [""])[0]


async def _checked_form(request: Request, session: Session) -> Form:
    check_origin(request)
    form = await read_form(request)
    sent = request.headers.get("x-csrf-token") or one(form, "csrf")
    if not hmac.compare_digest(sent.encode(), session.csrf.encode()):
        raise Forbidden("this page is of another session: reload it and try again")
    return form


def show_problem(request: Request, problem: Problem) -> Response:
    """Answer an error as the API says it, as a page or as a part of one."""
    is_part = "hx-request" in request.headers
    return render(
        request,
        "problem_part.html" if is_part else "problem.html",
        problem.status,
        problem=problem,
        request_id=request_id(request),
        title="Error",
    )


def _to_login(request: Request) -> Response:
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = f"{LOGIN}?next={quote(path)}"
    if "hx-request" in request.headers:
        return Response(status_code=401, headers={**HEADERS, "hx-redirect": LOGIN})
    if request.method not in ("GET", "HEAD"):
        return RedirectResponse(LOGIN, 303, HEADERS)
    if request.headers.get("sec-fetch-site") == "cross-site":
        # A link from a chat or a pager: the browser kept the strict cookie back. Ask for the same
        # page once more from our own: then it is sent, if there is one.
        return render(request, "again.html")
    return RedirectResponse(target, 303, HEADERS)


def _target(request: Request) -> str:
    """Return where to go after the login: a page of ours, whatever the query says."""
    target = request.query_params.get("next", HOME)
    is_ours = target == HOME or target.startswith((f"{HOME}/", f"{HOME}?"))
    return target if is_ours and "\\" not in target and target.isprintable() else HOME


def _login_page(request: Request, message: str = "", status: int = 200) -> Response:
    return render(request, "login.html", status, message=message, title="Log in")


def _peer(request: Request) -> str | None:
    return request.client.host if request.client else None
