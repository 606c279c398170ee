"""Building the lake's events from landed records, a chunk of delivery days at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa

from profilehouse.contracts import Contract, contract
from profilehouse.errors import ProfilehouseError
from profilehouse.lake import Lake
from profilehouse.sources.deliveries import close_of
from profilehouse.sources.landing import begin_anew, delivered, delivery_rows, records

EVENT_SOURCES = ("purchases", "mailings", "redemptions")
"""The sources that events are built from in every installation."""
CATALOG = "products"
DAYS_PER_COMMIT = 92
"""Delivery days built together, to bound memory."""


@dataclass
class Built:
    """What one call built: the events of each rebuilt day."""

    events: dict[date, int] = field(default_factory=dict)
    unchanged: int = 0


def is_daily_log(source: Contract) -> bool:
    """Whether each delivery day of a source stands for itself; of others, the newest counts."""
    return source.kind == "feeds" or source.name in EVENT_SOURCES


def event_topics(feeds: Collection[Contract]) -> tuple[str, ...]:
    """The sources that events are built from, where some feeds are on: those with SQL for it."""
    return (*EVENT_SOURCES, *(feed.name for feed in feeds if _sql_path(feed.name).exists()))


def build_events(
    lake: Lake,
    days: Collection[date],
    zone: ZoneInfo,
    topics: Sequence[str] = EVENT_SOURCES,
) -> Built:
    """Replace the events of the given delivery days, where anything they are made from changed.

    What they are made from: the day's landed records, the catalog as delivered up to that day, the
    SQL and the business zone. Building twice, or in any order of days, gives the same rows.

    Args:
        lake: to read and to write.
        days: delivery days.
        zone: of the business day.
        topics: the sources, see event_topics.
    """
    fingerprints = _fingerprints(lake, sorted(days), zone, topics)
    changed = _changed(lake, fingerprints)
    built = Built(unchanged=len(days) - len(changed))
    catalog = records(contract(CATALOG), lake) if changed else None
    for start in range(0, len(changed), DAYS_PER_COMMIT):
        chunk = changed[start : start + DAYS_PER_COMMIT]
        events = _events(lake, chunk, catalog, zone, topics)
        begin_anew(lake, "events", chunk)
        lake.replace("events", events, days=chunk)
        counts = dict.fromkeys(chunk, 0)
        for row in events.group_by("delivered_on").aggregate([([], "count_all")]).to_pylist():
            counts[row["delivered_on"]] = row["count_all"]
        rows: list[dict[str, object]] = [
            {
                "delivered_on": day,
                "file": None,
                "sha256": fingerprints[day],
                "records": counts[day],
                "dead_letters": 0,
            }
            for day in chunk
        ]
        lake.replace("deliveries", delivery_rows("events", rows), days=chunk, topic="events")
        built.events |= counts
    return built


def stale_days(
    lake: Lake, days: Collection[date], zone: ZoneInfo, topics: Sequence[str] = EVENT_SOURCES
) -> list[date]:
    """The days whose events were never built, or from something that has changed since."""
    return _changed(lake, _fingerprints(lake, sorted(days), zone, topics))


def newest_event_day(lake: Lake, zone: ZoneInfo) -> date:
    """The UTC day in which the newest delivery closed: no delivered event happened after it.

    Raises:
        ProfilehouseError: where no events were built yet.
    """
    days = delivered(lake, "events")
    if not days:
        raise ProfilehouseError("the lake has no events yet: materialize lake/events first")
    return (close_of(max(days), zone) - timedelta(microseconds=1)).date()


@cache
def event_sql(topic: str) -> str:
    """The SELECT that turns one source's records into events (DuckDB dialect)."""
    return _sql_path(topic).read_text("utf-8")


def _sql_path(topic: str) -> Path:
    return Path(__file__).parent / "sql" / f"{topic}.sql"


def _events(
    lake: Lake, days: Sequence[date], catalog: pa.Table, zone: ZoneInfo, topics: Sequence[str]
) -> pa.Table:
    import duckdb  # noqa: PLC0415

    schema = contract("events").arrow_schema
    parts: list[pa.Table] = []
    for topic in topics:
        rows = records(contract(topic), lake, days)
        with duckdb.connect() as connection:
            connection.register(topic, rows)
            connection.register("business_days", _business_days(contract(topic), rows, zone))
            connection.register("delivered_products", catalog)
            connection.execute(
                "CREATE VIEW products AS SELECT * FROM delivered_products"
                " QUALIFY row_number() OVER"
                " (PARTITION BY product_id, delivered_on ORDER BY line DESC) = 1"
            )
            parts.append(connection.sql(event_sql(topic)).to_arrow_table().cast(schema))
    return pa.concat_tables(parts)


def _business_days(source: Contract, rows: pa.Table, zone: ZoneInfo) -> pa.Table:
    """When each day named in the records began: columns day, starts_at (UTC)."""
    dates = {
        day
        for column in source.columns
        if column.type == "date"
        for day in rows[column.name].unique().to_pylist()
        if day is not None
    }
    return pa.table(
        {
            "day": pa.array(sorted(dates), pa.date32()),
            "starts_at": pa.array(
                [close_of(day - timedelta(days=1), zone) for day in sorted(dates)],
                pa.timestamp("us"),
            ),
        }
    )


def _changed(lake: Lake, fingerprints: Mapping[date, str]) -> list[date]:
    before = delivered(lake, "events", fingerprints.keys())
    return [day for day, fingerprint in fingerprints.items() if before.get(day) != fingerprint]


def _fingerprints(
    lake: Lake, days: Sequence[date], zone: ZoneInfo, topics: Sequence[str]
) -> dict[date, str]:
    landed = {topic: delivered(lake, topic, days) for topic in topics}
    catalogs = lake.read("deliveries", columns=["delivered_on", "sha256", "records"], topic=CATALOG)
    pending = sorted(
        (row["delivered_on"], row["sha256"]) for row in catalogs.to_pylist() if row["records"]
    )
    code = "".join(event_sql(topic) for topic in topics) + zone.key
    catalog = hashlib.sha256(code.encode())
    fingerprints: dict[date, str] = {}
    for day in days:
        while pending and pending[0][0] <= day:
            catalog.update(pending.pop(0)[1].encode())
        digest = catalog.copy()
        for topic in topics:
            digest.update(landed[topic].get(day, "-").encode())
        fingerprints[day] = digest.hexdigest()
    return fingerprints
