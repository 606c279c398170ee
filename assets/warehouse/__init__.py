"""The warehouse's assets: the star schema, loaded from the lake. Its SQL lies in sql/."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

import dagster as dg

from assets._common import column_lineage, days_of, declared, owners, report_days, spans
from profilehouse.contracts import contract
from profilehouse.platform import Platform
from profilehouse.sources.landing import delivered, histories, record_schema, records
from profilehouse.warehouse.load import (
    LoadReport,
    load_calendar,
    load_dimension,
    load_fact,
    load_history,
)
from profilehouse.warehouse.sql import lineage

POOL = "duckdb"
"""Steps that open the warehouse: one at a time, as DuckDB admits one process."""
TOPICS = {"fct_purchase": ("purchases",), "fct_interaction": ("mailings", "redemptions")}
"""The topics whose events each fact holds."""
SQL_DIR = Path(__file__).parent / "sql"


def warehouse_assets(daily: dg.PartitionsDefinition[str]) -> list[dg.AssetsDefinition]:
    """The star schema: four dimensions and two facts."""
    return [
        _dim_user(),
        _dimension("dim_content", "products"),
        _dimension("dim_campaign", "campaigns"),
        _dim_date(),
        *(_fact(table, topics, daily) for table, topics in TOPICS.items()),
    ]


def _asset(
    table: str, upstream: str, daily: dg.PartitionsDefinition[str] | None = None
) -> Callable[..., dg.AssetsDefinition]:
    """The decorator of a table's asset, loaded from a lake asset; `daily` where partitioned."""
    return dg.asset(
        key=["warehouse", table],
        deps=[dg.AssetKey(["lake", upstream])],
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
    sql = table_sql(table)

    @_asset(table, "events", daily)
    def fact(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[None]:
        days = days_of(context)
        lake = platform.lake()
        with platform.warehouse() as warehouse:
            report = load_fact(
                warehouse,
                contract(table),
                sql,
                delivered(lake, "events", days),
                lambda changed: chain.from_iterable(
                    lake.batches("events", days=changed, topic=topic) for topic in topics
                ),
                contract("events").arrow_schema,
            )
            counts = warehouse.query(
                f"SELECT delivered_on, COUNT(*) AS loaded FROM {table}"  # noqa: S608
                " WHERE delivered_on BETWEEN ? AND ? GROUP BY delivered_on",
                (days[0], days[-1]),
            )
        rows = dict(zip(*(column.to_pylist() for column in counts.columns), strict=True))
        report_days(context, days, rows)
        return dg.MaterializeResult(metadata=_metadata(report, sql, {"staged": "events"}))

    return fact


def _dim_user() -> dg.AssetsDefinition:
    table, source = "dim_user", contract("crm")
    sql = table_sql(table)

    @_asset(table, source.name)
    def dim_user(platform: dg.ResourceParam[Platform]) -> dg.MaterializeResult[None]:
        lake = platform.lake()
        with platform.warehouse() as warehouse:
            report = load_history(
                warehouse,
                contract(table),
                sql,
                delivered(lake, source.name),
                lambda days: histories(source, lake, "household_id", days).to_batches(),
                record_schema(source),
            )
        return dg.MaterializeResult(metadata=_metadata(report, sql, {"staged": source.name}))

    return dim_user


def _dimension(table: str, source_name: str) -> dg.AssetsDefinition:
    source = contract(source_name)
    sql = table_sql(table)

    @_asset(table, source.name)
    def dimension(platform: dg.ResourceParam[Platform]) -> dg.MaterializeResult[None]:
        lake = platform.lake()
        with platform.warehouse() as warehouse:
            report = load_dimension(
                warehouse,
                contract(table),
                sql,
                delivered(lake, source.name),
                lambda days: records(source, lake, days).to_batches(),
                record_schema(source),
            )
        return dg.MaterializeResult(metadata=_metadata(report, sql, {"staged": source.name}))

    return dimension


def _dim_date() -> dg.AssetsDefinition:
    sql = table_sql("dim_date")

    @_asset("dim_date", "events")
    def dim_date(platform: dg.ResourceParam[Platform]) -> dg.MaterializeResult[None]:
        """Whole years: from the year before the first business day to that of the newest."""
        first_day = platform.settings.first_day
        newest = max(delivered(platform.lake(), "events"), default=first_day)
        with platform.warehouse() as warehouse:
            report = load_calendar(
                warehouse,
                contract("dim_date"),
                sql,
                date(first_day.year - 1, 1, 1),
                date(newest.year + 1, 12, 31),
            )
        return dg.MaterializeResult(metadata=_metadata(report, sql, {}))

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
    keys = {table: dg.AssetKey(["lake", name]) for table, name in read.items()}
    return {
        "dagster/row_count": report.rows,
        "staged_rows": sum(report.staged_rows.values()),
        "loaded_days": spans(list(report.staged_rows)),
        **column_lineage(lineage(sql), keys),
    }
