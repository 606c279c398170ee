"""Alerts by Dagster's own daemon, on the platform's definitions: in time, and across a crash."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
import yaml

from assets.health import STORAGE
from platform_defs.build import build_defs
from profilehouse.settings import load_settings
from tests.receivers import web

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 15
"""From a failing check to its message."""
TO_START = 120


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """One with the project's own dagster.yaml, and settings of nothing but folders of the test.

    It launches no run: a scheduled one would add failures of its own.
    """
    config = (ROOT / "dagster.yaml").read_text("utf-8")
    config, count = re.subn("max_concurrent_runs: [0-9]+", "max_concurrent_runs: 0", config)
    assert count == 1
    (tmp_path / "dagster.yaml").write_text(config.replace("data/dagster", f"{tmp_path}/dagster"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "sources").mkdir()
    for name, value in {
        "SOURCES": tmp_path / "sources",
        "LAKE": tmp_path / "lake",
        "WAREHOUSE": f"duckdb:{tmp_path}/warehouse.duckdb",
        "LOG": f"file:{tmp_path}/log",
        "PROFILES": f"lmdb:{tmp_path}/profiles",
        "STATUS": tmp_path / "status",
        "OUTBOX": tmp_path / "outbox.sqlite",
        "ALERTS": tmp_path / "alerts.yaml",
    }.items():
        monkeypatch.setenv(f"PROFILEHOUSE_{name}", str(value))
    with dg.DagsterInstance.get() as made:
        yield made


@contextmanager
def daemon(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon with a code server of its own; killed in the end, with all it started."""
    command = [sys.executable, "-m", "dagster._daemon", "run", "-w", str(ROOT / "workspace.yaml")]
    with (folder / "daemon.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def until_it_looks(instance: dg.DagsterInstance, after: float) -> None:
    """Wait for a whole tick of the sensor that began after a moment."""
    deadline = time.monotonic() + TO_START
    while time.monotonic() < deadline:
        for state in instance.all_instigator_state():
            if state.instigator_name == "alerts":
                ticks = instance.get_ticks(
                    state.instigator_origin_id, state.selector_id, after=after, limit=5
                )
                if any(tick.is_completed for tick in ticks):
                    return
        time.sleep(0.2)
    raise AssertionError("the daemon has not looked in time")


@pytest.mark.timeout(400)
def test_a_failing_check_is_told_in_time_and_a_crash_of_the_daemon_loses_and_repeats_nothing(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = build_defs(load_settings(alerts="")).resolve_asset_graph().asset_check_keys
    keys = sorted(key for key in checks if key.asset_key != STORAGE)  # the daemon runs that one

    def fail(key: dg.AssetCheckKey) -> None:
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=False,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={},
            )
        )

    with web() as receiver:
        monkeypatch.setenv("WEB_URL", receiver.address)
        rules = {
            "ui": "http://127.0.0.1:3000",
            "channels": {"web": {"env": "WEB_URL"}},
            "default": ["web"],
        }
        (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(rules), "utf-8")
        with daemon(tmp_path):
            until_it_looks(instance, 0.0)
            for n, key in enumerate(keys[:3], start=1):
                began = time.time()
                fail(key)
                messages = receiver.until(n, SECONDS)
                assert len(messages) == n, (tmp_path / "daemon.log").read_text()[-3000:]
                assert messages[-1]["at"] - began < SECONDS
        for key in keys[3:20]:
            fail(key)
        with daemon(tmp_path):
            until_it_looks(instance, time.time())
            receiver.until(4, SECONDS)
            time.sleep(7)  # another tick sends nothing again
    assert receiver.titles[3:] == ["[WARNING] 0 errors, 17 warnings"]
    told = receiver.taken[3]["message"]
    assert all(f"warning {key.name}: " in told for key in keys[3:20])
    assert not any(f"{key.asset_key.to_user_string()}: {key.name} " in told for key in keys[:3])
