"""`/api/...`: tokens, sources, figures and the checkpoint, for whoever administers.

Everything needs a token with the scope `admin` and without limits. A session of the dashboard
counts for nothing here: no page of another site can make a browser do what these calls do.
"""

import re

from starlette.requests import Request
from starlette.responses import Response

from service.alarms import find_alarms
from service.answer import reply
from service.auth import Tokens, bearer_token
from service.body import read_body
from service.cursor import parse_query, single
from service.errors import BadRequest, NotFound
from service.eventlog import EventLog
from service.overview import Overview
from service.stats import HOUR, RANGES
from service.token_body import describe_token, parse_token

STATS_PARAMS = frozenset({"range"})
_TOKEN_ID = re.compile(r"[0-9]{1,18}")


class Admin:
    """The endpoints."""

    def __init__(self, tokens: Tokens, eventlog: EventLog, overview: Overview) -> None:
        self._tokens = tokens
        self._eventlog = eventlog
        self._overview = overview

    async def tokens(self, request: Request) -> Response:
        """Answer every token, the newest first (GET); make one (POST), which is shown once."""
        await self._authenticate(request)
        if request.method == "POST":
            return await self._make_token(request)
        return reply({"tokens": [describe_token(token) for token in await self._tokens.all()]})

    async def _make_token(self, request: Request) -> Response:
        wish = parse_token(await read_body(request.stream()))
        token = await self._tokens.create(wish.name, wish.scope, wish.limits, wish.expires_at)
        made = next(one for one in await self._tokens.all() if one.name == wish.name)
        return reply({"token": token, **describe_token(made)}, 201)

    async def token(self, request: Request) -> Response:
        """Revoke one token (DELETE)."""
        await self._authenticate(request)
        text = request.path_params["token_id"]
        if not _TOKEN_ID.fullmatch(text) or not await self._tokens.revoke_id(int(text)):
            raise NotFound(f"there is no valid token {text[:64]!r}")
        return Response(status_code=204)

    async def sources(self, request: Request) -> Response:
        """Answer every source: its newest event, and how its calls ended in this process."""
        await self._authenticate(request)
        return reply({"sources": [source.as_json() for source in await self._overview.sources()]})

    async def stats(self, request: Request) -> Response:
        """Answer what is wrong, in words, and the figures of a range."""
        params = await self._authenticate(request, STATS_PARAMS)
        range_ = single(params, "range") or HOUR
        if range_ not in (HOUR, *RANGES):
            raise BadRequest(f"range={range_[:32]!r}: one of hour, {', '.join(RANGES)} is expected")
        stats = self._overview.stats
        alarms = find_alarms(await self._overview.situation())
        shown = stats.hour() if range_ == HOUR else await stats.counts(range_)
        return reply({"alarms": [{"level": a.level, "text": a.text} for a in alarms], **shown})

    async def checkpoint(self, request: Request) -> Response:
        """Answer where the log begins and ends, to be kept elsewhere and given to an audit."""
        await self._authenticate(request)
        bounds = await self._eventlog.bounds()
        link = bounds.head_link.hex()
        body = {
            "log_id": bounds.log_id,
            "position": bounds.head_position,
            "link": link,
            "checkpoint": f"{bounds.head_position}.{link}",
            "first_position": bounds.first_position,
        }
        return reply(body)

    async def _authenticate(
        self, request: Request, known: frozenset[str] = frozenset()
    ) -> dict[str, list[str]]:
        """Return the query's values by name, once the caller may administer."""
        await self._tokens.log_in(bearer_token(request.scope["headers"]))
        return dict(parse_query(request.scope["query_string"], known))
