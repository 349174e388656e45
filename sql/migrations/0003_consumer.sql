-- Named consumers: the server keeps their place. One row for each consumer, and one for each of its
-- shards with the place, the lease of its holder, and how far any holder was sent.

CREATE TABLE causeway.consumer (
    name text COLLATE "C" NOT NULL,
    ack_mode text NOT NULL,
    lease_s int NOT NULL,
    topics text[],
    item_ids bigint[],
    account_ids bigint[],
    user_uuids uuid[],
    sources text[],
    shards int NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT consumer_pkey PRIMARY KEY (name),
    CONSTRAINT consumer_ack_mode_is_known CHECK (ack_mode IN ('auto', 'explicit')),
    CONSTRAINT consumer_lease_is_sane CHECK (lease_s BETWEEN 1 AND 3600),
    CONSTRAINT consumer_shards_are_sane CHECK (shards BETWEEN 1 AND 64)
);

-- The numbers of leases. Each is given out once, whatever becomes of the consumer: a number that was
-- counted for each shard would be given again after a deletion, and an old holder be taken for the new.
CREATE SEQUENCE causeway.lease AS bigint;

CREATE TABLE causeway.consumer_shard (
    name text COLLATE "C" NOT NULL,
    shard int NOT NULL,
    -- Everything up to here is done: acknowledged, or not of this shard. With the whole link, so
    -- that a log with another history is found out.
    position bigint NOT NULL,
    link bytea NOT NULL,
    -- The furthest that a holder was sent: an acknowledgement beyond it is refused, an event sent
    -- again at or before it is a redelivery.
    sent_position bigint NOT NULL,
    -- From the sequence, so that it rises with each holder: what an older one still says is refused.
    -- 0 if nobody has had the shard yet.
    lease bigint NOT NULL DEFAULT 0,
    held_by text,
    held_since timestamptz,
    lease_until timestamptz,
    CONSTRAINT consumer_shard_pkey PRIMARY KEY (name, shard),
    CONSTRAINT consumer_shard_name_fkey FOREIGN KEY (name) REFERENCES causeway.consumer (name)
        ON DELETE CASCADE
)
-- Updated in place many times a second; no index holds a column that changes.
WITH (fillfactor = 50);

