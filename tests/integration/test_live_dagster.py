"""The live path in Dagster: what is observed, what is loaded when, and what the checks find."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from assets.live import HEARD_WITHIN
from assets.warehouse import PLAN_TAG
from checks import live
from platform_defs import fresh_events
from platform_defs.build import build_defs
from profilehouse.contracts import contract
from profilehouse.errors import ProfilehouseError
from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration
from profilehouse.profiles.store import Write
from profilehouse.settings import Settings, load_settings
from profilehouse.sources.retailer import TIMEZONE
from profilehouse.stream.status import Latency, Status, read_statuses, utc_now, write_status
from profilehouse.warehouse.ranges import Plan, loaded_ranges

pytest.register_assert_rewrite("tests.warehouse_suite")
from tests.integration.test_live_process import (  # noqa: E402
    living,
    record,
    run_through,
    send,
    until,
)
from tests.integration.test_web_facts import append  # noqa: E402
from tests.three_days import BUYERS, DAYS, deliver, run_daily_job  # noqa: E402
from tests.warehouse_suite import (  # noqa: E402
    TOPIC,
    WEB,
    WebLog,
    rows_of,
    web_event,
)

ROOT = Path(__file__).resolve().parents[2]
SENSOR = "dagster/sensor_name"
RUN_KEY = "dagster/run_key"
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(
        sources=str(tmp_path / "sources"),
        lake=str(tmp_path / "lake"),
        log=f"file:{tmp_path / 'log'}",
        profiles=f"lmdb:{tmp_path / 'profiles'}",
        status=str(tmp_path / "status"),
        warehouse=f"duckdb:{tmp_path / 'w.duckdb'}",
        timezone=TIMEZONE,
        first_day=DAYS[0],
    )


@pytest.fixture
def platform(settings: Settings) -> Platform:
    """With a calendar in the warehouse, as it is after the first daily load."""
    platform = Platform(settings)
    with platform.warehouse() as warehouse:
        warehouse.create(contract("dim_date"))
    return platform


@dataclass
class Dagster:
    """An instance with the definitions, and what its daemon does of a sensor's tick."""

    settings: Settings
    instance: dg.DagsterInstance
    cursor: str | None = None

    @cached_property
    def defs(self) -> dg.Definitions:
        return build_defs(self.settings)

    def evaluate(self, sensor: str, cursor: str | None = None) -> Any:
        """What a tick comes to; nothing is done."""
        repository = self.defs.get_repository_def()
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=cursor,
            repository_def=repository,
            resources={"platform": Platform(self.settings)},
            sensor_name=sensor,
        )
        return repository.get_sensor_def(sensor).evaluate_tick(context)

    def tick(self) -> str:
        """A whole tick of fresh_events: the state of the run it started, or why there is none."""
        found = self.evaluate("fresh_events", self.cursor)
        runs = [self.launch(request) for request in found.run_requests or ()]
        self.cursor = found.cursor
        return runs[0].status.value if runs and runs[0] else found.skip_message or "known run"

    def create(self, request: dg.RunRequest) -> dg.DagsterRun | None:
        """The run of a request, not started; None where there is one with its key."""
        tags = {**request.tags, RUN_KEY: str(request.run_key)}
        if self.instance.get_runs(dg.RunsFilter(tags={RUN_KEY: str(request.run_key)})):
            return None
        job = self.defs.resolve_job_def(fresh_events.FRESH_JOB)
        return self.instance.create_run_for_job(job, tags=tags, run_config=QUIET)

    def launch(self, request: dg.RunRequest) -> dg.DagsterRun | None:
        """Run a request to its end; None where there is a run with its key."""
        tags = {**request.tags, RUN_KEY: str(request.run_key)}
        if self.instance.get_runs(dg.RunsFilter(tags={RUN_KEY: str(request.run_key)})):
            return None
        job = self.defs.resolve_job_def(fresh_events.FRESH_JOB)
        result = job.execute_in_process(
            instance=self.instance, tags=tags, run_config=QUIET, raise_on_error=False
        )
        return self.instance.get_run_by_id(result.run_id)

    @property
    def loaded(self) -> dict[int, int]:
        """Up to where the cursor is."""
        return fresh_events._cursor(self.cursor).loaded  # type: ignore[union-attr]

    def plans(self) -> list[dict[int, tuple[int, int]]]:
        """The ranges of all runs, oldest first."""
        return [Plan.parse(run.tags[PLAN_TAG]).ranges for run in self.runs()]

    def runs(self) -> list[dg.DagsterRun]:
        """The sensor's runs, oldest first."""
        return list(self.instance.get_runs(dg.RunsFilter(tags={SENSOR: "fresh_events"})))[::-1]

    def check(self, *checks: str) -> dict[str, dg.AssetCheckEvaluation]:
        """Run the checks of the live path; what they found, by name."""
        job = self.defs.resolve_job_def(live.LIVE_CHECK_JOB)
        result = job.execute_in_process(
            instance=self.instance, run_config=QUIET, raise_on_error=False
        )
        found = {e.check_name: e for e in result.get_asset_check_evaluations()}
        assert result.success
        assert len(found) == 7
        return {name: found[name] for name in checks or found}


