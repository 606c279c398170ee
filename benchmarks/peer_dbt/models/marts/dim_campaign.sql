SELECT
    md5(campaign_id::VARCHAR) AS campaign_key,
    campaign_id::VARCHAR AS campaign_id,
    campaign_type,
    start_date AS starts_on,
    end_date AS ends_on
FROM {{ ref('stg_campaigns') }}
QUALIFY row_number() OVER (PARTITION BY campaign_id ORDER BY delivered_on DESC) = 1
