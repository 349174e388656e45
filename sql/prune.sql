-- The statements of service/prune.py. The owner runs them.

-- name: partitions
-- The partitions, oldest first: how large each is, and when the last of its events was received, if it
-- is full and events follow it (else NULL). Index: event_pkey.
SELECT first_position, end_position,
    pg_total_relation_size(format('causeway.%I', 'event_' || first_position)::regclass) AS bytes,
    (
        SELECT watermark
        FROM causeway.event AS last
        WHERE last.position = end_position - 1
            AND EXISTS (SELECT FROM causeway.event WHERE position = end_position)
    ) AS last_received_at
FROM causeway.event_partition
ORDER BY first_position;

-- name: behind
-- $1: a position. Who still needs an event up to it; see the function.
SELECT kind, name, place, events
FROM causeway.behind($1);

-- name: prune
-- $1: where the oldest partition begins. It is dropped; see the function.
SELECT causeway.prune_partition($1);

-- name: disable
-- Disables the webhooks whose place is no longer in the log, as the relay would when it looks next.
UPDATE causeway.webhook
SET disabled_at = clock_timestamp(),
    disabled_reason = 'position_pruned',
    version = version + 1
WHERE cursor_position < (SELECT anchor_position FROM causeway.log)
    AND disabled_at IS NULL
    AND deleted_at IS NULL;

-- name: is_owner
-- Whether this login may do all of it.
SELECT pg_has_role(relowner, 'MEMBER') AS is_owner
FROM pg_class
WHERE oid = 'causeway.event'::regclass;

-- name: forget_gone
-- $1: rows at most. How many deliveries were forgotten that were given up and whose event is gone.
SELECT causeway.forget_gone($1) AS forgotten;
