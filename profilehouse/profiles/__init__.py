"""Profiles: what is known of each user, folded from events and computed in the warehouse alike.

Belongs here: the declaration (features.py, segments.py), the fold (fold.py), reading a row
(reading.py), the warehouse's SQL (sql.py), the store (store/) and their agreement (agreement.py).
Does not belong here: where events come from (lake/, stream/) or how SQL is run (warehouse/).
"""
