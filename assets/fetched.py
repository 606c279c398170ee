"""Feeds that the platform fetches itself: each is delivered as a file, then landed as any other."""

from datetime import UTC, datetime

import dagster as dg

from assets._common import column_schema, owners
from profilehouse.contracts import contract
from profilehouse.platform import Platform
from profilehouse.sources import mentions


def fetched_assets() -> dict[str, dg.AssetsDefinition]:
    """The asset of each feed that is fetched, in the place of what others deliver."""
    return {mentions.FEED: _mentions()}


def _mentions() -> dg.AssetsDefinition:
    source = contract(mentions.FEED)

    @dg.asset(
        key=["sources", source.name],
        group_name="sources",
        kinds={"api", "json"},
        description=f"Fetched from an API: {source.description}",
        owners=owners(source),
        metadata={"dagster/column_schema": column_schema(source)},
    )
    def fetched(platform: dg.ResourceParam[Platform]) -> dg.MaterializeResult[None]:
        today = mentions.delivery_day(datetime.now(UTC), platform.settings)
        done = mentions.fetch_mentions(platform.settings, platform.sources(), today)
        return dg.MaterializeResult(
            metadata={
                "new_mentions": done.mentions,
                "requests": done.requests,
                "file": done.file or "none",
            }
        )

    return fetched
