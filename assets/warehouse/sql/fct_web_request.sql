SELECT
    'web_logs/' || delivered_on || '/' || line AS request_id,
    visitor_key,
    MD5(
        visitor_key || '/' || delivered_on || '/' || SUM(starts) OVER (
            PARTITION BY visitor_key, delivered_on ORDER BY requested_at, line
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        )::VARCHAR
    ) AS session_key,
    starts = 1 AS starts_session,
    is_bot,
    method,
    SPLIT_PART(path, '?', 1) AS path,
    status,
    bytes,
    referrer,
    user_agent,
    requested_at::DATE AS occurred_on,
    requested_at AS occurred_at,
    received_at,
    delivered_on,
    'web_logs' AS topic,
    line
FROM (
    SELECT
        *,
        CASE
            WHEN requested_at <= DATEADD(
                MINUTE, 30,
                LAG(requested_at) OVER (
                    PARTITION BY visitor_key, delivered_on ORDER BY requested_at, line
                )
            ) THEN 0
            ELSE 1
        END AS starts
    FROM (
        SELECT *, MD5(host || ' ' || COALESCE(user_agent, '')) AS visitor_key FROM staged
    ) AS visited
) AS paused
