"""The warehouse's assets: the star schema, loaded from the lake. Its SQL lies in sql/."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from assets._common import column_lineage, days_of, declared, owners, report_days, spans
from profilehouse.contracts import Contract, contract
from profilehouse.events.build import EVENT_SOURCES, event_topics
from profilehouse.lake import Lake
from profilehouse.platform import Platform
from profilehouse.sources.feeds import tables_of
from profilehouse.sources.landing import delivered, histories, record_schema, records
from profilehouse.warehouse import Warehouse
from profilehouse.warehouse.load import (
    LoadReport,
    load_calendar,
    load_dimension,
    load_fact,
    load_history,
)
from profilehouse.warehouse.ranges import (
    FACT,
    Plan,
    RangeReport,
    behind,
    load_ranges,
    loaded_ranges,
)
from profilehouse.warehouse.sql import lineage
from profilehouse.warehouse.visits import IDENTITY, SESSIONS, load_identity, load_sessions

POOL = "duckdb"
"""Steps that open the warehouse: one at a time, as DuckDB admits one process."""
TOPICS = {"fct_purchase": ("purchases",), "fct_interaction": ("mailings", "redemptions")}
"""The topics whose events each fact holds."""
WEB_EVENTS = "web_events"
"""The lake's table of what came over the log."""
PLAN_TAG = "profilehouse/plan"
"""The run's tag with the positions to load, as profilehouse.warehouse.ranges.Plan writes them."""
DAYS_AT_ONCE = 7
"""Days of a feed whose records are in memory together."""
SQL_DIR = Path(__file__).parent / "sql"


def topics_of(feeds: Sequence[Contract]) -> dict[str, tuple[str, ...]]:
    """The topics whose events each fact holds, where some feeds are on: theirs are purchases."""
    bought = (topic for topic in event_topics(feeds) if topic not in EVENT_SOURCES)
    return {**TOPICS, "fct_purchase": (*TOPICS["fct_purchase"], *bought)}


def warehouse_assets(
    daily: dg.PartitionsDefinition[str], feeds: Sequence[Contract] = ()
) -> list[dg.AssetsDefinition]:
    """The star schema: five dimensions, four facts, and the tables of the feeds that are on."""
    return [
        _dim_user(),
        _dimension("dim_content", "products"),
        _dimension("dim_campaign", "campaigns"),
        _dim_date(),
        *(_fact(table, topics, daily) for table, topics in topics_of(feeds).items()),
        *(_feed_table(table, feed, daily) for feed in feeds for table in tables_of(feed)),
        _fct_web_event(),
        _dim_identity(),
        _fct_session(),
    ]


def _asset(
    table: str,
    *upstream: str,
    room: str = "lake",
    daily: dg.PartitionsDefinition[str] | None = None,
) -> Callable[..., dg.AssetsDefinition]:
    """The decorator of a table's asset, loaded from assets of a room; `daily` where partitioned."""
    return dg.asset(
        key=["warehouse", table],
        deps=[dg.AssetKey([room, name]) for name in upstream],
        partitions_def=daily,
        backfill_policy=dg.BackfillPolicy.single_run() if daily else None,
        group_name="warehouse",
        kinds={"sql", "table"},
        pool=POOL,
        description=contract(table).description,
        owners=owners(contract(table)),
        metadata=declared(contract(table), _path(table)),
    )


def _fact(
    table: str, topics: Sequence[str], daily: dg.PartitionsDefinition[str]
) -> dg.AssetsDefinition:
    """A fact of the events of some topics."""

    def batches(lake: Lake, days: Sequence[date]) -> Iterator[pa.RecordBatch]:
        for topic in topics:
            yield from lake.batches("events", days=days, topic=topic)

    return _daily(contract(table), "events", contract("events").arrow_schema, batches, daily)


def _feed_table(
    table: Contract, feed: Contract, daily: dg.PartitionsDefinition[str]
) -> dg.AssetsDefinition:
    """A table of what a feed delivered."""

    def batches(lake: Lake, days: Sequence[date]) -> Iterator[pa.RecordBatch]:
        for first in range(0, len(days), DAYS_AT_ONCE):
            yield from records(feed, lake, days[first : first + DAYS_AT_ONCE]).to_batches()

    return _daily(table, feed.name, record_schema(feed), batches, daily)


