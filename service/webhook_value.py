"""What an outgoing webhook is, and how its row keeps what is secret: sealed for that very row.

Pure. Its secrets are written as Standard Webhooks writes them, `whsec_` and the base64 of 32 random
bytes. One that can't be opened is a webhook all the same, but one without a secret: nothing can be
sent for it.
"""

import secrets
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import orjson

from service.errors import SecretUnreadable
from service.event import event_id
from service.filter import Filter
from service.seal import Sealer

SECRET_PREFIX = "whsec_"  # noqa: S105  # nosec B105  # only how one begins
_SECRET_BYTES = 32
_PLAIN = (
    *("webhook_id", "application", "name", "url", "is_ordered", "previous_secret_until"),
    *("version", "created_at", "created_by", "enabled_at", "disabled_at", "disabled_reason"),
    *("cursor_position", "accounted_from", "backfill_until", "failures", "failing_since"),
    *("open_until", "cursor_link", "head_position"),
)


class Row(Protocol):
    """A row as Postgres gives it."""

    def __getitem__(self, name: str, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Webhook:
    """An outgoing webhook, its secrets opened. No repr shows one.

    `disabled_reason` is `admin`, `gone` (410), `failing` (for days), `log_diverged` or
    `position_pruned`. `open_until` is None while calls go through; else when one probe may be sent.
    `unreadable` says why the secrets could not be opened: then there are none, nor headers.
    """

    webhook_id: int
    application: str
    name: str | None
    url: str = field(repr=False)
    filter: Filter
    is_ordered: bool
    headers: Mapping[str, str] = field(repr=False)
    secret: str = field(repr=False)
    previous_secret: str | None = field(repr=False)
    previous_secret_until: datetime | None
    version: int
    created_at: datetime
    created_by: str
    enabled_at: datetime
    disabled_at: datetime | None
    disabled_reason: str | None
    cursor_position: int
    accounted_from: int
    backfill_until: int
    failures: int
    failing_since: datetime | None
    open_until: datetime | None
    cursor_link: bytes = b""
    head_position: int = 0
    unreadable: str | None = None

    @property
    def cursor_id(self) -> str:
        return event_id(self.cursor_position, self.cursor_link)

    @property
    def state(self) -> str:
        """`disabled`, `unreadable` (called no more than a disabled one), `failing` or `enabled`."""
        if self.disabled_at is not None:
            return "disabled"
        if self.unreadable is not None:
            return "unreadable"
        return "enabled" if self.open_until is None else "failing"

    def all_secrets(self) -> tuple[str, ...]:
        """Return the current secret, and the one before it if it was valid when this was read.

        Raises SecretUnreadable rather than none: nothing is ever sent unsigned.
        """
        if not self.secret:
            raise SecretUnreadable(self.unreadable or "the webhook has no secret")
        return (
            (self.secret,) if self.previous_secret is None else (self.secret, self.previous_secret)
        )

    def secrets(self, now: datetime) -> tuple[str, ...]:
        """Return the secrets that sign at `now`, one or two, the current one first."""
        until = self.previous_secret_until
        return self.all_secrets()[: 2 if until is not None and now < until else 1]


@dataclass(frozen=True, slots=True)
class Change:
    """What to change of a webhook: what `fields` names. The other values do not count."""

    fields: frozenset[str]
    name: str | None = None
    url: str = field(default="", repr=False)
    topics: frozenset[str] | None = None
    sources: frozenset[str] | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def new_secret() -> str:
    """Return a secret that nobody has: 256 random bits."""
    return SECRET_PREFIX + b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def seal_secret(sealer: Sealer, webhook_id: int, secret: str) -> bytes:
    """Return a secret, the current or the previous one, sealed for its webhook."""
    return sealer.seal(secret, _secret_context(webhook_id))


def seal_headers(sealer: Sealer, webhook_id: int, headers: Mapping[str, str]) -> bytes:
    """Return the custom headers, sealed for their webhook."""
    return sealer.seal(orjson.dumps(dict(headers)).decode(), _headers_context(webhook_id))


def open_row(sealer: Sealer, row: Row) -> Webhook:
    """Return the webhook of a row; what can't be opened makes it unreadable, and raises nothing."""
    id_, previous = row["webhook_id"], row["sealed_previous_secret"]
    headers, secret, previous_secret, unreadable = {}, "", None, None
    try:
        headers = orjson.loads(sealer.open(row["sealed_headers"], _headers_context(id_)))
        secret = sealer.open(row["sealed_secret"], _secret_context(id_))
        if previous is not None:
            previous_secret = sealer.open(previous, _secret_context(id_))
    except SecretUnreadable as error:
        headers, secret, unreadable = {}, "", error.message
    return Webhook(
        filter=Filter(topics=_set(row["topics"]), sources=_set(row["sources"])),
        headers=headers,
        secret=secret,
        previous_secret=previous_secret,
        unreadable=unreadable,
        **{name: row[name] for name in _PLAIN},
    )


def is_current(sealer: Sealer, row: Row) -> bool:
    """True if the newest key sealed all that is sealed in a row."""
    previous = row["sealed_previous_secret"]
    parts = (row["sealed_headers"], row["sealed_secret"], *([] if previous is None else [previous]))
    return all(sealer.is_current(part) for part in parts)


def seal_parts(sealer: Sealer, webhook: Webhook) -> tuple[bytes, bytes, bytes | None]:
    """Return the headers, the secret and the previous secret of a readable webhook, sealed anew."""
    id_, previous = webhook.webhook_id, webhook.previous_secret
    return (
        seal_headers(sealer, id_, webhook.headers),
        seal_secret(sealer, id_, webhook.secret),
        None if previous is None else seal_secret(sealer, id_, previous),
    )


def _secret_context(webhook_id: int) -> str:
    return f"webhook:{webhook_id}:secret"


def _headers_context(webhook_id: int) -> str:
    return f"webhook:{webhook_id}:headers"


def _set(values: list[str] | None) -> frozenset[str] | None:
    return None if values is None else frozenset(values)
