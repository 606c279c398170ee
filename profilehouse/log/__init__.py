"""The event log: records that are kept in order, by partition, and read by position.

Belongs here: what every log promises, and opening the one a URL names. Does not belong here: what
a record means (events/), or what is done with it (stream/).

A record is bytes. Its position is (topic id, partition, offset): offsets of a partition grow and
are never used twice, and a log that was made anew has another topic id. Readers keep their
positions themselves, with what they computed; the log does not know how far they are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import msgspec

from profilehouse.errors import ForeignTopic, ProfilehouseError

MAX_RECORD_BYTES = 900_000
"""Key and value together; what Kafka takes by default, less what its framing adds."""

Begin = Mapping[int, int | None]
"""Partition -> offset of the first record to read; None: the first that is kept."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one partition, in the order of the log: three sequences of the same length.

    Attributes:
        partition: of all of them.
        offsets: ascending; on Kafka some may be missing.
        received_at: when the log took the record, in microseconds since 1970, UTC.
        values: the records as they were appended.
    """

    partition: int
    offsets: Sequence[int]
    received_at: Sequence[int]
    values: Sequence[bytes]

    @property
    def next_offset(self) -> int:
        """The position after this batch."""
        return self.offsets[-1] + 1


class Closing(Protocol):
    """What is closed at the end of a `with` block."""

    def close(self) -> None:
        """Let go of what is held."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Producer(Closing, Protocol):
    """Appends records. Safe to use from several threads."""

    def append(self, key: bytes, value: bytes) -> None:
        """Hand a record over; it is safe once a `flush` that began later has returned.

        Records of one key go to one partition and stay in order. Waits while too much is on its
        way.

        Raises:
            ProfilehouseError: if the record is longer than MAX_RECORD_BYTES, or the log failed.
        """
        ...

    def flush(self) -> None:
        """Return once all that was appended before is durable; many appends share one flush.

        Raises:
            ProfilehouseError: if that cannot be had. Which records since the last good flush are
                in the log is then unknown: append them again, readers know them by their ids.
        """
        ...

    def close(self) -> None:
        """Flush and let go."""
        ...


class Consumer(Closing, Protocol):
    """Reads records, each partition in order and without holes. For one thread."""

    def read(self, limit: int, timeout: float) -> list[Batch]:
        """The next records, at most one batch for each partition; reading moves on past them.

        Args:
            limit: records in all batches together, at most.
            timeout: seconds to wait for the first record; what is there is returned at once.

        Raises:
            ProfilehouseError: if records are damaged or were removed before they were read.
        """
        ...

    def pause(self, partitions: Collection[int]) -> None:
        """Return no records of these partitions until they are resumed."""
        ...

    def resume(self, partitions: Collection[int]) -> None:
        """Go on with paused partitions where they stopped."""
        ...

    def close(self) -> None:
        """Let go of the partitions."""
        ...


class Log(Closing, Protocol):
    """A log that was opened."""

    @property
    def topic_id(self) -> str:
        """Given when the log was made; the part of a position that tells two logs apart."""
        ...

    @property
    def partitions(self) -> int:
        """Their number; they are numbered from 0."""
        ...

    def ends(self) -> dict[int, int]:
        """The offset that the next record of each partition will get, for telling the lag."""
        ...

    def producer(self) -> Producer:
        """Begin to append.

        Raises:
            ProfilehouseError: if this log takes one writing process and there is one.
        """
        ...

    def consumer(self, begin: Begin) -> Consumer:
        """Read these partitions from these offsets, whoever else reads them.

        Raises:
            ProfilehouseError: if a partition does not hold its offset.
        """
        ...

    def join(
        self,
        group: str,
        take: Callable[[Sequence[int]], Begin],
        release: Callable[[Sequence[int]], None],
    ) -> Consumer:
        """Read the partitions that fall to this process, shared with the others of a group.

        Kafka spreads the partitions; the file log gives all of them to the group's first process
        and refuses others. Both callbacks run inside `read` and `close`; what they raise comes out
        there.

        Args:
            group: name of the readers that share the partitions.
            take: gets partitions that came to this process, tells where to begin.
            release: gets partitions that leave it. They go to others when it returns; after a
                pause too long they have gone already, so what it stores must be conditional.

        Raises:
            ProfilehouseError: if the group shares nothing and has its process.
        """
        ...


