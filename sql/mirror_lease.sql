-- The statements of service/mirror_lease.py.

-- name: try_lease
-- $1: the stream's name. True once this session holds the lease; it does until it ends.
SELECT pg_try_advisory_lock(hashtext('causeway.mirror'), hashtext($1)) AS is_held;
