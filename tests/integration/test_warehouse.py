"""The warehouse on DuckDB: the common suite, and what only a DuckDB file can show."""

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from itertools import count, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profilehouse.contracts import contract
from profilehouse.errors import ProfilehouseError
from profilehouse.settings import Settings, load_settings
from profilehouse.warehouse.load import load_fact, load_history
from profilehouse.warehouse.on_duckdb import open_duckdb

pytest.register_assert_rewrite("tests.warehouse_suite", "tests.session_suite")
from tests.session_suite import IDENTITY as IDENTITIES  # noqa: E402
from tests.session_suite import (  # noqa: E402
    SessionRules,
    found_sessions,
    login,
    naive_owners,
    naive_sessions,
    view,
)
from tests.session_suite import load as load_visits  # noqa: E402
from tests.warehouse_suite import (  # noqa: E402
    DAY_1,
    DAY_2,
    DAY_3,
    DAY_4,
    PURCHASES,
    USERS,
    Lake,
    Row,
    WarehouseSuite,
    WebLog,
    bytes_of,
    crm,
    events,
    household,
    ledger_of,
    midnight,
    purchase,
    rows_of,
)

ROOT = Path(__file__).resolve().parents[2]
DAYS = tuple(DAY_1 + timedelta(days=n) for n in range(4))
LEDGER = contract("load_ledger")


class TestOnDuckDB(WarehouseSuite, SessionRules):
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return load_settings(warehouse=f"duckdb:{tmp_path}/warehouse.duckdb")


def run(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Another Python process, in which the tests' modules can be imported."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@contextmanager
def scratch() -> Iterator[Path]:
    """A file name of its own: hypothesis calls a test many times with one tmp_path."""
    with TemporaryDirectory() as folder:
        yield Path(folder) / "warehouse.duckdb"


# A process that is killed

CHANGED = """
import os, signal, sys
from itertools import count, pairwise
from pathlib import Path
from profilehouse.warehouse.load import load_fact
from profilehouse.warehouse.on_duckdb import DuckDBWarehouse, open_duckdb
from tests.integration.test_warehouse import PURCHASES, changed

file, last = Path(sys.argv[1]), int(sys.argv[2])
statements = count(1)
run = DuckDBWarehouse._run

def killed(self, sql, params):
    run(self, sql, params)
    if next(statements) == last:
        os.kill(os.getpid(), signal.SIGKILL)

DuckDBWarehouse._run = killed
with open_duckdb(file) as warehouse:
    changed().load(load_fact, warehouse, PURCHASES)
"""


def delivered() -> Lake:
    lake = events()
    lake.deliver(DAY_1, purchase(1, "a"), purchase(2, "b"))
    lake.deliver(DAY_2, purchase(1, "a"))
    return lake


def changed() -> Lake:
    """One day delivered again without an event that another day has too, and one day more."""
    lake = delivered()
    lake.deliver(DAY_1, purchase(2, "b", value_cents=1))
    lake.deliver(DAY_3, purchase(1, "b"), purchase(2, "c"))
    return lake


def test_a_load_killed_after_any_statement_ends_in_the_same_tables_when_run_again(
    tmp_path: Path,
) -> None:
    wanted = tmp_path / "wanted.duckdb"
    with open_duckdb(wanted) as warehouse:
        delivered().load(load_fact, warehouse, PURCHASES)
        old = bytes_of(warehouse, PURCHASES, LEDGER)
        changed().load(load_fact, warehouse, PURCHASES)
        new = bytes_of(warehouse, PURCHASES, LEDGER)
    assert old != new
    seen = set()
    for last in count(1):
        file = tmp_path / f"killed_after_{last}.duckdb"
        with open_duckdb(file) as warehouse:
            delivered().load(load_fact, warehouse, PURCHASES)
        process = run(CHANGED, file, last)
        process.communicate(timeout=60)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        with open_duckdb(file) as warehouse:
            seen.add(bytes_of(warehouse, PURCHASES, LEDGER))
            changed().load(load_fact, warehouse, PURCHASES)
            assert bytes_of(warehouse, PURCHASES, LEDGER) == new
    assert last > 5, "BEGIN, two of the merge, two of the ledger and COMMIT"
    assert seen == {old, new}


def test_integers_become_numbers_in_a_table_that_has_rows(tmp_path: Path) -> None:
    lake = events()
    lake.deliver(DAY_1, purchase(1))
    wider = [replace(c, type="number") if c.name == "quantity" else c for c in PURCHASES.columns]
    with open_duckdb(tmp_path / "warehouse.duckdb") as warehouse:
        lake.load(load_fact, warehouse, PURCHASES)
        warehouse.create(replace(PURCHASES, columns=tuple(wider)))
        assert warehouse.changes == ["column quantity of fct_purchase was widened to DOUBLE"]
        assert rows_of(warehouse, PURCHASES, "quantity") == [(1.0,)]


def test_what_a_load_brings_lies_in_the_order_that_its_contract_clusters_by(
    tmp_path: Path,
) -> None:
    lake = events()
    happened = [midnight(DAY_1) + timedelta(hours=7 * n % 96) for n in range(90)]
    rows = [
        purchase(n, user_id=f"{n % 7}", occurred_at=at, received_at=midnight(DAY_4))
        for n, at in enumerate(happened)
    ]
    lake.deliver(DAY_4, *rows)
    order = ", ".join(PURCHASES.cluster_by)
    with open_duckdb(tmp_path / "warehouse.duckdb") as warehouse:
        lake.load(load_fact, warehouse, PURCHASES)
        found = warehouse.query(f"SELECT {order} FROM fct_purchase ORDER BY rowid").to_pylist()
        assert (
            found
            == warehouse.query(f"SELECT {order} FROM fct_purchase ORDER BY {order}").to_pylist()
        )
    assert len({row["occurred_on"] for row in found}) == 4


def test_rows_to_be_loaded_are_in_memory_a_few_at_a_time(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.string())])
    held = []

    def batches() -> Iterator[pa.RecordBatch]:
        for n in range(60):
            yield pa.record_batch([[f"{n}:{i:1000}" for i in range(1000)]], schema=schema)
            held.append(pa.total_allocated_bytes())

    with open_duckdb(tmp_path / "warehouse.duckdb") as warehouse:
        warehouse.stage(batches(), schema)
        [staged] = warehouse.query("SELECT COUNT(DISTINCT text) AS n FROM staged").to_pylist()
    assert staged == {"n": 60_000}
    assert max(held) - min(held) < 10_000_000, "of 60 MB"


