"""Feeds through Dagster, for tests: one day landed and loaded, with all checks.

Belongs here: that run. Does not belong here: any test.
"""

from __future__ import annotations

from datetime import date

import dagster as dg

from platform_defs.build import build_defs
from tests.pipeline import DAYS, Installation


def load(house: Installation, feed: str, table: str) -> dict[str, bool]:
    """Land a feed's first day and load its table, with all checks; whether each passed."""
    evaluations = loaded(house, feed, table).get_asset_check_evaluations()
    return {check.check_name: check.passed for check in evaluations}


def loaded(
    house: Installation, feed: str, table: str, last: date = DAYS[0]
) -> dg.ExecuteInProcessResult:
    """As `load`, of the days up to one; all that happened."""
    keys = [dg.AssetKey(["lake", feed]), dg.AssetKey(["warehouse", table])]
    job = dg.define_asset_job("load", dg.AssetSelection.assets(*keys))
    defs = dg.Definitions.merge(build_defs(house.settings), dg.Definitions(jobs=[job]))
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def("load").execute_in_process(
            instance=instance,
            tags={
                "dagster/asset_partition_range_start": str(DAYS[0]),
                "dagster/asset_partition_range_end": str(last),
            },
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    assert result.success
    return result
