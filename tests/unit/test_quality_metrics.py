"""Metrics of delivery days: measured, kept and judged in a real warehouse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from open_data_contract_standard.model import DataQuality

from profilehouse.contract_quality import Incident, Usual, quality_rules
from profilehouse.contracts import Contract, contract
from profilehouse.errors import ProfilehouseError
from profilehouse.platform import Platform
from profilehouse.quality.metrics import Metric, keep, measure, read
from profilehouse.quality.rules import HistoryRule, history_rules, row_rules
from profilehouse.quality.usual import check_all, check_rule
from profilehouse.settings import Settings
from profilehouse.warehouse import Warehouse
from profilehouse.warehouse.sql import translate

PURCHASES = contract("fct_purchase")
FIRST = date(2026, 3, 1)
DAYS = [FIRST + timedelta(days=n) for n in range(30)]
LAST = DAYS[-1]


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    settings = Settings(warehouse=f"duckdb:{tmp_path}/warehouse.duckdb", _env_file=None)
    with Platform(settings).warehouse() as warehouse:
        warehouse.create(PURCHASES)
        yield warehouse


def lines(day: date, count: int = 120, **changes: Any) -> list[dict[str, Any]]:
    """What was bought on a day: from 8 to 19 o'clock, at 1.00 to 3.00, in two categories."""
    return [
        {
            "event_id": f"{day}/{n}",
            "order_id": f"{day}/{n // 2}",
            "user_key": f"u{n % 40}",
            "content_key": f"c{n % 7}",
            "occurred_on": day,
            "occurred_at": datetime(day.year, day.month, day.day, 8 + n % 12),
            "user_id": f"u{n % 40}",
            "content_id": f"c{n % 7}",
            "category": ("DAIRY", "MEAT")[n % 2],
            "store_id": "s",
            "quantity": 1 + n % 2,
            "value_cents": (100, 200, 300)[n % 3],
            "retail_discount_cents": 0,
            "coupon_discount_cents": 0,
            "received_at": datetime(day.year, day.month, day.day) + timedelta(days=1),
            "delivered_on": day,
            "topic": "purchases",
            "line": n,
        }
        | {name: change(n) if callable(change) else change for name, change in changes.items()}
        for n in range(count)
    ]


def load(warehouse: Warehouse, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=PURCHASES.arrow_schema)
    warehouse.stage(table.to_batches(), table.schema)
    names = ", ".join(table.column_names)
    with warehouse.transaction():
        warehouse.execute(f"INSERT INTO fct_purchase ({names}) SELECT {names} FROM staged")


def rule(name: str) -> HistoryRule:
    return next(rule for rule in history_rules(PURCHASES) if rule.name == name)


def test_a_day_is_measured_to_the_number(warehouse: Warehouse) -> None:
    rows = lines(FIRST, category=lambda n: None if n < 30 else ("DAIRY", "MEAT")[n % 2])
    load(warehouse, rows)
    found = measure(warehouse, PURCHASES, [FIRST])
    numbers = {metric: series[FIRST] for metric, series in found.items() if FIRST in series}
    assert numbers[Metric("rows")] == 120
    assert numbers[Metric("null_percent", "category")] == 25
    assert numbers[Metric("distinct", "user_key")] == 40
    assert numbers[Metric("sum", "value_cents")] == 24_000
    assert numbers[Metric("mean", "value_cents")] == 200
    quantiles = [numbers[Metric(name, "value_cents")] for name in ("p05", "median", "p95")]
    assert quantiles == [100, 200, 300]
    assert numbers[Metric("rows", "category", "DAIRY")] == 45
    assert numbers[Metric("percent", "category", "MEAT")] == 37.5
    assert numbers[Metric("percent", "occurred_at", "8")] == pytest.approx(100 / 12)
    assert numbers[Metric("lateness_hours")] == pytest.approx(24 - 13.5)


def test_a_day_without_rows_has_zeros_and_a_value_that_is_gone_is_0(warehouse: Warehouse) -> None:
    load(warehouse, [*lines(DAYS[0]), *lines(DAYS[2], category="DAIRY")])
    both = measure(warehouse, PURCHASES, DAYS[:3])
    assert both[Metric("rows")] == {DAYS[0]: 120, DAYS[1]: 0, DAYS[2]: 120}
    assert DAYS[1] not in both[Metric("percent", "category", "MEAT")]
    alone = measure(warehouse, PURCHASES, [DAYS[2]])
    assert Metric("percent", "category", "MEAT") not in alone
    known = measure(warehouse, PURCHASES, [DAYS[2]], both)
    assert known[Metric("percent", "category", "MEAT")] == {DAYS[2]: 0}
    assert known == {m: {DAYS[2]: s[DAYS[2]]} for m, s in both.items() if DAYS[2] in s}


def test_what_is_kept_is_read_back_and_measuring_again_replaces_it(warehouse: Warehouse) -> None:
    assert read(warehouse, PURCHASES.name) == {}
    load(warehouse, [row for day in DAYS[:3] for row in lines(day)])
    found = measure(warehouse, PURCHASES, DAYS[:3])
    keep(warehouse, PURCHASES.name, found, DAYS[:3])
    keep(warehouse, "another", found, DAYS[:3])
    assert read(warehouse, PURCHASES.name) == found
    load(warehouse, [row | {"event_id": f"again {n}"} for n, row in enumerate(lines(DAYS[1]))])
    keep(warehouse, PURCHASES.name, measure(warehouse, PURCHASES, [DAYS[1]], found), [DAYS[1]])
    rows = read(warehouse, PURCHASES.name)[Metric("rows")]
    assert rows == {DAYS[0]: 120, DAYS[1]: 240, DAYS[2]: 120}
    assert read(warehouse, "another") == found


