"""The upkeep of the lake as Dagster runs it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.maintenance import maintenance_assets
from profilehouse.platform import Platform
from profilehouse.settings import Settings
from tests.lake_cases import day, raw
from tests.lake_stream_cases import EVENTS, LETTERS, found, put, refused, web

TODAY = datetime.now(UTC).date()


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    platform = Platform(Settings(lake=str(tmp_path / "lake"), _env_file=None))
    lake = platform.lake()
    for n in range(3):
        put(lake, [web(day(0), 0, [n])], {0: n} if n else {}, {0: n + 1})
    put(lake, [web(TODAY, 0, [3])], {0: 3}, {0: 4})
    put(lake, [web(TODAY, 0, [4])], {0: 4}, {0: 5})
    put(lake, [refused(day(0), 0, [5])], {}, {0: 6}, LETTERS)
    put(lake, [refused(day(0), 0, [6])], {0: 6}, {0: 7}, LETTERS)
    lake.replace("purchases", raw(day(0), [1]), days=[day(0)])
    return platform


def run(platform: Platform, *tasks: str) -> dict[str, Mapping[str, Any]]:
    """Materialize the tasks; the numbers each reports."""
    instance = dg.DagsterInstance.ephemeral()
    chosen = [a for a in maintenance_assets() if a.key.path[-1] in tasks]
    result = dg.materialize(chosen, resources={"platform": platform}, instance=instance)
    assert result.success
    return {
        event.asset_key.path[-1]: {
            name: value.value for name, value in event.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }


def test_closed_days_are_compacted_and_today_is_left_alone(platform: Platform) -> None:
    before = platform.lake().read(EVENTS)
    numbers = run(platform, "compacted")["compacted"]
    assert (numbers["days"], numbers["files_before"], numbers["files_after"]) == (2, 5, 2)
    assert numbers["bytes_after"] < numbers["bytes_before"]
    assert [record.data["table"] for record in numbers["tables"].records] == [EVENTS, LETTERS]
    assert platform.lake().read(EVENTS).equals(before)
    assert run(platform, "compacted")["compacted"]["files_before"] == 0


def test_what_is_young_is_neither_expired_nor_cleared(platform: Platform) -> None:
    numbers = run(platform, "compacted", "expired", "cleared")
    assert numbers["expired"]["states_forgotten"] == numbers["expired"]["files_removed"] == 0
    assert numbers["expired"]["states_left"] == 6 + 3 + 1
    assert numbers["cleared"]["files_removed"] == 0
    assert len(found(platform.lake())) == 5


def test_what_killed_writers_left_is_cleared_from_every_table(platform: Platform) -> None:
    root = Path(platform.lake().url)
    old = time.time() - timedelta(days=2).total_seconds()
    for table in (EVENTS, "purchases"):
        for name in ("data/lost.parquet", "metadata/lost.avro"):
            (root / table / name).write_bytes(b"lost")
            os.utime(root / table / name, (old, old))
    numbers = run(platform, "cleared")["cleared"]
    assert (numbers["files_removed"], numbers["bytes_removed"]) == (4, 16)
    assert not list(root.rglob("lost.*"))
    assert len(found(platform.lake())) == 5


def test_a_table_that_fails_does_not_keep_the_others_from_being_done(platform: Platform) -> None:
    root = Path(platform.lake().url)
    for path in (root / EVENTS / "data").rglob("*.parquet"):
        path.unlink()
    result = dg.materialize(
        maintenance_assets()[:1],
        resources={"platform": platform},
        instance=dg.DagsterInstance.ephemeral(),
        raise_on_error=False,
    )
    assert not result.success
    [failure] = result.get_step_failure_events()
    said = failure.step_failure_data.error
    assert said is not None
    assert "1 of 2 tables failed" in str(failure.step_failure_data.user_failure_data)
    assert "cannot compact web_events" in said.message
    assert len(list((root / LETTERS / "data").rglob("*.parquet"))) == 3


def test_the_tasks_are_assets_of_their_own_group() -> None:
    specs = [spec for asset in maintenance_assets() for spec in asset.specs]
    assert [spec.key.to_user_string() for spec in specs] == [
        "lake/upkeep/compacted",
        "lake/upkeep/expired",
        "lake/upkeep/cleared",
    ]
    for spec in specs:
        assert spec.group_name == "upkeep"
        assert spec.description
        assert spec.owners == ["team:data-platform"]
