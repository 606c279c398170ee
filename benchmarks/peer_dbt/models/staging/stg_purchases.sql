{{ deliveries('purchases', {
    'household_id': 'BIGINT', 'store_id': 'BIGINT', 'basket_id': 'BIGINT', 'product_id': 'BIGINT',
    'quantity': 'BIGINT', 'sales_value': 'DOUBLE', 'retail_disc': 'DOUBLE',
    'coupon_disc': 'DOUBLE', 'coupon_match_disc': 'DOUBLE', 'transaction_timestamp': 'TIMESTAMP'
}) }}
