"""The collector on a real broker: what it accepted is there, also through kills of both."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from profilehouse.log import open_log
from services.kafka import KafkaBroker
from tests.collecting import Running, collector, event, ids

SECONDS = 60


def accepted_by(server: Running, name: str, enough: int) -> list[str]:
    """Send from four threads until so many are accepted, then kill the collector."""
    accepted: list[str] = []
    lock = threading.Lock()

    def send(sender: int) -> None:
        for number in range(10_000):
            batch = [event(n, event_id=f"{name}-{sender}-{number}-{n}") for n in range(3)]
            try:
                answer = server.post(batch)
            except OSError:
                return
            assert answer.status == 202
            with lock:
                accepted.extend(each["event_id"] for each in batch)
                if len(accepted) >= enough:
                    os.kill(server.pid, signal.SIGKILL)
                    return

    threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    return accepted


def in_topic(broker: KafkaBroker) -> Counter[str]:
    return Counter(ids(open_log(broker.url("web"))))


def test_what_was_accepted_survives_a_kill_right_after_the_answer(tmp_path: Path) -> None:
    with KafkaBroker(tmp_path / "kafka") as broker:
        broker.create_topic("web")
        accepted = []
        for round_ in range(3):
            with collector(tmp_path, env={"PROFILEHOUSE_LOG": broker.url("web")}) as server:
                accepted += accepted_by(server, f"round{round_}", 200)
        kept = in_topic(broker)
        assert len(accepted) >= 600
        assert [name for name in accepted if kept[name] != 1] == []


def test_while_the_broker_is_gone_nothing_is_accepted_and_afterwards_all_is(
    tmp_path: Path,
) -> None:
    accepted: list[str] = []

    def post(number: int) -> Any:
        answer = server.post(event(number, event_id=f"e{number}"))
        if answer.status == 202:
            accepted.append(f"e{number}")
        return answer

    with KafkaBroker(tmp_path / "kafka") as broker:
        broker.create_topic("web")
        with collector(tmp_path, env={"PROFILEHOUSE_LOG": broker.url("web")}) as server:
            assert post(1).status == 202
            assert server.ask("GET", "/health").status == 200
            broker.kill()
            answer = post(2)
            assert answer.status == 503
            assert answer.json == {"error": "the log takes no events now"}
            assert int(answer.headers["Retry-After"]) > 0
            assert server.ask("GET", "/health").status == 503
            broker.start()
            deadline = time.monotonic() + SECONDS
            while post(3).status != 202:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            while server.ask("GET", "/health").status != 200:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        kept = in_topic(broker)
    assert accepted == ["e1", "e3"]
    assert kept["e1"] == 1
    assert kept["e3"] >= 1


def test_two_collectors_share_a_topic(tmp_path: Path) -> None:
    with KafkaBroker(tmp_path / "kafka") as broker:
        broker.create_topic("web")
        on_kafka = {"PROFILEHOUSE_LOG": broker.url("web")}
        with collector(tmp_path, env=on_kafka) as one, collector(tmp_path, env=on_kafka) as other:
            for number in range(10):
                server = (one, other)[number % 2]
                assert server.post(event(number)).status == 202
        assert in_topic(broker) == Counter(f"e{number}" for number in range(10))
