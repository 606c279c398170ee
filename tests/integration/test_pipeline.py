"""The whole platform on a few real days, from the retailer's files to checked profiles."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from shutil import copytree, rmtree
from zoneinfo import ZoneInfo

import pytest

from profilehouse.sources.deliveries import close_of
from profilehouse.sources.retailer import TIMEZONE
from tests.pipeline import (
    DAILY,
    DAYS,
    Installation,
    Ran,
    Record,
    State,
    deliver,
    differences,
    of_day,
    run_and_tell,
)

ZONE = ZoneInfo(TIMEZONE)
KNOWN_GAPS = {
    "warehouse/fct_purchase content_key_is_in_dim_content": "WARN",
    "warehouse/dim_user every_buyer_has_demographics": "WARN",
}
"""What the real data lacks: products in the catalog and demographics of households."""


def new_failures(ran: Ran) -> dict[str, str]:
    """Severity of the failing checks beside those of the known gaps."""
    return {name: how for name, how in ran.failing.items() if name not in KNOWN_GAPS}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture
def house(shared: Path, tmp_path: Path) -> Installation:
    """The days are delivered, nothing is loaded."""
    deliver(shared, tmp_path / "sources")
    return Installation(tmp_path)


@pytest.fixture(scope="module")
def healthy(
    shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Installation, Ran, State]:
    """All days loaded in one run without any disturbance, and what it left. Not to be changed."""
    folder = tmp_path_factory.mktemp("healthy")
    deliver(shared, folder / "sources")
    house = Installation(folder)
    ran = house.run()
    return house, ran, house.state()


@pytest.fixture(scope="module")
def wanted(healthy: tuple[Installation, Ran, State]) -> State:
    return healthy[2]


# A healthy delivery


def test_of_all_checks_exactly_those_that_name_the_known_gaps_fail_and_only_warn(
    healthy: tuple[Installation, Ran, State],
) -> None:
    house, ran, _ = healthy
    assert ran.success
    assert ran.failing == KNOWN_GAPS
    assert len(ran.passed) > 200

    bought = [r for day in DAYS for r in house.records("purchases", day)]
    [catalog] = [house.records("products", day) for day in house.files("products")]
    known = {r["product_id"] for r in catalog}
    users = {r["household_id"] for day in house.files("crm") for r in house.records("crm", day)}
    buyers = {r["household_id"] for r in bought}
    failing = [ran.metadata[name]["failing"] for name in KNOWN_GAPS]
    assert failing == [sum(r["product_id"] not in known for r in bought), len(buyers - users)]
    assert all(failing)


def test_nothing_of_the_files_is_lost_and_nothing_is_added(
    healthy: tuple[Installation, Ran, State],
) -> None:
    house, _, state = healthy
    delivered = {
        source: [r for day in house.files(source) for r in house.records(source, day)]
        for source in ("purchases", "mailings", "redemptions")
    }
    assert all(delivered.values())
    for source, records in delivered.items():
        assert len(state[f"lake/{source}"]) == len(records)
    assert len(state["lake/events"]) == sum(map(len, delivered.values()))
    assert state["lake/dead_letters"] == []
    [money] = house.query("SELECT COUNT(*) AS lines, SUM(value_cents) AS cents FROM fct_purchase")
    cents = sum(round(r["sales_value"] * 100) for r in delivered["purchases"])
    assert money == {"lines": len(delivered["purchases"]), "cents": cents}
    [seen] = house.query("SELECT COUNT(*) AS n FROM fct_interaction")
    assert seen["n"] == len(delivered["mailings"]) + len(delivered["redemptions"])
    people = {str(r["household_id"]) for records in delivered.values() for r in records}
    assert len(state["profiles/rows"]) == len(state["warehouse/profile"]) == len(people)


def test_a_second_run_of_a_day_or_of_everything_writes_nothing_at_all(
    healthy: tuple[Installation, Ran, State],
) -> None:
    house, _, _ = healthy
    before, commits = house.state(with_load_times=True), house.commits()
    for days in ([DAYS[1]], DAYS):
        assert house.run(*days, checked=False).success
        assert differences(house.state(with_load_times=True), before) == []
        assert house.commits() == commits


# In any order

ORDERS = {
    "forwards": [[0], [1], [2], [3]],
    "backwards": [[3], [2], [1], [0]],
    "mixed, with a range": [[2], [0, 1], [3]],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_days_loaded_in_any_order_end_in_the_tables_of_one_run(
    house: Installation, wanted: State, order: list[list[int]]
) -> None:
    for days in order:
        assert house.run(*[DAYS[n] for n in days], checked=False).success
    assert differences(house.state(), wanted) == []
    assert all(wanted[name] for name in wanted if name != "lake/dead_letters"), "something to see"


def test_checks_pass_when_a_later_day_came_first_and_the_weekly_ones_miss_the_day_between(
    house: Installation,
) -> None:
    assert house.run(DAYS[2], checked=False).success
    assert new_failures(house.run(DAYS[0])) == {}
    weekly = house.check()
    assert weekly.success
    missed = "lake/purchases every_day_was_delivered"
    waiting = {f"lake/{source} every_file_is_landed": "WARN" for source in DAILY}
    assert new_failures(weekly) == {missed: "WARN", **waiting}
    assert (weekly.metadata[missed]["missing_days"], weekly.metadata[missed]["days"]) == (1, 3)


# Late, missing and corrected


def test_a_file_corrected_after_it_was_landed_is_missed_until_its_day_is_run_again(
    house: Installation, wanted: State
) -> None:
    first, second = DAYS[:2]
    assert house.run(first, checked=False).success
    right = house.withhold("purchases", first)
    house.restore(right)  # written again, with the same content
    assert new_failures(house.run(second)) == {}

    house.deliver("purchases", first, [bought(close_of(first, ZONE) - timedelta(hours=3))])
    ran = house.run(second)
    assert ran.success
    assert new_failures(ran) == {"lake/purchases every_file_is_landed": "WARN"}
    assert ran.metadata["lake/purchases every_file_is_landed"]["changed_files"] == 1

    house.restore(right)
    assert new_failures(house.run()) == {}
    assert differences(house.state(), wanted) == []


def test_facts_loaded_by_another_select_are_outdated(
    house: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert house.run(checked=False).success
    with house.platform.warehouse() as warehouse:
        warehouse.execute("UPDATE load_ledger SET fingerprint = 'old' WHERE delivered_on = ?"
                          " AND table_name = 'fct_purchase'", (DAYS[0],))  # fmt: skip
    weekly = house.check()
    outdated = "warehouse/fct_purchase every_delivered_day_is_loaded"
    assert new_failures(weekly) == {outdated: "ERROR"}
    assert weekly.metadata[outdated]["missing_days"] == 1


def test_a_source_whose_every_record_is_refused_stops_the_run(house: Installation) -> None:
    day = DAYS[0]
    renamed = [{**record, "basket": 1} for record in house.records("purchases", day)]
    house.deliver("purchases", day, renamed)
    ran = house.run(day)
    assert not ran.success
    assert new_failures(ran) == {"lake/purchases no_record_was_refused": "ERROR"}
    assert "lake/events" not in ran.made


def bought(at: datetime, **changes: object) -> Record:
    """A purchase of somebody who buys nothing else."""
    return {
        "household_id": 999_999,
        "store_id": 1,
        "basket_id": 1,
        "product_id": 1,
        "quantity": 1,
        "sales_value": 1.25,
        "retail_disc": 0,
        "coupon_disc": 0,
        "coupon_match_disc": 0,
        "week": 1,
        "transaction_timestamp": f"{at.isoformat()}Z",
        **changes,
    }


def test_a_late_record_lands_on_the_day_it_happened_and_counts_if_it_is_a_week_late_at_most(
    house: Installation, wanted: State
) -> None:
    last = DAYS[-1]
    received = close_of(last, ZONE)
    late = [
        bought(received - timedelta(days=2), basket_id=1),
        bought(received - timedelta(days=7), basket_id=2),
        bought(received - timedelta(days=7, microseconds=1), basket_id=3),
    ]
    house.deliver("purchases", last, [*house.records("purchases", last), *late])
    ran = house.run()
    assert ran.success
    assert ran.failing == KNOWN_GAPS
    rows = house.query(
        "SELECT order_id, occurred_on, delivered_on FROM fct_purchase WHERE user_id = ?"
        " ORDER BY order_id",
        "999999",
    )
    assert rows == [
        {"order_id": "1", "occurred_on": DAYS[2], "delivered_on": last},
        {"order_id": "2", "occurred_on": DAYS[0] - timedelta(days=3), "delivered_on": last},
        {"order_id": "3", "occurred_on": DAYS[0] - timedelta(days=3), "delivered_on": last},
    ]
    state = house.state()
    for day in DAYS[:-1]:
        for table in ("lake/purchases", "lake/events", "warehouse/fct_purchase"):
            assert of_day(state, table, day) == of_day(wanted, table, day)
    [profile] = house.query("SELECT * FROM profile WHERE user_id = ?", "999999")
    assert (profile["purchases_lifetime"], profile["spend_cents_lifetime"]) == (2, 250)
    assert profile["first_seen_at"] == received - timedelta(days=7)


def test_a_missing_day_is_named_in_one_line_and_loaded_when_it_comes(
    house: Installation, wanted: State
) -> None:
    taken = house.withhold("purchases", DAYS[1])
    ran = house.run(checked=False)
    assert ran.errors == {
        "lake__purchases": "missing or unreadable: one delivery of purchases; all others have"
        f" landed. purchases: no file for {DAYS[1]} in {house.sources}/purchases; deliver"
        f" {DAYS[1]}.jsonl (an empty one if nothing happened) and run again"
    }
    state = house.state()
    landed = {day for day in DAYS if of_day(state, "lake/purchases", day)}
    assert landed == {DAYS[0], DAYS[2], DAYS[3]}
    assert state["lake/events"] == state["warehouse/fct_purchase"] == []

    house.restore(taken)
    assert house.run(checked=False).success
    assert differences(house.state(), wanted) == []


def spoil(house: Installation) -> list[dict[Path, bytes]]:
    """Deliver something wrong in every source; the right files."""
    right: list[dict[Path, bytes]] = []

    def deliver_wrong(source: str, day: date, records: list[Record]) -> None:
        assert records != house.records(source, day)
        right.append(house.withhold(source, day))
        house.deliver(source, day, records)

    first, second, third, _ = DAYS
    bought_first, bought_then = (house.records("purchases", day) for day in (first, second))
    dearer = [r | {"sales_value": r["sales_value"] + 1} for r in bought_first[5:]]
    deliver_wrong("purchases", first, [*bought_then[:50], *dearer, bought(datetime(2025, 4, 22))])
    deliver_wrong("purchases", third, bought_then)
    mailed = house.records("mailings", second)
    deliver_wrong("mailings", second, [*mailed[1:], mailed[0] | {"household_id": 999_999}])
    deliver_wrong("redemptions", second, house.records("redemptions", second)[1:])
    [day] = [day for day in house.files("crm") if day in DAYS]
    deliver_wrong("crm", day, [r | {"kids_count": "3+"} for r in house.records("crm", day)])
    for source, wrong in (
        ("products", {"department": "?"}),
        ("campaigns", {"campaign_type": "Type A"}),
    ):
        [day] = house.files(source)
        deliver_wrong(source, day, [r | wrong for r in house.records(source, day)[2:]])
    return right


def test_a_corrected_file_replaces_what_its_day_had_brought(
    house: Installation, wanted: State
) -> None:
    """In the wrong files a day hides events of another one, users, contents and versions differ."""
    right = spoil(house)
    assert house.run(checked=False).success
    differ = {difference.partition(":")[0] for difference in differences(house.state(), wanted)}
    assert differ == wanted.keys() - {"lake/dead_letters", "warehouse/dim_date"}

    for files in right:
        house.restore(files)
    assert house.run(checked=False).success
    assert differences(house.state(), wanted) == []


# Faults in the files


def test_faults_worth_a_warning_are_named_and_stop_nothing(house: Installation) -> None:
    first, second, third, _ = DAYS
    records = house.records("purchases", first)
    from_the_future = bought(close_of(first, ZONE) + timedelta(minutes=5))
    house.deliver("purchases", first, [*records, b"{", records[0], from_the_future])
    house.deliver("redemptions", third, house.records("redemptions", second))
    (house.sources / "crm" / "households.csv").write_text("id\n1\n", "ascii")
    ran = house.run()
    assert ran.success
    assert new_failures(ran) == dict.fromkeys(
        [
            "lake/purchases no_record_was_refused",
            "lake/purchases primary_key_is_unique",
            "lake/redemptions no_delivery_repeats_another",
            "lake/crm every_file_names_its_day",
            "warehouse/fct_purchase received_after_it_occurred",
        ],
        "WARN",
    )
    assert {name: ran.metadata[name]["failing"] for name in new_failures(ran)} == {
        "lake/purchases no_record_was_refused": 1,
        "lake/purchases primary_key_is_unique": 2,
        "lake/redemptions no_delivery_repeats_another": 1,
        "lake/crm every_file_names_its_day": 1,
        "warehouse/fct_purchase received_after_it_occurred": 1,
    }
    [lines] = house.query("SELECT COUNT(*) AS n FROM fct_purchase WHERE delivered_on = ?", first)
    assert lines["n"] == len(records) + 1
    clicks = house.query("SELECT delivered_on FROM fct_interaction WHERE event_type = 'click'")
    assert third not in {row["delivered_on"] for row in clicks}, "of duplicates the first stays"


def test_an_announced_file_that_is_cut_short_or_does_not_come_is_named(
    house: Installation,
) -> None:
    first, second, third = DAYS[:3]
    purchases = house.records("purchases", first)
    house.deliver("purchases", first, purchases[: len(purchases) // 2])
    house.withhold("redemptions", third)

    def announce(source: str, day: date, records: int) -> None:
        path = house.sources / source / f"{day}.announced.json"
        path.write_text(f'{{"records": {records}}}')

    announce("purchases", first, len(purchases))
    announce("purchases", second, len(house.records("purchases", second)))
    announce("redemptions", third, 7)
    ran = house.run(first, second)
    name = "lake/purchases every_announced_file_arrived_whole"
    assert ran.failing[name] == "WARN"
    assert ran.metadata[name]["observed"] == (
        "1 of 2 announced files: 0 did not arrive, 1 have another number of records"
    )
    assert "lake/redemptions every_announced_file_arrived_whole" in ran.passed, "it is for later"
    weekly = house.check().metadata["lake/redemptions every_announced_file_arrived_whole"]
    assert weekly["observed"].startswith("1 of 1 announced files: 1 did not arrive")


def test_a_campaign_that_ends_before_it_starts_stays_out_of_the_warehouse(
    house: Installation,
) -> None:
    [day] = house.files("campaigns")
    first, *others = house.records("campaigns", day)
    house.deliver("campaigns", day, [first | {"end_date": "2017-01-01"}, *others])
    ran = house.run()
    assert new_failures(ran)["lake/campaigns ends_after_it_starts"] == "WARN"
    campaigns = {row["campaign_id"] for row in house.query("SELECT campaign_id FROM dim_campaign")}
    assert campaigns == {str(other["campaign_id"]) for other in others}
    assert "warehouse/dim_campaign campaigns_are_those_delivered" in ran.passed


def test_facts_that_refer_to_nothing_stop_before_the_profiles_until_they_are_corrected(
    house: Installation, wanted: State
) -> None:
    first, second = DAYS[:2]
    purchases, mailings = house.records("purchases", first), house.records("mailings", second)
    right = house.withhold("purchases", first) | house.withhold("mailings", second)
    house.deliver("purchases", first, [*purchases, bought(datetime(1990, 1, 1))])
    house.deliver("mailings", second, [*mailings, mailings[0] | {"campaign_id": 999}])
    ran = house.run()
    assert not ran.success
    assert new_failures(ran) == {
        "warehouse/fct_purchase occurred_on_is_in_dim_date": "WARN",
        "warehouse/fct_interaction campaign_key_is_in_dim_campaign": "ERROR",
    }
    assert "warehouse/profile" not in ran.made
    assert house.state()["warehouse/profile"] == []

    house.restore(right)
    assert house.run(checked=False).success
    assert differences(house.state(), wanted) == []


def test_facts_that_somebody_removed_are_missed_to_the_cent(house: Installation) -> None:
    assert house.run(checked=False).success
    with house.platform.warehouse() as warehouse:
        warehouse.execute("DELETE FROM fct_purchase WHERE line = 1")
    ran = house.run()
    assert not ran.success
    assert new_failures(ran) == {
        "warehouse/fct_purchase every_event_is_one_fact": "ERROR",
        "warehouse/fct_purchase money_of_facts_is_that_of_events": "ERROR",
    }
    assert "warehouse/profile" not in ran.made


def test_a_day_with_ten_times_the_usual_purchases_is_called_unusual(house: Installation) -> None:
    for day in DAYS:
        house.withhold("purchases", day)
    days = [DAYS[0] + timedelta(days=n) for n in range(16)]
    for n, day in enumerate(days):
        noon = datetime(day.year, day.month, day.day, 16)
        baskets = range(1, 6 + n % 3 if day != days[-1] else 60)
        purchases = [bought(noon, basket_id=100 * n + b, household_id=b) for b in baskets]
        house.deliver("purchases", day, purchases)
    ran = house.run(*days)
    assert ran.success
    assert set(new_failures(ran).values()) == {"WARN"}
    others = {"lake/purchases no_busy_hour_is_missing"}
    assert all(name.endswith("_usual") for name in new_failures(ran).keys() - others)
    assert new_failures(ran).keys() >= {
        "lake/purchases daily_records_are_usual",
        "warehouse/fct_purchase daily_lines_are_usual",
        "warehouse/fct_purchase daily_value_is_usual",
        "warehouse/fct_purchase daily_buyers_are_usual",
    }


# Killed


PROCESSES = get_context("forkserver")
"""Processes that have imported everything when they start."""
PROCESSES.set_forkserver_preload(["tests.pipeline", "duckdb", "pyiceberg.catalog.sql"])
STEPS = [
    "lake__purchases",
    "lake__events",
    "warehouse__fct_purchase",
    "profiles__profile_store",
]
"""Where the process is killed: writing the lake, the warehouse and the profiles."""


@dataclass(frozen=True)
class Interruptible:
    """Two days are loaded; the other two and corrections of the first are delivered.

    `seconds` says how long each step takes in a process of its own.
    """

    house: Installation
    before: Path
    wanted: State
    seconds: dict[str, float]

    def rewind(self) -> None:
        """Back to the two days. A lake knows its place, so the folder stays where it is."""
        rmtree(self.house.folder)
        copytree(self.before, self.house.folder)


@contextmanager
def started(house: Installation) -> Iterator[tuple[BaseProcess, Iterator[str]]]:
    """A run of all days in a process of its own, and its steps as they start."""
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=run_and_tell, args=(house.folder, sender))
    process.start()
    sender.close()

    def steps() -> Iterator[str]:
        with suppress(EOFError):
            while True:
                yield receiver.recv()

    try:
        yield process, steps()
    finally:
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def interruptible(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Interruptible:
    folder = tmp_path_factory.mktemp("killed")
    house = Installation(folder / "house")
    deliver(shared, house.sources)
    right = spoil(house)
    later = [
        house.withhold(source, day)
        for source in ("purchases", "mailings", "redemptions", "crm")
        for day in DAYS[2:]
    ]
    assert house.run(DAYS[0], DAYS[1], checked=False).success
    for files in (*later, *right):
        house.restore(files)
    copytree(house.folder, folder / "before")

    times: dict[str, float] = {}
    with started(house) as (process, steps):
        for step in steps:
            times[step] = time.monotonic()
        process.join()
    assert process.exitcode == 0
    ends = [*list(times.values())[1:], time.monotonic()]
    seconds = {step: end - times[step] for step, end in zip(times, ends, strict=True)}
    return Interruptible(house, folder / "before", house.state(), seconds)


def test_a_run_in_a_process_of_its_own_ends_in_the_same_tables(
    interruptible: Interruptible, wanted: State
) -> None:
    assert differences(interruptible.wanted, wanted) == []
    assert set(STEPS) <= interruptible.seconds.keys()


@pytest.mark.parametrize("step", STEPS)
def test_a_run_after_one_that_was_killed_ends_in_the_same_tables(
    interruptible: Interruptible, step: str
) -> None:
    interruptible.rewind()
    house = interruptible.house
    chance = random.Random(f"killed in {step}")
    with started(house) as (process, steps):
        assert step in steps
        time.sleep(chance.uniform(0, interruptible.seconds[step]))
        process.kill()
    assert process.exitcode == -signal.SIGKILL
    assert house.run(checked=False).success
    assert differences(house.state(), interruptible.wanted) == []
