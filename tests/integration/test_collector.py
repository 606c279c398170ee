"""The collector as a server of its own, on the file log."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profilehouse.log import Log
from profilehouse.log.file import FileLog
from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration
from profilehouse.profiles.store import Meta
from profilehouse.settings import load_settings
from profilehouse.stream.process import LiveProcess, Options
from profilehouse.web.intake import BATCH_EVENTS, BODY_BYTES
from services.process import HOST, free_port
from tests.collecting import (
    ORIGIN,
    TOKEN,
    Answer,
    Running,
    ask,
    collector,
    environment,
    event,
    ids,
    logged,
)

SECONDS = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("collector")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Running]:
    with collector(folder, "--demo") as server:
        yield server


@pytest.fixture
def log(running: Running, folder: Path) -> Log:
    return FileLog(folder / "log")


def in_threads(work: Any, count: int) -> None:
    """Run work(0) to work(count - 1) at once; what one raises is raised here."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * SECONDS)
    if failures:
        raise failures[0]


# What is accepted.


def test_an_accepted_event_is_in_the_log_as_it_was_sent_with_the_time_it_came(
    running: Running, log: Log
) -> None:
    sent = event(1, user_id="ada", properties={"deep": [1, {"x": None}]}, received_at="forged")
    before = datetime.now(UTC)
    answer = running.post(sent)
    after = datetime.now(UTC)
    assert (answer.status, answer.json) == (202, {"accepted": 1})
    [record] = [each for each in logged(log) if each.get("user_id") == "ada"]
    assert before <= datetime.fromisoformat(record.pop("received_at")) <= after
    del sent["received_at"]
    assert record == sent


def test_a_batch_is_accepted_whole_and_stays_in_order(running: Running, log: Log) -> None:
    batch = [event(n, event_id=f"batch-{n}", user_id="bob") for n in range(BATCH_EVENTS)]
    answer = running.post(batch)
    assert (answer.status, answer.json) == (202, {"accepted": BATCH_EVENTS})
    kept = [each["event_id"] for each in logged(log) if each.get("user_id") == "bob"]
    assert kept == [each["event_id"] for each in batch]


def test_one_bad_event_refuses_the_batch_and_nothing_of_it_is_kept(
    running: Running, log: Log
) -> None:
    batch = [event(1, user_id="carl"), event(2, user_id=7), event(3, user_id="carl")]
    answer = running.post(batch)
    assert (answer.status, answer.json) == (400, {"error": "event 1: user_id is not a string"})
    assert not [each for each in logged(log) if each.get("user_id") == "carl"]


def test_what_breaks_only_the_contract_is_accepted_for_the_live_process_to_judge(
    running: Running, log: Log
) -> None:
    assert running.post({"user_id": "dora", "unknown": 1}).status == 202
    assert [each for each in logged(log) if each.get("user_id") == "dora"]


def test_a_beacon_needs_no_preflight_and_is_accepted(running: Running, log: Log) -> None:
    answer = running.post(
        [event(1, event_id="beacon")],
        {"Content-Type": "text/plain;charset=UTF-8", "Origin": ORIGIN},
    )
    assert answer.status == 202
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "beacon" in [each.get("event_id") for each in logged(log)]


# What is refused.


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"not JSON", 400, "the body is not JSON"),
        (b"[1]", 400, "events are JSON objects"),
        (b"{}", 400, "neither user_id nor anonymous_id"),
        (b'{"user_id":1}', 400, "user_id is not a string"),
        (b'{"user_id":"u","x":' + b"[" * 50 + b"]" * 50 + b"}", 400, "nested too deeply"),
        (b'{"user_id":"u","x":' + b"[" * 90_000 + b"]" * 90_000 + b"}", 400, "nested too deeply"),
        (b"[" + b",".join([b'{"user_id":"u"}'] * 1001) + b"]", 413, "1001 events are too many"),
        (b'{"user_id":"u"}'.ljust(BODY_BYTES + 1), 413, "the body is too large"),
        (b'{"user_id":"%s"}' % (b"u" * 600_000), 413, "the event is too large"),
    ],
)
def test_what_is_no_event_is_refused_with_one_line(
    running: Running, log: Log, body: bytes, status: int, error: str
) -> None:
    before = log.ends()
    answer = running.ask("POST", "/events", body)
    assert answer.status == status
    assert error in answer.json["error"]
    assert "\n" not in answer.json["error"]
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert log.ends() == before


