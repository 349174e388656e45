"""`/dashboard/tokens`: list, make (shown once), revoke."""

from datetime import UTC, datetime, timedelta

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.auth import StoredToken, Tokens
from service.dashboard.door import Form, one
from service.dashboard.search import describe_filter
from service.dashboard.view import render
from service.errors import BadRequest, NotFound
from service.token_body import parse_token

EXPIRIES = {"": None, "1": 1, "30": 30, "90": 90, "365": 365}  # days


class TokensPage:
    """The tokens."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def page(self, request: Request) -> Response:
        """Show all tokens, the valid ones first."""
        return await self._show(request, "tokens.html")

    async def create(self, request: Request) -> Response:
        """Make a token and show it: the only time."""
        wish = parse_token(_as_body(request.scope["form"]))
        token = await self._tokens.create(wish.name, wish.scope, wish.limits, wish.expires_at)
        return await self._show(request, "tokens_table.html", made=(wish.name, token))

    async def revoke(self, request: Request) -> Response:
        """Revoke a token: it is refused at once, its streams and sessions end within seconds."""
        text = request.path_params["token_id"]
        if not text.isdecimal() or len(text) > 18 or not await self._tokens.revoke_id(int(text)):
            raise NotFound("that token was revoked already")
        return await self._show(request, "tokens_table.html")

    async def _show(
        self, request: Request, template: str, made: tuple[str, str] | None = None
    ) -> Response:
        now = datetime.now(UTC)
        tokens = await self._tokens.all()
        rows = [(token, _state(token, now), describe_filter(token.limits)) for token in tokens]
        rows.sort(key=lambda row: row[1] != "valid")
        own = request.scope["session"].caller
        return render(
            request, template, title="Tokens", rows=rows, made=made, own=own, expiries=EXPIRIES
        )


def _state(token: StoredToken, now: datetime) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.expires_at is not None and token.expires_at <= now else "valid"


def _as_body(form: Form) -> bytes:
    """Return the form as the JSON that `POST /api/tokens` takes: one parser, one set of rules."""
    days = one(form, "expires")
    if days not in EXPIRIES:
        raise BadRequest("expires: one of the given times was expected")
    span = EXPIRIES[days]
    expires_at = None if span is None else (datetime.now(UTC) + timedelta(days=span)).isoformat()
    lists = {name: one(form, name).replace(",", " ").split() for name in ("types", "sources")}
    users = one(form, "user_uuids").lower().replace(",", " ").split()
    fields = {name: words for name, words in (lists | {"user_uuids": users}).items() if words}
    named = {"name": one(form, "name").strip(), "scope": one(form, "scope")}
    return orjson.dumps(named | fields | {"expires_at": expires_at})
