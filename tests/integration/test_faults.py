"""Faults that happen to deliveries, put into real days: each is named by the check for it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.pipeline import DAYS, Installation, Ran, Record, deliver

FIRST, SECOND, THIRD, LAST = DAYS


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run over days that each have another fault."""
    folder: Path = tmp_path_factory.mktemp("faults")
    deliver(tmp_path_factory.getbasetemp(), folder / "sources")
    house = Installation(folder)

    def at(record: Record) -> datetime:
        return datetime.fromisoformat(record["transaction_timestamp"])

    first, second, third = (house.records("purchases", day) for day in (FIRST, SECOND, THIRD))
    house.deliver("purchases", FIRST, [r for r in first if at(r).hour != 18])
    house.deliver(
        "purchases", SECOND, [r | {"sales_value": r["sales_value"] * 100} for r in second]
    )
    later = timedelta(hours=7)
    house.deliver(
        "purchases",
        THIRD,
        [r | {"transaction_timestamp": (at(r) + later).isoformat()} for r in third],
    )
    house.deliver(
        "purchases",
        LAST,
        [
            r | {"quantity": r["sales_value"], "sales_value": r["quantity"]}
            for r in house.records("purchases", LAST)
        ],
    )
    house.deliver("mailings", THIRD, house.records("mailings", SECOND))
    [day] = house.files("products")
    products = house.records("products", day)
    blank = [r | {"product_category": None} if i % 4 == 0 else r for i, r in enumerate(products)]
    blank[0] |= {"brand": "Private" if blank[0]["brand"] == "National" else "National"}
    house.deliver("products", day, blank)
    redemptions = house.records("redemptions", LAST)
    house.deliver("redemptions", LAST, [*redemptions, *redemptions[:2]])
    ran, weekly = house.run(), house.check()
    return replace(
        ran,
        failing=weekly.failing | ran.failing,
        metadata=weekly.metadata | {name: ran.metadata[name] for name in ran.failing},
    )


@pytest.mark.parametrize(
    ("fault", "named_by"),
    [
        ("an hour is dropped", "lake/purchases no_busy_hour_is_missing"),
        ("prices are scaled by 100", "lake/purchases unit_price_is_sane"),
        ("two columns are swapped", "lake/purchases no_record_was_refused"),
        ("times are of another zone", "warehouse/fct_purchase received_after_it_occurred"),
        ("a day is replayed as another", "lake/mailings no_delivery_repeats_another"),
        ("a category is blanked", "lake/products product_category_is_mostly_there"),
        ("a brand is another", "lake/products manufacturer_tells_brand"),
        ("records are delivered twice", "lake/redemptions primary_key_is_unique"),
    ],
)
def test_each_fault_is_named_by_the_check_that_is_for_it(
    ran: Ran, fault: str, named_by: str
) -> None:
    assert named_by in ran.failing, fault
    assert ran.metadata[named_by]["failing"] > 0
    assert ran.metadata[named_by]["what to do"]


def test_a_dimension_that_is_lost_is_named(tmp_path: Path, shared_days: Path) -> None:
    house = Installation(tmp_path)
    assert house.run(FIRST, SECOND, checked=False).success
    with house.platform.warehouse() as warehouse:
        warehouse.execute("DELETE FROM dim_campaign")
    ran = house.check()
    assert ran.failing["warehouse/dim_campaign campaigns_are_those_delivered"] == "WARN"
    assert ran.failing["warehouse/fct_interaction campaign_key_is_in_dim_campaign"] == "ERROR"


@pytest.fixture
def shared_days(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    deliver(tmp_path_factory.getbasetemp(), tmp_path / "sources")
    return tmp_path
