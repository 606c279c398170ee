-- A purchase event for each line of a basket; the category is the catalog's newest up to that day.
SELECT
  'purchases/' || purchases.basket_id || '/' || purchases.product_id AS event_id,
  'purchase' AS event_type,
  CAST(purchases.household_id AS VARCHAR) AS user_id,
  CAST(purchases.product_id AS VARCHAR) AS content_id,
  products.department AS category,
  CAST(NULL AS VARCHAR) AS campaign_id,
  CAST(purchases.basket_id AS VARCHAR) AS order_id,
  CAST(ROUND(purchases.sales_value * 100) AS BIGINT) AS value_cents,
  purchases.transaction_timestamp AS occurred_at,
  purchases.received_at,
  CAST(json_object(
    'store_id', purchases.store_id,
    'quantity', purchases.quantity,
    'retail_disc', purchases.retail_disc,
    'coupon_disc', purchases.coupon_disc,
    'coupon_match_disc', purchases.coupon_match_disc
  ) AS VARCHAR) AS properties,
  purchases.delivered_on,
  'purchases' AS topic,
  purchases.line
FROM purchases
ASOF LEFT JOIN products
  ON purchases.product_id = products.product_id
  AND purchases.delivered_on >= products.delivered_on
