"""The event log in Kafka: one topic whose records carry the time at which the broker took them.

Belongs here: how Kafka's client is set up and what its errors mean to us. Does not belong here:
creating topics, which is the operator's.

Appends are idempotent and acknowledged by all in-sync replicas. Offsets that Kafka keeps for a
group are neither read nor written: readers bring their positions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from profilehouse.errors import ProfilehouseError
from profilehouse.log import Batch, Begin, Closing, check_begin, check_size

_log = logging.getLogger(__name__)

_SECONDS_TO_ANSWER = 10.0
_SECONDS_TO_DELIVER = 60
_SECONDS_BETWEEN_CHECKS = 5.0
_SECONDS_UNTIL_LOST = 10
_LARGEST_READ = 100_000

_CLIENT = {"reconnect.backoff.max.ms": 1000, "logger": _log}
_PRODUCER = {
    "enable.idempotence": True,
    "acks": "all",
    "compression.type": "lz4",
    "partitioner": "murmur2",
    "linger.ms": 5,
    "delivery.timeout.ms": _SECONDS_TO_DELIVER * 1000,
    "delivery.report.only.error": True,
}
_CONSUMER = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "partition.assignment.strategy": "cooperative-sticky",
    "session.timeout.ms": _SECONDS_UNTIL_LOST * 1000,
    "fetch.wait.max.ms": 100,
    "fetch.queue.backoff.ms": 10,
}

_PASSING = frozenset(
    {
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError._MAX_POLL_EXCEEDED,
        KafkaError._NOENT,
        KafkaError._TRANSPORT,
    }
)
"""Errors that end by themselves: elections, restarts, and a reader that paused too long. _NOENT
is what a client says of partitions that have no leader at the moment."""


class KafkaLog(Closing):
    """A topic of a Kafka cluster."""

    def __init__(self, brokers: str, topic: str) -> None:
        """Look the topic up.

        Args:
            brokers: HOST:PORT[,HOST:PORT] of some of the cluster's brokers.
            topic: its name; it must exist, with message.timestamp.type=LogAppendTime.

        Raises:
            ProfilehouseError: if no broker answers, or the topic is missing or not as it must be.
        """
        self._name = f"kafka://{brokers}/{topic}"
        self._topic = topic
        self._client = {**_CLIENT, "bootstrap.servers": brokers}
        self._admin = AdminClient(self._client)
        described = self._ask(self._describe)
        self._topic_id = str(described.topic_id)
        self._partitions = len(described.partitions)
        self._check_time()

    @property
    def topic_id(self) -> str:
        """The topic's UUID."""
        return self._topic_id

    @property
    def partitions(self) -> int:
        """Their number when the log was opened."""
        return self._partitions

    def close(self) -> None:
        """Nothing is held that the garbage collector would not close."""

    def ends(self) -> dict[int, int]:
        """The end of each partition, asked from the brokers."""
        return self._offsets(range(self._partitions), OffsetSpec.latest())

    def producer(self) -> KafkaProducer:
        """Begin to append."""
        return KafkaProducer(self._client, self._topic, self._name)

    def consumer(self, begin: Begin) -> KafkaConsumer:
        """Read these partitions from these offsets.

        Raises:
            ProfilehouseError: if a partition does not hold its offset.
        """
        places = self._places(begin)
        consumer = self._consumer(f"profilehouse-{self._topic}")
        consumer.assign(places)
        return consumer

    def join(
        self,
        group: str,
        take: Callable[[Sequence[int]], Begin],
        release: Callable[[Sequence[int]], None],
    ) -> KafkaConsumer:
        """Read the partitions that Kafka gives to this member of the group, as they come and go."""
        consumer = self._consumer(group)
        consumer.subscribe(lambda partitions: self._places(take(partitions)), release)
        return consumer

    def _consumer(self, group: str) -> KafkaConsumer:
        watch = _Watch(self._described, self._topic_id, self._name)
        return KafkaConsumer(self._client, self._topic, self._name, group, watch)

    def _places(self, begin: Begin) -> list[TopicPartition]:
        """The offsets for Kafka's client, each of them held by its partition."""
        firsts = self._offsets(list(begin), OffsetSpec.earliest())
        ends = self._offsets(list(begin), OffsetSpec.latest())
        places = []
        for partition, offset in begin.items():
            if offset is not None:
                check_begin(self._name, partition, offset, firsts[partition], ends[partition])
            place = OFFSET_BEGINNING if offset is None else offset
            places.append(TopicPartition(self._topic, partition, place))
        return places

    def _offsets(self, partitions: Sequence[int], which: OffsetSpec) -> dict[int, int]:
        asked = {TopicPartition(self._topic, partition): which for partition in partitions}
        if not asked:
            return {}
        answers = self._ask(
            lambda: {
                place.partition: future.result(_SECONDS_TO_ANSWER)
                for place, future in self._admin.list_offsets(asked).items()
            }
        )
        return {partition: answer.offset for partition, answer in answers.items()}

    def _describe(self) -> Any:
        return self._described().result(_SECONDS_TO_ANSWER)

    def _described(self) -> Future[Any]:
        future: Future[Any] = self._admin.describe_topics(
            TopicCollection([self._topic]), request_timeout=_SECONDS_TO_ANSWER
        )[self._topic]
        return future

    def _check_time(self) -> None:
        resource = ConfigResource(ResourceType.TOPIC, self._topic)
        settings = self._ask(
            lambda: self._admin.describe_configs([resource])[resource].result(_SECONDS_TO_ANSWER)
        )
        if settings["message.timestamp.type"].value != "LogAppendTime":
            raise ProfilehouseError(
                f"{self._name}: its records carry their senders' times; set"
                " message.timestamp.type=LogAppendTime for this topic"
            )

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The brokers' answer, asked again while they say that they will know later."""
        deadline = time.monotonic() + _SECONDS_TO_ANSWER
        while True:
            try:
                return question()
            except (KafkaException, TimeoutError) as error:
                failure = _failure(error)
                if failure.code() not in _PASSING or time.monotonic() > deadline:
                    raise _told(self._name, failure) from error
                if failure.code() == KafkaError.FENCED_LEADER_EPOCH:
                    self._learn_leaders()
                time.sleep(0.2)

    def _learn_leaders(self) -> None:
        """Ask who leads the partitions now: after an election the client asks as before it."""
        with suppress(KafkaException):
            self._admin.list_topics(self._topic, timeout=_SECONDS_TO_ANSWER)


