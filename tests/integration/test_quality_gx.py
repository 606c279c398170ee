"""Row rules run by Great Expectations over Arrow tables, counted as the generated SQL counts."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profilehouse.errors import ProfilehouseError
from profilehouse.quality.gx import check_table
from profilehouse.quality.result import SAMPLE_SIZE, CheckResult
from profilehouse.quality.rules import Holds
from profilehouse.quality.sql import arrow_source, check_rows
from tests.visits import FAILING, NOON, RULES, VISITS, all_faults, visits


def by_sql(table: pa.Table) -> list[CheckResult]:
    with arrow_source({"visits": table}) as source:
        return check_rows(VISITS, RULES, source)


def said(results: list[CheckResult]) -> list[Any]:
    """What a result says (masks included: they are the same in one process)."""
    return [(r.name, r.state, r.failing, r.total, r.observed, r.sample) for r in results]


def test_every_fault_is_counted_by_the_rule_it_breaks_and_by_no_other() -> None:
    results = check_table(VISITS, RULES, all_faults())
    assert {result.name: result.failing for result in results} == FAILING
    assert {result.state for result in results} == {"failed"}
    assert {result.total for result in results} == {all_faults().num_rows}


def test_good_rows_pass() -> None:
    assert {r.state for r in check_table(VISITS, RULES, visits({}, {"kind": "app"}))} == {"passed"}


def test_a_table_without_rows_passes_with_total_0() -> None:
    results = check_table(VISITS, RULES, visits())
    assert {(result.state, result.total) for result in results} == {("passed", 0)}


TEXTS = st.none() | st.sampled_from(["", "web", "app", "https://a.b", "https://é", "x\n", "a b"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.none() | st.integers(-2, 2) | st.just(2**53 + 1),
            "kind": TEXTS,
            "share": st.none() | st.sampled_from([0.0, -0.0, 1.0, 1.0000001, math.nan, -math.inf]),
            "pages": st.none() | st.integers(-1, 2),
            "url": TEXTS,
            "token": TEXTS,
            "began_at": st.none() | st.just(NOON),
            "ended_at": st.none() | st.sampled_from([NOON, NOON.replace(hour=11)]),
        }
    ),
    max_size=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS)
def test_both_executors_find_the_same(rows: list[dict[str, Any]]) -> None:
    table = visits(*rows)
    assert said(check_table(VISITS, RULES, table)) == said(by_sql(table))


def test_samples_are_bounded_the_same_each_time_and_never_show_personal_values() -> None:
    table = visits(*({"kind": f"tv-{n % 5}"} for n in range(100)))
    (found,) = (r for r in check_table(VISITS, RULES, table) if r.name == "kind_is_in_set")
    (again,) = (r for r in check_table(VISITS, RULES, table) if r.name == "kind_is_in_set")
    assert (found.failing, len(found.sample)) == (100, SAMPLE_SIZE)
    assert found == again
    assert all(re.fullmatch("#[0-9a-f]{8}", row["kind"]) for row in found.sample)
    assert "tv-" not in repr(found)


def test_a_rule_that_cannot_run_fails_or_raises_and_never_passes() -> None:
    lacking = visits({}).drop_columns(["share"])
    states = {r.name: r.state for r in check_table(VISITS, RULES, lacking)}
    assert states.pop("share_is_between_0_and_1") == "failed"
    assert set(states.values()) == {"passed"}
    broken = [replace(rule, test=Holds("id / 'x' > 1")) for rule in RULES[:1]]
    with pytest.raises((ProfilehouseError, Exception), match=r"(?i)conver|evaluate"):
        check_table(VISITS, broken, visits({}))
