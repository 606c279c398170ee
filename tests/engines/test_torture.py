"""Live processes are killed while they work: nothing is lost, nothing counts twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.kafka import KafkaBroker
from tests.torture.naive import Appended, expect
from tests.torture.records import Record, generate, load, save
from tests.torture.runner import PARTITIONS, Instance, Place, Plan, run
from tests.torture.stores import place

PLANS = {
    "lmdb": Plan(seed=11, events=20_000, kills=6, freezes=1, joins=2, seconds=30),
    "cassandra": Plan(seed=12, events=4_000, kills=2, freezes=0, joins=1, seconds=10),
    "dynamodb": Plan(seed=13, events=4_000, kills=2, freezes=0, joins=1, seconds=10),
}
SECONDS = 60


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    with KafkaBroker(tmp_path_factory.mktemp("kafka")) as running:
        yield running


@pytest.mark.parametrize("store", PLANS)
def test_after_kills_everything_is_as_a_naive_fold_says(
    store: str, broker: KafkaBroker, tmp_path: Path
) -> None:
    plan = PLANS[store]
    with place(store, tmp_path, broker) as where:
        outcome = run(where, plan, print)
    assert outcome.differences == []
    assert outcome.did["kills"] == plan.kills
    assert outcome.did["freezes"] == plan.freezes
    assert outcome.did["a second process joined"] > 0
    assert outcome.compared["rows of web_events"] > plan.events * 0.99
    assert outcome.compared["rows of web_dead_letters"] > plan.events * 0.003
    assert outcome.compared["user profiles"] > 100
    assert outcome.compared["visitor profiles"] > 100


def test_the_input_has_all_that_goes_wrong(tmp_path: Path) -> None:
    end = datetime(2026, 3, 1, 12)
    made = generate(11, 20_000, end)
    assert made.records == generate(11, 20_000, end).records
    assert made.records != generate(12, 20_000, end).records
    save(made.records, tmp_path / "records")
    assert list(load(tmp_path / "records")) == made.records

    shares = {kind: count / len(made.records) for kind, count in made.kinds.items()}
    assert shares["copy"] == pytest.approx(0.02, rel=0.2)
    assert shares["out of order"] == pytest.approx(0.03, rel=0.2)
    assert shares["malformed"] == pytest.approx(0.005, rel=0.5)
    assert shares["late"] == pytest.approx(0.01, rel=0.3)
    assert made.kinds["visit: two people"] > 100

    expected = expect(Appended(0, n, end, each.value) for n, each in enumerate(made.records))
    assert len(expected.dead_letters) == made.kinds["malformed"]
    assert expected.owned > 1000
    unconsented = sum(not event["consent"] for event in expected.events.values())
    assert unconsented / len(expected.events) == pytest.approx(0.09, rel=0.3)


def test_a_topic_that_was_made_anew_is_refused_with_the_remedy(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    with place("lmdb", tmp_path, broker) as where:
        append(where, [event(n) for n in range(20)])
        process = Instance(where, "first")
        try:
            wait_for_events(process, 20)
            process.stop()
        finally:
            process.end()
        broker.delete_topic(where.topic)
        broker.create_topic(where.topic, PARTITIONS)
        append(where, [event(n) for n in range(5)])
        refused = run_to_its_end(where)
        assert refused.returncode == 1
        [*_, last] = refused.stderr.splitlines()
        assert "was created anew; point PROFILEHOUSE_LOG to the old one" in last
        assert "Traceback" not in refused.stderr


def test_a_second_process_on_a_file_log_refuses(broker: KafkaBroker, tmp_path: Path) -> None:
    where = OnAFileLog(tmp_path, broker, "none", f"lmdb:{tmp_path / 'profiles'}")
    append(where, [event(n) for n in range(20)])
    first = Instance(where, "first")
    try:
        wait_for_events(first, 20)
        refused = run_to_its_end(where)
        assert refused.returncode == 1
        [*_, last] = refused.stderr.splitlines()
        assert "another process" in last
        assert "Traceback" not in refused.stderr
        append(where, [event(n) for n in range(20, 25)])
        wait_for_events(first, 25)
        first.stop()
    finally:
        first.end()


class OnAFileLog(Place):
    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"PROFILEHOUSE_LOG": f"file:{self.folder / 'log'}"}


def event(number: int) -> Record:
    told = {
        "event_id": f"event-{number}",
        "event_type": "click",
        "user_id": f"user-{number % 7}",
        "occurred_at": datetime.now(UTC).isoformat(),
        "consent": True,
    }
    return Record(told["user_id"].encode(), json.dumps(told).encode())


def append(where: Place, records: list[Record]) -> None:
    file = where.folder / "records.bin"
    save(records, file)
    subprocess.run(
        [sys.executable, "-m", "tests.torture.produce", str(file), "0.1"],
        env=where.environment,
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=SECONDS,
    )


def wait_for_events(process: Instance, number: int) -> None:
    deadline = time.monotonic() + SECONDS
    while (status := process.status) is None or status.events < number:
        process.check()
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    assert status.events == number


def run_to_its_end(where: Place) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "profilehouse.cli", "stream"],
        cwd=where.folder,
        env=where.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
