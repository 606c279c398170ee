"""The quality section of a contract: its rules and silences, read from ODCS into values.

Does not belong here: what the properties of a column demand (contracts.py) or running rules
(quality/).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, get_args

from open_data_contract_standard.model import DataQuality

Severity = Literal["error", "warning"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning")
Measure = Literal["count", "sum", "keys"]
MEASURES: tuple[Measure, ...] = ("count", "sum", "keys")
MetricName = Literal[
    "rows", "sum", "distinct", "mean", "p05", "median", "p95", "null_percent", "percent",
    "lateness_hours",
]  # fmt: skip
METRICS: tuple[MetricName, ...] = get_args(MetricName)
DetectorName = Literal["automatic", "z_score", "iqr", "seasonal"]
DETECTORS: tuple[DetectorName, ...] = get_args(DetectorName)

_LAST_HOUR = 23
ENGINE = "profilehouse"
"""The `engine` of rules of `type: custom`."""


@dataclass(frozen=True)
class Expression:
    """Every row satisfies a boolean SQL expression in the Snowflake dialect; unknown passes."""

    sql: str


@dataclass(frozen=True)
class Distinct:
    """No two rows have the same values in these columns."""

    columns: tuple[str, ...]


@dataclass(frozen=True)
class Dependency:
    """Rows that agree in the determinant agree in the dependent column, as zip -> city."""

    determinant: tuple[str, ...]
    dependent: str


@dataclass(frozen=True)
class NullShare:
    """At most `percent` of the rows lack a value of the column."""

    column: str
    percent: float


@dataclass(frozen=True)
class Volume:
    """How many rows there are: in all, or for each value of the column `per`."""

    minimum: int | None
    maximum: int | None
    per: str | None = None


@dataclass(frozen=True)
class Freshness:
    """The newest value of a date or timestamp column is at most so many hours old."""

    column: str
    hours: float


@dataclass(frozen=True)
class BusyHours:
    """On every delivery day that has rows, each of these hours of the day (UTC) has some.

    For what never sleeps from `first` to `last`, both included: an hour without rows was lost.
    """

    column: str
    first: int
    last: int


@dataclass(frozen=True)
class Reconciliation:
    """A measure of this dataset is that of another one.

    Attributes:
        dataset: the other one's contract.
        measure: `count` of rows, `sum` of a column, or the set of `keys`.
        columns: what is summed, or the key: this dataset's column -> the other's.
        by: compare for each value of these: this dataset's column -> the other's. Not for keys.
        tolerance: in percent of the other dataset's number; of its keys, so many may differ.
        where: expression of the rows of this dataset that count; all of them where None.
        dataset_where: likewise of the other dataset.
    """

    dataset: str
    measure: Measure
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    by: Mapping[str, str] = field(default_factory=dict, hash=False)
    tolerance: float = 0.0
    where: str | None = None
    dataset_where: str | None = None


@dataclass(frozen=True)
class Usual:
    """A metric of each delivery day is as its history lets expect.

    Attributes:
        metric: which.
        column: of which column; of the rows where None.
        value: of the rows in which the column has this value (`rows`, `percent`), as text; of an
            hour of a timestamp, `18`. Where None, each value that a hundredth of the rows has.
        detector: that judges; `automatic` takes the one that suits the history.
        least: a difference up to this is always usual; by default what chance does to a count or
            a share, and a quarter of any other number.
    """

    metric: MetricName
    column: str | None = None
    value: str | None = None
    detector: DetectorName = "automatic"
    least: float | None = None


OfRows = Expression | Distinct | Dependency
"""What the rows decide, alone or by what they share."""
OfDataset = NullShare | Volume | Freshness | BusyHours | Reconciliation
OfHistory = Usual
"""What the days before decide."""
Demand = OfRows | OfDataset | OfHistory


@dataclass(frozen=True)
class QualityRule:
    """One rule of a quality section; its owner is the contract's where it names none."""

    name: str
    demand: Demand
    description: str
    severity: Severity
    owner: str | None = None


@dataclass(frozen=True)
class Silence:
    """Failing rows of one delivery day that a rule does not count, for a reason, for a time.

    Attributes:
        rule: name of any rule of the dataset, also of those that its columns make.
        partition: the delivery day.
        reason: why.
        until: the last day on which it holds.
    """

    rule: str
    partition: date
    reason: str
    until: date


