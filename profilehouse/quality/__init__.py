"""Checks without an orchestrator: rules from contracts, their executors, anomalies, reconciliation.

Belongs here: deciding whether data is as it should be, and saying so in one kind of result.
Does not belong here: refusing single records as they come in (decode.py) or Dagster asset checks.
"""
