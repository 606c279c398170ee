"""Assembly: settings in, Dagster definitions out."""

from __future__ import annotations

import warnings
from typing import Any

import dagster as dg

from assets.fetched import fetched_sources
from assets.health import health_assets
from assets.lake import delivered_files, lake_assets
from assets.live import live_assets
from assets.maintenance import maintenance_assets
from assets.profiles import profile_assets
from assets.quality import quality_assets
from assets.warehouse import warehouse_assets
from checks.anomaly import anomaly_checks
from checks.completeness import completeness_checks
from checks.consistency import consistency_checks
from checks.datasets import dataset_checks
from checks.health import health_checks
from checks.live import live_checks
from checks.schema import schema_checks
from platform_defs.alerts import alerts
from platform_defs.code_links import with_code_links
from platform_defs.fresh_events import fresh_events
from platform_defs.freshness import with_freshness
from platform_defs.observe import observe_health, observe_live
from platform_defs.partitions import daily_partitions
from platform_defs.resources import open_platform
from platform_defs.retention import weekly_forgetting
from platform_defs.schedules import (
    checks_of_live,
    daily_load,
    fetch_sources,
    hourly_expiry,
    nightly_upkeep,
    weekly_checks,
)
from profilehouse.settings import Settings
from profilehouse.sources.feeds import enabled_feeds


def build_defs(settings: Settings, **overrides: Any) -> dg.Definitions:
    """All definitions for one installation.

    Args:
        settings: where the parts of the platform are.
        overrides: resources by name, in place of those the settings describe.
    """
    # One run for a range of days is what backfill_policy says; Dagster calls it a beta.
    warnings.filterwarnings("ignore", category=dg.BetaWarning)
    daily = daily_partitions(settings)
    feeds = enabled_feeds(settings)
    fetched = fetched_sources(settings, feeds)
    assets = [*lake_assets(daily, feeds), *warehouse_assets(daily, feeds), *profile_assets()]
    live = live_checks()
    return dg.Definitions(
        assets=with_code_links(
            with_freshness(
                [
                    *delivered_files(feeds, fetched),
                    *live_assets(),
                    *assets,
                    *quality_assets(),
                    *maintenance_assets(feeds),
                    *health_assets(),
                ]
            )
        ),
        asset_checks=[
            *schema_checks(feeds),
            *completeness_checks(feeds),
            *consistency_checks(feeds),
            *dataset_checks(feeds),
            *anomaly_checks(),
            *live,
            *health_checks(),
        ],
        schedules=[
            daily_load(settings, daily, assets, live),
            weekly_checks(settings),
            checks_of_live(live),
            hourly_expiry(settings),
            nightly_upkeep(settings),
            weekly_forgetting(settings),
            *fetch_sources(list(fetched.values())),
        ],
        sensors=[observe_live(), observe_health(), fresh_events(), alerts(settings)],
        executor=dg.in_process_executor,
        resources={"platform": open_platform(settings), **overrides},
    )
