-- Whose each visit of a device is: nobody's, until somebody logs in; from then on, for ever, the
-- one's whose login was received first. Visits without a login have no row.
WITH visits AS (
    SELECT
        anonymous_id,
        session_id,
        MIN(received_at) AS seen_at
    FROM staged
    WHERE NOT session_id IS NULL
    GROUP BY anonymous_id, session_id
),

logins AS (
    SELECT staged.anonymous_id, staged.session_id, staged.user_id, staged.received_at
    FROM staged
    WHERE NOT session_id IS NULL AND NOT user_id IS NULL
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY anonymous_id, session_id ORDER BY received_at, user_id
    ) = 1
),

versions AS (
    SELECT
        logins.anonymous_id,
        logins.session_id,
        CASE WHEN version.known = 1 THEN logins.user_id END AS user_id,
        CASE WHEN version.known = 1 THEN logins.received_at ELSE visits.seen_at END AS valid_from,
        CASE WHEN version.known = 0 THEN logins.received_at END AS valid_to
    FROM logins
    JOIN visits
        ON visits.anonymous_id = logins.anonymous_id AND visits.session_id = logins.session_id
    CROSS JOIN (VALUES (0), (1)) AS version (known)
    WHERE version.known = 1 OR visits.seen_at < logins.received_at
)

SELECT
    MD5(anonymous_id || ' ' || session_id) AS identity_key,
    valid_from,
    valid_to,
    valid_to IS NULL AS is_current,
    anonymous_id,
    session_id,
    MD5(user_id) AS user_key,
    user_id
FROM versions
