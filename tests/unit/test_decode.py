"""One record against its contract."""

import json
from datetime import datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profilehouse.contracts import contract
from profilehouse.decode import refusals, typed_columns

CRM = contract("crm")
GOOD = {
    "household_id": 7,
    "age": "35-44",
    "income": "50-74K",
    "home_ownership": None,
    "household_size": "2",
    "household_comp": "2 Adults No Kids",
    "kids_count": "0",
    "updated_at": "2026-01-01T05:00:00Z",
}


def reason(**changes: object) -> str | None:
    record = {key: value for key, value in (GOOD | changes).items() if value != "absent"}
    return refusals([json.dumps(record).encode()], CRM).get(0)


def test_a_record_that_satisfies_its_contract_is_not_refused() -> None:
    assert reason() is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"household_id": "7"}, "Expected `int`, got `str` - at `$.household_id`"),
        ({"household_id": 0}, "Expected `int` >= 1 - at `$.household_id`"),
        ({"household_id": 2**63}, "Expected `int` <= 9223372036854775807 - at `$.household_id`"),
        ({"age": "young"}, "Invalid enum value 'young' - at `$.age`"),
        ({"age": None}, "Expected `str`, got `null` - at `$.age`"),
        ({"kids_count": "absent"}, "Object missing required field `kids_count`"),
        ({"shoe_size": 44}, "Object contains unknown field `shoe_size`"),
        ({"updated_at": "2026-01-01T05:00:00"}, "a timezone component - at `$.updated_at`"),
        (
            {"updated_at": "0001-01-01T00:00:00+14:00"},
            "from 1900 to 2199 - at `$.updated_at`",
        ),
        (
            {"updated_at": "9999-12-31T23:59:59-14:00"},
            "from 1900 to 2199 - at `$.updated_at`",
        ),
        ({"updated_at": "yesterday"}, "Invalid RFC3339 encoded datetime - at `$.updated_at`"),
    ],
)
def test_a_refusal_names_the_field_and_what_it_must_be(
    changes: dict[str, object], says: str
) -> None:
    assert says in (reason(**changes) or "")


def test_each_bad_record_is_refused_alone() -> None:
    good = json.dumps(GOOD).encode()
    lines = [good, b"<html>", good, b"", b"\xff\xfe", b"[1]", good + b"}", good]
    assert sorted(refusals(lines, CRM)) == [1, 3, 4, 5, 6]


@given(st.binary())
def test_any_bytes_are_either_a_record_or_refused_never_an_exception(data: bytes) -> None:
    assert set(refusals([data], CRM)) == {0}


def test_typed_columns_reads_absent_optional_fields_as_null_and_times_as_utc() -> None:
    record = json.dumps(GOOD | {"updated_at": "2026-01-01T05:00:00+05:00"})
    rows = pa.table({"line": [1], "record": [record]})
    [row] = typed_columns(rows, CRM).to_pylist()
    assert row["marital_status"] is None
    assert row["household_id"] == 7
    assert row["updated_at"] == datetime(2026, 1, 1)
    assert row["line"] == 1
    assert "record" not in row


def test_a_value_outside_the_set_is_named() -> None:
    line = json.dumps(
        {
            "campaign_id": 1,
            "campaign_type": "Type D",
            "start_date": "2026-01-01",
            "end_date": "2026-01-31",
        }
    )
    assert "Type D" in refusals([line.encode()], contract("campaigns"))[0]


@given(st.floats(min_value=0, max_value=10_000), st.integers(0, 1_000_000))
def test_numbers_come_back_as_they_were_sent(dollars: float, units: int) -> None:
    purchases = contract("purchases")
    record = {
        "household_id": 1, "store_id": 1, "basket_id": 1, "product_id": 1, "quantity": units,
        "sales_value": dollars, "retail_disc": 0.0, "coupon_disc": 0.0, "coupon_match_disc": 0.0,
        "week": 1, "transaction_timestamp": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    line = json.dumps(record)
    assert refusals([line.encode()], purchases) == {}
    [row] = typed_columns(pa.table({"record": [line]}), purchases).to_pylist()
    assert (row["sales_value"], row["quantity"]) == (dollars, units)
