"""Jobs and when they run: the daily load after each business day, every check once a week."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from profilehouse.settings import Settings

DAILY_JOB = "daily_load"
CHECK_JOB = "all_checks"
LOAD_HOUR = 6
"""Hour of the business zone at which yesterday's deliveries are loaded."""


def daily_load(
    daily: dg.PartitionsDefinition[str], assets: Sequence[dg.AssetsDefinition]
) -> dg.ScheduleDefinition:
    """Each morning: the business day that ended, from its files to checked profiles."""
    job = dg.define_asset_job(
        DAILY_JOB,
        selection=dg.AssetSelection.assets(*assets),
        partitions_def=daily,
        description="A delivery day, or a range of them: from the files to checked profiles.",
    )
    schedule = dg.build_schedule_from_partitioned_job(
        job,
        name="every_morning",
        hour_of_day=LOAD_HOUR,
        description="Loads and checks the business day that ended.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    if not isinstance(schedule, dg.ScheduleDefinition):
        raise TypeError(f"{DAILY_JOB} must have partitions of time")
    return schedule


def weekly_checks(settings: Settings) -> dg.ScheduleDefinition:
    """Each Sunday: every check on what is there, tables whole."""
    return dg.ScheduleDefinition(
        name="every_sunday",
        job=dg.define_asset_job(
            CHECK_JOB,
            selection=dg.AssetSelection.all_asset_checks(),
            description="Every check on what is there: tables whole, the lake's newest day.",
        ),
        cron_schedule="0 8 * * 0",
        execution_timezone=settings.timezone,
        description="Runs every check on what is there.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
