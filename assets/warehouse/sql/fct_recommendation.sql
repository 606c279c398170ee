SELECT
    'recommendations/' || delivered_on || '/' || line AS impression_id,
    MD5(item_id::VARCHAR) AS content_key,
    item_id::VARCHAR AS content_id,
    position,
    policy,
    campaign,
    propensity,
    clicked AS clicks,
    shown_at::DATE AS occurred_on,
    shown_at AS occurred_at,
    received_at,
    delivered_on,
    'recommendations' AS topic,
    line
FROM staged
