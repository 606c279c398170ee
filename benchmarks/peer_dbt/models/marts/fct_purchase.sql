-- One row a basket and product; the category is the catalog's newest up to the delivery.
SELECT
    'purchases/' || p.basket_id || '/' || p.product_id AS event_id,
    p.basket_id::VARCHAR AS order_id,
    md5(p.household_id::VARCHAR) AS user_key,
    md5(p.product_id::VARCHAR) AS content_key,
    p.transaction_timestamp::DATE AS occurred_on,
    p.transaction_timestamp AS occurred_at,
    p.household_id::VARCHAR AS user_id,
    p.product_id::VARCHAR AS content_id,
    c.department AS category,
    p.store_id::VARCHAR AS store_id,
    p.quantity,
    round(p.sales_value * 100)::BIGINT AS value_cents,
    round(p.retail_disc * 100)::BIGINT AS retail_discount_cents,
    round((p.coupon_disc + p.coupon_match_disc) * 100)::BIGINT AS coupon_discount_cents,
    {{ opens_at("p.delivered_on + 1") }} AS received_at,
    p.delivered_on
FROM {{ ref('stg_purchases') }} AS p
ASOF LEFT JOIN {{ ref('stg_products') }} AS c
    ON p.product_id = c.product_id AND p.delivered_on >= c.delivered_on
QUALIFY row_number() OVER (
    PARTITION BY p.basket_id, p.product_id ORDER BY p.delivered_on
) = 1
