"""The JSON that makes a token, checked, and the JSON that describes one."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from service.auth import StoredToken
from service.body import is_text, is_uuid, parse_object, parse_types, parse_values
from service.cursor import parse_time
from service.errors import BadRequest
from service.event import timestamp
from service.filter import Filter

_KNOWN = ("name", "scope", "types", "sources", "user_uuids", "expires_at")
_LAST_YEAR = 9998


@dataclass(frozen=True, slots=True)
class TokenWish:
    """How a token should be."""

    name: str
    scope: str
    limits: Filter
    expires_at: datetime | None


def parse_token(body: bytes) -> TokenWish:
    """Return the wish of a POST. Raises BadRequest naming what is wrong."""
    fields = parse_object(body, _KNOWN)
    name, scope = fields.get("name"), fields.get("scope", "stream")
    if not isinstance(name, str) or not is_text(name):
        raise BadRequest("name: 1 to 128 printable characters were expected")
    if scope not in ("stream", "admin"):
        raise BadRequest("scope: `stream` or `admin` was expected")
    limits = Filter(
        topics=parse_types(fields),
        sources=parse_values(fields, "sources", is_text, "a list of sources"),
        user_uuids=parse_values(fields, "user_uuids", is_uuid, "a list of UUIDs in lower case"),
    )
    return TokenWish(name, scope, limits, _expiry(fields.get("expires_at")))


def _expiry(value: Any) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRequest("expires_at: an ISO 8601 time such as 2026-11-23T09:00:00Z was expected")
    moment = parse_time(value, "expires_at")
    if not datetime.now(UTC) < moment or moment.year > _LAST_YEAR:
        raise BadRequest("expires_at: a time to come was expected")
    return moment


def describe_token(token: StoredToken) -> dict[str, Any]:
    """Return a token as the API spells it: what it may, since when, never itself."""
    moments = {
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "revoked_at": token.revoked_at,
        "last_used_at": token.last_used_at,
    }
    limits = {
        "types": token.limits.topics,
        "sources": token.limits.sources,
        "user_uuids": token.limits.user_uuids,
    }
    return {
        "token_id": token.token_id,
        "name": token.name,
        "scope": token.scope,
        "limits": {name: sorted(values) for name, values in limits.items() if values is not None},
        **{name: None if m is None else timestamp(m) for name, m in moments.items()},
    }
