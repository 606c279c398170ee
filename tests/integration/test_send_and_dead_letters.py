"""`profilehouse send` and `profilehouse dead-letters`, on the file log and a local lake."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profilehouse.contracts import contract
from profilehouse.dead_letters import letters
from profilehouse.errors import ProfilehouseError
from profilehouse.events.web import DEAD_LETTERS, EVENTS
from profilehouse.log import MAX_RECORD_BYTES, key_of, partition_of
from profilehouse.platform import Platform
from profilehouse.settings import load_settings
from profilehouse.sources.landing import land, records, unlanded_days
from profilehouse.web.intake import records as collected
from tests.sending import clicks, ends, event, follow, lines, refused, run

DAY = date(2026, 3, 1)


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "sources" / "redemptions").mkdir(parents=True)
    return Platform(load_settings())


@pytest.mark.parametrize("form", ["plain", "gz", "-"])
def test_a_file_is_sent_line_by_line_as_it_is(
    platform: Platform, tmp_path: Path, form: str
) -> None:
    data = lines(event(1), b"{broken\r\n", b"\n", event(2))
    file = tmp_path / ("events.jsonl.gz" if form == "gz" else "events.jsonl")
    file.write_bytes(gzip.compress(data) if form == "gz" else data)

    result = run("send", "-" if form == "-" else str(file), data=data)

    assert result.exit_code == 0, result.output
    assert "3 events are durable in file:data/log" in result.stderr
    follow(platform)
    assert clicks(platform) == ["c2", "c1"]
    assert refused(platform) == [b"{broken"]


def test_a_line_too_long_is_named_and_left_out_and_the_others_go(
    platform: Platform, tmp_path: Path
) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(lines(event(1), event(2, url="x" * MAX_RECORD_BYTES), event(3)))

    result = run("send", str(file))

    assert isinstance(result.exception, ProfilehouseError)
    assert "1 lines were left out" in str(result.exception)
    assert "line 2: a record of" in result.stderr
    follow(platform)
    assert clicks(platform) == ["c3", "c1"]


def test_a_rate_holds(platform: Platform, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(lines(*(event(n) for n in range(300))))

    began = time.monotonic()
    result = run("send", "--rate", "200", str(file))

    assert result.exit_code == 0
    assert time.monotonic() - began >= 1.4


def test_a_file_sent_twice_counts_once(platform: Platform, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(lines(event(1), event(2)))

    assert [run("send", str(file)).exit_code for _ in range(2)] == [0, 0]

    follow(platform)
    assert clicks(platform) == ["c2", "c1"]
    assert platform.lake().read(EVENTS).num_rows == 4


def test_a_compressed_file_that_is_cut_short_is_sent_as_far_as_it_can_be_read(
    platform: Platform, tmp_path: Path
) -> None:
    file = tmp_path / "events.jsonl.gz"
    whole = gzip.compress(lines(*(event(n, url=str(n**99)) for n in range(3_000))))
    file.write_bytes(whole[: len(whole) // 2])

    result = run("send", str(file))

    told = str(result.exception)
    assert f"{file}: cannot be read (Compressed file ended" in told
    line = int(told.partition("after line ")[2].partition(";")[0].replace(",", ""))
    assert 0 < line < 3_000
    assert f"{line:,} events are durable" in result.stderr
    assert sum(ends(platform).values()) == line


def test_what_is_sent_can_be_read_at_once_and_ctrl_c_stops_between_two_lines(
    platform: Platform,
) -> None:
    command = [sys.executable, "-m", "profilehouse.cli", "send", "-", "--rate", "100"]
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        command,
        stdin=PIPE,
        stderr=PIPE,
        text=True,
        bufsize=1,
        env={**os.environ, "PYTHONPATH": root},
    ) as sending:
        assert sending.stdin is not None
        sending.stdin.writelines(lines(*(event(n) for n in range(50))).decode().splitlines(True))
        deadline = time.monotonic() + 30
        while sum(ends(platform).values()) < 40 and time.monotonic() < deadline:
            time.sleep(0.02)
        seen = sum(ends(platform).values())
        while sum(ends(platform).values()) < 50 and time.monotonic() < deadline:
            time.sleep(0.02)
        sending.send_signal(signal.SIGINT)
        _, told = sending.communicate(timeout=20)

    assert seen >= 40
    assert sending.returncode == 1
    assert "50 events are durable in file:data/log" in told
    assert "-: stopped after line 50" in told
    assert "Traceback" not in told


ids = st.none() | st.text(max_size=5) | st.integers()


@settings(max_examples=200, deadline=None)
@given(user=ids, anonymous=ids)
def test_a_line_goes_to_the_partition_that_the_collector_would_choose(
    user: str | int | None, anonymous: str | int | None
) -> None:
    record = json.dumps({"user_id": user, "anonymous_id": anonymous}).encode()
    try:
        [(key, _)] = collected(record, b'"2026-03-01T00:00:00Z"')
    except Exception:
        key = None
    if key:
        assert key_of(record) == key


@given(st.binary(max_size=50) | st.binary(max_size=5).map(lambda b: b'{"user_id":"' + b + b'"}'))
def test_every_line_has_a_key_even_if_it_is_no_event(line: bytes) -> None:
    assert isinstance(key_of(line), bytes)


def test_a_dead_letter_of_the_log_is_listed_shown_mended_and_counts_once(
    platform: Platform, tmp_path: Path
) -> None:
    sent = tmp_path / "events.jsonl"
    sent.write_bytes(lines(event(1), event(2, colour="red\x1b[31m")))
    run("send", str(sent))
    follow(platform)

    listed = run("dead-letters", "list")
    [name] = [line.split()[0] for line in listed.stdout.splitlines()]
    shown = run("dead-letters", "show", name)
    raw = run("dead-letters", "show", "--raw", name)

    assert name.startswith("web/")
    assert "unknown field `colour`" in listed.stdout
    assert "1 dead letters" in listed.stderr
    assert "\x1b" not in shown.stdout
    assert "offset" in shown.stdout
    assert raw.stdout_bytes == sent.read_bytes().splitlines()[1]

    before = ends(platform)
    as_it_is = run("dead-letters", "replay", name)
    assert "was left alone: Object contains unknown field" in as_it_is.stderr
    assert isinstance(as_it_is.exception, ProfilehouseError)
    follow(platform)
    assert clicks(platform) == ["c1"]

    assert ends(platform) == before, "what is still refused is not sent"

    mended = tmp_path / "mended.json"
    mended.write_bytes(lines(event(2, received_at=None)))
    assert run("dead-letters", "replay", name, "--with", str(mended)).exit_code == 0
    again = run("dead-letters", "replay", name, "--with", str(mended))
    assert "was replayed already" in str(again.exception)
    follow(platform)
    assert clicks(platform) == ["c2", "c1"]
    replayed = platform.lake().read(EVENTS).sort_by("event_id").to_pylist()[1]
    [letter] = letters(platform.lake())
    assert replayed["received_at"] == letter.received_at
    assert letter.replayed
    assert run("dead-letters", "list").stdout == ""
    assert "(replayed)" in run("dead-letters", "list", "--all").stdout


BAD = {
    "binary": bytes(range(128, 256)) + b"\x00\x1b[2J",
    "no text": b'{"user_id":"\xff\xfe"}',
    "no object": b"[1,2]",
    "deep": b"[" * 100_000,
    "wrong type": lines(event(7, consent="yes")).strip(),
    "unknown field": lines(event(7, colour="red")).strip(),
    "nobody": lines(event(7, user_id=None)).strip(),
    "long": lines(event(7, colour="x" * 890_000)).strip(),
}


def test_whatever_is_sent_becomes_a_dead_letter_with_its_bytes_and_stops_nothing(
    platform: Platform, tmp_path: Path
) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"".join(bad + b"\n" for bad in BAD.values()) + lines(event(1)))

    assert run("send", str(file)).exit_code == 0

    follow(platform)
    assert clicks(platform) == ["c1"]
    assert sorted(refused(platform)) == sorted(BAD.values())
    listed = run("dead-letters", "list").stdout
    assert len(listed.splitlines()) == len(BAD)
    for line in listed.splitlines():
        shown = run("dead-letters", "show", line.split()[0])
        assert shown.exit_code == 0
        assert all(c.isprintable() for c in shown.stdout.replace("\n", ""))
    again = run("dead-letters", "replay", "--all")
    assert f"{len(BAD)} were left alone" in str(again.exception)
    assert ends(platform) == platform.lake().positions(EVENTS).offsets


@pytest.mark.parametrize("copy", ["replayed", "in the lake", "in the log"])
def test_an_event_that_profiles_have_forgotten_is_not_counted_again(
    platform: Platform, tmp_path: Path, copy: str
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=20)
    times = {"occurred_at": long_ago.isoformat(), "received_at": long_ago.isoformat()}
    bad = [event(2, colour="red", **times), event(2, colour="green", **times)]
    sent, mended = tmp_path / "events.jsonl", tmp_path / "mended.json"
    sent.write_bytes(lines(event(1), *bad))
    mended.write_bytes(lines(event(2, **times)))
    run("send", str(sent))
    follow(platform)
    first, second = (letter.id for letter in letters(platform.lake()))

    if copy == "replayed":
        result = run("dead-letters", "replay", first, "--with", str(mended))
        assert "1 replayed" in result.stderr
    else:
        run("send", str(mended))
    if copy != "in the log":
        follow(platform)
        assert clicks(platform) == ["c1", "c2"]
    result = run("dead-letters", "replay", second, "--with", str(mended))

    assert result.exit_code == 0
    assert "1 not needed: a copy of the event had come" in result.stderr
    follow(platform)
    assert clicks(platform) == ["c1", "c2"]
    assert second not in run("dead-letters", "list").stdout


def test_a_purchase_that_the_shop_delivered_long_ago_is_not_counted_again(
    platform: Platform, tmp_path: Path
) -> None:
    day = (datetime.now(UTC) - timedelta(days=20)).replace(tzinfo=None)
    row: dict[str, Any] = {
        "event_id": "purchases/o/c",
        "event_type": "purchase",
        "user_id": "u",
        "order_id": "o",
    }
    row |= {"content_id": "c", "occurred_at": day, "received_at": day, "delivered_on": day.date()}
    row |= {"topic": "purchases", "line": 1}
    columns = contract("events").arrow_schema
    delivered = pa.Table.from_pylist([row], columns)
    platform.lake().replace("events", delivered, days=[day.date()])
    times = {"occurred_at": f"{day}Z", "received_at": f"{day}Z"}
    same = event(9, event_type="purchase", order_id="o", content_id="c", **times)
    sent, mended = tmp_path / "events.jsonl", tmp_path / "mended.json"
    sent.write_bytes(lines(same | {"colour": "red"}, event(1)))
    mended.write_bytes(lines(same))
    run("send", str(sent))
    follow(platform)
    [letter] = letters(platform.lake())

    result = run("dead-letters", "replay", letter.id, "--with", str(mended))

    assert "1 not needed" in result.stderr
    assert ends(platform) == platform.lake().positions(EVENTS).offsets


def test_all_that_a_mended_contract_allows_is_replayed_at_once(platform: Platform) -> None:
    source, lake = contract("redemptions"), platform.lake()
    file = Path("data/sources/redemptions") / f"{DAY}.jsonl"
    file.write_bytes(lines(redemption(1), redemption(2)))
    narrow = replace(
        source,
        version="0.9.0",
        columns=tuple(
            replace(column, maximum=1) if column.name == "household_id" else column
            for column in source.columns
        ),
    )
    land(narrow, [DAY], platform.sources(), lake, platform.settings.zone)
    record = lines(event(1), event(2)).splitlines()
    then = datetime(2026, 11, 1)
    with platform.log() as log:
        rows = pa.Table.from_pylist(
            [
                {
                    "received_at": then,
                    "reason": "Object contains unknown field `content_id`",
                    "contract_version": "0.9.0",
                    "record": record[number],
                    "topic_id": log.topic_id,
                    "log_partition": _empty_partition(),
                    "log_offset": number,
                    "delivered_on": then.date(),
                }
                for number in range(2)
            ],
            contract(DEAD_LETTERS).arrow_schema,
        )
        after = {_empty_partition(): 2}
        lake.append(DEAD_LETTERS, rows, topic_id=log.topic_id, before={}, after=after)

    result = run("dead-letters", "replay", "--all")

    assert result.exit_code == 0, result.exception
    assert "3 replayed" in result.stderr
    assert "no dead letters" in run("dead-letters", "list").stderr
    assert "2 dead letters" in run("dead-letters", "list", "--all").stderr
    assert records(source, lake)["household_id"].to_pylist() == [1, 2]
    follow(platform)
    assert clicks(platform) == ["c2", "c1"]
    assert set(lake.read(EVENTS)["received_at"].to_pylist()) == {then}
    assert "0 replayed" in run("dead-letters", "replay", "--all").stderr


def _empty_partition() -> int:
    """One that holds no event of the user."""
    return (partition_of(b"u", 4) + 1) % 4


def redemption(number: int, **given: Any) -> dict[str, Any]:
    fields = {
        "household_id": number,
        "coupon_upc": 5,
        "campaign_id": 3,
        "redeemed_on": str(DAY),
    }
    return fields | given


def test_a_dead_letter_of_a_file_is_repaired_and_stays_so(
    platform: Platform, tmp_path: Path
) -> None:
    source, zone = contract("redemptions"), platform.settings.zone
    file = tmp_path / "data" / "sources" / "redemptions" / f"{DAY}.jsonl"
    file.write_bytes(lines(redemption(1), b"{\n", redemption(3)))
    lake = platform.lake()
    land(source, [DAY], platform.sources(), lake, zone)
    name = f"redemptions/{DAY}/2"
    assert name in run("dead-letters", "list", "--source", "redemptions").stdout

    mended = tmp_path / "mended.json"
    mended.write_bytes(lines(redemption(2)))
    result = run("dead-letters", "replay", name, "--with", str(mended))

    assert result.exit_code == 0, result.output
    assert (
        f"lake/redemptions was landed again; materialize lake/events and what follows for {DAY}"
        in (result.stderr)
    )
    lake = platform.lake()
    for _ in range(2):
        households = records(source, lake)["household_id"].to_pylist()
        assert households == [1, 2, 3]
        assert unlanded_days(source, platform.sources(), lake, zone) == []
        assert land(source, [DAY], platform.sources(), lake, zone).unchanged == 1
    assert "no dead letters" in run("dead-letters", "list").stderr

    file.write_bytes(lines(redemption(1), b"[\n", redemption(3)))
    land(source, [DAY], platform.sources(), lake, zone)
    assert name in run("dead-letters", "list").stdout, "another bad line is not what was repaired"


def test_a_dead_letter_of_the_customers_data_is_repaired_too(
    platform: Platform, tmp_path: Path
) -> None:
    source, lake = contract("crm"), platform.lake()
    fields = {c.name: c.values[0] if c.values else "1" for c in source.columns if c.required}
    good = fields | {"household_id": 7, "updated_at": f"{DAY}T12:00:00Z"}
    file = tmp_path / "data" / "sources" / "crm" / f"{DAY}.jsonl"
    file.parent.mkdir()
    file.write_bytes(lines(good | {"household_id": "seven"}))
    land(source, [DAY], platform.sources(), lake, platform.settings.zone)
    mended = tmp_path / "mended.json"
    mended.write_bytes(lines(good))

    result = run("dead-letters", "replay", f"crm/{DAY}/1", "--with", str(mended))

    assert "lake/crm was landed again; materialize what follows lake/crm" in result.stderr
    assert records(source, lake)["household_id"].to_pylist() == [7]


def test_a_record_of_a_file_that_is_still_refused_changes_nothing(
    platform: Platform, tmp_path: Path
) -> None:
    source, lake, zone = contract("redemptions"), platform.lake(), platform.settings.zone
    bad = [b"\xff\x00", lines(redemption(2, coupon_upc="x")).strip(), b"{" + b" " * 2**20]
    file = tmp_path / "data" / "sources" / "redemptions" / f"{DAY}.jsonl"
    file.write_bytes(lines(redemption(1)) + b"".join(line + b"\n" for line in bad))
    land(source, [DAY], platform.sources(), lake, zone)
    assert refused(platform) == bad

    result = run("dead-letters", "replay", "--all", "--source", "redemptions")

    assert "3 were left alone" in str(result.exception)
    assert "0 replayed" in result.stderr
    assert f"redemptions/{DAY}/3 was left alone: Expected `int`, got `str`" in result.stderr
    assert refused(platform) == bad
    assert lake.read("repairs").num_rows == 0
    mended = tmp_path / "mended.json"
    mended.write_bytes(lines(redemption(2), redemption(3)))
    two = run("dead-letters", "replay", f"redemptions/{DAY}/3", "--with", str(mended))
    assert "trailing characters" in two.stderr
    assert records(source, lake)["household_id"].to_pylist() == [1]


def test_a_repair_of_a_day_that_cannot_be_landed_now_is_landed_later(
    platform: Platform, tmp_path: Path
) -> None:
    source, lake, zone = contract("redemptions"), platform.lake(), platform.settings.zone
    file = tmp_path / "data" / "sources" / "redemptions" / f"{DAY}.jsonl"
    file.write_bytes(lines(redemption(1), b"{\n"))
    land(source, [DAY], platform.sources(), lake, zone)
    file.rename(tmp_path / "away")
    mended = tmp_path / "mended.json"
    mended.write_bytes(lines(redemption(2)))
    name = f"redemptions/{DAY}/2"

    result = run("dead-letters", "replay", name, "--with", str(mended))

    assert result.exit_code == 1
    assert f"{name} was left alone: its file is not there" in result.stderr
    assert "was landed again" not in result.stderr
    assert name in run("dead-letters", "list").stdout
    (tmp_path / "away").rename(file)
    twin = file.with_suffix(".jsonl.gz")
    twin.write_bytes(gzip.compress(b""))
    result = run("dead-letters", "replay", name, "--with", str(mended))
    assert f"{name} was left alone: redemptions: more than one file for {DAY}" in result.stderr
    twin.unlink()
    assert unlanded_days(source, platform.sources(), lake, zone) == [DAY]
    land(source, [DAY], platform.sources(), lake, zone)
    assert records(source, lake)["household_id"].to_pylist() == [1, 2]
    assert "no dead letters" in run("dead-letters", "list").stderr


def test_what_there_is_not_is_said_in_one_line(platform: Platform) -> None:
    assert "no dead letter web/0/7" in str(run("dead-letters", "show", "web/0/7").exception)
    assert "no source nothing" in str(run("dead-letters", "list", "--source", "nothing").exception)
    assert run("dead-letters", "replay").exit_code == 2
    assert run("dead-letters", "replay", "--all").exit_code == 0
    assert "no dead letters" in run("dead-letters", "list").stderr
