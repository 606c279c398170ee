-- An impression event for each household that was mailed a campaign, at the start of that day.
SELECT
  'mailings/' || campaign_id || '/' || household_id AS event_id,
  'impression' AS event_type,
  CAST(household_id AS VARCHAR) AS user_id,
  CAST(NULL AS VARCHAR) AS content_id,
  CAST(NULL AS VARCHAR) AS category,
  CAST(campaign_id AS VARCHAR) AS campaign_id,
  CAST(NULL AS VARCHAR) AS order_id,
  CAST(NULL AS BIGINT) AS value_cents,
  starts_at AS occurred_at,
  received_at,
  '{}' AS properties,
  delivered_on,
  'mailings' AS topic,
  line
FROM mailings
JOIN business_days ON day = mailed_on
