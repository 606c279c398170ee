import gzip
import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profilehouse.contracts import contract
from profilehouse.decode import refusals
from profilehouse.errors import ProfilehouseError
from profilehouse.sources import retailer
from profilehouse.sources.retailer import Delivered, deliver_year, shifted, weeks_to

NEW_YORK = ZoneInfo("America/New_York")
TODAY = date(2026, 3, 18)
FIRST_DAY, LAST_DAY = date(2025, 3, 16), date(2026, 3, 15)
CLOSED_DAY = LAST_DAY - timedelta(days=6)


class Killed(BaseException):
    """What stands for the death of the process."""


def die_after_ten_files(done: int, _total: int) -> None:
    if done == 10:
        raise Killed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real year, whose first run was interrupted and finished five weeks later."""
    folder = tmp_path_factory.mktemp("retailer")
    with pytest.raises(Killed):
        deliver_year(folder, today=TODAY, progress=die_after_ten_files)
    deliver_year(folder, today=TODAY + timedelta(weeks=5))
    return folder


@pytest.fixture(scope="module")
def delivered(folder: Path) -> Delivered:
    return deliver_year(folder)


def days_of(folder: Path, source: str) -> list[date]:
    return sorted(
        date.fromisoformat(p.name.removesuffix(".jsonl.gz")) for p in (folder / source).iterdir()
    )


def lines_of(folder: Path, source: str) -> Iterator[tuple[date, list[bytes]]]:
    for day in days_of(folder, source):
        yield day, gzip.decompress((folder / source / f"{day}.jsonl.gz").read_bytes()).splitlines()


def records_of(folder: Path, source: str) -> list[tuple[date, dict[str, object]]]:
    return [
        (day, msgspec.json.decode(line))
        for day, lines in lines_of(folder, source)
        for line in lines
    ]


def cents(query: str) -> tuple[int, ...]:
    columns = ", ".join(
        f"sum(round({name} * 100)::BIGINT)"
        for name in ("sales_value", "retail_disc", "coupon_disc", "coupon_match_disc")
    )
    row = duckdb.connect().execute(f"SELECT {columns} FROM {query}").fetchone()
    assert row is not None
    return row


def test_an_interrupted_first_run_is_finished_with_the_shift_it_began_with(
    folder: Path, delivered: Delivered
) -> None:
    assert (delivered.first_day, delivered.last_day) == (FIRST_DAY, LAST_DAY)
    assert delivered.weeks_shifted == weeks_to(TODAY)
    assert delivered.complete
    assert sorted(p.name for p in folder.iterdir()) == sorted([*retailer.SOURCES, "delivery.json"])
    files = [p.name for source in retailer.SOURCES for p in (folder / source).iterdir()]
    assert len(files) == delivered.files
    assert all(name.endswith(".jsonl.gz") and name[0] != "." for name in files)


def test_a_finished_year_is_not_written_again(folder: Path, delivered: Delivered) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert deliver_year(folder, today=TODAY + timedelta(weeks=20)) == delivered
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_nothing_of_the_real_year_is_lost(folder: Path, delivered: Delivered) -> None:
    lines = {s: sum(len(lines) for _, lines in lines_of(folder, s)) for s in retailer.SOURCES}
    assert lines == delivered.records
    assert lines == {
        "purchases": 1_469_307,
        "crm": 801 + 81 + 16,
        "products": 92_331,
        "campaigns": 27,
        "mailings": 6_589,
        "redemptions": 2_102,
    }


def test_the_sums_of_money_are_unchanged_to_the_cent(folder: Path) -> None:
    package = find_spec(retailer.PACKAGE)
    assert package is not None
    assert package.origin is not None
    real = Path(package.origin).parent / "data" / "transactions.parquet"
    assert cents(f"read_json('{folder}/purchases/*.jsonl.gz')") == cents(f"read_parquet('{real}')")


@pytest.mark.parametrize("source", retailer.SOURCES)
def test_every_record_satisfies_its_contract(folder: Path, source: str) -> None:
    for day, lines in lines_of(folder, source):
        assert refusals(lines, contract(source)) == {}, day


def test_purchases_come_every_day_and_the_closed_day_is_empty(folder: Path) -> None:
    lines = {day: len(lines) for day, lines in lines_of(folder, "purchases")}
    assert list(lines) == [FIRST_DAY + timedelta(days=n) for n in range(365)]
    assert [day for day, count in lines.items() if count == 0] == [CLOSED_DAY]


def test_sources_that_deliver_on_change_have_no_empty_files(folder: Path) -> None:
    for source in retailer.SOURCES[1:]:
        assert contract(source).properties["delivery"] == "on_change"
        assert all(lines for _, lines in lines_of(folder, source))


def test_every_purchase_lies_in_the_business_day_of_its_file_in_order(folder: Path) -> None:
    for day in (FIRST_DAY, date(2025, 11, 2), date(2026, 3, 8), LAST_DAY):
        lines = gzip.decompress((folder / "purchases" / f"{day}.jsonl.gz").read_bytes())
        records = [msgspec.json.decode(line) for line in lines.splitlines()]
        keys = [(r["transaction_timestamp"], r["basket_id"], r["product_id"]) for r in records]
        assert keys == sorted(keys)
        moments = [datetime.fromisoformat(moment) for moment, _, _ in keys]
        assert {moment.astimezone(NEW_YORK).date() for moment in moments} == {day}


def test_amounts_are_clean_decimals(folder: Path) -> None:
    amount = re.compile(rb'"(?:sales_value|\w+_disc)":\d+\.\d\d?[,}]')
    for _, lines in lines_of(folder, "purchases"):
        assert all(len(amount.findall(line)) == 4 for line in lines)


def test_some_households_change_their_income_and_some_change_it_back(folder: Path) -> None:
    bands = contract("crm").column("income").values
    history: dict[int, list[tuple[date, int]]] = defaultdict(list)
    for day, record in records_of(folder, "crm"):
        opened = datetime.fromisoformat(str(record["updated_at"])).astimezone(NEW_YORK)
        assert (opened.date(), opened.hour, opened.minute) == (day, 0, 0)
        history[int(str(record["household_id"]))].append((day, bands.index(str(record["income"]))))
    assert len(history) == 801
    for household, versions in history.items():
        first_band = versions[0][1]
        assert versions[0][0] == FIRST_DAY
        moved = FIRST_DAY + timedelta(days=30 + household // 10 % 240)
        expected = [(FIRST_DAY, first_band)]
        if household % 10 == 0 and first_band < len(bands) - 1:
            expected.append((moved, first_band + 1))
        if household % 50 == 0 and first_band < len(bands) - 1:
            expected.append((moved + timedelta(days=60), first_band))
        assert versions == expected, household


def test_mailings_come_when_their_campaign_starts_or_on_the_first_day(folder: Path) -> None:
    starts = {r["campaign_id"]: r["start_date"] for _, r in records_of(folder, "campaigns")}
    early = 0
    for day, record in records_of(folder, "mailings"):
        assert record["mailed_on"] == starts[record["campaign_id"]]
        mailed_on = date.fromisoformat(str(record["mailed_on"]))
        assert day == max(mailed_on, FIRST_DAY)
        early += mailed_on < FIRST_DAY
    assert early == 12 + 17 + 118


def test_redemptions_come_on_their_day(folder: Path) -> None:
    assert all(r["redeemed_on"] == str(day) for day, r in records_of(folder, "redemptions"))


@given(st.dates(date(2018, 1, 1), date(2100, 1, 1)))
def test_the_year_ends_on_the_latest_such_weekday_before_today(today: date) -> None:
    last_day = retailer.YEAR_ENDS + timedelta(weeks=weeks_to(today))
    assert timedelta(days=1) <= today - last_day <= timedelta(days=7)
    assert last_day.weekday() == retailer.YEAR_ENDS.weekday()


@given(
    st.datetimes(datetime(2017, 1, 1), datetime(2018, 1, 1)),
    st.integers(0, 2000),
    st.sampled_from(["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "UTC"]),
)
def test_a_shift_moves_the_business_day_by_whole_weeks(
    moment: datetime, weeks: int, zone_name: str
) -> None:
    zone = ZoneInfo(zone_name)
    before = moment.replace(tzinfo=UTC).astimezone(zone)
    after = shifted(moment, weeks, zone).replace(tzinfo=UTC).astimezone(zone)
    assert after.date() - before.date() == timedelta(weeks=weeks)
    skipped = after.replace(tzinfo=None) - before.replace(tzinfo=None) - timedelta(weeks=weeks)
    assert timedelta(0) <= skipped <= timedelta(hours=1)


def test_a_time_that_the_clock_skips_is_read_with_the_offset_before_the_change() -> None:
    half_past_two = datetime(2025, 3, 2, 7, 30)  # 02:30 in New York, a week before the change
    assert shifted(half_past_two, 1, NEW_YORK) == datetime(2025, 3, 9, 7, 30)  # 03:30 there


def test_a_time_that_comes_twice_is_its_first() -> None:
    half_past_one = datetime(2025, 10, 26, 5, 30)  # 01:30 in New York, a week before the change
    assert shifted(half_past_one, 1, NEW_YORK) == datetime(2025, 11, 2, 5, 30)


def test_a_zone_in_which_the_purchases_do_not_fill_a_year_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfilehouseError, match="PROFILEHOUSE_TIMEZONE=America/New_York"):
        deliver_year(tmp_path, "UTC", TODAY)
    assert list(tmp_path.iterdir()) == []


def test_another_zone_than_the_years_is_refused(folder: Path) -> None:
    with pytest.raises(ProfilehouseError, match="delivered for America/New_York, not for UTC"):
        deliver_year(folder, "UTC")


def test_a_folder_with_deliveries_of_others_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "purchases" / "2026-01-01.jsonl"
    theirs.parent.mkdir()
    theirs.write_text("{}\n")
    with pytest.raises(ProfilehouseError, match="PROFILEHOUSE_SOURCES to another folder"):
        deliver_year(tmp_path, today=TODAY)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [theirs]


def test_an_unreadable_state_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "delivery.json").write_text('{"first_day": "soon"')
    with pytest.raises(ProfilehouseError, match=r"delivery\.json: not readable .* remove"):
        deliver_year(tmp_path, today=TODAY)


def test_a_missing_package_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retailer, "PACKAGE", "a_package_nobody_has")
    with pytest.raises(ProfilehouseError, match=r"pip install 'profilehouse\[demo\]'"):
        deliver_year(tmp_path, today=TODAY)
