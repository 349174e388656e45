-- The statements of service/webhook.py. There are a few dozen webhooks, and a page holds them all.

-- name: read
-- $1: a webhook, or NULL for all, by number; $2: only those that are enabled. With the log's head,
-- without a previous secret whose time is over. Those that were deleted are left out. Indexes:
-- webhook_pkey, event_pkey.
SELECT webhook_id, application, name, url, topics, sources, is_ordered, sealed_headers, sealed_secret,
    CASE WHEN previous_secret_until > clock_timestamp() THEN sealed_previous_secret END
        AS sealed_previous_secret,
    CASE WHEN previous_secret_until > clock_timestamp() THEN previous_secret_until END
        AS previous_secret_until,
    version, created_at, created_by, enabled_at, disabled_at, disabled_reason, cursor_position, cursor_link, accounted_from,
    backfill_until, failures, failing_since, open_until, head.position AS head_position
FROM causeway.webhook
CROSS JOIN LATERAL (
    SELECT coalesce(max(event.position), (SELECT anchor_position FROM causeway.log)) AS position
    FROM causeway.event
) AS head
WHERE deleted_at IS NULL
    AND ($1::bigint IS NULL OR webhook_id = $1)
    AND (NOT $2::boolean OR disabled_at IS NULL)
ORDER BY webhook_id;

-- name: next_id
-- The number of the next webhook: drawn before the row is made, because its secret is sealed for it.
SELECT nextval('causeway.webhook_id') AS webhook_id;

-- name: lock_application
-- $1: an application. Until the end of the transaction nobody else makes a webhook for it: what
-- `create` then counts, in a snapshot of its own, is all there is.
SELECT pg_advisory_xact_lock(hashtext('causeway.webhook'), hashtext($1::text));

-- name: create
-- $1 number, $2 application, $3 name, $4 URL, $5 topics, $6 sources (NULL: all), $7 ordered, $8 and $9
-- sealed headers and secret, $10 who makes it, $11 and $12 the place that it begins after and its link;
-- $13: webhooks of an application at most. A row, or none where it has as many already. What it is
-- owed up to the head is a back-fill.
INSERT INTO causeway.webhook
    (webhook_id, application, name, url, topics, sources, is_ordered, sealed_headers,
    sealed_secret, created_by, cursor_position, cursor_link, accounted_from, backfill_until)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $11,
    greatest($11, (SELECT max(position) FROM causeway.event))
WHERE $13 > (
    SELECT count(*)
    FROM causeway.webhook
    WHERE application = $2
        AND deleted_at IS NULL
)
RETURNING webhook_id;

-- name: change
-- $1 webhook; $2 whether to change the name, $3 to what; $4 URL, $5 sealed headers (NULL: as they
-- are); $6 whether to change the topics, $7 to what; $8 whether to change the sources, $9 to what. A row
-- if there is one. What was matched up to now was owed by another filter: it is not accounted for.
UPDATE causeway.webhook
SET name = CASE WHEN $2::boolean THEN $3 ELSE name END,
    url = coalesce($4, url),
    sealed_headers = coalesce($5, sealed_headers),
    topics = CASE WHEN $6::boolean THEN $7 ELSE topics END,
    sources = CASE WHEN $8::boolean THEN $9 ELSE sources END,
    accounted_from = CASE
        WHEN $6 AND topics IS DISTINCT FROM $7 OR $8 AND sources IS DISTINCT FROM $9
            THEN cursor_position
        ELSE accounted_from
    END,
    version = version + 1
WHERE webhook_id = $1
    AND deleted_at IS NULL
RETURNING webhook_id;

-- name: disable
-- $1 webhook, $2 the reason. A row if there is one; one that is disabled keeps its first reason.
UPDATE causeway.webhook
SET disabled_at = coalesce(disabled_at, clock_timestamp()),
    disabled_reason = coalesce(disabled_reason, $2),
    version = version + 1
WHERE webhook_id = $1
    AND deleted_at IS NULL
