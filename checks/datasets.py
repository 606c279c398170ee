"""Datasets as a whole: what contracts say of null shares, volume, freshness and other datasets."""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import date, datetime

import dagster as dg

from assets.warehouse import POOL
from checks._common import asset_checks, days_of_run, reported, rule_specs
from profilehouse.contract_quality import Reconciliation
from profilehouse.contracts import Contract, contracts_of
from profilehouse.errors import ProfilehouseError
from profilehouse.platform import Platform
from profilehouse.quality.access import dataset, opened
from profilehouse.quality.datasets import check_dataset
from profilehouse.quality.rules import DatasetRule, dataset_rules
from profilehouse.quality.sql import Source
from profilehouse.sources.deliveries import close_of
from profilehouse.sources.feeds import tables_of
from profilehouse.times import utc_now


def dataset_checks(feeds: Collection[Contract] = ()) -> list[dg.AssetChecksDefinition]:
    """For each source and table of the warehouse whose contract has such rules.

    Args:
        feeds: the optional sources that are on.
    """
    sources = (*contracts_of("sources"), *feeds)
    tables = (*contracts_of("warehouse"), *(t for feed in feeds for t in tables_of(feed)))
    return [
        *(_source(source) for source in sources if dataset_rules(source)),
        *(_table(table) for table in tables if dataset_rules(table)),
    ]


def _source(source: Contract) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["lake", source.name])
    rules = dataset_rules(source)

    @asset_checks(specs=_specs(key, rules), name=f"whole_of_{source.name}")
    def whole_of_source(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        days = days_of_run(context)

        def other(name: str) -> AbstractContextManager[Source]:
            return opened(platform, name)

        with opened(platform, source.name, days or None) as rows:
            for result in check_dataset(source, rules, rows, other, _as_of(days, platform), days):
                yield reported(key, result)

    return whole_of_source


def _table(table: Contract) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", table.name])
    rules = dataset_rules(table)

    @asset_checks(specs=_specs(key, rules), name=f"whole_of_{table.name}", pool=POOL)
    def whole_of_table(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        days = days_of_run(context)
        with platform.warehouse() as warehouse:

            def other(name: str) -> AbstractContextManager[Source]:
                # The warehouse is open already, and DuckDB opens once.
                in_it = dataset(name).kind == "warehouse"
                return nullcontext(warehouse) if in_it else opened(platform, name)

            now = _as_of(days, platform)
            for result in check_dataset(table, rules, warehouse, other, now, days):
                yield reported(key, result)

    return whole_of_table


def _specs(key: dg.AssetKey, rules: Collection[DatasetRule]) -> list[dg.AssetCheckSpec]:
    """The checks; they wait for the datasets that theirs is reconciled with.

    Raises:
        ProfilehouseError: where a source is reconciled with the warehouse, which comes after it.
    """
    names = {rule.demand.dataset for rule in rules if isinstance(rule.demand, Reconciliation)}
    others = [dataset(name) for name in sorted(names)]
    for other in others:
        if other.kind == "warehouse" and key.path[0] == "lake":
            raise ProfilehouseError(
                f"{key.path[-1]} is reconciled with {other.name} of the warehouse; say that in the"
                f" contract of {other.name}, which is loaded later"
            )
    deps = [dg.AssetKey(["warehouse" if o.kind == "warehouse" else "lake", o.name]) for o in others]
    return rule_specs(key, rules, *deps)


def _as_of(days: Collection[date], platform: Platform) -> datetime:
    """What a run for some days finds is as old as it was when they closed."""
    if days:
        return close_of(max(days), platform.settings.zone)
    return utc_now()
