"""Writing to the log for many requests at once: what they sent meanwhile shares one flush.

Belongs here: how much may wait, who is told when. Does not belong here: HTTP, or the log itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Self

from profilehouse.errors import ProfilehouseError
from profilehouse.log import Producer
from profilehouse.web.intake import Record

logger = logging.getLogger(__name__)

_SECONDS_OF_DOUBT = 10


class Overloaded(Exception):  # noqa: N818
    """There is no room for more."""


class Room:
    """What is in memory on its way to the log, bounded. For the event loop's thread."""

    def __init__(self, records: int, size: int) -> None:
        """An empty room.

        Args:
            records: that fit in.
            size: bytes that fit in.
        """
        self._max_records, self._max_size = records, size
        self.records = self.size = 0

    def hold(self) -> Held:
        """A part of it, given back at the end of a `with` block."""
        return Held(self)

    def take(self, records: int, size: int) -> None:
        """Make it fuller; where nothing waits, any number of records fits in.

        Raises:
            Overloaded: if that does not fit in.
        """
        if records and self.records and self.records + records > self._max_records:
            raise Overloaded
        if self.size + size > self._max_size:
            raise Overloaded
        self.records += records
        self.size += size

    def give_back(self, records: int, size: int) -> None:
        """Make it emptier."""
        self.records -= records
        self.size -= size


class Held:
    """Bytes that one request holds of a room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._size = 0

    def take(self, size: int) -> None:
        """Hold more.

        Raises:
            Overloaded: if there is no room.
        """
        self._room.take(0, size)
        self._size += size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._room.give_back(0, self._size)


@dataclass(frozen=True)
class _Waiting:
    records: Sequence[Record]
    size: int
    done: asyncio.Future[None]


class Writer:
    """Appends records in a thread of its own, in the order of the calls."""

    def __init__(
        self,
        open_producer: Callable[[], Producer],
        room: Room,
        observe: Callable[[int, float], None],
    ) -> None:
        """Begin to append.

        Args:
            open_producer: called now, and again after a failure.
            room: for what waits.
            observe: told each commit's records and seconds.

        Raises:
            ProfilehouseError: if the log takes no records.
        """
        self._open_producer = open_producer
        self._producer: Producer | None = open_producer()
        self._room = room
        self._observe = observe
        self._thread = ThreadPoolExecutor(1, "log")
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._failed_at: float | None = None

    @property
    def failed_lately(self) -> bool:
        """Whether records were not taken a moment ago, and none were since."""
        return self._failed_at is not None and monotonic() < self._failed_at + _SECONDS_OF_DOUBT

    def start(self) -> None:
        """Begin to work, on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Write what waits and let go of the log."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    async def write(self, records: Sequence[Record], seconds: float) -> None:
        """Return once the records are durable. Without any: once those before are.

        Raises:
            Overloaded: if too much waits already; nothing is written.
            ProfilehouseError: if the log failed. What is in it is unknown.
            TimeoutError: if it takes longer than that. What was not begun is not written; what was
                may still become durable.
        """
        size = sum(len(key) + len(value) for key, value in records)
        self._room.take(len(records), size)
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(records, size, done))
        self._wake.set()
        await asyncio.wait_for(done, seconds)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping or self._waiting:
            await self._wake.wait()
            self._wake.clear()
            group, self._waiting = self._waiting, []
            records = [r for each in group if not each.done.cancelled() for r in each.records]
            failure: ProfilehouseError | None = None
            try:
                await loop.run_in_executor(self._thread, self._commit, records)
            except ProfilehouseError as error:
                failure = error
                logger.error("%d records were not taken: %s", len(records), error)
            except Exception as error:
                failure = ProfilehouseError(f"the log failed: {error!r}")
                logger.exception("%d records were not taken", len(records))
            if records:
                self._failed_at = None if failure is None else monotonic()
            for each in group:
                self._room.give_back(len(each.records), each.size)
                if each.done.done():
                    continue
                if failure is None:
                    each.done.set_result(None)
                else:
                    each.done.set_exception(failure)
            if self._waiting or self._stopping:
                self._wake.set()

    def _commit(self, records: Sequence[Record]) -> None:
        begin = perf_counter()
        try:
            if self._producer is None:
                self._producer = self._open_producer()
            for key, value in records:
                self._producer.append(key, value)
            self._producer.flush()
        except BaseException:
            with suppress(ProfilehouseError, OSError):
                self._close()
            raise
        if records:
            self._observe(len(records), perf_counter() - begin)

    def _close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close()
