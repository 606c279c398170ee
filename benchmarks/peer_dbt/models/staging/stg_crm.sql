{{ deliveries('crm', {
    'household_id': 'BIGINT', 'age': 'VARCHAR', 'income': 'VARCHAR', 'home_ownership': 'VARCHAR',
    'marital_status': 'VARCHAR', 'household_size': 'VARCHAR', 'household_comp': 'VARCHAR',
    'kids_count': 'VARCHAR', 'updated_at': 'TIMESTAMP'
}) }}
