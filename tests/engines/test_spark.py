"""Spark writes the same profiles and lake rows as the one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
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
from services.dynamodb import REGION, DynamoDbLocal, credentials
from services.kafka import KafkaBroker

SECONDS = 120


def test_both_engines_make_the_same_profiles_byte_by_byte_though_the_driver_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KafkaBroker(tmp_path / "kafka") as broker, DynamoDbLocal(tmp_path / "dynamodb") as server:
        for name, value in credentials(server.endpoint).items():
            monkeypatch.setenv(name, value)
        broker.create_topic("web", 2)
        one, spark = (platform(tmp_path / name, broker.url("web")) for name in ("one", "spark"))
        with one.log() as log, log.producer() as producer:
            for number in range(500):
                user = f"user-{number % 17}"
                record = b"{" if number % 100 == 0 else event(number, user)
                producer.append(user.encode(), record)
        declaration = load_declaration()
        until_done(LiveProcess(one, declaration, Options(lake_seconds=0.5)), one)
        environment = os.environ | {
            f"PROFILEHOUSE_{name.upper()}": getattr(spark.settings, name)
            for name in ("log", "lake", "profiles", "status")
        }
        command = [sys.executable, "-m", "profilehouse.cli", "stream", "--engine", "spark"]
        command += ["--checkpoint", str(tmp_path / "checkpoint"), "--max-offsets", "50"]
        first = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            wait_until(lambda: spark.lake().positions(EVENTS).offsets != {}, first)
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait(SECONDS)
        second = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            wait_until(lambda: is_done(spark), second)
            second.terminate()
            assert second.wait(SECONDS) == 0
        finally:
            if second.poll() is None:
                os.killpg(second.pid, signal.SIGKILL)
        with one.profile_store(declaration) as left, spark.profile_store(declaration) as right:
            rows = dict(right.items())
            assert rows == dict(left.items())
            assert len(rows) == 17
        for name, count in {EVENTS: 495, DEAD_LETTERS: 5}.items():
            assert in_lake(spark, name) == in_lake(one, name)
            assert in_lake(spark, name).num_rows == count


def in_lake(where: Platform, name: str) -> pa.Table:
    return (
        where.lake()
        .read(name)
        .sort_by([("log_partition", "ascending"), ("log_offset", "ascending")])
    )


def platform(folder: Path, log: str) -> Platform:
    folder.mkdir()
    return Platform(
        load_settings(
            log=log,
            lake=str(folder / "lake"),
            profiles=f"dynamodb://{REGION}/{folder.name}",
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
        SparkProcess(
            Platform(load_settings(**settings)), load_declaration(), SparkOptions("checkpoint")
        )
