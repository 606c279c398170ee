"""Daily partitions: one a business day that the sources deliver."""

from __future__ import annotations

import dagster as dg

from profilehouse.settings import Settings


def daily_partitions(settings: Settings) -> dg.DailyPartitionsDefinition:
    """From the first business day up to yesterday, in the zone of the business day."""
    return dg.DailyPartitionsDefinition(
        start_date=settings.first_day.isoformat(), timezone=settings.timezone
    )
