"""Outgoing webhooks: who is called where, for which events, signed with which secrets.

The only caller of `sql/webhook.sql`. In the database secrets and custom headers are sealed, in
memory opened; one that can't be opened is never called, and stops no other. Each change that a
relay must know of raises the version. Errors of a database that is away leave as LogUnavailable.
"""

import logging
from collections.abc import Mapping

import asyncpg

from service.db import Querier, fetch, statements, transaction
from service.errors import BadRequest, Problem, TooManyWebhooks, UnknownWebhook, WebhooksOff
from service.filter import Filter
from service.seal import Sealer
from service.webhook_value import (
    Change,
    Webhook,
    is_current,
    new_secret,
    open_row,
    seal_headers,
    seal_parts,
    seal_secret,
)

__all__ = ["Change", "Webhook", "Webhooks", "unknown"]

log = logging.getLogger("causeway.webhook")

_SQL = statements("webhook")
PREVIOUS_SECRET_S = 24 * 3600.0  # Bridge's own


class Webhooks:
    """All outgoing webhooks. Without a sealer they are off: calls raise WebhooksOff."""

    def __init__(
        self, database: Querier, sealer: Sealer | None, *, max_per_application: int
    ) -> None:
        self._database = database
        self._sealer = sealer
        self._max = max_per_application
        self._reported: dict[int, int] = {}  # webhook → version

    @property
    def is_on(self) -> bool:
        """True if there is a sealer."""
        return self._sealer is not None

    def require(self) -> Sealer:
        """Return the sealer. Raises WebhooksOff if there is none."""
        if self._sealer is None:
            raise WebhooksOff(
                "webhooks are off: set CAUSEWAY_SECRET_KEY, which encrypts their secrets, to at "
                "least 32 random characters"
            )
        return self._sealer

    async def create(
        self,
        *,
        application: str,
        name: str | None,
        url: str,
        filter_: Filter,
        headers: Mapping[str, str],
        is_ordered: bool,
        position: int,
        link: bytes,
        created_by: str,
    ) -> Webhook:
        """Make a webhook with a new secret, for what comes after `position`; return it.

        Raises TooManyWebhooks if the application has as many as it may, however many ask at once.
        """
        sealer = self.require()
        [row] = await fetch(self._database, _SQL.next_id)
        id_: int = row["webhook_id"]
        values = (
            *(id_, application, name, url, _list(filter_.topics), _list(filter_.sources)),
            *(is_ordered, seal_headers(sealer, id_, headers)),
            *(seal_secret(sealer, id_, new_secret()), created_by, position, link, self._max),
        )
        async with transaction(self._database) as connection:
            await fetch(connection, _SQL.lock_application, application)
            made = await fetch(connection, _SQL.create, *values)
        if not made:
            raise TooManyWebhooks(
                f"the application {application} has {self._max} webhooks, as many as it may "
                "(CAUSEWAY_RELAY_MAX_WEBHOOKS): delete one"
            )
        return await self.read(id_)

    async def read(self, webhook_id: int) -> Webhook:
        """Return one webhook. Raises UnknownWebhook."""
        sealer = self.require()
        for row in await fetch(self._database, _SQL.read, webhook_id, False):
            return open_row(sealer, row)
        raise unknown(webhook_id)

    async def all(self) -> list[Webhook]:
        """Return every webhook, by number; unreadable ones too."""
        sealer = self.require()
        return [
            open_row(sealer, row) for row in await fetch(self._database, _SQL.read, None, False)
        ]

    async def enabled(self) -> list[Webhook]:
        """Return those that may be called, by number.

        One whose secrets can't be opened is left out, and is an error in the log, once a version;
        so is each of them without a sealer.
        """
        webhooks = []
        for row in await fetch(self._database, _SQL.read, None, True):
            if self._sealer is None:
                self._report(row["webhook_id"], row["version"], "CAUSEWAY_SECRET_KEY is not set")
                continue
            webhook = open_row(self._sealer, row)
            self._report(webhook.webhook_id, webhook.version, webhook.unreadable)
            webhooks.append(webhook)
        return [webhook for webhook in webhooks if webhook.unreadable is None]

    async def change(self, webhook_id: int, change: Change) -> Webhook:
        """Change what `change` names; return the webhook then. Raises UnknownWebhook.

        Another filter counts from the cursor on: no event before it becomes owed, or is unowed.
        """
        sealer, fields = self.require(), change.fields
        rows = await fetch(
            self._database,
            _SQL.change,
            *(webhook_id, "name" in fields, change.name, change.url if "url" in fields else None),
            seal_headers(sealer, webhook_id, change.headers) if "headers" in fields else None,
            *("topics" in fields, _list(change.topics)),
            *("sources" in fields, _list(change.sources)),
        )
        return await self._read_changed(webhook_id, rows)

    async def disable(self, webhook_id: int, reason: str) -> Webhook:
        """Call it no more; return it. A disabled one keeps its reason. Raises UnknownWebhook."""
        self.require()
        rows = await fetch(self._database, _SQL.disable, webhook_id, reason)
        return await self._read_changed(webhook_id, rows)

    async def enable(self, webhook_id: int, start: tuple[int, bytes] | None = None) -> Webhook:
        """Call it again, from where it stands or after `start` (position and link); return it.

        What waits for a retry is due at once. Raises UnknownWebhook, or BadRequest for a start
        before its place, or for none where the log does not continue from there.
        """
        self.require()
        async with transaction(self._database) as connection:
            rows = await fetch(connection, _SQL.enable, webhook_id, *(start or (None, None)))
            if rows:
                await fetch(connection, _SQL.hurry, webhook_id)
        if not rows:
            raise _not_enabled(await self.read(webhook_id))
        return await self.read(webhook_id)

    async def delete(self, webhook_id: int) -> None:
        """Forget it and its secrets; the retention takes its deliveries. Raises UnknownWebhook."""
        sealer = self.require()
        nothing = (seal_headers(sealer, webhook_id, {}), seal_secret(sealer, webhook_id, ""))
        if not await fetch(self._database, _SQL.delete, webhook_id, *nothing):
            raise unknown(webhook_id)

    async def rotate(self, webhook_id: int) -> Webhook:
        """Give it a new secret; the one before signs, too, for 24 hours. Raises UnknownWebhook."""
        sealer, known = self.require(), await self.read(webhook_id)
        sealed = seal_secret(sealer, webhook_id, new_secret())
        keeps = known.unreadable is None
        rows = await fetch(
            self._database, _SQL.rotate, webhook_id, sealed, keeps, PREVIOUS_SECRET_S
        )
        return await self._read_changed(webhook_id, rows)

    async def reseal(self) -> int:
        """Seal with the newest key what older ones sealed; return for how many webhooks."""
        sealer = self.require()
        count = 0
        for row in await fetch(self._database, _SQL.read, None, False):
            webhook = open_row(sealer, row)
            self._report(webhook.webhook_id, webhook.version, webhook.unreadable)
            if webhook.unreadable is not None or is_current(sealer, row):
                continue
            sealed = (row["sealed_headers"], row["sealed_secret"])
            parts = (*sealed, *seal_parts(sealer, webhook))
            count += len(await fetch(self._database, _SQL.reseal, webhook.webhook_id, *parts))
        if count:
            log.info("secrets sealed with the newest key", extra={"webhooks": count})
        return count

    async def _read_changed(self, webhook_id: int, rows: list[asyncpg.Record]) -> Webhook:
        if not rows:
            raise unknown(webhook_id)
        return await self.read(webhook_id)

    def _report(self, webhook_id: int, version: int, reason: str | None) -> None:
        if reason is not None and self._reported.get(webhook_id) != version:
            self._reported[webhook_id] = version
            log.error("webhook not called", extra={"webhook": webhook_id, "reason": reason})


def unknown(webhook_id: int | str) -> UnknownWebhook:
    """Return the error for a number that no webhook has."""
    return UnknownWebhook(f"there is no webhook {str(webhook_id)[:32]!r}: see GET /api/webhooks")


def _not_enabled(webhook: Webhook) -> Problem:
    """Return why a webhook may not go on where it was asked to."""
    if webhook.disabled_reason in ("log_diverged", "position_pruned"):
        return BadRequest(
            f"start: the log does not continue from position {webhook.cursor_position} "
            f'({webhook.disabled_reason}): say where to go on, for example {{"start": "now"}}'
        )
    return BadRequest(
        f"start: the webhook stands at position {webhook.cursor_position}, and moves forward only; "
        "a replay sends again what is before"
    )


def _list(values: frozenset[str] | None) -> list[str] | None:
    return None if values is None else sorted(values)
