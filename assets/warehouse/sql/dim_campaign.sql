-- Every campaign as it was last delivered.
SELECT
    MD5(campaign_id::VARCHAR) AS campaign_key,
    campaign_id::VARCHAR AS campaign_id,
    campaign_type,
    start_date AS starts_on,
    end_date AS ends_on
FROM staged
QUALIFY ROW_NUMBER() OVER (PARTITION BY campaign_id ORDER BY delivered_on DESC, line DESC) = 1
