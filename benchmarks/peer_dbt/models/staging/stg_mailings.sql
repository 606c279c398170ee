{{ deliveries('mailings', {
    'campaign_id': 'BIGINT', 'household_id': 'BIGINT', 'mailed_on': 'DATE'
}) }}
