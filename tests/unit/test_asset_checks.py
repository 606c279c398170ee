"""Asset checks always say something: none is silent, also when it crashes."""

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

import dagster as dg

from checks._common import asset_checks, reported, spec
from profilehouse.errors import ProfilehouseError
from profilehouse.platform import Platform
from profilehouse.quality.result import CheckResult
from profilehouse.settings import load_settings

KEY = dg.AssetKey(["lake", "visits"])
SPECS = [spec(KEY, name, f"The rule {name}", "error") for name in ("first", "second")]
PASSED = CheckResult(
    name="first",
    state="passed",
    severity="error",
    description="the rule",
    expected="all",
    observed="all",
    failing=0,
    total=1,
    remedy="nothing",
)


def evaluated(check: dg.AssetChecksDefinition, **resources: Any) -> dict[str, tuple[bool, str]]:
    with dg.DagsterInstance.ephemeral() as instance:
        defs = dg.Definitions(
            asset_checks=[check], jobs=[dg.define_asset_job("all", "*")], resources=resources
        )
        job = defs.get_implicit_global_asset_job_def()
        result = job.execute_in_process(instance=instance, raise_on_error=False)
    return {
        e.check_name: (e.passed, str(e.metadata["observed"].value))
        for e in result.get_asset_check_evaluations()
    }


def test_a_check_that_yields_nothing_fails() -> None:
    @asset_checks(specs=SPECS, name="silent")
    def silent(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        yield reported(KEY, PASSED)

    assert evaluated(silent) == {
        "first": (True, "all"),
        "second": (False, "the check could not run: it said nothing"),
    }


def test_a_check_that_crashes_fails_with_the_reason_and_what_it_said_before_counts() -> None:
    @asset_checks(specs=SPECS, name="crashing")
    def crashing() -> Iterator[dg.AssetCheckResult]:
        yield reported(KEY, PASSED)
        raise ValueError("no\nsuch thing")

    assert evaluated(crashing) == {
        "first": (True, "all"),
        "second": (False, "the check could not run: ValueError: no such thing"),
    }


def test_an_error_for_the_user_tells_what_to_do() -> None:
    @asset_checks(specs=SPECS[:1], name="closed")
    def closed() -> Iterator[dg.AssetCheckResult]:
        raise ProfilehouseError("the lake cannot be read; start it")
        yield reported(KEY, PASSED)

    assert evaluated(closed) == {
        "first": (False, "the check could not run: the lake cannot be read")
    }


def test_the_platform_of_a_check_says_which_run_and_step_it_works_for() -> None:
    works: list[Mapping[str, str]] = []

    @asset_checks(specs=SPECS[:1], name="rows_of_visits")
    def working(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        works.append(platform.work)
        yield reported(KEY, PASSED)

    evaluated(working, platform=Platform(load_settings()))
    [work] = works
    assert work["checks"] == "rows_of_visits"
    assert UUID(work["run_id"])
