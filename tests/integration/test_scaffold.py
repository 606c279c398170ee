"""What `profilehouse new` makes, in a copy of the project where the made tests are run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns

import pytest
from click.testing import CliRunner

from profilehouse.cli import cli
from profilehouse.errors import ProfilehouseError

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("assets", "checks", "contracts", "platform_defs", "profilehouse", "services", "tests")
SECONDS = 240


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for part in PARTS:
        copytree(ROOT / part, folder / part, ignore=ignore_patterns("__pycache__"))
    copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command of Python's in the copy, which comes before an installed project."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def new(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "profilehouse.cli", "new", *words)


MADE = {
    ("source", "tickets"): [
        "contracts/feeds/tickets.odcs.yaml",
        "contracts/feed_tables/fct_tickets.odcs.yaml",
        "assets/warehouse/sql/fct_tickets.sql",
        "tests/integration/test_fct_tickets.py",
    ],
    ("dataset", "fct_said", "--from", "mentions"): [
        "contracts/feed_tables/fct_said.odcs.yaml",
        "assets/warehouse/sql/fct_said.sql",
        "tests/integration/test_fct_said.py",
    ],
    ("feature", "clicked"): ["tests/unit/test_clicked.py", "contracts/profile.yaml"],
    ("check", "titles_are_there", "--of", "dim_content"): [
        "tests/unit/test_titles_are_there.py",
        "contracts/warehouse/dim_content.odcs.yaml",
    ],
    ("check", "bands_are_there", "--of", "dim_user"): [
        "tests/unit/test_bands_are_there.py",
        "contracts/warehouse/dim_user.odcs.yaml",
    ],
}


def test_what_is_made_is_in_the_projects_style_and_its_tests_pass(copy: Path) -> None:
    tests = []
    for words, files in MADE.items():
        made = new(copy, *words)
        assert made.returncode == 0, made.stderr
        assert made.stdout.splitlines() == [str(copy / file) for file in files]
        tests += [file for file in files if file.startswith("tests/")]
    for tool in (["ruff", "check"], ["ruff", "format", "--check"]):
        looked = run(copy, *tool, *tests)
        assert looked.returncode == 0, looked.stdout
    passed = run(copy, "pytest", *tests, "-q", "-p", "no:cacheprovider")
    assert passed.returncode == 0, passed.stdout
    assert f"{len(tests)} passed" in passed.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["source", "mentions"], "declares mentions already"),
        (["source", "Orders"], "'Orders' is no name: small letters"),
        (["source", "../orders"], "is no name"),
        (
            ["dataset", "fct_x", "--from", "nobody"],
            "no optional source nobody; there are: m",
        ),
        (["feature", "clicks"], "has a feature clicks already"),
        (["check", "x", "--of", "nothing"], "no dataset nothing; there are: "),
        (["check", "ends_after_it_starts", "--of", "dim_user"], "has a rule ends_after_it_starts"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_told_and_leaves_nothing(words: Sequence[str], said: str) -> None:
    before = sorted(ROOT.glob("contracts/**/*"))
    made = CliRunner().invoke(cli, ["new", *words])
    assert isinstance(made.exception, ProfilehouseError)
    assert said in str(made.exception)
    assert sorted(ROOT.glob("contracts/**/*")) == before