@dataclass(frozen=True)
class Incident:
    """A delivery day known to be wrong or odd: it does not alarm, and teaches no detector."""

    partition: date
    reason: str


def quality_rules(
    of_table: Sequence[DataQuality], of_columns: Mapping[str, Sequence[DataQuality]]
) -> tuple[QualityRule, ...]:
    """The rules of a dataset and of its columns.

    Raises:
        ValueError: naming the rule and what it must hold.
    """
    return (
        *(_rule(rule, None) for rule in of_table),
        *(_rule(rule, column) for column, rules in of_columns.items() for rule in rules),
    )


def silences(declared: object) -> tuple[Silence, ...]:
    """Silences as a contract declares them in its custom property of that name.

    Raises:
        ValueError: where one lacks something.
    """
    fields = {"rule": str, "partition": date, "reason": str, "until": date}
    return tuple(Silence(**item) for item in _items("silences", declared, fields))


def incidents(declared: object) -> tuple[Incident, ...]:
    """Incidents as a contract declares them in its custom property of that name.

    Raises:
        ValueError: where one lacks something.
    """
    fields = {"partition": date, "reason": str}
    return tuple(Incident(**item) for item in _items("incidents", declared, fields))


def _items(what: str, declared: object, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    if declared is None:
        return []
    if not isinstance(declared, list):
        raise ValueError(f"{what}: must be a list")
    for item in declared:
        if not isinstance(item, dict) or item.keys() != fields.keys():
            raise ValueError(f"{what}: each has exactly {', '.join(fields)}")
        for name, kind in fields.items():
            if type(item[name]) is not kind or not item[name]:
                wanted = "a day as 2026-01-31" if kind is date else "a text"
                raise ValueError(f"{what}: {name} is {item[name]!r}; it must be {wanted}")
    return declared


def _rule(rule: DataQuality, column: str | None) -> QualityRule:
    place = f"quality rule {rule.name!r}"
    if not rule.name or not rule.name.isidentifier() or not rule.description:
        raise ValueError(
            f"{place}: needs a description and a name of letters, digits and underscores"
        )
    severity = rule.severity or "error"
    if severity not in SEVERITIES:
        raise ValueError(f"{place}: severity must be one of {SEVERITIES}")
    owners = [p.value for p in rule.customProperties or [] if p.property == "owner"]
    try:
        demand = _demand(rule, column)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return QualityRule(
        name=rule.name,
        demand=demand,
        description=" ".join(rule.description.split()),
        severity=severity,
        owner=str(owners[0]) if owners else None,
    )


def _demand(rule: DataQuality, column: str | None) -> Demand:
    match rule.type, rule.metric:
        case "library", "nullValues" if column:
            return _null_share(rule, column)
        case _ if column:
            raise ValueError("of a property it must be type: library with metric: nullValues")
        case "sql", _ if rule.query:
            return Expression(rule.query)
        case "library", "rowCount":
            return _volume(rule)
        case "library", "duplicateValues":
            return Distinct(_distinct(rule))
        case "custom", _ if rule.engine == ENGINE and isinstance(rule.implementation, dict):
            return _custom(rule.implementation)
    raise ValueError(
        "must be type: sql with a query, type: library with metric rowCount or duplicateValues,"
        f" or type: custom with engine: {ENGINE} and an implementation"
    )


def _distinct(rule: DataQuality) -> tuple[str, ...]:
    columns = (rule.arguments or {}).get("properties", ())
    if rule.mustBe != 0 or not _names(columns):
        raise ValueError("duplicateValues needs mustBe: 0 and arguments: {properties: [columns]}")
    return tuple(columns)


def _null_share(rule: DataQuality, column: str) -> NullShare:
    most = rule.mustBeLessOrEqualTo
    if rule.unit != "percent" or most is None or not 0 <= most <= 100:  # noqa: PLR2004
        raise ValueError("nullValues needs unit: percent and mustBeLessOrEqualTo, 0 to 100")
    return NullShare(column, float(most))


def _volume(rule: DataQuality) -> Volume:
    arguments = rule.arguments or {}
    low, high = rule.mustBeBetween or (rule.mustBeGreaterOrEqualTo, rule.mustBeLessOrEqualTo)
    bounds = [bound for bound in (low, high) if bound is not None]
    if not bounds or any(b != int(b) or b < 0 for b in bounds) or bounds != sorted(bounds):
        raise ValueError(
            "rowCount needs mustBeBetween, mustBeGreaterOrEqualTo or mustBeLessOrEqualTo,"
            " whole numbers from 0 on"
        )
    if arguments.keys() - {"per"}:
        raise ValueError("rowCount takes the argument per, a column, and no other")
    return Volume(
        None if low is None else int(low), None if high is None else int(high), arguments.get("per")
    )


def _custom(implementation: Mapping[str, Any]) -> Demand:
    match [*implementation.items()]:
        case [("functionalDependency", {"determinant": determinant, "dependent": str(to), **rest})]:
            if _names(determinant) and not rest:
                return Dependency(tuple(determinant), to)
        case [("freshness", {"column": str(column), "hours": int() | float() as hours, **rest})]:
            if math.isfinite(hours) and hours > 0 and not rest:
                return Freshness(column, float(hours))
        case [
            ("busyHours", {"column": str(column), "first": int(first), "last": int(last), **rest})
        ]:
            if 0 <= first <= last <= _LAST_HOUR and not rest:
                return BusyHours(column, first, last)
        case [("usual", {"metric": metric, **rest})]:
            return _usual(metric, {str(k): v for k, v in rest.items()})
        case [("reconcile", {"dataset": str(dataset), "measure": measure, **rest})]:
            return _reconciliation(dataset, measure, {str(k): v for k, v in rest.items()})
    raise ValueError(
        "implementation must be one of functionalDependency: {determinant: [columns], dependent:"
        " column}, freshness: {column, hours}, busyHours: {column, first, last},"
        " usual: {metric, ...}, reconcile: {dataset, measure, ...}"
    )


def _usual(metric: object, rest: Mapping[str, Any]) -> Usual:
    known = {"column", "value", "detector", "least"}
    if unknown := sorted(rest.keys() - known):
        raise ValueError(f"usual: unknown {', '.join(unknown)}; known are {sorted(known)}")
    if metric not in METRICS:
        raise ValueError(f"usual: metric is {metric!r}; it must be one of {METRICS}")
    column, value = rest.get("column"), rest.get("value")
    if metric not in ("rows", "lateness_hours") and not isinstance(column, str):
        raise ValueError(f"usual: the metric {metric} needs a column")
    if value is not None and (column is None or metric not in ("rows", "percent")):
        raise ValueError("usual: a value is for rows or percent of a column")
    if metric == "lateness_hours" and column is not None:
        raise ValueError("usual: lateness_hours is of the rows and takes no column")
    detector, least = rest.get("detector", "automatic"), rest.get("least")
    if detector not in DETECTORS:
        raise ValueError(f"usual: detector is {detector!r}; it must be one of {DETECTORS}")
    if least is not None and (not isinstance(least, int | float) or not least >= 0):
        raise ValueError(f"usual: least is {least!r}; it must be a number from 0 on")
    return Usual(metric, column, None if value is None else str(value), detector, least)


def _reconciliation(dataset: str, measure: object, rest: Mapping[str, Any]) -> Reconciliation:
    known = {"columns", "by", "tolerancePercent", "where", "datasetWhere"}
    if unknown := sorted(rest.keys() - known):
        raise ValueError(f"reconcile: unknown {', '.join(unknown)}; known are {sorted(known)}")
    if measure not in MEASURES:
        raise ValueError(f"reconcile: measure must be one of {MEASURES}")
    columns, by = rest.get("columns") or {}, rest.get("by") or {}
    for name, pairs in (("columns", columns), ("by", by)):
        if not isinstance(pairs, dict) or not all(
            isinstance(text, str) for pair in pairs.items() for text in pair
        ):
            raise ValueError(f"reconcile: {name} must map this dataset's columns to the other's")
    wanted = {"count": len(columns) == 0, "sum": len(columns) == 1, "keys": columns and not by}
    if not wanted[measure]:
        raise ValueError(
            "reconcile: count takes no columns, sum takes one, keys take some and no `by`"
        )
    tolerance = rest.get("tolerancePercent", 0)
    if not isinstance(tolerance, int | float) or not 0 <= tolerance <= 100:  # noqa: PLR2004
        raise ValueError("reconcile: tolerancePercent must be a number from 0 to 100")
    return Reconciliation(
        dataset=dataset,
        measure=measure,
        columns=columns,
        by=by,
        tolerance=float(tolerance),
        where=rest.get("where"),
        dataset_where=rest.get("datasetWhere"),
    )


def _names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)
