"""Reconciliation: whether two datasets agree, row by row of small tables such as counts by day.

Does not belong here: where the numbers come from.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from profilehouse.contracts import Severity
from profilehouse.errors import ProfilehouseError
from profilehouse.quality.result import CheckResult, mask, percent, sample_of, shown

Values = tuple[Any, ...]


def same_rows(
    name: str,
    expected: pa.Table,
    observed: pa.Table,
    key: Sequence[str],
    description: str,
    remedy: str,
    severity: Severity = "error",
    personal: Collection[str] = (),
) -> CheckResult:
    """Whether two small tables have the same rows, in any order, for example counts by day.

    With key columns only, it compares the sets of keys.

    Args:
        name: of the check.
        expected: the rows of the dataset that is right.
        observed: those of the other one, with the same columns.
        key: the columns that say which rows to compare; differences are listed by them.
        description: what should agree with what.
        remedy: what to do when they differ.
        severity: of a difference.
        personal: columns whose values are masked.

    Raises:
        ProfilehouseError: when the tables have different columns.
    """
    if set(expected.column_names) != set(observed.column_names):
        raise ProfilehouseError(
            f"check {name}: compares the columns {', '.join(expected.column_names)}"
            f" with {', '.join(observed.column_names)}; give it tables with the same columns"
        )
    columns = [column for column in expected.column_names if column not in key]
    right, other = _by_key(expected, key, columns), _by_key(observed, key, columns)
    keys = sorted(right.keys() | other.keys(), key=lambda values: [str(v) for v in values])
    different = [k for k in keys if Counter(right.get(k, ())) != Counter(other.get(k, ()))]
    missing = sum(k not in other for k in different)
    unexpected = sum(k not in right for k in different)

    def side(rows: Mapping[Values, Sequence[Values]], k: Values) -> str:
        if k not in rows:
            return "missing"
        masked = [
            [mask(v) if c in personal else v for c, v in zip(columns, values, strict=True)]
            for values in rows[k]
        ]
        return "; ".join(_listed(columns, values) for values in masked) or "there"

    by = ", ".join(key)
    return CheckResult(
        name=name,
        state="failed" if different else "passed",
        severity=severity,
        description=description,
        expected=f"the same {', '.join(columns) or 'keys'} for every {by}",
        observed=f"{len(different):,} of {len(keys):,} {by} differ: {missing:,} missing,"
        f" {unexpected:,} unexpected, {len(different) - missing - unexpected:,} with other values"
        if different
        else f"all {len(keys):,} {by} agree",
        failing=len(different),
        total=len(keys),
        sample=sample_of(
            (
                dict(zip(key, k, strict=True))
                | {"expected": side(right, k), "observed": side(other, k)}
                for k in different
            ),
            personal,
        ),
        remedy=remedy,
        numbers={
            "failing": len(different),
            "total": len(keys),
            "failing_percent": percent(len(different), len(keys)),
            "missing": missing,
            "unexpected": unexpected,
        },
    )


def _by_key(
    table: pa.Table, key: Sequence[str], columns: Sequence[str]
) -> dict[Values, list[Values]]:
    values = {name: [_same(v) for v in table[name].to_pylist()] for name in table.column_names}
    rows: defaultdict[Values, list[Values]] = defaultdict(list)
    for i in range(table.num_rows):
        k = tuple(values[name][i] for name in key)
        rows[k].append(tuple(values[name][i] for name in columns))
    return dict(rows)


def _same(value: Any) -> Any:
    """Something hashable that is equal for equal values: NaN equals itself, lists are tuples."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return tuple(value) if isinstance(value, list) else value


def _listed(names: Sequence[str], values: Sequence[Any]) -> str:
    texts = (f"{v:,}" if type(v) in (int, float) else shown(v) for v in values)
    return ", ".join(f"{name} {text}" for name, text in zip(names, texts, strict=True))
