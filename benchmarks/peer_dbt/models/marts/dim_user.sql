-- Every version of a household (SCD type 2) from its daily records. A dbt snapshot sees one state a
-- run, so a backfill with snapshots would take a run for each day.
{% set attributes = 'age, income, home_ownership, marital_status, household_size, household_comp, kids_count' %}
WITH records AS (
    SELECT * FROM {{ ref('stg_crm') }}
    QUALIFY row_number() OVER (
        PARTITION BY household_id, updated_at ORDER BY delivered_on DESC
    ) = 1
),

changes AS (
    SELECT * FROM records
    QUALIFY lag(({{ attributes }})) OVER (PARTITION BY household_id ORDER BY updated_at)
        IS DISTINCT FROM ({{ attributes }})
)

SELECT
    md5(household_id::VARCHAR) AS user_key,
    updated_at AS valid_from,
    lead(updated_at) OVER (PARTITION BY household_id ORDER BY updated_at) AS valid_to,
    valid_to IS NULL AS is_current,
    household_id::VARCHAR AS user_id,
    age AS age_band,
    income AS income_band,
    home_ownership,
    marital_status,
    household_size,
    household_comp,
    kids_count
FROM changes
