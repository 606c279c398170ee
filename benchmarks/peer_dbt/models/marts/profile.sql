-- The profile as contracts/profile.yaml declares it, written by hand as of the last day that
-- deliveries reach.
WITH cut AS (
    SELECT ({{ opens_at("DATE '" ~ var('last_day') ~ "' + 1") }} - INTERVAL 1 MICROSECOND)::DATE
        AS as_of
),

event AS (
    SELECT
        event_id, 'purchase' AS event_type, user_id, content_id, category, value_cents,
        least(occurred_at, received_at - INTERVAL 1 MICROSECOND) AS happened_at
    FROM {{ ref('fct_purchase') }}
    WHERE received_at <= occurred_at + INTERVAL 7 DAY
    UNION ALL
    SELECT
        event_id, event_type, user_id, content_id, category, NULL,
        least(occurred_at, received_at - INTERVAL 1 MICROSECOND)
    FROM {{ ref('fct_interaction') }}
    WHERE received_at <= occurred_at + INTERVAL 7 DAY
),

aged AS (
    SELECT event.*, as_of, as_of - happened_at::DATE AS age
    FROM event, cut
    WHERE happened_at::DATE <= as_of
),

counted AS (
    SELECT
        user_id,
        as_of,
        {% for name, type in [
            ('purchases', 'purchase'),
            ('impressions', 'impression'),
            ('clicks', 'click'),
            ('page_views', 'page_view')
        ] %}
        count(*) FILTER (event_type = '{{ type }}' AND age < 1) AS {{ name }}_1d,
        count(*) FILTER (event_type = '{{ type }}' AND age < 7) AS {{ name }}_7d,
        count(*) FILTER (event_type = '{{ type }}' AND age < 30) AS {{ name }}_30d,
        count(*) FILTER (event_type = '{{ type }}') AS {{ name }}_lifetime,
        {% endfor %}
        coalesce(sum(value_cents) FILTER (age < 30), 0)::BIGINT AS spend_cents_30d,
        coalesce(sum(value_cents), 0)::BIGINT AS spend_cents_lifetime,
        min(happened_at) AS first_seen_at,
        max(happened_at) AS last_seen_at,
        min(age) AS days_since_last_seen
    FROM aged
    GROUP BY user_id, as_of
),

{% for name, type, half_life, window in [
    ('top_categories', 'purchase', 14, 90), ('interests', 'click', 7, 30)
] %}
{{ name }}_score AS (
    SELECT
        user_id,
        category,
        sum(round(65536 * pow(2, -age / {{ half_life }}.0))::BIGINT) AS score
    FROM aged
    WHERE event_type = '{{ type }}' AND category IS NOT NULL AND age < {{ window }}
    GROUP BY user_id, category
),

{{ name }} AS (
    SELECT
        user_id,
        list(category ORDER BY score DESC, category) AS {{ name }},
        list(score::VARCHAR ORDER BY score DESC, category) AS {{ name }}_scores
    FROM (
        SELECT * FROM {{ name }}_score
        QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY score DESC, category) <= 5
    )
    GROUP BY user_id
),
{% endfor %}

{% for name, type in [('recent_contents', 'purchase'), ('recent_clicks', 'click')] %}
{{ name }} AS (
    SELECT
        user_id,
        list(content_id ORDER BY happened_at DESC, event_id DESC) AS {{ name }}
    FROM (
        SELECT * FROM aged
        WHERE event_type = '{{ type }}' AND content_id IS NOT NULL
        QUALIFY row_number() OVER (
            PARTITION BY user_id ORDER BY happened_at DESC, event_id DESC
        ) <= 10
    )
    GROUP BY user_id
){{ ',' if not loop.last }}
{% endfor %}

SELECT
    counted.*,
    {% for name in [
        'top_categories', 'top_categories_scores', 'recent_contents',
        'interests', 'interests_scores', 'recent_clicks'
    ] %}
    coalesce({{ name }}, []) AS {{ name }},
    {% endfor %}
    purchases_30d = 0 AND purchases_lifetime > 0 AS is_lapsed,
    purchases_7d >= 10 AND purchases_30d >= 60 AS is_loyal,
    clicks_lifetime >= 3 AND clicks_lifetime * 20 >= impressions_lifetime AS is_responsive
FROM counted
LEFT JOIN top_categories USING (user_id)
LEFT JOIN recent_contents USING (user_id)
LEFT JOIN interests USING (user_id)
LEFT JOIN recent_clicks USING (user_id)
