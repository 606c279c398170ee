-- A session is what one person did on one device without a pause of more than 30 minutes. Every
-- event that begins one is counted by the next, so that the running count numbers the sessions.
WITH begun AS (
    SELECT
        event_id, event_type, anonymous_id, user_id, campaign_key, order_id, value_cents,
        url, referrer, device, happened_at,
        CASE
            WHEN DATEADD(
                MINUTE,
                30,
                LAG(happened_at) OVER (
                    PARTITION BY anonymous_id, user_id ORDER BY happened_at, event_id
                )
            ) >= happened_at THEN 0
            ELSE 1
        END AS begins
    FROM staged
),

numbered AS (
    SELECT
        event_id, event_type, anonymous_id, user_id, campaign_key, order_id, value_cents,
        url, referrer, device, happened_at,
        SUM(begins) OVER (
            PARTITION BY anonymous_id, user_id ORDER BY happened_at, event_id
        ) AS number
    FROM begun
),

placed AS (
    SELECT
        event_id, event_type, anonymous_id, user_id, campaign_key, order_id, value_cents,
        url, referrer, device, happened_at, number,
        ROW_NUMBER() OVER (
            PARTITION BY anonymous_id, user_id, number ORDER BY happened_at, event_id
        ) AS place,
        ROW_NUMBER() OVER (
            PARTITION BY anonymous_id, user_id, number, event_type ORDER BY happened_at, event_id
        ) AS place_in_type,
        ROW_NUMBER() OVER (
            PARTITION BY anonymous_id, user_id, number, event_type
            ORDER BY happened_at DESC, event_id DESC
        ) AS place_in_type_from_end
    FROM numbered
)

SELECT
    MD5(MAX(CASE WHEN place = 1 THEN event_id END)) AS session_key,
    MD5(user_id) AS user_key,
    MAX(CASE WHEN place = 1 THEN campaign_key END) AS campaign_key,
    MIN(happened_at)::DATE AS started_on,
    MIN(happened_at) AS started_at,
    MAX(happened_at) AS ended_at,
    DATEDIFF(SECOND, MIN(happened_at), MAX(happened_at)) AS dwell_seconds,
    user_id,
    anonymous_id,
    MAX(CASE WHEN place = 1 THEN device END) AS device,
    MAX(CASE WHEN place = 1 THEN referrer END) AS referrer,
    MAX(CASE WHEN event_type = 'page_view' AND place_in_type = 1 THEN url END) AS entry_url,
    MAX(CASE WHEN event_type = 'page_view' AND place_in_type_from_end = 1 THEN url END) AS exit_url,
    COUNT(event_id) AS events,
    COUNT_IF(event_type = 'page_view') AS page_views,
    COUNT_IF(event_type = 'click') AS clicks,
    COUNT_IF(event_type = 'add_to_cart') AS add_to_carts,
    COUNT(DISTINCT CASE WHEN event_type = 'purchase' THEN COALESCE(order_id, event_id) END)
        AS orders,
    COALESCE(SUM(CASE WHEN event_type = 'purchase' THEN value_cents END), 0)::BIGINT
        AS revenue_cents
FROM placed
GROUP BY anonymous_id, user_id, number
