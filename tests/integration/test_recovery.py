"""A run whose process was killed, on an instance like that of an installation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest

from platform_defs.build import build_defs
from platform_defs.recovery import PID_TAG, free_slots_of_dead_runs
from platform_defs.schedules import DAILY_JOB
from tests.pipeline import DAYS, Installation, deliver

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
import dagster as dg
from tests.integration.test_recovery import execute
from tests.pipeline import Installation

def kill(entry):
    event = entry.dagster_event
    if event and event.is_step_start and event.step_key == "warehouse__dim_campaign":
        os.kill(os.getpid(), signal.SIGKILL)

with dg.DagsterInstance.get() as instance:
    execute(Installation(Path(sys.argv[1])), instance, listen=kill)
"""


def execute(house: Installation, instance: dg.DagsterInstance, listen: object = None) -> bool:
    """The daily job for one day, tagged as the demo tags it."""
    run_id = str(uuid4())
    if callable(listen):
        instance.add_event_listener(run_id, listen)
    result = (
        build_defs(house.settings)
        .resolve_job_def(DAILY_JOB)
        .execute_in_process(
            instance=instance,
            run_id=run_id,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags={"dagster/partition": str(DAYS[0]), PID_TAG: str(os.getpid())},
            raise_on_error=False,
        )
    )
    return bool(result.success)


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """One with the project's own dagster.yaml."""
    config = (ROOT / "dagster.yaml").read_text("utf-8")
    (tmp_path / "dagster.yaml").write_text(config.replace("data/dagster", f"{tmp_path}/dagster"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.get() as made:
        yield made


def test_the_slot_of_a_run_that_was_killed_is_freed_and_the_next_run_succeeds(
    instance: dg.DagsterInstance,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    house = Installation(tmp_path / "house")
    deliver(tmp_path_factory.getbasetemp(), house.sources)
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(house.folder)], cwd=ROOT, check=False, timeout=120
    )
    assert died.returncode == -signal.SIGKILL
    [run] = instance.get_runs()
    assert run.status == dg.DagsterRunStatus.STARTED
    assert instance.event_log_storage.get_concurrency_run_ids() == {run.run_id}

    assert free_slots_of_dead_runs(instance) == [run.run_id]
    assert instance.event_log_storage.get_concurrency_run_ids() == set()
    assert execute(house, instance)
    assert free_slots_of_dead_runs(instance) == []