class KafkaProducer(Closing):
    """Appends to a topic; sends in the background, so a flush mostly waits for the last batch."""

    def __init__(self, client: dict[str, Any], topic: str, name: str) -> None:
        """Use KafkaLog.producer."""
        self._topic = topic
        self._name = name
        self._failures: list[KafkaError] = []
        self._producer = Producer({**client, **_PRODUCER, "on_delivery": self._on_failure})

    def append(self, key: bytes, value: bytes) -> None:
        """Send a record; waits while 100,000 records are on their way."""
        check_size(key, value)
        while True:
            try:
                self._producer.produce(self._topic, value, key)
            except BufferError:
                self._producer.poll(0.1)
                self._check()
            except KafkaException as error:
                raise _told(self._name, _failure(error)) from error
            else:
                return

    def flush(self) -> None:
        """Return once all in-sync replicas have what was appended."""
        deadline = time.monotonic() + _SECONDS_TO_DELIVER + 5
        while self._producer.flush(0.5):
            self._check()
            if time.monotonic() > deadline:
                raise _told(self._name, KafkaError(KafkaError._MSG_TIMED_OUT))
        self._check()

    def close(self) -> None:
        """Flush; what cannot be delivered is given up."""
        try:
            self.flush()
        finally:
            self._producer.purge()
            self._producer.close()

    def _on_failure(self, failure: KafkaError | None, _: Message) -> None:
        if failure is not None:
            self._failures.append(failure)

    def _check(self) -> None:
        if self._failures:
            failures, self._failures = self._failures, []
            raise _told(self._name, failures[0], f"{len(failures)} records were not taken: ")


