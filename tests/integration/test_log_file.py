"""The embedded event log: what every log does, and what crashes and other processes do to it."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profilehouse.errors import ProfilehouseError
from profilehouse.log import Log, open_log
from profilehouse.log.file import FileLog
from profilehouse.log.frames import encode
from profilehouse.platform import Platform
from profilehouse.settings import load_settings
from tests.log_cases import (
    LogCases,
    Records,
    from_start,
    numbered,
    numbers_by_user,
    read_all,
    read_until,
    write,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "the log #1"


@pytest.fixture
def log(folder: Path) -> Log:
    return open_log(f"file:{folder}")


class TestFileLog(LogCases):
    pass


def start(folder: Path, script: str, *arguments: object) -> subprocess.Popen[str]:
    """Run Python beside this process, with `log` and the helpers of the cases at hand."""
    prelude = (
        "import sys\n"
        "from pathlib import Path\n"
        "from profilehouse.log.file import FileLog\n"
        "from tests.log_cases import *\n"
        "log = FileLog(Path(sys.argv[1]))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + script, str(folder), *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


HOLDS_THE_WRITER = "producer = log.producer()\nprint('ready', flush=True)\ntime.sleep(60)\n"
HOLDS_THE_GROUP = (
    "consumer = log.join('live', dict.fromkeys, lambda _: None)\n"
    "print('ready', flush=True)\ntime.sleep(60)\n"
)
WRITES_UNTIL_KILLED = """
import itertools
begin = int(sys.argv[2])
with log.producer() as producer:
    for n in itertools.count(begin):
        producer.append(b"user-%d" % (n % 10), b"user-%d %d" % (n % 10, n))
        if n % 37 == 36:
            producer.flush()
            print(n, flush=True)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_what_was_acknowledged_survives_kills_of_the_writer_and_readers_saw_nothing_else(
    folder: Path, seed: int
) -> None:
    moments = random.Random(seed)
    log = FileLog(folder, segment_bytes=20_000)
    acknowledged: list[int] = []
    seen: Records = {}
    stop = Event()

    def follow() -> None:
        with log.consumer(from_start(log)) as consumer:
            batches = consumer.read(50, 0.05)
            while batches or not stop.is_set():
                for batch in batches:
                    seen.setdefault(batch.partition, []).extend(batch.values)
                batches = consumer.read(50, 0.05)

    reader = Thread(target=follow)
    reader.start()
    for run in range(6):
        begin = run * 10_000_000
        writer = start(folder, WRITES_UNTIL_KILLED, begin)
        assert writer.stdout is not None
        line = writer.stdout.readline()
        time.sleep(moments.uniform(0, 0.08))
        writer.kill()
        writer.wait()
        told = [line, *writer.stdout.readlines()]
        acknowledged.extend(range(begin, int([t for t in told if t.endswith("\n")][-1]) + 1))
    log.producer().close()
    stop.set()
    reader.join()

    values = read_all(log)
    users = numbers_by_user(values)
    present = {number for numbers in users.values() for number in numbers}
    assert len(acknowledged) > 6 * 37
    assert set(acknowledged) <= present
    assert all(numbers == sorted(set(numbers)) for numbers in users.values())
    assert seen == values


def test_a_second_writer_is_refused_until_the_first_is_gone(log: Log, folder: Path) -> None:
    other = start(folder, HOLDS_THE_WRITER)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(ProfilehouseError, match=r"another process writes.*; stop it, or"):
            log.producer()
    finally:
        other.kill()
        other.wait()
    write(log, [(b"key", b"value")])
    assert sum(log.ends().values()) == 1


def test_a_second_process_of_a_group_is_refused_until_the_first_is_gone(
    log: Log, folder: Path
) -> None:
    other = start(folder, HOLDS_THE_GROUP)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(ProfilehouseError, match=r"another process reads.* as 'live'"):
            log.join("live", dict.fromkeys, lambda _: None)
        log.join("another", dict.fromkeys, lambda _: None).close()
    finally:
        other.kill()
        other.wait()
    log.join("live", dict.fromkeys, lambda _: None).close()


