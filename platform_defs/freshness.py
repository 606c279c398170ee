"""How old each asset may become: a warning first, then an error; Dagster's daemon judges it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import dagster as dg

DAILY = dg.FreshnessPolicy.time_window(
    warn_window=timedelta(hours=26), fail_window=timedelta(hours=30)
)
"""Made every morning at six: a warning at eight, an error at noon of the day that lacks it."""
NIGHTLY = dg.FreshnessPolicy.time_window(
    warn_window=timedelta(hours=30), fail_window=timedelta(hours=54)
)
"""Upkeep of a night may fail once."""
HOURLY = dg.FreshnessPolicy.time_window(
    warn_window=timedelta(hours=3), fail_window=timedelta(hours=12)
)
POLICIES: Mapping[tuple[str, ...], dg.FreshnessPolicy] = {
    ("lake", "upkeep", "compacted"): NIGHTLY,
    ("lake", "upkeep", "cleared"): NIGHTLY,
    ("lake", "upkeep", "expired"): HOURLY,
}
"""Of the assets that are made at other hours than the daily load; longer keys go first."""
DAILY_ROOMS = ("lake", "warehouse", "profiles")
"""What is in them and made here is made every morning; other rooms are outside, or made by hand."""


def with_freshness(assets: Sequence[Any]) -> list[Any]:
    """The assets with their policies; what is made elsewhere (a spec) gets none."""
    return [
        dg.map_asset_specs(_fresh, [asset])[0] if isinstance(asset, dg.AssetsDefinition) else asset
        for asset in assets
    ]


def _fresh(spec: dg.AssetSpec) -> dg.AssetSpec:
    daily = DAILY if spec.key.path[0] in DAILY_ROOMS else None
    policy = POLICIES.get(tuple(spec.key.path), daily)
    return spec if policy is None else spec.replace_attributes(freshness_policy=policy)
