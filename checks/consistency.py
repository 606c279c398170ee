"""Consistency: what was delivered, landed, loaded and served is the same, row by row and cent by
cent; what refers to another table finds it there; both kinds of profile agree.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from assets.warehouse import POOL, TOPICS, topics_of
from checks._common import (
    asset_checks,
    days_looked_at,
    differing_profiles,
    reported,
    rule_specs,
    spec,
)
from profilehouse.contracts import Contract, contract, contracts_of
from profilehouse.events.build import EVENT_SOURCES, newest_event_day
from profilehouse.lake import Lake
from profilehouse.platform import Platform
from profilehouse.profiles.agreement import Agreement, compare
from profilehouse.profiles.features import load_declaration
from profilehouse.quality.reconcile import same_rows
from profilehouse.quality.result import CheckResult, sample_of
from profilehouse.quality.sql import arrow_source, check_references, references_of
from profilehouse.sources.feeds import tables_of
from profilehouse.sources.held_back import held_by_day
from profilehouse.sources.landing import records
from profilehouse.warehouse import Warehouse
from profilehouse.warehouse.ranges import FACT
from profilehouse.warehouse.visits import SESSIONS

ACCOUNTED = "every_record_is_landed_or_a_dead_letter"
REPEATED = "no_delivery_repeats_another"
BUILT = "every_landed_record_is_an_event"
MONEY_BUILT = "money_of_events_is_that_of_records"
LOADED = "every_event_is_one_fact"
WHOLE = "every_landed_record_is_one_row"
MONEY_LOADED = "money_of_facts_is_that_of_events"
AGREE = "store_and_warehouse_agree"

DAYS_AT_ONCE = 92
"""Days of records read together, to bound memory."""


def consistency_checks(feeds: Sequence[Contract] = ()) -> list[dg.AssetChecksDefinition]:
    """For each source, the events, each fact with its references, and the profiles.

    Args:
        feeds: the optional sources that are on.
    """
    tables = [(table, feed) for feed in feeds for table in tables_of(feed)]
    return [
        *(_accounts(source) for source in (*contracts_of("sources"), *feeds)),
        _events(),
        *(_facts(contract(table), topics) for table, topics in topics_of(feeds).items()),
        *(_references(contract(table)) for table in (*TOPICS, FACT, SESSIONS)),
        *(_whole(table, feed) for table, feed in tables if table.properties.get("everyRecord")),
        *(_references(table) for table, _ in tables if references_of(table)),
        _profiles(),
    ]


def _accounts(source: Contract) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["lake", source.name])
    accounted = f"Every record of {source.name} is in the lake, a dead letter or in quarantine"
    repeated = f"No two files of {source.name} are the same"

    @asset_checks(
        specs=[spec(key, ACCOUNTED, accounted, "error"), spec(key, REPEATED, repeated, "warning")],
        name=f"accounts_of_{source.name}",
    )
    def accounts_of_source(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        lake = platform.lake()
        deliveries = lake.read("deliveries", topic=source.name).to_pylist()
        rows, held = lake.days(source.name), held_by_day(lake, source.name)
        yield reported(
            key,
            same_rows(
                ACCOUNTED,
                by_day("records", {d["delivered_on"]: d["records"] for d in deliveries}),
                by_day(
                    "records",
                    {
                        d["delivered_on"]: rows.get(d["delivered_on"], 0)
                        + d["dead_letters"]
                        + held.get(d["delivered_on"], 0)
                        for d in deliveries
                    },
                ),
                ["delivered_on"],
                accounted,
                f"Materialize these days of lake/{source.name} again",
            ),
        )
        yield reported(key, no_delivery_repeats_another(source, deliveries))

    return accounts_of_source


def no_delivery_repeats_another(
    source: Contract, deliveries: list[Mapping[str, Any]]
) -> CheckResult:
    """Whether two days were landed from the same bytes; empty files do not count."""
    first: dict[object, object] = {}
    repeated = []
    for row in sorted(deliveries, key=lambda row: str(row["delivered_on"])):
        if not row["records"]:
            continue
        day = first.setdefault(row["sha256"], row["delivered_on"])
        if day != row["delivered_on"]:
            repeated.append({"delivered_on": row["delivered_on"], "same_as": day})
    return CheckResult(
        name=REPEATED,
        state="failed" if repeated else "passed",
        severity="warning",
        description=f"no two files of {source.name} are the same",
        expected="each file differs from all others",
        observed=f"{len(repeated)} of {len(deliveries)} files repeat an earlier day's",
        failing=len(repeated),
        total=len(deliveries),
        remedy=f"Ask {source.owner} which day the file is for, and deliver the other one",
        sample=sample_of(repeated, ()),
        numbers={"repeated_files": len(repeated), "files": len(deliveries)},
    )


def _events() -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["lake", "events"])
    built = "Every landed record is an event"
    money = "The value of purchase events is that of the records, to the cent"

    @asset_checks(
        specs=[spec(key, BUILT, built, "error"), spec(key, MONEY_BUILT, money, "error")],
        name="accounts_of_events",
    )
    def accounts_of_events(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        lake = platform.lake()
        days = days_looked_at(context, lake.days("events"))
        landed = pa.Table.from_pylist(
            [
                {"topic": topic, "delivered_on": day, "events": count}
                for topic in EVENT_SOURCES
                for day, count in lake.days(topic).items()
                if day in set(days)
            ],
            schema=pa.schema(
                [("topic", pa.string()), ("delivered_on", pa.date32()), ("events", pa.int64())]
            ),
        )
        events = _events_by_day(lake, days)
        counted = pc.is_in(events["topic"], pa.array(EVENT_SOURCES))
        counts = events.filter(counted).select(landed.column_names)
        remedy = "Materialize these days of lake/events again"
        yield reported(
            key, same_rows(BUILT, landed, counts, ["topic", "delivered_on"], built, remedy)
        )
        cents = events.filter(pc.equal(events["topic"], "purchases"))
        yield reported(
            key,
            same_rows(
                MONEY_BUILT,
                _record_cents(lake, days),
                cents.select(["delivered_on", "cents"]),
                ["delivered_on"],
                money,
                remedy,
            ),
        )

    return accounts_of_events


def by_day(number: str, counts: Mapping[date, int]) -> pa.Table:
    """A number a delivery day, as a small table."""
    return pa.table(
        {
            "delivered_on": pa.array(counts.keys(), pa.date32()),
            number: pa.array(counts.values(), pa.int64()),
        }
    )


def _events_by_day(lake: Lake, days: list[date]) -> pa.Table:
    rows = lake.read("events", columns=["topic", "delivered_on", "value_cents"], days=days)
    with arrow_source({"events": rows}) as source:
        return source.query(
            "SELECT topic, delivered_on, COUNT(*) AS events,"
            " CAST(COALESCE(SUM(value_cents), 0) AS BIGINT) AS cents"
            " FROM events GROUP BY topic, delivered_on"
        )


def _record_cents(lake: Lake, days: list[date]) -> pa.Table:
    """Cents of the landed purchases by day, from the records themselves."""
    parts: list[pa.Table] = []
    for start in range(0, max(len(days), 1), DAYS_AT_ONCE):
        rows = records(contract("purchases"), lake, days[start : start + DAYS_AT_ONCE])
        with arrow_source({"purchases": rows}) as source:
            parts.append(
                source.query(
                    "SELECT delivered_on, CAST(SUM(ROUND(sales_value * 100)) AS BIGINT) AS cents"
                    " FROM purchases GROUP BY delivered_on"
                )
            )
    return pa.concat_tables(parts)


def _whole(table: Contract, feed: Contract) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", table.name])
    whole = f"Every landed record of {feed.name} is one row of {table.name}"

    @asset_checks(
        specs=[spec(key, WHOLE, whole, "error")], name=f"accounts_of_{table.name}", pool=POOL
    )
    def accounts_of_table(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        landed = by_day("rows_there", platform.lake().days(feed.name))
        with platform.warehouse() as warehouse:
            rows = warehouse.query(
                f"SELECT delivered_on, COUNT(*) AS rows_there FROM {table.name}"  # noqa: S608
                " GROUP BY delivered_on"
            )
        remedy = f"Materialize these days of warehouse/{table.name} again"
        yield reported(key, same_rows(WHOLE, landed, rows, ["delivered_on"], whole, remedy))

    return accounts_of_table


def _facts(table: Contract, topics: Sequence[str]) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", table.name])
    loaded = f"Every event of {' and '.join(topics)} is one row of {table.name}"
    money = "The value of the facts is that of the events, to the cent"
    has_money = any(column.name == "value_cents" for column in table.columns)
    specs = [spec(key, LOADED, loaded, "error")]
    if has_money:
        specs.append(spec(key, MONEY_LOADED, money, "error"))

    @asset_checks(specs=specs, name=f"accounts_of_{table.name}", pool=POOL)
    def accounts_of_fact(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        events = _distinct_events(platform.lake(), topics)
        with platform.warehouse() as warehouse:
            facts = _facts_by_day(warehouse, table.name, has_money)
        remedy = f"Materialize these days of warehouse/{table.name} again"
        for name, number, description in (
            (LOADED, "events", loaded),
            (MONEY_LOADED, "cents", money),
        ):
            if number in facts.column_names:
                expected, observed = (t.select(["delivered_on", number]) for t in (events, facts))
                yield reported(
                    key, same_rows(name, expected, observed, ["delivered_on"], description, remedy)
                )

    return accounts_of_fact


def _distinct_events(lake: Lake, topics: Sequence[str]) -> pa.Table:
    """Events and cents a day; of duplicates the lowest position counts, as in the facts."""
    columns = ["event_id", "topic", "delivered_on", "line", "value_cents"]
    rows = pa.concat_tables(lake.read("events", columns=columns, topic=topic) for topic in topics)
    with arrow_source({"events": rows}) as source:
        return source.query(
            "SELECT delivered_on, COUNT(*) AS events,"
            " CAST(COALESCE(SUM(value_cents), 0) AS BIGINT) AS cents FROM ("
            "SELECT delivered_on, value_cents FROM events QUALIFY ROW_NUMBER() OVER"
            " (PARTITION BY event_id ORDER BY delivered_on, topic, line) = 1"
            ") AS counted GROUP BY delivered_on"
        )


def _facts_by_day(warehouse: Warehouse, table: str, has_money: bool) -> pa.Table:
    cents = ", CAST(SUM(value_cents) AS BIGINT) AS cents" if has_money else ""
    return warehouse.query(
        f"SELECT delivered_on, COUNT(*) AS events{cents} FROM {table} GROUP BY delivered_on"  # noqa: S608
    )


def _references(table: Contract) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", table.name])
    references = references_of(table)
    dimensions = {dg.AssetKey(["warehouse", reference.table]) for reference in references}

    @asset_checks(
        specs=rule_specs(key, references, *dimensions),
        name=f"references_of_{table.name}",
        pool=POOL,
    )
    def references_of_fact(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        with platform.warehouse() as warehouse:
            results = check_references(table, references, warehouse)
        for result in results:
            yield reported(key, result)

    return references_of_fact


def _profiles() -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["profiles", "profile_store"])
    table = dg.AssetKey(["warehouse", "profile"])
    agree = "Store and warehouse have the same profile of every user"

    @asset_checks(specs=[spec(key, AGREE, agree, "error", table)], name="profiles_agree", pool=POOL)
    def profiles_agree(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        declaration = load_declaration()
        with platform.profile_store(declaration) as store:
            with store.cut() as cut:
                follows_a_log = cut.topic_id is not None
            if follows_a_log:
                yield reported(key, never_as_of_one_day())
                return
            with platform.warehouse() as warehouse:
                rows = warehouse.query("SELECT * FROM profile")
            as_of = newest_event_day(platform.lake(), platform.settings.zone)
            agreement = compare(store, declaration, rows, as_of)
        yield reported(key, store_and_warehouse_agree(agreement, as_of))

    return profiles_agree


def never_as_of_one_day() -> CheckResult:
    """What is said of a store that moves on while the warehouse's table stays as it is."""
    return CheckResult(
        name=AGREE,
        state="not enough history",
        severity="error",
        description="store and warehouse have the same profile of every user",
        expected="the same profile of each user on both sides",
        observed="the store follows the log and is ahead of the table:"
        " live_and_warehouse_agree compares both after the same events",
        failing=0,
        total=0,
        remedy="See live_and_warehouse_agree",
    )


def store_and_warehouse_agree(agreement: Agreement, as_of: date) -> CheckResult:
    """What a comparison of both kinds of profile means."""
    return CheckResult(
        name=AGREE,
        state="failed" if agreement.differing else "passed",
        severity="error",
        description="store and warehouse have the same profile of every user",
        expected=f"the same profile of {agreement.users:,} users on both sides",
        observed=f"{agreement.differing:,} of {agreement.users:,} users differ as of {as_of}",
        failing=agreement.differing,
        total=agreement.users,
        remedy="Materialize warehouse/profile and profiles/profile_store again; if they still"
        " differ, an event was delivered again with another user or time: correct the later file",
        sample=differing_profiles(agreement),
        numbers={"differing_users": agreement.differing, "users": agreement.users},
    )