@pytest.mark.parametrize(
    ("changes", "named_by"),
    [
        ({"value_cents": lambda n: (10_000, 20_000, 30_000)[n % 3]}, "median_price_is_usual"),
        ({"category": None}, "uncategorized_lines_are_usual"),
        ({"category": "MEAT"}, "categories_are_usual"),
        ({"occurred_at": datetime(2026, 3, 30, 3)}, "hours_of_the_day_are_usual"),
        ({"received_at": datetime(2026, 4, 3)}, "lateness_is_usual"),
        ({"user_key": "u"}, "daily_buyers_are_usual"),
    ],
)
def test_an_odd_day_is_named_by_the_rule_for_it_and_by_every_metric(
    warehouse: Warehouse, changes: dict[str, Any], named_by: str
) -> None:
    usual = [row for n, day in enumerate(DAYS[:-1]) for row in lines(day, 115 + n % 10)]
    load(warehouse, usual + lines(LAST, **changes))
    found = measure(warehouse, PURCHASES, DAYS)
    failing = {r.name for r in history_rules(PURCHASES) if not check_rule(r, found, LAST).passed}
    assert named_by in failing
    every = check_all(found, LAST, "look")
    assert (every.state, every.failing > 0) == ("failed", True)
    assert every.sample[0].keys() == {"metric", "observed", "expected", "by"}
    before = {metric: {d: v for d, v in s.items() if d < LAST} for metric, s in found.items()}
    day = DAYS[-2]
    assert all(check_rule(r, before, day).state == "passed" for r in history_rules(PURCHASES))
    assert check_all(before, day, "look").state == "passed"


def test_too_few_rows_say_nothing_about_shares_but_something_about_volume(
    warehouse: Warehouse,
) -> None:
    usual = [row for day in DAYS[:-1] for row in lines(day)]
    load(warehouse, usual + lines(LAST, 12, category=None))
    found = measure(warehouse, PURCHASES, DAYS)
    share = check_rule(rule("uncategorized_lines_are_usual"), found, LAST)
    assert (share.state, "too few rows" in share.observed) == ("not enough history", True)
    assert check_rule(rule("daily_lines_are_usual"), found, LAST).state == "failed"


def test_without_history_nothing_passes_or_fails(warehouse: Warehouse) -> None:
    load(warehouse, [row for day in DAYS[:5] for row in lines(day)])
    found = measure(warehouse, PURCHASES, DAYS[:5])
    results = [check_rule(r, found, DAYS[4]) for r in history_rules(PURCHASES)]
    results.append(check_all(found, DAYS[4], "look"))
    assert {result.state for result in results} == {"not enough history"}


def test_an_incident_of_the_contract_does_not_alarm_and_teaches_nothing(
    warehouse: Warehouse,
) -> None:
    odd = DAYS[20]
    load(warehouse, [row for day in DAYS for row in lines(day, 12 if day == odd else 120)])
    found = measure(warehouse, PURCHASES, DAYS)
    before = {metric: {d: v for d, v in s.items() if d <= odd} for metric, s in found.items()}
    known = [Incident(odd, "the tills were down")]
    lost = rule("daily_lines_are_usual")
    assert check_rule(lost, before, odd).state == "failed"
    acknowledged = check_rule(lost, before, odd, known)
    assert acknowledged.passed
    assert "a known incident: the tills were down" in acknowledged.observed
    assert check_all(before, odd, "look", known).passed
    taught = check_rule(lost, found, LAST).numbers
    assert check_rule(lost, found, LAST, known).numbers["history_days"] == (
        taught["history_days"] - 1
    )


def test_the_statements_are_those_of_every_warehouse(warehouse: Warehouse) -> None:
    asked: list[str] = []

    class Listening:
        def query(self, sql: str, params: Any = ()) -> pa.Table:
            asked.append(sql)
            return warehouse.query(sql, params)

    load(warehouse, lines(FIRST))
    measure(Listening(), PURCHASES, [FIRST])
    assert len(asked) > 5
    for dialect in ("snowflake", "bigquery"):
        assert all(translate(sql, dialect) for sql in asked)


def usual(**implementation: Any) -> Contract:
    declared = DataQuality(
        type="custom",
        name="it_is_usual",
        description="It is usual.",
        engine="profilehouse",
        implementation={"usual": implementation},
    )
    return replace(PURCHASES, quality=quality_rules([declared], {}))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"metric": "row"}, "metric is 'row'; it must be one of"),
        ({"metric": "mean"}, "the metric mean needs a column"),
        ({"metric": "mean", "column": "quantity", "value": "1"}, "a value is for rows or percent"),
        ({"metric": "rows", "detector": "magic"}, "detector is 'magic'; it must be one of"),
        ({"metric": "rows", "least": -1}, "least is -1; it must be a number from 0 on"),
        ({"metric": "rows", "colour": "red"}, "unknown colour"),
        ({"metric": "lateness_hours", "column": "quantity"}, "takes no column"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        usual(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"metric": "mean", "column": "price"}, "fct_purchase has no column price"),
        ({"metric": "mean", "column": "category"}, "mean is for numbers, and category is a string"),
    ],
)
def test_a_rule_on_a_column_that_does_not_fit_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ProfilehouseError, match=said):
        row_rules(usual(**wrong))


def test_a_rule_may_choose_its_detector_and_its_least_difference() -> None:
    declared = usual(metric="rows", column="category", value="MEAT", detector="iqr", least=5)
    [chosen] = history_rules(declared)
    assert chosen.demand == Usual("rows", "category", "MEAT", "iqr", 5)
