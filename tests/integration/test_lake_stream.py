"""Appending to a lake in a local folder: what every lake does, and what only processes on one disk
can."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pyarrow import parquet
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table

from profilehouse.errors import ProfilehouseError, StaleWriter
from profilehouse.lake import Lake, commit, open_lake, reading, upkeep
from profilehouse.lake.catalog import open_catalog
from profilehouse.lake.lake import NAMESPACE
from profilehouse.settings import Settings
from tests.integration.test_lake import finish, local, start
from tests.lake_cases import day
from tests.lake_stream_cases import (
    EVENTS,
    LETTERS,
    TOPIC,
    LakeStreamCases,
    Position,
    found,
    put,
    refused,
    web,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "the lake #1"


@pytest.fixture
def settings(folder: Path) -> Settings:
    return local(folder)


class TestLocalLakeStream(LakeStreamCases):
    def files(self, lake: Lake, name: str) -> list[str]:
        return [str(path) for path in Path(lake.url, name).rglob("*") if path.is_file()]

    def leave_orphans(self, lake: Lake, name: str) -> set[str]:
        places = ("data/delivered_on=2026-03-01/x.parquet", "metadata/snap-1.avro", "other")
        orphans = [Path(lake.url, name, place) for place in places]
        for path in orphans:
            path.write_bytes(b"orphan")
        return {str(path) for path in orphans}


def opened(lake: Lake, name: str = EVENTS) -> Table:
    """The table as any engine that speaks Iceberg sees it."""
    catalog, _ = open_catalog(local(Path(lake.url)), None, NAMESPACE)
    return catalog.load_table((NAMESPACE, name))


@hypothesis_settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.tuples(
            st.dictionaries(st.integers(0, 3), st.integers(1, 9), min_size=1),
            st.integers(0, 2),
            st.booleans(),
            st.integers(0, 2**16),
        ),
        max_size=7,
    ),
    at_once=st.sampled_from([500_000, 5]),
)
def test_any_series_of_appends_and_compactions_reads_like_a_sorted_list(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[tuple[dict[int, int], int, bool, int]],
    at_once: int,
) -> None:
    monkeypatch.setattr(reading, "ROWS_AT_ONCE", at_once)
    lake = open_lake(local(tmp_path_factory.mktemp("lake")))
    expected: list[Position] = []
    stored: dict[int, int] = {}
    for grown, number, compacts, seed in steps:
        chance = random.Random(seed)
        before = {p: stored[p] for p in grown if p in stored}
        after = {p: stored.get(p, 0) + more for p, more in grown.items()}
        rows = [
            (day(number), p, offset)
            for p, end in after.items()
            for offset in range(before.get(p, 0), end)
            if chance.random() < 0.8
        ]
        chance.shuffle(rows)
        put(lake, [web(of, p, [offset]) for of, p, offset in rows], before, after)
        expected += rows
        stored |= after
        if compacts:
            lake.compact(EVENTS, day(2))
    assert found(lake) == sorted(expected)
    assert lake.positions(EVENTS).offsets == stored


def test_files_outside_of_the_range_are_not_opened(folder: Path) -> None:
    lake = open_lake(local(folder))
    for n in range(3):
        put(lake, [web(day(0), 0, [n])], {0: n} if n else {}, {0: n + 1})
    known = {task.file.file_path for task in opened(lake).scan().plan_files()}
    put(lake, [web(day(0), 0, [3])], {0: 3}, {0: 4})
    for path in known:
        Path(path).unlink()
    assert found(lake, offsets={0: (3, 9)}) == [(day(0), 0, 3)]
    with pytest.raises(ProfilehouseError, match="cannot read web_events"):
        found(lake, offsets={0: (2, 9)})


def test_files_of_dead_letters_large_and_small_are_read_in_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BYTES_AT_ONCE", 5_000)
    lake = open_lake(local(folder))
    put(lake, [refused(day(0), 0, range(500))], {}, {0: 500}, LETTERS)
    put(lake, [refused(day(0), 0, [10**12])], {0: 500}, {0: 10**12 + 1}, LETTERS)
    parts = list(lake.batches(LETTERS, columns=["log_offset"]))
    offsets = [offset for part in parts for offset in part["log_offset"].to_pylist()]
    assert offsets == [*range(500), 10**12]
    assert len(parts) > 2


def test_a_large_day_is_compacted_into_several_files_that_follow_one_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = open_lake(local(folder))
    for n in range(12):
        before = dict.fromkeys(range(3), n * 40) if n else {}
        rows = [web(day(0), p, range(n * 40, n * 40 + 40)) for p in range(3)]
        put(lake, rows, before, dict.fromkeys(range(3), n * 40 + 40))
    size = sum(task.file.file_size_in_bytes for task in opened(lake).scan().plan_files())
    monkeypatch.setattr(upkeep, "FILE_BYTES", size / 4 + 1)
    monkeypatch.setattr(reading, "ROWS_AT_ONCE", 100)
    before_all = lake.read(EVENTS)
    report = lake.compact(EVENTS, day(1))
    assert (report.files_before, report.files_after) == (12, 4)
    ends: list[tuple[int, int, int, int]] = []
    for task in opened(lake).scan().plan_files():
        table = parquet.read_table(task.file.file_path, columns=["log_partition", "log_offset"])
        positions = list(zip(*table.to_pydict().values(), strict=True))
        assert positions == sorted(positions)
        assert len(positions) == 12 * 40 * 3 / 4
        ends.append((*positions[0], *positions[-1]))
    assert all(one[2:] < other[:2] for one, other in pairwise(sorted(ends)))
    assert lake.read(EVENTS).equals(before_all)


CLAIM = """
import random
from profilehouse.errors import StaleWriter
from tests.lake_stream_cases import *
chance = random.Random({seed})
while True:
    stored = lake.positions(EVENTS).offsets.get({partition})
    first = stored or 0
    if first >= {end}:
        break
    end = min({end}, first + chance.randint(1, 9))
    rows = [web(day(n % 2), {partition}, [n]) for n in range(first, end)]
    before = {{}} if stored is None else {{{partition}: stored}}
    try:
        put(lake, rows, before, {{{partition}: end}})
    except StaleWriter:
        pass
