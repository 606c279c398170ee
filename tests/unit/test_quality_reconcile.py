"""Two datasets compared row by row."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from profilehouse.errors import ProfilehouseError
from profilehouse.quality.reconcile import same_rows
from profilehouse.quality.result import SAMPLE_SIZE, CheckResult

DAYS = [date(2026, 1, n) for n in (1, 2, 3, 4)]


def counts(**lines_by_day: list[Any]) -> pa.Table:
    return pa.table({"day": DAYS[: len(lines_by_day["lines"])], **lines_by_day})


def compared(expected: pa.Table, observed: pa.Table, **more: Any) -> CheckResult:
    return same_rows(
        "lines_agree", expected, observed, ["day"], "Lines agree", "Load the days again", **more
    )


def test_equal_tables_agree_in_any_order_of_rows_and_columns() -> None:
    one = pa.table({"day": DAYS[:2], "lines": [5, 7], "share": [math.nan, None]})
    other = pa.table({"share": [None, math.nan], "lines": [7, 5], "day": DAYS[1::-1]})
    result = compared(one, other)
    assert (result.state, result.failing, result.total, result.sample) == ("passed", 0, 2, ())
    assert result.observed == "all 2 day agree"


def test_missing_unexpected_and_different_rows_are_told_apart_and_listed_by_key() -> None:
    expected = pa.table({"day": DAYS[:3], "lines": [5, 6, 7]})
    observed = pa.table({"day": [DAYS[0], DAYS[2], DAYS[3]], "lines": [5, 70, 8]})
    result = compared(expected, observed)
    assert (result.state, result.failing, result.total) == ("failed", 3, 4)
    assert result.observed == ("3 of 4 day differ: 1 missing, 1 unexpected, 1 with other values")
    assert result.sample == (
        {"day": "2026-01-02", "expected": "lines 6", "observed": "missing"},
        {"day": "2026-01-03", "expected": "lines 7", "observed": "lines 70"},
        {"day": "2026-01-04", "expected": "missing", "observed": "lines 8"},
    )


def test_a_row_that_is_there_twice_on_one_side_only_is_a_difference() -> None:
    once = pa.table({"day": [DAYS[0]], "lines": [5]})
    assert compared(once, pa.concat_tables([once, once])).failing == 1
    assert compared(pa.concat_tables([once, once]), once).failing == 1


def test_empty_tables_agree_and_an_empty_one_lacks_every_row() -> None:
    full = counts(lines=[5, 7])
    assert compared(full.slice(0, 0), full.slice(0, 0)).passed
    assert compared(full, full.slice(0, 0)).failing == 2


def test_personal_values_are_masked_wherever_they_stand() -> None:
    expected = pa.table({"user": ["jane"], "name": ["Jane Doe"]})
    observed = pa.table({"user": ["jane"], "name": ["John Roe"]})
    personal = {"user", "name"}
    result = same_rows("n", expected, observed, ["user"], "d", "r", personal=personal)
    assert result.failing == 1
    assert not any(text in repr(result) for text in ("jane", "Jane", "John"))


def test_the_sample_is_bounded_and_the_count_exact() -> None:
    expected = pa.table({"day": [date(2025, 1, 1 + n) for n in range(31)], "lines": [1] * 31})
    result = compared(expected, expected.slice(0, 0))
    assert (result.failing, len(result.sample)) == (31, SAMPLE_SIZE)


def test_tables_of_different_columns_cannot_be_compared() -> None:
    with pytest.raises(ProfilehouseError, match="give it tables with the same columns"):
        compared(counts(lines=[1]), counts(rows=[1], lines=[1]))
