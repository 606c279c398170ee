"""Feeds: sources that an installation turns on, and the tables of the star that they fill.

Belongs here: which there are. A feed is declared in contracts/feeds as any source is, its tables in
contracts/feed_tables; without the setting `feeds` neither has an asset or a check.
"""

from __future__ import annotations

from profilehouse.contracts import Contract, contracts_of
from profilehouse.errors import ProfilehouseError
from profilehouse.settings import PREFIX, Settings


def enabled_feeds(settings: Settings) -> tuple[Contract, ...]:
    """The feeds that are turned on, by name.

    Raises:
        ProfilehouseError: where the settings name one that has no contract.
    """
    declared = {feed.name: feed for feed in contracts_of("feeds")}
    names = {name.strip() for name in settings.feeds.split(",")} - {""}
    unknown = sorted(names - declared.keys())
    if unknown:
        raise ProfilehouseError(
            f"settings: {PREFIX}FEEDS names {', '.join(unknown)}; there are: {', '.join(declared)}"
        )
    return tuple(feed for name, feed in declared.items() if name in names)


def tables_of(feed: Contract) -> tuple[Contract, ...]:
    """The tables of the warehouse that a feed fills, by name."""
    return tuple(t for t in contracts_of("feed_tables") if t.properties["feed"] == feed.name)