def test_a_body_without_a_length_is_bounded_too(running: Running) -> None:
    with running.connect() as connection:
        chunks = (b" " * 65_536 for _ in range(BODY_BYTES // 65_536 + 1))
        connection.request("POST", "/events", chunks, encode_chunked=True)
        assert connection.getresponse().status == 413


def test_a_compressed_body_is_refused(running: Running) -> None:
    answer = running.ask("POST", "/events", b"\x1f\x8b", {"Content-Encoding": "gzip"})
    assert answer.status == 415


def test_a_body_that_does_not_come_is_given_up(running: Running) -> None:
    with socket.create_connection((HOST, running.port), timeout=SECONDS) as connection:
        connection.sendall(b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        begin = time.monotonic()
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - begin < SECONDS


def test_a_sender_that_goes_away_leaves_nothing_behind(running: Running, log: Log) -> None:
    before = log.ends()
    for _ in range(20):
        with socket.create_connection((HOST, running.port), timeout=SECONDS) as connection:
            connection.sendall(b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    deadline = time.monotonic() + SECONDS
    while "waiting_bytes 0.0" not in running.ask("GET", "/metrics").body.decode():
        assert time.monotonic() < deadline
    assert log.ends() == before
    assert "Traceback" not in running.output.read_text("utf-8")


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda children: (
            st.lists(children, max_size=4)
            | st.dictionaries(
                st.sampled_from(["user_id", "anonymous_id", "received_at", "x", "\x00"]), children
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from(["application/json", "text/plain", "multipart/form-data", "", "\xff"]),
)
def test_no_body_is_a_fault_of_the_server(running: Running, body: bytes, kind: str) -> None:
    answer = running.ask("POST", "/events", body, {"Content-Type": kind})
    assert answer.status in {202, 400, 413}


@pytest.mark.parametrize(
    "path",
    [
        "/static/tracker.js",
        "/tracker.js/../app.py",
        "/../app.py",
        "/%2e%2e/app.py",
        "/..%2fapp.py",
        "/tracker.js%00",
        "//etc/passwd",
        "/health/",
        "/<script>alert(1)</script>",
    ],
)
def test_no_other_file_is_given(running: Running, path: str) -> None:
    answer = running.ask("GET", path)
    assert (answer.status, answer.json) == (404, {"error": "Not Found"})


def test_other_methods_are_refused(running: Running) -> None:
    answer = running.ask("PUT", "/events", b"{}")
    assert answer.status == 405
    assert "POST" in answer.headers["Allow"]
    assert running.ask("POST", "/health").status == 405


# Origins.


def preflight(running: Running, origin: str) -> Answer:
    return running.ask(
        "OPTIONS",
        "/events",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        },
    )


def test_pages_of_the_origins_in_the_settings_may_send_and_others_may_not(
    running: Running,
) -> None:
    allowed = preflight(running, ORIGIN)
    assert allowed.status == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "POST" in allowed.headers["Access-Control-Allow-Methods"]
    foreign = preflight(running, "https://elsewhere.example")
    assert foreign.status == 400
    assert "Access-Control-Allow-Origin" not in foreign.headers


def test_a_page_elsewhere_can_read_why_and_when_to_try_again(running: Running) -> None:
    answer = running.ask("POST", "/events", b"no", {"Origin": ORIGIN})
    assert answer.status == 400
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "retry-after" in answer.headers["Access-Control-Expose-Headers"].lower()


def test_no_page_elsewhere_may_read_a_profile(running: Running) -> None:
    for path in ("/profiles/u1", "/demo/profiles/u1", "/metrics"):
        answer = running.ask("GET", path, headers={"Origin": ORIGIN})
        assert "Access-Control-Allow-Origin" not in answer.headers


# What survives.


def test_what_was_accepted_survives_a_kill_right_after_the_answer(tmp_path: Path) -> None:
    accepted: list[str] = []
    for round_ in range(5):
        with collector(tmp_path) as server:
            lock = threading.Lock()

            def send(
                sender: int, server: Running = server, round_: int = round_, lock: Any = lock
            ) -> None:
                with server.connect() as connection:
                    for number in range(1000):
                        name = f"{round_}-{sender}-{number}"
                        body = json.dumps(event(number, event_id=name))
                        try:
                            answer = ask(connection, "POST", "/events", body)
                        except (OSError, http.client.HTTPException):
                            return
                        assert answer.status == 202
                        with lock:
                            accepted.append(name)
                            if len(accepted) >= (round_ + 1) * 120:
                                os.kill(server.pid, signal.SIGKILL)
                                return

            in_threads(send, 6)
    kept = Counter(ids(FileLog(tmp_path / "log")))
    assert len(accepted) >= 600
    assert [name for name in accepted if kept[name] != 1] == []


def test_too_many_at_once_are_told_to_come_back_and_nothing_accepted_is_lost(
    tmp_path: Path,
) -> None:
    statuses: Counter[int] = Counter()
    senders, batches, size = 16, 12, 40

    def send(sender: int) -> None:
        with server.connect() as connection:
            for number in range(batches):
                batch = [
                    event(n, event_id=f"{sender}-{number}-{n}", properties={"x": "x" * 2000})
                    for n in range(size)
                ]
                body = json.dumps(batch)
                while True:
                    answer = ask(connection, "POST", "/events", body)
                    statuses[answer.status] += 1
                    if answer.status == 202:
                        break
                    assert answer.status == 429
                    assert answer.headers["Retry-After"] == "1"
                    time.sleep(0.01)

    with collector(tmp_path, "--max-waiting", "60") as server:
        in_threads(send, senders)
        assert "waiting_records 0.0" in server.ask("GET", "/metrics").body.decode()
    assert statuses[429] > 0
    assert statuses[202] == senders * batches
    kept = Counter(ids(FileLog(tmp_path / "log")))
    assert len(kept) == senders * batches * size
    assert set(kept.values()) == {1}


def test_a_batch_above_the_limit_is_taken_when_nothing_waits(tmp_path: Path) -> None:
    with collector(tmp_path, "--max-waiting", "1") as server:
        assert server.post([event(n) for n in range(100)]).status == 202


def test_asked_to_end_it_answers_what_was_begun_and_takes_no_more(tmp_path: Path) -> None:
    accepted: list[str] = []
    refused: Counter[int] = Counter()
    ended = threading.Event()

    def send(sender: int) -> None:
        number = 0
        while not ended.is_set():
            name = f"{sender}-{number}"
            number += 1
            try:
                answer = server.post(event(number, event_id=name))
            except (OSError, http.client.HTTPException):
                return
            if answer.status == 202:
                accepted.append(name)
            else:
                refused[answer.status] += 1

    with collector(tmp_path) as server:
        threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
        # One request is half there when the signal comes, and ends after it.
        with socket.create_connection((HOST, server.port), timeout=SECONDS) as slow:
            body = json.dumps(event(1, event_id="slow")).encode()
            head = f"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            slow.sendall(head.encode() + body[:10])
            for thread in threads:
                thread.start()
            time.sleep(1)
            os.kill(server.pid, signal.SIGTERM)
            time.sleep(0.5)
            slow.sendall(body[10:])
            assert slow.recv(4096).startswith(b"HTTP/1.1 202 ")
        _, status = os.waitpid(server.pid, 0)
        ended.set()
        for thread in threads:
            thread.join(SECONDS)
    assert status == 0
    assert not refused
    assert len(accepted) > 50
    kept = Counter(ids(FileLog(tmp_path / "log")))
    assert [name for name in [*accepted, "slow"] if kept[name] != 1] == []
    assert "Traceback" not in server.output.read_text("utf-8")


def test_a_log_that_cannot_be_written_is_told_and_taken_up_again(tmp_path: Path) -> None:
    """The server may write files of 256 KiB at most: then the system refuses, as a full disk."""
    limited = ["bash", "-c", 'ulimit -f 256; exec "$@"', "bash"]
    accepted = []
    with collector(tmp_path, before=limited) as server:
        assert server.ask("GET", "/health").status == 200
        text = "x" * 50_000
        for number in range(60):
            answer = server.post(event(number, user_id="one", properties={"x": text}))
            if answer.status != 202:
                break
            accepted.append(f"e{number}")
        assert answer.status == 503
        assert answer.json == {"error": "the log takes no events now"}
        assert int(answer.headers["Retry-After"]) > 0
        health = server.ask("GET", "/health")
        assert (health.status, health.json["status"]) == (503, "failing")
        # Other partitions have room: the collector goes on by itself.
        others = [server.post(event(n, user_id=f"u{n}")).status for n in range(1000, 1020)]
        assert 202 in others
        accepted += [f"e{1000 + n}" for n, status in enumerate(others) if status == 202]
    assert "File too large" in server.output.read_text("utf-8")
    assert [name for name in accepted if name not in ids(FileLog(tmp_path / "log"))] == []


# Who may start, and where.


def refused_start(folder: Path, *options: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "profilehouse.cli", "collect", *options],
        env={**os.environ, **environment(folder), **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last: str = done.stderr.splitlines()[-1]
    return last


def test_a_second_collector_on_a_file_log_is_refused(running: Running, folder: Path) -> None:
    assert "another process writes this event log" in refused_start(folder, "--port", "0")


def test_a_port_that_is_taken_is_told(running: Running, tmp_path: Path) -> None:
    said = refused_start(tmp_path, "--port", str(running.port))
    assert f"cannot listen on {HOST}:{running.port} (" in said


def test_the_demo_is_for_this_machine_only(tmp_path: Path) -> None:
    assert "not on 0.0.0.0" in refused_start(tmp_path, "--demo", "--host", "0.0.0.0")


def test_a_weak_token_is_refused_and_not_shown(tmp_path: Path) -> None:
    said = refused_start(tmp_path, PROFILEHOUSE_API_TOKEN="hunter2")
    assert "PROFILEHOUSE_API_TOKEN" in said
    assert "hunter2" not in said


# Profiles.


def test_profiles_want_the_token(running: Running) -> None:
    for path in ("/profiles/u1", "/visitors/a1"):
        assert running.profile(path).status != 401
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Bearer {TOKEN[:-1]}"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": TOKEN},
            {"Authorization": "Bearer \xff"},
        ):
            answer = running.ask("GET", path, headers=headers)
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json == {"error": "say Authorization: Bearer and the token"}


def test_without_a_token_in_the_settings_no_profile_is_served(tmp_path: Path) -> None:
    with collector(tmp_path, token=None) as server:
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN}"}):
            answer = server.ask("GET", "/profiles/u1", headers=headers)
            assert answer.status == 404
            assert "PROFILEHOUSE_API_TOKEN" in answer.json["error"]
        assert server.ask("GET", "/").status == 404, "no demo page unless it was asked for"
        assert server.ask("GET", "/demo/profiles/u1").status == 404


def test_profiles_without_a_token_only_for_pages_of_this_machine(running: Running) -> None:
    for path in ("/", "/demo/profiles/u1", "/demo/visitors/a1"):
        answer = running.ask("GET", path, headers={"Host": "attacker.example"})
        assert answer.status == 400


def test_a_profile_follows_what_was_collected(tmp_path: Path) -> None:
    variables = environment(tmp_path)
    prefix = "PROFILEHOUSE_"
    names = ("log", "profiles", "lake", "status")
    platform = Platform(load_settings(**{n: variables[prefix + n.upper()] for n in names}))
    process = LiveProcess(platform, load_declaration(), Options(lake_seconds=1))
    thread = threading.Thread(target=process.run)
    now = datetime.now(UTC)
    with collector(tmp_path) as server:
        answer = server.profile("/profiles/u/1")
        assert answer.status == 503, "no live process ran yet"
        thread.start()
        try:
            anonymous = {"anonymous_id": "a1", "session_id": "s1", "occurred_at": now.isoformat()}
            first = event(1, **anonymous, category="CHEESE")
            del first["user_id"]
            assert server.post(first).status == 202
            assert until_clicks(server, "/visitors/a1", 1)["interests"] == ["CHEESE"]
            assert server.profile("/profiles/u%2F1").status == 404
            login = event(2, **anonymous, user_id="u/1", category="CHEESE")
            assert server.post(login).status == 202
            profile = until_clicks(server, "/profiles/u%2F1", 2)
            assert profile["user_id"] == "u/1"
            assert profile["recent_clicks"] == ["c2", "c1"]
            assert profile["as_of"] == now.date().isoformat()

            tomorrow = now.date() + timedelta(days=1)
            later = server.profile(f"/profiles/u%2F1?as_of={tomorrow}").json
            assert later["as_of"] == tomorrow.isoformat()
            assert later["clicks_1d"] == 0
            early = server.profile("/profiles/u%2F1?as_of=2020-01-01")
            assert early.status == 400
            assert "ask for that day or a later one" in early.json["error"]
            assert server.profile("/profiles/u%2F1?as_of=yesterday").status == 400
            assert server.profile("/profiles/u%2F1").headers["Cache-Control"] == "no-store"
            for name in ("nobody", "", "%1fa1", "%FF", "a%20b", "x" * 300, "../u1"):
                assert server.profile(f"/profiles/{name}").status == 404
        finally:
            process.stop()
            thread.join(SECONDS)

        declaration = load_declaration()
        meta = Meta(
            version=declaration.version,
            fingerprint=declaration.fingerprint,
            newest_day=None,
            deliveries={},
        )
        with platform.profile_store(declaration) as store:
            store.rebuild([], meta)
        deadline = time.monotonic() + SECONDS
        while server.profile("/profiles/u%2F1").status != 404:
            assert time.monotonic() < deadline, "the new generation holds nobody"
            time.sleep(0.1)


def until_clicks(server: Running, path: str, clicks: int) -> Any:
    deadline = time.monotonic() + SECONDS
    while True:
        answer = server.profile(path)
        if answer.status == 200 and answer.json["clicks_lifetime"] == clicks:
            return answer.json
        assert time.monotonic() < deadline, (answer.status, answer.body)
        time.sleep(0.02)


# What is told to operators.


def test_health_says_ok_while_the_log_takes_records(running: Running) -> None:
    answer = running.ask("GET", "/health")
    assert (answer.status, answer.json) == (200, {"status": "ok"})


def counts(running: Running) -> dict[str, float]:
    text = running.ask("GET", "/metrics").body.decode()
    found = re.findall(r'^(profilehouse_\w+(?:\{status="\d+"\})?) (\S+)$', text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_requests_that_come_together_share_the_writing(running: Running) -> None:
    before = counts(running)

    def send(sender: int) -> None:
        with running.connect() as connection:
            for number in range(20):
                assert ask(connection, "POST", "/events", json.dumps(event(number))).status == 202

    in_threads(send, 16)
    after = counts(running)
    name = "profilehouse_collector_commit_seconds_count"
    assert 0 < after[name] - before[name] < 16 * 20
    name = "profilehouse_collector_events_total"
    assert after[name] - before[name] == 16 * 20


def test_metrics_count_what_was_answered(running: Running) -> None:
    running.post(event(1))
    running.post("bad")
    before = counts(running)
    running.post([event(n) for n in range(5)])
    running.post("bad")
    after = counts(running)

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown("profilehouse_collector_events_total") == 5
    assert grown('profilehouse_collector_requests_total{status="202"}') == 1
    assert grown('profilehouse_collector_requests_total{status="400"}') == 1
    assert grown("profilehouse_collector_commit_seconds_count") == 1


def test_neither_people_nor_tokens_are_named_in_what_the_server_prints(tmp_path: Path) -> None:
    with collector(tmp_path, "--demo") as server:
        server.post(event(1, user_id="very-secret-user"))
        server.profile("/profiles/very-secret-user")
        server.profile("/profiles/very-secret-user", token="a-wrong-secret")
        server.ask("GET", "/demo/profiles/very-secret-user?x=very-secret-user")
        server.ask("GET", "/very-secret-user")
        metrics = server.ask("GET", "/metrics").body.decode()
    printed = server.output.read_text("utf-8")
    for secret in ("very-secret-user", "a-wrong-secret", TOKEN):
        assert secret not in printed + metrics


def test_a_free_port_is_found_and_told(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "profilehouse.cli", "collect", "--port", "0"],
        env={**os.environ, **environment(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        told = re.search(r"http://127\.0\.0\.1:(\d+) ", process.stderr.readline())
        assert told is not None
        assert int(told[1]) not in {0, free_port()}
        with socket.create_connection((HOST, int(told[1])), timeout=SECONDS):
            pass
        process.terminate()
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