def _daily(
    table: Contract,
    upstream: str,
    schema: pa.Schema,
    batches: Callable[[Lake, Sequence[date]], Iterator[pa.RecordBatch]],
    daily: dg.PartitionsDefinition[str],
) -> dg.AssetsDefinition:
    """A table that is loaded by delivery day.

    Args:
        table: its contract.
        upstream: the lake's table that its rows come from.
        schema: of the rows to be staged.
        batches: reads these rows of some days.
        daily: the days.
    """
    sql = table_sql(table.name)

    @_asset(table.name, upstream, daily=daily)
    def loaded(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[None]:
        days = days_of(context)
        lake = platform.lake()
        with platform.at_work(**work_of(context)).warehouse() as warehouse:
            report = load_fact(
                warehouse,
                table,
                sql,
                delivered(lake, upstream, days),
                lambda changed: batches(lake, changed),
                schema,
            )
            counts = warehouse.query(
                f"SELECT delivered_on, COUNT(*) AS loaded FROM {table.name}"  # noqa: S608
                " WHERE delivered_on BETWEEN ? AND ? GROUP BY delivered_on",
                (days[0], days[-1]),
            )
            further = told(warehouse)
        rows = dict(zip(*(column.to_pylist() for column in counts.columns), strict=True))
        report_days(context, days, rows)
        return dg.MaterializeResult(metadata=_metadata(report, sql, {"staged": upstream}) | further)

    return loaded


def _fct_web_event() -> dg.AssetsDefinition:
    sql = table_sql(FACT)

    @_asset(FACT, WEB_EVENTS)
    def fct_web_event(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[None]:
        """The positions that the run's tag plans; without one, all that the lake has more."""
        lake = platform.lake()
        text = context.run.tags.get(PLAN_TAG)
        with platform.at_work(**work_of(context)).warehouse() as warehouse:
            plan = _held(lake, Plan.parse(text)) if text else _rest(lake, warehouse)
            report = load_ranges(
                warehouse,
                contract(FACT),
                sql,
                plan.topic_id,
                plan.ranges,
                lambda ranges: lake.batches(WEB_EVENTS, offsets=ranges),
                contract(WEB_EVENTS).arrow_schema,
            )
            further = told(warehouse)
        return dg.MaterializeResult(metadata=_range_metadata(report, sql) | further)

    return fct_web_event


def _dim_identity() -> dg.AssetsDefinition:
    sql = table_sql(IDENTITY)

    @_asset(IDENTITY, FACT, room="warehouse")
    def dim_identity(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[None]:
        """The visits that have new events; all where the SQL changed or a row was replaced."""
        with platform.at_work(**work_of(context)).warehouse() as warehouse:
            report = load_identity(warehouse, contract(IDENTITY), sql)
            further = told(warehouse)
        return dg.MaterializeResult(metadata=_derived_metadata(report, sql) | further)

    return dim_identity


def _fct_session() -> dg.AssetsDefinition:
    sql = table_sql(SESSIONS)

    @_asset(SESSIONS, FACT, IDENTITY, room="warehouse")
    def fct_session(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[None]:
        """The sessions that new events touch; all where the SQL changed or a row was replaced."""
        with platform.at_work(**work_of(context)).warehouse() as warehouse:
            report = load_sessions(warehouse, contract(SESSIONS), sql)
            further = told(warehouse)
        return dg.MaterializeResult(metadata=_derived_metadata(report, sql) | further)

    return fct_session


def _held(lake: Lake, plan: Plan) -> Plan:
    positions = lake.positions(WEB_EVENTS)
    plan.refuse_unless_held(positions.topic_id, positions.offsets)
    return plan


def _rest(lake: Lake, warehouse: Warehouse) -> Plan:
    """What the lake has and the warehouse lacks; nothing of no topic while the lake has none."""
    positions = lake.positions(WEB_EVENTS)
    if positions.topic_id is None:
        return Plan("", {})
    loaded = loaded_ranges(warehouse, positions.topic_id)
    return Plan(positions.topic_id, behind(loaded, positions.offsets))


def _dim_user() -> dg.AssetsDefinition:
    table, source = "dim_user", contract("crm")
    sql = table_sql(table)

    @_asset(table, source.name)
    def dim_user(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[None]:
        lake = platform.lake()
        with platform.at_work(**work_of(context)).warehouse() as warehouse:
            report = load_history(
                warehouse,
                contract(table),
                sql,
                delivered(lake, source.name),
                lambda days: histories(source, lake, "household_id", days).to_batches(),
                record_schema(source),
            )
            further = told(warehouse)
        return dg.MaterializeResult(
            metadata=_metadata(report, sql, {"staged": source.name}) | further
        )

    return dim_user


def _dimension(table: str, source_name: str) -> dg.AssetsDefinition:
    source = contract(source_name)
    sql = table_sql(table)

    @_asset(table, source.name)
    def dimension(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[None]:
        lake = platform.lake()
        with platform.at_work(**work_of(context)).warehouse() as warehouse:
            report = load_dimension(
                warehouse,
                contract(table),
                sql,
                delivered(lake, source.name),
                lambda days: records(source, lake, days).to_batches(),
                record_schema(source),
            )
            further = told(warehouse)
        return dg.MaterializeResult(
            metadata=_metadata(report, sql, {"staged": source.name}) | further
        )

    return dimension


def _dim_date() -> dg.AssetsDefinition:
    sql = table_sql("dim_date")

    @_asset("dim_date", "events", WEB_EVENTS)
    def dim_date(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[None]:
        """Whole years: from the year before the first business day to that of the newest."""
        first_day = platform.settings.first_day
        lake = platform.lake()
        newest = max([*delivered(lake, "events"), *lake.days(WEB_EVENTS)], default=first_day)
        with platform.at_work(**work_of(context)).warehouse() as warehouse:
            report = load_calendar(
                warehouse,
                contract("dim_date"),
                sql,
                date(first_day.year - 1, 1, 1),
                date(newest.year + 1, 12, 31),
            )
            further = told(warehouse)
        return dg.MaterializeResult(metadata=_metadata(report, sql, {}) | further)

    return dim_date


def _path(table: str) -> Path:
    return SQL_DIR / f"{table}.sql"


def table_sql(table: str) -> str:
    """The SELECT that a table is loaded by."""
    return _path(table).read_text("utf-8")


def _metadata(report: LoadReport, sql: str, read: Mapping[str, str]) -> dict[str, Any]:
    """Rows, what was loaded, and where each column comes from.

    Args:
        read: the lake asset behind each table that the SQL selects from.
    """
    return {
        "dagster/row_count": report.rows,
        "staged_rows": sum(report.staged_rows.values()),
        "loaded_days": spans(list(report.staged_rows)),
        **_lineage(sql, read),
    }


def _range_metadata(report: RangeReport, sql: str) -> dict[str, Any]:
    """As `_metadata`, of positions of the log."""
    return {
        **_ranges(report),
        "staged_rows": report.staged_rows,
        **_lineage(sql, {"staged": WEB_EVENTS}),
    }


def _derived_metadata(report: RangeReport, sql: str) -> dict[str, Any]:
    """As `_range_metadata`, of what is computed from the fact."""
    fact = {"staged": dg.AssetKey(["warehouse", FACT])}
    return {**_ranges(report), **column_lineage(lineage(sql), fact)}


def _ranges(report: RangeReport) -> dict[str, Any]:
    return {
        "dagster/row_count": report.rows,
        "loaded_ranges": "; ".join(
            f"partition {partition}: {', '.join(f'{first}..{end - 1}' for first, end in parts)}"
            for partition, parts in report.loaded.items()
        ),
        "loaded_again_for_a_change": report.anew,
    }


def told(warehouse: Warehouse) -> dict[str, Any]:
    """What was changed in tables that were there already, and what it cost, as metadata."""
    changes = {"schema_changes": "; ".join(warehouse.changes)} if warehouse.changes else {}
    return {**changes, **warehouse.cost()}


def work_of(context: dg.AssetExecutionContext) -> dict[str, str]:
    """What the warehouse is told about the work it does."""
    return {"run_id": context.run.run_id, "asset": context.asset_key.to_user_string()}


def _lineage(sql: str, read: Mapping[str, str]) -> dict[str, Any]:
    return column_lineage(
        lineage(sql), {table: dg.AssetKey(["lake", name]) for table, name in read.items()}
    )
