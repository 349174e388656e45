-- The statements of service/history.py: the log as people look at it, backwards and in sums. Each is
-- bounded in what it reads, whatever the log's size.

-- name: read_back
-- $1, $2: positions, exclusive and inclusive, from the newer to the older: the range that is looked at;
-- $3: rows at most. $4 exact topics, or $5 LIKE patterns of topics (NULL: all), $6 items, $7 accounts,
-- $8 users, $9 sources (NULL: all). Newest first. Indexes: those of eventlog's read_matching, backward.
SELECT position, link, received_at, source, type, topic, occurred_at, item_id, account_id,
    user_uuid::text AS user_uuid, digest, body
FROM causeway.event
WHERE position < $1
    AND position >= $2
    AND ($4::text[] IS NULL OR topic = ANY ($4))
    AND ($5::text[] IS NULL OR topic LIKE ANY ($5))
    AND ($6::bigint[] IS NULL OR item_id = ANY ($6))
    AND ($7::bigint[] IS NULL OR account_id = ANY ($7))
    AND ($8::uuid[] IS NULL OR user_uuid = ANY ($8))
    AND ($9::text[] IS NULL OR source = ANY ($9))
ORDER BY position DESC
LIMIT $3;

-- name: positions_at
-- $1: times. For each, in their order, the first position received at or after it; head + 1 if none was.
-- Positions are dense, so the difference of two is the number of events between two times. A binary
-- search by event_pkey for each.
SELECT causeway.find_time(moment) AS position
FROM unnest($1::timestamptz[]) WITH ORDINALITY AS asked (moment, n)
ORDER BY n;

-- name: last_of_source
-- $1: a source; $2: how many of the newest positions are looked at if it is `default`, which no index
-- holds. Its newest event. Indexes: event_source, else event_pkey, both backward.
SELECT position, link, received_at, type
FROM causeway.event
WHERE source = $1
    AND ($1 <> 'default' OR position > (SELECT max(position) FROM causeway.event) - $2::bigint)
ORDER BY position DESC
LIMIT 1;

-- name: database_bytes
-- The database's size on disk. Reads no table.
SELECT pg_database_size(current_database()) AS bytes;
