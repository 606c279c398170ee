"""Sources: what other systems deliver, landed in the lake as received.

Belongs here: reading deliveries and landing them. Does not belong here: what the records mean
together (events/, and the SQL of the warehouse).
"""
