"""`make demo` without the UI: the retailer's whole year in a copy of the project, twice."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT_BEHIND = (".*", "data", "*cache*", "build", "dist", "*.egg-info")


def project(folder: Path) -> Path:
    """A copy of the project's tree, without data, environment and settings."""
    return shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_BEHIND))


def demo(folder: Path) -> tuple[str, float]:
    """What it prints, and the seconds it takes."""
    given = {k: v for k, v in os.environ.items() if not k.startswith(("PROFILEHOUSE_", "DAGSTER"))}
    started = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", "platform_defs.demo", "--no-serve"],
        cwd=folder,
        env=given | {"DAGSTER_DISABLE_TELEMETRY": "1", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=500,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout, time.monotonic() - started


def summary(printed: str) -> str:
    """The part from the table of rows to the last check."""
    return printed[printed.index("What is there") : printed.index("Done in")]


def files(folder: Path) -> dict[str, str]:
    """Every file of sources, lake, warehouse and profiles with a hash of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "data").rglob("*"))
        if path.is_file() and "dagster" not in path.relative_to(folder).parts
    }


@pytest.mark.timeout(580)
def test_the_demo_loads_the_whole_year_once_and_a_second_run_changes_nothing(
    tmp_path: Path,
) -> None:
    folder = project(tmp_path / "project")
    printed, first_took = demo(folder)

    rows = dict(re.findall(r"((?:lake|warehouse)\.\w+)\W+([\d,]+)", printed))
    assert {name: int(count.replace(",", "")) for name, count in rows.items()}.items() >= {
        "lake.campaigns": 27,
        "lake.crm": 898,
        "lake.mailings": 6_589,
        "lake.products": 92_331,
        "lake.purchases": 1_469_307,
        "lake.redemptions": 2_102,
        "lake.dead_letters": 0,
        "lake.events": 1_477_998,
        "warehouse.dim_campaign": 27,
        "warehouse.dim_content": 92_331,
        "warehouse.dim_user": 898,
        "warehouse.fct_interaction": 8_691,
        "warehouse.fct_purchase": 1_469_307,
        "warehouse.profile": 2_469,
    }.items()
    passed, warned, failed = re.findall(
        r"Checks: (\d+) passed, (\d+) warned, (\d+) failed", printed
    )[0]
    assert int(passed) > 200
    assert (warned, failed) == ("3", "0")
    assert "did not run" not in printed.lower()
    assert re.findall(r"^ +WARN (\S+) (\w+): ([^.]*)", printed, re.MULTILINE) == [
        ("lake/purchases", "no_busy_hour_is_missing", "2 of 2,184 hours have no rows"),
        (
            "warehouse/dim_user",
            "every_buyer_has_demographics",
            "1,668 of 2,469 households have no demographics",
        ),
        (
            "warehouse/fct_purchase",
            "content_key_is_in_dim_content",
            "not so in 4,836 of 1,469,307 rows (0",
        ),
    ]
    assert re.search(r"The Complete Journey .* \d+ weeks later", printed)

    before = files(folder)
    assert any(name.endswith(".parquet") for name in before)
    again, second_took = demo(folder)
    assert "Nothing new: all 365 days are loaded and checked." in again
    assert summary(again) == summary(printed)
    assert files(folder) == before
    assert second_took < max(first_took / 2, 30)
