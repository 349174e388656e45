-- The log in partitions, 1 of 3. The table of events becomes the first partition of a partitioned one;
-- so that it need not be read from one end to the other while it is locked, a constraint says
-- beforehand where it ends. Here the constraint is promised for new rows, which reads nothing.

-- Positions in a partition made from now on. A plan looks at every partition of its range, and a
-- partition is what pruning takes away at once: large enough that there are dozens, not thousands.
ALTER TABLE causeway.log
ADD COLUMN partition_events bigint NOT NULL DEFAULT 10000000,
ADD CONSTRAINT log_partitions_are_sane CHECK (partition_events > 0);

-- The partitions of causeway.event; each is named event_<first_position>.
CREATE TABLE causeway.event_partition (
    first_position bigint NOT NULL,
    -- Exclusive, and the first position of the next.
    end_position bigint NOT NULL,
    -- When the first event was put in. NULL: made ahead, and empty.
    opened_at timestamptz,
    CONSTRAINT event_partition_pkey PRIMARY KEY (first_position),
    CONSTRAINT event_partition_has_room CHECK (first_position < end_position)
);
GRANT SELECT ON causeway.event_partition TO causeway_service;

-- At least half a partition's room, however long the steps that follow take.
INSERT INTO causeway.event_partition (first_position, end_position, opened_at)
SELECT 0,
    ((coalesce((SELECT max(position) FROM causeway.event), 0) + partition_events / 2)
        / partition_events + 1) * partition_events,
    created_at
FROM causeway.log;

-- Take the lock on the events, or let those that wait behind us pass and try again: a long read must
-- not hold up every append for as long as it lasts.
CREATE FUNCTION causeway.lock_events() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, causeway, pg_temp
SET lock_timeout = '200ms'
AS $$
BEGIN
    FOR n IN 1..150 LOOP
        BEGIN
            LOCK TABLE event IN ACCESS EXCLUSIVE MODE;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM pg_sleep(0.2);
        END;
    END LOOP;
    RAISE EXCEPTION 'a session has read the log for a minute without an end'
        USING ERRCODE = 'lock_not_available', HINT = 'See pg_stat_activity, and try again.';
END $$;
REVOKE ALL ON FUNCTION causeway.lock_events() FROM PUBLIC;

SELECT causeway.lock_events();
DO $$
BEGIN
    EXECUTE format(
        'ALTER TABLE causeway.event ADD CONSTRAINT event_ends CHECK (position < %s) NOT VALID',
        (SELECT end_position FROM causeway.event_partition)
    );
END $$;
