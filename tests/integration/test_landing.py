"""From delivered files to the lake: what is kept of each line, and what a second landing does."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profilehouse.contract_quality import Distinct, Expression, QualityRule, Silence
from profilehouse.contracts import Contract, contract
from profilehouse.errors import ProfilehouseError
from profilehouse.lake import Lake
from profilehouse.sources import landing
from profilehouse.sources.deliveries import close_of
from profilehouse.sources.landing import Landed, delivered, histories, land, records
from profilehouse.sources.repairs import Repair, digest, keep
from tests.pipeline import Installation, Record

CAMPAIGNS, CRM, PURCHASES, REDEMPTIONS = (
    contract(name) for name in ("campaigns", "crm", "purchases", "redemptions")
)
ZONE = ZoneInfo("America/New_York")
MONDAY = date(2026, 3, 2)
TUESDAY, WEDNESDAY = MONDAY + timedelta(days=1), MONDAY + timedelta(days=2)
TABLES = ("purchases", "redemptions", "dead_letters")


def redeemed(household: int, **changes: object) -> Record:
    record = {"household_id": household, "coupon_upc": 5, "campaign_id": 1}
    return {**record, "redeemed_on": str(MONDAY), **changes}


def demographics(household: int, **changes: object) -> Record:
    return {
        "household_id": household,
        "age": "35-44",
        "income": "50-74K",
        "household_size": "2",
        "household_comp": "2 Adults No Kids",
        "kids_count": "0",
        "updated_at": "2026-03-02T05:00:00Z",
        **changes,
    }


@pytest.fixture
def house(tmp_path: Path) -> Installation:
    (tmp_path / "sources").mkdir()
    return Installation(tmp_path)


def landed(
    house: Installation, source: Contract = REDEMPTIONS, days: tuple[date, ...] = (MONDAY,)
) -> Landed:
    return land(source, days, house.platform.sources(), house.platform.lake(), ZONE)


def rows(house: Installation, table: str = "redemptions") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = house.platform.lake().read(table).to_pylist()
    return found


# What is kept


def test_a_record_is_kept_as_received_beside_where_it_came_from(house: Installation) -> None:
    strange = b'  {"campaign_id":1,"coupon_upc":5,\t"redeemed_on":"2026-03-02","household_id":7}\r'
    house.deliver("redemptions", MONDAY, [redeemed(1), strange])
    house.deliver("redemptions", TUESDAY, [redeemed(2)])
    assert landed(house, days=(MONDAY, TUESDAY)).days == [MONDAY, TUESDAY]
    first, second, third = rows(house)
    assert second == {
        "delivered_on": MONDAY,
        "line": 2,
        "file": "redemptions/2026-03-02.jsonl",
        "received_at": datetime(2026, 3, 3, 5),
        "record": strange.decode(),
    }
    assert (first["line"], third["line"]) == (1, 1)
    assert third["received_at"] == datetime(2026, 3, 4, 5)


def test_blank_lines_are_no_records_but_count_as_lines(house: Installation) -> None:
    house.deliver("redemptions", MONDAY, [b"", redeemed(1), b"   ", b"\r", redeemed(2), b""])
    report = landed(house)
    assert [row["line"] for row in rows(house)] == [2, 5]
    assert (report.records, report.dead_letters) == (2, 0)


def test_the_last_line_needs_no_end_and_a_file_may_be_compressed(house: Installation) -> None:
    path = house.deliver("redemptions", MONDAY, [redeemed(1), redeemed(2)])
    text = path.read_bytes().rstrip(b"\n")
    path.unlink()
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(text))
    landed(house)
    assert [row["record"] for row in rows(house)] == text.decode().split("\n")
    assert {row["file"] for row in rows(house)} == {"redemptions/2026-03-02.jsonl.gz"}


@pytest.mark.parametrize(
    ("day", "closes"),
    [
        (date(2026, 3, 7), datetime(2026, 3, 8, 5)),
        (date(2026, 3, 8), datetime(2026, 3, 9, 4)),
        (date(2026, 10, 31), datetime(2026, 11, 1, 4)),
        (date(2026, 11, 1), datetime(2026, 11, 2, 5)),
        (date(2026, 12, 31), datetime(2027, 1, 1, 5)),
    ],
)
def test_a_delivery_is_received_at_the_next_midnight_of_the_business_zone(
    day: date, closes: datetime
) -> None:
    assert close_of(day, ZONE) == closes
    local = closes.replace(tzinfo=UTC).astimezone(ZONE)
    assert (local.date(), local.hour) == (day + timedelta(days=1), 0)


def test_a_refused_record_keeps_its_bytes_the_reason_and_the_contract(
    house: Installation,
) -> None:
    house.deliver("redemptions", MONDAY, [redeemed(1), b"\xff\x00{", redeemed(0), redeemed(2)])
    report = landed(house)
    assert (report.records, report.dead_letters) == (4, 2)
    assert [row["line"] for row in rows(house)] == [1, 4]
    first, second = rows(house, "dead_letters")
    assert first == {
        "topic": "redemptions",
        "delivered_on": MONDAY,
        "line": 2,
        "file": "redemptions/2026-03-02.jsonl",
        "received_at": datetime(2026, 3, 3, 5),
        "reason": "JSON is malformed: invalid character (byte 0)",
        "contract_version": REDEMPTIONS.version,
        "record": b"\xff\x00{",
    }
    assert second["reason"] == "Expected `int` >= 1 - at `$.household_id`"


LINE = st.one_of(
    st.integers(1, 9).map(lambda n: str(redeemed(n)).replace("'", '"').encode()),
    st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"")),
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=st.lists(LINE, max_size=8))
def test_every_line_of_any_file_is_kept_once_byte_by_byte(
    house: Installation, lines: list[bytes]
) -> None:
    house.deliver("redemptions", MONDAY, lines)
    report = landed(house)
    good = {row["line"]: row["record"].encode() for row in rows(house)}
    bad = {row["line"]: row["record"] for row in rows(house, "dead_letters")}
    assert good.keys().isdisjoint(bad)
    assert good | bad == {n: line for n, line in enumerate(lines, start=1) if line.strip()}
    if report.days:
        assert (report.records, report.dead_letters) == (len(good) + len(bad), len(bad))


# Reading them again


def test_records_are_read_in_the_columns_of_their_contract(house: Installation) -> None:
    times = ["2026-03-02T05:00:00Z", "2026-03-02t00:00:00.5-05:00", "2026-03-02 05:00:00z"]
    house.deliver("crm", MONDAY, [demographics(n, updated_at=t) for n, t in enumerate(times, 1)])
    assert landed(house, CRM).dead_letters == 0
    read = records(CRM, house.platform.lake())
    assert read.column_names == ["delivered_on", "line", "received_at", *CRM.arrow_schema.names]
    assert read["household_id"].to_pylist() == [1, 2, 3]
    assert read["marital_status"].to_pylist() == [None] * 3
    at_five = datetime(2026, 3, 2, 5)
    assert read["updated_at"].to_pylist() == [
        at_five,
        at_five + timedelta(seconds=0.5),
        at_five,
    ]


def test_a_history_has_all_records_of_those_who_were_delivered_on_some_days(
    house: Installation,
) -> None:
    house.deliver("crm", MONDAY, [demographics(1), demographics(2)])
    house.deliver("crm", TUESDAY, [demographics(2, kids_count="1"), demographics(3)])
    house.deliver("crm", WEDNESDAY, [demographics(3, kids_count="2")])
    landed(house, CRM, (MONDAY, TUESDAY, WEDNESDAY))
    touched = histories(CRM, house.platform.lake(), "household_id", [WEDNESDAY, MONDAY])
    found = [(row["household_id"], row["kids_count"]) for row in touched.to_pylist()]
    assert sorted(found) == [
        (1, "0"),
        (2, "0"),
        (2, "1"),
        (3, "0"),
        (3, "2"),
    ]
    [row] = histories(CRM, house.platform.lake(), "household_id", [TUESDAY])[:1].to_pylist()
    assert row["household_id"] == 2


# Held back

RULED = replace(
    REDEMPTIONS,
    quality=(
        QualityRule("campaign_is_known", Expression("campaign_id < 9"), "Known.", "error"),
        QualityRule("coupon_is_once", Distinct(("household_id", "coupon_upc")), "Once.", "error"),
        QualityRule("it_is_small", Expression("coupon_upc < 5"), "Small.", "warning"),
    ),
)


@pytest.mark.parametrize("together", [True, False])
def test_each_record_is_landed_a_dead_letter_or_held_back_whichever_days_are_landed_together(
    house: Installation, together: bool
) -> None:
    strange = redeemed(4, campaign_id=9)
    house.deliver("redemptions", MONDAY, [redeemed(1), b"{", strange, redeemed(1), redeemed(2)])
    house.deliver("redemptions", TUESDAY, [redeemed(1), redeemed(2, campaign_id=9), redeemed(2)])
    days = (MONDAY, TUESDAY)
    reports = [
        landed(house, RULED, part) for part in ([days] if together else [(d,) for d in days])
    ]
    assert sum(report.quarantined for report in reports) == 5
    assert [(r["delivered_on"], r["line"]) for r in rows(house)] == [(MONDAY, 5), (TUESDAY, 1)]
    assert [(r["delivered_on"], r["line"]) for r in rows(house, "dead_letters")] == [(MONDAY, 2)]
    assert sorted((r["delivered_on"], r["line"], r["rule"]) for r in rows(house, "quarantine")) == [
        (MONDAY, 1, "coupon_is_once"),
        (MONDAY, 3, "campaign_is_known"),
        (MONDAY, 4, "coupon_is_once"),
        (TUESDAY, 2, "campaign_is_known"),
        (TUESDAY, 2, "coupon_is_once"),
        (TUESDAY, 3, "coupon_is_once"),
    ]


def test_a_corrected_file_leaves_nothing_of_its_day_in_quarantine(house: Installation) -> None:
    house.deliver("redemptions", MONDAY, [redeemed(1, campaign_id=9)])
    house.deliver("redemptions", TUESDAY, [redeemed(1, campaign_id=9)])
    landed(house, RULED, (MONDAY, TUESDAY))
    house.deliver("redemptions", MONDAY, [redeemed(1)])
    assert landed(house, RULED, (MONDAY, TUESDAY)).days == [MONDAY]
    assert [row["delivered_on"] for row in rows(house, "quarantine")] == [TUESDAY]
    assert [row["delivered_on"] for row in rows(house)] == [MONDAY]


def test_a_silenced_rule_holds_nothing_back_on_its_day(house: Installation) -> None:
    silence = Silence("campaign_is_known", MONDAY, "Renumbered.", MONDAY)
    silenced = replace(RULED, silences=(silence,))
    for day in (MONDAY, TUESDAY):
        house.deliver("redemptions", day, [redeemed(1, campaign_id=9)])
    landed(house, silenced, (MONDAY, TUESDAY))
    assert [row["delivered_on"] for row in rows(house)] == [MONDAY]
    assert [row["delivered_on"] for row in rows(house, "quarantine")] == [TUESDAY]


def test_a_rule_that_cannot_be_computed_is_named_without_the_values(house: Installation) -> None:
    house.deliver("redemptions", MONDAY, [redeemed(1, coupon_upc=2**62, campaign_id=7)])
    product = QualityRule("odd", Expression("coupon_upc * campaign_id < 99"), "Odd.", "error")
    with pytest.raises(ProfilehouseError, match="quality rule odd: SQL cannot be") as caught:
        landed(house, replace(REDEMPTIONS, quality=(product,)))
    assert str(2**62) not in str(caught.value)
    assert landed(house, RULED).days == [MONDAY], "with the rule mended"


def repaired(
    house: Installation,
    line: int,
    wrong: Record,
    right: Record,
    at: datetime = datetime(2026, 4, 1),
) -> None:
    """Note what a line of Monday's redemptions should have been."""
    letter = f"redemptions/{MONDAY}/{line}"
    repair = Repair(letter, MONDAY, digest(json.dumps(wrong).encode()), json.dumps(right).encode())
    keep(house.platform.lake(), "redemptions", [repair], at)


