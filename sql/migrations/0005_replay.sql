-- Deliveries once more: one at once, or a range of them, worked off at a rate by whichever replica
-- looks, and gone on with after a restart.

CREATE TABLE causeway.replay (
    replay_id bigint GENERATED ALWAYS AS IDENTITY,
    webhook_id bigint NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT now(),
    requested_by text NOT NULL,
    -- Only deliveries that were given up; `all` sends what was delivered again, too, and what the
    -- webhook was never owed.
    state text COLLATE "C" NOT NULL,
    topics text[],
    item_ids bigint[],
    account_ids bigint[],
    user_uuids uuid[],
    sources text[],
    -- Positions, exclusive and inclusive.
    after_position bigint NOT NULL,
    until_position bigint NOT NULL,
    per_s float8 NOT NULL,
    -- How many match, counted when it was asked for; how many of them are queued; and up to where it
    -- has looked.
    events bigint NOT NULL,
    queued bigint NOT NULL DEFAULT 0,
    cursor_position bigint NOT NULL,
    advanced_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    cancelled_at timestamptz,
    CONSTRAINT replay_pkey PRIMARY KEY (replay_id),
    -- prune_deliveries takes a deleted webhook's row away in the end.
    CONSTRAINT replay_webhook_id_fkey FOREIGN KEY (webhook_id)
        REFERENCES causeway.webhook (webhook_id) ON DELETE CASCADE,
    CONSTRAINT replay_state_is_known CHECK (state IN ('all', 'exhausted')),
    CONSTRAINT replay_rate_is_positive CHECK (per_s > 0),
    CONSTRAINT replay_range_is_one CHECK (
        after_position <= cursor_position AND cursor_position <= until_position
    )
);
-- For lists of one webhook's replays, and for the removal of a webhook.
CREATE INDEX replay_webhook ON causeway.replay (webhook_id, replay_id);
-- For advance_replays: those under way.
CREATE INDEX replay_open ON causeway.replay (webhook_id, replay_id)
    WHERE finished_at IS NULL AND cancelled_at IS NULL;