@pytest.fixture
def dagster(settings: Settings) -> Iterator[Dagster]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Dagster(settings, instance)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither new events nor failed runs wait."""
    monkeypatch.setattr(fresh_events, "LOAD_SECONDS", 0)
    monkeypatch.setattr(fresh_events, "RETRY_SECONDS", 0)


def logged(platform: Platform, **partitions: str) -> WebLog:
    """A log whose partitions p0, p1, ... hold these ids, one a letter, all of it in the lake."""
    log = WebLog()
    for partition, ids in partitions.items():
        log.append(int(partition[1:]), *(web_event(i) for i in ids))
    append(platform, log, {p: end for p, (_, end) in log.ends().items()})
    return log


def grow(platform: Platform, log: WebLog, partition: int, ids: str) -> None:
    """Append to the log, and to the lake."""
    log.append(partition, *(web_event(i) for i in ids))
    append(platform, log, {partition: log.ends()[partition][1]})


def facts(platform: Platform) -> tuple[str, dict[int, list[tuple[int, int]]]]:
    """The ids in the warehouse, and which positions the ledger has."""
    with platform.warehouse() as warehouse:
        ids = "".join(i for (i,) in rows_of(warehouse, WEB, "event_id"))
        return ids, loaded_ranges(warehouse, TOPIC)


@contextmanager
def without_lake(settings: Settings) -> Iterator[None]:
    """The lake's files are gone for a while: runs fail, positions can be read."""
    data = Path(settings.lake) / "web_events" / "data"
    data.rename(data.with_name("gone"))
    yield
    data.with_name("gone").rename(data)


# fresh_events


@pytest.mark.usefixtures("at_once")
def test_new_positions_are_loaded_by_runs_that_name_them(
    dagster: Dagster, platform: Platform
) -> None:
    assert "has no event yet" in dagster.tick()
    log = logged(platform, p0="abc", p1="d")
    assert dagster.tick() == "SUCCESS"
    grow(platform, log, 1, "ef")
    assert dagster.tick() == "SUCCESS"
    assert "All that is in the lake is loaded" in dagster.tick()

    assert dagster.plans() == [{0: (0, 3), 1: (0, 1)}, {1: (1, 3)}]
    assert facts(platform) == ("abcdef", {0: [(0, 3)], 1: [(0, 3)]})
    assert dagster.loaded == {0: 3, 1: 3}


