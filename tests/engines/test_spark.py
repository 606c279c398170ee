"""Spark writes the same profiles and lake rows as the one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import count, takewhile
from math import ceil
from pathlib import Path

import pyarrow as pa
import pytest

from profilehouse.errors import ProfilehouseError
from profilehouse.events.web import DEAD_LETTERS, EVENTS
from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration
from profilehouse.settings import load_settings
from profilehouse.stream.process import LiveProcess, Options
from profilehouse.stream.spark_driver import SparkOptions, SparkProcess
from profilehouse.stream.status import read_statuses
from services.cassandra import CassandraNode
from services.debian import find_java
from services.dynamodb import REGION, DynamoDbLocal, credentials
from services.java import jars
from services.kafka import KafkaBroker
from tests.torture.runner import Plan, compare, run
from tests.torture.stores import place

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120
JAVA_ENDED = 128 + signal.SIGTERM
"""Exit code of spark-submit, a Java process, when it was asked to end."""


@pytest.fixture(scope="module", autouse=True)
def _java() -> None:
    if find_java() is None:
        pytest.skip("no whole Java; `python -m services.debian` installs one")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    with KafkaBroker(tmp_path_factory.mktemp("kafka")) as running:
        yield running


def test_after_kills_of_driver_and_workers_everything_is_as_a_naive_fold_says(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    plan = Plan(seed=14, events=4_000, kills=4, freezes=0, joins=0, seconds=10, engine="spark")
    with place("dynamodb", tmp_path, broker) as where:
        outcome = run(where, plan, print)
        assert outcome.differences == []
        rebuild(where.environment)
        compare(where, outcome)
    assert outcome.differences == [], "of profiles that Spark rebuilt from the lake"
    assert outcome.did["kill: worker"] > 0
    assert outcome.did["kills"] > outcome.did["kill: worker"]
    assert outcome.compared["rows of web_events"] > plan.events * 0.99
    assert outcome.compared["user profiles"] > 100
    assert outcome.compared["visitor profiles"] > 100


def test_all_stores_and_both_engines_hold_the_same_bytes(
    broker: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        DynamoDbLocal(tmp_path / "dynamodb") as server,
        CassandraNode(tmp_path / "cassandra") as node,
    ):
        for name, value in credentials(server.endpoint).items():
            monkeypatch.setenv(name, value)
        node.make_keyspace("both")
        log = broker.url("both")
        broker.create_topic("both", 2)
        one = platform(tmp_path / "one", log, f"lmdb:{tmp_path / 'profiles'}")
        dynamodb = platform(tmp_path / "dynamodb-lake", log, f"dynamodb://{REGION}/both")
        cassandra = platform(tmp_path / "cassandra-lake", log, node.url("both"))

        append(one, range(500))
        follow(cassandra, rebuild_under_load, submit(), ends_with=JAVA_ENDED)
        follow(dynamodb, replace_generation)
        until_done(LiveProcess(one, load_declaration(), Options(lake_seconds=0.5)), one)

        wanted = rows(one)
        assert len(wanted) == 17
        assert rows(dynamodb) == wanted
        assert rows(cassandra) == wanted
        with one.log() as opened:
            appended = sum(opened.ends().values())
        refused = ceil(appended / 100)
        for name, number in {EVENTS: appended - refused, DEAD_LETTERS: refused}.items():
            assert in_lake(one, name).num_rows == number
            assert in_lake(dynamodb, name) == in_lake(one, name)
            assert in_lake(cassandra, name) == in_lake(one, name)
        [status] = read_statuses(dynamodb.settings)
        assert (status.state, status.lag, status.lake_lag) == ("stopped", 0, 0)
        assert (status.events, status.refused) == (2 * (appended - refused), refused)
        assert status.restarts == 1
        assert status.latency is not None


def replace_generation(where: Platform) -> None:
    """As a rebuild does that knows of no event: all have to be read again, though none comes."""
    with where.profile_store(load_declaration()) as store:
        store.rebuild([], store.meta)
    assert not is_done(where)


def submit() -> list[str]:
    """Spark's own launcher, which brings master and connector, as on a cluster."""
    launcher = shutil.which("spark-submit", path=Path(sys.executable).parent)
    assert launcher is not None
    connector = ",".join(map(str, jars("spark")))
    job = str(ROOT / "deploy" / "spark_job.py")
    options = {"spark.ui.enabled": "false"}
    options |= dict.fromkeys(("spark.driver.bindAddress", "spark.driver.host"), "127.0.0.1")
    told = [word for name, value in options.items() for word in ("--conf", f"{name}={value}")]
    return [launcher, "--master", "local[2]", "--jars", connector, *told, job]


