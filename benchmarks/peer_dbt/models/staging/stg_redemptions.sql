{{ deliveries('redemptions', {
    'household_id': 'BIGINT', 'coupon_upc': 'BIGINT', 'campaign_id': 'BIGINT', 'redeemed_on': 'DATE'
}) }}
