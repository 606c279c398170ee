"""Rules on a dataset as a whole: null shares, volume, freshness, hours, other datasets.

Belongs here: running them with SQL. Does not belong here: row rules (sql.py, gx.py), what is
unusual (anomaly.py), or where a dataset is (access.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import date, datetime, time, timedelta
from typing import Any

import pyarrow as pa

from profilehouse.contract_quality import BusyHours, Freshness, NullShare, Reconciliation, Volume
from profilehouse.contracts import Contract
from profilehouse.quality.result import SAMPLE_SIZE, CheckResult, percent, sample_of
from profilehouse.quality.rules import DatasetRule
from profilehouse.quality.sql import PARTITION, Source, arrow_source, type_name

Open = Callable[[str], AbstractContextManager[Source]]
"""Opens another dataset by the name of its contract, under which it can then be asked."""
Group = tuple[Any, ...]

_HOUR = timedelta(hours=1)
_RELATIVE_ERROR = 1e-9
"""Sums of floating numbers may differ so much by the order of their rows."""


def check_dataset(
    contract: Contract,
    rules: Sequence[DatasetRule],
    source: Source,
    others: Open,
    now: datetime,
    days: Collection[date] = (),
) -> list[CheckResult]:
    """Run rules on a dataset as a whole.

    Args:
        contract: of the dataset.
        rules: of that contract.
        source: where the dataset is, under its contract's name.
        others: opens a dataset that it is reconciled with.
        now: UTC; freshness is the age of the newest value then.
        days: delivery days that must be there: a volume for each day is 0 where one is not.

    Returns:
        One result a rule, in their order.
    """
    results = []
    for rule in rules:
        match rule.demand:
            case NullShare():
                result = _null_share(contract, rule, rule.demand, source)
            case Volume():
                result = _volume(contract, rule, rule.demand, source, days)
            case Freshness():
                result = _freshness(contract, rule, rule.demand, source, now)
            case BusyHours():
                result = _busy_hours(contract, rule, rule.demand, source)
            case Reconciliation():
                with others(rule.demand.dataset) as other:
                    result = _reconciled(contract, rule, rule.demand, source, other)
        results.append(result)
    return results


def _null_share(
    contract: Contract, rule: DatasetRule, demand: NullShare, source: Source
) -> CheckResult:
    value = _present(contract, demand.column)
    [row] = source.query(
        f"SELECT COUNT(*) AS total, COUNT({value}) AS present FROM {contract.name}"  # noqa: S608
    ).to_pylist()
    missing, total = row["total"] - row["present"], row["total"]
    share = percent(missing, total)
    return _result(
        rule,
        failed=missing * 100 > demand.percent * total,
        expected=f"at most {demand.percent:g} % of {demand.column} are null",
        observed=f"{missing:,} of {total:,} are null ({share:.4g} %)",
        failing=missing,
        total=total,
        numbers={"null_percent": share, "nulls": missing, "rows": total},
    )


def _volume(
    contract: Contract,
    rule: DatasetRule,
    demand: Volume,
    source: Source,
    days: Collection[date],
) -> CheckResult:
    per = demand.per
    group = "" if per is None else f" GROUP BY {per}"
    select = "" if per is None else f"{per} AS part, "
    counts: dict[Any, int] = {} if per is None else dict.fromkeys(days, 0)
    counted = source.query(f"SELECT {select}COUNT(*) AS found FROM {contract.name}{group}")  # noqa: S608
    counts |= {row.get("part"): row["found"] for row in counted.to_pylist()}
    low = 0 if demand.minimum is None else demand.minimum
    high = math.inf if demand.maximum is None else demand.maximum
    wrong = {part: found for part, found in counts.items() if not low <= found <= high}
    bounds = f"at least {low:,}" if math.isinf(high) else f"between {low:,} and {high:,}"
    where = "" if per is None else f" for each {per}"
    rows = sum(counts.values())
    return _result(
        rule,
        failed=bool(wrong),
        expected=f"{bounds} rows{where}",
        observed=f"{rows:,} rows"
        if per is None
        else f"{len(wrong):,} of {len(counts):,} {per} have another number of rows",
        failing=len(wrong),
        total=len(counts),
        sample=sample_of(
            (
                {per or "dataset": contract.name if per is None else part, "rows": found}
                for part, found in sorted(wrong.items(), key=lambda item: str(item[0]))
            ),
            _personal(contract),
        ),
        numbers={"rows": rows, "failing": len(wrong)},
    )


def _freshness(
    contract: Contract, rule: DatasetRule, demand: Freshness, source: Source, now: datetime
) -> CheckResult:
    found = source.query(f"SELECT MAX({demand.column}) AS newest FROM {contract.name}")  # noqa: S608
    newest = found["newest"][0].as_py()
    expected = f"{demand.column} at most {demand.hours:g} hours before {now:%Y-%m-%d %H:%M} UTC"
    if newest is None:
        return _result(
            rule,
            failed=True,
            expected=expected,
            observed="there is nothing",
            failing=1,
            total=1,
        )
    at = newest
    if not isinstance(newest, datetime):
        at = datetime.combine(newest + timedelta(days=1), time())
    hours = (now - at) / _HOUR
    return _result(
        rule,
        failed=hours > demand.hours,
        expected=expected,
        observed=f"the newest is {newest}, {max(hours, 0.0):,.1f} hours old",
        failing=int(hours > demand.hours),
        total=1,
        numbers={"age_hours": round(hours, 3)},
    )


def _busy_hours(
    contract: Contract, rule: DatasetRule, demand: BusyHours, source: Source
) -> CheckResult:
    known = source.schema_of(contract.name).names
    day = PARTITION if PARTITION in known else f"CAST({demand.column} AS DATE)"
    rows = source.query(
        f"SELECT {day} AS rows_day, EXTRACT(HOUR FROM {demand.column}) AS rows_hour"  # noqa: S608
        f" FROM {contract.name} WHERE {demand.column} IS NOT NULL GROUP BY 1, 2"
    ).to_pylist()
    there: dict[date, set[int]] = {}
    for row in rows:
        there.setdefault(row["rows_day"], set()).add(int(row["rows_hour"]))
    busy = range(demand.first, demand.last + 1)
    missing = [(at, hour) for at in sorted(there) for hour in busy if hour not in there[at]]
    return _result(
        rule,
        failed=bool(missing),
        expected=f"rows in each hour from {demand.first} to {demand.last} UTC of every day",
        observed=f"{len(missing):,} of {len(there) * len(busy):,} hours have no rows",
        failing=len(missing),
        total=len(there) * len(busy),
        sample=sample_of(({"day": at, "hour": f"{hour:02d}:00 UTC"} for at, hour in missing), ()),
        numbers={"missing_hours": len(missing), "days": len(there)},
    )


def _reconciled(
    contract: Contract, rule: DatasetRule, demand: Reconciliation, here: Source, there: Source
) -> CheckResult:
    if demand.measure == "keys":
        mine = _keys(here, contract.name, [*demand.columns], demand.where)
        theirs = _keys(there, demand.dataset, [*demand.columns.values()], demand.dataset_where)
        return _same_keys(contract, rule, demand, mine, theirs)
    observed = _numbers(here, contract.name, demand, demand.where, theirs=False)
    expected = _numbers(there, demand.dataset, demand, demand.dataset_where, theirs=True)
    return _same_numbers(contract, rule, demand, expected, observed)


def _keys(source: Source, table: str, columns: Sequence[str], where: str | None) -> pa.Table:
    """Distinct keys as text, so that a number here may be a text there."""
    names = ", ".join(f"CAST({name} AS VARCHAR) AS key_{i}" for i, name in enumerate(columns))
    complete = " AND ".join(f"{name} IS NOT NULL" for name in columns)
    return source.query(
        f"SELECT DISTINCT {names} FROM {table} WHERE {complete}{_and(where)}"  # noqa: S608
    )


def _same_keys(
    contract: Contract, rule: DatasetRule, demand: Reconciliation, mine: pa.Table, theirs: pa.Table
) -> CheckResult:
    names = ", ".join(mine.column_names)
    with arrow_source({"mine": mine, "theirs": theirs}) as both:
        only = "SELECT {0} FROM {1} EXCEPT SELECT {0} FROM {2} ORDER BY {0}"
        missing = both.query(only.format(names, "theirs", "mine"))
        extra = both.query(only.format(names, "mine", "theirs"))
    differing = missing.num_rows + extra.num_rows
    described = [(missing, "missing"), (extra, f"not in {demand.dataset}")]
    return _result(
        rule,
        failed=differing * 100 > demand.tolerance * theirs.num_rows,
        expected=f"the keys of {demand.dataset}{_tolerated(demand)}",
        observed=f"of {theirs.num_rows:,} keys {missing.num_rows:,} are missing, and"
        f" {extra.num_rows:,} are not in {demand.dataset}",
        failing=differing,
        total=max(theirs.num_rows, mine.num_rows),
        sample=sample_of(
            (
                dict(zip(demand.columns, row.values(), strict=True)) | {"is": what}
                for rows, what in described
                for row in rows.slice(0, SAMPLE_SIZE).to_pylist()
            ),
            _personal(contract),
        ),
        numbers={"missing": missing.num_rows, "unexpected": extra.num_rows},
    )


def _numbers(
    source: Source, table: str, demand: Reconciliation, where: str | None, *, theirs: bool
) -> dict[Group, float]:
    """The measure by group; of no group where there is no `by`."""

    def side(pairs: Mapping[str, str]) -> list[str]:
        return [*pairs.values()] if theirs else [*pairs]

    by = side(demand.by)
    schema = source.schema_of(table)
    number = "COUNT(*)"
    if demand.measure == "sum":
        [column] = side(demand.columns)
        number = f"COALESCE(SUM({column}), 0)"
        if type_name(schema.field(column).type) == "integer":
            number = f"CAST({number} AS BIGINT)"
    parts = "".join(f"{name}, " for name in by)
    group = f" GROUP BY {', '.join(by)}" if by else ""
    rows = source.query(
        f"SELECT {parts}{number} AS measured FROM {table} WHERE TRUE{_and(where)}{group}"  # noqa: S608
    ).to_pylist()
    return {tuple(row[name] for name in by): row["measured"] for row in rows}


def _same_numbers(
    contract: Contract,
    rule: DatasetRule,
    demand: Reconciliation,
    expected: Mapping[Group, float],
    observed: Mapping[Group, float],
) -> CheckResult:
    groups = sorted(expected.keys() | observed.keys(), key=lambda group: [str(v) for v in group])
    differing = [
        group
        for group in groups
        if not math.isclose(
            expected.get(group, 0),
            observed.get(group, 0),
            rel_tol=_RELATIVE_ERROR if isinstance(expected.get(group, 0), float) else 0,
            abs_tol=abs(expected.get(group, 0)) * demand.tolerance / 100,
        )
    ]
    by = ", ".join(demand.by)
    measure = (
        "count of rows" if demand.measure == "count" else f"sum of {', '.join(demand.columns)}"
    )
    totals = sum(observed.values()), sum(expected.values())
    return _result(
        rule,
        failed=bool(differing),
        expected=f"the {measure} of {demand.dataset}"
        + (f" for each {by}" if by else "")
        + _tolerated(demand),
        observed=f"{totals[0]:,} here, {totals[1]:,} in {demand.dataset}"
        + (f"; {len(differing):,} of {len(groups):,} {by} differ" if by else ""),
        failing=len(differing),
        total=len(groups),
        sample=sample_of(
            (
                dict(zip(demand.by, group, strict=True))
                | {"expected": expected.get(group, 0), "observed": observed.get(group, 0)}
                for group in differing
            ),
            _personal(contract),
        ),
        numbers={"observed": totals[0], "expected": totals[1], "differing": len(differing)},
    )


def _result(
    rule: DatasetRule,
    *,
    failed: bool,
    expected: str,
    observed: str,
    failing: int,
    total: int,
    sample: tuple[Mapping[str, str], ...] = (),
    numbers: Mapping[str, float] | None = None,
) -> CheckResult:
    return CheckResult(
        name=rule.name,
        state="failed" if failed else "passed",
        severity=rule.severity,
        description=rule.description,
        expected=expected,
        observed=observed,
        failing=failing,
        total=total,
        sample=sample if failed else (),
        remedy=rule.remedy,
        numbers=numbers or {},
    )


def _present(contract: Contract, column: str) -> str:
    """A column that is null where it is NaN."""
    if contract.column(column).type == "number":
        return f"NULLIF({column}, CAST('NaN' AS DOUBLE))"
    return column


def _tolerated(demand: Reconciliation) -> str:
    return f", give or take {demand.tolerance:g} %" if demand.tolerance else ""


def _and(where: str | None) -> str:
    return "" if where is None else f" AND ({where})"


def _personal(contract: Contract) -> set[str]:
    return {column.name for column in contract.columns if column.personal}
