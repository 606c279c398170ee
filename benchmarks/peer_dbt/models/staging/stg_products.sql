{{ deliveries('products', {
    'product_id': 'BIGINT', 'manufacturer_id': 'BIGINT', 'department': 'VARCHAR',
    'brand': 'VARCHAR', 'product_category': 'VARCHAR', 'product_type': 'VARCHAR',
    'package_size': 'VARCHAR'
}) }}
