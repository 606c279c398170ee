"""The command line as its users start it; what it prints of a profile is in test_profile_cli.py."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from pkgutil import resolve_name

import pytest

from profilehouse.cli import main

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ("dagster", "duckdb", "great_expectations", "pyiceberg", "snowflake.connector", "sqlglot")


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `profilehouse ARGUMENTS` in that folder with no settings but the defaults."""
    given = {k: v for k, v in os.environ.items() if not k.startswith("PROFILEHOUSE_")}
    return subprocess.run(
        [sys.executable, "-m", "profilehouse.cli", *arguments],
        cwd=folder,
        env=given | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_profilehouse_is_this_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert resolve_name(project["scripts"]["profilehouse"]) is main


def test_help_names_every_command_and_loads_no_engine(tmp_path: Path) -> None:
    program = (
        "import sys; from profilehouse.cli import main\n"
        "try: main()\n"
        f"finally: print([n for n in {ENGINES!r} if n in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout.startswith("Usage: profilehouse [OPTIONS] COMMAND")
    for command in ("alerts", "collect", "dead-letters", "profile", "send", "stream"):
        assert f"\n  {command} " in ran.stdout
    assert ran.stdout.splitlines()[-1] == "[]"


def test_without_a_profile_store_one_line_says_where_it_should_be_and_what_to_do(
    tmp_path: Path,
) -> None:
    ran = start(tmp_path, "profile", "get", "1")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        "profilehouse: data/profiles: no profile store here; materialize profiles/profile_store\n"
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("PROFILEHOUSE_PROFILES=redis:x\n", "PROFILEHOUSE_PROFILES is 'redis:x': must be lmdb:F"),
        ("PROFILEHOUSE_TIMEZONE=Mars\n", "PROFILEHOUSE_TIMEZONE is 'Mars': must be a zone of"),
    ],
)
def test_a_wrong_setting_of_the_env_file_is_one_line(
    tmp_path: Path, settings: str, says: str
) -> None:
    (tmp_path / ".env").write_text(settings)
    ran = start(tmp_path, "profile", "get", "1")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"profilehouse: settings: {says}")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("profile", "get"), "Missing argument 'USER'"),
        (("profile", "get", "1", "--as-of", "yesterday"), "Invalid value for '--as-of'"),
        (("profiles",), "No such command 'profiles'"),
    ],
)
def test_a_command_that_is_typed_wrong_is_explained_with_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    ran = start(tmp_path, *arguments)
    assert ran.returncode == 2
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr
