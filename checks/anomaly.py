"""Anomaly: days unlike the days before, by Z-score and by IQR over the daily history."""

import dagster as dg


def anomaly_checks() -> list[dg.AssetChecksDefinition]:
    """For the daily logs and the facts."""
    return []
