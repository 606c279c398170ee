SELECT
    event_id,
    event_type,
    MD5(user_id) AS user_key,
    MD5(campaign_id) AS campaign_key,
    occurred_at::DATE AS occurred_on,
    occurred_at,
    user_id,
    content_id,
    category,
    campaign_id,
    JSON_EXTRACT_PATH_TEXT(properties, 'coupon_upc') AS coupon_id,
    received_at,
    delivered_on,
    topic,
    line
FROM staged
WHERE event_type IN ('impression', 'click')
