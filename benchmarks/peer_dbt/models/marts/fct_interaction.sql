WITH interactions AS (
    SELECT
        'mailings/' || campaign_id || '/' || household_id AS event_id,
        'impression' AS event_type,
        campaign_id,
        household_id,
        NULL AS coupon_upc,
        mailed_on AS happened_on,
        delivered_on
    FROM {{ ref('stg_mailings') }}
    UNION ALL
    SELECT
        'redemptions/' || campaign_id || '/' || coupon_upc || '/' || household_id || '/' || redeemed_on,
        'click',
        campaign_id,
        household_id,
        coupon_upc,
        redeemed_on,
        delivered_on
    FROM {{ ref('stg_redemptions') }}
)

SELECT
    event_id,
    event_type,
    md5(household_id::VARCHAR) AS user_key,
    md5(campaign_id::VARCHAR) AS campaign_key,
    ({{ opens_at("happened_on") }})::DATE AS occurred_on,
    {{ opens_at("happened_on") }} AS occurred_at,
    household_id::VARCHAR AS user_id,
    NULL::VARCHAR AS content_id,
    NULL::VARCHAR AS category,
    campaign_id::VARCHAR AS campaign_id,
    coupon_upc::VARCHAR AS coupon_id,
    {{ opens_at("delivered_on + 1") }} AS received_at,
    delivered_on
FROM interactions
QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY delivered_on) = 1
