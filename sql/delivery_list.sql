-- The statements of service/delivery_list.py.

-- name: reach
-- $1: a webhook. Which events are its own, how far its cursor got, and where the log begins and ends.
-- No row if there is none. Indexes: webhook_pkey, event_pkey.
SELECT webhook.topics, webhook.sources, webhook.cursor_position, log.anchor_position,
    coalesce(
        (SELECT max(event.position) FROM causeway.event), log.anchor_position
    ) AS head_position
FROM causeway.webhook
CROSS JOIN causeway.log
WHERE webhook.webhook_id = $1 AND webhook.deleted_at IS NULL;

-- name: edge
-- $1: a webhook; $2, $3: positions, exclusive and inclusive; $4: a state, or NULL for all; $5: deliveries
-- before the edge. Where a look at the newest so many ends, or no row if it gets to the end of
-- the range. Indexes: delivery_due, delivery_exhausted, delivery_pkey.
WITH pending AS MATERIALIZED (
    SELECT position
    FROM causeway.delivery
    WHERE $4::text = 'pending'
        AND webhook_id = $1
        AND state = 'pending'
        AND position > $2
        AND position <= $3
)
SELECT position
FROM (
    SELECT position
    FROM pending
    UNION ALL
    (
        SELECT position
        FROM causeway.delivery
        WHERE $4 = 'exhausted'
            AND webhook_id = $1
            AND state = 'exhausted'
            AND position > $2
            AND position <= $3
        ORDER BY position DESC
        LIMIT $5
    )
    UNION ALL
    (
        SELECT position
        FROM causeway.delivery
        WHERE ($4 IS NULL OR $4 = 'delivered')
            AND webhook_id = $1
            AND position > $2
            AND position <= $3
        ORDER BY position DESC
        LIMIT $5
    )
) AS looked_at
ORDER BY position DESC
OFFSET $5 - 1
LIMIT 1;

-- name: list
-- $1: a webhook; $2, $3: positions, exclusive and inclusive; $4: a state, or NULL for all; $5 topics,
-- $6 items, $7 accounts, $8 users, $9 sources (NULL: all); $10: rows at most. The newest first;
-- of an event that is gone only what the delivery knows. Indexes: delivery_due, delivery_exhausted,
-- delivery_pkey, event_pkey.
WITH pending AS MATERIALIZED (
    SELECT *
    FROM causeway.delivery
    WHERE $4::text = 'pending'
        AND webhook_id = $1
        AND state = 'pending'
        AND position > $2
        AND position <= $3
)
SELECT delivery.position, event.link, event.type, event.source, event.item_id, event.received_at,
    delivery.state, delivery.attempts, delivery.is_replay, delivery.attempted_at, delivery.status,
    delivery.error, delivery.settled_at, moment.is_held, moment.is_in_flight,
    CASE WHEN delivery.state = 'pending' AND NOT moment.is_held AND NOT moment.is_in_flight
        THEN delivery.due_at
    END AS next_attempt_at
FROM (
    (
        SELECT *
        FROM pending
        ORDER BY position DESC
    )
    UNION ALL
    (
        SELECT *
        FROM causeway.delivery
        WHERE $4 = 'exhausted'
            AND webhook_id = $1
            AND state = 'exhausted'
            AND position > $2
            AND position <= $3
        ORDER BY position DESC
    )
    UNION ALL
    (
        SELECT *
        FROM causeway.delivery
        WHERE ($4 IS NULL OR $4 = 'delivered')
            AND webhook_id = $1
            AND position > $2
            AND position <= $3
            AND ($4 IS NULL OR state = 'delivered')
        ORDER BY position DESC
    )
) AS delivery
LEFT JOIN causeway.event ON event.position = delivery.position
CROSS JOIN LATERAL (
    SELECT delivery.state = 'pending' AND delivery.due_at = 'infinity' AS is_held,
        delivery.state = 'pending' AND delivery.claim IS NOT NULL
            AND delivery.due_at > clock_timestamp() AS is_in_flight
) AS moment
WHERE ($5::text[] IS NULL OR event.topic LIKE ANY (causeway.topic_patterns($5)))
    AND ($6::bigint[] IS NULL OR event.item_id = ANY ($6))
    AND ($7::bigint[] IS NULL OR event.account_id = ANY ($7))
    AND ($8::uuid[] IS NULL OR event.user_uuid = ANY ($8))
    AND ($9::text[] IS NULL OR event.source = ANY ($9))
ORDER BY delivery.position DESC
LIMIT $10;

-- name: attempts
-- $1: a webhook; $2: a position; $3: rows at most. How each try ended, the newest first.
-- Index: attempt_pkey.
SELECT number, started_at, duration_ms, status, error, answer
FROM causeway.attempt
WHERE webhook_id = $1 AND position = $2
ORDER BY number DESC
LIMIT $3;

-- name: event
-- $1: a position. What became of its event, one row for each webhook that has a delivery of it; deleted
-- ones are left out. Indexes: webhook_pkey, delivery_pkey.
SELECT delivery.webhook_id, delivery.position, event.link, event.type, event.source, event.item_id,
    event.received_at, delivery.state, delivery.attempts, delivery.is_replay, delivery.attempted_at,
    delivery.status, delivery.error, delivery.settled_at, moment.is_held, moment.is_in_flight,
    CASE WHEN delivery.state = 'pending' AND NOT moment.is_held AND NOT moment.is_in_flight
        THEN delivery.due_at
    END AS next_attempt_at
FROM causeway.webhook
JOIN causeway.delivery ON delivery.webhook_id = webhook.webhook_id AND delivery.position = $1
LEFT JOIN causeway.event ON event.position = delivery.position
CROSS JOIN LATERAL (
    SELECT delivery.state = 'pending' AND delivery.due_at = 'infinity' AS is_held,
        delivery.state = 'pending' AND delivery.claim IS NOT NULL
            AND delivery.due_at > clock_timestamp() AS is_in_flight
) AS moment
WHERE webhook.deleted_at IS NULL
ORDER BY delivery.webhook_id;
