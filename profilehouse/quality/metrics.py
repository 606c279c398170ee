"""Metrics of a table's rows by delivery day, and their history in the table metric_history.

Belongs here: measuring with SQL, keeping and reading. Does not belong here: what is unusual
(anomaly.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from profilehouse.contract_quality import MetricName, Usual
from profilehouse.contracts import Column, Contract, contract
from profilehouse.quality.anomaly import Floor, of_count, of_share, of_size
from profilehouse.quality.rules import history_rules
from profilehouse.quality.sql import Source
from profilehouse.warehouse import Warehouse

HISTORY = "metric_history"
DAY = "delivered_on"
POSITION = (DAY, "received_at", "topic", "line")
"""Columns of how a row came, which say nothing of it."""
LEAST_ROWS = 100
"""Rows below which a day says nothing about shares, means and quantiles."""
LEAST_PERCENT = 1.0
"""Share of the rows measured that a value must have to be followed."""
QUANTILES: Mapping[MetricName, float] = {"p05": 0.05, "median": 0.5, "p95": 0.95}
COUNTS: tuple[MetricName, ...] = ("rows", "sum", "distinct")
"""What a day without rows has 0 of."""


@dataclass(frozen=True, order=True)
class Metric:
    """One number a day: of the rows, of a column, or of the rows with a value of a column."""

    name: MetricName
    column: str = ""
    value: str = ""

    def __str__(self) -> str:
        """In words, for people."""
        of = f"{self.column} {self.value}".strip()
        return f"{self.name} of {of}" if of else self.name


Measured = dict[Metric, dict[date, float]]
"""Each metric by delivery day; a day that is not there is unknown."""


def measure(
    source: Source,
    table: Contract,
    days: Collection[date],
    known: Collection[Metric] = (),
) -> Measured:
    """Measure the rows of some delivery days.

    Volume; of each column the share of nulls and the distinct values; of numbers sum, mean and
    quantiles (nearest rank); of timestamps the rows by hour; of columns with a set of values, and
    of those that a rule names, the rows by value; the mean lateness.

    Args:
        source: where the table is.
        table: its contract; it has the column delivered_on.
        days: that are loaded, at least one; a day without rows has zeros.
        known: metrics of values that are followed already: they are 0 where a day lacks the value.
    """
    found: Measured = {}
    columns = [
        c for c in table.columns if c.name not in POSITION and c.name not in table.primary_key
    ]
    _scalars(source, table, columns, days, found)
    for column in columns:
        if column.type in ("integer", "number"):
            _quantiles(source, table, column.name, days, found)
    rows = found[Metric("rows")]
    for column in columns:
        if column.type == "timestamp":
            hour = f"CAST(EXTRACT(HOUR FROM {column.name}) AS VARCHAR)"
            _shares(source, table, column.name, hour, rows, known, found)
        elif column.name in _followed(table):
            _shares(source, table, column.name, column.name, rows, known, found)
    return found


def keep(warehouse: Warehouse, table: str, measured: Measured, days: Collection[date]) -> None:
    """Replace what the history has of these days of a table."""
    history = contract(HISTORY)
    rows = [
        (table, day, metric.name, metric.column, metric.value, number)
        for metric, series in measured.items()
        for day, number in series.items()
    ]
    schema = pa.schema([field.with_nullable(True) for field in history.arrow_schema])
    columns = zip(*rows, strict=True) if rows else [[] for _ in schema]
    staged = pa.table([list(column) for column in columns], schema=schema)
    warehouse.create(history)
    warehouse.stage(staged.to_batches(), schema)
    names = ", ".join(schema.names)
    ordered = sorted(days)
    with warehouse.transaction():
        warehouse.execute(
            f"DELETE FROM {HISTORY} WHERE table_name = ?"  # noqa: S608
            f" AND delivered_on IN ({', '.join('?' * len(ordered))})",
            (table, *ordered),
        )
        warehouse.execute(f"INSERT INTO {HISTORY} ({names}) SELECT {names} FROM staged")  # noqa: S608


def read(warehouse: Warehouse, table: str) -> Measured:
    """The history of a table, empty where there is none."""
    if not warehouse.columns(HISTORY):
        return {}
    rows = warehouse.query(
        f"SELECT metric, column_name, column_value, delivered_on, measured FROM {HISTORY}"  # noqa: S608
        " WHERE table_name = ?",
        (table,),
    )
    measured: Measured = {}
    for name, column, value, day, number in zip(
        *(c.to_pylist() for c in rows.columns), strict=True
    ):
        measured.setdefault(Metric(name, column, value), {})[day] = number
    return measured


def asked_for(demand: Usual, measured: Measured) -> list[Metric]:
    """The metrics that a rule is about, in order."""
    return sorted(
        metric
        for metric in measured
        if (metric.name, metric.column) == (demand.metric, demand.column or "")
        and (
            metric.value == demand.value
            if demand.value is not None
            else bool(metric.value) == (demand.column is not None and demand.metric in _BY_VALUE)
        )
    )


def judged_numbers(metric: Metric, measured: Measured) -> dict[date, float]:
    """What is judged of a metric: of shares, means and quantiles only days with enough rows."""
    series = measured[metric]
    if metric.name in COUNTS:
        return series
    rows = measured[Metric("rows")]
    return {day: number for day, number in series.items() if rows.get(day, 0) >= LEAST_ROWS}


def floor_of(metric: Metric, measured: Measured, day: date, least: float | None = None) -> Floor:
    """The difference from the expected number that is always normal on a day."""
    if least is not None:
        return lambda _: least
    if metric.name in ("percent", "null_percent"):
        return of_share(int(measured[Metric("rows")].get(day, 0)))
    if metric.name in ("rows", "distinct"):
        return of_count
    if metric.name == "sum":
        return of_size(0.0)
    large = [n for at, n in measured.get(Metric("p95", metric.column), {}).items() if at < day]
    return of_size(float(np.median(large)) if large else 0.0)


_BY_VALUE = ("rows", "percent")
_WITHIN = f"{DAY} >= ? AND {DAY} <= ?"


def _followed(table: Contract) -> set[str]:
    """Columns whose values are counted one by one."""
    asked = {rule.demand.column for rule in history_rules(table) if rule.demand.metric in _BY_VALUE}
    return {column.name for column in table.columns if column.values or column.name in asked}


def _scalars(
    source: Source,
    table: Contract,
    columns: Sequence[Column],
    days: Collection[date],
    found: Measured,
) -> None:
    wanted: dict[Metric, str] = {Metric("rows"): "COUNT(*)"}
    for column in columns:
        name = column.name
        if not column.required:
            wanted[Metric("null_percent", name)] = f"100.0 * (COUNT(*) - COUNT({name})) / COUNT(*)"
        if column.type == "string":
            wanted[Metric("distinct", name)] = f"COUNT(DISTINCT {name})"
        if column.type in ("integer", "number"):
            wanted[Metric("sum", name)] = f"SUM({name})"
            wanted[Metric("mean", name)] = f"AVG({name})"
    names = [column.name for column in table.columns]
    if "occurred_at" in names and "received_at" in names:
        wanted[Metric("lateness_hours")] = "AVG(DATEDIFF(MINUTE, occurred_at, received_at)) / 60.0"
    numbers = ", ".join(f"{sql} AS number_{n}" for n, sql in enumerate(wanted.values()))
    rows = source.query(
        f"SELECT {DAY}, {numbers} FROM {table.name} WHERE {_WITHIN} GROUP BY {DAY}",  # noqa: S608
        (min(days), max(days)),
    )
    for n, metric in enumerate(wanted):
        series = found.setdefault(metric, {})
        if metric.name in COUNTS:
            series.update(dict.fromkeys(days, 0.0))
        series.update(_numbers(rows, f"number_{n}", days))


def _quantiles(
    source: Source, table: Contract, column: str, days: Collection[date], found: Measured
) -> None:
    ranked = (
        f"SELECT {DAY}, {column},"  # noqa: S608
        f" ROW_NUMBER() OVER (PARTITION BY {DAY} ORDER BY {column}) AS place,"
        f" COUNT(*) OVER (PARTITION BY {DAY}) AS places FROM {table.name}"
        f" WHERE {column} IS NOT NULL AND {_WITHIN}"
    )
    numbers = ", ".join(
        f"MAX(CASE WHEN place = CEIL({share} * places) THEN {column} END) AS {name}"
        for name, share in QUANTILES.items()
    )
    rows = source.query(
        f"SELECT {DAY}, {numbers} FROM ({ranked}) AS ranked GROUP BY {DAY}",  # noqa: S608
        (min(days), max(days)),
    )
    for name in QUANTILES:
        found[Metric(name, column)] = dict(_numbers(rows, name, days))


def _shares(
    source: Source,
    table: Contract,
    column: str,
    value: str,
    rows: Mapping[date, float],
    known: Collection[Metric],
    found: Measured,
) -> None:
    counted = source.query(
        f"SELECT {DAY}, {value} AS part, COUNT(*) AS found FROM {table.name}"  # noqa: S608
        f" WHERE {column} IS NOT NULL AND {_WITHIN} GROUP BY 1, 2",
        (min(rows), max(rows)),
    ).to_pylist()
    counts: dict[str, dict[date, float]] = {}
    for row in counted:
        if row[DAY] in rows:
            counts.setdefault(str(row["part"]), {})[row[DAY]] = float(row["found"])
    least = LEAST_PERCENT / 100 * sum(rows.values())
    parts = {part for part, by_day in counts.items() if sum(by_day.values()) >= least}
    parts |= {metric.value for metric in known if metric.column == column and metric.value}
    for part in sorted(parts):
        of_part = {day: counts.get(part, {}).get(day, 0.0) for day in rows}
        found[Metric("rows", column, part)] = of_part
        found[Metric("percent", column, part)] = {
            day: 100 * number / rows[day] for day, number in of_part.items() if rows[day]
        }


def _numbers(rows: pa.Table, name: str, days: Collection[date]) -> Iterator[tuple[date, float]]:
    wanted = set(days)
    values: list[Any] = rows.column(name).to_pylist()
    for day, value in zip(rows.column(DAY).to_pylist(), values, strict=True):
        if day in wanted and value is not None:
            yield day, float(value)
