-- Outgoing webhooks: who wants which events, where each stands in the log, and the deliveries that
-- are under way or done. The log is the queue: a webhook's cursor moves only as fast as its callback
-- takes events, so a dead one costs no rows, and what is after its cursor is pending by definition.

CREATE SEQUENCE causeway.webhook_id AS bigint;

CREATE TABLE causeway.webhook (
    -- Drawn before the row is made: its secret is sealed for this very number.
    webhook_id bigint NOT NULL,
    application text COLLATE "C" NOT NULL,
    name text,
    url text NOT NULL,
    topics text[],
    sources text[],
    is_ordered boolean NOT NULL DEFAULT false,
    -- Encrypted with CAUSEWAY_SECRET_KEY (service/seal.py): a JSON object of headers, and the secrets.
    sealed_headers bytea NOT NULL,
    sealed_secret bytea NOT NULL,
    sealed_previous_secret bytea,
    previous_secret_until timestamptz,
    -- Rises with each change that a process which holds the webhook in memory must know of.
    version int NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text NOT NULL,
    -- Events received before it are history: their delivery is no measure of our latency.
    enabled_at timestamptz NOT NULL DEFAULT now(),
    disabled_at timestamptz,
    disabled_reason text,
    deleted_at timestamptz,

    -- Every matching event up to the cursor has a delivery; with the whole link, so that a log with
    -- another history is found out.
    cursor_position bigint NOT NULL,
    cursor_link bytea NOT NULL,
    -- Up to here nothing is accounted for: before the beginning, before the filter was changed, or
    -- forgotten after its retention.
    accounted_from bigint NOT NULL,
    -- Up to here the cursor is held to a rate, since then.
    backfill_until bigint NOT NULL,
    backfilled_at timestamptz NOT NULL DEFAULT now(),

    -- Attempts that failed since the last success, and since when.
    failures int NOT NULL DEFAULT 0,
    failing_since timestamptz,
    -- While the circuit is open: when one probe may be sent (NULL: it is closed), the claim of the
    -- last one, and how many have failed.
    open_until timestamptz,
    probe_claim bigint,
    probes int NOT NULL DEFAULT 0,

    CONSTRAINT webhook_pkey PRIMARY KEY (webhook_id),
    CONSTRAINT webhook_application_is_short CHECK (length(application) BETWEEN 1 AND 63),
    CONSTRAINT webhook_name_is_short CHECK (length(name) BETWEEN 1 AND 128),
    CONSTRAINT webhook_disabled_has_a_reason CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL))
)
-- The cursor moves many times a second; no index holds a column that changes.
WITH (fillfactor = 50);

-- One row for each event that a webhook was owed and that its cursor has passed.
CREATE TABLE causeway.delivery (
    webhook_id bigint NOT NULL,
    position bigint NOT NULL,
    state text COLLATE "C" NOT NULL DEFAULT 'pending',
    -- Of an ordered webhook: the item (or user) whose events go out one at a time.
    order_key text COLLATE "C",
    -- When a pending one may be sent. For one that is being sent: when its lease ends. Infinity: held
    -- until the one before it, of the same key, is settled.
    due_at timestamptz NOT NULL,
    -- When its next retry is due by the schedule; an attempt before that costs no step.
    retry_at timestamptz,
    -- Which claim is sending it; what an older claim says about a failure is ignored.
    claim bigint,
    -- Attempts that have begun, and how far it is on the schedule of backoff.py.
    attempts int NOT NULL DEFAULT 0,
    step int NOT NULL DEFAULT 0,
    is_replay boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- How the last attempt ended.
    attempted_at timestamptz,
    status int,
    error text,
    settled_at timestamptz,
    CONSTRAINT delivery_pkey PRIMARY KEY (webhook_id, position),
    CONSTRAINT delivery_webhook_id_fkey FOREIGN KEY (webhook_id)
        REFERENCES causeway.webhook (webhook_id),
    CONSTRAINT delivery_state_is_known CHECK (state IN ('pending', 'delivered', 'exhausted'))
);
-- For claim_deliveries: what is due, and the next moment at which something is.
CREATE INDEX delivery_due ON causeway.delivery (webhook_id, due_at) WHERE state = 'pending';
-- For ordered webhooks: is something of this key under way, and which one is next.
CREATE INDEX delivery_order ON causeway.delivery (webhook_id, order_key, position)
    WHERE state = 'pending' AND order_key IS NOT NULL;
