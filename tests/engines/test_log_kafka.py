"""The event log in Kafka: what every log does, and what brokers, topics and groups do to it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event, Thread

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from profilehouse.errors import ProfilehouseError
from profilehouse.log import Begin, Consumer, Log, Producer, check_topic, open_log
from services.kafka import KafkaBroker
from services.process import free_port
from tests.log_cases import (
    SECONDS,
    LogCases,
    Records,
    from_start,
    numbered,
    numbers_by_user,
    read_all,
    read_until,
    write,
)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    with KafkaBroker(tmp_path_factory.mktemp("kafka")) as running:
        yield running


@pytest.fixture
def topic(broker: KafkaBroker) -> str:
    name = f"events-{uuid.uuid4().hex[:8]}"
    broker.create_topic(name)
    return name


def opened(broker: KafkaBroker, topic: str) -> Log:
    return open_log(broker.url(topic))


@pytest.fixture
def log(broker: KafkaBroker, topic: str) -> Log:
    return opened(broker, topic)


class TestKafkaLog(LogCases):
    pass


class Member:
    """A process of a group that keeps what it read and its positions in one place, as sinks do."""

    def __init__(self, log: Log, store: dict[int, list[bytes]]) -> None:
        self.store = store
        self.held: set[int] = set()
        self.unsaved: Records = {}
        self.consumer: Consumer = log.join("live", self.take, self.release)

    def take(self, partitions: Sequence[int]) -> Begin:
        self.held |= set(partitions)
        return {p: len(self.store.get(p, [])) for p in partitions}

    def release(self, partitions: Sequence[int]) -> None:
        self.save()
        self.held -= set(partitions)

    def save(self) -> None:
        for partition, values in self.unsaved.items():
            self.store.setdefault(partition, []).extend(values)
        self.unsaved = {}

    def step(self) -> None:
        for batch in self.consumer.read(20, 0.05):
            assert batch.partition in self.held
            self.unsaved.setdefault(batch.partition, []).extend(batch.values)


def until(done: Callable[[], bool], *members: Member) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline
        for member in members:
            member.step()


def test_members_share_the_partitions_and_hand_them_over_without_loss(log: Log) -> None:
    store: Records = {}
    write(log, numbered(range(1000)))
    one = Member(log, store)
    until(lambda: len(one.held) == 4, one)
    one.step()
    other = Member(log, store)
    until(lambda: len(one.held) == len(other.held) == 2, one, other)
    write(log, numbered(range(1000, 2000)))
    for _ in range(10):
        one.step()
        other.step()
    other.consumer.close()
    until(lambda: len(one.held) == 4, one)
    until(lambda: sum(map(len, [*store.values(), *one.unsaved.values()])) >= 2000, one)
    one.consumer.close()

    users = numbers_by_user(store)
    assert users == {b"user-%d" % user: list(range(user, 2000, 10)) for user in range(10)}


def test_what_was_acknowledged_survives_kills_of_the_broker(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    seen: Records = {}
    stop = Event()

    def append(producer: Producer) -> None:
        first = 0
        while not stop.is_set():
            for key, value in numbered(range(first, first + 50)):
                producer.append(key, value)
            producer.flush()
            acknowledged.extend(range(first, first + 50))
            first += 50

    def follow(consumer: Consumer, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < deadline
            for batch in consumer.read(1000, 0.1):
                seen.setdefault(batch.partition, []).extend(batch.values)

    with KafkaBroker(tmp_path) as broker:
        broker.create_topic("events")
        log = opened(broker, "events")
        with log.producer() as producer, log.consumer(from_start(log)) as consumer:
            writer = Thread(target=append, args=(producer,))
            writer.start()
            try:
                for _ in range(2):
                    more = len(acknowledged) + 1000
                    follow(consumer, lambda more=more: len(acknowledged) > more)
                    broker.kill()
                    broker.start()
                    more = len(acknowledged) + 1000
                    follow(consumer, lambda more=more: len(acknowledged) > more)
            finally:
                stop.set()
                writer.join()
            follow(consumer, lambda: sum(map(len, seen.values())) >= len(acknowledged))
        values = read_all(log)
    users = numbers_by_user(values)
    assert users == {
        b"user-%d" % user: list(range(user, len(acknowledged), 10)) for user in range(10)
    }
    assert seen == values


def test_a_topic_made_anew_is_another_log(broker: KafkaBroker, topic: str, log: Log) -> None:
    broker.delete_topic(topic)
    broker.create_topic(topic)
    renewed = opened(broker, topic)
    assert renewed.topic_id != log.topic_id
    with pytest.raises(ProfilehouseError, match="created anew"):
        check_topic(renewed, log.topic_id, "the store")


def test_a_topic_made_anew_is_told_to_who_reads_it(
    broker: KafkaBroker, topic: str, log: Log
) -> None:
    write(log, numbered(range(100)))
    with log.consumer(from_start(log)) as consumer:
        read_until(consumer, log.ends())
        broker.delete_topic(topic)
        broker.create_topic(topic)
        deadline = time.monotonic() + SECONDS

        def read_on() -> None:
            while time.monotonic() < deadline:
                consumer.read(10, 0.1)

        with pytest.raises(ProfilehouseError, match=r"made anew|create the topic|are gone") as told:
            read_on()
    assert "\n" not in str(told.value)


def test_records_that_were_removed_unread_are_told(
    broker: KafkaBroker, topic: str, log: Log
) -> None:
    from confluent_kafka import TopicPartition  # noqa: PLC0415

    write(log, numbered(range(10), users=1))
    (partition,) = read_all(log)
    admin = AdminClient({"bootstrap.servers": broker.address})
    for deleted in admin.delete_records([TopicPartition(topic, partition, 5)]).values():
        deleted.result(SECONDS)
    with pytest.raises(ProfilehouseError, match="from offset 4, but is kept from 5 only"):
        log.consumer({partition: 4})
    with log.consumer({partition: None}) as consumer:
        assert consumer.read(10, SECONDS)[0].offsets[0] == 5


def test_a_topic_with_its_senders_times_is_refused(broker: KafkaBroker) -> None:
    admin = AdminClient({"bootstrap.servers": broker.address})
    admin.create_topics([NewTopic("sent", 1, 1)])["sent"].result(SECONDS)
    with pytest.raises(ProfilehouseError, match=r"set message\.timestamp\.type=LogAppendTime"):
        opened(broker, "sent")


def test_a_missing_topic_is_refused(broker: KafkaBroker) -> None:
    with pytest.raises(ProfilehouseError, match=r"kafka://.*/absent: .*; create the topic"):
        opened(broker, "absent")


def test_a_broker_that_does_not_answer_is_told() -> None:
    nobody = f"kafka://127.0.0.1:{free_port()}/events"
    begin = time.monotonic()
    with pytest.raises(ProfilehouseError, match="see that the brokers run") as told:
        open_log(nobody)
    assert "\n" not in str(told.value)
    assert time.monotonic() - begin < 2 * SECONDS
