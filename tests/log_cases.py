"""What every event log must do, wherever it lies. Subclasses give the fixture `log`, empty."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import pairwise
from threading import Thread

import pytest

from profilehouse.errors import ProfilehouseError
from profilehouse.log import MAX_RECORD_BYTES, Begin, Consumer, Log, check_topic, partition_of

SECONDS = 30.0
Records = dict[int, list[bytes]]


def from_start(log: Log) -> Begin:
    return dict.fromkeys(range(log.partitions))


def write(log: Log, records: Iterable[tuple[bytes, bytes]]) -> None:
    with log.producer() as producer:
        for key, value in records:
            producer.append(key, value)
        producer.flush()


def numbered(numbers: range, users: int = 10) -> list[tuple[bytes, bytes]]:
    """Records that tell their key and their place in the order."""
    return [(b"user-%d" % (n % users), b"user-%d %d" % (n % users, n)) for n in numbers]


def read_until(consumer: Consumer, ends: Mapping[int, int], limit: int = 1000) -> Records:
    """All values by partition up to the ends, in the order in which they were returned.

    Asserts what holds of every batch: no more than asked, no holes, nothing twice.
    """
    values: Records = {}
    following: dict[int, int] = {}
    deadline = time.monotonic() + SECONDS
    while any(following.get(p, 0) < end for p, end in ends.items()):
        assert time.monotonic() < deadline, (following, ends)
        batches = consumer.read(limit, 0.2)
        assert sum(len(batch.values) for batch in batches) <= limit
        for batch in batches:
            assert len(batch.values) == len(batch.offsets) == len(batch.received_at) > 0
            expected = following.get(batch.partition, batch.offsets[0])
            assert list(batch.offsets) == list(range(expected, batch.next_offset))
            following[batch.partition] = batch.next_offset
            values.setdefault(batch.partition, []).extend(batch.values)
    return values


def read_all(log: Log) -> Records:
    with log.consumer(from_start(log)) as consumer:
        return read_until(consumer, log.ends())


def numbers_by_user(values: Records) -> dict[bytes, list[int]]:
    numbers: dict[bytes, list[int]] = {}
    for record in (record for records in values.values() for record in records):
        user, number = record.split(b" ")
        numbers.setdefault(user, []).append(int(number))
    return numbers


class LogCases:
    def test_records_come_back_once_and_in_order_by_key(self, log: Log) -> None:
        write(log, numbered(range(5000)))
        users = numbers_by_user(read_all(log))
        assert users == {b"user-%d" % user: list(range(user, 5000, 10)) for user in range(10)}

    def test_a_key_goes_to_the_partition_that_its_hash_tells(self, log: Log) -> None:
        keys = [b"", b"a", b"ab", b"abc", b"abcd", "Zoë".encode(), b"\xff\x00"]
        keys += [b"%d" % n for n in range(100)]
        write(log, [(key, b"of " + key) for key in keys])
        for partition, values in read_all(log).items():
            assert {partition_of(value[3:], log.partitions) for value in values} == {partition}

    def test_any_bytes_are_a_value_even_none(self, log: Log) -> None:
        values = [b"", b"\x00\xff" * 1000, b"{", "é".encode(), bytes(range(256)), b""]
        write(log, [(b"key", value) for value in values])
        assert list(read_all(log).values()) == [values]

    def test_the_longest_record_fits_and_a_longer_one_is_refused(self, log: Log) -> None:
        with log.producer() as producer:
            producer.append(b"key", bytes(MAX_RECORD_BYTES - 3))
            with pytest.raises(ProfilehouseError, match=r"900001 bytes is too long.* 900000"):
                producer.append(b"key", bytes(MAX_RECORD_BYTES - 2))
        assert [len(v) for values in read_all(log).values() for v in values] == [899_997]

    def test_a_new_log_is_empty_and_its_ends_are_zero(self, log: Log) -> None:
        assert log.ends() == dict.fromkeys(range(log.partitions), 0)
        with log.consumer(from_start(log)) as consumer:
            assert consumer.read(100, 0.1) == []

    def test_ends_tell_the_next_offsets(self, log: Log) -> None:
        write(log, numbered(range(100)))
        values = read_all(log)
        assert sum(log.ends().values()) == 100
        assert {p: end for p, end in log.ends().items() if end} == {
            p: len(records) for p, records in values.items()
        }

    def test_records_tell_when_the_log_took_them(self, log: Log) -> None:
        before = time.time_ns() // 1_000_000
        write(log, numbered(range(10)))
        after = time.time_ns() // 1_000_000
        with log.consumer(from_start(log)) as consumer:
            batches = consumer.read(100, SECONDS)
        times = [at // 1000 for batch in batches for at in batch.received_at]
        assert times
        assert before <= min(times) <= max(times) <= after

    def test_reading_begins_at_any_offset(self, log: Log) -> None:
        write(log, [(b"key", b"%d" % n) for n in range(300)])
        partition = partition_of(b"key", log.partitions)
        for begin in (0, 1, 150, 299):
            with log.consumer({partition: begin}) as consumer:
                values = read_until(consumer, {partition: 300}, limit=70)
            assert values == {partition: [b"%d" % n for n in range(begin, 300)]}

    def test_reading_at_the_end_waits_for_what_comes(self, log: Log) -> None:
        write(log, [(b"key", b"old")])
        with log.consumer(dict(log.ends())) as consumer, log.producer() as producer:
            assert consumer.read(10, 0.1) == []
            producer.append(b"key", b"new")
            producer.flush()
            assert [batch.values for batch in consumer.read(10, SECONDS)] == [[b"new"]]

    def test_an_offset_past_the_end_is_refused(self, log: Log) -> None:
        write(log, [(b"key", b"value")])
        partition = partition_of(b"key", log.partitions)
        with pytest.raises(ProfilehouseError, match="from offset 2, but ends at 1"):
            log.consumer({partition: 2})

    def test_only_the_wanted_partitions_are_read(self, log: Log) -> None:
        write(log, numbered(range(100)))
        whole = read_all(log)
        for partition, values in whole.items():
            with log.consumer({partition: None}) as consumer:
                assert read_until(consumer, {partition: len(values)}) == {partition: values}

    def test_readers_do_not_disturb_each_other(self, log: Log) -> None:
        write(log, numbered(range(1000)))
        ends = log.ends()
        with log.consumer(from_start(log)) as one, log.consumer(from_start(log)) as other:
            assert read_until(one, ends, limit=7) == read_until(other, ends, limit=400)

    def test_a_paused_partition_goes_on_where_it_stopped(self, log: Log) -> None:
        write(log, numbered(range(1000)))
        ends = log.ends()
        stopped = next(iter(read_all(log)))
        with log.consumer(from_start(log)) as consumer:
            early = consumer.read(10, SECONDS)
            consumer.pause([stopped])
            others: list[int] = []
            for _ in range(20):
                others += [batch.partition for batch in consumer.read(1000, 0.05)]
            assert stopped not in others
            assert len(set(others)) >= 1
            consumer.resume([stopped])
            begin = sum(len(batch.values) for batch in early if batch.partition == stopped)
            values = read_until(consumer, {stopped: ends[stopped]})
        assert len(values[stopped]) == ends[stopped] - begin

    def test_reading_keeps_up_with_writing(self, log: Log) -> None:
        def write_slowly() -> None:
            with log.producer() as producer:
                for first in range(0, 3000, 30):
                    for key, value in numbered(range(first, first + 30)):
                        producer.append(key, value)
                    producer.flush()

        writer = Thread(target=write_slowly)
        with log.consumer(from_start(log)) as consumer:
            writer.start()
            count, values = 0, Records()
            deadline = time.monotonic() + SECONDS
            while count < 3000 and time.monotonic() < deadline:
                for batch in consumer.read(100, 0.1):
                    values.setdefault(batch.partition, []).extend(batch.values)
                    count += len(batch.values)
        writer.join()
        users = numbers_by_user(values)
        assert users == {b"user-%d" % user: list(range(user, 3000, 10)) for user in range(10)}

    def test_threads_share_a_producer(self, log: Log) -> None:
        with log.producer() as producer:

            def work(user: int) -> None:
                for number in range(200):
                    producer.append(b"user-%d" % user, b"user-%d %d" % (user, number))
                    if number % 20 == 19:
                        producer.flush()

            threads = [Thread(target=work, args=(user,)) for user in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            users = numbers_by_user(read_all(log))
        assert users == {b"user-%d" % user: list(range(200)) for user in range(5)}

    def test_a_closed_producer_has_flushed(self, log: Log) -> None:
        with log.producer() as producer:
            producer.append(b"key", b"value")
        assert list(read_all(log).values()) == [[b"value"]]

    def test_a_member_of_a_group_begins_where_it_says_and_releases_at_the_end(
        self, log: Log
    ) -> None:
        write(log, [(b"key", b"%d" % n) for n in range(10)])
        partition = partition_of(b"key", log.partitions)
        taken: list[int] = []
        released: list[int] = []

        def take(partitions: Iterable[int]) -> Begin:
            taken.extend(partitions)
            return {p: 6 if p == partition else None for p in partitions}

        with log.join("readers", take, released.extend) as consumer:
            values = read_until(consumer, {partition: 10})
            assert not released
        assert values == {partition: [b"6", b"7", b"8", b"9"]}
        assert sorted(taken) == sorted(released) == list(range(log.partitions))

    def test_an_error_of_the_member_comes_out(self, log: Log) -> None:
        def take(partitions: Iterable[int]) -> Begin:
            raise ProfilehouseError("the store is not there")

        def read() -> None:
            with log.join("readers", take, lambda _: None) as consumer:
                deadline = time.monotonic() + SECONDS
                while time.monotonic() < deadline:
                    consumer.read(10, 0.1)

        with pytest.raises(ProfilehouseError, match="the store is not there"):
            read()

    def test_positions_in_another_log_are_refused(self, log: Log) -> None:
        check_topic(log, log.topic_id, "the store")
        with pytest.raises(ProfilehouseError, match=r"the store: .* created anew; .* rebuild"):
            check_topic(log, "another", "the store")

    def test_batches_of_a_partition_follow_each_other(self, log: Log) -> None:
        write(log, numbered(range(500), users=1))
        partition = partition_of(b"user-0", log.partitions)
        with log.consumer({partition: 0}) as consumer:
            batches = []
            while not batches or batches[-1].next_offset < 500:
                batches += consumer.read(33, SECONDS)
        assert all(one.next_offset == other.offsets[0] for one, other in pairwise(batches))
        assert len(batches) >= 500 // 33
