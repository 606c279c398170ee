"""From landed records to events: ids, days, categories, positions, and what is built again."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from profilehouse.contracts import contracts_of
from profilehouse.errors import ProfilehouseError
from profilehouse.events import build
from profilehouse.events.build import Built, build_events, newest_event_day, stale_days
from profilehouse.sources.landing import land
from tests.pipeline import Installation, Record

ZONE = ZoneInfo("America/New_York")
DAYS = MONDAY, TUESDAY, WEDNESDAY = [date(2026, 3, 2) + timedelta(days=n) for n in range(3)]


def bought(basket: int = 1, product: int = 1, **changes: object) -> Record:
    return {
        "household_id": 7,
        "store_id": 31,
        "basket_id": basket,
        "product_id": product,
        "quantity": 2,
        "sales_value": 3.99,
        "retail_disc": 0.5,
        "coupon_disc": 0.25,
        "coupon_match_disc": 0.0,
        "week": 9,
        "transaction_timestamp": "2026-03-02T17:30:00Z",
        **changes,
    }


def product(department: str, number: int = 1) -> Record:
    return {
        "product_id": number,
        "manufacturer_id": 2,
        "department": department,
        "brand": "National",
    }


@pytest.fixture
def house(tmp_path: Path) -> Installation:
    (tmp_path / "sources").mkdir()
    return Installation(tmp_path)


def landed(house: Installation) -> None:
    """Everything delivered is landed; a daily source delivers an empty file at least."""
    for day in DAYS:
        if day not in house.files("purchases"):
            house.deliver("purchases", day, [])
    for source in contracts_of("sources"):
        land(source, DAYS, house.platform.sources(), house.platform.lake(), ZONE)


def built(house: Installation, *days: date) -> Built:
    landed(house)
    return build_events(house.platform.lake(), days or DAYS, ZONE)


def events(house: Installation, *columns: str) -> list[Any]:
    """The events in order of their positions; values alone where columns are named."""
    rows: list[Record] = house.platform.lake().read("events").to_pylist()
    if not columns:
        return rows
    return [tuple(row[c] for c in columns) if columns[1:] else row[columns[0]] for row in rows]


# What an event says


def test_a_purchase_says_who_bought_what_when_and_for_how_much(house: Installation) -> None:
    house.deliver("products", MONDAY, [product("GROCERY")])
    house.deliver("purchases", MONDAY, [bought(basket=40)])
    built(house)
    [event] = events(house)
    assert event == {
        "event_id": "purchases/40/1",
        "event_type": "purchase",
        "user_id": "7",
        "content_id": "1",
        "category": "GROCERY",
        "campaign_id": None,
        "order_id": "40",
        "value_cents": 399,
        "occurred_at": datetime(2026, 3, 2, 17, 30),
        "received_at": datetime(2026, 3, 3, 5),
        "properties": '{"store_id":31,"quantity":2,"retail_disc":0.5,"coupon_disc":0.25,'
        '"coupon_match_disc":0.0}',
        "delivered_on": MONDAY,
        "topic": "purchases",
        "line": 1,
    }


def test_mailings_and_redemptions_happen_when_their_business_day_begins(
    house: Installation,
) -> None:
    redeemed = {"household_id": 7, "coupon_upc": 5, "campaign_id": 3}
    mailed = {"household_id": 7, "campaign_id": 3}
    house.deliver("redemptions", MONDAY, [redeemed | {"redeemed_on": "2026-03-02"}])
    house.deliver("mailings", MONDAY, [mailed | {"mailed_on": "2025-07-01"}])
    built(house)
    click, impression = sorted(events(house), key=lambda event: event["event_type"])
    nothing = dict.fromkeys(["content_id", "category", "order_id", "value_cents"])
    assert click == nothing | {
        "event_id": "redemptions/3/5/7/2026-03-02",
        "event_type": "click",
        "user_id": "7",
        "campaign_id": "3",
        "occurred_at": datetime(2026, 3, 2, 5),
        "received_at": datetime(2026, 3, 3, 5),
        "properties": '{"coupon_upc":5}',
        "delivered_on": MONDAY,
        "topic": "redemptions",
        "line": 1,
    }
    assert (impression["event_id"], impression["event_type"]) == ("mailings/3/7", "impression")
    assert impression["occurred_at"] == datetime(2025, 7, 1, 4), "in summer four hours behind"
    assert (impression["campaign_id"], impression["properties"]) == ("3", "{}")


def test_every_amount_of_dollars_is_its_cents(house: Installation) -> None:
    cents = [*range(0, 3000), *range(9_990, 10_010), 999_999, 1_000_000]
    lines = [bought(basket=n, sales_value=n / 100, quantity=10) for n in cents if n]
    house.deliver("purchases", MONDAY, lines)
    built(house)
    assert events(house, "value_cents") == [n for n in cents if n]


# Duplicates and days


def test_duplicates_keep_their_own_positions_within_a_day_and_across_days(
    house: Installation,
) -> None:
    house.deliver("purchases", MONDAY, [bought(1), bought(2), bought(1)])
    house.deliver("purchases", WEDNESDAY, [b"?", bought(2, quantity=9)])
    built(house)
    assert events(house, "event_id", "delivered_on", "line") == [
        ("purchases/1/1", MONDAY, 1),
        ("purchases/2/1", MONDAY, 2),
        ("purchases/1/1", MONDAY, 3),
        ("purchases/2/1", WEDNESDAY, 2),
    ]


def test_a_late_record_stays_in_its_delivery_day_and_keeps_when_it_happened(
    house: Installation,
) -> None:
    house.deliver("purchases", WEDNESDAY, [bought(transaction_timestamp="2025-12-24T18:00:00Z")])
    built(house)
    [event] = events(house)
    assert event["delivered_on"] == WEDNESDAY
    assert event["occurred_at"] == datetime(2025, 12, 24, 18)
    assert event["received_at"] == datetime(2026, 3, 5, 5)


def test_a_file_delivered_again_replaces_the_events_of_its_day(house: Installation) -> None:
    for day in DAYS:
        house.deliver("purchases", day, [bought(day.day), bought(day.day + 10)])
    assert built(house).events == dict.fromkeys(DAYS, 2)
    house.deliver("purchases", TUESDAY, [bought(99)])
    again = built(house)
    assert (again.events, again.unchanged) == ({TUESDAY: 1}, 2)
    assert events(house, "order_id") == ["2", "12", "99", "4", "14"]
    assert built(house).events == {}


# Categories


def test_the_category_is_what_the_catalog_said_up_to_the_day_of_the_delivery(
    house: Installation,
) -> None:
    house.deliver("products", MONDAY, [product("TOYS"), product("GROCERY")])
    house.deliver("products", WEDNESDAY, [product("DELI"), product("FLORAL", 2)])
    for day in DAYS:
        house.deliver("purchases", day, [bought(day.day), bought(day.day, product=2)])
    built(house)
    assert events(house, "category") == ["GROCERY", None, "GROCERY", None, "DELI", "FLORAL"]


def test_a_catalog_delivered_again_rebuilds_the_days_from_then_on(house: Installation) -> None:
    house.deliver("products", MONDAY, [product("GROCERY")])
    for day in DAYS:
        house.deliver("purchases", day, [bought(day.day)])
    built(house)
    house.deliver("products", TUESDAY, [product("DELI")])
    assert built(house).events.keys() == {TUESDAY, WEDNESDAY}
    assert events(house, "category") == ["GROCERY", "DELI", "DELI"]


# Any order, any portions


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_days_built_in_any_order_make_the_same_events(
    house: Installation, order: tuple[int, ...]
) -> None:
    house.deliver("products", TUESDAY, [product("GROCERY")])
    for day in DAYS:
        house.deliver("purchases", day, [bought(1), bought(day.day)])
    landed(house)
    for n in order:
        report = build_events(house.platform.lake(), [DAYS[n]], ZONE)
        assert report.events == {DAYS[n]: 2}
    assert events(house, "delivered_on", "line", "category") == [
        (day, line, category)
        for day, category in zip(DAYS, (None, "GROCERY", "GROCERY"), strict=True)
        for line in (1, 2)
    ]
    assert build_events(house.platform.lake(), DAYS, ZONE).unchanged == 3


def test_many_days_are_built_in_portions_with_the_same_result(
    house: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "DAYS_PER_COMMIT", 2)
    for day in DAYS:
        house.deliver("purchases", day, [bought(day.day)])
    landed(house)
    report = build_events(house.platform.lake(), DAYS, ZONE)
    assert report.events == dict.fromkeys(DAYS, 1)
    assert events(house, "order_id") == ["2", "3", "4"]


def test_another_business_zone_builds_all_days_again(house: Installation) -> None:
    house.deliver(
        "mailings", MONDAY, [{"household_id": 7, "campaign_id": 3, "mailed_on": "2026-03-02"}]
    )
    built(house)
    berlin = ZoneInfo("Europe/Berlin")
    assert build_events(house.platform.lake(), DAYS, berlin).unchanged == 0
    assert events(house, "occurred_at") == [datetime(2026, 3, 1, 23)]


# The newest day


def test_the_newest_day_is_the_one_in_which_the_newest_delivery_closed(
    house: Installation,
) -> None:
    lake = house.platform.lake()
    with pytest.raises(ProfilehouseError, match="no events yet: materialize lake/events first"):
        newest_event_day(lake, ZONE)
    built(house, MONDAY, TUESDAY)
    assert newest_event_day(lake, ZONE) == WEDNESDAY, "Tuesday closes on Wednesday, UTC"
    assert newest_event_day(lake, ZoneInfo("UTC")) == TUESDAY


def test_days_are_stale_until_they_are_built_from_what_is_landed_now(house: Installation) -> None:
    def stale() -> list[date]:
        return stale_days(house.platform.lake(), DAYS, ZONE)

    landed(house)
    assert stale() == DAYS
    built(house)
    assert stale() == []
    house.deliver("products", TUESDAY, [product("GROCERY")])
    landed(house)
    assert stale() == [TUESDAY, WEDNESDAY]
    built(house, WEDNESDAY)
    assert stale() == [TUESDAY]
    built(house)
    assert stale() == []
