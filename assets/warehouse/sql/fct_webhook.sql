SELECT
    delivery_id,
    event,
    action,
    payload,
    taken_at::DATE AS occurred_on,
    taken_at AS occurred_at,
    received_at,
    delivered_on,
    'webhooks' AS topic,
    line
FROM staged
