-- The statements of service/erase.py.

-- name: erase_user
-- $1 user, $2 reason, $3 by whom, $4: only count. One row; see the function.
SELECT erasure, erased_events
FROM causeway.erase_user($1, $2, $3, $4);

-- name: erase_deleted_users
-- $1: a time; $2: users at most. One row; see the function.
SELECT users, erased_events
FROM causeway.erase_deleted_users($1, $2);

-- name: erased_after
-- $1: the number of an erasure, exclusive; $2: a position, exclusive. What later ones erased beyond it,
-- in their order; and in a last row, without a position, the newest erasure (NULL: there is none): what
-- is not beyond it need not be looked through again. Indexes: erased_erasure, erasure_pkey.
SELECT erasure_id, position
FROM causeway.erased
WHERE erasure_id > $1
    AND position > $2
UNION ALL
SELECT max(erasure_id), NULL
FROM causeway.erasure
ORDER BY erasure_id, position;

-- name: prove
-- $1, $2: positions, both inclusive. The anchor; the link before $1, and the one at $2 (NULL: not in the
-- log); whether any of them was erased. Indexes: event_pkey, erased_pkey.
SELECT anchor_position,
    CASE
        WHEN anchor_position = $1::bigint - 1 THEN anchor_link
        ELSE (SELECT link FROM causeway.event WHERE position = $1::bigint - 1)
    END AS link_before,
    (SELECT link FROM causeway.event WHERE position = $2) AS link,
    EXISTS (SELECT FROM causeway.erased WHERE position BETWEEN $1 AND $2) AS has_erased
FROM causeway.log;
