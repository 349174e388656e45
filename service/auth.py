"""Tokens: who is calling, and what it may see.

Bootstrap tokens come from the settings; the others are in Postgres as hashes, with a name, a scope,
limits, an expiry and a revocation. A token has 256 random bits, so a plain SHA-256 hides it. No
token is ever logged or part of an error.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from service.config import Settings
from service.db import Querier, fetch, statements
from service.errors import BadRequest, Forbidden, LogUnavailable, Unauthenticated
from service.filter import EVERYTHING, Filter

log = logging.getLogger("causeway.auth")

_SQL = statements("token")
PREFIX = "cw_"
SCOPES = ("stream", "admin")
TOUCH_S = 30.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a good token belongs to. `token_id` is None for a bootstrap token of the settings."""

    name: str
    scope: str
    token_id: int | None = None
    limits: Filter = EVERYTHING


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token of the database, as lists show it; the token itself is not kept anywhere."""

    token_id: int
    name: str
    scope: str
    limits: Filter
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a valid token, and the token's SHA-256, to which a session can be bound."""

    caller: Caller
    digest: bytes


class Tokens:
    """Authenticates callers, and keeps the tokens in the database."""

    def __init__(self, settings: Settings, database: Querier) -> None:
        self._database = database
        self._used: set[int] = set()
        self._bootstrap = [
            (_sha256(token.get_secret_value()), Caller(f"settings:{scope}", scope))
            for scope, token in (("stream", settings.stream_token), ("admin", settings.admin_token))
            if token is not None
        ]

    async def authenticate(
        self, token: str | None, scope: str, *, query_token: str | None = None
    ) -> Caller:
        """Return the caller whose token allows `scope`; `admin` allows everything.

        `query_token` counts where there is no `token`, and only with the scope `stream`: a
        browser's EventSource cannot send headers, and a query ends up in the logs of proxies.

        Raises Unauthenticated, Forbidden, or LogUnavailable if the database had to be asked and
        is away.
        """
        sent = token or query_token
        if not sent:
            raise Unauthenticated("send a token: Authorization: Bearer <token>")
        caller = self._find_bootstrap(sent) or await self._find_stored(sent)
        if caller is None:
            raise Unauthenticated("the token is unknown, expired or revoked")
        if not token and caller.scope != "stream":
            raise Forbidden("a query may carry a token of the scope stream only")
        if caller.scope not in (scope, "admin"):
            raise Forbidden(f"this needs a token with the scope {scope}")
        return caller

    def _find_bootstrap(self, token: str) -> Caller | None:
        digest = _sha256(token)
        # All are compared, each in constant time.
        found = [caller for known, caller in self._bootstrap if hmac.compare_digest(known, digest)]
        return found[-1] if found else None

    async def _find_stored(self, token: str) -> Caller | None:
        if not token.startswith(PREFIX):
            return None
        rows = await fetch(self._database, _SQL.find, _sha256(token))
        if not rows:
            return None
        row = rows[0]
        self._used.add(row["token_id"])
        return Caller(row["name"], row["scope"], row["token_id"], _limits(row))

    async def log_in(self, token: str | None) -> Holder:
        """Return who may administer with `token`, and everything: a token without limits.

        Raises as `authenticate` does.
        """
        caller = await self.authenticate(token, "admin")
        if not caller.limits.is_everything:
            raise Forbidden("this needs a token without limits: it could make one without")
        return Holder(caller, _sha256(token or ""))

    async def holder(self, token_id: int | None) -> Holder | None:
        """Return who `log_in` let in, if that token is still valid; None for the settings' own."""
        if token_id is None:
            found = [Holder(caller, digest) for digest, caller in self._bootstrap]
            return next((holder for holder in found if holder.caller.scope == "admin"), None)
        rows = await fetch(self._database, _SQL.holder, token_id)
        if not rows:
            return None
        row = rows[0]
        self._used.add(token_id)
        caller = Caller(row["name"], row["scope"], token_id, _limits(row))
        return Holder(caller, row["token_sha256"])

    async def revoked(self, token_ids: Collection[int]) -> set[int]:
        """Return those of `token_ids` that are no longer valid."""
        if not token_ids:
            return set()
        rows = await fetch(self._database, _SQL.still_valid, list(token_ids))
        return set(token_ids) - {row["token_id"] for row in rows}

    async def touch(self) -> None:
        """Write down, now and then and for ever, which tokens were used. A loop."""
        while True:
            await asyncio.sleep(TOUCH_S)
            used, self._used = self._used, set()
            if not used:
                continue
            try:
                await fetch(self._database, _SQL.touch, list(used))
            except LogUnavailable:
                self._used |= used
                log.warning("last use of tokens not written", extra={"tokens": len(used)})

    async def create(
        self, name: str, scope: str, limits: Filter = EVERYTHING, expires_at: datetime | None = None
    ) -> str:
        """Make a token and return it: the only time it can be seen."""
        if scope not in SCOPES:
            raise BadRequest(f"a token's scope is one of {', '.join(SCOPES)}")
        if not 1 <= len(name) <= 128:
            raise BadRequest("a token's name has 1 to 128 characters")
        if limits.item_ids is not None or limits.account_ids is not None:
            raise BadRequest("a token is limited by sources, types or users")
        token = PREFIX + secrets.token_urlsafe(32)
        values = (_list(limits.topics), _list(limits.sources), _list(limits.user_uuids))
        try:
            await fetch(
                self._database, _SQL.create, name, scope, _sha256(token), *values, expires_at
            )
        except asyncpg.UniqueViolationError:
            raise BadRequest(f"a valid token is named {name!r} already: revoke it first") from None
        return token

    async def all(self) -> list[StoredToken]:
        """Return every token, the newest first, revoked ones too."""
        rows = await fetch(self._database, _SQL.all)
        return [
            StoredToken(
                row["token_id"],
                row["name"],
                row["scope"],
                _limits(row),
                row["created_at"],
                row["expires_at"],
                row["revoked_at"],
                row["last_used_at"],
            )
            for row in rows
        ]

    async def revoke(self, name: str) -> bool:
        """Revoke the valid token named `name`; False if there is none."""
        return bool(await fetch(self._database, _SQL.revoke, name))

    async def revoke_id(self, token_id: int) -> bool:
        """Revoke a token; False if there is none of that id, or it was revoked before."""
        return bool(await fetch(self._database, _SQL.revoke_id, token_id))


def bearer_token(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the token of an `Authorization: Bearer` header, or None."""
    for key, value in headers:
        if key == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if scheme.lower() == "bearer" else None
    return None


def _sha256(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _limits(row: asyncpg.Record) -> Filter:
    return Filter(
        topics=_set(row["topics"]),
        sources=_set(row["sources"]),
        user_uuids=_set(row["user_uuids"]),
    )


def _set(values: list[str] | None) -> frozenset[str] | None:
    return None if values is None else frozenset(values)


def _list(values: frozenset[str] | None) -> list[Any] | None:
    return None if values is None else sorted(values)