def test_few_events_wait_for_the_interval_and_many_do_not(
    dagster: Dagster, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logged(platform, p0="ab")
    assert dagster.tick() == "SUCCESS"
    grow(platform, log, 0, "cd")
    assert "2 new positions, loaded in" in dagster.tick()
    monkeypatch.setattr(fresh_events, "LOAD_EVENTS", 2)
    assert dagster.tick() == "SUCCESS"
    assert dagster.plans()[1:] == [{0: (2, 4)}]


@pytest.mark.usefixtures("at_once")
def test_a_long_backlog_is_loaded_by_several_runs(
    dagster: Dagster, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh_events, "MOST_EVENTS", 4)
    logged(platform, p0="abc", p1="defgh")
    while dagster.tick() == "SUCCESS":
        pass
    assert dagster.plans() == [{0: (0, 2), 1: (0, 2)}, {0: (2, 3), 1: (2, 4)}, {1: (4, 5)}]
    assert facts(platform) == ("abcdefgh", {0: [(0, 3)], 1: [(0, 5)]})


@pytest.mark.usefixtures("at_once")
def test_the_same_tick_twice_asks_for_the_same_run(dagster: Dagster, platform: Platform) -> None:
    logged(platform, p0="abc")
    [once], [again] = (dagster.evaluate("fresh_events").run_requests for _ in range(2))
    assert once.run_key == again.run_key
    assert once.tags[PLAN_TAG] == again.tags[PLAN_TAG]
    assert dagster.launch(once) is not None
    assert dagster.launch(again) is None
    assert facts(platform) == ("abc", {0: [(0, 3)]})


@pytest.mark.usefixtures("at_once")
def test_a_lost_tick_skips_nothing_and_loads_nothing_twice(
    dagster: Dagster, platform: Platform
) -> None:
    log = logged(platform, p0="abc")
    before = dagster.cursor
    assert dagster.tick() == "SUCCESS"
    dagster.cursor = before  # the run was started, then the daemon died
    grow(platform, log, 0, "d")
    assert dagster.tick() == "SUCCESS"
    assert dagster.plans() == [{0: (0, 3)}, {0: (3, 4)}]

    dagster.evaluate("fresh_events", dagster.cursor)  # lost before anything was done of it
    grow(platform, log, 0, "ef")
    assert dagster.tick() == "SUCCESS"
    assert dagster.plans()[2:] == [{0: (4, 6)}]
    assert facts(platform) == ("abcdef", {0: [(0, 6)]})
    assert staged(platform) == 6


def staged(platform: Platform) -> int:
    """Rows that were read for the table, copies included."""
    with platform.warehouse() as warehouse:
        return sum(n for (n,) in rows_of(warehouse, contract("web_load_ledger"), "staged_rows"))


@pytest.mark.usefixtures("at_once")
def test_one_plan_is_outstanding_at_a_time(dagster: Dagster, platform: Platform) -> None:
    log = logged(platform, p0="abc")
    [request] = dagster.evaluate("fresh_events").run_requests
    queued = dagster.create(request)
    assert queued is not None
    grow(platform, log, 0, "d")
    for cursor in (None, '{"topic_id": "topic-1", "loaded": {"0": 1}}'):
        dagster.cursor = cursor
        assert f"Run {queued.run_id[:8]} is loading, or waits" in dagster.tick()
    assert len(dagster.runs()) == 1


@pytest.mark.usefixtures("at_once")
def test_the_positions_of_a_failed_run_are_planned_again(
    dagster: Dagster, platform: Platform, settings: Settings
) -> None:
    log = logged(platform, p0="abc")
    with without_lake(settings):
        assert dagster.tick() == "FAILURE"
        assert dagster.loaded == {}
        assert dagster.tick() == "FAILURE"
        assert dagster.loaded == {}
    grow(platform, log, 0, "d")
    assert dagster.tick() == "SUCCESS"
    assert dagster.tick() == "SUCCESS"
    assert dagster.plans() == [{0: (0, 3)}] * 3 + [{0: (3, 4)}]
    assert len({run.tags[RUN_KEY] for run in dagster.runs()}) == 4
    assert [run.tags[fresh_events.ATTEMPT_TAG] for run in dagster.runs()] == ["1", "2", "3", "1"]
    assert facts(platform) == ("abcd", {0: [(0, 4)]})


@pytest.mark.usefixtures("at_once")
def test_the_positions_of_a_canceled_run_are_planned_again(
    dagster: Dagster, platform: Platform
) -> None:
    logged(platform, p0="abc")
    found = dagster.evaluate("fresh_events")
    run = dagster.create(found.run_requests[0])
    assert run is not None
    dagster.cursor = found.cursor
    dagster.instance.report_run_canceled(run)
    assert dagster.tick() == "SUCCESS"
    assert dagster.plans() == [{0: (0, 3)}] * 2
    assert facts(platform) == ("abc", {0: [(0, 3)]})


def test_failed_runs_are_planned_again_after_ever_longer_pauses_and_never_given_up(
    dagster: Dagster,
    platform: Platform,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = datetime.now().timestamp()
    monkeypatch.setattr("time.time", lambda: now)  # Dagster's clock too
    logged(platform, p0="abc")
    pauses = []
    with without_lake(settings):
        assert dagster.tick() == "FAILURE"
        for _ in range(8):
            began = now = max(now, datetime.now().timestamp())
            while dagster.tick() != "FAILURE":
                now += 30
            pauses.append(round((now - began) / 60))
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert "9 times so far" in dagster.evaluate("fresh_events", dagster.cursor).skip_message
    said = capsys.readouterr().err
    assert "ended as FAILURE (1 times so far)" in said
    assert "ERROR" in said
    now += 1800
    assert dagster.tick() == "SUCCESS"
    assert facts(platform) == ("abc", {0: [(0, 3)]})


@pytest.mark.usefixtures("at_once")
def test_a_reset_cursor_leads_to_no_row_twice(dagster: Dagster, platform: Platform) -> None:
    log = logged(platform, p0="abc")
    assert dagster.tick() == "SUCCESS"
    grow(platform, log, 0, "d")
    assert dagster.tick() == "SUCCESS"
    dagster.cursor = None
    assert dagster.tick() == "SUCCESS"
    assert "All that is in the lake is loaded" in dagster.tick()
    assert dagster.plans()[2:] == [{0: (0, 4)}]
    assert dagster.loaded == {0: 4}
    assert facts(platform) == ("abcd", {0: [(0, 4)]})
    assert staged(platform) == 4

    dagster.cursor = ""  # reset again, when a run with the same plan is there
    assert "All that is in the lake is loaded" in dagster.tick()
    grow(platform, log, 0, "e")
    assert dagster.tick() == "SUCCESS"
    assert facts(platform) == ("abcde", {0: [(0, 5)]})


@pytest.mark.usefixtures("at_once")
def test_a_deleted_run_leads_to_no_position_skipped_and_no_row_twice(
    dagster: Dagster, platform: Platform
) -> None:
    logged(platform, p0="abc")
    found = dagster.evaluate("fresh_events")
    queued = dagster.create(found.run_requests[0])
    assert queued is not None
    dagster.cursor = found.cursor
    dagster.instance.delete_run(queued.run_id)
    assert dagster.tick() == "SUCCESS"
    dagster.instance.delete_run(dagster.runs()[0].run_id)
    assert dagster.tick() == "SUCCESS"
    assert "All that is in the lake is loaded" in dagster.tick()
    assert facts(platform) == ("abc", {0: [(0, 3)]})
    assert staged(platform) == 3


@pytest.mark.usefixtures("at_once")
def test_an_older_run_that_somebody_runs_again_changes_nothing(
    dagster: Dagster, platform: Platform
) -> None:
    log = logged(platform, p0="abc")
    assert dagster.tick() == "SUCCESS"
    grow(platform, log, 0, "d")
    assert dagster.tick() == "SUCCESS"
    [first, _] = dagster.runs()
    job = dagster.defs.resolve_job_def(fresh_events.FRESH_JOB)
    job.execute_in_process(instance=dagster.instance, tags=first.tags, run_config=QUIET)
    grow(platform, log, 0, "e")
    assert dagster.tick() == "SUCCESS"
    assert dagster.plans()[-1] == {0: (3, 5)}, "the sensor has not seen the second run's end"
    assert facts(platform) == ("abcde", {0: [(0, 5)]})
    assert staged(platform) == 5


@pytest.mark.usefixtures("at_once")
def test_what_the_asset_loaded_by_hand_is_not_loaded_again(
    dagster: Dagster, platform: Platform
) -> None:
    logged(platform, p0="abc")
    job = dagster.defs.resolve_job_def(fresh_events.FRESH_JOB)
    assert job.execute_in_process(instance=dagster.instance, run_config=QUIET).success
    assert dagster.tick() == "SUCCESS"
    assert facts(platform) == ("abc", {0: [(0, 3)]})
    assert staged(platform) == 3


@pytest.mark.usefixtures("at_once")
def test_a_run_whose_check_fails_has_loaded_its_positions(
    dagster: Dagster, platform: Platform
) -> None:
    log = WebLog()
    log.append(0, web_event("a", anonymous_id=None), web_event("b"))
    append(platform, log, {0: 2})
    assert dagster.tick() == "FAILURE"
    grow(platform, log, 0, "c")
    assert dagster.tick() == "FAILURE", "the check looks at the whole table"
    assert dagster.plans() == [{0: (0, 2)}, {0: (2, 3)}]
    assert facts(platform) == ("abc", {0: [(0, 3)]})


@pytest.mark.usefixtures("at_once")
def test_a_topic_made_anew_is_refused_with_the_remedy(
    dagster: Dagster, platform: Platform, settings: Settings
) -> None:
    logged(platform, p0="abc")
    assert dagster.tick() == "SUCCESS"
    Path(settings.lake).rename(f"{settings.lake}-old")
    other = WebLog({0: [web_event("x")]}, "topic-2")
    append(platform, other, {0: 1})
    with pytest.raises(ProfilehouseError) as refused:
        dagster.tick()
    said = str(refused.value)
    assert "id topic-2, fct_web_event was loaded from topic-1: the log and the lake" in said
    assert "run DROP TABLE fct_web_event in the warehouse and reset the cursor" in said

    dagster.cursor = None
    assert dagster.tick() == "FAILURE", "the warehouse refuses it too"
    with platform.warehouse() as warehouse:
        warehouse.execute("DROP TABLE fct_web_event")
    assert dagster.tick() == "SUCCESS"
    with platform.warehouse() as warehouse:
        assert loaded_ranges(warehouse, "topic-2") == {0: [(0, 1)]}


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", range(2))
def test_whatever_goes_wrong_in_whatever_order_each_position_is_loaded_once(
    dagster: Dagster, platform: Platform, settings: Settings, seed: int
) -> None:
    chance = random.Random(seed)
    log = logged(platform, p0="a")
    for number in range(14):
        grow(platform, log, chance.randrange(3), chr(ord("b") + number))
        cursor = dagster.cursor
        happens = chance.choice(["all", "lost", "lost early", "reset", "deleted", "failed", "late"])
        if happens == "lost early":
            dagster.evaluate("fresh_events", dagster.cursor)
        elif happens == "failed":
            with without_lake(settings):
                dagster.tick()
        elif happens == "late":
            found = dagster.evaluate("fresh_events", dagster.cursor)
            queued = [dagster.create(request) for request in found.run_requests or ()]
            dagster.cursor = found.cursor
            dagster.tick()
            for run in filter(None, queued):
                dagster.instance.report_run_canceled(run)
        else:
            dagster.tick()
        if happens in ("lost", "reset"):
            dagster.cursor = cursor if happens == "lost" else None
        if happens == "deleted" and dagster.runs():
            dagster.instance.delete_run(dagster.runs()[-1].run_id)
    while dagster.tick() == "SUCCESS":
        pass

    assert "All that is in the lake is loaded" in dagster.tick()
    ids, ranges = facts(platform)
    assert ids == "abcdefghijklmno"
    assert ranges == {p: [(0, end)] for p, (_, end) in log.ends().items()}
    assert staged(platform) == 15
    assert dagster.loaded == {p: end for p, (_, end) in log.ends().items()}


def test_a_cursor_that_is_not_understood_is_refused_with_the_remedy(
    dagster: Dagster, platform: Platform
) -> None:
    logged(platform, p0="a")
    with pytest.raises(ProfilehouseError, match=r"is not understood .* reset it to nothing"):
        dagster.evaluate("fresh_events", "42")


# observe_live


def status(instance: str, **given: Any) -> Status:
    now = utc_now()
    fields: dict[str, Any] = {
        "state": "running",
        "started_at": now,
        "written_at": now,
        "log": "kafka://broker:9092/web",
        "topic_id": TOPIC,
    }
    return Status(instance=instance, **(fields | given))


def observe(dagster: Dagster) -> dict[str, dict[str, Any]]:
    """One tick of observe_live: the newest observation of each asset, as Dagster holds it."""
    for event in dagster.evaluate("observe_live").asset_events:
        dagster.instance.report_runless_asset_event(event)
    found = {}
    for key in ("live/event_log", "live/live_process", "lake/web_events", "lake/web_dead_letters"):
        found[key] = observed(dagster.instance, key)
    return found | {"profiles/profile_store": observed(dagster.instance, "profiles/profile_store")}


def observed(instance: dg.DagsterInstance, key: str) -> dict[str, Any]:
    records = instance.fetch_observations(dg.AssetKey(key.split("/")), limit=1).records
    [observation] = [record.asset_observation for record in records]
    assert observation is not None
    return {name: value.value for name, value in observation.metadata.items()}


def test_a_running_process_is_observed_with_its_numbers(
    dagster: Dagster, platform: Platform, settings: Settings
) -> None:
    send(platform, *(record(n, user_id=f"u{n % 3}") for n in range(30)), b"{")
    with living(platform):
        until(
            lambda: any(
                s.events == 30 and s.lake_lag == s.buffered == 0 for s in read_statuses(settings)
            )
        )
        found = observe(dagster)

    process = found["live/live_process"]
    numbers = {k: v for k, v in process.items() if isinstance(v, int | float)}
    assert (
        numbers.items()
        >= {
            "events": 30,
            "dead_letters": 1,
            "lag": 0,
            "lake_lag": 0,
            "buffered": 0,
            "restarts": 0,
            "processes": 1,
        }.items()
    )
    assert numbers["rate"] > 0
    assert 0 < numbers["latency_p50_ms"] <= numbers["latency_p95_ms"] <= numbers["latency_p99_ms"]
    assert process["state"].endswith(" runs")
    assert found["live/event_log"]["records"] == 31
    assert found["lake/web_events"].items() >= {"position": 31, "lag": 0}.items()
    assert found["lake/web_dead_letters"].items() >= {"position": 31, "dead_letters": 1}.items()
    assert found["profiles/profile_store"].items() >= {"position": 31, "events": 30}.items()


def test_several_processes_are_summed_with_the_worst_latency_and_each_is_listed(
    dagster: Dagster, settings: Settings
) -> None:
    one = {"ends": {0: 100, 1: 50}, "profiles": {0: 90, 1: 50}, "lake": {0: 80, 1: 40}}
    write_status(settings, status("a-1", **one, events=140, latency=Latency(5, 9, 40, 50)))
    two = {"ends": {2: 10}, "profiles": {2: 10}, "lake": {2: 10}, "rate": 2.5, "restarts": 1}
    write_status(settings, status("b-2", **two, events=10, latency=Latency(6, 8, 20, 90)))
    write_status(settings, status("c-3", events=99, state="stopped"))
    old = utc_now() - HEARD_WITHIN * 2
    write_status(settings, status("d-4", events=99, written_at=old))

    process = observe(dagster)["live/live_process"]

    assert (
        process.items()
        >= {
            "events": 150,
            "lag": 10,
            "lake_lag": 30,
            "rate": 2.5,
            "restarts": 1,
            "processes": 2,
            "latency_p50_ms": 6,
            "latency_p95_ms": 9,
            "latency_p99_ms": 40,
            "latency_maximum_ms": 90,
        }.items()
    )
    assert sorted(row.data["process"] for row in process["each"].records) == ["a-1", "b-2"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "no live process has run yet: start one with `profilehouse stream`"),
        ({"state": "stopped"}, r"a-1 was stopped at .* start one with `profilehouse stream`"),
        ({"state": "failed", "error": "disk full"}, r"a-1 failed at .* \(disk full\): mend that"),
        ({"written_at": datetime(2026, 1, 2, 3)}, "a-1 was last heard of at 2026-01-02 03:00:00"),
    ],
    ids=["never", "stopped", "failed", "killed"],
)
def test_without_a_live_process_the_sensor_says_why_and_how_to_start_one(
    dagster: Dagster, settings: Settings, given: dict[str, Any] | None, says: str
) -> None:
    if given is not None:
        write_status(settings, status("a-1", **given))
    found = dagster.evaluate("observe_live")
    assert not found.asset_events
    assert re.search(says, found.skip_message)


