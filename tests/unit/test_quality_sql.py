"""Row rules, references and columns checked by generated SQL, over Arrow tables."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pytest

from profilehouse.contract_quality import Dependency, QualityRule, Silence
from profilehouse.contracts import Column, contract, load_contracts
from profilehouse.errors import ProfilehouseError
from profilehouse.quality.result import SAMPLE_SIZE, CheckResult
from profilehouse.quality.rules import row_rules
from profilehouse.quality.sql import (
    Reference,
    arrow_source,
    check_references,
    check_rows,
    references_of,
    schema_difference,
)

PURCHASES = contract("purchases")
CRM = contract("crm")
DAY = date(2026, 3, 1)
GOOD = {
    "household_id": 900,
    "store_id": 330,
    "basket_id": 31198570044,
    "product_id": 1095275,
    "quantity": 1,
    "sales_value": 0.5,
    "retail_disc": 0.0,
    "coupon_disc": 0.0,
    "coupon_match_disc": 0.0,
    "week": 1,
    "transaction_timestamp": datetime(2026, 1, 1, 11, 53, 26),
}
SCHEMA = pa.schema([field.with_nullable(True) for field in PURCHASES.arrow_schema])


class Recording:
    """A source that remembers what it was asked."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.asked: list[str] = []

    def query(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        self.asked.append(sql)
        table: pa.Table = self.source.query(sql, params)
        return table

    def schema_of(self, table: str) -> pa.Schema:
        self.asked.append(f"columns of {table}")
        return self.source.schema_of(table)


def purchases(*changes: dict[str, Any]) -> pa.Table:
    rows = [GOOD | {"product_id": i} | change for i, change in enumerate(changes, start=1)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def checked(table: pa.Table) -> dict[str, CheckResult]:
    with arrow_source({"purchases": table}) as source:
        results = check_rows(PURCHASES, row_rules(PURCHASES), source)
    return {result.name: result for result in results}


def failing(table: pa.Table) -> dict[str, int]:
    return {name: result.failing for name, result in checked(table).items() if not result.passed}


def test_good_rows_pass_every_rule() -> None:
    results = checked(purchases({}, {}, {}))
    assert [result.name for result in results.values() if not result.passed] == []
    assert {result.total for result in results.values()} == {3}
    assert results["week_is_present"].observed == "so in all 3 rows"


def test_a_failing_rule_says_what_it_expected_what_it_saw_and_what_to_do() -> None:
    table = purchases({"quantity": -1}, {}, {"quantity": 1_000_001}, {"quantity": None})
    result = checked(table)["quantity_is_between_0_and_1000000"]
    assert not result.passed
    assert result.expected == "quantity is between 0 and 1000000, in every row"
    assert result.observed == "not so in 2 of 4 rows (50 %)"
    assert (result.failing, result.total) == (2, 4)
    assert result.sample == (
        {"basket_id": "31198570044", "product_id": "1", "quantity": "-1"},
        {"basket_id": "31198570044", "product_id": "3", "quantity": "1000001"},
    )
    assert result.remedy == (
        "Ask sales-team to correct the values, or widen the rule in"
        " contracts/sources/purchases.odcs.yaml; find them with"
        " WHERE quantity < 0 OR quantity > 1000000"
    )
    assert result.numbers == {"failing": 2, "total": 4, "failing_percent": 50.0}


def test_the_whole_contract_is_counted_in_one_statement_and_sampled_only_where_it_fails() -> None:
    with arrow_source({"purchases": purchases({}, {"week": 54}, {"week": None})}) as source:
        recording = Recording(source)
        check_rows(PURCHASES, row_rules(PURCHASES), recording)
    columns, counts, *samples = recording.asked
    assert columns == "columns of purchases"
    assert counts.count("COUNT(*) AS total") == 1
    assert len(samples) == 2


def test_values_of_personal_columns_are_never_in_the_sample_in_clear() -> None:
    table = purchases({"household_id": -90017}, {"household_id": -90017}, {"household_id": None})
    results = checked(table)
    masks = [row["household_id"] for row in results["household_id_is_at_least_1"].sample]
    assert "90017" not in str(results)
    assert masks[0] == masks[1]
    assert results["household_id_is_present"].sample[0]["household_id"] == "null"


def test_every_row_of_a_repeated_key_counts_and_the_sample_names_the_key_once() -> None:
    table = purchases({"product_id": 5}, {"product_id": 5}, {"product_id": 5}, {})
    result = checked(table)["primary_key_is_unique"]
    assert result.failing == 3
    assert result.sample == ({"basket_id": "31198570044", "product_id": "5", "copies": "3"},)


def test_a_sample_is_bounded_while_the_count_is_exact() -> None:
    result = checked(purchases(*[{"week": 0}] * 500))["week_is_between_1_and_53"]
    assert result.failing == 500
    assert len(result.sample) == SAMPLE_SIZE


def test_not_a_number_counts_as_missing() -> None:
    table = purchases({"sales_value": float("nan")}, {"sales_value": None}, {})
    assert failing(table) == {"sales_value_is_present": 2}


def test_infinity_is_out_of_range() -> None:
    table = purchases({"sales_value": float("inf")}, {"sales_value": float("-inf")})
    assert failing(table) == {"sales_value_is_between_0_and_10000": 2, "unit_price_is_sane": 1}


def test_a_rule_whose_column_is_missing_fails_and_the_others_still_run() -> None:
    results = checked(purchases({"week": 54}, {}).drop_columns(["quantity"]))
    result = results["quantity_is_between_0_and_1000000"]
    assert not result.passed
    assert result.observed == "cannot run: column quantity is missing in purchases"
    assert result.failing == 2
    assert results["week_is_between_1_and_53"].failing == 1
    assert results["store_id_is_present"].passed


def test_a_key_without_one_of_its_columns_fails() -> None:
    results = checked(purchases({}, {}).drop_columns(["basket_id"]))
    assert "column basket_id is missing" in results["primary_key_is_unique"].observed


def test_a_rule_over_a_column_of_another_type_fails_instead_of_comparing_text() -> None:
    table = purchases({}, {})
    table = table.set_column(9, "week", table["week"].cast(pa.string()))
    results = checked(table)
    assert (
        results["week_is_between_1_and_53"].observed
        == "cannot run: column week is string instead of integer in purchases"
    )
    assert results["week_is_present"].passed


@pytest.mark.parametrize("name", load_contracts())
def test_an_empty_table_of_any_contract_passes_with_total_0(name: str) -> None:
    declared = contract(name)
    with arrow_source({name: declared.arrow_schema.empty_table()}) as source:
        results = check_rows(declared, row_rules(declared), source)
    assert all(result.passed and result.total == 0 for result in results)
    assert {result.observed for result in results} == {"there are no rows"}


def test_an_empty_table_without_a_column_still_fails() -> None:
    empty = PURCHASES.arrow_schema.empty_table().drop_columns(["week"])
    assert failing(empty) == {"week_is_present": 0, "week_is_between_1_and_53": 0}


def test_a_table_without_any_column_of_the_contract_fails_every_rule() -> None:
    results = checked(pa.table({"other": [1, 2]}))
    assert not any(result.passed for result in results.values())
    assert {result.total for result in results.values()} == {2}


def test_an_expression_that_is_unknown_for_null_passes() -> None:
    campaigns = contract("campaigns")
    days = pa.array([date(2026, 1, 1), None, date(2026, 1, 3)], pa.date32())
    ends = pa.array([date(2026, 1, 1), date(2026, 1, 1), date(2026, 1, 2)], pa.date32())
    table = pa.table(
        {
            "campaign_id": [1, 2, 3],
            "campaign_type": ["Type A"] * 3,
            "start_date": days,
            "end_date": ends,
        }
    )
    with arrow_source({"campaigns": table}) as source:
        results = check_rows(campaigns, row_rules(campaigns), source)
    result = next(r for r in results if r.name == "ends_after_it_starts")
    assert (result.failing, result.total) == (1, 3)
    assert result.sample == (
        {"campaign_id": "3", "end_date": "2026-01-02", "start_date": "2026-01-03"},
    )


def test_landed_rows_are_found_by_day_and_line_when_their_key_is_personal() -> None:
    row = {
        "household_id": 7,
        "age": "old",
        "income": "50-74K",
        "household_size": "2",
        "household_comp": "2 Adults No Kids",
        "kids_count": "0",
        "updated_at": datetime(2026, 1, 1),
        "delivered_on": date(2026, 1, 2),
        "line": 1,
    }
    table = pa.Table.from_pylist([row, row | {"delivered_on": date(2026, 1, 3)}])
    for name in ("home_ownership", "marital_status"):
        table = table.append_column(name, pa.nulls(2, pa.string()))
    table = table.set_column(6, "updated_at", table["updated_at"].cast(pa.timestamp("us")))
    with arrow_source({"crm": table}) as source:
        rules = row_rules(CRM, within=("delivered_on",))
        results = check_rows(CRM, rules, source, keys=("delivered_on", "line"))
    assert [r.name for r in results if not r.passed] == ["age_is_in_set"]
    sample = next(r for r in results if r.name == "age_is_in_set").sample
    assert sample[1] == {"delivered_on": "2026-01-03", "line": "1", "age": "old"}


def facts(contents: Sequence[str | None]) -> dict[str, pa.Table]:
    return {
        "fct_purchase": pa.table(
            {
                "content_key": pa.array(contents, pa.string()),
                "occurred_on": pa.array([date(2026, 1, 1)] * len(contents), pa.date32()),
            }
        ),
        "dim_content": pa.table({"content_key": ["a", "b"]}),
        "dim_date": pa.table({"date": pa.array([date(2026, 1, 1)], pa.date32())}),
    }


FACT = contract("fct_purchase")
TO_CONTENT = Reference("content_key", "dim_content", "content_key", "warning")


def test_references_declared_by_a_contract_are_read_from_it() -> None:
    assert references_of(FACT) == (
        TO_CONTENT,
        Reference("occurred_on", "dim_date", "date", "warning"),
    )


def test_rows_whose_reference_is_missing_are_counted_and_null_passes() -> None:
    tables = facts(["a", "x", None, "x", "y", "b"])
    with arrow_source(tables) as source:
        recording = Recording(source)
        content, day = check_references(FACT, references_of(FACT), recording)
    assert day.passed
    assert content.name == "content_key_is_in_dim_content"
    assert (content.passed, content.severity) == (False, "warning")
    assert (content.failing, content.total) == (3, 6)
    assert content.numbers["distinct_missing"] == 2
    assert content.sample == (
        {"content_key": "x", "row_count": "2"},
        {"content_key": "y", "row_count": "1"},
    )
    assert len([sql for sql in recording.asked if "AS total" in sql]) == 1


def test_a_reference_to_a_table_without_rows_fails_for_every_value() -> None:
    tables = facts(["a", "b", None])
    tables["dim_content"] = tables["dim_content"].slice(0, 0)
    with arrow_source(tables) as source:
        (result,) = check_references(FACT, [TO_CONTENT], source)
    assert result.failing == 2


def test_a_reference_from_or_to_a_missing_column_fails() -> None:
    tables = facts(["a", "b"])
    tables["dim_content"] = pa.table({"content_id": ["a"]})
    with arrow_source(tables) as source:
        to, of = check_references(FACT, [TO_CONTENT, replace(TO_CONTENT, column="content")], source)
    assert (to.passed, of.passed) == (False, False)
    assert to.observed == "cannot run: column content_key is missing in dim_content"
    assert of.observed == "cannot run: column content is missing in fct_purchase"


def test_a_reference_between_different_types_fails() -> None:
    tables = facts(["1"])
    tables["dim_content"] = pa.table({"content_key": [1]})
    with arrow_source(tables) as source:
        (result,) = check_references(FACT, [TO_CONTENT], source)
    assert result.observed == (
        "cannot run: content_key is string, dim_content.content_key is integer"
    )


@pytest.mark.parametrize("name", load_contracts())
def test_the_schema_of_a_contract_does_not_differ_from_it(name: str) -> None:
    result = schema_difference(contract(name), contract(name).arrow_schema)
    assert (result.passed, result.observed) == (True, "exactly these")


def test_missing_unknown_and_changed_columns_are_each_named() -> None:
    schema = PURCHASES.arrow_schema
    schema = schema.remove(schema.get_field_index("week")).append(pa.field("tax", pa.float64()))
    index = schema.get_field_index("quantity")
    schema = schema.set(index, pa.field("quantity", pa.string()))
    result = schema_difference(PURCHASES, schema)
    assert not result.passed
    assert (result.failing, result.total) == (3, 11)
    assert result.observed == (
        "quantity: string, expected integer; week: missing, expected integer;"
        " tax: number, expected no such column"
    )


def test_a_wider_or_narrower_integer_and_a_large_string_are_no_difference() -> None:
    actual = pa.schema(
        [
            pa.field("campaign_id", pa.int32()),
            pa.field("campaign_type", pa.dictionary(pa.int8(), pa.large_string())),
            pa.field("start_date", pa.date32()),
            pa.field("end_date", pa.date64()),
        ]
    )
    assert schema_difference(contract("campaigns"), actual).passed


def test_a_zoned_timestamp_is_a_difference() -> None:
    schema = PURCHASES.arrow_schema
    index = schema.get_field_index("transaction_timestamp")
    field = pa.field("transaction_timestamp", pa.timestamp("us", "UTC"))
    result = schema_difference(PURCHASES, schema.set(index, field))
    assert "timestamp[us, tz=UTC], expected timestamp" in result.observed


def test_a_silenced_day_is_not_counted_until_its_silence_ends_and_is_told() -> None:
    strike = Silence("week_is_between_1_and_53", DAY, "Weeks were not sent.", date(2999, 1, 1))
    table = purchases({"week": 54}, {"week": 55}, {"week": 54}, {"week": 2})
    days = pa.array([DAY, DAY, DAY.replace(day=2), DAY], pa.date32())
    table = table.append_column("delivered_on", days)

    def found(silence: Silence) -> CheckResult:
        silenced = replace(PURCHASES, silences=(silence,))
        with arrow_source({"purchases": table}) as source:
            results = check_rows(silenced, row_rules(silenced), source)
        [result] = (r for r in results if r.name == "week_is_between_1_and_53")
        return result

    result = found(strike)
    assert (result.failing, result.numbers["silenced"]) == (1, 2)
    assert result.observed == (
        "not so in 1 of 4 rows (25 %); 2 rows are silenced"
        " (2026-03-01 until 2999-01-01: Weeks were not sent.)"
    )
    assert [row["product_id"] for row in result.sample] == ["3"]
    assert found(replace(strike, until=date(2026, 3, 2))).failing == 3, "the silence has ended"
    with pytest.raises(ProfilehouseError, match="silences: there is no row rule typo; there are"):
        found(replace(strike, rule="typo"))


def test_silenced_copies_of_a_key_are_told_apart_from_the_others() -> None:
    silence = Silence("primary_key_is_unique", DAY, "Sent twice.", date(2999, 1, 1))
    silenced = replace(PURCHASES, silences=(silence,))
    table = purchases({"product_id": 5}, {"product_id": 5}, {"product_id": 6}, {"product_id": 6})
    other = DAY.replace(day=2)
    days = pa.array([DAY, DAY, DAY, other], pa.date32())
    with arrow_source({"purchases": table.append_column("delivered_on", days)}) as source:
        [result] = (
            r
            for r in check_rows(silenced, row_rules(silenced), source)
            if r.name == "primary_key_is_unique"
        )
    assert (result.failing, result.numbers["silenced"]) == (1, 3)
    assert [row["product_id"] for row in result.sample] == ["6"]


def test_a_value_that_at_most_half_of_its_determinant_have_fails() -> None:
    rule = QualityRule("zip_tells_city", Dependency(("zip",), "city"), "One city.", "error")
    places = replace(
        PURCHASES,
        name="places",
        columns=(Column("zip", "string", "Zip."), Column("city", "string", "City.")),
        primary_key=(),
        quality=(rule,),
    )
    rows = [("1", "A"), ("1", "A"), ("1", "B"), ("2", "C"), ("2", "D"), (None, "E"), ("1", None)]
    table = pa.table(dict(zip(("zip", "city"), map(list, zip(*rows, strict=True)), strict=True)))
    with arrow_source({"places": table}) as source:
        [result] = check_rows(places, row_rules(places), source)
    assert (result.failing, result.total) == (3, 7)
    assert [row["city"] for row in result.sample] == ["B", "C", "D"]
