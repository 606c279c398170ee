"""What Dagster forgets: runs of jobs that run all day long, when nothing refers to them any more.

Runs of the daily load stay, as the partitions that are materialized are known from their events.
Ticks of schedules and sensors are forgotten by Dagster itself (`retention` in dagster.yaml).
"""

from datetime import UTC, datetime, timedelta

import dagster as dg

from checks.live import LIVE_CHECK_JOB
from platform_defs.fresh_events import FRESH_JOB
from platform_defs.schedules import EXPIRY_JOB, UPKEEP_JOB
from profilehouse.settings import Settings

FORGET_JOB = "forget_runs"
KEPT = timedelta(days=30)
FREQUENT = (LIVE_CHECK_JOB, FRESH_JOB, EXPIRY_JOB, UPKEEP_JOB, FORGET_JOB)
_FINISHED = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]


def weekly_forgetting(settings: Settings) -> dg.ScheduleDefinition:
    """Each Sunday: old runs of frequent jobs, with their events and logs."""

    @dg.op(description=f"Deletes runs of frequent jobs that are older than {KEPT.days} days.")
    def forget_old_runs(context: dg.OpExecutionContext) -> None:
        count = forget(context.instance, datetime.now(UTC) - KEPT)
        context.log.info(f"{count} runs forgotten")
        context.add_output_metadata({"runs_forgotten": count})

    @dg.job(
        name=FORGET_JOB,
        description=f"Forgets runs of {', '.join(FREQUENT)} older than {KEPT.days} days.",
        executor_def=dg.in_process_executor,
    )
    def forget_runs() -> None:
        forget_old_runs()

    return dg.ScheduleDefinition(
        name="every_sunday_night",
        job=forget_runs,
        cron_schedule="30 4 * * 0",
        execution_timezone=settings.timezone,
        description=f"Forgets old runs of frequent jobs, after {KEPT.days} days.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )


def forget(instance: dg.DagsterInstance, before: datetime) -> int:
    """Delete finished runs of frequent jobs that were created before a moment.

    A run that made an asset last stays, as it says when that was.

    Returns:
        How many were deleted.
    """
    entries = [record.asset_entry for record in instance.get_asset_records()]
    needed = {
        e.last_materialization_record.run_id for e in entries if e.last_materialization_record
    }
    count = 0
    for job in FREQUENT:
        filters = dg.RunsFilter(job_name=job, statuses=_FINISHED, created_before=before)
        for run_id in instance.get_run_ids(filters):
            if run_id not in needed:
                instance.delete_run(run_id)
                count += 1
    return count
