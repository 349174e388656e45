-- Pruning: the oldest partition goes, the log's anchor moves to its last row. Only the owner prunes:
-- the service's role can take nothing out of the log.

-- Who still needs an event up to p_position: named consumers and enabled webhooks whose place is before
-- it, webhooks with deliveries up to it that are pending or exhausted (then `events` of them), and
-- replays that have not come so far. Of what is gone already nobody is behind.
CREATE FUNCTION causeway.behind(p_position bigint)
RETURNS TABLE (kind text, name text, place bigint, events bigint)
LANGUAGE sql STABLE
SET search_path = pg_catalog, causeway, pg_temp
AS $$
    SELECT 'consumer', name::text, min(position), NULL::bigint
    FROM consumer_shard
    WHERE position < p_position
    GROUP BY name
    UNION ALL
    SELECT 'webhook', webhook_id::text, cursor_position, NULL
    FROM webhook
    WHERE cursor_position < p_position AND disabled_at IS NULL AND deleted_at IS NULL
    UNION ALL
    SELECT 'deliveries', webhook_id::text, min(position), count(*)
    FROM webhook
    CROSS JOIN LATERAL (
        SELECT position
        FROM delivery
        WHERE delivery.webhook_id = webhook.webhook_id AND state = 'pending'
        UNION ALL
        SELECT position
        FROM delivery
        WHERE delivery.webhook_id = webhook.webhook_id AND state = 'exhausted'
    ) AS unsettled
    WHERE position <= p_position
        AND position > (SELECT anchor_position FROM log)
        AND deleted_at IS NULL
    GROUP BY webhook_id
    UNION ALL
    SELECT 'replay', replay_id::text, cursor_position, NULL
    FROM replay
    WHERE cursor_position < least(p_position, until_position)
        AND finished_at IS NULL
        AND cancelled_at IS NULL
    ORDER BY 1, 3
$$;

-- Drop the partition that begins at p_first, and move the anchor, in one commit: a reader sees either
-- all of it or none. It must be the oldest, and not the last with an event: the newest row stays for
-- ever, positions go on from it. Sessions that read hold it up for as long as they read, and it holds
-- up nobody for longer than lock_events says.
CREATE FUNCTION causeway.prune_partition(p_first bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, causeway, pg_temp
AS $$
DECLARE
    oldest event_partition%ROWTYPE;
BEGIN
    PERFORM lock_events();
    SELECT * INTO oldest FROM event_partition ORDER BY first_position LIMIT 1;
    IF oldest.first_position <> p_first
        OR NOT EXISTS (SELECT FROM event WHERE position = oldest.end_position)
    THEN
        RAISE EXCEPTION 'partition % is not the oldest, or holds the newest event', p_first
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    UPDATE log
    SET anchor_position = event.position, anchor_link = event.link
    FROM event
    WHERE event.position = oldest.end_position - 1;
    EXECUTE format('DROP TABLE causeway.%I', 'event_' || p_first);
    DELETE FROM event_partition WHERE first_position = p_first;
END $$;

-- Forget at most p_limit deliveries that were given up and whose event is gone, with their attempts.
-- Returns how many.
CREATE FUNCTION causeway.forget_gone(p_limit int) RETURNS int
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, causeway, pg_temp
AS $$
DECLARE
    forgotten int;
BEGIN
    WITH gone AS (
        DELETE FROM delivery
        WHERE ctid = ANY (ARRAY(
            SELECT delivery.ctid
            FROM webhook
            JOIN delivery USING (webhook_id)
            WHERE state = 'exhausted' AND position <= (SELECT anchor_position FROM log)
            LIMIT p_limit
        ))
        RETURNING webhook_id, position
    ),
    attempts AS (
        DELETE FROM attempt
        USING gone
        WHERE attempt.webhook_id = gone.webhook_id AND attempt.position = gone.position
    )
    SELECT count(*) INTO forgotten FROM gone;
    RETURN forgotten;
END $$;

REVOKE ALL ON FUNCTION
    causeway.behind(bigint),
    causeway.prune_partition(bigint),
    causeway.forget_gone(int)
FROM PUBLIC;
