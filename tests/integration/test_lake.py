"""The lake in a local folder: what every lake does, and what only processes on one disk can."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from profilehouse.errors import ProfilehouseError
from profilehouse.lake import Lake, open_lake
from profilehouse.settings import Settings
from tests.lake_cases import LakeCases, day, delivery, letters, raw, year

ROOT = Path(__file__).resolve().parents[2]


def local(folder: Path) -> Settings:
    return Settings(lake=str(folder), _env_file=None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "the lake #1"


@pytest.fixture
def settings(folder: Path) -> Settings:
    return local(folder)


class TestLocalLake(LakeCases):
    def data_files(self, lake: Lake) -> list[str]:
        return [str(path) for path in Path(lake.url).glob("purchases/data/**/*.parquet")]


def start(folder: Path, script: str) -> subprocess.Popen[str]:
    """Run Python beside this process, with `lake` and the helpers of the cases at hand."""
    prelude = (
        "import sys\n"
        "from profilehouse.lake import open_lake\n"
        "from profilehouse.settings import Settings\n"
        "from tests.lake_cases import *\n"
        "lake = open_lake(Settings(lake=sys.argv[1], _env_file=None))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + script, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_processes_that_replace_different_days_at_once_all_survive(folder: Path) -> None:
    script = (
        "for n in range({first}, 24, 3):\n"
        "    lake.replace('purchases', raw(day(n), [1, 2], 'from {first}'), days=[day(n)])\n"
        "    lake.replace('deliveries', delivery(day(n), 'purchases'), days=[day(n)])\n"
    )
    finish(*[start(folder, script.format(first=n)) for n in range(3)])
    lake = open_lake(local(folder))
    assert lake.days("purchases") == {day(n): 2 for n in range(24)}
    assert lake.days("deliveries") == {day(n): 1 for n in range(24)}
    for n in range(3):
        records = lake.read("purchases", days=[day(n)])["record"].to_pylist()
        assert records == [f"from {n}"] * 2


def test_processes_that_replace_different_topics_of_one_day_at_once_all_survive(
    folder: Path,
) -> None:
    script = (
        "for n in range(1, 9):\n"
        "    rows = letters(day(0), '{topic}', range(1, n + 1))\n"
        "    lake.replace('dead_letters', rows, days=[day(0)], topic='{topic}')\n"
    )
    finish(*[start(folder, script.format(topic=topic)) for topic in ("crm", "shop")])
    lake = open_lake(local(folder))
    assert lake.read("dead_letters", columns=["topic", "line"]).to_pylist() == [
        {"topic": topic, "line": n} for topic in ("crm", "shop") for n in range(1, 9)
    ]


def test_of_processes_that_replace_the_same_days_at_once_one_wins_them_all(folder: Path) -> None:
    script = (
        "for _ in range(8):\n"
        "    lake.replace('purchases', year(4, {n}, '{n}'), days=[day(n) for n in range(4)])\n"
    )
    finish(*[start(folder, script.format(n=n)) for n in (2, 3)])
    lake = open_lake(local(folder))
    (winner,) = set(lake.read("purchases")["record"].to_pylist())
    assert lake.days("purchases") == {day(n): int(winner) for n in range(4)}


def test_threads_of_one_process_may_share_a_lake(folder: Path) -> None:
    lake = open_lake(local(folder))

    def write(n: int) -> None:
        lake.replace("purchases", raw(day(n), [1, 2]), days=[day(n)])
        lake.replace("deliveries", delivery(day(n), "purchases"), days=[day(n)])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(12)))
    assert lake.days("purchases") == {day(n): 2 for n in range(12)}
    assert lake.days("deliveries") == {day(n): 1 for n in range(12)}


def test_a_process_killed_in_the_middle_leaves_the_table_as_before_or_after(folder: Path) -> None:
    days = [day(n) for n in range(30)]
    lake = open_lake(local(folder))
    lake.replace("purchases", year(30, 3, "0"), days=days)
    script = (
        "generation = int(lake.read('purchases')['record'][0].as_py())\n"
        "days = [day(n) for n in range(30)]\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    generation += 1\n"
        "    lake.replace('purchases', year(30, 3, str(generation)), days=days)\n"
    )
    chance = random.Random(5)
    generations = [0]
    for _ in range(4):
        process = start(folder, script)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        time.sleep(chance.uniform(0.05, 0.8))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        (generation,) = set(lake.read("purchases")["record"].to_pylist())
        generations.append(int(generation))
        assert lake.days("purchases") == dict.fromkeys(days, 3)
    assert generations == sorted(generations)
    assert generations[-1] > 0
    lake.replace("purchases", raw(day(0), [1], "last"), days=[day(0)])
    assert lake.read("purchases", days=[day(0)])["record"].to_pylist() == ["last"]


@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sets(st.integers(0, 4), min_size=1),
            st.sampled_from(["crm", "shop", None]),
            st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["crm", "shop"]))),
        ),
        max_size=6,
    )
)
def test_any_series_of_replacements_reads_like_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[set[int], str | None, list[tuple[int, str]]]],
) -> None:
    lake = open_lake(local(tmp_path_factory.mktemp("lake")))
    expected: dict[tuple[date, str, int], str] = {}
    for step, (numbers, topic, candidates) in enumerate(steps):
        days = [day(n) for n in numbers]
        new = {
            (day(n), of, line): str(step)
            for line, (n, of) in enumerate(candidates, start=1)
            if n in numbers and topic in (None, of)
        }
        rows = [letters(d, of, [line], reason) for (d, of, line), reason in new.items()]
        table = pa.concat_tables([letters(days[0], "crm", []), *rows])
        lake.replace("dead_letters", table, days=days, topic=topic)
        gone = {key for key in expected if key[0] in days and topic in (None, key[1])}
        expected = {k: v for k, v in expected.items() if k not in gone} | new

    read = lake.read("dead_letters", columns=["delivered_on", "topic", "line", "reason"])
    assert [tuple(row.values()) for row in read.to_pylist()] == [
        (*key, expected[key]) for key in sorted(expected)
    ]
    counts: dict[date, int] = {}
    for of, _, _ in sorted(expected):
        counts[of] = counts.get(of, 0) + 1
    assert lake.days("dead_letters") == counts


def test_a_day_is_one_file_however_often_it_was_replaced(folder: Path) -> None:
    lake = open_lake(local(folder))
    days = [day(n) for n in range(5)]
    lake.replace("purchases", year(5), days=days)
    for topic in ("crm", "shop", "crm"):
        lake.replace("dead_letters", letters(day(0), topic, [1]), days=[day(0)], topic=topic)
        lake.replace("deliveries", delivery(day(0), topic), days=[day(0)], topic=topic)
    for name, files in (("purchases", 5), ("dead_letters", 1), ("deliveries", 1)):
        batches = list(lake.batches(name))
        assert len(batches) == files


def test_replacing_nothing_by_nothing_commits_nothing(folder: Path) -> None:
    lake = open_lake(local(folder))
    lake.replace("purchases", raw(day(0), []), days=[day(0)])
    assert not (folder / "purchases").exists()
    lake.replace("purchases", raw(day(0), [1]), days=[day(0)])
    before = sorted(folder.rglob("*"))
    lake.replace("purchases", raw(day(1), []), days=[day(1), day(3)])
    assert sorted(folder.rglob("*")) == before


def test_a_relative_folder_is_the_same_lake_from_the_same_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lake = open_lake(local(Path("data/lake")))
    lake.replace("purchases", raw(day(0), [1]), days=[day(0)])
    assert lake.url == str(tmp_path / "data" / "lake")
    assert open_lake(local(Path("data/../data/lake"))).days("purchases") == {day(0): 1}
    monkeypatch.chdir("/")
    assert lake.read("purchases").num_rows == 1


def test_a_lake_that_was_moved_is_refused_with_the_remedy(tmp_path: Path) -> None:
    lake = open_lake(local(tmp_path / "old"))
    lake.replace("purchases", raw(day(0), [1]), days=[day(0)])
    (tmp_path / "old").rename(tmp_path / "new")
    moved = open_lake(local(tmp_path / "new"))
    with pytest.raises(ProfilehouseError, match=r"new: .*purchases.*/old/.*put it back"):
        moved.read("purchases")


def test_a_copy_of_a_lake_never_writes_into_the_original(tmp_path: Path) -> None:
    lake = open_lake(local(tmp_path / "old"))
    lake.replace("purchases", raw(day(0), [1]), days=[day(0)])
    shutil.copytree(tmp_path / "old", tmp_path / "copy")
    copy = open_lake(local(tmp_path / "copy"))
    with pytest.raises(ProfilehouseError, match=r"copy: .*purchases.*/old/.*put it back"):
        copy.replace("purchases", raw(day(1), [1]), days=[day(1)])
    assert lake.days("purchases") == {day(0): 1}


def test_a_file_where_the_lake_should_be_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("no folder")
    with pytest.raises(ProfilehouseError, match=f"{tmp_path}/lake.*set PROFILEHOUSE_LAKE") as error:
        open_lake(local(tmp_path / "lake"))
    assert "\n" not in str(error.value)


def test_a_broken_catalog_is_named_with_the_remedy(folder: Path) -> None:
    folder.mkdir()
    (folder / "catalog.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(ProfilehouseError, match=r"catalog.db.*not a database") as error:
        open_lake(local(folder))
    assert "\n" not in str(error.value)


def test_lost_files_are_reported_in_one_line(folder: Path) -> None:
    lake = open_lake(local(folder))
    lake.replace("purchases", raw(day(0), [1]), days=[day(0)])
    for path in folder.glob("purchases/data/**/*.parquet"):
        path.unlink()
    with pytest.raises(ProfilehouseError, match="cannot read purchases") as error:
        lake.read("purchases")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lake", "catalog", "remedy"),
    [
        ("s3://bucket/lake", "sqlite:", "set PROFILEHOUSE_CATALOG=glue:"),
        ("data/lake", "glue:", "set PROFILEHOUSE_LAKE=s3://BUCKET/PREFIX"),
    ],
)
def test_a_catalog_that_does_not_go_with_the_lake_is_refused(
    lake: str, catalog: str, remedy: str
) -> None:
    with pytest.raises(ProfilehouseError, match=remedy):
        open_lake(Settings(lake=lake, catalog=catalog, _env_file=None))
