-- The statements of service/replay.py.

-- name: count_all
-- $1, $2: positions, exclusive and inclusive: the range that is looked at, which bounds the work;
-- $3 topics, $4 items, $5 accounts, $6 users, $7 sources (NULL: all). How many events match. Indexes as
-- for read_matching of eventlog.sql, or event_pkey over the range.
SELECT count(*) AS events
FROM causeway.event
WHERE position > $1
    AND position <= $2
    AND ($3::text[] IS NULL OR topic LIKE ANY (causeway.topic_patterns($3)))
    AND ($4::bigint[] IS NULL OR item_id = ANY ($4))
    AND ($5::bigint[] IS NULL OR account_id = ANY ($5))
    AND ($6::uuid[] IS NULL OR user_uuid = ANY ($6))
    AND ($7::text[] IS NULL OR source = ANY ($7));

-- name: count_exhausted
-- $1: a webhook; $2, $3: positions, exclusive and inclusive; $4 topics, $5 items, $6 accounts, $7 users,
-- $8 sources (NULL: all); $9: deliveries at most. How many of those that were given up match, and up
-- to where it looked. Indexes: delivery_exhausted, event_pkey.
SELECT count(event.position) AS events,
    CASE WHEN count(*) = $9::bigint THEN max(given_up.position) ELSE $3::bigint END AS scanned_to
FROM (
    SELECT position
    FROM causeway.delivery
    WHERE webhook_id = $1
        AND state = 'exhausted'
        AND position > $2
        AND position <= $3
    ORDER BY position
    LIMIT $9
) AS given_up
LEFT JOIN causeway.event
    ON event.position = given_up.position
    AND ($4::text[] IS NULL OR topic LIKE ANY (causeway.topic_patterns($4)))
    AND ($5::bigint[] IS NULL OR item_id = ANY ($5))
    AND ($6::bigint[] IS NULL OR account_id = ANY ($6))
    AND ($7::uuid[] IS NULL OR user_uuid = ANY ($7))
    AND ($8::text[] IS NULL OR source = ANY ($8));

-- name: create
-- $1 webhook, $2 by whom, $3 state, $4..$8 the filter's topics, items, accounts, users, sources (NULL:
-- all), $9 and $10 positions, exclusive and inclusive, $11 events a second, $12 how many match. The new
-- one's number, or no row if there is no such webhook (any more). Index: webhook_pkey.
INSERT INTO causeway.replay (webhook_id, requested_by, state, topics, item_ids, account_ids, user_uuids,
    sources, after_position, until_position, per_s, events, cursor_position)
SELECT webhook_id, $2, $3, $4::text[], $5::bigint[], $6::bigint[], $7::uuid[], $8::text[], $9::bigint,
    $10::bigint, $11::float8, $12::bigint, $9::bigint
FROM causeway.webhook
WHERE webhook_id = $1 AND deleted_at IS NULL
RETURNING replay_id;

-- name: read
-- $1: a webhook; $2: the number of a replay, or NULL for all. The newest first. Index: replay_webhook.
SELECT replay_id, webhook_id, requested_at, requested_by, state, topics, item_ids, account_ids,
    user_uuids::text[] AS user_uuids, sources, after_position, until_position, per_s, events, queued,
    cursor_position, finished_at, cancelled_at
FROM causeway.replay
WHERE webhook_id = $1
    AND ($2::bigint IS NULL OR replay_id = $2)
ORDER BY replay_id DESC
LIMIT 500;

-- name: cancel
-- $1: a webhook; $2: the number of a replay. Stops it, unless it is over. Index: replay_pkey.
UPDATE causeway.replay
SET cancelled_at = clock_timestamp()
WHERE replay_id = $2
    AND webhook_id = $1
    AND finished_at IS NULL
    AND cancelled_at IS NULL;

-- name: one
-- $1: a webhook; $2: a position. `queued`, `pending`, `no_event` or `no_webhook`; see the function.
SELECT causeway.replay_delivery($1, $2) AS outcome;

-- name: advance
-- $1: positions looked at for each replay at most. One row; see the function.
SELECT queued_events, is_more, is_open
FROM causeway.advance_replays($1);
