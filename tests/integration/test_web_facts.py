"""Events of the web in the warehouse: plans in any order, a load that is killed, and the asset."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import count, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.warehouse import PLAN_TAG, warehouse_assets
from profilehouse.contracts import contract
from profilehouse.errors import ProfilehouseError
from profilehouse.platform import Platform
from profilehouse.settings import load_settings
from profilehouse.warehouse.on_duckdb import open_duckdb
from profilehouse.warehouse.ranges import Plan, Range, behind, loaded_ranges

pytest.register_assert_rewrite("tests.warehouse_suite")
from tests.warehouse_suite import TOPIC, WEB, WebLog, bytes_of, rows_of, web_event  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
LEDGER = contract("web_load_ledger")

# Any plans over any log

PARTITIONS = st.dictionaries(
    st.integers(0, 2), st.lists(st.sampled_from("abcde"), max_size=8), min_size=1, max_size=3
)


@st.composite
def logs_and_plans(draw: st.DrawFn) -> tuple[WebLog, list[dict[int, Range]]]:
    log = WebLog()
    for partition, ids in draw(PARTITIONS).items():
        log.append(partition, *(web_event(i, value_cents=n) for n, i in enumerate(ids)))
    ranges = {
        p: st.tuples(st.integers(0, end), st.integers(0, end)).map(lambda r: (min(r), max(r)))
        for p, (_, end) in log.ends().items()
    }
    plans = st.lists(st.fixed_dictionaries({}, optional=ranges), max_size=6)
    return log, draw(plans)


@settings(max_examples=25, deadline=None)
@given(drawn=logs_and_plans())
def test_any_plans_leave_the_first_copy_of_each_event_they_cover(
    drawn: tuple[WebLog, list[dict[int, Range]]],
) -> None:
    log, plans = drawn
    with TemporaryDirectory() as folder, open_duckdb(Path(folder) / "w.duckdb") as warehouse:
        log.load(warehouse, {})
        for plan in plans:
            log.load(warehouse, plan)
        covered = {(p, o) for plan in plans for p, r in plan.items() for o in range(*r)}
        first: dict[str, tuple[int, int]] = {}
        for partition, offset in sorted(covered):
            event_id = log.partitions[partition][offset]["event_id"]
            first.setdefault(event_id, (partition, offset))
        found = rows_of(warehouse, WEB, "event_id", "log_partition", "log_offset")
        assert found == sorted((event_id, *position) for event_id, position in first.items())

        loaded = loaded_ranges(warehouse, TOPIC)
        assert {(p, o) for p, parts in loaded.items() for r in parts for o in range(*r)} == covered
        assert all(a[1] < b[0] for parts in loaded.values() for a, b in pairwise(parts))
        staged = sum(rows for (rows,) in rows_of(warehouse, LEDGER, "staged_rows"))
        assert staged == len(covered)

        missing = behind(loaded, {p: end for p, (_, end) in log.ends().items()})
        log.load(warehouse, missing)
        complete = {p: [r] for p, r in log.ends().items() if r[1]}
        assert loaded_ranges(warehouse, TOPIC) == complete


# A process that is killed

LOADING = """
import os, signal, sys
from itertools import count
from pathlib import Path
from profilehouse.warehouse.on_duckdb import DuckDBWarehouse, open_duckdb
from tests.integration.test_web_facts import a_log

file, last = Path(sys.argv[1]), int(sys.argv[2])
statements = count(1)
run = DuckDBWarehouse._run

def killed(self, sql, params):
    run(self, sql, params)
    if next(statements) == last:
        os.kill(os.getpid(), signal.SIGKILL)

DuckDBWarehouse._run = killed
with open_duckdb(file) as warehouse:
    a_log().load(warehouse)
