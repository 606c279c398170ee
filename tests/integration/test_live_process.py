"""The live process on the embedded engines: file log, LMDB, local lake."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from profilehouse.errors import ProfilehouseError
from profilehouse.events.web import DEAD_LETTERS, EVENTS
from profilehouse.lake import Lake
from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration
from profilehouse.profiles.identity import Entry, decode
from profilehouse.profiles.serving import read_profile, read_visitor
from profilehouse.profiles.store import Store
from profilehouse.settings import Settings, load_settings
from profilehouse.stream.process import LiveProcess, Options
from profilehouse.stream.profiles import create_if_missing
from profilehouse.stream.rebuild import rebuild_from_lake
from profilehouse.stream.status import Status, read_statuses

DECLARATION = load_declaration()
QUICK = Options(lake_seconds=0.2)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(
        sources=str(tmp_path),
        lake=str(tmp_path / "lake"),
        log=f"file:{tmp_path / 'log'}",
        profiles=f"lmdb:{tmp_path / 'profiles'}",
        status=str(tmp_path / "status"),
        warehouse=f"duckdb:{tmp_path / 'w.duckdb'}",
    )


@pytest.fixture
def platform(settings: Settings) -> Platform:
    return Platform(settings)


def record(number: int, **given: Any) -> bytes:
    fields = {
        "event_id": f"e{number}",
        "event_type": "click",
        "content_id": f"c{number}",
        "occurred_at": datetime.now(UTC),
        "consent": True,
    } | given
    return msgspec.json.encode(fields)


def send(platform: Platform, *records: bytes) -> None:
    with platform.log() as log, log.producer() as producer:
        for value in records:
            producer.append(_key(value), value)


def _key(value: bytes) -> bytes:
    try:
        key = msgspec.json.decode(value, type=_Key)
    except msgspec.DecodeError:
        return b""
    return (key.user_id or key.anonymous_id).encode()


class _Key(msgspec.Struct):
    user_id: str = ""
    anonymous_id: str = ""


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@contextmanager
def living(platform: Platform, options: Options = QUICK) -> Iterator[LiveProcess]:
    """A live process in a thread, stopped at the end; what it raised is raised here."""
    process = LiveProcess(platform, DECLARATION, options)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            process.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield process
    finally:
        process.stop()
        thread.join(60)
    if failures:
        raise failures[0]


def run_through(platform: Platform, events: int) -> None:
    """Let a live process store that many events, and stop it."""
    with living(platform) as process:
        until(lambda: process.events >= events)


def command(settings: Settings) -> subprocess.Popen[str]:
    environment = {
        f"PROFILEHOUSE_{name.upper()}": str(getattr(settings, name))
        for name in ("sources", "lake", "log", "profiles", "status", "warehouse")
    }
    return subprocess.Popen(
        [sys.executable, "-m", "profilehouse.cli", "stream", "--lake-seconds", "0.2"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=settings.sources,
        stderr=subprocess.PIPE,
        text=True,
    )


def running(settings: Settings) -> Status | None:
    return next((s for s in read_statuses(settings) if s.state == "running" and s.ends), None)


def landed(platform: Platform) -> list[str]:
    return sorted(platform.lake().read(EVENTS)["event_id"].to_pylist())


def profile(platform: Platform, user: str) -> dict[str, Any] | None:
    with platform.profile_store(DECLARATION) as store:
        return read_profile(store, DECLARATION, user)


def entries(store: Store) -> dict[str, Entry]:
    return {key: decode(key, stored) for key, stored in store.items()}


def test_events_go_from_the_log_to_profiles_and_lake(platform: Platform) -> None:
    send(platform, *(record(n, user_id=f"u{n % 3}") for n in range(30)))

    run_through(platform, 30)

    assert landed(platform) == sorted(f"e{n}" for n in range(30))
    found = profile(platform, "u1")
    assert found is not None
    assert found["clicks_lifetime"] == found["clicks_1d"] == 10
    assert set(found["recent_clicks"]) == {f"c{n}" for n in range(1, 30, 3)}
    assert profile(platform, "u3") is None


def test_bad_records_become_dead_letters_and_stop_nothing(platform: Platform) -> None:
    send(platform, record(1, user_id="u"), b"{", record(2, user_id="u", colour="red"))
    send(platform, record(3, user_id="u"))

    run_through(platform, 2)

    dead = platform.lake().read(DEAD_LETTERS).sort_by("record").to_pylist()
    assert dead[0]["record"] == b"{"
    assert "unknown field `colour`" in dead[1]["reason"]
    assert landed(platform) == ["e1", "e3"]


def test_a_second_start_goes_on_and_counts_nothing_twice(platform: Platform) -> None:
    send(platform, *(record(n, user_id="u") for n in range(5)))
    run_through(platform, 5)
    send(platform, *(record(n, user_id="u") for n in range(5, 8)))

    run_through(platform, 3)

    found = profile(platform, "u")
    assert found is not None
    assert found["clicks_lifetime"] == 8
    assert len(landed(platform)) == 8


def test_a_senders_copy_counts_once_and_keeps_its_row_in_the_lake(platform: Platform) -> None:
    once = record(1, user_id="u")
    send(platform, once, once)
    send(platform, once)

    run_through(platform, 3)

    found = profile(platform, "u")
    assert found is not None
    assert found["clicks_lifetime"] == 1
    assert landed(platform) == ["e1"] * 3


def test_a_visitor_who_logs_in_is_one_person_from_the_next_read_on(platform: Platform) -> None:
    visit = {"anonymous_id": "browser", "session_id": "s1"}
    send(platform, record(1, **visit))
    with living(platform) as process, platform.profile_store(DECLARATION) as store:
        until(lambda: process.events == 1)
        before = read_visitor(store, DECLARATION, "browser")
        send(platform, record(2, **visit, user_id="ann"))
        until(lambda: process.events == 2)
        after = read_profile(store, DECLARATION, "ann")
        gone = read_visitor(store, DECLARATION, "browser")

    assert before is not None
    assert (before["user_id"], before["recent_clicks"]) == (None, ["c1"])
    assert after is not None
    assert after["recent_clicks"] == ["c2", "c1"]
    assert gone is None


def test_an_event_without_consent_reaches_the_lake_and_no_profile(platform: Platform) -> None:
    send(platform, record(1, user_id="ann", consent=False), record(2, user_id="bob"))

    run_through(platform, 1)

    assert profile(platform, "ann") is None
    assert landed(platform) == ["e1", "e2"]


def test_sigterm_stores_what_was_read_and_exits_with_0(settings: Settings) -> None:
    platform = Platform(settings)
    send(platform, *(record(n, user_id=f"u{n % 50}") for n in range(20_000)))
    process = command(settings)
    until(lambda: (status := running(settings)) is not None and status.events > 0)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 0, said
    [status] = read_statuses(settings)
    assert status.state == "stopped"
    assert len(landed(platform)) == status.events
    with platform.profile_store(DECLARATION) as store:
        clicks = [read_profile(store, DECLARATION, f"u{n}") for n in range(50)]
    assert sum(p["clicks_lifetime"] for p in clicks if p) == status.events


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_nothing_is_lost_and_nothing_counted_twice(
    settings: Settings, seed: int
) -> None:
    platform, chance, events = Platform(settings), random.Random(seed), 6_000
    send(platform, *(record(n, user_id=f"u{n % 7}") for n in range(events)), b"{", b"[]")
    for _ in range(2):
        process = command(settings)
        until(lambda: running(settings) is not None)
        time.sleep(chance.uniform(0, 0.6))
        process.kill()
        process.communicate()
        for status in Path(settings.status).glob("*.json"):
            status.unlink()

    with living(platform):
        lake = platform.lake()
        until(lambda: sum(lake.positions(EVENTS).offsets.values()) == events + 2)
        until(lambda: sum(lake.positions(DEAD_LETTERS).offsets.values()) == events + 2)

    assert landed(platform) == sorted(f"e{n}" for n in range(events))
    assert sorted(platform.lake().read(DEAD_LETTERS)["record"].to_pylist()) == [b"[]", b"{"]
    found = [profile(platform, f"u{n}") for n in range(7)]
    expected = [len(range(n, events, 7)) for n in range(7)]
    assert [p["clicks_lifetime"] for p in found if p] == expected


def test_a_second_process_on_a_file_log_is_refused_in_one_line(settings: Settings) -> None:
    with living(Platform(settings)):
        until(lambda: running(settings) is not None)
        second = command(settings)
        _, said = second.communicate(timeout=60)

    assert second.returncode == 1
    assert "one at a time may; stop it, or use Kafka" in said.splitlines()[-1]


def test_a_log_that_was_made_anew_is_refused_with_the_remedy(
    platform: Platform, settings: Settings
) -> None:
    send(platform, record(1, user_id="u"))
    run_through(platform, 1)
    Path(settings.log.removeprefix("file:")).rename(Path(settings.sources) / "old-log")
    send(platform, record(2, user_id="u"))

    with pytest.raises(ProfilehouseError, match="created anew"), living(platform):
        until(lambda: any(s.state == "failed" for s in read_statuses(settings)))

    assert read_statuses(settings)[0].state == "failed"
    found = profile(platform, "u")
    assert found is not None
    assert found["clicks_lifetime"] == 1


def test_a_rebuild_from_the_lake_gives_the_same_profiles_while_the_process_goes_on(
    platform: Platform, settings: Settings
) -> None:
    visit = {"anonymous_id": "browser", "session_id": "s1"}
    send(platform, *(record(n, user_id=f"u{n % 3}") for n in range(30)), record(30, **visit))
    with living(platform, Options(lake_seconds=0.5)) as process:
        until(lambda: process.events == 31)
        with platform.profile_store(DECLARATION) as store:
            before = entries(store)
            rebuild_from_lake(platform, platform.lake(), store, DECLARATION, {})
            store.refresh()
            assert entries(store) == before
        send(platform, record(31, **visit, user_id="u0"))
        until(lambda: len((profile(platform, "u0") or {}).get("recent_clicks", ())) == 10)
        until(lambda: (profile(platform, "u0") or {})["clicks_lifetime"] == 12)

    assert len(landed(platform)) == 32


def test_the_reading_waits_for_a_slow_lake_and_says_so(
    platform: Platform, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, append = threading.Event(), Lake.append

    def slowly(*args: Any, **given: Any) -> None:
        may_write.wait()
        append(*args, **given)

    monkeypatch.setattr(Lake, "append", slowly)
    monkeypatch.setattr("profilehouse.stream.process.BUFFERED", 3_000)
    send(platform, *(record(n, user_id=f"u{n}") for n in range(20_000)))
    try:
        with living(platform) as process:
            until(lambda: any(status.paused for status in read_statuses(settings)))
            read = process.events
            time.sleep(0.5)
            assert process.events == read < 20_000
            may_write.set()
            until(lambda: process.events == 20_000)
    finally:
        may_write.set()

    assert len(landed(platform)) == 20_000


def test_no_second_has_more_events_than_the_maximum_rate(platform: Platform) -> None:
    send(platform, *(record(n, user_id="u") for n in range(1_000)))
    with living(platform, Options(lake_seconds=0.2, max_rate=500)) as process:
        until(lambda: process.events > 0)
        began = time.monotonic()
        until(lambda: process.events == 1_000)
        assert time.monotonic() - began > 0.9


def test_the_status_tells_positions_lag_latency_and_what_did_not_count(
    platform: Platform, settings: Settings
) -> None:
    late = datetime.now(UTC) - timedelta(days=8)
    send(platform, record(1, user_id="a"), record(2, user_id="a", occurred_at=late))
    send(platform, record(3, user_id="b", consent=False), b"{")
    with living(platform) as process:
        until(lambda: process.events == 1)
        until(lambda: (s := running(settings)) is not None and s.lake_lag == 0 and s.events == 1)
        status = running(settings)

    assert status is not None
    assert (status.events, status.refused, status.late, status.unconsented) == (1, 1, 1, 1)
    assert (status.lag, status.lake_lag, sum(status.ends.values())) == (0, 0, 4)
    assert status.latency is not None
    assert 0 < status.latency.p50 <= status.latency.p99 < 60_000
    assert status.topic_id == platform.log().topic_id
    assert read_statuses(settings)[0].state == "stopped"


def test_an_error_of_the_lake_ends_the_process_and_is_told(
    platform: Platform, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ProfilehouseError("the disk is full")

    monkeypatch.setattr(Lake, "append", fail)
    send(platform, record(1, user_id="u"))

    with pytest.raises(ProfilehouseError, match="the disk is full"), living(platform):
        until(lambda: any(s.state == "failed" for s in read_statuses(settings)))

    assert read_statuses(settings)[0].error == "the disk is full"


def test_processes_that_start_together_on_no_store_share_the_one_that_is_made(
    platform: Platform,
) -> None:
    together = threading.Barrier(6)

    def start(_: int) -> bool:
        with platform.profile_store(DECLARATION) as store:
            together.wait()
            create_if_missing(store, DECLARATION)
            return store.exists()

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(start, range(6))) == [True] * 6
