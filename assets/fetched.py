"""Sources that the platform fetches itself: delivered as files, then landed as any other."""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime

import dagster as dg

from assets._common import column_schema, owners
from profilehouse.contracts import Contract, contract
from profilehouse.platform import Platform
from profilehouse.settings import Settings
from profilehouse.sources import crm, mentions, webhooks
from profilehouse.sources.fetching import Fetched, delivery_day

Fetch = Callable[[Platform, date], Fetched]
"""Adds what is new to a day's file."""


def fetched_sources(
    settings: Settings, feeds: Sequence[Contract]
) -> dict[str, dg.AssetsDefinition]:
    """The asset of each source that is fetched, by name, in the place of what others deliver.

    Args:
        settings: say whether the CRM is fetched or delivers files.
        feeds: the optional sources that are on.
    """
    on = {feed.name for feed in feeds} | ({crm.SOURCE} if settings.crm_url else set())
    return {name: _fetched(contract(name), *how) for name, how in FETCHED.items() if name in on}


def _fetched(source: Contract, kind: str, fetch: Fetch) -> dg.AssetsDefinition:
    @dg.asset(
        key=["sources", source.name],
        group_name="sources",
        kinds={kind, "json"},
        description=f"Fetched by the platform: {source.description}",
        owners=owners(source),
        metadata={"dagster/column_schema": column_schema(source)},
    )
    def fetched(platform: dg.ResourceParam[Platform]) -> dg.MaterializeResult[None]:
        done = fetch(platform, delivery_day(datetime.now(UTC), platform.settings))
        return dg.MaterializeResult(
            metadata={
                "new_records": done.new,
                "deletions": done.deletions,
                "calls": done.calls,
                "rows_read": done.rows_read,
                "file": done.file or "none",
            }
        )

    return fetched


def _crm(platform: Platform, today: date) -> Fetched:
    return crm.fetch_crm(platform.settings, platform.sources(), today)


def _mentions(platform: Platform, today: date) -> Fetched:
    return mentions.fetch_mentions(platform.settings, platform.sources(), today)


def _webhooks(platform: Platform, today: date) -> Fetched:
    with platform.webhooks() as log:
        return webhooks.fetch_webhooks(log, platform.sources(), today)


FETCHED: dict[str, tuple[str, Fetch]] = {
    crm.SOURCE: ("postgres", _crm),
    mentions.FEED: ("api", _mentions),
    webhooks.FEED: ("webhook", _webhooks),
}
"""What is fetched: the kind that the UI shows, and how."""
