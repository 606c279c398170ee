"""Dagster's instance of an installation, deploy/dagster.yaml, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile

import dagster as dg
import pytest

from platform_defs.build import build_defs
from platform_defs.schedules import DAILY_JOB
from services.debian import find_postgres
from services.postgres import PASSWORD, Postgres
from tests.integration.test_alerts import CHECKS, House
from tests.pipeline import DAYS, Installation, deliver
from tests.receivers import mail, web

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    if find_postgres() is None:
        pytest.skip("no PostgreSQL; `python -m services.debian` installs it")
    with Postgres(tmp_path_factory.mktemp("postgres")) as started:
        yield started


@pytest.fixture
def instance(
    server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    copyfile(ROOT / "deploy" / "dagster.yaml", tmp_path / "dagster.yaml")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_STORAGE", str(tmp_path / "storage"))
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as made:
        yield made
        made.wipe()


def test_the_instance_keeps_everything_in_postgresql_and_names_no_password(
    instance: dg.DagsterInstance,
) -> None:
    for storage in (instance.run_storage, instance.event_log_storage, instance.schedule_storage):
        assert type(storage).__module__.startswith("dagster_postgres")
    assert instance.run_retries_enabled
    assert instance.run_retries_max_retries == 2
    assert instance.run_monitoring_enabled
    assert instance.get_concurrency_config().pool_config.default_pool_limit == 1
    shown = (ROOT / "deploy" / "dagster.yaml").read_text("utf-8")
    assert PASSWORD not in shown
    assert PASSWORD not in str(instance.info_dict())


def test_tables_are_loaded_and_checked_and_known_after_the_server_was_killed(
    instance: dg.DagsterInstance,
    server: Postgres,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    house = Installation(tmp_path / "house")
    deliver(tmp_path_factory.getbasetemp(), house.sources)
    job = build_defs(house.settings).resolve_job_def(DAILY_JOB)
    tags = {"dagster/partition": str(DAYS[0])}
    keys = [dg.AssetKey(["lake", "campaigns"]), dg.AssetKey(["warehouse", "dim_campaign"])]
    result = job.execute_in_process(
        instance=instance, run_config=QUIET, tags=tags, asset_selection=keys
    )
    assert result.success
    server.kill()
    server.start()
    with dg.DagsterInstance.get() as again:
        run = again.get_run_by_id(result.run_id)
        assert run is not None
        assert run.is_success
        made = again.get_latest_materialization_event(keys[1])
        assert made is not None
        assert made.run_id == run.run_id
        assert again.event_log_storage.get_concurrency_run_ids() == set()


def test_alerts_read_failing_checks_failed_runs_and_recoveries_from_postgresql(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WEB_URL", "MAIL_URL"):
        monkeypatch.setenv(name, "")
    with web() as receiver, mail() as (postbox, address):
        house = House(tmp_path, instance, receiver, postbox, address)
        house.rule()
        house.tick()
        house.tell(*CHECKS[:12])
        house.tick()
        assert receiver.titles == ["[ERROR] 12 errors, 0 warnings"]
        house.run("2026-01-02", fail="sales")
        house.tick()
        assert receiver.titles[1:] == ["[ERROR] lake/sales was not made"]
        house.run("2026-01-02")
        house.tell(*CHECKS[:5], passed=True)
        house.tick()
        assert receiver.titles[2:] == ["[RECOVERED] 6 recovered"]
        assert house.tick() == "0 messages sent, 0 wait."