def test_a_record_that_only_a_repair_of_another_made_wrong_can_be_repaired_too(
    house: Installation,
) -> None:
    strange, other = redeemed(4, campaign_id=9), redeemed(1)
    house.deliver("redemptions", MONDAY, [strange, other])
    landed(house, RULED)
    repaired(house, 1, strange, redeemed(1))
    landed(house, RULED)
    assert [row["line"] for row in rows(house, "quarantine")] == [1, 2]
    repaired(house, 2, other, redeemed(2))
    landed(house, RULED)
    assert rows(house, "quarantine") == []
    assert ['"household_id": 1' in rows(house)[0]["record"], len(rows(house))] == [True, 2]


def test_of_repairs_of_lines_that_are_alike_the_one_noted_last_counts(house: Installation) -> None:
    wrong = redeemed(1, campaign_id=9)
    house.deliver("redemptions", MONDAY, [wrong, wrong])
    ruled = replace(RULED, quality=RULED.quality[:1])
    landed(house, ruled)
    for second, (line, household) in enumerate([(1, 2), (2, 3), (1, 4)]):
        repaired(house, line, wrong, redeemed(household), datetime(2026, 4, 1, 0, 0, second))
    landed(house, ruled)
    assert [json.loads(row["record"])["household_id"] for row in rows(house)] == [4, 4]


