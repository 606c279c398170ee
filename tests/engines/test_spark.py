"""Spark writes the same profiles and lake rows as the one process."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from profilehouse.events.web import DEAD_LETTERS, EVENTS
from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration
from profilehouse.settings import load_settings
from profilehouse.stream.process import LiveProcess, Options
from profilehouse.stream.spark_driver import SparkProcess, local_session
from services.dynamodb import REGION, DynamoDbLocal, credentials
from services.kafka import KafkaBroker

SECONDS = 120


def test_both_engines_make_the_same_profiles_byte_by_byte(
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
        session = local_session()
        try:
            process = SparkProcess(spark, declaration, session, str(tmp_path / "checkpoint"), 100)
            until_done(process, spark)
        finally:
            session.stop()
        with one.profile_store(declaration) as left, spark.profile_store(declaration) as right:
            rows = dict(right.items())
            assert rows == dict(left.items())
            assert len(rows) == 17
        for name, count in {EVENTS: 495, DEAD_LETTERS: 5}.items():
            assert in_lake(spark, name) == in_lake(one, name)
            assert in_lake(spark, name).num_rows == count


def in_lake(where: Platform, name: str) -> pa.Table:
    return where.lake().read(name).sort_by([("log_partition", "ascending"), ("log_offset", "ascending")])


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


def until_done(process: LiveProcess | SparkProcess, where: Platform) -> None:
    """Run the process until the lake holds all that the log has."""
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + SECONDS
    with where.log() as log:
        while any(where.lake().positions(t).offsets != log.ends() for t in (EVENTS, DEAD_LETTERS)):
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.2)
    process.stop()
    thread.join(SECONDS)
    assert not thread.is_alive()