def rebuild_under_load(where: Platform) -> None:
    """Fold the lake anew on Spark while more comes and the live path follows."""
    with where.profile_store(load_declaration()) as store:
        before = store.generation
    rebuilt = threading.Event()
    numbers = takewhile(lambda _: not rebuilt.wait(0.05), count(500))
    load = threading.Thread(target=append, args=(where, numbers))
    load.start()
    try:
        said = rebuild(environment(where))
    finally:
        rebuilt.set()
        load.join()
    assert said.endswith(f"generation {before + 1} of the profiles is current\n")


def rebuild(variables: dict[str, str]) -> str:
    command = [sys.executable, "-m", "profilehouse.cli", "profile", "rebuild", "--engine", "spark"]
    done = subprocess.run(
        command, env=variables, stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=True
    )
    return done.stdout


def follow(
    where: Platform,
    then: Callable[[Platform], None] | None = None,
    command: Sequence[str] = (sys.executable, "-m", "profilehouse.cli"),
    ends_with: int = 0,
) -> None:
    """Run the live path on Spark until it has all of the log, and once more after `then`."""
    told = ["stream", "--engine", "spark", "--max-offsets", "100", "--lake-seconds", "1"]
    process = subprocess.Popen(
        [*command, *told], cwd=ROOT, env=environment(where), start_new_session=True
    )
    try:
        wait_until(lambda: is_done(where), process)
        if then is not None:
            then(where)
            wait_until(lambda: is_done(where), process)
        process.terminate()
        assert process.wait(SECONDS) == ends_with
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def environment(where: Platform) -> dict[str, str]:
    told = {
        f"PROFILEHOUSE_{name.upper()}": getattr(where.settings, name)
        for name in ("log", "lake", "profiles", "status")
    }
    return os.environ | told | {"JAVA_HOME": str(find_java()), "PYSPARK_PYTHON": sys.executable}


def append(where: Platform, numbers: Iterable[int]) -> None:
    with where.log() as log, log.producer() as producer:
        for number in numbers:
            user = f"user-{number % 17}"
            record = b"{" if number % 100 == 0 else event(number, user)
            producer.append(user.encode(), record)


def rows(where: Platform) -> dict[str, bytes]:
    with where.profile_store(load_declaration()) as store:
        return dict(store.items())


def in_lake(where: Platform, name: str) -> pa.Table:
    return (
        where.lake()
        .read(name)
        .sort_by([("log_partition", "ascending"), ("log_offset", "ascending")])
    )


def platform(folder: Path, log: str, profiles: str) -> Platform:
    folder.mkdir()
    return Platform(
        load_settings(
            log=log,
            lake=str(folder / "lake"),
            profiles=profiles,
            status=str(folder / "status"),
        )
    )


def event(number: int, user: str) -> bytes:
    told = {
        "event_id": f"event-{number}",
        "event_type": "click",
        "user_id": user,
        "occurred_at": datetime.now(UTC).isoformat(),
        "consent": True,
    }
    return json.dumps(told).encode()


def until_done(process: LiveProcess, where: Platform) -> None:
    """Run the process until the lake holds all that the log has."""
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + SECONDS
    while not is_done(where):
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.stop()
    thread.join(SECONDS)
    assert not thread.is_alive()


def is_done(where: Platform) -> bool:
    with where.log() as log, where.profile_store(load_declaration()) as store:
        ends = log.ends()
        if not store.exists() or store.resume(log.topic_id) != ends:
            return False
    return all(where.lake().positions(name).offsets == ends for name in (EVENTS, DEAD_LETTERS))


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"log": "file:log", "profiles": "dynamodb://eu-west-1/x"}, "Spark reads Kafka only"),
        ({"log": "kafka://localhost:1/web", "profiles": "lmdb:x"}, "which LMDB cannot"),
    ],
)
def test_what_spark_cannot_use_is_one_line_that_says_what_to_set(
    settings: dict[str, str], told: str
) -> None:
    with pytest.raises(ProfilehouseError, match=told):
        SparkProcess(Platform(load_settings(**settings)), load_declaration(), SparkOptions())