# Again, corrected, late


def test_what_has_landed_is_not_landed_again_until_its_bytes_or_contract_change(
    house: Installation,
) -> None:
    house.deliver("redemptions", MONDAY, [redeemed(1)])
    assert landed(house).days == [MONDAY]
    before = rows(house, "deliveries")
    again = landed(house)
    assert (again.days, again.unchanged) == ([], 1)
    assert rows(house, "deliveries") == before

    assert landed(house, replace(REDEMPTIONS, version="9.9.9")).days == [MONDAY]
    house.deliver("redemptions", MONDAY, [redeemed(2)])
    assert landed(house).days == [MONDAY]
    assert [row["line"] for row in rows(house)] == [1]
    assert '"household_id": 2' in rows(house)[0]["record"]


def test_a_corrected_file_takes_its_dead_letters_away_and_no_others(house: Installation) -> None:
    for source in ("redemptions", "campaigns"):
        for day in (MONDAY, TUESDAY):
            house.deliver(source, day, [b"?"])
        landed(house, contract(source), (MONDAY, TUESDAY))
    house.deliver("redemptions", MONDAY, [redeemed(1)])
    landed(house)
    assert [row["line"] for row in rows(house)] == [1]
    letters = {(row["topic"], row["delivered_on"]) for row in rows(house, "dead_letters")}
    assert letters == {("campaigns", MONDAY), ("campaigns", TUESDAY), ("redemptions", TUESDAY)}
    delivery = next(
        row
        for row in rows(house, "deliveries")
        if (row["topic"], row["delivered_on"]) == ("redemptions", MONDAY)
    )
    assert (delivery["records"], delivery["dead_letters"]) == (1, 0)


