"""Sensors that tell Dagster how the live processes and the platform are, without any run."""

from pathlib import Path

import dagster as dg

from assets.health import STORAGE, health_of_alerts, health_of_live, health_of_storage
from assets.live import living, observations, why_none
from checks.health import DISKS, disks
from profilehouse.alerts.outbox import Outbox
from profilehouse.health import places
from profilehouse.platform import Platform
from profilehouse.settings import Settings
from profilehouse.stream.status import read_statuses
from profilehouse.times import utc_now

EVERY_SECONDS = 60
HEALTH_SECONDS = 300


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


def observe_health() -> dg.SensorDefinition:
    """Observes the assets of the group health, and checks that the disks have room."""

    @dg.sensor(
        name="observe_health",
        minimum_interval_seconds=HEALTH_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Observes lag, latency and throughput of the live path, sizes and free space"
        " on this machine's disks, and open incidents; checks that the disks have room.",
    )
    def observe(platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        settings = platform.settings
        room = disks(settings)
        return dg.SensorResult(
            asset_events=[
                health_of_live(living(read_statuses(settings, platform.aws), utc_now())),
                health_of_storage(places(settings)),
                health_of_alerts(*_of_outbox(settings)),
                dg.AssetCheckEvaluation(
                    asset_key=STORAGE,
                    check_name=DISKS,
                    passed=room.passed,
                    metadata=room.metadata,
                    severity=room.severity,
                    description=room.description,
                ),
            ]
        )

    return observe


def _of_outbox(settings: Settings) -> tuple[int, int]:
    """Incidents that are open, messages that wait."""
    path = Path(settings.outbox)
    if not path.exists():
        return 0, 0
    with Outbox.looked_at(path) as outbox:
        return len(outbox.incidents()), len(outbox.messages())