RETURNING webhook_id;

-- name: enable
-- $1 webhook; $2 and $3 the place where it goes on and its link, or NULL: where it stands. A row, or
-- none if it may not go on there: it moves forward only, and away from a place that the log does not
-- continue from. After another history any place is good, and what was delivered of that one beyond
-- it is forgotten: other events have its positions now. Indexes: webhook_pkey, delivery_pkey.
WITH old AS (
    SELECT webhook_id, cursor_position, disabled_reason,
        coalesce(disabled_reason = 'log_diverged', false) AS is_diverged
    FROM causeway.webhook
    WHERE webhook_id = $1
        AND deleted_at IS NULL
    FOR UPDATE
),
enabled AS (
    UPDATE causeway.webhook AS known
    SET disabled_at = NULL, disabled_reason = NULL,
        failures = 0, failing_since = NULL, open_until = NULL,
        enabled_at = clock_timestamp(),
        cursor_position = coalesce($2, known.cursor_position),
        cursor_link = coalesce($3, known.cursor_link),
        accounted_from = coalesce($2, known.accounted_from),
        backfill_until = CASE
            WHEN is_diverged THEN greatest($2, (SELECT max(position) FROM causeway.event))
            ELSE known.backfill_until
        END,
        version = known.version + 1
    FROM old
    WHERE known.webhook_id = old.webhook_id
        AND CASE
            WHEN is_diverged THEN $2::bigint IS NOT NULL
            WHEN old.disabled_reason = 'position_pruned' THEN $2 > old.cursor_position
            ELSE $2 IS NULL OR $2 >= old.cursor_position
        END
    RETURNING known.webhook_id, is_diverged
),
forgotten AS (
    DELETE FROM causeway.delivery
    USING enabled
    WHERE is_diverged
        AND delivery.webhook_id = enabled.webhook_id
        AND (position > $2 OR state = 'pending')
    RETURNING delivery.webhook_id, position
),
forgotten_attempts AS (
    DELETE FROM causeway.attempt
    USING forgotten
    WHERE attempt.webhook_id = forgotten.webhook_id
        AND attempt.position = forgotten.position
)
SELECT webhook_id
FROM enabled;

-- name: hurry
-- $1: a webhook. What waits for its retry is due now; see the function.
SELECT causeway.hurry_deliveries($1);

-- name: delete
-- $1 webhook; $2 and $3: nothing, sealed as its headers and as its secret. A row if there was one. The
-- retention takes the row and its deliveries away.
UPDATE causeway.webhook
SET deleted_at = clock_timestamp(),
    sealed_headers = $2,
    sealed_secret = $3,
    sealed_previous_secret = NULL,
    previous_secret_until = NULL,
    version = version + 1
WHERE webhook_id = $1
    AND deleted_at IS NULL
RETURNING webhook_id;

-- name: rotate
-- $1 webhook, $2 its new secret, sealed; $3 whether the one before it is kept, $4 for how many seconds.
-- A row if there is one. An older one is gone: there are never more than two.
UPDATE causeway.webhook
SET sealed_secret = $2,
    sealed_previous_secret = CASE WHEN $3::boolean THEN sealed_secret END,
    previous_secret_until = CASE
        WHEN $3 THEN clock_timestamp() + make_interval(secs => $4::float8)
    END,
    version = version + 1
WHERE webhook_id = $1
    AND deleted_at IS NULL
RETURNING webhook_id;

-- name: reseal
-- $1 webhook; $2 and $3 its headers and its secret, as they are sealed; $4..$6 its headers, secret and
-- previous secret, sealed anew. A row, or none if they were changed meanwhile. What they say is the
-- same: no new version.
UPDATE causeway.webhook
SET sealed_headers = $4,
    sealed_secret = $5,
    sealed_previous_secret = $6
WHERE webhook_id = $1
    AND sealed_headers = $2
    AND sealed_secret = $3
    AND deleted_at IS NULL
RETURNING webhook_id;