# Checks


def failed(found: dg.AssetCheckEvaluation, severity: str, *says: str) -> None:
    """See that a check failed with these words, and tells what to do."""
    assert not found.passed
    assert found.severity.value == severity
    for words in says:
        assert re.search(words, found.description or ""), found.description
    assert found.metadata["what to do"].value
    assert not found.blocking


def numbers(found: dg.AssetCheckEvaluation) -> dict[str, Any]:
    return {k: v.value for k, v in found.metadata.items() if isinstance(v.value, int | float)}


def load_deliveries(platform: Platform) -> None:
    """The facts of batch sources as they are when nothing was delivered."""
    with platform.warehouse() as warehouse:
        for fact in ("fct_purchase", "fct_interaction"):
            warehouse.create(contract(fact))


def test_before_any_live_process_nothing_is_wrong_and_each_check_says_so(dagster: Dagster) -> None:
    for name, found in dagster.check().items():
        assert found.passed, name
        assert found.metadata["state"].value == "not enough history"
        assert found.metadata["observed"].value.startswith("no live process has run yet")


def test_a_live_path_in_order_passes_every_check(
    dagster: Dagster, platform: Platform, settings: Settings
) -> None:
    load_deliveries(platform)
    visit = {"anonymous_id": "browser", "session_id": "s1"}
    send(platform, *(record(n, user_id=f"u{n % 7}") for n in range(300)), record(300, **visit))
    send(platform, record(301, **visit, user_id="u1"), b"{")
    with living(platform):
        until(lambda: any(s.events == 302 and s.lake_lag == 0 for s in read_statuses(settings)))
        found = dagster.check()
        send(platform, *(record(n, user_id=f"u{n % 7}") for n in range(302, 320)))
        until(lambda: any(s.events == 320 for s in read_statuses(settings)))
        later = dagster.check(live.AGREE, live.LOADED)

    assert {name: f.description for name, f in found.items() if not f.passed} == {}
    assert "state" not in {word for f in found.values() for word in f.metadata}
    assert numbers(found[live.EACH_ONCE])["positions"] == 303
    assert numbers(found[live.PROFILES_KEEP_UP])["lag"] == 0
    assert numbers(found[live.LAKE_KEEPS_UP])["newest_event_seconds"] < 60
    assert numbers(found[live.FEW_REFUSED])["dead_letters"] == 1
    assert numbers(found[live.RUNS])["running"] == 1
    assert numbers(found[live.AGREE]).items() >= {"users": 7, "positions": 303}.items()
    assert later[live.AGREE].passed
    assert later[live.LOADED].passed
    assert numbers(later[live.AGREE])["positions"] == 321, "loaded by the check itself"


