"""`profilehouse validate` and `profilehouse contracts`, as a pipeline of CI runs them."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import dagster as dg
import pytest
import yaml
from click.testing import Result

from assets.quality import quality_assets
from profilehouse.contracts import CONTRACTS_DIR
from profilehouse.errors import ProfilehouseError
from profilehouse.platform import Platform
from tests.pipeline import DAYS, Installation, deliver
from tests.sending import run

ROOT = CONTRACTS_DIR.parent
FACT = "fct_purchase"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """One day is loaded."""
    folder = tmp_path_factory.mktemp("validated")
    deliver(tmp_path_factory.getbasetemp(), folder / "sources")
    found = Installation(folder)
    assert found.run(DAYS[0], checked=False).success
    return found


@pytest.fixture
def gate(house: Installation, monkeypatch: pytest.MonkeyPatch) -> Installation:
    for name in ("sources", "lake", "warehouse", "profiles", "timezone", "first_day"):
        monkeypatch.setenv(f"PROFILEHOUSE_{name.upper()}", str(getattr(house.settings, name)))
    monkeypatch.chdir(house.folder)
    return house


def code(result: Result) -> int:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code


def broken(house: Installation) -> None:
    with house.platform.warehouse() as warehouse:
        warehouse.execute(f"UPDATE {FACT} SET value_cents = -5 WHERE line <= 3")


def mended(house: Installation) -> None:
    with house.platform.warehouse() as warehouse:
        warehouse.execute(f"UPDATE {FACT} SET value_cents = 5 WHERE value_cents = -5")


def test_all_that_is_there_satisfies_its_contracts(gate: Installation) -> None:
    result = run("validate")
    assert code(result) == 0, result.output
    assert ", 0 errors" in result.stderr
    assert "dim_content: " in result.stdout


def test_a_rule_that_fails_is_told_to_people_and_machines_and_ends_with_1(
    gate: Installation, tmp_path: Path
) -> None:
    broken(gate)
    text = run("validate", FACT)
    assert code(text) == 1
    assert "error   value_cents_is_at_least_0: not so in" in text.stdout
    assert "To do: Ask sales-team to correct the values" in text.stdout

    [found] = [
        r
        for r in json.loads(run("validate", FACT, "--format", "json").stdout)[FACT]
        if r["name"] == "value_cents_is_at_least_0"
    ]
    assert (found["state"], found["severity"]) == ("failed", "error")
    assert found["failing"] == len(gate.query(f"SELECT 1 FROM {FACT} WHERE value_cents < 0"))

    suite = ElementTree.fromstring(run("validate", FACT, "--format", "junit").stdout)[0]
    assert suite.get("failures") == "1"
    [failure] = suite.findall("testcase/failure")
    assert str(failure.get("message")).startswith("not so in")

    report = tmp_path / "rules.sarif"
    sarif = run("validate", FACT, "--format", "sarif", "--output", str(report))
    assert (code(sarif), sarif.stdout) == (1, "")
    [finding] = [
        f for f in json.loads(report.read_text())["runs"][0]["results"] if f["level"] == "error"
    ]
    place = finding["locations"][0]["physicalLocation"]
    file = ROOT / place["artifactLocation"]["uri"]
    line = file.read_text().splitlines()[place["region"]["startLine"] - 1]
    assert line.strip() == "- name: value_cents"

    sampled = run("validate", FACT, "--sample", "1000000", "--format", "json")
    assert code(sampled) == 1
    names = {result["name"] for result in json.loads(sampled.stdout)[FACT]}
    assert "value_cents_is_at_least_0" in names
    assert "occurred_on_is_in_dim_date" not in names, "a sample cannot tell"
    mended(gate)
    assert code(run("validate", FACT)) == 0


def test_a_sample_says_nothing_of_majorities(gate: Installation) -> None:
    def names(*arguments: str) -> set[str]:
        found = json.loads(run("validate", "products", "--format", "json", *arguments).stdout)
        return {result["name"] for result in found["products"]}

    assert "manufacturer_tells_brand" in names()
    assert "manufacturer_tells_brand" not in names("--sample", "1000000")


def test_only_what_changed_since_a_revision_is_checked(gate: Installation) -> None:
    result = run("validate", "--changed-since", "HEAD", "dim_date")
    assert code(result) == 0
    assert result.stderr.startswith("0 datasets, 0 rules"), "its contract is as it was"


def test_the_asset_of_data_docs_links_its_page(house: Installation) -> None:
    platform = Platform(house.settings.model_copy(update={"data_docs": str(house.folder / "docs")}))
    with dg.DagsterInstance.ephemeral() as instance:
        made = dg.materialize(quality_assets(), resources={"platform": platform}, instance=instance)
    [event] = made.get_asset_materialization_events()
    page = str(event.materialization.metadata["page"].value)
    assert Path(page.removeprefix("file://")).read_text("utf-8").startswith("<!DOCTYPE html>")


def test_what_cannot_be_checked_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unknown = run("validate", "cinema")
    assert (code(unknown), "no dataset cinema; there are: " in unknown.stderr) == (2, True)
    absent = run("validate", "fct_web_event")
    assert (code(absent), "nothing is there of" in absent.stderr) == (2, True)
    revision = run("validate", "--changed-since", "no-such-revision")
    assert (code(revision), "no such revision" in revision.stderr) == (2, True)
    monkeypatch.setenv("PROFILEHOUSE_WAREHOUSE", "oracle:x")
    assert code(run("validate", FACT)) == 2


def test_contracts_are_linted_compared_and_written_as_a_suite(tmp_path: Path) -> None:
    assert run("contracts", "lint").exit_code == 0
    same = run("contracts", "diff", "HEAD")
    assert same.exit_code == 0, same.output
    unknown = run("contracts", "diff", "no-such-revision")
    assert isinstance(unknown.exception, ProfilehouseError)
    written = run("contracts", "suite", FACT, "--into", str(tmp_path / "project"))
    assert written.exit_code == 0, written.output
    suite = json.loads(Path(written.stderr.splitlines()[-1]).read_text())
    assert suite["name"] == FACT


def test_the_workflow_and_the_hook_name_commands_that_there_are() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "contracts.yml").read_text())
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    steps = [step.get("run", "") for step in workflow["jobs"]["gate"]["steps"]]
    said = [*steps, *(hook["entry"] for hook in hooks)]
    commands = [command.split() for command in said if command.startswith("profilehouse ")]
    assert len(commands) == 4
    for _, *words in commands:
        name = [word for word in words if not word.startswith(("-", '"')) and "." not in word]
        options = {word for word in words if word.startswith("--")}
        shown = run(*[w for w in name if w != "sarif"], "--help")
        assert shown.exit_code == 0, words
        assert all(option in shown.stdout for option in options), words