def open_log(url: str) -> Log:
    """The log that a URL names, as `settings.log` does; a file log is made if there is none.

    Raises:
        ProfilehouseError: if it cannot be opened.
    """
    kind, _, place = url.partition(":")
    if kind == "file":
        from pathlib import Path  # noqa: PLC0415

        from profilehouse.log.file import FileLog  # noqa: PLC0415

        return FileLog(Path(place))
    try:
        from profilehouse.log.kafka import KafkaLog  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ProfilehouseError(
            f"{url}: {error}; install Kafka's client: pip install 'profilehouse[kafka]'"
        ) from error

    brokers, _, topic = place.removeprefix("//").partition("/")
    return KafkaLog(brokers, topic)


def check_topic(log: Log, stored: str, holder: str) -> None:
    """Refuse positions in another log than this one.

    Args:
        log: the log to be read.
        stored: the topic id of the stored positions.
        holder: who stored them, for the error.

    Raises:
        ProfilehouseError: if the ids differ.
    """
    if stored != log.topic_id:
        raise ForeignTopic(holder, stored, log.topic_id, "rebuild from the lake")


def check_begin(where: str, partition: int, begin: int, first: int, end: int) -> None:
    """Refuse an offset that a partition does not hold.

    Args:
        where: the log, for the error.
        partition: of the offset.
        begin: the offset to read first.
        first: offset of the first record that is kept.
        end: offset of the next record to come.

    Raises:
        ProfilehouseError: if it is below the first or above the end.
    """
    if begin < first:
        raise ProfilehouseError(
            f"{where}: partition {partition} is to be read from offset {begin}, but is kept from"
            f" {first} only: records were removed unread; restore them, or rebuild from the lake"
        )
    if begin > end:
        raise ProfilehouseError(
            f"{where}: partition {partition} is to be read from offset {begin}, but ends at {end}:"
            " records that were read are gone; restore them, or rebuild from the lake"
        )


def check_size(key: bytes, value: bytes) -> None:
    """Refuse a record that is too long.

    Raises:
        ProfilehouseError: if key and value have more than MAX_RECORD_BYTES.
    """
    if len(key) + len(value) > MAX_RECORD_BYTES:
        raise ProfilehouseError(
            f"a record of {len(key) + len(value)} bytes is too long for the log: at most"
            f" {MAX_RECORD_BYTES}; refuse it where it is taken in"
        )


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, as Kafka's own clients choose it."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """MurmurHash2 of 32 bits with Kafka's seed, unsigned.

    Source: Austin Appleby's MurmurHash2, as in org.apache.kafka.common.utils.Utils.murmur2.
    """
    mask, factor = 0xFFFFFFFF, 0x5BD1E995
    whole = len(data) & ~3
    state = 0x9747B28C ^ len(data)
    for (word,) in struct.iter_unpack("<I", data[:whole]):
        mixed = word * factor & mask
        mixed = (mixed ^ mixed >> 24) * factor & mask
        state = (state * factor & mask) ^ mixed
    if whole < len(data):
        state = (state ^ int.from_bytes(data[whole:], "little")) * factor & mask
    state = (state ^ state >> 13) * factor & mask
    return state ^ state >> 15


def key_of(record: bytes) -> bytes:
    """The user_id of an event, else its anonymous_id; nothing where there is neither.

    So all events of a user are in one partition, in order. What has no key becomes a dead letter
    wherever it is.
    """
    try:
        ids = _DECODER.decode(record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return b""
    found = ids.anonymous_id if ids.user_id is None else ids.user_id
    return found.encode() if isinstance(found, str) else b""


class _Ids(msgspec.Struct):
    user_id: Any = None
    anonymous_id: Any = None


_DECODER = msgspec.json.Decoder(_Ids)
