"""The sensor observe_live: tells Dagster once a minute how the live processes are."""

import dagster as dg

from assets.live import living, observations, why_none
from profilehouse.platform import Platform
from profilehouse.stream.status import read_statuses
from profilehouse.times import utc_now

EVERY_SECONDS = 60


def observe_live() -> dg.SensorDefinition:
    """Observes the assets of the live path from the statuses that the processes write."""

    @dg.sensor(
        name="observe_live",
        minimum_interval_seconds=EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reads what the live processes say of themselves and observes the log, the"
        " process, the lake's web tables and the profile store with it: numbers to plot.",
    )
    def observe(platform: dg.ResourceParam[Platform]) -> dg.SensorResult | dg.SkipReason:
        statuses = read_statuses(platform.settings, platform.aws)
        alive = living(statuses, utc_now())
        if not alive:
            return dg.SkipReason(why_none(statuses))
        return dg.SensorResult(asset_events=observations(alive))

    return observe
