"""Anomaly: delivery days unlike those before them, by metrics whose history the warehouse keeps.

A day that the business zone has no delivery of (a holiday) has zeros and counts as such.
"""

from collections.abc import Collection, Iterator
from datetime import date

import dagster as dg

from assets.warehouse import POOL
from checks._common import asset_checks, days_of_run, reported, rule_specs, spec
from profilehouse.contracts import Contract, contract, contracts_of
from profilehouse.errors import ProfilehouseError
from profilehouse.platform import Platform
from profilehouse.quality.anomaly import judge_daily
from profilehouse.quality.metrics import Measured, Metric, keep, measure, read
from profilehouse.quality.rules import history_rules
from profilehouse.quality.usual import EVERY_METRIC, check_all, check_rule
from profilehouse.warehouse import Warehouse
from profilehouse.warehouse.load import loaded_days

RECORDS = "daily_records_are_usual"
LOGS = ("purchases", "events")
"""Tables of the lake with records on every ordinary day; the other sources deliver now and then."""


def anomaly_checks() -> list[dg.AssetChecksDefinition]:
    """For each log its records a day; for each fact its contract's rules, and every metric."""
    tables = [table for table in contracts_of("warehouse") if history_rules(table)]
    return [*map(_landed, LOGS), *map(_measured, tables)]


def _landed(topic: str) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["lake", topic])
    what = f"records of {topic} a delivery day"
    specs = [spec(key, RECORDS, f"The newest day's {what} are as before", "warning")]

    @asset_checks(specs=specs, name=f"days_unlike_others_in_{topic}")
    def days_unlike_others(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        rows = platform.lake().read("deliveries", columns=["delivered_on", "records"], topic=topic)
        days, records = (column.to_pylist() for column in rows.columns)
        series = dict(zip(days, map(float, records), strict=True))
        known = {one.partition: one.reason for one in contract(topic).incidents}
        day = _day_judged(context, series)
        result = judge_daily(series, day=day, incidents=known.keys()).result(
            RECORDS,
            what,
            f"See whether the files of that day are whole and {topic} holds them once; if the day"
            f" was unusual in fact, say so under incidents in the contract of {topic}",
            acknowledged=known.get(day),
        )
        yield reported(key, result)

    return days_unlike_others


def _measured(table: Contract) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", table.name])
    rules = history_rules(table)
    every = f"Every metric of a delivery day of {table.name} is as its history lets expect"
    specs = [*rule_specs(key, rules), spec(key, EVERY_METRIC, every, "warning")]

    @asset_checks(specs=specs, name=f"days_unlike_others_in_{table.name}", pool=POOL)
    def days_unlike_others(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        with platform.warehouse() as warehouse:
            loaded = loaded_days(warehouse, table.name)
            day = _day_judged(context, loaded)
            measured = _up_to_date(warehouse, table, loaded, days_of_run(context))
        for rule in rules:
            yield reported(key, check_rule(rule, measured, day, table.incidents))
        remedy = f"See what the deliveries of that day have in common that {table.name} shows"
        yield reported(key, check_all(measured, day, remedy, table.incidents))

    return days_unlike_others


def _up_to_date(
    warehouse: Warehouse, table: Contract, loaded: Collection[date], asked: Collection[date]
) -> Measured:
    """The history, with the run's days measured again (all days, where it is for none)."""
    history = read(warehouse, table.name)
    missing = set(loaded) - history.get(Metric("rows"), {}).keys()
    days = (set(asked) & set(loaded) or set(loaded)) | missing
    fresh = measure(warehouse, table, days, history)
    keep(warehouse, table.name, fresh, days)
    for metric, series in history.items():
        old = {day: number for day, number in series.items() if day in set(loaded) - days}
        fresh[metric] = old | fresh.get(metric, {})
    return fresh


def _day_judged(context: dg.AssetCheckExecutionContext, there: Collection[date]) -> date:
    """The newest of the run's days, or of all where it is for none."""
    days = set(days_of_run(context)) & set(there) or set(there)
    if not days:
        raise ProfilehouseError("there is no day to judge yet: load some first")
    return max(days)
