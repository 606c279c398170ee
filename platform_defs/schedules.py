"""Jobs and when they run: the daily load after each business day, checks, the lake's upkeep."""

from collections.abc import Sequence
from datetime import date, timedelta

import dagster as dg

from assets.live import why_none
from checks.live import LIVE_CHECK_JOB
from profilehouse.contracts import contracts_of
from profilehouse.platform import Platform
from profilehouse.settings import Settings
from profilehouse.stream.status import read_statuses

DAILY_JOB = "daily_load"
CHECK_JOB = "all_checks"
EXPIRY_JOB = "expire_lake"
FETCH_JOB = "fetch_sources"
UPKEEP_JOB = "tidy_lake"
LOAD_HOUR = 6
"""Hour of the business zone from which yesterday's deliveries are loaded, once all are there."""
DAYS_WAITED_FOR = 7
"""So many days back a late delivery is loaded by itself; older ones by a backfill."""
EVENTS_KEY = dg.AssetKey(["lake", "events"])


def daily_load(
    settings: Settings,
    daily: dg.PartitionsDefinition[str],
    assets: Sequence[dg.AssetsDefinition],
    live: Sequence[dg.AssetChecksDefinition],
) -> dg.ScheduleDefinition:
    """Each morning: the business day that ended, from its files to checked profiles.

    A day whose deliveries are late waits: it is looked for every quarter of an hour, for a week.
    Meanwhile its assets become stale, which is told.
    """
    job = dg.define_asset_job(
        DAILY_JOB,
        selection=dg.AssetSelection.assets(*assets) | dg.AssetSelection.checks(*live),
        partitions_def=daily,
        description="A delivery day, or a range of them: from the files to checked profiles.",
    )

    @dg.schedule(
        name="every_morning",
        job=job,
        cron_schedule=f"*/15 {LOAD_HOUR}-23 * * *",
        execution_timezone=settings.timezone,
        description="Loads and checks each business day that ended, once all its deliveries are"
        " there; each day once.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    def every_morning(
        context: dg.ScheduleEvaluationContext, platform: dg.ResourceParam[Platform]
    ) -> list[dg.RunRequest] | dg.SkipReason:
        today = context.scheduled_execution_time.astimezone(settings.zone).date()
        loaded = context.instance.get_materialized_partitions(EVENTS_KEY)
        days = [today - timedelta(days=n) for n in range(DAYS_WAITED_FOR, 0, -1)]
        wanted = [d for d in days if d >= settings.first_day and str(d) not in loaded]
        if not wanted:
            return dg.SkipReason("All days are loaded.")
        late = _not_delivered(platform, wanted)
        ready = [day for day in wanted if not late[day]]
        if not ready:
            waits = "; ".join(f"{day} for {', '.join(late[day])}" for day in wanted)
            return dg.SkipReason(f"Days wait for deliveries: {waits}.")
        # Of runs with the same key Dagster starts one: a day that failed is for people to repeat.
        return [dg.RunRequest(run_key=str(day), partition_key=str(day)) for day in ready]

    return every_morning


def _not_delivered(platform: Platform, days: Sequence[date]) -> dict[date, list[str]]:
    """The sources that deliver every day and have not delivered each of these days."""
    folder = platform.sources()
    sources = [s for s in contracts_of("sources") if s.properties["delivery"] == "daily"]
    files = {source.name: folder.deliveries(source).files for source in sources}
    return {day: [name for name, there in files.items() if day not in there] for day in days}


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


def checks_of_live(live: Sequence[dg.AssetChecksDefinition]) -> dg.ScheduleDefinition:
    """Every ten minutes, once a live process has run: the checks of the live path."""

    @dg.schedule(
        name="every_ten_minutes",
        job=dg.define_asset_job(
            LIVE_CHECK_JOB,
            selection=dg.AssetSelection.checks(*live),
            description="The checks of the live path: it runs, keeps up, and loses nothing.",
        ),
        cron_schedule="*/10 * * * *",
        description="Checks the live path, once a live process has run.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    def every_ten_minutes(
        platform: dg.ResourceParam[Platform],
    ) -> dg.RunRequest | dg.SkipReason:
        if not read_statuses(platform.settings, platform.aws):
            return dg.SkipReason(why_none([]))
        return dg.RunRequest()

    return every_ten_minutes


def fetch_sources(fetched: Sequence[dg.AssetsDefinition]) -> list[dg.ScheduleDefinition]:
    """Every quarter of an hour: the sources that the platform fetches itself, if any."""
    if not fetched:
        return []
    return [
        dg.ScheduleDefinition(
            name="every_quarter",
            job=dg.define_asset_job(
                FETCH_JOB,
                selection=dg.AssetSelection.assets(*fetched),
                description="Fetches what is new at the sources that are asked for it.",
            ),
            cron_schedule="*/15 * * * *",
            description="Fetches what is new at the sources that are asked for it.",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
    ]


def hourly_expiry(settings: Settings) -> dg.ScheduleDefinition:
    """Each hour: the lake's tables forget their old states."""
    return dg.ScheduleDefinition(
        name="every_hour",
        job=dg.define_asset_job(
            EXPIRY_JOB,
            selection=dg.AssetSelection.assets(["lake", "upkeep", "expired"]),
            description="Lets the lake's tables forget their old states.",
        ),
        cron_schedule="17 * * * *",
        execution_timezone=settings.timezone,
        description="Lets the lake's tables forget their old states.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )


def nightly_upkeep(settings: Settings) -> dg.ScheduleDefinition:
    """Each night: the lake's closed days in few files, no file that nothing needs."""
    return dg.ScheduleDefinition(
        name="every_night",
        job=dg.define_asset_job(
            UPKEEP_JOB,
            selection=dg.AssetSelection.assets(
                ["lake", "upkeep", "compacted"], ["lake", "upkeep", "cleared"]
            ),
            description="Compacts the lake's closed days and removes files that nothing needs.",
        ),
        cron_schedule="0 3 * * *",
        execution_timezone=settings.timezone,
        description="Compacts the lake's closed days and removes files that nothing needs.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