def test_a_closed_producer_takes_nothing_and_lets_another_write(log: Log) -> None:
    first = log.producer()
    first.close()
    first.close()
    with pytest.raises(ProfilehouseError, match=r"takes no more records.*closed"):
        first.append(b"key", b"value")
    write(log, [(b"key", b"value")])
    assert sum(log.ends().values()) == 1


def only_segment(folder: Path) -> Path:
    (path,) = folder.glob("partition-*/*.log")
    return path


@given(torn=st.integers(1, 200), noise=st.binary(max_size=100))
def test_a_torn_tail_is_never_read_and_cut_by_the_next_writer(
    tmp_path_factory: pytest.TempPathFactory, torn: int, noise: bytes
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = FileLog(folder, partitions=1)
    write(log, [(b"key", b"one"), (b"key", b"two")])
    block = encode(2, 0, [b"never", b"acknowledged"] * 10)
    with only_segment(folder).open("ab") as file:
        file.write(block[: min(torn, len(block) - 1)] + noise)

    assert read_all(log) == {0: [b"one", b"two"]}
    write(log, [(b"key", b"three")])
    assert read_all(log) == {0: [b"one", b"two", b"three"]}


def test_a_whole_block_that_was_not_acknowledged_is_kept(folder: Path) -> None:
    log = FileLog(folder, partitions=1)
    write(log, [(b"key", b"one")])
    with only_segment(folder).open("ab") as file:
        file.write(encode(1, 0, [b"two", b"three"]))

    assert read_all(log) == {0: [b"one"]}
    write(log, [(b"key", b"four")])
    assert read_all(log) == {0: [b"one", b"two", b"three", b"four"]}


def test_ends_lost_with_the_power_are_found_again(folder: Path) -> None:
    log = FileLog(folder, partitions=1)
    write(log, [(b"key", b"%d" % n) for n in range(10)])
    (folder / "ends").unlink()

    later = FileLog(folder)
    with later.consumer({0: 7}) as consumer:
        assert read_until(consumer, {0: 10}) == {0: [b"7", b"8", b"9"]}
    assert later.ends() == {0: 10}


@pytest.mark.parametrize("place", [0, 10, 30, 45, -1])
def test_damage_of_what_was_durable_is_told_to_readers_and_writers(
    folder: Path, place: int
) -> None:
    log = FileLog(folder, partitions=1)
    write(log, [(b"key", b"a record"), (b"key", b"another")])
    write(log, [(b"key", b"a third")])
    path = only_segment(folder)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)

    with pytest.raises(ProfilehouseError, match=r"damaged at offset [02]: .* backup"):
        read_all(log)
    with pytest.raises(ProfilehouseError, match=r"damaged at offset [02]: .* backup"):
        log.producer()
    assert path.read_bytes() == data


def test_a_lost_segment_is_told(folder: Path) -> None:
    log = FileLog(folder, partitions=1, segment_bytes=100)
    for n in range(30):
        write(log, [(b"key", b"%d" % n * 20)])
    segments = sorted(folder.glob("partition-0/*.log"))
    segments[2].unlink()
    with pytest.raises(ProfilehouseError, match="damaged at offset"):
        read_all(log)


def test_any_offset_is_found_in_many_segments(folder: Path) -> None:
    log = FileLog(folder, partitions=1, segment_bytes=300)
    with log.consumer({0: None}) as early:
        with log.producer() as producer:
            for n in range(200):
                producer.append(b"key", b"%d" % n)
                if n % 3 == 0:
                    producer.flush()
        whole = [b"%d" % n for n in range(200)]
        assert len(list(folder.glob("partition-0/*.log"))) > 5
        assert read_until(early, {0: 200}) == {0: whole}
    for begin in range(200):
        with log.consumer({0: begin}) as consumer:
            assert read_until(consumer, {0: 200}) == {0: whole[begin:]}


def test_flushes_and_full_buffers_of_many_threads_lose_nothing(folder: Path) -> None:
    log = FileLog(folder, partitions=2, segment_bytes=20_000)
    with log.producer() as producer:

        def work(user: int) -> None:
            for n in range(10_000):
                producer.append(b"user-%d" % user, b"user-%d %d" % (user, n))
                if user < 2 and n % 50 == 0:
                    producer.flush()

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
    assert len(list(folder.glob("partition-*/*.log"))) > 20
    users = numbers_by_user(read_all(FileLog(folder)))
    assert users == {b"user-%d" % user: list(range(10_000)) for user in range(6)}


