"""What checks share: a result of the engine as Dagster shows it, and the days a check looks at."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import date, timedelta
from functools import wraps
from typing import Any

import dagster as dg

from profilehouse.contracts import Severity
from profilehouse.errors import ProfilehouseError
from profilehouse.platform import Platform
from profilehouse.profiles.agreement import Agreement
from profilehouse.quality.result import CheckResult, sample_of
from profilehouse.quality.rules import DatasetRule, HistoryRule, Rule
from profilehouse.quality.sql import Reference

SEVERITIES: dict[Severity, dg.AssetCheckSeverity] = {
    "error": dg.AssetCheckSeverity.ERROR,
    "warning": dg.AssetCheckSeverity.WARN,
}


def spec(
    key: dg.AssetKey,
    name: str,
    description: str,
    severity: Severity,
    *deps: dg.AssetKey,
    blocking: bool = True,
) -> dg.AssetCheckSpec:
    """A check as the UI lists it; a failing one of severity error stops what is downstream.

    Args:
        blocking: False where even an error stops nothing.
    """
    return dg.AssetCheckSpec(
        name,
        asset=key,
        description=f"{description}.",
        blocking=blocking and severity == "error",
        additional_deps=deps or None,
    )


def asset_checks(
    specs: Sequence[dg.AssetCheckSpec], name: str, pool: str | None = None
) -> Callable[[Callable[..., Iterator[dg.AssetCheckResult]]], dg.AssetChecksDefinition]:
    """A step that runs checks, each of which says something: one that is silent or crashes fails.

    Dagster leaves a check that yields nothing as it was, which looks like a pass. The platform that
    a check gets says what it works for.

    Args:
        specs: of the checks.
        name: of the step.
        pool: whose slot it takes.
    """

    def decorate(
        check: Callable[..., Iterator[dg.AssetCheckResult]],
    ) -> dg.AssetChecksDefinition:
        @wraps(check)
        def each_says_something(*args: Any, **kwargs: Any) -> Iterator[dg.AssetCheckResult]:
            silent = dict.fromkeys((spec.asset_key, spec.name) for spec in specs)
            problem: Exception = ProfilehouseError("it said nothing; mend the check")
            run = dg.AssetCheckExecutionContext.get().run
            at_work = {
                key: value.at_work(run_id=run.run_id, checks=name)
                for key, value in kwargs.items()
                if isinstance(value, Platform)
            }
            try:
                for result in check(*args, **kwargs | at_work):
                    if result.asset_key and result.check_name:
                        silent.pop((result.asset_key, result.check_name), None)
                    yield result
            except Exception as error:
                dg.get_dagster_logger().exception(f"checks of {name} crashed")
                problem = error
            for key, check_name in silent:
                yield reported(key, cannot_run(check_name, problem))

        return dg.multi_asset_check(specs=specs, name=name, pool=pool)(each_says_something)

    return decorate


def cannot_run(name: str, error: Exception) -> CheckResult:
    """The failure of a check that could not look."""
    if isinstance(error, ProfilehouseError):
        what, _, remedy = str(error).rpartition("; ")
    else:
        what, remedy = f"{type(error).__name__}: {' '.join(str(error).split())}", ""
    return CheckResult(
        name=name,
        state="failed",
        severity="error",
        description="the check can look",
        expected="the check can look",
        observed=f"the check could not run: {what or remedy}",
        failing=1,
        total=1,
        remedy=(remedy if what else "") or "Mend that, then run the check again",
    )


def rule_specs(
    key: dg.AssetKey,
    rules: Collection[Rule | DatasetRule | HistoryRule | Reference],
    *deps: dg.AssetKey,
) -> list[dg.AssetCheckSpec]:
    """The checks of rules or references of one asset."""
    return [
        spec(
            key,
            rule.name,
            rule.description
            if isinstance(rule, Rule | DatasetRule | HistoryRule)
            else f"Every {rule.column} is a {rule.target} of {rule.table}",
            rule.severity,
            *deps,
        )
        for rule in rules
    ]


def reported(key: dg.AssetKey, result: CheckResult) -> dg.AssetCheckResult:
    """What a check found: numbers on top, so that the UI plots them, then words and a sample."""
    metadata: dict[str, dg.MetadataValue] = {
        name: dg.MetadataValue.float(float(value)) for name, value in result.numbers.items()
    }
    metadata |= {
        "failing": dg.MetadataValue.int(result.failing),
        "total": dg.MetadataValue.int(result.total),
        "expected": dg.MetadataValue.text(result.expected),
        "observed": dg.MetadataValue.text(result.observed),
    }
    if result.chart:
        metadata["recent"] = dg.MetadataValue.text(result.chart)
    if result.state not in ("passed", "failed"):
        metadata["state"] = dg.MetadataValue.text(result.state)
    if result.sample:
        columns = list(dict.fromkeys(name for row in result.sample for name in row))
        metadata["sample"] = dg.MetadataValue.table(
            records=[
                dg.TableRecord({name: row.get(name, "") for name in columns})
                for row in result.sample
            ],
            schema=dg.TableSchema([dg.TableColumn(name) for name in columns]),
        )
    if not result.passed:
        metadata["what to do"] = dg.MetadataValue.text(result.remedy)
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=result.name,
        passed=result.passed,
        severity=SEVERITIES[result.severity],
        description=result.observed
        if result.passed
        else f"{result.observed}. To do: {result.remedy}.",
        metadata=metadata,
    )


def differing_profiles(agreement: Agreement) -> tuple[Mapping[str, str], ...]:
    """The first users and columns in which store and warehouse differ, the users masked."""
    return sample_of(
        (
            {
                "user_key": difference.user_key,
                "column": difference.column,
                "store": difference.store,
                "warehouse": difference.warehouse,
            }
            for difference in agreement.sample
        ),
        ("user_key",),
    )


def days_between(first: date, last: date) -> list[date]:
    """The days from the first to the last, both included."""
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def days_of_run(context: dg.AssetCheckExecutionContext) -> list[date]:
    """The run's delivery days; none where it is for no day."""
    tags = context.run.tags
    first = tags.get("dagster/asset_partition_range_start") or tags.get("dagster/partition")
    last = tags.get("dagster/asset_partition_range_end") or first
    if first is None or last is None:
        return []
    return days_between(date.fromisoformat(first), date.fromisoformat(last))


def days_looked_at(context: dg.AssetCheckExecutionContext, landed: Collection[date]) -> list[date]:
    """The run's delivery days, or the newest landed one where the run is for no day."""
    return days_of_run(context) or sorted(landed)[-1:]
