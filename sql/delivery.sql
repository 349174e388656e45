-- The statements of service/delivery.py.

-- name: claim
-- $1 webhooks, $2 their versions, $3 room, $4 looked through to, $5 the links there; $6 lease in
-- seconds; $7 bytes of bodies and $8 positions for each webhook at most; $9 back-fill a second. See the
-- function. A place with another link was in another history, which ended with a fail-over or a
-- restore: what is there now was not looked through. Index: event_pkey.
SELECT hook, outcome, reason, wait_s, scanned_to,
    (SELECT link FROM causeway.event WHERE position = scanned_to) AS scanned_link,
    claim_id, event_position, attempt, step_number, early_s, is_measured, event_link,
    event_received_at, event_body
FROM causeway.claim_deliveries(
    $1, $2, $3,
    ARRAY(
        SELECT coalesce((
            SELECT position
            FROM causeway.event
            WHERE event.position = known.position AND event.link = known.link
        ), 0)
        FROM unnest($4::bigint[], $5::bytea[]) WITH ORDINALITY AS known (position, link, n)
        ORDER BY n
    ),
    $6, $7, $8, $9
);

-- name: record
-- $1..$13: one array for each column of an ended attempt, $14 the links of their events (NULL: gone);
-- $15 failures that open the circuit; $16 how long it stays open at most; $17 how long a webhook may
-- fail. A row for each change of health. Where another event has the position, a fail-over or a restore
-- came between: that one was not sent. Index: event_pkey.
SELECT hook, change
FROM causeway.record_attempts(
    $1, $2, $3, $4,
    ARRAY(
        SELECT CASE WHEN EXISTS (
                SELECT
                FROM causeway.event
                WHERE event.position = ended.position AND event.link <> ended.link
            ) THEN 'released' ELSE ended.state END
        FROM unnest($2::bigint[], $5::text[], $14::bytea[])
            WITH ORDINALITY AS ended (position, state, link, n)
        ORDER BY n
    ),
    $6, $7, $8, $9, $10, $11, $12, $13, $15, $16, $17
);

-- name: backlog
-- $1: positions after a cursor that are looked through; what is beyond counts as if it matched. A row
-- for each webhook that is not deleted: what is pending, since when the oldest of it waits (NULL: it
-- waits for nothing; 0 where a clock that was ahead received it), how many were given up. Indexes: delivery_due, delivery_exhausted, event_pkey.
SELECT webhook.webhook_id, waiting.rows + after.events + greatest(0, head.position - after.scanned_to)
        AS pending,
    CASE WHEN coalesce(oldest.received_at, after.received_at) IS NOT NULL
        THEN greatest(
            0,
            extract(epoch FROM clock_timestamp() - least(oldest.received_at, after.received_at))
        )
    END::float8 AS oldest_s,
    (
        SELECT count(*)
        FROM causeway.delivery
        WHERE webhook_id = webhook.webhook_id AND state = 'exhausted'
    ) AS exhausted,
    webhook.open_until IS NOT NULL AND webhook.disabled_at IS NULL AS is_open,
    webhook.cursor_position, webhook.accounted_from, webhook.version
FROM causeway.webhook
CROSS JOIN LATERAL (
    SELECT coalesce(max(event.position), (SELECT anchor_position FROM causeway.log)) AS position
    FROM causeway.event
) AS head
CROSS JOIN LATERAL (
    SELECT count(*) AS rows, min(position) AS position
    FROM causeway.delivery
    WHERE webhook_id = webhook.webhook_id AND state = 'pending'
) AS waiting
LEFT JOIN causeway.event AS oldest ON oldest.position = waiting.position
CROSS JOIN LATERAL (
    SELECT count(*) AS events, min(received_at) AS received_at,
        least(head.position, webhook.cursor_position + $1::bigint) AS scanned_to
    FROM causeway.event
    WHERE position > webhook.cursor_position
        AND position <= least(head.position, webhook.cursor_position + $1::bigint)
        AND (webhook.topics IS NULL OR topic LIKE ANY (causeway.topic_patterns(webhook.topics)))
        AND (webhook.sources IS NULL OR source = ANY (webhook.sources))
) AS after
WHERE webhook.deleted_at IS NULL
ORDER BY webhook.webhook_id;

-- name: orphans
-- $1: a webhook; $2, $3: positions, exclusive and inclusive, a range that its cursor has passed. How
-- many matching events have no delivery although they are accounted for, and the first of them: none,
-- if all is well. Indexes: event_pkey, delivery_pkey.
SELECT count(*) AS orphans, min(event.position) AS first_position
FROM causeway.webhook
JOIN causeway.event
    ON event.position > greatest($2, webhook.accounted_from)
    AND event.position <= least($3, webhook.cursor_position)
    AND (webhook.topics IS NULL OR event.topic LIKE ANY (causeway.topic_patterns(webhook.topics)))
    AND (webhook.sources IS NULL OR event.source = ANY (webhook.sources))
WHERE webhook.webhook_id = $1
    AND webhook.deleted_at IS NULL
    AND NOT EXISTS (
        SELECT
        FROM causeway.delivery
        WHERE delivery.webhook_id = webhook.webhook_id AND delivery.position = event.position
    );

-- name: prune
-- $1: a time; $2: deliveries at most. How many were forgotten; see the function.
SELECT causeway.prune_deliveries($1, $2) AS forgotten;
