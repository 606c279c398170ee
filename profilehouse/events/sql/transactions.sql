-- A purchase event for each product that a customer bought on an invoice of the web shop. Lines that
-- the shop wrote twice count once, other lines of the same product add up; the id is that of the till
-- and of the web, so that a purchase that arrives several ways counts once.
WITH line_once AS (
  SELECT * FROM transactions
  QUALIFY row_number() OVER (
    PARTITION BY delivered_on, invoice_id, stock_code, description, quantity, invoiced_at,
      unit_price, customer_id, country
    ORDER BY line
  ) = 1
), bought AS (
  SELECT
    invoice_id,
    stock_code,
    customer_id,
    delivered_on,
    received_at,
    TRY_CAST(stock_code AS BIGINT) AS product_id,
    min(invoiced_at) AS occurred_at,
    CAST(sum(quantity) AS BIGINT) AS quantity,
    CAST(sum(CAST(ROUND(quantity * unit_price * 100) AS BIGINT)) AS BIGINT) AS value_cents,
    min(line) AS line
  FROM line_once
  WHERE customer_id IS NOT NULL AND quantity > 0 AND unit_price >= 0
    AND regexp_full_match(invoice_id, '[0-9]+')
  GROUP BY ALL
)
SELECT
  'purchases/' || bought.invoice_id || '/' || bought.stock_code AS event_id,
  'purchase' AS event_type,
  CAST(bought.customer_id AS VARCHAR) AS user_id,
  bought.stock_code AS content_id,
  products.department AS category,
  CAST(NULL AS VARCHAR) AS campaign_id,
  bought.invoice_id AS order_id,
  bought.value_cents,
  bought.occurred_at,
  bought.received_at,
  CAST(json_object(
    'store_id', 'web_shop',
    'quantity', bought.quantity,
    'retail_disc', 0,
    'coupon_disc', 0,
    'coupon_match_disc', 0
  ) AS VARCHAR) AS properties,
  bought.delivered_on,
  'transactions' AS topic,
  bought.line
FROM bought
ASOF LEFT JOIN products
  ON bought.product_id = products.product_id
  AND bought.delivered_on >= products.delivered_on
