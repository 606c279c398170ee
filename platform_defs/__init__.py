"""Definitions: the platform assembled for Dagster. Start with build.py.

Belongs here: resources, partitions, jobs, schedules, the demo. Does not belong here: what an asset
or a check does (assets/, checks/, and the engine behind them).
"""
