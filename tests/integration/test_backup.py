"""A backup of a running platform, everything lost, and the platform going on from the backup."""

from __future__ import annotations

import stat
from pathlib import Path
from shutil import rmtree
from typing import Any

import dagster as dg
import pytest

from profilehouse.backup import back_up, restore
from profilehouse.contracts import contracts_of
from profilehouse.errors import ProfilehouseError
from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration
from profilehouse.profiles.serving import read_profile
from profilehouse.settings import Settings, load_settings
from profilehouse.sources.retailer import TIMEZONE
from tests.integration.test_live_process import living, record, send, until
from tests.sending import run
from tests.three_days import DAYS, deliver, run_daily_job


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    data = tmp_path / "data"
    return load_settings(
        sources=str(tmp_path / "sources"),
        lake=str(data / "lake"),
        log=f"file:{data / 'log'}",
        profiles=f"lmdb:{data / 'profiles'}",
        status=str(tmp_path / "status"),
        warehouse=f"duckdb:{data / 'w.duckdb'}",
        outbox=str(data / "outbox.sqlite"),
        timezone=TIMEZONE,
        first_day=DAYS[0],
    )


def all_there(platform: Platform) -> dict[str, Any]:
    """Every row of lake and warehouse, the log's ends, and the whole profile store."""
    lake = platform.lake()
    found: dict[str, Any] = {}
    for contract in (*contracts_of("sources"), *contracts_of("lake")):
        if contract.name != "raw":
            found[f"lake.{contract.name}"] = lake.read(contract.name).num_rows
    with platform.warehouse() as warehouse:
        for contract in contracts_of("warehouse"):
            if warehouse.columns(contract.name):
                rows = warehouse.query(f"SELECT * FROM {contract.name}").to_pylist()
                found[contract.name] = sorted(map(str, rows))
    with platform.profile_store(load_declaration()) as store, store.cut() as cut:
        found["profiles"] = (cut.positions, len(store))
    with platform.log() as log:
        found["log"] = (log.topic_id, log.ends())
    return found


def test_all_that_was_lost_is_back_and_goes_on_where_the_backup_was(
    settings: Settings, tmp_path: Path
) -> None:
    deliver(tmp_path / "sources")
    platform = Platform(settings)
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_daily_job(settings, instance).success
    loaded = all_there(platform)
    with living(platform) as process:
        send(platform, *(record(n, user_id="u1") for n in range(10)))
        until(lambda: process.events == 10)
        about = back_up(platform, tmp_path / "backup")  # while the live process runs
        send(platform, *(record(n, user_id="u1") for n in range(10, 15)))
        until(lambda: process.events == 15)
    assert about.parts.keys() == {"warehouse", "profiles", "lake", "log"}
    rmtree(tmp_path / "data")

    restore(settings, tmp_path / "backup")
    restored = all_there(platform)
    assert len(loaded["fct_purchase"]) > 10_000
    for table in loaded.keys() - {"profiles", "log", "lake.web_events"}:
        assert restored[table] == loaded[table], table
    assert sum(restored["log"][1].values()) == 10
    with living(platform) as process:
        send(platform, *(record(n, user_id="u1") for n in range(20, 23)))
        until(lambda: process.events == 3)
    with platform.profile_store(load_declaration()) as store:
        profile = read_profile(store, load_declaration(), "u1", None)
    assert profile is not None
    assert profile["clicks_lifetime"] == 13


@pytest.fixture
def small(settings: Settings, tmp_path: Path) -> Path:
    """A backup of a platform with a few events."""
    platform = Platform(settings)
    with living(platform) as process:
        send(platform, record(1, user_id="u1"))
        until(lambda: process.events == 1)
    back_up(platform, tmp_path / "backup")
    return tmp_path / "backup"


def test_a_restore_overwrites_nothing_and_takes_no_half_of_a_backup(
    settings: Settings, small: Path, tmp_path: Path
) -> None:
    with pytest.raises(ProfilehouseError, match="is there already; move it away"):
        restore(settings, small)
    rmtree(tmp_path / "data")
    elsewhere = settings.model_copy(update={"lake": str(tmp_path / "other")})
    with pytest.raises(ProfilehouseError, match=r"the lake was in .*set PROFILEHOUSE_LAKE to it"):
        restore(elsewhere, small)
    assert not (tmp_path / "data").exists()
    (small / "backup.json").rename(small / "gone")
    with pytest.raises(ProfilehouseError, match="is no whole backup"):
        restore(settings, small)


def test_nobody_but_the_owner_can_read_a_backup_or_a_store(
    settings: Settings, small: Path, tmp_path: Path
) -> None:
    with Platform(settings).warehouse():
        pass
    for place in (small, *(tmp_path / "data").iterdir()):
        mode = stat.S_IMODE(place.stat().st_mode)
        assert mode & 0o077 == 0, f"{place}: {mode:o}"


def test_the_commands_say_what_they_did_and_what_lies_elsewhere(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lake", "log", "profiles", "warehouse", "outbox", "sources", "status"):
        monkeypatch.setenv(f"PROFILEHOUSE_{name.upper()}", getattr(settings, name))
    platform = Platform(settings)
    send(platform, record(1, user_id="u1"))
    monkeypatch.setenv("PROFILEHOUSE_WAREHOUSE", "snowflake://u@a/D/S?warehouse=W")
    ran = run("backup", str(tmp_path / "backup"))
    assert ran.output.splitlines() == [
        f"{tmp_path / 'backup'}: log",
        "not on this machine, back them up there: warehouse",
    ]
    assert "is there already; name a new folder" in str(
        run("backup", str(tmp_path / "backup")).exception
    )
    rmtree(tmp_path / "data")
    assert run("restore", str(tmp_path / "backup")).output.startswith("restored log as of ")
    with platform.log() as log:
        assert sum(log.ends().values()) == 1
