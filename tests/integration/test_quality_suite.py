"""A contract's rules as a suite that a user of Great Expectations opens and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from profilehouse.quality.gx import write_data_docs, write_suite
from profilehouse.quality.rules import Depends, Holds
from tests.visits import FAILING, RULES, VISITS, all_faults


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    assert write_suite(VISITS, RULES, folder) == folder / "gx" / "expectations" / "visits.json"
    return folder


def opened(project: Path) -> Any:
    import great_expectations as gx  # noqa: PLC0415

    return gx.get_context(mode="file", project_root_dir=project)


def test_the_suite_opens_in_a_project_with_every_rule_its_owner_and_what_to_do(
    project: Path,
) -> None:
    suite = opened(project).suites.get("visits")
    assert suite.meta["contract_version"] == "1.0.0"
    by_rule = {expectation.meta["rule"]: expectation for expectation in suite.expectations}
    assert by_rule.keys() == {rule.name for rule in RULES}
    assert by_rule["zip_tells_city"].notes.startswith("One city a zip. Owner: geo-team. To do: Ask")
    assert "QUALIFY" in by_rule["zip_tells_city"].unexpected_rows_query
    assert by_rule["kind_is_in_set"].value_set == ["web", "app"]
    write_suite(VISITS, RULES[:3], project)
    assert len(opened(project).suites.get("visits").expectations) == 3
    write_suite(VISITS, RULES, project)


def test_great_expectations_alone_counts_with_it_what_the_platform_counts(project: Path) -> None:
    context = opened(project)
    frame = all_faults().to_pandas()
    asset = context.data_sources.add_pandas("frames").add_dataframe_asset("visits")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    found = {
        result.expectation_config.meta["rule"]: result.result.get("unexpected_count")
        for result in batch.validate(context.suites.get("visits")).results
    }
    alone = {rule.name for rule in RULES if not isinstance(rule.test, Holds | Depends)}
    # In Python `$` is also before a last newline; the platform translates that, a suite cannot.
    counted = FAILING | {"url_matches_pattern": 2}
    assert {name: found[name] for name in alone} == {name: counted[name] for name in alone}


def test_data_docs_say_what_fails_by_counts_and_show_no_value_of_a_row(tmp_path: Path) -> None:
    page = write_data_docs([(VISITS, RULES, all_faults())], tmp_path)
    pages = "".join(file.read_text("utf-8") for file in page.parent.rglob("*.html"))
    assert page.name == "index.html"
    assert "One city a zip. To do: Ask geo-team to correct the rows" in pages
    for value in ("ftp://x", "Bonn", "seven"):
        assert value not in pages
