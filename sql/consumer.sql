-- The statements of service/consumer.py.

-- name: put
-- $1 name, $2 ack mode, $3 lease in seconds, $4..$8 the filter's topics, items, accounts, users,
-- sources (NULL: all; each in order). A row if it was made or changed: whether it is new. Holds the
-- consumer's row, as take_lease does, until the end of the transaction: its shards are then looked at
-- by a statement with a snapshot of its own, and are all there are.
INSERT INTO causeway.consumer AS known
    (name, ack_mode, lease_s, topics, item_ids, account_ids, user_uuids, sources)
VALUES ($1, $2, $3, $4, $5, $6, $7::uuid[], $8)
ON CONFLICT (name) DO UPDATE
SET ack_mode = excluded.ack_mode, lease_s = excluded.lease_s, topics = excluded.topics,
    item_ids = excluded.item_ids, account_ids = excluded.account_ids,
    user_uuids = excluded.user_uuids, sources = excluded.sources
WHERE (
        known.ack_mode, known.lease_s, known.topics, known.item_ids, known.account_ids,
        known.user_uuids, known.sources
    ) IS DISTINCT FROM (
        excluded.ack_mode, excluded.lease_s, excluded.topics, excluded.item_ids,
        excluded.account_ids, excluded.user_uuids, excluded.sources
    )
RETURNING known.xmax = 0 AS is_new;

-- name: begin
-- $1: a new consumer; $2 and $3: the place it begins after and its link.
INSERT INTO causeway.consumer_shard (name, shard, position, link, sent_position)
VALUES ($1, 0, $2, $3, $2);

-- name: count
-- How many consumers there are: a few more than may be, if many are made at once.
SELECT count(*) AS consumers
FROM causeway.consumer;

-- name: take_back
-- $1: a consumer that was changed or reset; $2 and $3: the place to move it to and its link, or NULL.
-- Takes the lease from whoever holds it: what an old filter looked through is not done for the new one.
-- Index: consumer_shard_pkey.
UPDATE causeway.consumer_shard
SET position = coalesce($2, position), link = coalesce($3, link),
    sent_position = coalesce($2, sent_position),
    lease = 0, held_by = NULL, held_since = NULL, lease_until = NULL
WHERE name = $1;

-- name: read
-- $1: a name, or NULL for all. A row for each shard, with how far behind the head it is: events, and
-- seconds since the receipt of the first one that is kept and not done (0: by a clock that was ahead,
-- too). The filter, which may be long, stands in the first row of each. Indexes: consumer_pkey,
-- consumer_shard_pkey, event_pkey.
SELECT name, ack_mode, lease_s,
    CASE WHEN shard.shard = 0 THEN topics END AS topics,
    CASE WHEN shard.shard = 0 THEN item_ids END AS item_ids,
    CASE WHEN shard.shard = 0 THEN account_ids END AS account_ids,
    CASE WHEN shard.shard = 0 THEN user_uuids::text[] END AS user_uuids,
    CASE WHEN shard.shard = 0 THEN sources END AS sources,
    shards, created_at, shard.shard, shard.position, shard.link, shard.sent_position,
    CASE WHEN shard.lease_until > clock_timestamp() THEN shard.held_by END AS held_by,
    CASE WHEN shard.lease_until > clock_timestamp() THEN shard.held_since END AS held_since,
    CASE WHEN shard.lease_until > clock_timestamp() THEN shard.lease_until END AS lease_until,
    greatest(0, head.position - shard.position) AS lag_events,
    greatest(0, extract(epoch FROM clock_timestamp() - next.received_at))::float8 AS lag_seconds
FROM causeway.consumer
JOIN causeway.consumer_shard AS shard USING (name)
CROSS JOIN LATERAL (
    SELECT coalesce(max(event.position), (SELECT anchor_position FROM causeway.log)) AS position
    FROM causeway.event
) AS head
LEFT JOIN LATERAL (
    SELECT event.received_at
    FROM causeway.event
    WHERE event.position > shard.position
    ORDER BY event.position
    LIMIT 1
) AS next ON true
WHERE $1::text IS NULL OR name = $1
ORDER BY name, shard.shard;

-- name: delete
-- $1: a name. A row if there was one.
DELETE FROM causeway.consumer
WHERE name = $1
RETURNING name;

-- name: take_lease
-- $1 name, $2 shard, $3 number of shards, $4 holder. One row; see the function.
SELECT outcome, lease, place, place_link, sent, holder, shard_count
FROM causeway.take_lease($1, $2, $3, $4);

-- name: renew
-- $1 names, $2 shards, $3 leases, $4 sent, $5 done, $6 links at what was sent (NULL: unchecked). A row
-- for each lease that still holds. With another link, what was sent was of another history: what has
-- its positions now was neither sent nor done. Index: event_pkey.
SELECT shard_name, shard_number, lease_number, place
FROM (
    SELECT array_agg(CASE WHEN is_ours THEN sent ELSE 0 END ORDER BY n) AS sent,
        array_agg(CASE WHEN is_ours THEN done ELSE 0 END ORDER BY n) AS done
    FROM (
        SELECT n, sent, done, held.link IS NULL OR coalesce((
            SELECT event.link = held.link
            FROM causeway.event
            WHERE event.position = held.sent
        ), false) AS is_ours
        FROM unnest($4::bigint[], $5::bigint[], $6::bytea[])
            WITH ORDINALITY AS held (sent, done, link, n)
    ) AS judged
) AS proved,
    causeway.renew_leases($1, $2, $3, proved.sent, proved.done);

-- name: release
-- $1 name, $2 shard, $3 lease. Let the next holder in at once, if the lease is still ours.
UPDATE causeway.consumer_shard
SET lease_until = clock_timestamp()
WHERE name = $1
    AND shard = $2
    AND lease = $3;

-- name: ack
-- $1 names, $2 shards, $3 numbers of shards, $4 leases, $5 positions, $6 digits. A row for each, in
-- the order of the input.
SELECT outcome, place
FROM causeway.ack_consumers($1, $2, $3, $4, $5, $6);