"""


def test_processes_that_fight_for_a_partition_append_each_record_once(folder: Path) -> None:
    finish(*[start(folder, CLAIM.format(seed=n, partition=0, end=60)) for n in range(3)])
    lake = open_lake(local(folder))
    assert sorted(found(lake)) == sorted((day(n % 2), 0, n) for n in range(60))
    assert lake.positions(EVENTS).offsets == {0: 60}


def test_processes_that_append_to_different_partitions_at_once_never_fail(folder: Path) -> None:
    finish(*[start(folder, CLAIM.format(seed=n, partition=n, end=60)) for n in range(3)])
    lake = open_lake(local(folder))
    assert sorted(found(lake)) == sorted((day(n % 2), p, n) for p in range(3) for n in range(60))
    assert lake.positions(EVENTS).offsets == {0: 60, 1: 60, 2: 60}


def test_a_process_killed_at_any_moment_resumes_from_the_positions_without_loss_or_copy(
    folder: Path,
) -> None:
    script = (
        "from tests.lake_stream_cases import *\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for name, rows in ((EVENTS, web), (LETTERS, refused)):\n"
        "        offsets = lake.positions(name).offsets\n"
        "        first = offsets.get(0, 0)\n"
        "        chosen = [rows(day(n // 40), 0, [n]) for n in range(first, first + 5)]\n"
        "        put(lake, chosen, offsets, {0: first + 5}, name)\n"
    )
    chance = random.Random(11)
    lake = open_lake(local(folder))
    reached = [0]
    for _ in range(6):
        process = start(folder, script)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        time.sleep(chance.uniform(0.05, 1))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        for name in (EVENTS, LETTERS):
            end = lake.positions(name).offsets.get(0, 0)
            assert found(lake, name) == [(day(n // 40), 0, n) for n in range(end)]
        reached.append(end)
    assert reached == sorted(reached)
    assert reached[-1] > 0
    before = lake.read(EVENTS)
    lake.remove_orphans(EVENTS, timedelta(0))
    assert lake.read(EVENTS).equals(before)
    needed = {task.file.file_path for task in opened(lake).scan().plan_files()}
    assert {str(path) for path in Path(lake.url, EVENTS).rglob("*.parquet")} == needed


def test_upkeep_of_all_kinds_disturbs_neither_the_sink_nor_readers(folder: Path) -> None:
    tasks = {
        "compacted": "lake.compact(EVENTS, day(99))",
        "compacted too": "lake.compact(EVENTS, day(99))",
        "expired": "lake.expire(EVENTS, timedelta(seconds=2))",
        "cleared": "lake.remove_orphans(EVENTS, timedelta(seconds=8))",
    }
    loop = (
        "import time\n"
        "from tests.lake_stream_cases import *\n"
        "end = time.monotonic() + 300\n"
        "while lake.positions(EVENTS).offsets.get(0, 0) < 600 and time.monotonic() < end:\n"
        "    print({task}, flush=True)\n"
        "    time.sleep(0.2)\n"
    )
    lake = open_lake(local(folder))
    put(lake, [web(day(0), 0, range(5))], {}, {0: 5})
    running = {name: start(folder, loop.format(task=task)) for name, task in tasks.items()}
    over = threading.Event()

    def follow() -> int:
        reads = 0
        while not over.is_set():
            of_now = sorted(offset for _, _, offset in found(lake))
            assert of_now == list(range(len(of_now)))
            reads += 1
        return reads

    with ThreadPoolExecutor(1) as threads:
        reader = threads.submit(follow)
        try:
            for n in range(5, 600, 5):
                rows = [web(day(n // 50), 0, [k]) for k in range(n, n + 5)]
                put(lake, rows, {0: n}, {0: n + 5})
                time.sleep(0.05)
        finally:
            over.set()
        assert reader.result() > 5
    said = {}
    for name, process in running.items():
        said[name], errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert any("files_before=0" not in line for line in said["compacted"].splitlines())
    assert any("forgotten=0" not in line for line in said["expired"].splitlines())
    assert any("files=0" not in line for line in said["cleared"].splitlines())

    assert found(lake) == [(day(n // 50), 0, n) for n in range(600)]
    assert lake.positions(EVENTS).offsets == {0: 600}
    table = opened(lake)
    for snapshot in table.snapshots():
        then = table.scan(snapshot_id=snapshot.snapshot_id, selected_fields=("log_offset",))
        offsets = sorted(then.to_arrow()["log_offset"].to_pylist())
        assert offsets == list(range(len(offsets)))


def test_a_reader_that_began_before_a_compaction_reads_on(folder: Path) -> None:
    lake = open_lake(local(folder))
    for n in range(40):
        put(lake, [web(day(n), 0, [n * 2, n * 2 + 1])], {0: n * 2} if n else {}, {0: n * 2 + 2})
        put(lake, [], {0: n * 2 + 2}, {0: n * 2 + 2})
    reader = lake.batches(EVENTS, columns=["log_offset"])
    first = next(reader)
    put(lake, [web(day(39), 0, [80])], {0: 80}, {0: 81})
    assert lake.compact(EVENTS, day(99)).days == (day(39),)
    lake.expire(EVENTS)
    lake.remove_orphans(EVENTS)
    offsets = [n for batch in (first, *reader) for n in batch["log_offset"].to_pylist()]
    assert offsets == list(range(80))


def size_of(lake: Lake) -> dict[str, int]:
    """What every commit has to read and write again."""
    table = opened(lake)
    current = table.current_snapshot()
    assert current is not None
    manifests = current.manifests(table.io)
    return {
        "metadata": Path(table.metadata_location).stat().st_size,
        "manifests": len(manifests),
        "largest manifest": max(manifest.manifest_length for manifest in manifests),
        "snapshots": len(table.metadata.snapshots),
    }


def test_an_append_costs_the_same_after_hundreds_of_appends(folder: Path) -> None:
    lake = open_lake(local(folder))
    sizes: list[dict[str, int]] = []
    for n in range(320):
        put(lake, [web(day(0), 0, [n])], {0: n} if n else {}, {0: n + 1})
        if n % 20 == 19:
            sizes.append(size_of(lake))
    early, late = sizes[:8], sizes[8:]
    for name, limit in (
        ("metadata", 1.1),
        ("largest manifest", 2),
        ("snapshots", 1),
    ):
        most = max(size[name] for size in early)
        assert max(size[name] for size in late) <= limit * most, name
    assert max(size["snapshots"] for size in sizes) <= 2 * upkeep.STATES + 1
    assert max(size["manifests"] for size in sizes) <= 16, "they are merged, at moments that vary"
    assert len(found(lake)) == 320


def test_states_before_a_compaction_stay_until_they_expire(folder: Path) -> None:
    lake = open_lake(local(folder))
    put(lake, [web(day(0), 0, [0])], {}, {0: 1})
    put(lake, [web(day(0), 0, [1])], {0: 1}, {0: 2})
    uncompacted = opened(lake).metadata.current_snapshot_id
    lake.compact(EVENTS, day(1))
    for n in range(2, 2 + 2 * upkeep.STATES):
        put(lake, [], {0: n}, {0: n + 1})
    table = opened(lake)
    assert len(table.snapshots()) <= 2 * upkeep.STATES
    assert table.scan(snapshot_id=uncompacted).to_arrow().num_rows == 2
    lake.expire(EVENTS, timedelta(0))
    assert [s.snapshot_id for s in opened(lake).snapshots()] == [table.metadata.current_snapshot_id]


class AnswerLost(SqlCatalog):
    """A catalog behind a network: a commit lands, its answer is lost, sent again it is refused."""

    lost = 0

    def commit_table(self, *given: Any) -> Any:
        answer = super().commit_table(*given)
        self.lost += 1
        raise CommitFailedException(f"someone was quicker than {answer.metadata_location}")


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda lake: put(lake, [web(day(0), 0, [2])], {0: 2}, {0: 3}), 3),
        (lambda lake: lake.compact(EVENTS, day(1)), 2),
        (lambda lake: lake.replace(EVENTS, web(day(0), 0, [7]), days=[day(0)]), 1),
    ],
    ids=["append", "compact", "replace"],
)
def test_a_commit_whose_answer_was_lost_is_known_to_have_landed(
    folder: Path, change: Callable[[Lake], None], left: int
) -> None:
    lake = open_lake(local(folder))
    for n in range(2):
        put(lake, [web(day(0), 0, [n])], {0: n} if n else {}, {0: n + 1})
    flaky = open_lake(local(folder))
    catalog = flaky._catalog
    assert isinstance(catalog, SqlCatalog)
    catalog.__class__ = AnswerLost
    change(flaky)
    assert catalog.lost == 1  # type: ignore[attr-defined]
    assert len(found(open_lake(local(folder)))) == left
    put(lake, [web(day(0), 0, [10])], lake.positions(EVENTS).offsets, {0: 11})
    assert len(found(lake)) == left + 1


def test_an_append_that_slept_too_long_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = open_lake(local(folder))
    put(lake, [web(day(0), 0, [0])], {}, {0: 1})
    monkeypatch.setattr(commit, "LONGEST", timedelta(seconds=-1))
    with pytest.raises(ProfilehouseError, match="took longer") as error:
        put(lake, [web(day(0), 0, [1])], {0: 1}, {0: 2})
    assert not isinstance(error.value, StaleWriter)
    monkeypatch.undo()
    put(lake, [web(day(0), 0, [1])], {0: 1}, {0: 2})
    assert found(lake) == [(day(0), 0, 0), (day(0), 0, 1)]


def test_all_files_are_on_the_disk_before_the_catalog_names_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    really = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    lake = open_lake(local(folder))
    put(lake, [web(day(0), 0, [0]), web(day(1), 0, [1])], {}, {0: 2})
    put(lake, [web(day(0), 0, [2])], {0: 2}, {0: 3})
    lake.compact(EVENTS, day(1))
    lake.expire(EVENTS)
    files = {path for path in (folder / EVENTS).rglob("*") if path.is_file()}
    assert len(files) > 10
    assert files <= set(synced)
    for path in files:
        assert path.parent in synced[synced.index(path) :]


def test_upkeep_killed_at_any_moment_harms_nothing(folder: Path) -> None:
    script = (
        "from tests.lake_stream_cases import *\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    lake.compact(EVENTS, day(99))\n"
        "    lake.expire(EVENTS, timedelta(seconds=1))\n"
        "    lake.remove_orphans(EVENTS, timedelta(seconds=5))\n"
    )
    chance = random.Random(3)
    lake = open_lake(local(folder))
    put(lake, [], {}, {0: 0})
    end = 0
    for _ in range(4):
        process = start(folder, script)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        until = time.monotonic() + chance.uniform(0.3, 1.5)
        while time.monotonic() < until:
            put(lake, [web(day(end % 2), 0, [end])], {0: end}, {0: end + 1})
            end += 1
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert sorted(found(lake)) == sorted((day(n % 2), 0, n) for n in range(end))
    lake.compact(EVENTS, day(99))
    lake.expire(EVENTS, timedelta(0))
    lake.remove_orphans(EVENTS, timedelta(0))
    assert sorted(found(lake)) == sorted((day(n % 2), 0, n) for n in range(end))
    assert len(list((folder / EVENTS).rglob("*.parquet"))) == 2


def test_positions_are_table_properties_that_any_engine_can_read(folder: Path) -> None:
    lake = open_lake(local(folder))
    put(lake, [web(day(0), 3, [0])], {}, {3: 1, 12: 7})
    table = opened(lake)
    written = json.loads(Path(table.metadata_location).read_text())["properties"]
    assert {k: v for k, v in written.items() if k.startswith("profilehouse.")} == {
        "profilehouse.topic_id": TOPIC,
        "profilehouse.position.3": "1",
        "profilehouse.position.12": "7",
    }
    lake.replace(EVENTS, web(day(0), 3, []), days=[day(0)])
    assert lake.positions(EVENTS).offsets == {3: 1, 12: 7}
