"""Rules on a dataset as a whole, over Arrow tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from profilehouse.contract_quality import (
    BusyHours,
    Freshness,
    NullShare,
    QualityRule,
    Reconciliation,
    Volume,
)
from profilehouse.contracts import Column, Contract
from profilehouse.errors import ProfilehouseError
from profilehouse.quality.datasets import check_dataset
from profilehouse.quality.result import CheckResult
from profilehouse.quality.rules import dataset_rules
from profilehouse.quality.sql import Source, arrow_source

DAYS = [date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)]
NOW = datetime(2026, 3, 4, 6)
ORDERS = Contract(
    name="orders",
    kind="warehouse",
    version="1.0.0",
    description="Orders.",
    owner="sales-team",
    columns=(
        Column("order_id", "integer", "Id."),
        Column("day", "date", "Day."),
        Column("cents", "integer", "Cents."),
        Column("share", "number", "Share."),
        Column("user_id", "string", "Who.", personal=True),
        Column("seen_at", "timestamp", "When."),
    ),
    primary_key=("order_id",),
    partition_by=(),
    cluster_by=(),
    quality=(),
    path=Path("contracts/warehouse/orders.odcs.yaml"),
)


def orders(*rows: dict[str, Any]) -> pa.Table:
    given = {
        "day": DAYS[0],
        "cents": 100,
        "share": 0.5,
        "user_id": "anna",
        "seen_at": datetime(2026, 3, 3, 12),
    }
    full = [given | {"order_id": i} | row for i, row in enumerate(rows)]
    return pa.Table.from_pylist(full, schema=ORDERS.arrow_schema)


def checked(
    demand: Any, table: pa.Table, other: pa.Table | None = None, days: list[date] | None = None
) -> CheckResult:
    rule = QualityRule("it_holds", demand, "It holds.", "warning", "team-of-rule")
    contract = replace(ORDERS, quality=(rule,))

    @contextmanager
    def others(name: str) -> Iterator[Source]:
        assert other is not None
        with arrow_source({name: other}) as source:
            yield source

    with arrow_source({"orders": table}) as source:
        [result] = check_dataset(contract, dataset_rules(contract), source, others, NOW, days or ())
    return result


def test_a_share_of_nulls_up_to_the_allowed_one_passes_and_nan_is_null() -> None:
    table = orders({}, {}, {"share": None}, {"share": float("nan")})
    assert checked(NullShare("share", 50.0), table).passed
    found = checked(NullShare("share", 49.9), table)
    assert (found.state, found.failing, found.total) == ("failed", 2, 4)
    assert found.observed == "2 of 4 are null (50 %)"
    assert found.numbers["null_percent"] == 50.0
    assert found.remedy == (
        "Ask team-of-rule why share is missing, or allow a larger share in"
        " contracts/warehouse/orders.odcs.yaml"
    )
    assert checked(NullShare("share", 0.0), orders()).passed, "nothing is not missing"


def test_the_volume_is_that_of_the_whole_or_of_every_day_also_of_one_without_rows() -> None:
    table = orders({}, {}, {"day": DAYS[1]})
    assert checked(Volume(3, 3), table).passed
    assert checked(Volume(4, None), table).observed == "3 rows"
    found = checked(Volume(1, 1, "day"), table, days=DAYS)
    assert (found.failing, found.total) == (2, 3)
    assert found.sample == (
        {"day": "2026-03-01", "rows": "2"},
        {"day": "2026-03-03", "rows": "0"},
    )


def test_the_newest_value_is_as_old_as_the_end_of_its_day_or_its_time() -> None:
    table = orders({"day": DAYS[2]}, {})
    assert checked(Freshness("day", 6), table).passed
    late = checked(Freshness("day", 5.9), table)
    assert late.observed == "the newest is 2026-03-03, 6.0 hours old"
    assert not checked(Freshness("seen_at", 17), table).passed
    assert checked(Freshness("seen_at", 18), table).passed
    assert checked(Freshness("seen_at", 18), orders()).observed == "there is nothing"
    assert not checked(Freshness("seen_at", 18), orders()).passed


def test_an_hour_without_rows_is_named_on_every_day_that_has_some() -> None:
    hours = [(1, 9), (1, 10), (1, 11), (2, 10), (2, 3)]
    table = orders(*({"seen_at": datetime(2026, 3, day, hour, 59)} for day, hour in hours))
    found = checked(BusyHours("seen_at", 9, 11), table)
    assert (found.failing, found.total) == (2, 6)
    assert found.sample == (
        {"day": "2026-03-02", "hour": "09:00 UTC"},
        {"day": "2026-03-02", "hour": "11:00 UTC"},
    )
    delivered = table.append_column("delivered_on", pa.array([DAYS[0]] * 5, pa.date32()))
    assert checked(BusyHours("seen_at", 9, 11), delivered).passed, "late ones are of their delivery"
    assert checked(BusyHours("seen_at", 9, 11), orders()).passed


def test_money_agrees_with_another_dataset_by_day_to_the_cent_or_within_a_tolerance() -> None:
    sums = Reconciliation("sales", "sum", {"cents": "value"}, {"day": "delivered_on"})
    sales = pa.table(
        {
            "delivered_on": pa.array([DAYS[0], DAYS[1], DAYS[2]], pa.date32()),
            "value": pa.array([200, 1000, 7], pa.int64()),
        }
    )
    right = orders({}, {}, {"day": DAYS[1], "cents": 1000}, {"day": DAYS[2], "cents": 7})
    assert checked(sums, right, sales).passed
    wrong = orders({}, {}, {"day": DAYS[1], "cents": 1001})
    found = checked(sums, wrong, sales)
    assert (found.failing, found.total) == (2, 3)
    assert found.observed == "1,201 here, 1,207 in sales; 2 of 3 day differ"
    assert found.sample[0] == {"day": "2026-03-02", "expected": "1000", "observed": "1001"}
    only_two = replace(sums, tolerance=0.1, dataset_where="value > 100")
    assert checked(only_two, wrong, sales).passed


def test_the_counts_of_two_datasets_agree() -> None:
    count = Reconciliation("sales", "count", where="cents > 0")
    sales = pa.table({"value": [1, 2]})
    assert checked(count, orders({}, {}, {"cents": 0}), sales).passed
    found = checked(count, orders({}), sales)
    assert found.observed == "1 here, 2 in sales"
    assert found.numbers == {"observed": 1, "expected": 2, "differing": 1}


def test_the_keys_of_two_datasets_agree_whatever_their_type_and_personal_ones_are_masked() -> None:
    keys = Reconciliation("users", "keys", {"user_id": "household_id"})
    users = pa.table({"household_id": pa.array([1, 2, 3, 3, None], pa.int64())})
    assert checked(keys, orders(*({"user_id": str(n)} for n in (1, 2, 3))), users).passed
    found = checked(keys, orders({"user_id": "1"}, {"user_id": "2"}, {"user_id": "77"}), users)
    assert (found.failing, found.numbers) == (2, {"missing": 1, "unexpected": 1})
    assert [row["is"] for row in found.sample] == ["missing", "not in users"]
    assert "77" not in str(found.sample)
    assert checked(replace(keys, tolerance=70.0), orders({"user_id": "1"}), users).passed


def test_a_rule_of_a_column_that_is_not_there_is_refused_with_those_there_are() -> None:
    with pytest.raises(ProfilehouseError, match="orders has no column colour; there are: order_id"):
        checked(Freshness("colour", 1), orders())