-- Take the lease of shard p_shard of p_shards, if nobody holds it. Another number of shards than
-- before makes them anew, from the least place of all, unless somebody holds one of them.
--
-- Returns one row: outcome `taken`, `held`, `other_shards` (held with another number), or `unknown`;
-- with `taken` the lease and the place; with `held` and `other_shards` who holds, and the number.
CREATE FUNCTION causeway.take_lease(p_name text, p_shard int, p_shards int, p_holder text)
RETURNS TABLE (
    outcome text, lease bigint, place bigint, place_link bytea, sent bigint, holder text,
    shard_count int
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, causeway, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    known consumer%ROWTYPE;
    least consumer_shard%ROWTYPE;
BEGIN
    -- Standbys ask all the time: while it is held they lock nothing, hence write nothing.
    RETURN QUERY
    SELECT 'held', NULL::bigint, NULL::bigint, NULL::bytea, NULL::bigint, held_by, p_shards
    FROM consumer_shard
    JOIN consumer USING (name)
    WHERE name = p_name AND shard = p_shard AND shards = p_shards
        AND lease_until > clock_timestamp();
    IF FOUND THEN
        RETURN;
    END IF;

    -- One at a time for each consumer; all that follows sees what the one before did.
    SELECT * INTO known FROM consumer WHERE name = p_name FOR UPDATE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'unknown', NULL::bigint, NULL::bigint, NULL::bytea, NULL::bigint,
            NULL::text, NULL::int;
        RETURN;
    END IF;

    IF known.shards <> p_shards THEN
        RETURN QUERY
        SELECT 'other_shards', NULL::bigint, NULL::bigint, NULL::bytea, NULL::bigint, held_by,
            known.shards
        FROM consumer_shard
        WHERE name = p_name AND lease_until > clock_timestamp()
        ORDER BY shard
        LIMIT 1;
        IF FOUND THEN
            RETURN;
        END IF;
        SELECT * INTO least FROM consumer_shard WHERE name = p_name ORDER BY position, shard LIMIT 1;
        SELECT max(sent_position) INTO least.sent_position FROM consumer_shard WHERE name = p_name;
        DELETE FROM consumer_shard WHERE name = p_name;
        -- With no lease: an older holder was sent other events than the new shard of its number.
        INSERT INTO consumer_shard (name, shard, position, link, sent_position)
        SELECT p_name, n, least.position, least.link, least.sent_position
        FROM generate_series(0, p_shards - 1) AS n;
        UPDATE consumer SET shards = p_shards WHERE name = p_name;
    END IF;

    RETURN QUERY
    UPDATE consumer_shard
    SET lease = nextval('causeway.lease'), held_by = p_holder, held_since = clock_timestamp(),
        lease_until = clock_timestamp() + make_interval(secs => known.lease_s)
    WHERE name = p_name
        AND shard = p_shard
        AND (lease_until IS NULL OR lease_until <= clock_timestamp())
    RETURNING 'taken', lease, position, link, sent_position, held_by, p_shards;
    IF NOT FOUND THEN
        RETURN QUERY
        SELECT 'held', NULL::bigint, NULL::bigint, NULL::bytea, NULL::bigint, held_by, p_shards
        FROM consumer_shard
        WHERE name = p_name AND shard = p_shard;
    END IF;
END $$;

-- Renew the leases that a process holds, write down how far each was sent, and move each place to
-- p_done if that is further: the holder says so when nothing that it was sent is left unacknowledged.
-- Arrays of equal lengths. Returns the rows whose lease is still the holder's, with their places.
CREATE FUNCTION causeway.renew_leases(
    p_name text[], p_shard int[], p_lease bigint[], p_sent bigint[], p_done bigint[]
)
RETURNS TABLE (shard_name text, shard_number int, lease_number bigint, place bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, causeway, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    -- In one order, so that two processes never wait for each other.
    PERFORM
    FROM consumer_shard
    WHERE (name, shard) IN (SELECT * FROM unnest(p_name, p_shard))
    ORDER BY name, shard
    FOR UPDATE;

    RETURN QUERY
    UPDATE consumer_shard AS kept
    SET lease_until = clock_timestamp() + make_interval(secs => consumer.lease_s),
        sent_position = greatest(kept.sent_position, held.sent),
        position = coalesce(done.position, kept.position),
        link = coalesce(done.link, kept.link)
    FROM unnest(p_name, p_shard, p_lease, p_sent, p_done)
        AS held (name, shard, lease, sent, done)
    JOIN consumer ON consumer.name = held.name
    LEFT JOIN consumer_shard AS before
        ON before.name = held.name AND before.shard = held.shard
    LEFT JOIN event AS done ON done.position = held.done AND done.position > before.position
    WHERE kept.name = held.name AND kept.shard = held.shard AND kept.lease = held.lease
    RETURNING kept.name, kept.shard, kept.lease, kept.position;
END $$;

-- Take acknowledgements: arrays of equal lengths, one element for each; p_lease NULL where the caller
-- is not fenced, p_digits NULL where its position is not proved by the link's digits. A place never
-- moves back. Returns a row for each, in the order of the input: outcome `acked`, `unknown`,
-- `other_shards`, `lease_lost`, `ahead` (beyond what was sent), or `diverged`; and the place then.
CREATE FUNCTION causeway.ack_consumers(
    p_name text[], p_shard int[], p_shards int[], p_lease bigint[], p_position bigint[],
    p_digits text[]
)
RETURNS TABLE (outcome text, place bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, causeway, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM
    FROM consumer_shard
    WHERE (name, shard) IN (SELECT * FROM unnest(p_name, p_shard))
    ORDER BY name, shard
    FOR UPDATE;

    RETURN QUERY
    WITH judged AS (
        SELECT n, input.name, input.shard, input.position, event.link, kept.position AS kept,
            CASE
                WHEN consumer.name IS NULL THEN 'unknown'
                WHEN consumer.shards <> input.shards THEN 'other_shards'
                WHEN input.lease <> kept.lease THEN 'lease_lost'
                WHEN input.position <= kept.position THEN 'acked'
                WHEN input.position > kept.sent_position OR event.link IS NULL THEN 'ahead'
                WHEN NOT starts_with(encode(event.link, 'hex'), coalesce(input.digits, ''))
                    THEN 'diverged'
                ELSE 'acked'
            END AS outcome
        FROM unnest(p_name, p_shard, p_shards, p_lease, p_position, p_digits)
            WITH ORDINALITY AS input (name, shard, shards, lease, position, digits, n)
        LEFT JOIN consumer ON consumer.name = input.name
        LEFT JOIN consumer_shard AS kept ON kept.name = input.name AND kept.shard = input.shard
        LEFT JOIN event ON event.position = input.position
    ),
    furthest AS (
        SELECT DISTINCT ON (name, shard) name, shard, position, link
        FROM judged
        WHERE outcome = 'acked' AND position > kept
        ORDER BY name, shard, position DESC
    ),
    moved AS (
        UPDATE consumer_shard AS kept
        SET position = furthest.position, link = furthest.link
        FROM furthest
        WHERE kept.name = furthest.name AND kept.shard = furthest.shard
        RETURNING kept.name, kept.shard, kept.position
    )
    SELECT judged.outcome, coalesce(moved.position, judged.kept)
    FROM judged
    LEFT JOIN moved ON moved.name = judged.name AND moved.shard = judged.shard
    ORDER BY judged.n;
END $$;

REVOKE ALL ON FUNCTION
    causeway.take_lease(text, int, int, text),
    causeway.renew_leases(text[], int[], bigint[], bigint[], bigint[]),
    causeway.ack_consumers(text[], int[], int[], bigint[], bigint[], text[])
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    causeway.take_lease(text, int, int, text),
    causeway.renew_leases(text[], int[], bigint[], bigint[], bigint[]),
    causeway.ack_consumers(text[], int[], int[], bigint[], bigint[], text[])
TO causeway_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON causeway.consumer, causeway.consumer_shard
TO causeway_service;
