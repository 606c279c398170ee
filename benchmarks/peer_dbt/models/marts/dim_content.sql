SELECT
    md5(product_id::VARCHAR) AS content_key,
    product_id::VARCHAR AS content_id,
    department AS category,
    product_category AS subcategory,
    product_type AS content_type,
    brand,
    manufacturer_id::VARCHAR AS manufacturer_id,
    package_size
FROM {{ ref('stg_products') }}
QUALIFY row_number() OVER (PARTITION BY product_id ORDER BY delivered_on DESC) = 1
