SELECT
    'transactions/' || delivered_on || '/' || line AS line_id,
    CASE
        WHEN STARTSWITH(invoice_id, 'C') THEN 'cancellation'
        WHEN STARTSWITH(invoice_id, 'A') OR quantity <= 0 THEN 'adjustment'
        ELSE 'sale'
    END AS line_type,
    ROW_NUMBER() OVER (
        PARTITION BY
            delivered_on, invoice_id, stock_code, description, quantity, invoiced_at, unit_price,
            customer_id, country
        ORDER BY line
    ) > 1 AS is_duplicate,
    invoice_id AS order_id,
    MD5(customer_id::VARCHAR) AS user_key,
    customer_id::VARCHAR AS user_id,
    MD5(stock_code) AS content_key,
    stock_code AS content_id,
    description,
    country,
    quantity,
    ROUND(quantity * unit_price * 100)::BIGINT AS value_cents,
    invoiced_at::DATE AS occurred_on,
    invoiced_at AS occurred_at,
    received_at,
    delivered_on,
    'transactions' AS topic,
    line
FROM staged
