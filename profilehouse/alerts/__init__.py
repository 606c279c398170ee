"""Alerts: what is wrong is told once, on the right channel, and again when it is well.

Belongs here: rules (rules.py), incidents (incidents.py), the outbox (outbox.py), the words of
messages (words.py) and their delivery (delivery.py). Does not belong here: how problems are found;
that is in platform_defs/findings.py.
"""
