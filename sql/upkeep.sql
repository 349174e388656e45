-- The statement of service/upkeep.py.

-- name: size
-- No parameters. The database's bytes on disk, from the file system; how far the log is pruned, in how
-- many partitions it is, and how many events are erased: three tables of few rows.
SELECT pg_database_size(current_database()) AS database_bytes,
    (SELECT anchor_position FROM causeway.log) AS anchor_position,
    (SELECT count(*) FROM causeway.event_partition) AS partitions,
    (SELECT coalesce(sum(events), 0)::bigint FROM causeway.erasure) AS erased_events;
