-- The log: one table of events in one dense order, the digests that tell a retry from a new event,
-- and the only function that can append. The service's role can read and call; it owns nothing.

-- The service's role. Operators make a login a member of it: GRANT causeway_service TO my_login.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'causeway_service') THEN
        CREATE ROLE causeway_service NOLOGIN;
    END IF;
EXCEPTION
    -- Two databases of one cluster migrated at once; or no right to create roles, which the next
    -- statement then reports by the role's name.
    WHEN duplicate_object OR unique_violation THEN NULL;
END $$;
-- Whoever migrates may act as the service (a small set-up has one login for both).
DO $$
BEGIN
    IF NOT pg_has_role(current_user, 'causeway_service', 'MEMBER') THEN
        GRANT causeway_service TO CURRENT_USER;
    END IF;
END $$;
GRANT USAGE ON SCHEMA causeway TO causeway_service;
GRANT SELECT ON causeway.migration TO causeway_service;

-- One row. The anchor is the place before the first row that is left: position 0 and the hash of the
-- log's own id to begin with, so that the same events in two logs have different links; pruning
-- moves it, so that the chain verifies from the first row that is left.
CREATE TABLE causeway.log (
    only_one boolean PRIMARY KEY DEFAULT true,
    log_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    anchor_position bigint NOT NULL,
    anchor_link bytea NOT NULL,
    CONSTRAINT log_has_one_row CHECK (only_one),
    CONSTRAINT log_anchor_link_is_sha256 CHECK (octet_length(anchor_link) = 32)
);
INSERT INTO causeway.log (log_id, anchor_position, anchor_link)
SELECT id, 0, sha256(uuid_send(id))
FROM gen_random_uuid() AS id;

-- The events, for ever. Only append_events inserts; a trigger refuses UPDATE, DELETE and TRUNCATE
-- for everybody.
CREATE TABLE causeway.event (
    position bigint NOT NULL,
    received_at timestamptz NOT NULL,
    -- The greatest received_at up to and including this row. It never falls as positions rise, so
    -- the first event at or after a time is a binary search over the primary key (find_time).
    watermark timestamptz NOT NULL,
    occurred_at timestamptz,
    item_id bigint,
    account_id bigint,
    user_uuid uuid,
    source text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    -- Bridge's type under today's name: what filters match.
    topic text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,
    link bytea NOT NULL,
    body bytea NOT NULL,
    CONSTRAINT event_pkey PRIMARY KEY (position),
    CONSTRAINT event_position_is_positive CHECK (position > 0)
);
-- Bodies are small and already hashed: compressing each one costs more than it saves.
ALTER TABLE causeway.event ALTER COLUMN body SET STORAGE EXTERNAL;

-- Each serves read_matching, which bounds every look-up by a range of positions.
CREATE INDEX event_item ON causeway.event (item_id, position) WHERE item_id IS NOT NULL;
CREATE INDEX event_account ON causeway.event (account_id, position) WHERE account_id IS NOT NULL;
CREATE INDEX event_user ON causeway.event (user_uuid, position) WHERE user_uuid IS NOT NULL;
CREATE INDEX event_topic ON causeway.event (topic, position);
CREATE INDEX event_source ON causeway.event (source, position) WHERE source <> 'default';

-- What came lately, to know Bridge's retries: the same bytes to the same source. Apart from the
-- events, so that it can forget while they stay.
CREATE TABLE causeway.digest (
    digest bytea NOT NULL,
    source text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    CONSTRAINT digest_pkey PRIMARY KEY (digest, source)
);
-- For forget_digests, oldest first.
CREATE INDEX digest_position ON causeway.digest (position);

CREATE FUNCTION causeway.refuse_change() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'the log is append-only: % on %.% is refused', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER event_is_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON causeway.event
FOR EACH STATEMENT EXECUTE FUNCTION causeway.refuse_change();

