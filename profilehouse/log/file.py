"""The embedded event log: segments on disk, one writing process, any number of reading ones.

Belongs here: files, locks and what a crash may leave of them. Does not belong here: how a block of
records looks as bytes (frames.py).

    FOLDER/log.json                  topic id and number of partitions, written once
    FOLDER/ends                      for each partition the offset up to which it is durable
    FOLDER/writer.lock               held by the process that writes
    FOLDER/group-NAME.lock           held by the process that reads for a group
    FOLDER/partition-0/0...042.log   blocks of records, the first record's offset in the name

A flush writes what was appended since the last one as one block for each partition, syncs the
files (fdatasync) and only then moves `ends`, which all processes share in memory. Readers stop at
`ends`: what they saw survives a loss of power, and they never see a block being written. After a
crash the next writer keeps the whole blocks at the tail and cuts off what follows them.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock

import msgspec

from profilehouse.errors import ProfilehouseError
from profilehouse.log import Batch, Begin, Closing, check_begin, check_size, partition_of
from profilehouse.log.frames import HEAD, Block, decode, decode_head, encode
from profilehouse.storage import sync_folder

PARTITIONS = 4
"""Of a log that is made; enough to keep the cores of one machine busy."""

_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600
_SEGMENT_BYTES = 64 * 2**20
_BLOCK_BYTES = 2**20
_BLOCK_RECORDS = 4096
_CHUNK_BYTES = 2**20
_SECONDS_BETWEEN_LOOKS = 0.002
_SECONDS_FOR_THE_LOCK = 2.0
_FORMAT = 1
_KEYS_REMEMBERED = 2**17


class _About(msgspec.Struct, frozen=True):
    format: int
    topic_id: str
    partitions: int


class FileLog(Closing):
    """A log in a folder of this machine. Not for network file systems: it needs real locks."""

    def __init__(
        self, folder: Path, partitions: int = PARTITIONS, segment_bytes: int = _SEGMENT_BYTES
    ) -> None:
        """Open a log, made if there is none.

        Args:
            folder: where it is.
            partitions: of a log that is made; one that exists keeps its number.
            segment_bytes: size from which on a flush begins the next file of a partition.

        Raises:
            ProfilehouseError: if the folder holds something else or cannot be used.
        """
        self._folder = folder
        self._segment_bytes = segment_bytes
        try:
            self._about = _open_or_make(folder, partitions)
            self._ends = _Ends(folder / "ends", self._about.partitions)
        except OSError as error:
            raise ProfilehouseError(
                f"{folder}: the event log cannot be opened ({error}); mend the folder or set"
                " PROFILEHOUSE_LOG"
            ) from error

    @property
    def topic_id(self) -> str:
        """Given when the log was made."""
        return self._about.topic_id

    @property
    def partitions(self) -> int:
        """Their number."""
        return self._about.partitions

    def close(self) -> None:
        """Nothing is held open that the garbage collector would not close."""

    def ends(self) -> dict[int, int]:
        """The durable end of each partition."""
        return dict(enumerate(self._ends))

    def producer(self) -> FileProducer:
        """Become the log's writer; waits two seconds for another one to end.

        Raises:
            ProfilehouseError: if another process, or another producer of this one, writes.
        """
        lock = _lock(self._folder / "writer.lock", _SECONDS_FOR_THE_LOCK)
        if lock is None:
            raise ProfilehouseError(
                f"{self._folder}: another process writes this event log, and one at a time may;"
                " stop it, or use Kafka"
            )
        try:
            tails = self._recover()
        except BaseException:
            os.close(lock)
            raise
        return FileProducer(tails, self._ends, lock, self._folder)

    def consumer(self, begin: Begin) -> FileConsumer:
        """Read these partitions from these offsets.

        Raises:
            ProfilehouseError: if a partition does not hold its offset.
        """
        return self._consumer(begin, lambda: None)

    def join(
        self,
        group: str,
        take: Callable[[Sequence[int]], Begin],
        release: Callable[[Sequence[int]], None],
    ) -> FileConsumer:
        """Read all partitions, as the only process of the group.

        Raises:
            ProfilehouseError: if the group has another process, or as `consumer` does.
        """
        lock = _lock(self._folder / f"group-{group}.lock", _SECONDS_FOR_THE_LOCK)
        if lock is None:
            raise ProfilehouseError(
                f"{self._folder}: another process reads this event log as {group!r}, and one at a"
                " time may; stop it, or use Kafka"
            )
        every = range(self.partitions)

        def leave() -> None:
            try:
                release(every)
            finally:
                os.close(lock)

        try:
            return self._consumer(take(every), leave)
        except BaseException:
            os.close(lock)
            raise

    def _consumer(self, begin: Begin, on_close: Callable[[], None]) -> FileConsumer:
        if any(offset is not None and offset > self._ends[p] for p, offset in begin.items()):
            self._recover_unwritten()
        readers = {p: self._reader(p, offset) for p, offset in begin.items()}
        return FileConsumer(readers, self._ends, on_close)

    def _path(self, partition: int) -> Path:
        return self._folder / f"partition-{partition}"

    def _reader(self, partition: int, offset: int | None) -> _Reader:
        path = self._path(partition)
        first = (_segments(path) or [0])[0]
        begin = first if offset is None else offset
        check_begin(str(self._folder), partition, begin, first, self._ends[partition])
        return _Reader(path, begin)

    def _recover(self) -> list[_Tail]:
        """Cut what a crash left behind the last whole block; only under the writer's lock."""
        tails = []
        for partition, end in enumerate(self._ends):
            tail = _Tail(self._path(partition), end, self._segment_bytes)
            tail.sync()
            self._ends[partition] = tail.synced
            tails.append(tail)
        return tails

    def _recover_unwritten(self) -> None:
        """Mend `ends` if nobody writes: a loss of power may have kept an older state of it."""
        lock = _lock(self._folder / "writer.lock", 0)
        if lock is not None:
            try:
                for tail in self._recover():
                    tail.close()
            finally:
                os.close(lock)