def test_a_file_may_come_late_where_a_source_delivers_only_changes(house: Installation) -> None:
    assert landed(house).days == [MONDAY]
    [nothing] = rows(house, "deliveries")
    assert (nothing["file"], nothing["records"]) == (None, 0)
    assert landed(house).unchanged == 1
    house.deliver("redemptions", MONDAY, [redeemed(1)])
    assert landed(house).records == 1
    [something] = rows(house, "deliveries")
    assert (something["file"], something["records"]) == ("redemptions/2026-03-02.jsonl", 1)


def test_what_has_landed_stays_when_the_source_clears_its_folder(house: Installation) -> None:
    house.deliver("purchases", MONDAY, [])
    house.deliver("redemptions", MONDAY, [redeemed(1)])
    for source in (PURCHASES, REDEMPTIONS):
        landed(house, source)
        house.withhold(source.name, MONDAY)
        report = landed(house, source)
        assert (report.unchanged, report.problems) == (1, {})
    assert len(rows(house)) == 1


def test_an_interrupted_day_whose_file_was_cleared_away_is_not_taken_for_an_empty_one(
    house: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.deliver("redemptions", MONDAY, [redeemed(1), redeemed(2)])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(landing, "delivery_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            landed(house)
    house.withhold("redemptions", MONDAY)
    assert "was interrupted" in landed(house).problems[MONDAY]
    assert len(rows(house)) == 2


# Files that are not what they should be


def test_a_missing_day_of_a_daily_source_is_a_problem_and_the_others_land(
    house: Installation,
) -> None:
    for day in (MONDAY, WEDNESDAY):
        house.deliver("purchases", day, [])
    report = landed(house, PURCHASES, (MONDAY, TUESDAY, WEDNESDAY))
    assert report.days == [MONDAY, WEDNESDAY]
    assert report.problems == {
        TUESDAY: f"purchases: no file for {TUESDAY} in {house.sources}/purchases; deliver"
        f" {TUESDAY}.jsonl (an empty one if nothing happened) and run again"
    }
    assert delivered(house.platform.lake(), "purchases").keys() == {MONDAY, WEDNESDAY}


def test_two_files_for_a_day_are_a_problem_of_that_day_alone(house: Installation) -> None:
    path = house.deliver("redemptions", MONDAY, [redeemed(1)])
    house.deliver("redemptions", TUESDAY, [redeemed(2)])
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert landed(house, days=(TUESDAY,)).problems == {}
    assert landed(house, days=(MONDAY, TUESDAY)).problems == {
        MONDAY: f"redemptions: more than one file for {MONDAY}: {MONDAY}.jsonl,"
        f" {MONDAY}.jsonl.gz; remove the wrong one and run again"
    }
    path.unlink()
    assert landed(house).days == [MONDAY]


def test_names_that_say_no_day_are_told_apart_from_deliveries(house: Installation) -> None:
    house.deliver("redemptions", MONDAY, [])
    folder = house.sources / "redemptions"
    for name in ("2026-02-30.jsonl", "2026-03-03.json", "x2026-03-03.jsonl", "2026-03-03.JSONL"):
        (folder / name).touch()
    (folder / ".2026-03-03.jsonl.tmp").touch()
    (folder / "2026-03-04.jsonl").mkdir()
    found = house.platform.sources().deliveries(REDEMPTIONS)
    assert found.files == {MONDAY: f"{MONDAY}.jsonl"}
    assert found.unrecognised == (
        "2026-02-30.jsonl",
        "2026-03-03.JSONL",
        "2026-03-03.json",
        "x2026-03-03.jsonl",
    )
    assert found.repeated == {}


# Interrupted


class Breaking(Lake):
    """A lake that breaks at its n-th write."""

    def __init__(self, lake: Lake, writes: int) -> None:
        super().__init__(lake._catalog, lake.url, lake._layouts)
        self.writes = writes

    def replace(self, name: str, rows: pa.Table, **where: Any) -> None:
        if self.writes == 0:
            raise ConnectionError("gone")
        self.writes -= 1
        super().replace(name, rows, **where)


@pytest.mark.parametrize("writes", range(4))
@pytest.mark.parametrize("withdrawn", [False, True])
def test_a_landing_that_breaks_before_a_write_is_done_again_also_if_the_file_was_withdrawn(
    house: Installation, writes: int, withdrawn: bool
) -> None:
    house.deliver("redemptions", MONDAY, [redeemed(1), b"?"])
    landed(house)
    old = house.withhold("redemptions", MONDAY)
    house.deliver("redemptions", MONDAY, [b"!", redeemed(3)])
    house.deliver("redemptions", TUESDAY, [redeemed(4)])
    days = (MONDAY, TUESDAY)
    lake = Breaking(house.platform.lake(), writes)
    with pytest.raises(ConnectionError):
        land(REDEMPTIONS, days, house.platform.sources(), lake, ZONE)
    if withdrawn:
        house.restore(old)
    landed(house, days=days)
    assert [(row["delivered_on"], row["line"]) for row in rows(house)] == [
        (MONDAY, 1 if withdrawn else 2),
        (TUESDAY, 1),
    ]
    [letter] = rows(house, "dead_letters")
    assert letter["record"] == (b"?" if withdrawn else b"!")


def test_many_days_are_committed_in_parts_with_the_same_result(
    house: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = tuple(MONDAY + timedelta(days=n) for n in range(7))
    for n, day in enumerate(days):
        house.deliver("redemptions", day, [redeemed(m + 1) for m in range(n)] + [b"?"])
    monkeypatch.setattr(landing, "BYTES_PER_COMMIT", 300)
    folder, lake = house.platform.sources(), house.platform.lake()
    report = land(REDEMPTIONS, days, folder, lake, ZONE)
    assert report.days == list(days)
    assert lake.days("redemptions") == {day: n for n, day in enumerate(days) if n}
    assert lake.days("dead_letters") == dict.fromkeys(days, 1)
    assert delivered(lake, "redemptions").keys() == set(days)
