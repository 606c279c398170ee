"""Schema: every table has its contract's columns, every row satisfies its contract's row rules.

Landed slices and tables in Snowflake are checked by Great Expectations, events and tables in DuckDB
by one generated SQL statement each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import dagster as dg

from assets.warehouse import POOL, TOPICS
from checks._common import asset_checks, days_looked_at, reported, rule_specs, spec
from profilehouse.contracts import Contract, contract, contracts_of
from profilehouse.events.build import is_daily_log
from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration, profile_contract
from profilehouse.quality.result import CheckResult
from profilehouse.quality.rules import Rule, Unique, row_rules
from profilehouse.quality.sql import arrow_source, check_rows, schema_difference
from profilehouse.sources.feeds import tables_of
from profilehouse.sources.held_back import holding_rules, landed_and_held
from profilehouse.warehouse import Warehouse, statements
from profilehouse.warehouse.ranges import FACT

POSITIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(TOPICS, ("delivered_on", "topic", "line")),
    FACT: ("log_partition", "log_offset"),
}
"""Columns that say where a fact came from; its id may tell who it is about."""
LEDGERS = ("load_ledger", "web_load_ledger", "metric_history")
"""Tables that loads and checks keep for themselves; they are no assets."""
COLUMNS = "columns_are_those_of_the_contract"


def schema_checks(feeds: Sequence[Contract] = ()) -> list[dg.AssetChecksDefinition]:
    """For each source's landed records, the events, and each table of the warehouse.

    Args:
        feeds: the optional sources that are on.
    """
    tables = [*contracts_of("warehouse"), profile_contract(load_declaration())]
    tables += [table for feed in feeds for table in tables_of(feed)]
    return [
        *(_landed_records(source) for source in (*contracts_of("sources"), *feeds)),
        _built_events(),
        *(_table(table) for table in tables if table.name not in LEDGERS),
    ]


def _landed_records(source: Contract) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["lake", source.name])
    rules = _rules_of_records(source)

    @asset_checks(specs=rule_specs(key, rules), name=f"records_of_{source.name}")
    def landed_records(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        from profilehouse.quality.gx import check_table  # noqa: PLC0415

        lake = platform.lake()
        there = list(lake.days(source.name))
        days = days_looked_at(context, there) if is_daily_log(source) else None
        rows = landed_and_held(source, lake, days)
        held = {rule.name for rule in holding_rules(source)}
        for result in check_table(source, rules, rows, keys=("delivered_on", "line")):
            yield reported(key, _of_held(result) if result.name in held else result)

    return landed_records


def _rules_of_records(source: Contract) -> list[Rule]:
    """A key delivered twice is only worth a warning: facts and dimensions keep one of the two."""
    return [
        replace(rule, severity="warning") if isinstance(rule.test, Unique) else rule
        for rule in row_rules(source, within=("delivered_on",))
    ]


def _of_held(result: CheckResult) -> CheckResult:
    """What a failure means whose rows are held back: nothing downstream has them.

    So it warns; if the rule holds back all rows, the source has changed, and nothing may go on.
    """
    if result.passed or result.failing == result.total:
        return result
    return replace(
        result,
        severity="warning",
        observed=f"{result.observed}; these are held back",
        remedy=f"Fix them with `profilehouse quarantine`. {result.remedy}",
    )


def _built_events() -> dg.AssetChecksDefinition:
    events = contract("events")
    key = dg.AssetKey(["lake", events.name])
    rules = row_rules(events)
    read = sorted({*events.primary_key, *(name for rule in rules for name in rule.columns)})

    @asset_checks(specs=rule_specs(key, rules), name="rows_of_events")
    def rows_of_events(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        lake = platform.lake()
        days = days_looked_at(context, lake.days(events.name))
        rows = lake.read(events.name, columns=read, days=days)
        with arrow_source({events.name: rows}) as source:
            for result in check_rows(events, rules, source):
                yield reported(key, result)

    return rows_of_events


def _table(table: Contract) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", table.name])
    rules = row_rules(table)
    default = statements.DELIVERED if table.kind == "feed_tables" else ()
    position = POSITIONS.get(table.name, default)
    columns = spec(key, COLUMNS, f"{table.name} has the columns of its contract", "error")

    @asset_checks(specs=[columns, *rule_specs(key, rules)], name=f"rows_of_{table.name}", pool=POOL)
    def rows_of_table(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        with platform.warehouse() as warehouse:
            found = warehouse.schema_of(table.name)
            if warehouse.dialect == "snowflake":
                results = _pushed_down(table, rules, warehouse, platform, position)
            else:
                results = check_rows(table, rules, warehouse, keys=position)
        for result in [schema_difference(table, found), *results]:
            yield reported(key, result)

    return rows_of_table


def _pushed_down(
    table: Contract,
    rules: Sequence[Rule],
    warehouse: Warehouse,
    platform: Platform,
    keys: Sequence[str],
) -> list[CheckResult]:
    from profilehouse.quality.gx import check_snowflake  # noqa: PLC0415

    return check_snowflake(table, rules, warehouse, platform.settings, keys)