"""


def a_log() -> WebLog:
    log = WebLog()
    log.append(0, *(web_event(i) for i in "abcab"))
    log.append(1, *(web_event(i) for i in "dae"))
    return log


def test_a_load_killed_after_any_statement_ends_in_the_same_tables_when_run_again(
    tmp_path: Path,
) -> None:
    with open_duckdb(tmp_path / "wanted.duckdb") as warehouse:
        a_log().load(warehouse, {0: (2, 4)})
        old = bytes_of(warehouse, WEB, LEDGER)
        a_log().load(warehouse)
        new = bytes_of(warehouse, WEB, LEDGER)
    assert old != new
    seen = set()
    for last in count(1):
        file = tmp_path / f"killed_after_{last}.duckdb"
        with open_duckdb(file) as warehouse:
            a_log().load(warehouse, {0: (2, 4)})
        process = subprocess.run(
            [sys.executable, "-c", LOADING, str(file), str(last)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60,
            check=False,
        )
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        with open_duckdb(file) as warehouse:
            seen.add(bytes_of(warehouse, WEB, LEDGER))
            a_log().load(warehouse)
            assert bytes_of(warehouse, WEB, LEDGER) == new
    assert last > 5, "BEGIN, the merge, two of the ledger and COMMIT"
    assert seen == {old, new}


# Plans


def test_a_plan_is_read_back_from_its_text() -> None:
    plan = Plan(TOPIC, {0: (10, 20), 11: (0, 1)})
    assert Plan.parse(plan.text()) == plan
    assert Plan.parse('{"topic_id": "t", "ranges": {"0": [1, 2]}}') == Plan("t", {0: (1, 2)})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"topic_id": "t"}',
        '{"topic_id": "t", "ranges": {"x": [1, 2]}}',
        '{"topic_id": "t", "ranges": {"0": [1]}}',
        '{"topic_id": "t", "ranges": {}, "more": 1}',
    ],
)
def test_a_plan_that_is_not_understood_is_named_with_how_to_write_one(text: str) -> None:
    with pytest.raises(ProfilehouseError, match=r"write it as \{\"topic_id\""):
        Plan.parse(text)


@pytest.mark.parametrize("ranges", ['{"0": [2, 1]}', '{"0": [-1, 1]}', '{"-1": [0, 1]}'])
def test_a_range_that_cannot_be_is_refused(ranges: str) -> None:
    with pytest.raises(ProfilehouseError, match="give the first offset and the one behind"):
        Plan.parse(f'{{"topic_id": "t", "ranges": {ranges}}}')


def test_a_plan_for_what_the_lake_does_not_hold_is_refused_with_the_remedy() -> None:
    plan = Plan(TOPIC, {0: (5, 10), 1: (0, 3)})
    plan.refuse_unless_held(TOPIC, {0: 10, 1: 3, 2: 8})
    with pytest.raises(ProfilehouseError, match=r"id topic-1, .* from topic-2: plan anew"):
        plan.refuse_unless_held("topic-2", {0: 10, 1: 3})
    for offsets in ({0: 10}, {0: 10, 1: 2}):
        with pytest.raises(ProfilehouseError, match=r"offset 3 of partition 1, .* run it again"):
            plan.refuse_unless_held(TOPIC, offsets)
    with pytest.raises(ProfilehouseError, match="the lake to 0"):
        plan.refuse_unless_held(None, {})


def test_what_is_behind_is_from_the_first_position_lacking_to_the_end() -> None:
    loaded = {0: [(0, 5)], 1: [(0, 2), (4, 9)], 2: [(3, 4)]}
    assert behind(loaded, {0: 5, 1: 9, 2: 6, 3: 0}) == {1: (2, 4), 2: (0, 6)}
    assert behind({}, {0: 3}) == {0: (0, 3)}


# The asset


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    warehouse = f"duckdb:{tmp_path}/warehouse.duckdb"
    return Platform(load_settings(lake=str(tmp_path / "lake"), warehouse=warehouse))


def append(platform: Platform, log: WebLog, after: dict[int, int]) -> None:
    """Let the lake hold the log up to some offsets."""
    lake = platform.lake()
    before = lake.positions("web_events").offsets
    ranges = {p: (before.get(p, 0), end) for p, end in after.items()}
    rows = pa.Table.from_batches(log.read(ranges), log.schema)
    known = {p: before[p] for p in after if p in before}
    lake.append("web_events", rows, topic_id=log.topic_id, before=known, after=after)


def materialize(platform: Platform, plan: Plan | None = None) -> dict[str, object]:
    """Run the asset; the metadata it left."""
    daily = dg.DailyPartitionsDefinition("2026-01-01")
    [asset] = [a for a in warehouse_assets(daily) if a.key.path[-1] == WEB.name]
    result = dg.materialize(
        [asset],
        resources={"platform": platform},
        tags={} if plan is None else {PLAN_TAG: plan.text()},
    )
    [event] = result.get_asset_materialization_events()
    return {name: value.value for name, value in event.materialization.metadata.items()}


def test_the_asset_loads_what_is_planned_and_without_a_plan_what_the_lake_has_more(
    platform: Platform,
) -> None:
    assert materialize(platform)["dagster/row_count"] == 0
    log = WebLog()
    log.append(0, *(web_event(i) for i in "abcdef"))
    log.append(1, *(web_event(i) for i in "gh"))
    append(platform, log, {0: 4, 1: 1})

    planned = materialize(platform, Plan(TOPIC, {0: (1, 3)}))
    assert (planned["loaded_ranges"], planned["staged_rows"]) == ("partition 0: 1..2", 2)
    rest = materialize(platform)
    assert rest["loaded_ranges"] == "partition 0: 0..0, 3..3; partition 1: 0..0"
    assert (rest["staged_rows"], rest["dagster/row_count"]) == (3, 5)
    assert materialize(platform)["loaded_ranges"] == ""
    append(platform, log, {0: 6})
    assert materialize(platform)["loaded_ranges"] == "partition 0: 4..5"
    with platform.warehouse() as warehouse:
        assert loaded_ranges(warehouse, TOPIC) == {0: [(0, 6)], 1: [(0, 1)]}
        assert [i for (i,) in rows_of(warehouse, WEB, "event_id")] == list("abcdefg")


def test_the_asset_refuses_a_plan_that_the_lake_does_not_cover(platform: Platform) -> None:
    log = WebLog()
    log.append(0, *(web_event(i) for i in "abc"))
    append(platform, log, {0: 2})
    with pytest.raises(
        ProfilehouseError, match="goes up to offset 3 of partition 0, the lake to 2"
    ):
        materialize(platform, Plan(TOPIC, {0: (0, 3)}))
    with pytest.raises(ProfilehouseError, match="plan anew"):
        materialize(platform, Plan("topic-2", {0: (0, 2)}))
    with platform.warehouse() as warehouse:
        assert loaded_ranges(warehouse, TOPIC) == {}
