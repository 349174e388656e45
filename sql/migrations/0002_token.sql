-- Tokens beside the bootstrap ones of the settings: only a hash is stored, 256 random bits need no
-- slow one. Limits are NULL where they do not restrict.

CREATE TABLE causeway.token (
    token_id bigint GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL,
    scope text NOT NULL,
    token_sha256 bytea NOT NULL,
    topics text[],
    sources text[],
    user_uuids uuid[],
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    CONSTRAINT token_pkey PRIMARY KEY (token_id),
    -- Also the index of find_token.
    CONSTRAINT token_sha256_is_unique UNIQUE (token_sha256),
    CONSTRAINT token_scope_is_known CHECK (scope IN ('stream', 'admin')),
    CONSTRAINT token_sha256_is_sha256 CHECK (octet_length(token_sha256) = 32),
    CONSTRAINT token_name_is_short CHECK (length(name) BETWEEN 1 AND 128)
);
-- A name is taken as long as a token of that name is valid.
CREATE UNIQUE INDEX token_name ON causeway.token (name) WHERE revoked_at IS NULL;

GRANT SELECT, INSERT ON causeway.token TO causeway_service;
GRANT UPDATE (revoked_at, last_used_at) ON causeway.token TO causeway_service;