def test_records_removed_unread_are_told(folder: Path) -> None:
    log = FileLog(folder, partitions=1, segment_bytes=100)
    for n in range(10):
        write(log, [(b"key", b"%d" % n * 100)])
    sorted(folder.glob("partition-0/*.log"))[0].unlink()
    with pytest.raises(ProfilehouseError, match="from offset 0, but is kept from 1 only"):
        log.consumer({0: 0})
    with log.consumer({0: None}) as consumer:
        assert consumer.read(1, 1)[0].offsets == range(1, 2)


FILLS_ITS_DISK = """
import resource
from profilehouse.errors import ProfilehouseError
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
producer = log.producer()
try:
    for n in range(10_000):
        producer.append(b"key", b"user-0 %d" % n)
        if n % 10 == 9:
            producer.flush()
            acknowledged = n
except ProfilehouseError as error:
    print(acknowledged)
    print(error)
"""


def test_a_full_disk_is_told_and_nothing_acknowledged_is_lost(folder: Path) -> None:
    log = FileLog(folder)
    writer = start(folder, FILLS_ITS_DISK)
    told, _ = writer.communicate(timeout=60)
    acknowledged, error = told.splitlines()
    assert "takes no more records (OSError" in error
    write(log, [(b"key", b"user-0 10000")])
    numbers = numbers_by_user(read_all(log))[b"user-0"]
    assert numbers == [*range(len(numbers) - 1), 10_000]
    assert len(numbers) - 1 > int(acknowledged) > 100


def test_a_log_made_by_many_at_once_is_one(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        logs = list(pool.map(lambda _: FileLog(folder), range(8)))
    assert len({log.topic_id for log in logs}) == 1
    write(logs[0], numbered(range(100)))
    assert read_all(logs[1]) == read_all(logs[7])


def test_a_log_made_anew_has_another_id(tmp_path: Path) -> None:
    first, other = FileLog(tmp_path / "one"), FileLog(tmp_path / "other")
    assert first.topic_id != other.topic_id
    assert FileLog(tmp_path / "one", partitions=9).topic_id == first.topic_id
    assert FileLog(tmp_path / "one", partitions=9).partitions == first.partitions == 4


def spoil(path: Path) -> None:
    path.mkdir()
    (path / "log.json").write_text("{}")


def renew(path: Path) -> None:
    path.mkdir()
    (path / "log.json").write_text('{"format":2,"topic_id":"x","partitions":1}')


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.write_text("a file"), "cannot be opened"),
        (spoil, "not the description of an event log"),
        (renew, "format 2 is not one this version reads"),
    ],
)
def test_a_folder_that_holds_no_log_is_refused_in_one_line(
    folder: Path, make: Callable[[Path], object], told: str
) -> None:
    make(folder)
    with pytest.raises(ProfilehouseError, match=told) as caught:
        FileLog(folder)
    assert "\n" not in str(caught.value)


def test_the_files_are_the_users_own(log: Log, folder: Path) -> None:
    write(log, [(b"key", b"value")])
    assert {path.stat().st_mode & 0o077 for path in [folder, *folder.rglob("*")]} == {0}


def test_the_platform_opens_the_log_that_the_settings_name(tmp_path: Path) -> None:
    settings = load_settings(log=f"file:{tmp_path / 'log'}")
    with Platform(settings).log() as log:
        write(log, [(b"key", b"value")])
    assert sum(Platform(settings).log().ends().values()) == 1


@pytest.mark.parametrize(
    "wrong", ["", "file:", "file:/", "data/log", "kafka://host/topic", "kafka://host:9092",
              "kafka://host:9092/a/b", "kafka://host:9092,/topic"]
)  # fmt: skip
def test_a_wrong_log_setting_is_refused(wrong: str) -> None:
    with pytest.raises(ProfilehouseError, match=r"PROFILEHOUSE_LOG is .* must be file:FOLDER or"):
        load_settings(log=wrong)


def test_good_log_settings_are_taken() -> None:
    for good in ("file:data/log", "file:/var/log/x", "kafka://a:1,b.c-d:2/my.events_1-x"):
        assert load_settings(log=good).log == good