-- Append a batch in one dense order. Called alone, as its own transaction; the arrays have equal
-- lengths and no event may be part of two calls at once.
--
-- 1. The lock comes first and is held to the end of the transaction, so positions are given in
--    commit order: a reader that asks for `position > p` never misses a row that commits late.
-- 2. Everything else is a later statement, hence with a snapshot taken after the lock was won. A
--    single statement would look with the snapshot from before its wait, and leave holes. For the
--    same reason it must not run under REPEATABLE READ.
-- 3. Duplicates are found by digest, those within the batch too, before a position is given: with
--    ON CONFLICT DO NOTHING the given position would become a hole.
--
-- Returns a row for each input, in the order of the input: its position, and whether it was known.
CREATE FUNCTION causeway.append_events(
    p_received_at timestamptz[],
    p_occurred_at timestamptz[],
    p_item_id bigint[],
    p_account_id bigint[],
    p_user_uuid uuid[],
    p_source text[],
    p_type text[],
    p_topic text[],
    p_digest bytea[],
    p_body bytea[],
    p_is_repeatable boolean[]
)
RETURNS TABLE (event_position bigint, is_known boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, causeway, pg_temp
-- The duplicate look-up must go by the index from the first row on: a plan cached on empty tables,
-- or made before they are analyzed, reads all of them at each batch (six times slower).
SET plan_cache_mode = force_custom_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    head bigint;
    head_link bytea;
    head_watermark timestamptz;
    known bigint[];       -- where an input already stands in the log; NULL for a fresh one
    first_n int[];        -- the first input of the batch with the same bytes and source
    positions bigint[];   -- the fresh inputs' new positions; NULL for the others
    parts bytea[];        -- what each link hashes beside the previous link; NULL likewise
    part bytea;
    new_head bigint;
    links bytea[] := '{}';
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'append_events needs READ COMMITTED, not %',
            upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    -- 200 means committed, whatever the role's or the database's default is.
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;

    PERFORM pg_advisory_xact_lock(hashtext('causeway'), hashtext('append_events'));

    SELECT position, link, watermark
    INTO head, head_link, head_watermark
    FROM event
    ORDER BY position DESC
    LIMIT 1;
    IF head IS NULL THEN
        SELECT anchor_position, anchor_link, '-infinity'
        INTO head, head_link, head_watermark
        FROM log;
    END IF;

    -- The chain's rule, also written in event.py: chain_link.
    SELECT array_agg(known ORDER BY n), array_agg(first_n ORDER BY n),
        array_agg(fresh ORDER BY n),
        array_agg(digest || int8send(fresh) || timestamptz_send(received_at)
            || convert_to(source, 'UTF8') ORDER BY n)
    INTO known, first_n, positions, parts
    FROM (
        SELECT n, digest, source, received_at, known, first_n,
            CASE WHEN known IS NULL AND first_n = n THEN head
                + count(*) FILTER (WHERE known IS NULL AND first_n = n) OVER (ORDER BY n)
            END AS fresh
        FROM (
            SELECT n, digest, source, received_at, known.position AS known,
                CASE WHEN is_repeatable THEN n
                    ELSE min(n) OVER (PARTITION BY digest, source, is_repeatable) END AS first_n
            FROM unnest(p_digest, p_source, p_received_at, p_is_repeatable)
                WITH ORDINALITY AS input (digest, source, received_at, is_repeatable, n)
            LEFT JOIN digest AS known USING (digest, source)
        ) AS looked_up
    ) AS placed;

    new_head := (SELECT max(position) FROM unnest(positions) AS position);
    IF new_head IS NOT NULL THEN
        FOREACH part IN ARRAY parts LOOP
            IF part IS NOT NULL THEN
                head_link := sha256(head_link || part);
            END IF;
            links := array_append(links, head_link);
        END LOOP;

        INSERT INTO event (position, received_at, watermark, occurred_at, item_id, account_id,
            user_uuid, source, type, topic, digest, link, body)
        SELECT position, received_at,
            greatest(head_watermark, max(received_at) OVER (ORDER BY position)),
            occurred_at, item_id, account_id, user_uuid, source, type, topic, digest, link, body
        FROM unnest(positions, p_received_at, p_occurred_at, p_item_id, p_account_id, p_user_uuid,
            p_source, p_type, p_topic, p_digest, links, p_body)
            AS fresh (position, received_at, occurred_at, item_id, account_id, user_uuid, source,
                type, topic, digest, link, body)
        WHERE position IS NOT NULL
        ORDER BY position;

        INSERT INTO digest (digest, source, position)
        SELECT digest, source, position
        FROM unnest(p_digest, p_source, positions, p_is_repeatable)
            AS fresh (digest, source, position, is_repeatable)
        WHERE position IS NOT NULL AND NOT is_repeatable;

        -- One hint for the batch, to whoever tails; the table is the truth.
        PERFORM pg_notify('causeway_head', new_head::text);
    END IF;

    RETURN QUERY
    SELECT coalesce(known, fresh, positions[first_n]), fresh IS NULL
    FROM unnest(known, positions, first_n) WITH ORDINALITY AS input (known, fresh, first_n, n)
    ORDER BY n;
END $$;

-- Return the first position whose event was received at or after p_time, or head + 1 if none was.
-- A binary search by the primary key: about 2 * log2(rows) page reads, whatever the table's size.
CREATE FUNCTION causeway.find_time(p_time timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, causeway, pg_temp
AS $$
DECLARE
    low bigint;   -- every position below it is before the time
    high bigint;  -- it, and every position above it, is not
    middle bigint;
BEGIN
    SELECT anchor_position + 1 INTO low FROM log;
    SELECT coalesce(max(position) + 1, low) INTO high FROM event;
    WHILE low < high LOOP
        middle := (low + high) / 2;
        IF (SELECT watermark < p_time FROM event WHERE position = middle) THEN
            low := middle + 1;
        ELSE
            high := middle;
        END IF;
    END LOOP;
    RETURN low;
END $$;

-- Forget at most p_limit digests of events received before p_before, oldest position first; return
-- how many. One caller at a time; a second one returns 0 at once.
CREATE FUNCTION causeway.forget_digests(p_before timestamptz, p_limit int) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, causeway, pg_temp
AS $$
DECLARE
    forgotten int;
BEGIN
    IF p_before > now() - interval '2 days' THEN
        RAISE EXCEPTION 'digests are kept for 2 days at least: Bridge retries that long'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtext('causeway'), hashtext('forget_digests')) THEN
        RETURN 0;
    END IF;
    DELETE FROM digest
    WHERE ctid = ANY (ARRAY(
        SELECT ctid
        FROM digest
        WHERE position < (SELECT find_time(p_before))
        ORDER BY position
        LIMIT p_limit
    ));
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    RETURN forgotten;
END $$;

REVOKE ALL ON FUNCTION
    causeway.append_events(timestamptz[], timestamptz[], bigint[], bigint[], uuid[], text[], text[],
        text[], bytea[], bytea[], boolean[]),
    causeway.find_time(timestamptz),
    causeway.forget_digests(timestamptz, int)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    causeway.append_events(timestamptz[], timestamptz[], bigint[], bigint[], uuid[], text[], text[],
        text[], bytea[], bytea[], boolean[]),
    causeway.find_time(timestamptz),
    causeway.forget_digests(timestamptz, int)
TO causeway_service;
GRANT SELECT ON causeway.log, causeway.event, causeway.digest TO causeway_service;
