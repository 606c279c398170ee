SELECT * FROM {{ ref('dim_user') }} WHERE valid_to <= valid_from OR is_current <> (valid_to IS NULL)
