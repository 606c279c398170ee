"""Checks of the machine that the platform runs on."""

from collections.abc import Iterator

import dagster as dg

from assets.health import STORAGE
from checks._common import asset_checks, reported, spec
from profilehouse.health import disks_have_room, free_percent, places
from profilehouse.platform import Platform
from profilehouse.settings import Settings

DISKS = "disks_have_room"


def health_checks() -> list[dg.AssetChecksDefinition]:
    """Of the disks; the sensor observe_health looks at them as well, without a run."""
    has_room = spec(
        STORAGE, DISKS, "The disks of all local parts have room", "error", blocking=False
    )

    @asset_checks(specs=[has_room], name="health_of_disks")
    def health_of_disks(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        yield disks(platform.settings)

    return [health_of_disks]


def disks(settings: Settings) -> dg.AssetCheckResult:
    """Whether the disks have room."""
    free = {name: free_percent(path) for name, path in places(settings).items()}
    return reported(STORAGE, disks_have_room(DISKS, free))
