"""Assembly: settings in, Dagster definitions out."""

from __future__ import annotations

from typing import Any

import dagster as dg

from assets.lake import delivered_files, lake_assets
from assets.profiles import profile_assets
from assets.warehouse import warehouse_assets
from platform_defs.partitions import daily_partitions
from platform_defs.resources import open_platform
from profilehouse.settings import Settings

DAILY_JOB = "daily_load"


def build_defs(settings: Settings, **overrides: Any) -> dg.Definitions:
    """All definitions for one installation.

    Args:
        settings: where the parts of the platform are.
        overrides: resources by name, in place of those the settings describe.
    """
    daily = daily_partitions(settings)
    assets = [*lake_assets(daily), *warehouse_assets(daily), *profile_assets()]
    daily_job = dg.define_asset_job(
        DAILY_JOB,
        selection=dg.AssetSelection.assets(*assets),
        partitions_def=daily,
        description="One delivery day, or a range of them: from the files to checked profiles.",
    )
    return dg.Definitions(
        assets=[*delivered_files(), *assets],
        jobs=[daily_job],
        executor=dg.in_process_executor,
        resources={"platform": open_platform(settings), **overrides},
    )
