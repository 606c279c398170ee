{{ deliveries('campaigns', {
    'campaign_id': 'BIGINT', 'campaign_type': 'VARCHAR', 'start_date': 'DATE', 'end_date': 'DATE'
}) }}