-- Make the events at p_positions pending and due at once, whatever became of them before. What is
-- pending already stays as it is, unless it waits for its retry: that is due at once, and costs no
-- step of its schedule. Who calls it for an ordered webhook holds the lock of the webhook's row.
--
-- Invariant: of a key at most one pending delivery is due at some time; the others are held at
-- infinity, and record_attempts lets the next one go (tests/test_replay.py).
CREATE FUNCTION causeway.queue_again(
    p_webhook_id bigint, p_is_ordered boolean, p_positions bigint[]
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, causeway, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    now_ timestamptz := clock_timestamp();
BEGIN
    UPDATE delivery
    SET due_at = now_
    WHERE webhook_id = p_webhook_id
        AND position = ANY (p_positions)
        AND state = 'pending'
        AND claim IS NULL
        AND due_at > now_
        AND due_at < 'infinity';

    INSERT INTO delivery AS kept (webhook_id, position, order_key, due_at, is_replay)
    SELECT p_webhook_id, position, order_key,
        CASE WHEN p_is_ordered AND (
            row_number() OVER (PARTITION BY order_key ORDER BY position) > 1
            OR EXISTS (
                SELECT
                FROM delivery AS other
                WHERE other.webhook_id = p_webhook_id
                    AND other.order_key = keyed.order_key
                    AND other.state = 'pending'
            )
        ) THEN 'infinity' ELSE now_ END,
        true
    FROM (
        SELECT position,
            CASE WHEN p_is_ordered
                THEN coalesce(item_id::text, user_uuid::text, position::text)
            END AS order_key
        FROM event
        WHERE position = ANY (p_positions)
    ) AS keyed
    ORDER BY position
    ON CONFLICT (webhook_id, position) DO UPDATE
    SET state = 'pending', order_key = excluded.order_key, due_at = excluded.due_at, claim = NULL,
        step = 0, retry_at = NULL, is_replay = true, settled_at = NULL
    WHERE kept.state <> 'pending';
END $$;

-- Send one event again, now: given up, delivered, or never owed. Returns `queued`; `pending` if it is
-- on its way anyway (one that waited for its retry is due at once); `no_event`, `no_webhook` if there
-- is none.
CREATE FUNCTION causeway.replay_delivery(p_webhook_id bigint, p_position bigint) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, causeway, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    this webhook%ROWTYPE;
    is_pending boolean;
BEGIN
    SELECT * INTO this FROM webhook WHERE webhook_id = p_webhook_id AND deleted_at IS NULL;
    IF this.is_ordered THEN
        SELECT * INTO this
        FROM webhook
        WHERE webhook_id = p_webhook_id AND deleted_at IS NULL
        FOR UPDATE;
    END IF;
    IF this.webhook_id IS NULL THEN
        RETURN 'no_webhook';
    END IF;
    IF NOT EXISTS (SELECT FROM event WHERE position = p_position) THEN
        RETURN 'no_event';
    END IF;

    is_pending := EXISTS (
        SELECT
        FROM delivery
        WHERE webhook_id = p_webhook_id AND position = p_position AND state = 'pending'
    );
    IF NOT is_pending AND p_position > this.cursor_position AND EXISTS (
        SELECT
        FROM event
        WHERE position = p_position
            AND (this.topics IS NULL OR topic LIKE ANY (topic_patterns(this.topics)))
            AND (this.sources IS NULL OR source = ANY (this.sources))
    ) THEN
        RETURN 'pending';  -- the cursor comes to it
    END IF;
    PERFORM queue_again(p_webhook_id, this.is_ordered, ARRAY[p_position]);
    RETURN CASE WHEN is_pending THEN 'pending' ELSE 'queued' END;
END $$;

-- Go on with each replay that is under way and that no other caller has in hand: queue as many events
-- as its rate allows since it last went on, but no more than a second's worth, and none while a
-- thousand are due and not sent. Looks at p_scan positions of each at most. A disabled webhook's
-- replay waits, a deleted one's is cancelled.
--
-- Returns one row: how many events were queued; whether a replay stopped only because of p_scan (call
-- again at once); whether any is under way at all.
CREATE FUNCTION causeway.advance_replays(p_scan int)
RETURNS TABLE (queued_events bigint, is_more boolean, is_open boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, causeway, pg_temp
-- Filters that are NULL fold away.
SET plan_cache_mode = force_custom_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    due_max CONSTANT int := 1000;
    r replay%ROWTYPE;
    this webhook%ROWTYPE;
    now_ timestamptz;
    burst_s float8;
    room int;
    upto bigint;
    chosen bigint[];
    count_ int;
BEGIN
    queued_events := 0;
    is_more := false;
    is_open := EXISTS (SELECT FROM replay WHERE finished_at IS NULL AND cancelled_at IS NULL);

    FOR r IN
        SELECT *
        FROM replay
        WHERE finished_at IS NULL AND cancelled_at IS NULL
        ORDER BY webhook_id, replay_id
        FOR UPDATE SKIP LOCKED
    LOOP
        SELECT * INTO this FROM webhook WHERE webhook_id = r.webhook_id;
        IF this.deleted_at IS NOT NULL THEN
            UPDATE replay SET cancelled_at = clock_timestamp() WHERE replay_id = r.replay_id;
            CONTINUE;
        END IF;
        CONTINUE WHEN this.disabled_at IS NOT NULL;
        IF this.is_ordered THEN
            -- It never waits for a second webhook while it holds a first: record_attempts might wait
            -- the other way round.
            SELECT * INTO this
            FROM webhook
            WHERE webhook_id = r.webhook_id AND disabled_at IS NULL AND deleted_at IS NULL
            FOR UPDATE SKIP LOCKED;
            CONTINUE WHEN NOT FOUND;
        END IF;

        now_ := clock_timestamp();
        burst_s := greatest(1, 1 / r.per_s);
        -- A little more than whole: 1 / per_s seconds are one event, whatever floats make of it.
        room := floor(
            r.per_s * least(extract(epoch FROM now_ - r.advanced_at), burst_s) + 0.001
        )::int;
        CONTINUE WHEN room <= 0;
        room := least(room, due_max - (
            SELECT count(*)
            FROM (
                SELECT
                FROM delivery
                WHERE webhook_id = r.webhook_id AND state = 'pending' AND due_at <= now_
                LIMIT due_max
            ) AS due
        ));
        CONTINUE WHEN room <= 0;

        IF r.state = 'all' THEN
            upto := least(r.until_position, r.cursor_position + p_scan);
            chosen := ARRAY(
                SELECT position
                FROM event
                WHERE position > r.cursor_position
                    AND position <= upto
                    AND (this.topics IS NULL OR topic LIKE ANY (topic_patterns(this.topics)))
                    AND (this.sources IS NULL OR source = ANY (this.sources))
                    AND (r.topics IS NULL OR topic LIKE ANY (topic_patterns(r.topics)))
                    AND (r.item_ids IS NULL OR item_id = ANY (r.item_ids))
                    AND (r.account_ids IS NULL OR account_id = ANY (r.account_ids))
                    AND (r.user_uuids IS NULL OR user_uuid = ANY (r.user_uuids))
                    AND (r.sources IS NULL OR source = ANY (r.sources))
                ORDER BY position
                LIMIT room
            );
        ELSE
            upto := coalesce(
                (
                    SELECT position
                    FROM delivery
                    WHERE webhook_id = r.webhook_id
                        AND state = 'exhausted'
                        AND position > r.cursor_position
                        AND position <= r.until_position
                    ORDER BY position
                    OFFSET p_scan - 1
                    LIMIT 1
                ),
                r.until_position
            );
            chosen := ARRAY(
                SELECT event.position
                FROM delivery
                JOIN event ON event.position = delivery.position
                WHERE delivery.webhook_id = r.webhook_id
                    AND delivery.state = 'exhausted'
                    AND delivery.position > r.cursor_position
                    AND delivery.position <= upto
                    AND (r.topics IS NULL OR topic LIKE ANY (topic_patterns(r.topics)))
                    AND (r.item_ids IS NULL OR item_id = ANY (r.item_ids))
                    AND (r.account_ids IS NULL OR account_id = ANY (r.account_ids))
                    AND (r.user_uuids IS NULL OR user_uuid = ANY (r.user_uuids))
                    AND (r.sources IS NULL OR source = ANY (r.sources))
                ORDER BY delivery.position
                LIMIT room
            );
        END IF;

        count_ := cardinality(chosen);
        IF count_ > 0 THEN
            PERFORM queue_again(r.webhook_id, this.is_ordered, chosen);
            IF count_ = room THEN
                upto := chosen[count_];  -- what follows it was not looked at
            END IF;
        END IF;
        UPDATE replay
        SET cursor_position = upto,
            queued = queued + count_,
            advanced_at = greatest(advanced_at, now_ - make_interval(secs => burst_s))
                + make_interval(secs => count_ / per_s),
            finished_at = CASE WHEN upto >= until_position THEN now_ END
        WHERE replay_id = r.replay_id;
        queued_events := queued_events + count_;
        is_more := is_more OR (count_ < room AND upto < r.until_position);
    END LOOP;
    RETURN NEXT;
END $$;

REVOKE ALL ON FUNCTION
    causeway.queue_again(bigint, boolean, bigint[]),
    causeway.replay_delivery(bigint, bigint),
    causeway.advance_replays(int)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    causeway.queue_again(bigint, boolean, bigint[]),
    causeway.replay_delivery(bigint, bigint),
    causeway.advance_replays(int)
TO causeway_service;
GRANT SELECT, INSERT, UPDATE ON causeway.replay TO causeway_service;
