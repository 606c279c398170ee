-- A click event for each coupon a household redeemed, at the start of that day.
SELECT
  'redemptions/' || campaign_id || '/' || coupon_upc || '/' || household_id || '/' || redeemed_on
    AS event_id,
  'click' AS event_type,
  CAST(household_id AS VARCHAR) AS user_id,
  CAST(NULL AS VARCHAR) AS content_id,
  CAST(NULL AS VARCHAR) AS category,
  CAST(campaign_id AS VARCHAR) AS campaign_id,
  CAST(NULL AS VARCHAR) AS order_id,
  CAST(NULL AS BIGINT) AS value_cents,
  starts_at AS occurred_at,
  received_at,
  CAST(json_object('coupon_upc', coupon_upc) AS VARCHAR) AS properties,
  delivered_on,
  'redemptions' AS topic,
  line
FROM redemptions
JOIN business_days ON day = redeemed_on
