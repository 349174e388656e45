"""Outgoing webhooks and deliveries for tests, made on the database itself."""

import asyncpg

from tests.logkeeping import Owner

WEBHOOK = """
INSERT INTO causeway.webhook (webhook_id, application, url, topics, sources, is_ordered,
    sealed_headers, sealed_secret, created_by, cursor_position, cursor_link, accounted_from,
    backfill_until, disabled_at, disabled_reason)
SELECT nextval('causeway.webhook_id'), 'tests', 'https://callback.example/', $1, $2, $3, '', '',
    'tests', position, link, 0, 0, CASE WHEN $5 THEN now() END, CASE WHEN $5 THEN 'admin' END
FROM (
    SELECT position, link FROM causeway.event
    UNION ALL
    SELECT anchor_position, anchor_link FROM causeway.log
) AS place
WHERE position = $4
RETURNING webhook_id
"""
DELIVERIES = """
INSERT INTO causeway.delivery (webhook_id, position, state, order_key, due_at, attempts, step,
    settled_at)
SELECT $1, position, $2, CASE WHEN is_ordered
        THEN coalesce(item_id::text, user_uuid::text, position::text) END,
    CASE WHEN $2 = 'pending' THEN clock_timestamp() + interval '1 hour'
        ELSE clock_timestamp() END,
    4, 4, CASE WHEN $2 <> 'pending' THEN clock_timestamp() END
FROM causeway.event, causeway.webhook
WHERE position = ANY ($3) AND webhook_id = $1
"""


async def make_webhook(
    owner: Owner,
    cursor: int,
    *,
    topics: list[str] | None = None,
    sources: list[str] | None = None,
    is_ordered: bool = False,
    is_disabled: bool = False,
) -> int:
    """Make a webhook whose cursor is at `cursor`; return its number."""
    webhook_id: int = await owner.fetchval(
        WEBHOOK, topics, sources, is_ordered, cursor, is_disabled
    )
    return webhook_id


async def deliver(owner: Owner, webhook_id: int, state: str, *positions: int) -> None:
    """Make deliveries in `state`, each after four attempts; a pending one waits for an hour."""
    await owner.execute(DELIVERIES, webhook_id, state, list(positions))


async def rows(owner: Owner, webhook_id: int) -> dict[int, asyncpg.Record]:
    """Return the webhook's deliveries by position; `when`: `now`, `later`, `held` or `-`."""
    found = await owner.fetch(
        "SELECT *, CASE WHEN state <> 'pending' THEN '-' WHEN due_at = 'infinity' THEN 'held' "
        "WHEN due_at > clock_timestamp() THEN 'later' ELSE 'now' END AS when "
        "FROM (SELECT webhook_id, position, state, order_key, due_at, claim, attempts, step, "
        "is_replay, settled_at FROM causeway.delivery) AS kept WHERE webhook_id = $1",
        webhook_id,
    )
    return {row["position"]: row for row in found}


async def whens(owner: Owner, webhook_id: int) -> dict[int, str]:
    """Return when each of the webhook's deliveries may be sent."""
    return {position: row["when"] for position, row in (await rows(owner, webhook_id)).items()}
