"""The group health: numbers of the live path, of disks and of alerts; the check of the disks."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.health import health_assets
from checks.health import health_checks
from platform_defs.build import build_defs
from platform_defs.resources import open_platform
from profilehouse import health
from profilehouse.alerts.incidents import Finding, Problem
from profilehouse.alerts.outbox import Outbox
from profilehouse.alerts.rules import Channel, Rules
from profilehouse.settings import Settings, load_settings
from profilehouse.stream.status import Latency, Status, write_status
from profilehouse.times import utc_now


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(
        sources=str(tmp_path / "sources"),
        lake=str(tmp_path / "lake"),
        log=f"file:{tmp_path / 'log'}",
        profiles=f"lmdb:{tmp_path / 'profiles'}",
        status=str(tmp_path / "status"),
        warehouse=f"duckdb:{tmp_path / 'w.duckdb'}",
        outbox=str(tmp_path / "outbox.sqlite"),
    )


def look(settings: Settings) -> dict[str, Any]:
    """What a tick of observe_health reports: metadata by asset, and the check."""
    repository = build_defs(settings).get_repository_def()
    context = dg.build_sensor_context(
        repository_def=repository, resources={"platform": open_platform(settings)}
    )
    events = repository.get_sensor_def("observe_health").evaluate_tick(context).asset_events
    assert len(events) == 4
    return {
        event.asset_key.path[-1] if isinstance(event, dg.AssetObservation) else "check": event
        for event in events
    }


def numbers(event: dg.AssetObservation) -> dict[str, Any]:
    return {name: value.value for name, value in event.metadata.items()}


def test_before_anything_runs_all_numbers_are_zero_and_the_disks_are_checked(
    settings: Settings,
) -> None:
    found = look(settings)
    assert numbers(found["live_path"]) == {
        "processes": 0, "lag": 0, "lake_lag": 0, "events_per_second": 0.0,
    }  # fmt: skip
    assert numbers(found["alerts"]) == {"incidents": 0, "messages_waiting": 0}
    storage = numbers(found["storage"])
    assert storage["lake_mb"] == storage["warehouse_mb"] == 0
    assert 0 < storage["lake_free_percent"] <= 100
    assert found["check"].check_name == "disks_have_room"


def test_what_is_there_is_counted(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "lake" / "events").mkdir(parents=True)
    (tmp_path / "lake" / "events" / "a.parquet").write_bytes(b"x" * 3_000_000)
    with (tmp_path / "w.duckdb").open("wb") as sparse:
        sparse.truncate(1 << 30)  # long, and empty
    now = utc_now()
    write_status(
        settings,
        Status(
            instance="a-1", state="running", started_at=now - timedelta(hours=1), written_at=now,
            log="", topic_id="", ends={0: 100}, profiles={0: 90}, lake={0: 60}, events=97,
            refused=3, rate=12.5, latency=Latency(1.0, 20.0, 30.0, 40.0),
        ),
    )  # fmt: skip
    problem = Problem(
        kind="check", severity="error", title="a", observed="b", next_step="c"
    )  # fmt: skip
    with Outbox.opened(tmp_path / "outbox.sqlite") as outbox:
        rules = Rules("http://ui", {"web": Channel(env="X")}, ("web",))
        outbox.record([Finding(f, 1.0, problem) for f in "abc"], {}, rules)
    found = look(settings)
    assert numbers(found["live_path"]) == {
        "processes": 1, "lag": 10, "lake_lag": 40, "events_per_second": 12.5,
        "latency_p95_ms": 20.0, "dead_letter_percent": 3.0,
    }  # fmt: skip
    assert numbers(found["alerts"]) == {"incidents": 3, "messages_waiting": 3}
    storage = numbers(found["storage"])
    assert 2.9 < storage["lake_mb"] < 3.2
    assert storage["warehouse_mb"] < 0.1


def test_what_lies_elsewhere_is_not_counted() -> None:
    settings = load_settings(
        sources="s3://b/s", lake="s3://b/l", log="kafka://h:9092/t", webhooks="kafka://h:9092/w",
        warehouse="snowflake://u@a/D/S", profiles="cassandra://h/k",
    )  # fmt: skip
    assert health.places(settings) == {"alerts": Path("data/alerts/outbox.sqlite")}


@pytest.mark.parametrize(
    ("free", "passed", "severity"),
    [(40.0, True, "warning"), (14.9, False, "warning"), (4.9, False, "error")],
)
def test_a_disk_that_fills_up_is_a_warning_and_then_an_error(
    free: float, passed: bool, severity: str
) -> None:
    result = health.disks_have_room("room", {"lake": free, "log": 50.0})
    assert (result.passed, result.severity) == (passed, severity)
    assert result.numbers == {"free_percent": free}
    if not passed:
        assert result.observed == f"lake has {free:.1f} % left"


def test_the_check_can_be_run_by_hand(settings: Settings) -> None:
    job = dg.define_asset_job("check", selection=dg.AssetSelection.all_asset_checks())
    defs = dg.Definitions(
        assets=health_assets(),
        asset_checks=health_checks(),
        jobs=[job],
        resources={"platform": open_platform(settings)},
    )
    [evaluation] = defs.resolve_job_def("check").execute_in_process().get_asset_check_evaluations()
    assert evaluation.check_name == "disks_have_room"
    assert evaluation.metadata["free_percent"].value > 0
