-- The statements of service/auth.py.

-- name: create
-- $1 name, $2 scope, $3 SHA-256 of the token, $4 topics, $5 sources, $6 users (NULL: all), $7 when
-- it expires (NULL: never). The new token's id.
INSERT INTO causeway.token (name, scope, token_sha256, topics, sources, user_uuids, expires_at)
VALUES ($1, $2, $3, $4, $5, $6::uuid[], $7)
RETURNING token_id;

-- name: find
-- $1: SHA-256 of a token. The token if it is valid now. Index: token_sha256_is_unique.
SELECT token_id, name, scope, topics, sources, user_uuids::text[] AS user_uuids
FROM causeway.token
WHERE token_sha256 = $1
    AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > now());

-- name: holder
-- $1: a token's id. The token with its hash, if it is valid now. Index: token_pkey.
SELECT token_id, name, scope, topics, sources, user_uuids::text[] AS user_uuids, token_sha256
FROM causeway.token
WHERE token_id = $1
    AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > now());

-- name: still_valid
-- $1: token ids. Those of them that are valid now. Index: token_pkey.
SELECT token_id
FROM causeway.token
WHERE token_id = ANY ($1)
    AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > now());

-- name: touch
-- $1: token ids that were used. Writes at most once a minute for each. Index: token_pkey.
UPDATE causeway.token
SET last_used_at = now()
WHERE token_id = ANY ($1)
    AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute');

-- name: all
-- Every token, newest first, without its hash.
SELECT token_id, name, scope, topics, sources, user_uuids::text[] AS user_uuids, created_at,
    expires_at, revoked_at, last_used_at
FROM causeway.token
ORDER BY token_id DESC;

-- name: revoke
-- $1: a name. How many valid tokens of that name there were (0 or 1) is the number of rows.
-- Index: token_name.
UPDATE causeway.token
SET revoked_at = now()
WHERE name = $1
    AND revoked_at IS NULL
RETURNING token_id;

-- name: revoke_id
-- $1: a token's id. A row if it was not revoked before. Index: token_pkey.
UPDATE causeway.token
SET revoked_at = now()
WHERE token_id = $1
    AND revoked_at IS NULL
RETURNING token_id;
