SELECT
    id AS mention_id,
    MD5(author) AS author_key,
    text,
    language,
    url,
    hashtags AS topics,
    replies,
    shares,
    likes,
    created_at::DATE AS occurred_on,
    created_at AS occurred_at,
    received_at,
    delivered_on,
    'mentions' AS topic,
    line
FROM staged
