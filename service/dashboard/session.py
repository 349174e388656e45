"""Who is in: signed cookies. No session is stored, so every replica knows every session.

The cookie names the token that logged in and when the session ends, and carries an HMAC. Its key is
derived from two things. First a secret of this installation that is not in the database:
CAUSEWAY_SECRET_KEY if it is set, else CAUSEWAY_ADMIN_TOKEN, which all replicas have alike; so that
whoever can read a backup can still not make a cookie. (Where neither is set only tokens of the
database can log in, and that protection is missing: who reads their hashes could make a cookie, but
reads all events already.) Second the SHA-256 of the token that logged in: a token that is replaced
under the same name ends its sessions. That the token is still valid is looked up again, at most
CACHED_S later. The CSRF token is made from the same key and the session's own random number.
"""

import base64
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from service.auth import Caller, Holder, Tokens
from service.config import Settings

COOKIE = "causeway_session"
LIFETIME_S = 8 * 3600
RENEW_S = 600  # a session that is used gets a new cookie, at most this often
CACHED_S = 3.0
_CACHE_MAX = 1000
_ENDED_MAX = 10_000
_SETTINGS = "s"  # in place of a token's id: the admin token of the settings


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who is in. `csrf` must come with whatever changes something."""

    caller: Caller
    nonce: str
    expires_s: int
    csrf: str


class Sessions:
    """Makes cookies, and knows them again."""

    def __init__(
        self, settings: Settings, tokens: Tokens, now: Callable[[], float] = time.time
    ) -> None:
        self._tokens = tokens
        self._now = now
        self._masters = _masters(settings)
        self._holders: OrderedDict[int | None, tuple[float, Holder | None]] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def begin(self, holder: Holder) -> str:
        """Return the cookie's value for whoever has just logged in."""
        return self._make(holder, secrets.token_urlsafe(12))

    async def find(self, cookie: str | None) -> Session | None:
        """Return the session of a cookie; None if it is none, or is over.

        Raises LogUnavailable if its token must be looked up and the database is away.
        """
        parts = (cookie or "").split(".")
        if len(parts) != 4 or not all(part.isascii() for part in parts):
            return None
        reference, expires, nonce, mac = parts
        if not expires.isdigit() or len(expires) > 12 or int(expires) <= self._now():
            return None
        if reference != _SETTINGS and not (reference.isdigit() and len(reference) < 18):
            return None
        holder = await self._holder(None if reference == _SETTINGS else int(reference))
        if holder is None or nonce in self._ended:
            return None
        signed = f"{reference}.{expires}.{nonce}"
        for master in self._masters:
            key = _key(master, holder)
            if hmac.compare_digest(_mac(key, signed), mac):
                return Session(holder.caller, nonce, int(expires), _mac(key, f"csrf.{nonce}"))
        return None

    async def renewed(self, session: Session) -> str | None:
        """Return a new cookie's value if it is time for one."""
        if session.expires_s - self._now() > LIFETIME_S - RENEW_S:
            return None
        holder = await self._holder(session.caller.token_id)
        return None if holder is None else self._make(holder, session.nonce)

    def end(self, session: Session) -> None:
        """Forget the session: this process takes its cookie no more, even if somebody kept it."""
        self._ended[session.nonce] = None
        if len(self._ended) > _ENDED_MAX:
            self._ended.popitem(last=False)

    def _make(self, holder: Holder, nonce: str) -> str:
        token_id = holder.caller.token_id
        reference = _SETTINGS if token_id is None else str(token_id)
        signed = f"{reference}.{int(self._now()) + LIFETIME_S}.{nonce}"
        return f"{signed}.{_mac(_key(self._masters[0], holder), signed)}"

    async def _holder(self, token_id: int | None) -> Holder | None:
        """Return who holds the token, as the database said at most CACHED_S ago."""
        kept = self._holders.get(token_id)
        if kept is None or self._now() - kept[0] > CACHED_S:
            kept = self._now(), await self._tokens.holder(token_id)
            self._holders[token_id] = kept
            if len(self._holders) > _CACHE_MAX:
                self._holders.popitem(last=False)
        holder = kept[1]
        if holder is None or holder.caller.scope != "admin":
            return None
        return holder if holder.caller.limits.is_everything else None


def _masters(settings: Settings) -> list[bytes]:
    """Return the installation's secrets that keys are derived from: the one to sign with first."""
    if settings.secret_key:
        return [key.get_secret_value().encode() for key in settings.secret_key]
    if settings.admin_token is not None:
        return [settings.admin_token.get_secret_value().encode()]
    return [b""]


def _key(master: bytes, holder: Holder) -> bytes:
    return hmac.digest(master, b"causeway dashboard session 1\0" + holder.digest, hashlib.sha256)


def _mac(key: bytes, text: str) -> str:
    digest = hmac.digest(key, text.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
