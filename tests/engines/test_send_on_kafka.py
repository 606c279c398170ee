"""`profilehouse send` and `profilehouse dead-letters` on a real broker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from profilehouse.dead_letters import letters
from profilehouse.platform import Platform
from profilehouse.settings import load_settings
from services.kafka import KafkaBroker
from tests.sending import clicks, event, follow, lines, refused, run


def test_what_is_sent_and_replayed_over_kafka_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago = (datetime.now(UTC) - timedelta(days=20)).isoformat()
    times = {"occurred_at": long_ago, "received_at": long_ago}
    bad = [event(2, colour="red"), event(3, colour="red", **times), b"\xff\x00\n"]
    sent, mended = tmp_path / "events.jsonl", tmp_path / "mended.json"
    sent.write_bytes(
        lines(event(1), *bad, bad[1], *(event(n, user_id="v") for n in range(4, 2_000)))
    )
    monkeypatch.chdir(tmp_path)
    with KafkaBroker(tmp_path / "kafka") as broker:
        broker.create_topic("web")
        monkeypatch.setenv("PROFILEHOUSE_LOG", broker.url("web"))
        platform = Platform(load_settings())

        result = run("send", str(sent))

        assert f"2,001 events are durable in {broker.url('web')}" in result.stderr
        follow(platform)
        assert len(refused(platform)) == 4
        told = []
        for letter in letters(platform.lake()):
            number = 2 if b"e2" in refused_bytes(letter.id) else 3
            given = {} if number == 2 else times
            mended.write_bytes(lines(event(number, **given)))
            told.append(run("dead-letters", "replay", letter.id, "--with", str(mended)).stderr)
        follow(platform)
        assert clicks(platform) == ["c2", "c1", "c3"]
        assert sum("1 replayed" in text for text in told) == 2
        assert sum("1 not needed" in text for text in told) == 2
        assert "no dead letters; 4 more were replayed" in run("dead-letters", "list").stderr


def refused_bytes(name: str) -> bytes:
    """The original bytes, as the command line gives them."""
    return run("dead-letters", "show", "--raw", name).stdout_bytes
