"""Records that a rule holds back: through the daily job, the commands and into the profiles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result

from profilehouse.contracts import contract
from profilehouse.errors import ProfilehouseError
from profilehouse.sources.held_back import held_by_day
from profilehouse.sources.landing import land
from tests.pipeline import DAYS, Installation, Record, deliver, differences
from tests.sending import run

FIRST = DAYS[0]
PRICE = "lake/purchases unit_price_is_sane"
KIDS = "lake/crm kids_are_those_of_the_household"
LOADED = ("warehouse/fct_purchase", "warehouse/profile", "profiles/rows")


@pytest.fixture
def house(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Installation:
    """The days are delivered, nothing is loaded; commands find the installation."""
    deliver(tmp_path_factory.getbasetemp(), tmp_path / "sources")
    found = Installation(tmp_path)
    for name in ("sources", "lake", "warehouse", "profiles", "timezone", "first_day"):
        monkeypatch.setenv(f"PROFILEHOUSE_{name.upper()}", str(getattr(found.settings, name)))
    monkeypatch.chdir(tmp_path)
    return found


def dear(record: Record) -> Record:
    return record | {"sales_value": 5000.0, "quantity": 1}


def failed(result: Result) -> str:
    assert isinstance(result.exception, ProfilehouseError), result.output
    return str(result.exception)


def test_what_a_rule_holds_back_is_fixed_replayed_and_reaches_facts_and_profiles(
    house: Installation, tmp_path: Path
) -> None:
    right = house.records("purchases", FIRST)
    assert house.run(FIRST, checked=False).success
    wanted = house.state()
    house.deliver("purchases", FIRST, [dear(right[0]), right[1], dear(right[2]), *right[3:]])

    ran = house.run(FIRST)
    assert ran.success, "the others go on"
    assert ran.failing[PRICE] == "WARN"
    found = ran.metadata[PRICE]
    assert (found["failing"], found["total"]) == (2, len(right))
    assert "these are held back" in found["observed"]
    assert "profilehouse quarantine" in found["what to do"]
    assert "lake/purchases every_record_is_landed_or_a_dead_letter" in ran.passed
    assert "warehouse/fct_purchase money_of_facts_is_that_of_events" in ran.passed
    facts = len(wanted["warehouse/fct_purchase"])
    assert len(house.state()["warehouse/fct_purchase"]) == facts - 2
    assert held_by_day(house.platform.lake(), "purchases") == {FIRST: 2}

    first, second = f"purchases/{FIRST}/1", f"purchases/{FIRST}/3"
    listed = run("quarantine", "list")
    assert listed.stdout.splitlines() == [
        f"{first}  unit_price_is_sane",
        f"{second}  unit_price_is_sane",
    ]
    [one, _] = map(json.loads, run("quarantine", "list", "--json").stdout.splitlines())
    assert len(one.pop("run")) == 36, "the id of a run"
    assert one == {"id": first, "rules": ["unit_price_is_sane"], "fixed": False}
    shown = run("quarantine", "show", first).stdout
    assert f"line 1 of purchases/{FIRST}.jsonl" in shown
    assert "A unit costs at most 1,000 dollars" in shown
    assert '"sales_value": 5000.0' in run("quarantine", "show", first, "--raw").stdout

    mended = tmp_path / "mended.json"
    mended.write_text(json.dumps(right[0]))
    assert run("quarantine", "fix", first, "--with", str(mended)).exit_code == 0
    assert run("quarantine", "fix", second, "--with", "-", data=b'{"week": 1}').exit_code == 1
    still = json.dumps(dear(right[2]) | {"sales_value": 4000.0}).encode()
    assert run("quarantine", "fix", second, "--with", "-", data=still).exit_code == 0
    assert run("quarantine", "list").stdout.count("(fixed, not replayed)") == 2
    replayed = run("quarantine", "replay")
    assert failed(replayed) == "1 stay held back, see above"
    assert f"{second} stays: as fixed it breaks unit_price_is_sane" in replayed.stderr
    assert "1 of 2 records are held back no longer" in replayed.stderr

    good = json.dumps(right[2]).encode()
    assert run("quarantine", "fix", second, "--with", "-", data=good).exit_code == 0
    replayed = run("quarantine", "replay")
    assert replayed.exit_code == 0, replayed.output
    assert f"materialize lake/events and what follows for {FIRST}" in replayed.stderr
    assert run("quarantine", "list").stderr == "no record is held back\n"

    ran = house.run(FIRST)
    assert ran.success
    assert PRICE in ran.passed
    state = house.state()
    assert differences({k: state[k] for k in LOADED}, {k: wanted[k] for k in LOADED}) == []


def test_a_source_whose_every_record_breaks_a_rule_stops_the_run(house: Installation) -> None:
    house.deliver("purchases", FIRST, map(dear, house.records("purchases", FIRST)))
    ran = house.run(FIRST)
    assert not ran.success
    assert ran.failing[PRICE] == "ERROR"
    assert "warehouse/fct_purchase" not in ran.made


def test_a_rule_of_severity_warning_holds_nothing_back(house: Installation) -> None:
    day, *_ = sorted(house.files("crm"))
    wrong, *others = house.records("crm", day)
    odd = wrong | {"household_comp": "1 Adult Kids", "kids_count": "0", "household_id": 987654321}
    house.deliver("crm", day, [odd, *others])
    ran = house.run()
    assert ran.failing[KIDS] == "WARN"
    records = [record.data for record in ran.metadata[KIDS]["sample"].records]
    assert [(r["delivered_on"], r["line"]) for r in records] == [(str(day), "1")]
    assert run("quarantine", "list").stderr == "no record is held back\n"
    assert house.query("SELECT 1 FROM dim_user WHERE user_id = '987654321'")


def test_a_fix_whose_file_was_cleared_away_waits_until_it_is_delivered_again(
    house: Installation,
) -> None:
    right, *others = house.records("purchases", FIRST)

    def arrive() -> None:
        house.deliver("purchases", FIRST, [dear(right), *others])

    platform, source = house.platform, contract("purchases")
    arrive()
    land(source, [FIRST], platform.sources(), platform.lake(), platform.settings.zone)
    house.withhold("purchases", FIRST)
    name = f"purchases/{FIRST}/1"
    run("quarantine", "fix", name, "--with", "-", data=json.dumps(right).encode())
    replayed = run("quarantine", "replay")
    assert replayed.exit_code == 1
    assert f"{name} stays: the file it came in is no longer in" in replayed.stderr
    arrive()
    assert run("quarantine", "replay").exit_code == 0
    assert run("quarantine", "list").stderr == "no record is held back\n"


def test_what_is_not_there_is_said_in_one_line(house: Installation) -> None:
    assert "is not in quarantine" in failed(run("quarantine", "show", "purchases/2025-01-01/1"))
    assert "no source cinema; there are: " in failed(
        run("quarantine", "list", "--source", "cinema")
    )
    assert run("quarantine", "replay").stderr == "0 of 0 records are held back no longer\n"