class FileProducer(Closing):
    """The one writer of a file log. After an error, close it and open another."""

    def __init__(self, tails: Sequence[_Tail], ends: _Ends, lock: int, folder: Path) -> None:
        """Take over opened tails and the lock; use FileLog.producer."""
        self._tails = tails
        self._ends = ends
        self._lock_file = lock
        self._folder = folder
        self._partition_of = lru_cache(_KEYS_REMEMBERED)(lambda key: partition_of(key, len(tails)))
        self._appending, self._flushing = Lock(), Lock()
        self._appended = self._durable = 0
        self._failure: BaseException | None = None

    def append(self, key: bytes, value: bytes) -> None:
        """Keep a record for the next flush; it may be written before, it is not safe before."""
        check_size(key, value)
        with self._appending:
            self._check()
            tail = self._tails[self._partition_of(key)]
            tail.buffer.append(value)
            tail.buffered += len(value)
            self._appended += 1
            if tail.buffered >= _BLOCK_BYTES or len(tail.buffer) >= _BLOCK_RECORDS:
                self._guard(tail.write)

    def flush(self) -> None:
        """Make durable what was appended; threads that flush together share one sync."""
        with self._appending:
            self._check()
            wanted = self._appended
        with self._flushing:
            if self._durable >= wanted:
                return
            with self._appending:
                self._check()
                for tail in self._tails:
                    self._guard(tail.write)
                written = self._appended
            for partition, tail in enumerate(self._tails):
                self._guard(tail.sync)
                self._ends[partition] = tail.synced
            self._durable = written
            with self._appending:
                for tail in self._tails:
                    self._guard(tail.roll)

    def close(self) -> None:
        """Flush, unless writing failed, and let another process write."""
        if self._lock_file < 0:
            return
        try:
            if self._failure is None:
                self.flush()
        finally:
            for tail in self._tails:
                tail.close()
            os.close(self._lock_file)
            self._lock_file = -1

    def _check(self) -> None:
        if self._failure is not None or self._lock_file < 0:
            why = repr(self._failure) if self._failure else "it was closed"
            raise ProfilehouseError(
                f"{self._folder}: the event log takes no more records ({why}); mend the cause and"
                " open it again"
            ) from self._failure

    def _guard(self, step: Callable[[], None]) -> None:
        """Do a step after which, if it was not finished, only a recovery can go on."""
        try:
            step()
        except BaseException as error:
            self._failure = error
            if isinstance(error, OSError):
                self._check()
            raise


