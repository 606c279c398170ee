-- Versions of a household: a run of records with the same attributes is one version. The difference
-- of the two row numbers is the same within a run and differs between runs of the same attributes
-- ("gaps and islands"), so A, B, A makes three versions. A deletion ends a version and is none.
WITH records AS (
    -- Delivered twice for the same moment: the later delivery corrects the earlier one.
    SELECT
        household_id, updated_at, age, income, home_ownership, marital_status,
        household_size, household_comp, kids_count, COALESCE(deleted, FALSE) AS deleted
    FROM staged
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY household_id, updated_at ORDER BY delivered_on DESC, line DESC
    ) = 1
),

runs AS (
    SELECT
        household_id, updated_at, age, income, home_ownership, marital_status,
        household_size, household_comp, kids_count, deleted,
        ROW_NUMBER() OVER (PARTITION BY household_id ORDER BY updated_at)
        - ROW_NUMBER() OVER (
            PARTITION BY
                household_id, age, income, home_ownership, marital_status,
                household_size, household_comp, kids_count, deleted
            ORDER BY updated_at
        ) AS run
    FROM records
),

versions AS (
    SELECT
        household_id, age, income, home_ownership, marital_status,
        household_size, household_comp, kids_count, deleted,
        MIN(updated_at) AS valid_from
    FROM runs
    GROUP BY
        household_id, age, income, home_ownership, marital_status,
        household_size, household_comp, kids_count, deleted, run
),

ended AS (
    SELECT
        household_id, age, income, home_ownership, marital_status,
        household_size, household_comp, kids_count, deleted, valid_from,
        LEAD(valid_from) OVER (PARTITION BY household_id ORDER BY valid_from) AS valid_to
    FROM versions
)

SELECT
    MD5(household_id::VARCHAR) AS user_key,
    valid_from,
    valid_to,
    valid_to IS NULL AS is_current,
    household_id::VARCHAR AS user_id,
    age AS age_band,
    income AS income_band,
    home_ownership,
    marital_status,
    household_size,
    household_comp,
    kids_count
FROM ended
WHERE NOT deleted
