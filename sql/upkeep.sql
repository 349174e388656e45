-- The statement of service/upkeep.py.

-- name: size
-- No parameters. The database's bytes on disk; asks the file system, no index.
SELECT pg_database_size(current_database()) AS database_bytes;
