SELECT
    event_id,
    order_id,
    MD5(user_id) AS user_key,
    MD5(content_id) AS content_key,
    occurred_at::DATE AS occurred_on,
    occurred_at,
    user_id,
    content_id,
    category,
    JSON_EXTRACT_PATH_TEXT(properties, 'store_id') AS store_id,
    JSON_EXTRACT_PATH_TEXT(properties, 'quantity')::BIGINT AS quantity,
    value_cents,
    ROUND(JSON_EXTRACT_PATH_TEXT(properties, 'retail_disc')::DOUBLE * 100)::BIGINT
        AS retail_discount_cents,
    ROUND(
        (
            JSON_EXTRACT_PATH_TEXT(properties, 'coupon_disc')::DOUBLE
            + JSON_EXTRACT_PATH_TEXT(properties, 'coupon_match_disc')::DOUBLE
        ) * 100
    )::BIGINT AS coupon_discount_cents,
    received_at,
    delivered_on,
    topic,
    line
FROM staged
WHERE event_type = 'purchase'