class KafkaConsumer(Closing):
    """Reads partitions of a topic."""

    def __init__(
        self, client: dict[str, Any], topic: str, name: str, group: str, watch: _Watch
    ) -> None:
        """Use KafkaLog.consumer or join."""
        self._consumer = Consumer({**client, **_CONSUMER, "group.id": group})
        self._topic = topic
        self._name = name
        self._watch = watch
        self._next: dict[int, int] = {}

    def assign(self, places: list[TopicPartition]) -> None:
        """Read these partitions, and no others."""
        self._consumer.assign(places)
        self._begin(places)

    def subscribe(
        self,
        take: Callable[[Sequence[int]], list[TopicPartition]],
        release: Callable[[Sequence[int]], None],
    ) -> None:
        """Read the partitions that the group's coordinator gives to this member."""

        def taken(consumer: Consumer, came: list[TopicPartition]) -> None:
            if came:
                places = take(sorted(place.partition for place in came))
                consumer.incremental_assign(places)
                self._begin(places)

        def left(consumer: Consumer, went: list[TopicPartition]) -> None:
            if went:
                partitions = sorted(place.partition for place in went)
                for partition in partitions:
                    self._next.pop(partition, None)
                try:
                    release(partitions)
                finally:
                    consumer.incremental_unassign(went)

        self._consumer.subscribe([self._topic], on_assign=taken, on_revoke=left, on_lost=left)

    def read(self, limit: int, timeout: float) -> list[Batch]:
        """The next records; those that are here already, else waits for some."""
        self._watch.look()
        limit = min(limit, _LARGEST_READ)
        messages = self._consumer.consume(limit, 0)
        if not messages:
            first = self._consumer.poll(timeout)
            if first is None:
                return []
            messages = [first]
            if limit > 1:
                messages += self._consumer.consume(limit - 1, 0)
        by_partition: dict[int, list[Message]] = {}
        for message in messages:
            if message.error() is not None:
                self._check(message.error())
                continue
            by_partition.setdefault(message.partition(), []).append(message)
        batches = (self._batch(*each) for each in by_partition.items())
        return [batch for batch in batches if batch is not None]

    def pause(self, partitions: Collection[int]) -> None:
        """Fetch nothing of these until they are resumed."""
        self._consumer.pause(self._held(partitions))

    def resume(self, partitions: Collection[int]) -> None:
        """Fetch these again."""
        self._consumer.resume(self._held(partitions))

    def close(self) -> None:
        """Release the partitions and leave the group."""
        self._consumer.close()

    def _held(self, partitions: Collection[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, each) for each in partitions if each in self._next]

    def _begin(self, places: Sequence[TopicPartition]) -> None:
        for place in places:
            self._next[place.partition] = max(place.offset, 0)

    def _batch(self, partition: int, messages: list[Message]) -> Batch | None:
        """The messages as a batch; None if there is nothing new in them.

        What was fetched before the partition went, or came back elsewhere, is left out.
        """
        expected = self._next.get(partition)
        if expected is None:
            return None
        offsets = [message.offset() for message in messages]
        if offsets[0] < expected:
            messages = [message for message in messages if message.offset() >= expected]
            offsets = [message.offset() for message in messages]
        if not messages:
            return None
        self._next[partition] = offsets[-1] + 1
        times = [1000 * message.timestamp()[1] for message in messages]
        return Batch(partition, offsets, times, [message.value() for message in messages])

    def _check(self, failure: KafkaError) -> None:
        """Go on after what mends itself.

        After a pause too long the partitions come back through `release` and `take`.
        """
        if failure.code() not in _PASSING:
            raise _told(self._name, failure)


class _Watch:
    """Sees that a topic was deleted or made anew while it is read, within some seconds."""

    def __init__(self, describe: Callable[[], Future[Any]], topic_id: str, name: str) -> None:
        self._describe = describe
        self._topic_id = topic_id
        self._name = name
        self._asked: Future[Any] | None = None
        self._due = 0.0

    def look(self) -> None:
        """Take the last answer if it has come, and ask again if it is time to.

        Raises:
            ProfilehouseError: if the topic is not the one that was opened.
        """
        now = time.monotonic()
        if self._asked is not None and self._asked.done():
            asked, self._asked, self._due = self._asked, None, now + _SECONDS_BETWEEN_CHECKS
            self._compare(asked)
        elif self._asked is None and now >= self._due:
            self._asked = self._describe()

    def _compare(self, asked: Future[Any]) -> None:
        error = asked.exception()
        if error is None:
            now = str(asked.result().topic_id)
            if now != self._topic_id:
                raise ProfilehouseError(
                    f"{self._name}: the topic was made anew while it was read (it was"
                    f" {self._topic_id}, now it is {now}); rebuild from the lake"
                )
        elif isinstance(error, KafkaException):
            failure = _failure(error)
            if failure.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise _told(self._name, failure)


def _failure(error: BaseException) -> KafkaError:
    if isinstance(error, KafkaException) and isinstance(error.args[0], KafkaError):
        return error.args[0]
    return KafkaError(KafkaError._TIMED_OUT, str(error))


def _told(name: str, failure: KafkaError, before: str = "") -> ProfilehouseError:
    """The failure as a line for the operator."""
    remedies = {
        KafkaError.UNKNOWN_TOPIC_OR_PART: "create the topic with"
        " message.timestamp.type=LogAppendTime, or correct PROFILEHOUSE_LOG",
        KafkaError._AUTO_OFFSET_RESET: "records were removed before they were read, or are gone;"
        " restore them, or rebuild from the lake",
    }
    remedy = remedies.get(failure.code(), "see that the brokers run and PROFILEHOUSE_LOG is right")
    return ProfilehouseError(f"{name}: {before}{failure.str()}; {remedy}")