-- For lists, counts and replays of what was given up.
CREATE INDEX delivery_exhausted ON causeway.delivery (webhook_id, position) WHERE state = 'exhausted';

CREATE SEQUENCE causeway.claim AS bigint;

-- Each attempt that was made, with the first bytes of what came back.
CREATE TABLE causeway.attempt (
    webhook_id bigint NOT NULL,
    position bigint NOT NULL,
    number int NOT NULL,
    started_at timestamptz NOT NULL,
    duration_ms int NOT NULL,
    status int,
    error text,
    answer bytea NOT NULL,
    CONSTRAINT attempt_pkey PRIMARY KEY (webhook_id, position, number)
);
ALTER TABLE causeway.attempt ALTER COLUMN answer SET STORAGE EXTERNAL;

-- The LIKE patterns of a filter's topics: `item.*` → `item.%`, all else to the letter. NULL: all.
CREATE FUNCTION causeway.topic_patterns(p_topics text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
RETURN CASE WHEN p_topics IS NOT NULL THEN ARRAY(
    SELECT CASE WHEN topic LIKE '%*' THEN rtrim(literal, '*') || '%' ELSE literal END
    FROM unnest(p_topics) AS topic,
        replace(replace(replace(topic, '\', '\\'), '%', '\%'), '_', '\_') AS literal
) END;

-- Claim what may be sent now, for every enabled webhook: deliveries that are due, then events after
-- the cursor, whose deliveries are inserted already claimed. All of it is leased for p_lease_s: what
-- is not recorded by then is due again, for whoever asks next.
--
-- Arrays of equal lengths say what the caller knows of each webhook: its version, how many calls it
-- has room for, and up to where it saw that nothing matches (or 0). p_max_bytes: of bodies for each
-- webhook, but always one; p_scan: positions looked at for each.
--
-- Returns for each enabled webhook one row with its `outcome`, and before it a row `claimed` for each
-- delivery (body NULL: the event is gone):
--   idle     nothing until wait_s from now (NULL: until there is news)
--   more     ask again at once
--   busy     another replica is claiming: ask again soon
--   changed  the caller does not know this version: load it, then ask again
--   disabled (reason) the log does not continue from the cursor; nothing was claimed
CREATE FUNCTION causeway.claim_deliveries(
    p_webhook_id bigint[], p_version int[], p_room int[], p_after bigint[],
    p_lease_s float8, p_max_bytes int, p_scan int, p_backfill_per_s float8
)
RETURNS TABLE (
    hook bigint, outcome text, reason text, wait_s float8, scanned_to bigint,
    claim_id bigint, event_position bigint, attempt int, step_number int, early_s float8,
    is_measured boolean, event_link bytea, event_received_at timestamptz, event_body bytea
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, causeway, pg_temp
-- Ranges of positions by the primary key, whatever the statistics say: plans can be kept.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    head bigint;
    w record;
    this webhook%ROWTYPE;
    now_ timestamptz;
    next_due timestamptz;
    is_probe boolean;
    is_backfill boolean;
    room int;
    fresh_room int;
    claimed bigint;      -- this call's claim on this webhook
    due_count int;
    matched int;         -- new ones within the room, and how many of them the bytes allow
    fresh_count int;
    scan_from bigint;
    upto bigint;
    fresh bigint[];
BEGIN
    head := coalesce((SELECT max(position) FROM event), (SELECT anchor_position FROM log));

    FOR w IN
        SELECT webhook.*, known.version AS known_version, known.room, known.after
        FROM webhook
        LEFT JOIN unnest(p_webhook_id, p_version, p_room, p_after)
            AS known (webhook_id, version, room, after) USING (webhook_id)
        WHERE disabled_at IS NULL AND deleted_at IS NULL
        ORDER BY webhook_id
    LOOP
        hook := w.webhook_id;
        reason := NULL;
        wait_s := NULL;
        scanned_to := NULL;
        now_ := clock_timestamp();
        IF w.known_version IS DISTINCT FROM w.version THEN
            outcome := 'changed';
            RETURN NEXT;
            CONTINUE;
        END IF;
        outcome := 'idle';
        IF w.room <= 0 THEN
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF w.open_until > now_ THEN
            wait_s := extract(epoch FROM w.open_until - now_);
            RETURN NEXT;
            CONTINUE;
        END IF;

        -- Most calls find nothing to do: they lock nothing, hence write nothing.
        SELECT min(due_at) INTO next_due
        FROM delivery
        WHERE webhook_id = hook AND state = 'pending' AND due_at < 'infinity';
        IF greatest(w.cursor_position, w.after) >= head
            AND w.cursor_position <= head  -- else the log is shorter than it was
            AND (next_due IS NULL OR next_due > now_ AND w.open_until IS NULL)
        THEN
            wait_s := extract(epoch FROM next_due - now_);
            RETURN NEXT;
            CONTINUE;
        END IF;

        SELECT * INTO this
        FROM webhook
        WHERE webhook_id = hook
            AND version = w.version
            AND disabled_at IS NULL
            AND deleted_at IS NULL
            AND (open_until IS NULL OR open_until <= now_)
        FOR UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            outcome := 'busy';
            RETURN NEXT;
            CONTINUE;
        END IF;

        IF NOT EXISTS (
            SELECT FROM event WHERE position = this.cursor_position AND link = this.cursor_link
            UNION ALL
            SELECT FROM log
            WHERE anchor_position = this.cursor_position AND anchor_link = this.cursor_link
        ) THEN
            outcome := 'disabled';
            reason := CASE
                WHEN this.cursor_position < (SELECT anchor_position FROM log) THEN 'position_pruned'
                ELSE 'log_diverged'
            END;
            UPDATE webhook
            SET disabled_at = now_, disabled_reason = reason, version = version + 1
            WHERE webhook_id = hook;
            RETURN NEXT;
            CONTINUE;
        END IF;

        room := w.room;
        scan_from := greatest(this.cursor_position, w.after);
        is_probe := this.open_until IS NOT NULL;
        IF is_probe THEN
            -- One call finds out whether the callback is there again; nobody else tries meanwhile.
            room := 1;
        ELSIF scan_from < head THEN
            -- Neither may starve the other: what is due, and what is new.
            room := (room + 1) / 2;
        END IF;
        claimed := nextval('causeway.claim');

        -- 1. What is due. A probe may also take the oldest that waits: it does not cost it a step.
        RETURN QUERY
        WITH due AS (
            SELECT position
            FROM delivery
            WHERE webhook_id = hook
                AND state = 'pending'
                AND due_at <= now_
            ORDER BY due_at
            LIMIT room
            FOR UPDATE SKIP LOCKED
        ),
        early AS (
            SELECT position
            FROM delivery
            WHERE is_probe
                AND NOT EXISTS (SELECT FROM due)
                AND webhook_id = hook
                AND state = 'pending'
                AND due_at < 'infinity'
                AND claim IS NULL
            ORDER BY position
            LIMIT 1
            FOR UPDATE SKIP LOCKED
        ),
        taken AS (
            UPDATE delivery AS kept
            SET claim = claimed,
                due_at = now_ + make_interval(secs => p_lease_s),
                attempts = kept.attempts + 1
            FROM (SELECT * FROM due UNION ALL SELECT * FROM early) AS chosen
            WHERE kept.webhook_id = hook AND kept.position = chosen.position
            RETURNING kept.position, kept.attempts, kept.step, kept.is_replay,
                CASE WHEN kept.retry_at > now_
                    THEN extract(epoch FROM kept.retry_at - now_) END::float8 AS early_s
        )
        SELECT hook, 'claimed', NULL::text, NULL::float8, NULL::bigint,
            claimed, taken.position, taken.attempts, taken.step, taken.early_s,
            NOT taken.is_replay AND event.received_at >= this.enabled_at,
            event.link, event.received_at, event.body
        FROM taken
        LEFT JOIN event ON event.position = taken.position
        ORDER BY taken.position;
        GET DIAGNOSTICS due_count = ROW_COUNT;

        -- 2. What is new.
        fresh_room := CASE WHEN is_probe THEN 1 ELSE w.room END - due_count;
        fresh_count := 0;
        is_backfill := scan_from < this.backfill_until;
        upto := least(head, scan_from + p_scan);
        IF is_backfill THEN
            upto := least(upto, this.backfill_until);
            fresh_room := least(fresh_room, floor(p_backfill_per_s * least(
                extract(epoch FROM now_ - this.backfilled_at), greatest(1, 1 / p_backfill_per_s)
            ))::int);
        END IF;
        IF scan_from < head AND fresh_room > 0 THEN
            SELECT array_agg(position ORDER BY position)
                FILTER (WHERE n = 1 OR total <= p_max_bytes), count(*)
            INTO fresh, matched
            FROM (
                SELECT position, sum(octet_length(body)) OVER (ORDER BY position) AS total,
                    row_number() OVER (ORDER BY position) AS n
                FROM (
                    SELECT position, body
                    FROM event
                    WHERE position > scan_from
                        AND position <= upto
                        AND (this.topics IS NULL OR topic LIKE ANY (topic_patterns(this.topics)))
                        AND (this.sources IS NULL OR source = ANY (this.sources))
                    ORDER BY position
                    LIMIT fresh_room
                ) AS page
            ) AS measured;
            fresh_count := coalesce(cardinality(fresh), 0);
            IF matched = fresh_room OR fresh_count < matched THEN
                upto := fresh[fresh_count];  -- what follows it was not looked at
            END IF;

            IF fresh_count > 0 THEN
                RETURN QUERY
                WITH keyed AS (
                    SELECT position, link, received_at, body,
                        CASE WHEN this.is_ordered
                            THEN coalesce(item_id::text, user_uuid::text, position::text)
                        END AS order_key
                    FROM event
                    WHERE position = ANY (fresh)
                        -- A replay may have come before the cursor.
                        AND NOT EXISTS (
                            SELECT
                            FROM delivery AS known
                            WHERE known.webhook_id = hook AND known.position = event.position
                        )
                ),
                judged AS (
                    SELECT keyed.*,
                        this.is_ordered AND (
                            row_number() OVER (PARTITION BY order_key ORDER BY position) > 1
                            OR EXISTS (
                                SELECT FROM delivery AS earlier
                                WHERE earlier.webhook_id = hook
                                    AND earlier.order_key = keyed.order_key
                                    AND earlier.state = 'pending'
                            )
                        ) AS is_held
                    FROM keyed
                ),
                inserted AS (
                    INSERT INTO delivery
                        (webhook_id, position, order_key, due_at, claim, attempts)
                    SELECT hook, position, order_key,
                        CASE WHEN is_held THEN 'infinity'
                            ELSE now_ + make_interval(secs => p_lease_s) END,
                        CASE WHEN NOT is_held THEN claimed END,
                        CASE WHEN is_held THEN 0 ELSE 1 END
                    FROM judged
                    ORDER BY position
                    ON CONFLICT (webhook_id, position) DO NOTHING
                    RETURNING position, claim
                )
                SELECT hook, 'claimed', NULL::text, NULL::float8, NULL::bigint,
                    claimed, position, 1, 0, NULL::float8, received_at >= this.enabled_at,
                    link, received_at, body
                FROM judged
                JOIN inserted USING (position)
                WHERE inserted.claim IS NOT NULL
                ORDER BY position;
            END IF;

            -- Looking again costs less than a write for each event that does not match.
            IF fresh_count > 0 OR upto - this.cursor_position >= 1000 OR is_backfill THEN
                UPDATE webhook
                SET cursor_position = upto,
                    cursor_link = (SELECT link FROM event WHERE position = upto),
                    backfilled_at = CASE WHEN is_backfill
                        THEN greatest(backfilled_at, now_ - interval '1 second')
                            + make_interval(secs => fresh_count / p_backfill_per_s)
                        ELSE backfilled_at
                    END
                WHERE webhook_id = hook;
            END IF;
            scanned_to := upto;
        END IF;

        IF is_probe AND due_count + fresh_count > 0 THEN
            UPDATE webhook
            SET open_until = now_ + make_interval(secs => p_lease_s), probe_claim = claimed
            WHERE webhook_id = hook;
        ELSIF is_backfill AND (fresh_room <= 0 OR fresh_count > 0) THEN
            wait_s := greatest(0.1, 1 / p_backfill_per_s);
        ELSIF due_count = room OR coalesce(scanned_to, scan_from) < head THEN
            outcome := 'more';
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- Make what waits for its retry due at once, the oldest event first: what failed while the callback
-- was away need not wait for its own time. It costs no step of the schedule, which goes on beside it.
CREATE FUNCTION causeway.hurry_deliveries(p_webhook_id bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, causeway, pg_temp
AS $$
    UPDATE delivery AS waiting
    SET due_at = clock_timestamp() + chosen.n * interval '1 microsecond'
    FROM (
        SELECT position, row_number() OVER (ORDER BY position) AS n
        FROM (
            SELECT position
            FROM delivery
            WHERE webhook_id = p_webhook_id
                AND state = 'pending'
                AND due_at > clock_timestamp()
                AND due_at < 'infinity'
                AND claim IS NULL
            ORDER BY position
            LIMIT 10000
            FOR UPDATE SKIP LOCKED
        ) AS locked
    ) AS chosen
    WHERE waiting.webhook_id = p_webhook_id AND waiting.position = chosen.position;
$$;

-- Write down how attempts ended, in one commit. Arrays of equal lengths; p_state is `delivered`,
-- `pending` (to be tried again in p_due_in_s), `exhausted`, or `released` (it was not sent after all).
-- A failure counts only for the claim that made the attempt; a success counts always. p_pause_s: the
-- callback asked for a pause.
--
-- Keeps each webhook's health: after p_open_after failures in a row its circuit opens for 5 s, and for
-- twice as long after each probe that fails, at most p_open_max_s; a success closes it, and what
-- waited is due at once. `gone` as the error disables it, and so does failing for p_disable_after_s
-- without one success.
--
-- Returns a row for each webhook whose health changed: `opened`, `closed`, `gone` or `failing` (both
-- disabled).
CREATE FUNCTION causeway.record_attempts(
    p_webhook_id bigint[], p_position bigint[], p_claim bigint[], p_number int[], p_state text[],
    p_step int[], p_due_in_s float8[], p_started_at timestamptz[], p_duration_ms int[],
    p_status int[], p_error text[], p_answer bytea[], p_pause_s float8[],
    p_open_after int, p_open_max_s float8, p_disable_after_s float8
)
RETURNS TABLE (hook bigint, change text)
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
    w record;
    this webhook%ROWTYPE;
    was_open boolean;
    is_probe boolean;
    failed_now int;
BEGIN
    -- An ordered webhook's next event is let go below, and claim_deliveries holds back behind what is
    -- under way: neither may miss what the other does.
    PERFORM
    FROM webhook
    WHERE webhook_id = ANY (p_webhook_id) AND is_ordered
    ORDER BY webhook_id
    FOR UPDATE;

    INSERT INTO attempt
        (webhook_id, position, number, started_at, duration_ms, status, error, answer)
    SELECT webhook_id, position, number, started_at, duration_ms, status, error, answer
    FROM unnest(p_webhook_id, p_position, p_number, p_state, p_started_at, p_duration_ms, p_status,
        p_error, p_answer)
        AS ended (webhook_id, position, number, state, started_at, duration_ms, status, error, answer)
    WHERE state <> 'released'
    ON CONFLICT (webhook_id, position, number) DO NOTHING;

    WITH ended AS (
        SELECT *
        FROM unnest(p_webhook_id, p_position, p_claim, p_state, p_step, p_due_in_s, p_started_at,
            p_status, p_error)
            AS ended (webhook_id, position, claim, state, step, due_in_s, started_at, status, error)
        ORDER BY webhook_id, position
    ),
    settled AS (
        UPDATE delivery AS kept
        SET state = CASE ended.state WHEN 'released' THEN 'pending' ELSE ended.state END,
            claim = NULL,
            step = ended.step,
            attempts = kept.attempts - CASE ended.state WHEN 'released' THEN 1 ELSE 0 END,
            due_at = now_ + make_interval(secs => coalesce(ended.due_in_s, 0)),
            retry_at = CASE ended.state WHEN 'released' THEN kept.retry_at
                ELSE now_ + make_interval(secs => ended.due_in_s) END,
            settled_at = CASE WHEN ended.state IN ('delivered', 'exhausted') THEN now_ END,
            attempted_at = CASE ended.state
                WHEN 'released' THEN kept.attempted_at ELSE ended.started_at END,
            status = CASE ended.state WHEN 'released' THEN kept.status ELSE ended.status END,
            error = CASE ended.state WHEN 'released' THEN kept.error ELSE ended.error END
        FROM ended
        WHERE kept.webhook_id = ended.webhook_id
            AND kept.position = ended.position
            AND (
                kept.state = 'pending' AND kept.claim = ended.claim
                OR ended.state = 'delivered' AND kept.state <> 'delivered'
            )
        RETURNING kept.webhook_id, kept.position, kept.order_key, kept.state
    ),
    unblocked AS (
        SELECT DISTINCT webhook_id, order_key
        FROM settled
        WHERE state <> 'pending' AND order_key IS NOT NULL
    )
    UPDATE delivery AS held
    SET due_at = now_
    FROM unblocked, LATERAL (
        SELECT next.position
        FROM delivery AS next
        WHERE next.webhook_id = unblocked.webhook_id
            AND next.order_key = unblocked.order_key
            AND next.state = 'pending'
            -- This statement sees the rows as they were before `settled`.
            AND NOT EXISTS (
                SELECT FROM settled
                WHERE settled.webhook_id = next.webhook_id AND settled.position = next.position
            )
        ORDER BY next.position
        LIMIT 1
    ) AS first
    WHERE held.webhook_id = unblocked.webhook_id
        AND held.position = first.position
        AND held.due_at = 'infinity';

    FOR w IN
        SELECT webhook_id, bool_or(state = 'delivered') AS is_good,
            -- An event that is gone says nothing of the callback.
            count(*) FILTER (WHERE state IN ('pending', 'exhausted')
                AND error IS DISTINCT FROM 'event_gone') AS failed,
            coalesce(bool_or(error = 'gone'), false) AS is_gone, max(pause_s) AS pause_s,
            array_agg(claim) AS claims
        FROM unnest(p_webhook_id, p_claim, p_state, p_error, p_pause_s)
            AS ended (webhook_id, claim, state, error, pause_s)
        GROUP BY webhook_id
        ORDER BY webhook_id
    LOOP
        hook := w.webhook_id;
        IF w.is_good AND w.pause_s IS NULL AND NOT w.is_gone AND EXISTS (
            SELECT FROM webhook
            WHERE webhook_id = hook AND failures = 0 AND open_until IS NULL AND failing_since IS NULL
        ) THEN
            CONTINUE;  -- nearly always
        END IF;
        SELECT * INTO this FROM webhook WHERE webhook_id = hook FOR UPDATE;
        CONTINUE WHEN NOT FOUND;

        IF w.is_good AND w.pause_s IS NULL AND NOT w.is_gone THEN
            UPDATE webhook
            SET failures = 0, failing_since = NULL, open_until = NULL
            WHERE webhook_id = hook;
            IF this.open_until IS NOT NULL THEN
                PERFORM hurry_deliveries(hook);
                change := 'closed';
                RETURN NEXT;
            END IF;
            CONTINUE;
        END IF;

        was_open := this.open_until IS NOT NULL;
        is_probe := was_open AND this.probe_claim = ANY (w.claims);
        IF w.failed = 0 THEN
            IF is_probe THEN  -- it was not sent: another may be
                UPDATE webhook SET open_until = now_ WHERE webhook_id = hook;
            END IF;
            CONTINUE WHEN w.pause_s IS NULL;
        END IF;
        IF w.is_good THEN
            this.failures := 0;
            this.failing_since := NULL;
        END IF;
        failed_now := this.failures + w.failed;
        UPDATE webhook
        SET failures = failed_now,
            failing_since = coalesce(this.failing_since, now_),
            probes = CASE WHEN is_probe THEN this.probes + 1 WHEN was_open THEN this.probes ELSE 0 END,
            open_until = greatest(
                CASE
                    WHEN is_probe THEN now_ + make_interval(
                        secs => least(p_open_max_s, 5 * 2 ^ least(20, this.probes + 1)))
                    WHEN was_open THEN this.open_until
                    WHEN failed_now >= p_open_after THEN now_ + interval '5 seconds'
                END,
                now_ + make_interval(secs => w.pause_s)
            )
        WHERE webhook_id = hook
        RETURNING * INTO this;
        change := CASE
            WHEN this.disabled_at IS NOT NULL THEN NULL
            WHEN w.is_gone THEN 'gone'
            WHEN this.failing_since <= now_ - make_interval(secs => p_disable_after_s) THEN 'failing'
            WHEN this.open_until IS NOT NULL AND NOT was_open THEN 'opened'
        END;
        IF change IN ('gone', 'failing') THEN
            UPDATE webhook
            SET disabled_at = now_, disabled_reason = change, version = version + 1
            WHERE webhook_id = hook;
        END IF;
        IF change IS NOT NULL THEN
            RETURN NEXT;
        END IF;
    END LOOP;
END $$;

-- Forget what was delivered before p_before, of events received before it, with its
-- attempts, and everything of webhooks that were deleted; at most p_limit deliveries a call, and one
-- caller at a time. Returns how many.
CREATE FUNCTION causeway.prune_deliveries(p_before timestamptz, p_limit int) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, causeway, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    -- Before the first event of the retention; find_time answers head + 1 if there is none.
    upto bigint := find_time(p_before) - 1;
    w record;
    gone bigint[];
    total int := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('causeway'), hashtext('prune_deliveries')) THEN
        RETURN 0;
    END IF;
    FOR w IN SELECT webhook_id, deleted_at, cursor_position FROM webhook ORDER BY webhook_id LOOP
        gone := ARRAY(
            SELECT position
            FROM delivery
            WHERE webhook_id = w.webhook_id
                AND (w.deleted_at IS NOT NULL
                    OR position <= least(upto, w.cursor_position) AND state = 'delivered'
                        AND settled_at < p_before)
            ORDER BY position
            LIMIT p_limit - total
        );
        DELETE FROM attempt WHERE webhook_id = w.webhook_id AND position = ANY (gone);
        DELETE FROM delivery WHERE webhook_id = w.webhook_id AND position = ANY (gone);
        total := total + cardinality(gone);
        IF w.deleted_at IS NULL THEN
            -- With the deletion, in one commit: what is gone is not missing.
            UPDATE webhook
            SET accounted_from = greatest(accounted_from, CASE
                WHEN total >= p_limit THEN gone[cardinality(gone)]
                ELSE least(upto, w.cursor_position)
            END)
            WHERE webhook_id = w.webhook_id AND accounted_from < least(upto, w.cursor_position);
        ELSIF total < p_limit THEN
            DELETE FROM webhook WHERE webhook_id = w.webhook_id;
        END IF;
        EXIT WHEN total >= p_limit;
    END LOOP;
    RETURN total;
END $$;

REVOKE ALL ON FUNCTION
    causeway.topic_patterns(text[]),
    causeway.claim_deliveries(bigint[], int[], int[], bigint[], float8, int, int, float8),
    causeway.hurry_deliveries(bigint),
    causeway.record_attempts(bigint[], bigint[], bigint[], int[], text[], int[], float8[],
        timestamptz[], int[], int[], text[], bytea[], float8[], int, float8, float8),
    causeway.prune_deliveries(timestamptz, int)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    causeway.topic_patterns(text[]),
    causeway.claim_deliveries(bigint[], int[], int[], bigint[], float8, int, int, float8),
    causeway.hurry_deliveries(bigint),
    causeway.record_attempts(bigint[], bigint[], bigint[], int[], text[], int[], float8[],
        timestamptz[], int[], int[], text[], bytea[], float8[], int, float8, float8),
    causeway.prune_deliveries(timestamptz, int)
TO causeway_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON causeway.webhook, causeway.delivery, causeway.attempt
TO causeway_service;
GRANT USAGE ON SEQUENCE causeway.webhook_id, causeway.claim TO causeway_service;
