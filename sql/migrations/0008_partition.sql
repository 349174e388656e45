-- The log in partitions, 3 of 3: the table of events becomes the first partition. All of it is done
-- while nobody reads or appends, and none of it reads the events: some milliseconds (0007 has shown
-- what the first partition's constraint would look for).
SELECT causeway.lock_events();

ALTER TABLE causeway.event RENAME TO event_0;
ALTER INDEX causeway.event_pkey RENAME TO event_0_pkey;
ALTER INDEX causeway.event_item RENAME TO event_0_item;
ALTER INDEX causeway.event_account RENAME TO event_0_account;
ALTER INDEX causeway.event_user RENAME TO event_0_user;
ALTER INDEX causeway.event_topic RENAME TO event_0_topic;
ALTER INDEX causeway.event_source RENAME TO event_0_source;

-- The events, for as long as the retention says. Only append_events inserts; triggers refuse UPDATE,
-- DELETE and TRUNCATE for everybody, here and on each partition.
CREATE TABLE causeway.event (
    LIKE causeway.event_0 INCLUDING STORAGE,
    CONSTRAINT event_pkey PRIMARY KEY (position),
    CONSTRAINT event_position_is_positive CHECK (position > 0)
)
PARTITION BY RANGE (position);

-- Each serves read_matching, which bounds every look-up by a range of positions.
CREATE INDEX event_item ON causeway.event (item_id, position) WHERE item_id IS NOT NULL;
CREATE INDEX event_account ON causeway.event (account_id, position) WHERE account_id IS NOT NULL;
CREATE INDEX event_user ON causeway.event (user_uuid, position) WHERE user_uuid IS NOT NULL;
CREATE INDEX event_topic ON causeway.event (topic, position);
CREATE INDEX event_source ON causeway.event (source, position) WHERE source <> 'default';

DO $$
BEGIN
    EXECUTE format(
        'ALTER TABLE causeway.event ATTACH PARTITION causeway.event_0 FOR VALUES FROM (0) TO (%s)',
        (SELECT end_position FROM causeway.event_partition)
    );
END $$;
ALTER TABLE causeway.event_0 DROP CONSTRAINT event_ends;

CREATE TRIGGER event_is_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON causeway.event
FOR EACH STATEMENT EXECUTE FUNCTION causeway.refuse_change();
GRANT SELECT ON causeway.event TO causeway_service;
REVOKE ALL ON causeway.event_0 FROM causeway_service;

-- Add a partition behind the last one. It is made apart and attached: neither readers nor appends
-- wait for it, as they would for CREATE TABLE ... PARTITION OF. A statement's trigger is not inherited.
CREATE FUNCTION causeway.add_partition() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, causeway, pg_temp
AS $$
DECLARE
    first bigint := (SELECT max(end_position) FROM event_partition);
    next bigint := first + (SELECT partition_events FROM log);
    name text := 'event_' || first;
BEGIN
    EXECUTE format(
        'CREATE TABLE causeway.%I (LIKE causeway.event INCLUDING CONSTRAINTS INCLUDING STORAGE)', name
    );
    EXECUTE format(
        'CREATE TRIGGER event_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON causeway.%I '
        'FOR EACH STATEMENT EXECUTE FUNCTION causeway.refuse_change()', name
    );
    EXECUTE format(
        'ALTER TABLE causeway.event ATTACH PARTITION causeway.%I FOR VALUES FROM (%s) TO (%s)',
        name, first, next
    );
    INSERT INTO event_partition (first_position, end_position) VALUES (first, next);
END $$;

-- Open the partitions up to p_head, and make what is missing of them. Only append_events calls it,
-- under its lock.
CREATE FUNCTION causeway.open_partitions(p_head bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, causeway, pg_temp
AS $$
BEGIN
    IF p_head >= (SELECT max(end_position) FROM event_partition) THEN
        PERFORM pg_advisory_xact_lock(hashtext('causeway'), hashtext('make_partitions'));
        WHILE p_head >= (SELECT max(end_position) FROM event_partition) LOOP
            PERFORM add_partition();
        END LOOP;
    END IF;
    UPDATE event_partition
    SET opened_at = clock_timestamp()
    WHERE opened_at IS NULL AND first_position <= p_head;
END $$;

-- Make the partition after the newest one, unless it is there: called now and then, so that no append
-- has to do it. Returns how many were made.
CREATE FUNCTION causeway.make_partitions() RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, causeway, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM event_partition WHERE opened_at IS NULL)
        OR NOT pg_try_advisory_xact_lock(hashtext('causeway'), hashtext('make_partitions'))
    THEN
        RETURN 0;
    END IF;
    -- Again, with a snapshot taken after the lock was won.
    IF EXISTS (SELECT FROM event_partition WHERE opened_at IS NULL) THEN
        RETURN 0;
    END IF;
    PERFORM add_partition();
    RETURN 1;
END $$;

REVOKE ALL ON FUNCTION
    causeway.add_partition(),
    causeway.open_partitions(bigint),
    causeway.make_partitions()
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION causeway.make_partitions() TO causeway_service;

SELECT causeway.make_partitions();

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
-- 4. The newest row is looked for in the newest partition alone: a plan over all of them costs more
--    with each. What goes beyond its end opens the next one, which was made ahead (make_partitions),
--    or is made now.
--
-- Returns a row for each input, in the order of the input: its position, and whether it was known.
CREATE OR REPLACE FUNCTION causeway.append_events(
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
    newest_first bigint;
    newest_end bigint;
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

    SELECT first_position, end_position
    INTO newest_first, newest_end
    FROM event_partition
    WHERE opened_at IS NOT NULL
    ORDER BY first_position DESC
    LIMIT 1;
    SELECT position, link, watermark
    INTO head, head_link, head_watermark
    FROM event
    WHERE position >= newest_first AND position < newest_end
    ORDER BY position DESC
    LIMIT 1;
    IF head IS NULL THEN
        -- The log's first, or a log that was cut back behind a partition's beginning.
        SELECT position, link, watermark
        INTO head, head_link, head_watermark
        FROM event
        ORDER BY position DESC
        LIMIT 1;
    END IF;
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
        IF new_head >= newest_end THEN
            PERFORM open_partitions(new_head);
        END IF;
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
CREATE OR REPLACE FUNCTION causeway.find_time(p_time timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, causeway, pg_temp
-- One plan for all its steps: to plan over partitions costs more than to look.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
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