# Any deliveries in any order

EVENTS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["s", "t"])), max_size=4)
LOADS = st.lists(st.tuples(st.sampled_from(DAYS), EVENTS), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None)
@given(loads=LOADS)
def test_a_fact_holds_the_first_of_each_event_whatever_was_delivered_and_again(
    loads: list[tuple[date, list[tuple[str, str]]]],
) -> None:
    lake = events()
    with scratch() as file, open_duckdb(file) as warehouse:
        for day, ids in loads:
            rows = [purchase(line, i, topic=topic) for line, (i, topic) in enumerate(ids, 1)]
            lake.deliver(day, *rows)
            lake.load(load_fact, warehouse, PURCHASES, day)
        first: dict[str, tuple[object, ...]] = {}
        for row in (row for rows in lake.days.values() for row in rows):
            position = (row["delivered_on"], row["topic"], row["line"])
            first[row["event_id"]] = min(position, first.get(row["event_id"], position))
        found = rows_of(warehouse, PURCHASES, "event_id", "delivered_on", "topic", "line")
        assert found == sorted((key, *position) for key, position in first.items())
        assert ledger_of(warehouse, PURCHASES) == {d: len(r) for d, r in lake.days.items()}


GONE = "gone"
"""In the place of the number of kids: the household was deleted."""
RECORDS = st.lists(
    st.tuples(st.integers(1, 2), st.integers(1, 4), st.sampled_from(["0", "1", "2", GONE])),
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(loads=st.lists(st.tuples(st.sampled_from(DAYS), RECORDS), min_size=1, max_size=6))
def test_history_is_what_all_records_say_whatever_was_delivered_and_again(
    loads: list[tuple[date, list[tuple[int, int, str]]]],
) -> None:
    lake = crm()
    with scratch() as file, open_duckdb(file) as warehouse:
        for day, records in loads:
            rows = [
                household(line, user, midnight(DAY_1) + timedelta(hours=hour), **told(kids))
                for line, (user, hour, kids) in enumerate(records, 1)
            ]
            lake.deliver(day, *rows)
            lake.load(load_history, warehouse, USERS, day)
        found = rows_of(warehouse, USERS, "user_id", "valid_from", "valid_to", "kids_count")
    assert sorted(found, key=lambda version: version[:2]) == versions(lake.days.values())


def told(kids: str) -> Row:
    return {"kids_count": "0", "deleted": True} if kids == GONE else {"kids_count": kids}


def versions(days: Iterable[list[Row]]) -> list[tuple[object, ...]]:
    """The SCD2 rows by definition, one household after the other."""
    rows: list[Row] = sorted(
        (row for day in days for row in day), key=lambda r: (r["delivered_on"], r["line"])
    )
    said: dict[int, dict[object, str]] = defaultdict(dict)
    for row in rows:
        kids = GONE if row.get("deleted") else row["kids_count"]
        said[row["household_id"]][row["updated_at"]] = kids
    result = []
    for user, records in sorted(said.items()):
        starts: list[tuple[object, str]] = []
        for moment, kids in sorted(records.items()):
            if not starts or starts[-1][1] != kids:
                starts.append((moment, kids))
        ends = [moment for moment, _ in starts[1:]] + [None]
        found = [(str(user), s, e, k) for (s, k), e in zip(starts, ends, strict=True)]
        result += [version for version in found if version[-1] != GONE]
    return result


EVENT = st.tuples(
    st.sampled_from("abcdefgh"),  # the id: some come twice
    st.integers(0, 12),  # when, in steps of 15 minutes
    st.sampled_from([None, None, "anna", "ben"]),
    st.sampled_from(["device-1", "device-1", "device-2"]),
    st.sampled_from(["visit-1", "visit-2", None]),
    st.sampled_from([0, 1, 5, 15_000]),  # how much later it was received, in minutes
    st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(given=st.lists(EVENT, min_size=1, max_size=14), cuts=st.lists(st.integers(0, 14)))
def test_sessions_and_owners_are_those_of_the_definition_whatever_came_in_whatever_parts(
    given: list[tuple[str, int, str | None, str, str | None, int, bool]], cuts: list[int]
) -> None:
    log = WebLog()
    for event_id, quarter, user, device, visit, lag, forward in given:
        minutes = quarter * 15
        changes = {"anonymous_id": device, "session_id": visit}
        changes["received_at"] = view("", minutes + lag)["received_at"]
        event = login(event_id, minutes, user, **changes) if user else view("", minutes, **changes)
        log.append(0, event | {"event_id": event_id, "consent": lag != 1 or forward})
    rows = log.partitions[0]
    ends = sorted({0, len(rows), *(min(cut, len(rows)) for cut in cuts)})
    parts = list(pairwise(ends))
    with scratch() as file, open_duckdb(file) as warehouse:
        for part in parts if given[0][-1] else reversed(parts):
            load_visits(warehouse, log, part)
        assert found_sessions(warehouse) == naive_sessions(rows)
        names = ("anonymous_id", "session_id", "valid_from", "user_id")
        owners = [row for row in rows_of(warehouse, IDENTITIES, *names, "is_current") if row[-1]]
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["event_id"], row)
    assert {(device, visit): tuple(rest) for device, visit, *rest, _ in owners} == naive_owners(
        first.values()
    )


# The file

HOLD = """
import sys, time, duckdb
connection = duckdb.connect(sys.argv[1])
print("open", flush=True)
time.sleep(float(sys.argv[2]))
"""


@contextmanager
def held(file: Path, seconds: float) -> Iterator[None]:
    process = run(HOLD, file, seconds)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield
    finally:
        process.kill()
        process.communicate()


def test_a_file_that_another_process_has_is_tried_for_a_while_and_then_named(
    tmp_path: Path,
) -> None:
    file = tmp_path / "warehouse.duckdb"
    with held(file, 60):
        begin = time.monotonic()
        with pytest.raises(ProfilehouseError) as caught, open_duckdb(file, patience_seconds=0.5):
            pass
        assert 0.5 <= time.monotonic() - begin < 5
    message = str(caught.value)
    assert str(file) in message
    assert "end it, or run again later" in message
    assert "\n" not in message


def test_a_file_that_gets_free_in_time_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "warehouse.duckdb"
    with held(file, 0.5), open_duckdb(file, patience_seconds=30) as warehouse:
        assert warehouse.columns("load_ledger") == {}


@pytest.mark.parametrize("name", ["block/no_database", "a folder"])
def test_what_is_no_database_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "no_database").write_text("hello" * 1000)
    (tmp_path / "a folder").mkdir()
    with (
        pytest.raises(ProfilehouseError, match=f"{name}.*check PROFILEHOUSE_WAREHOUSE"),
        open_duckdb(tmp_path / name),
    ):
        pass


def test_the_connection_and_the_staged_files_are_gone_in_the_end(tmp_path: Path) -> None:
    file = tmp_path / "warehouse.duckdb"
    with open_duckdb(file) as warehouse:
        delivered().load(load_fact, warehouse, PURCHASES)
        folder = warehouse._folder
        assert list(folder.iterdir())
    assert not folder.exists()
    with held(file, 0):
        pass