class FileConsumer(Closing):
    """Reads partitions of a file log; looks for new records every two milliseconds."""

    def __init__(
        self, readers: Mapping[int, _Reader], ends: _Ends, on_close: Callable[[], None]
    ) -> None:
        """Take over readers; use FileLog.consumer or join."""
        self._readers = dict(readers)
        self._turn = list(readers)
        self._ends = ends
        self._paused: set[int] = set()
        self._on_close = on_close

    def read(self, limit: int, timeout: float) -> list[Batch]:
        """The next records; partitions take turns in coming first."""
        deadline = time.monotonic() + timeout
        while True:
            batches: list[Batch] = []
            for partition in self._turn:
                if limit and partition not in self._paused:
                    reader, end = self._readers[partition], self._ends[partition]
                    if reader.offset < end:
                        begin = reader.offset
                        values, times = reader.read(limit, end)
                        batches.append(Batch(partition, range(begin, reader.offset), times, values))
                        limit -= len(values)
            self._turn = self._turn[1:] + self._turn[:1]
            left = deadline - time.monotonic()
            if batches or left <= 0:
                return batches
            time.sleep(min(left, _SECONDS_BETWEEN_LOOKS))

    def pause(self, partitions: Collection[int]) -> None:
        """Return nothing of these until they are resumed."""
        self._paused |= set(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        """Return records of these again."""
        self._paused -= set(partitions)

    def close(self) -> None:
        """Close the files and leave the group."""
        for reader in self._readers.values():
            reader.close()
        leave, self._on_close = self._on_close, lambda: None
        leave()


class _Ends:
    """The durable end of each partition, shared by all processes through a mapped file.

    An aligned eight-byte item is stored and loaded in one piece.
    """

    def __init__(self, path: Path, partitions: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, _PRIVATE_FILE)
        try:
            if os.fstat(descriptor).st_size < 8 * partitions:
                os.ftruncate(descriptor, 8 * partitions)
            self._items = memoryview(mmap.mmap(descriptor, 8 * partitions)).cast("q")
        finally:
            os.close(descriptor)

    def __getitem__(self, partition: int) -> int:
        return self._items[partition]

    def __setitem__(self, partition: int, end: int) -> None:
        self._items[partition] = end

    def __iter__(self) -> Iterator[int]:
        return iter(self._items.tolist())


class _Tail:
    """The end of a partition, to which its writer appends."""

    def __init__(self, folder: Path, durable: int, segment_bytes: int) -> None:
        """Open the last segment and cut off what follows its last whole block.

        Raises:
            ProfilehouseError: if what is damaged was durable once.
        """
        self._folder = folder
        self._segment_bytes = segment_bytes
        self.buffer: list[bytes] = []
        self.buffered = 0
        segments = _segments(folder)
        self._next = segments[-1] if segments else 0
        self._open()
        self._size = 0
        for block in self._blocks():
            self._size += block.size
            self._next = block.first_offset + len(block.values)
        if self._next < durable:
            self.close()
            raise _damaged(folder, self._next)
        if self._size < os.fstat(self._file).st_size:
            os.ftruncate(self._file, self._size)
        self._dirty = True
        self.synced = self._next

    def write(self) -> None:
        """Write what is buffered as one block."""
        if not self.buffer:
            return
        block = encode(self._next, time.time_ns() // 1000, self.buffer)
        _write_all(self._file, block)
        self._dirty = True
        self._size += len(block)
        self._next += len(self.buffer)
        self.buffer, self.buffered = [], 0

    def sync(self) -> None:
        """Make durable what is written; `synced` is the offset after it.

        Another thread may write meanwhile: what this does not cover leaves `_dirty` true.
        """
        written = self._next
        if self._dirty:
            self._dirty = False
            os.fdatasync(self._file)
        self.synced = written

    def roll(self) -> None:
        """Begin the next segment if this one is full; nobody may write or sync meanwhile."""
        if self._size >= self._segment_bytes:
            self.sync()
            os.close(self._file)
            self._open()
            self._size = 0

    def close(self) -> None:
        os.close(self._file)

    def _open(self) -> None:
        path = _segment(self._folder, self._next)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        self._file = os.open(path, flags, _PRIVATE_FILE)
        sync_folder(self._folder)

    def _blocks(self) -> Iterator[Block]:
        """The whole blocks that follow each other from the start of the file."""
        position, expected = 0, self._next
        while block := _block_at(self._file, position):
            if block.first_offset != expected:
                return
            yield block
            position += block.size
            expected += len(block.values)


class _Reader:
    """A place in a partition. `offset` is that of the next record to be returned."""

    def __init__(self, folder: Path, offset: int) -> None:
        self._folder = folder
        self.offset = self._decoded = offset
        self._values: list[bytes] = []
        self._times: list[int] = []
        self._file = -1
        self._position = 0
        segments = _segments(folder)
        if segments:
            self._open(segments[bisect_right(segments, offset) - 1])

    def read(self, limit: int, end: int) -> tuple[list[bytes], list[int]]:
        """At least one and at most `limit` records below the offset `end`, and their times."""
        while len(self._values) < limit and self._decoded < end:
            self._decode(end)
        values, self._values = self._values[:limit], self._values[limit:]
        times, self._times = self._times[:limit], self._times[limit:]
        self.offset += len(values)
        return values, times

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self, first: int) -> None:
        """Open a segment and go to the block with the wanted offset, from head to head."""
        self.close()
        try:
            self._file = os.open(_segment(self._folder, first), os.O_RDONLY)
        except FileNotFoundError as error:
            raise _damaged(self._folder, first) from error
        self._position = 0
        while first < self._decoded:
            head = decode_head(os.pread(self._file, HEAD.size, self._position))
            if head is None or head.first_offset != first:
                raise _damaged(self._folder, first)
            if first + head.records > self._decoded:
                return
            first += head.records
            self._position += head.size

    def _decode(self, end: int) -> None:
        """Decode the blocks of the next chunk."""
        if self._file < 0 or self._position == os.fstat(self._file).st_size:
            self._open(self._decoded)
        data = os.pread(self._file, _CHUNK_BYTES, self._position)
        start = 0
        block = decode(data) or _block_at(self._file, self._position)
        if block is None:
            raise _damaged(self._folder, self._decoded)
        while block is not None and self._decoded < end:
            skipped = self._decoded - block.first_offset
            if not 0 <= skipped < len(block.values):
                raise _damaged(self._folder, self._decoded)
            values = block.values[skipped:]
            self._values += values
            self._times += [block.received_at] * len(values)
            self._decoded += len(values)
            start += block.size
            block = decode(data, start)
        self._position += start


def _open_or_make(folder: Path, partitions: int) -> _About:
    """The log's own description; several processes may make the log at once, one's is kept."""
    path = folder / "log.json"
    if not path.exists():
        folder.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
        made = folder / f"log.json.{uuid.uuid4().hex}"
        about = _About(_FORMAT, str(uuid.uuid4()), partitions)
        made.touch(_PRIVATE_FILE, exist_ok=False)
        with made.open("wb") as file:
            file.write(msgspec.json.encode(about) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(made)
        except FileExistsError:
            pass
        finally:
            made.unlink()
    try:
        about = msgspec.json.decode(path.read_bytes(), type=_About)
    except msgspec.DecodeError as error:
        raise ProfilehouseError(
            f"{path}: this is not the description of an event log ({error}); restore it"
        ) from error
    if about.format != _FORMAT:
        raise ProfilehouseError(f"{path}: format {about.format} is not one this version reads")
    for partition in range(about.partitions):
        (folder / f"partition-{partition}").mkdir(mode=_PRIVATE_FOLDER, exist_ok=True)
    sync_folder(folder)
    return about


def _segment(folder: Path, first: int) -> Path:
    return folder / f"{first:020}.log"


def _segments(folder: Path) -> list[int]:
    """First offsets of a partition's segments, ascending."""
    return sorted(int(path.stem) for path in folder.glob("*.log"))


def _block_at(file: int, position: int) -> Block | None:
    """The block at a position of a file; None where there is no whole one."""
    head = decode_head(os.pread(file, HEAD.size, position))
    return decode(os.pread(file, head.size, position)) if head else None


def _damaged(folder: Path, offset: int) -> ProfilehouseError:
    return ProfilehouseError(
        f"{folder}: the event log is damaged at offset {offset}: what was durable is not there;"
        " restore the folder from a backup"
    )


def _lock(path: Path, seconds: float) -> int | None:
    """A descriptor that holds the lock until it is closed; None if another one does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, _PRIVATE_FILE)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.05)
        else:
            return descriptor


def _write_all(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