@pytest.mark.parametrize(
    ("given", "severity", "says"),
    [
        ({"state": "stopped"}, "WARN", "a-1 was stopped at"),
        ({"state": "failed", "error": "disk full"}, "ERROR", r"a-1 failed at .* \(disk full\)"),
        ({"written_at": utc_now() - timedelta(minutes=5)}, "ERROR", "a-1 was last heard of at"),
        (None, "ERROR", "no live process has run yet"),
    ],
    ids=["stopped", "failed", "killed", "elsewhere"],
)
def test_a_live_process_that_is_not_heard_of_is_found(
    dagster: Dagster,
    platform: Platform,
    settings: Settings,
    given: dict[str, Any] | None,
    severity: str,
    says: str,
) -> None:
    if given is None:
        logged(platform, p0="abc")
    else:
        write_status(settings, status("a-1", **given))
    failed(dagster.check()[live.RUNS], severity, says, "profilehouse stream")


def test_records_that_wait_too_long_are_found(
    dagster: Dagster, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(platform, record(1, user_id="a"))
    run_through(platform, 1)
    send(platform, record(2, user_id="a"), record(3, user_id="b"))
    soon = dagster.check(live.PROFILES_KEEP_UP, live.LAKE_KEEPS_UP)
    monkeypatch.setattr(live, "PROFILES_WITHIN", timedelta(seconds=0.01))
    monkeypatch.setattr(live, "LAKE_WITHIN", timedelta(seconds=0.01))
    late = dagster.check(live.PROFILES_KEEP_UP, live.LAKE_KEEPS_UP)

    assert all(found.passed for found in soon.values())
    says = "2 records of the log are not in the {} yet, the oldest waits for"
    failed(late[live.PROFILES_KEEP_UP], "WARN", says.format("profiles"))
    failed(late[live.LAKE_KEEPS_UP], "WARN", says.format("lake"), "the newest event there: 20")
    assert [numbers(found)["lag"] for found in late.values()] == [2, 2]
    assert all(numbers(found)["lag_seconds"] > 0.01 for found in late.values())


def test_a_log_that_cannot_be_followed_fails_the_checks_and_tells_why(
    dagster: Dagster, platform: Platform, settings: Settings
) -> None:
    send(platform, record(1, user_id="a"))
    run_through(platform, 1)
    Path(settings.log.removeprefix("file:")).rename(f"{settings.sources}-old-log")
    for found in dagster.check(live.PROFILES_KEEP_UP, live.LAKE_KEEPS_UP).values():
        failed(found, "ERROR", "could not run: .* the log's topic has id .* created anew")


def test_many_dead_letters_are_found_with_their_reasons(
    dagster: Dagster, platform: Platform
) -> None:
    send(platform, *(record(n, user_id="a") for n in range(97)), b"{", b"[]", b"[]")
    run_through(platform, 97)
    found = dagster.check()[live.FEW_REFUSED]
    failed(found, "WARN", r"3 of 100 records refused, 3.0 %", "dead-letters list")
    records = [row.data for row in found.metadata["sample"].value.records]
    assert [row["records"] for row in records] == ["2", "1"]
    assert "array" in str(records[0]["reason"])


def test_old_dead_letters_no_longer_count(dagster: Dagster, platform: Platform) -> None:
    old = utc_now() - timedelta(hours=live.REFUSED_HOURS, minutes=1)
    write(platform, "web_events", WebLog({0: [web_event("a", received_at=utc_now())]}), {0: 1})
    write(platform, "web_dead_letters", dead_letters(1, received_at=old), {0: 2})
    assert numbers(dagster.check()[live.FEW_REFUSED])["dead_letters"] == 0


def dead_letters(*offsets: int, received_at: datetime) -> pa.Table:
    rows = [
        {
            "received_at": received_at,
            "reason": "it is no JSON",
            "contract_version": "1.0.0",
            "record": b"{",
            "topic_id": TOPIC,
            "log_partition": 0,
            "log_offset": offset,
            "delivered_on": received_at.date(),
        }
        for offset in offsets
    ]
    return pa.Table.from_pylist(rows, contract("web_dead_letters").arrow_schema)


def write(
    platform: Platform, table: str, rows: WebLog | pa.Table, after: Mapping[int, int]
) -> None:
    """Put rows into a table of the lake as if they were all of the log up to some offsets."""
    if isinstance(rows, WebLog):
        rows = pa.Table.from_batches(rows.read(rows.ends()), rows.schema)
    platform.lake().append(table, rows, topic_id=TOPIC, before={}, after=after)


@pytest.mark.parametrize("at_once", [1, 4, 50_000_000])
def test_a_hole_and_a_repeated_position_are_found(
    dagster: Dagster, platform: Platform, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(live, "POSITIONS_AT_ONCE", at_once)
    log = WebLog()
    log.append(0, *(web_event(i) for i in "abcdefgh"))
    log.append(1, *(web_event(i) for i in "ijk"))
    rows = pa.Table.from_batches(log.read(log.ends()), log.schema)
    mask = [not (p == 0 and o in (3, 4, 6)) for p, o in positions_of(rows)]
    write(platform, "web_events", rows.filter(pa.array(mask)), {0: 8, 1: 3})
    write(platform, "web_dead_letters", dead_letters(6, 7, received_at=utc_now()), {0: 8, 1: 3})

    found = dagster.check()[live.EACH_ONCE]

    failed(found, "ERROR", "of 11 positions in 2 partitions, 2 are missing and 1 rows")
    missing = {
        n: [{"partition": "0", "first": a, "last": b, "is": "missing"} for a, b in ranges]
        for n, ranges in {1: ["33", "44"], 4: ["33", "44"], 50_000_000: ["34"]}.items()
    }
    assert [dict(row.data) for row in found.metadata["sample"].value.records] == [
        *missing[at_once],
        {"partition": "0", "first": "7", "last": "7", "is": "more than once"},
    ]


def positions_of(rows: pa.Table) -> list[tuple[int, int]]:
    columns = [rows[name].to_pylist() for name in ("log_partition", "log_offset")]
    return list(zip(*columns, strict=True))


def test_positions_that_only_one_table_has_reached_are_no_holes(
    dagster: Dagster, platform: Platform
) -> None:
    log = WebLog()
    log.append(0, *(web_event(i) for i in "abc"))
    write(platform, "web_events", log, {0: 5})
    assert dagster.check()[live.EACH_ONCE].passed
    write(platform, "web_dead_letters", dead_letters(received_at=utc_now()), {0: 3})
    assert dagster.check()[live.EACH_ONCE].passed
    lake = platform.lake()
    rows = dead_letters(3, received_at=utc_now())
    lake.append("web_dead_letters", rows, topic_id=TOPIC, before={0: 3}, after={0: 5})
    found = dagster.check()[live.EACH_ONCE]
    failed(found, "ERROR", "of 5 positions in 1 partitions, 1 are missing and 0 rows")


def test_positions_that_were_left_out_of_the_warehouse_are_found(
    dagster: Dagster, platform: Platform
) -> None:
    log = logged(platform, p0="abcdefgh", p1="ij")
    with platform.warehouse() as warehouse:
        log.load(warehouse, {0: (0, 2), 1: (0, 1)})
        log.load(warehouse, {0: (5, 7)})
    found = dagster.check()[live.LOADED]
    failed(found, "ERROR", "5 positions are loaded, 1 gaps", "Materialize warehouse/fct_web_event")
    assert numbers(found).items() >= {"gaps": 1, "not_loaded_yet": 5}.items()
    [row] = found.metadata["sample"].value.records
    assert dict(row.data) == {"partition": "0", "first": "2", "last": "4", "is": "not loaded"}
    job = dagster.defs.resolve_job_def(fresh_events.FRESH_JOB)
    assert job.execute_in_process(instance=dagster.instance, run_config=QUIET).success
    assert dagster.check()[live.LOADED].passed


def test_a_warehouse_that_is_ahead_of_the_lake_is_found(
    dagster: Dagster, platform: Platform, settings: Settings
) -> None:
    log = logged(platform, p0="abcdefgh")
    with platform.warehouse() as warehouse:
        log.load(warehouse)
    Path(settings.lake).rename(f"{settings.lake}-lost")
    append(platform, log, {0: 5})
    found = dagster.check()[live.LOADED]
    failed(found, "ERROR", "0 gaps between them, 1 ranges beyond the lake's end")
    [row] = found.metadata["sample"].value.records
    assert dict(row.data) == {"partition": "0", "first": "5", "last": "7", "is": "no longer"}


def test_a_changed_profile_is_found(dagster: Dagster, platform: Platform) -> None:
    load_deliveries(platform)
    send(platform, *(record(n, user_id=f"u{n % 3}") for n in range(31)))
    run_through(platform, 31)
    assert dagster.check()[live.AGREE].passed
    with platform.log() as log, platform.profile_store(load_declaration()) as store:
        store.resume(log.topic_id)
        rows = store.read(["u0", "u1"])
        store.commit([Write("u1", rows["u1"], rows["u0"].row)], {}, {})

    found = dagster.check()[live.AGREE]

    failed(found, "ERROR", "1 of 3 users differ", "profiles/profile_store")
    sample = found.metadata["sample"].value.records
    assert {"column": "clicks_lifetime", "store": "11", "warehouse": "10"}.items() <= next(
        row.data for row in sample if row.data["column"] == "clicks_lifetime"
    ).items()
    assert "u1" not in {row.data["user_key"] for row in sample}


def test_a_lake_that_does_not_reach_the_profiles_fails_the_agreement(
    dagster: Dagster, platform: Platform, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LAKE_WAITED_FOR", timedelta(seconds=0.1))
    send(platform, record(1, user_id="a"))
    run_through(platform, 1)
    Path(settings.lake).rename(f"{settings.lake}-lost")
    found = dagster.check()[live.AGREE]
    failed(found, "ERROR", "could not run: the profiles hold offsets up to 0 of partition")


def test_facts_that_were_never_loaded_fail_the_agreement_with_the_remedy(
    dagster: Dagster, platform: Platform
) -> None:
    send(platform, record(1, user_id="a"))
    run_through(platform, 1)
    failed(dagster.check()[live.AGREE], "ERROR", "fct_purchase .* materialize its asset")


def test_a_daily_load_beside_a_live_process_leaves_both_in_agreement(
    dagster: Dagster, platform: Platform, settings: Settings
) -> None:
    """Batch events and those of the log, of the same users, in one store and one warehouse."""
    deliver(Path(settings.sources))
    known = {("fct_purchase", "content_key_is_in_dim_content")}
    known.add(("dim_user", "every_buyer_has_demographics"))
    send(platform, *(record(n, user_id=str(n % 40)) for n in range(300)))
    with living(platform):
        until(lambda: any(s.events == 300 for s in read_statuses(settings)))
        result = run_daily_job(settings, dagster.instance)
        send(platform, *(record(n, user_id=str(n % 40)) for n in range(300, 500)))
        until(lambda: any(s.events == 500 for s in read_statuses(settings)))
        found = dagster.check(live.AGREE)[live.AGREE]
    assert result.success
    assert known == {
        (e.asset_key.path[-1], e.check_name)
        for e in result.get_asset_check_evaluations()
        if not e.passed
    }
    assert found.passed, found.description
    assert numbers(found)["positions"] == 500
    assert numbers(found)["users"] > BUYERS


# The daemon


def test_the_daemon_observes_the_live_process_and_loads_its_events(
    platform: Platform, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = (ROOT / "dagster.yaml").read_text("utf-8")
    (tmp_path / "dagster.yaml").write_text(here.replace("data/dagster", f"{tmp_path}/dagster"))
    names = ("sources", "lake", "log", "profiles", "status", "warehouse")
    given = {f"PROFILEHOUSE_{n.upper()}": getattr(settings, n) for n in names}
    for name, value in (given | {"DAGSTER_HOME": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    send(platform, *(record(n, user_id=f"u{n % 3}") for n in range(30)))
    command = [sys.executable, "-m", "dagster._daemon", "run", "-w", str(ROOT / "workspace.yaml")]
    said = (tmp_path / "daemon.log").open("wb")
    with living(platform), dg.DagsterInstance.get() as instance:
        daemon = subprocess.Popen(
            command, cwd=ROOT, stdout=said, stderr=said, start_new_session=True
        )
        try:
            observations = dg.AssetKey(["live", "live_process"])
            until(lambda: bool(instance.fetch_observations(observations, limit=1).records), 120)
            loads = dg.RunsFilter(job_name=fresh_events.FRESH_JOB)
            until(lambda: any(run.is_finished for run in instance.get_runs(loads)), 120)
        finally:
            os.killpg(daemon.pid, signal.SIGTERM)
            daemon.wait(60)
        [run] = instance.get_runs(loads)
        assert run.status.value == "SUCCESS"
        assert observed(instance, "live/live_process")["events"] == 30
    with platform.warehouse() as warehouse:
        assert len(rows_of(warehouse, WEB, "event_id")) == 30
