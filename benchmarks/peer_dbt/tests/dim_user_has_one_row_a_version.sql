SELECT user_key, valid_from FROM {{ ref('dim_user') }} GROUP BY ALL HAVING count(*) > 1
