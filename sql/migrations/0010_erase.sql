-- Erasure of a user (GDPR): the bodies of its events go, and what was read out of them. Position, type,
-- source, receipt, digest and link stay, so that the chain still verifies, the order keeps no hole, and
-- Bridge's retry of the same bytes is still known. Each erasure is written down.
SELECT causeway.lock_events();

CREATE TABLE causeway.erasure (
    erasure_id bigint GENERATED ALWAYS AS IDENTITY,
    erased_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason text NOT NULL,
    erased_by text NOT NULL,
    events bigint NOT NULL,
    -- The transaction that may change these events, and no later one.
    transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT erasure_pkey PRIMARY KEY (erasure_id)
);

-- The tombstones. Not who the user was.
CREATE TABLE causeway.erased (
    position bigint NOT NULL,
    erasure_id bigint NOT NULL,
    CONSTRAINT erased_pkey PRIMARY KEY (position),
    CONSTRAINT erased_erasure_id_fkey FOREIGN KEY (erasure_id)
        REFERENCES causeway.erasure (erasure_id)
);
-- For erased_after: what a process has not heard of.
CREATE INDEX erased_erasure ON causeway.erased (erasure_id, position);

-- Up to where `user.deleted` was looked for.
CREATE TABLE causeway.erasure_place (
    only_one boolean PRIMARY KEY DEFAULT true,
    position bigint NOT NULL,
    CONSTRAINT erasure_place_is_one CHECK (only_one)
);
INSERT INTO causeway.erasure_place (position) VALUES (0);
GRANT SELECT ON causeway.erasure, causeway.erased, causeway.erasure_place TO causeway_service;

-- What an UPDATE of events needs: an erasure that this very transaction has begun. Erasures run one at
-- a time, so the newest is ours or nobody's that is under way.
CREATE OR REPLACE FUNCTION causeway.refuse_change() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND pg_current_xact_id_if_assigned() = (
        SELECT transaction_id FROM causeway.erasure ORDER BY erasure_id DESC LIMIT 1
    ) THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'the log is append-only: % on %.% is refused', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

-- And of each row: nothing but the erasure itself, and only where it is written down.
CREATE FUNCTION causeway.allow_erasure() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tombstone causeway.event%ROWTYPE := OLD;
BEGIN
    tombstone.body := '';
    tombstone.occurred_at := NULL;
    tombstone.item_id := NULL;
    tombstone.account_id := NULL;
    tombstone.user_uuid := NULL;
    IF NEW IS DISTINCT FROM tombstone
        OR NOT EXISTS (SELECT FROM causeway.erased WHERE position = OLD.position)
    THEN
        RAISE EXCEPTION 'the log is append-only: the event at position % may only be erased',
            OLD.position
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER event_may_only_be_erased
BEFORE UPDATE ON causeway.event
FOR EACH ROW EXECUTE FUNCTION causeway.allow_erasure();

-- Erase the events of a user, and those of its items that name no user. What is pending for a webhook
-- is due at once, and ends there as `event_gone`. Returns one row: the erasure's number (NULL: there was
-- nothing to erase, or p_is_dry_run) and how many events.
CREATE FUNCTION causeway.erase_user(
    p_user_uuid uuid, p_reason text, p_by text, p_is_dry_run boolean
)
RETURNS TABLE (erasure bigint, erased_events bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, causeway, pg_temp
SET plan_cache_mode = force_custom_plan
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    items bigint[];
    gone bigint[];
BEGIN
    -- One at a time: their numbers are seen in their order, which is how processes hear of them.
    PERFORM pg_advisory_xact_lock(hashtext('causeway'), hashtext('erase_user'));
    items := ARRAY(
        SELECT DISTINCT item_id FROM event WHERE user_uuid = p_user_uuid AND item_id IS NOT NULL
    );
    gone := ARRAY(
        SELECT position FROM event WHERE user_uuid = p_user_uuid
        UNION
        SELECT position FROM event WHERE item_id = ANY (items) AND user_uuid IS NULL
        ORDER BY 1
    );
    erased_events := cardinality(gone);
    IF erased_events > 0 AND NOT p_is_dry_run THEN
        INSERT INTO causeway.erasure (reason, erased_by, events)
        VALUES (p_reason, p_by, erased_events)
        RETURNING erasure_id INTO erasure;
        INSERT INTO erased (position, erasure_id)
        SELECT position, erasure FROM unnest(gone) AS position;
        UPDATE event
        SET body = '', occurred_at = NULL, item_id = NULL, account_id = NULL, user_uuid = NULL
        WHERE position = ANY (gone);
        UPDATE delivery
        SET due_at = clock_timestamp()
        FROM webhook
        WHERE delivery.webhook_id = webhook.webhook_id
            AND delivery.position = ANY (gone)
            AND state = 'pending'
            AND claim IS NULL
            AND due_at < 'infinity';
        UPDATE delivery
        SET order_key = NULL
        FROM webhook
        WHERE delivery.webhook_id = webhook.webhook_id
            AND delivery.position = ANY (gone)
            AND state <> 'pending'
            AND order_key IS NOT NULL;
    END IF;
    RETURN NEXT;
END $$;

-- Erase the users of whom Bridge said `user.deleted` before p_before; at most p_limit a call, and one
-- caller at a time. Returns how many users were looked at, and how many events went.
CREATE FUNCTION causeway.erase_deleted_users(p_before timestamptz, p_limit int)
RETURNS TABLE (users bigint, erased_events bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, causeway, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    upto bigint := find_time(p_before) - 1;
    place bigint;
    found_ record;
BEGIN
    users := 0;
    erased_events := 0;
    IF pg_try_advisory_xact_lock(hashtext('causeway'), hashtext('erase_deleted_users')) THEN
        SELECT position INTO place FROM erasure_place;
        FOR found_ IN
            SELECT position, user_uuid
            FROM event
            WHERE topic = 'user.deleted'
                AND position > place
                AND position <= upto
            ORDER BY position
            LIMIT p_limit
        LOOP
            users := users + 1;
            place := found_.position;
            erased_events := erased_events + (
                SELECT done.erased_events
                FROM erase_user(found_.user_uuid, 'user.deleted', 'causeway', false) AS done
            );
        END LOOP;
        IF users < p_limit THEN
            place := greatest(place, upto);
        END IF;
        UPDATE erasure_place SET position = place WHERE position < place;
    END IF;
    RETURN NEXT;
END $$;

REVOKE ALL ON FUNCTION
    causeway.erase_user(uuid, text, text, boolean),
    causeway.erase_deleted_users(timestamptz, int)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    causeway.erase_user(uuid, text, text, boolean),
    causeway.erase_deleted_users(timestamptz, int)
TO causeway_service;
