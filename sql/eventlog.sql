-- The statements of service/eventlog.py. Readers take rows in position order; whoever has read up to
-- p asks for what is after p, and misses nothing (see append_events).

-- name: append
-- $1..$11: one array for each column, of equal lengths. One row for each input, in its order.
-- A known event may be here and not yet on a synchronous standby: whoever waited for that was
-- cancelled. So a retry writes a word of its own, and its commit waits for the standby as well, which
-- then has all before it. A commit that wrote nothing would not wait.
SELECT event_position, is_known,
    CASE WHEN is_known AND current_setting('synchronous_standby_names') <> ''
        THEN pg_logical_emit_message(true, 'causeway', '')
    END AS waits_for_standby
FROM causeway.append_events($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: bounds
-- The place before the first row that is left, and the newest row, with their links. With no row
-- left both are the anchor. Index: event_pkey, backward.
SELECT log.log_id, log.anchor_position, log.anchor_link,
    coalesce(head.position, log.anchor_position) AS head_position,
    coalesce(head.link, log.anchor_link) AS head_link
FROM causeway.log
LEFT JOIN LATERAL (
    SELECT position, link
    FROM causeway.event
    ORDER BY position DESC
    LIMIT 1
) AS head ON true;

-- name: link_at
-- $1: a position. Its link, or no row if it is neither the anchor nor in the log. Index: event_pkey.
SELECT link
FROM causeway.event
WHERE position = $1
UNION ALL
SELECT anchor_link
FROM causeway.log
WHERE anchor_position = $1;

-- name: places
-- $1: positions. What is there; a row for each that is in the log. Index: event_pkey, once for each:
-- the LIMIT keeps it from becoming a join that reads the log from one end to the other.
SELECT place.position, place.link, place.type, place.source
FROM unnest($1::bigint[]) AS wanted (position)
CROSS JOIN LATERAL (
    SELECT position, link, type, source
    FROM causeway.event
    WHERE event.position = wanted.position
    LIMIT 1
) AS place
ORDER BY place.position;

-- name: read_after
-- $1: position, exclusive; $2: rows at most; $3: bytes of bodies at most, but always one row; $4: the
-- last position that is looked at: a plan costs more with each partition in its range. Oldest first.
-- Index: event_pkey. Lengths are known without reading a body that is stored apart.
SELECT position, link, received_at, source, type, topic, occurred_at, item_id, account_id,
    user_uuid::text AS user_uuid, digest, body
FROM (
    SELECT *, sum(octet_length(body)) OVER (ORDER BY position) AS total_bytes,
        row_number() OVER (ORDER BY position) AS n
    FROM (
        SELECT *
        FROM causeway.event
        WHERE position > $1
            AND position <= $4
        ORDER BY position
        LIMIT $2
    ) AS page
) AS measured
WHERE n = 1 OR total_bytes <= $3
ORDER BY position;

-- name: read_matching
-- $1, $2: positions, exclusive and inclusive: the range that is looked at, which bounds the work
-- whatever the filter; $3: rows at most; $4: bytes of bodies at most, but always one row.
-- $5 exact topics, or $6 LIKE patterns of topics (NULL: all), $7 items, $8 accounts, $9 users,
-- $10 sources (NULL: all). Oldest first; `matched` is the number of rows before
-- the cut by bytes. Indexes: event_item, event_account, event_user,
-- event_topic, event_source, or event_pkey over the range. Planned anew at each call, so that a
-- NULL filter folds away.
SELECT position, link, received_at, source, type, topic, occurred_at, item_id, account_id,
    user_uuid::text AS user_uuid, digest, body, matched
FROM (
    SELECT *, sum(octet_length(body)) OVER (ORDER BY position) AS total_bytes,
        row_number() OVER (ORDER BY position) AS n, count(*) OVER () AS matched
    FROM (
        SELECT *
        FROM causeway.event
        WHERE position > $1
            AND position <= $2
            AND ($5::text[] IS NULL OR topic = ANY ($5))
            AND ($6::text[] IS NULL OR topic LIKE ANY ($6))
            AND ($7::bigint[] IS NULL OR item_id = ANY ($7))
            AND ($8::bigint[] IS NULL OR account_id = ANY ($8))
            AND ($9::uuid[] IS NULL OR user_uuid = ANY ($9))
            AND ($10::text[] IS NULL OR source = ANY ($10))
        ORDER BY position
        LIMIT $3
    ) AS page
) AS measured
WHERE n = 1 OR total_bytes <= $4
ORDER BY position;

-- name: find_time
-- $1: a time. The first position received at or after it; head + 1 if none was.
SELECT causeway.find_time($1) AS position;

-- name: audit_after
-- $1: position, exclusive; $2: rows at most; $3: bytes of bodies at most, but always one row. All
-- that the chain covers, oldest first, and whether an erasure of it is written down. Indexes:
-- event_pkey, erased_pkey. A time that no client can hold (infinite,
-- BC), which only tampering can make, comes as one that no honest row has.
SELECT position, link, least(greatest(received_at, '0001-01-01+00'), '9999-12-31+00') AS received_at,
    source, type, topic,
    CASE WHEN occurred_at IS NOT NULL
        THEN least(greatest(occurred_at, '0001-01-01+00'), '9999-12-31+00')
    END AS occurred_at,
    item_id, account_id, user_uuid::text AS user_uuid, digest, body,
    least(greatest(watermark, '0001-01-01+00'), '9999-12-31+00') AS watermark,
    EXISTS (SELECT FROM causeway.erased WHERE erased.position = measured.position) AS is_erased
FROM (
    SELECT *, sum(octet_length(body)) OVER (ORDER BY position) AS total_bytes,
        row_number() OVER (ORDER BY position) AS n
    FROM (
        SELECT *
        FROM causeway.event
        WHERE position > $1
        ORDER BY position
        LIMIT $2
    ) AS page
) AS measured
WHERE n = 1 OR total_bytes <= $3
ORDER BY position;

-- name: forget_digests
-- $1: a time; $2: rows at most. How many digests of events received before it were forgotten.
SELECT causeway.forget_digests($1, $2) AS forgotten;

-- name: make_partitions
-- How many partitions were made ahead of the head.
SELECT causeway.make_partitions() AS made;
