"""The live process: follows the log and keeps profiles and lake up with it, exactly once.

Belongs here: when to read, to wait, to begin again and to stop. Does not belong here: what is done
with what was read (profiles.py, lake.py).

Both sinks keep their own positions, each in the commit of what it wrote. Reading begins at the
lower one, and each sink skips what it has. So it does not matter where a process dies, and nothing
has to be undone: what was read and not committed is read again. A writer that was overtaken, by a
second process or by a rebuilt generation, learns it from its next commit and begins again from what
is stored; so does one whose store was too slow to say whether it took a commit.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from time import monotonic, time
from typing import TYPE_CHECKING

from profilehouse.errors import NoAnswer, ProfilehouseError, StaleWriter
from profilehouse.events.web import DEAD_LETTERS, EVENTS, decode
from profilehouse.log import Begin, Consumer, Log
from profilehouse.profiles.features import Declaration
from profilehouse.profiles.store import Positions
from profilehouse.stream.lake import BUFFERED, LakeSink
from profilehouse.stream.meter import Meter, latencies
from profilehouse.stream.pace import Pace
from profilehouse.stream.profiles import Counts, Part, ProfileSink, create_if_missing
from profilehouse.stream.status import State, Status, remove_old, write_status
from profilehouse.times import utc_now

if TYPE_CHECKING:
    from profilehouse.platform import Platform

GROUP = "profilehouse"
"""Name of the processes that share the log's partitions."""

logger = logging.getLogger(__name__)

_SECONDS_TO_WAIT = 0.2
_SECONDS_BETWEEN_STATUSES = 1.0
_SECONDS_BEFORE_BEGINNING_AGAIN = 0.5


@dataclass(frozen=True)
class Options:
    """How a live process behaves.

    Attributes:
        latency_goal: milliseconds that a batch may take from being read to being durable; batches
            are made smaller or larger to meet it.
        max_rate: events a second at most; None for as many as there are.
        lake_seconds: seconds between two commits to the lake.
    """

    latency_goal: float = 100
    max_rate: float | None = None
    lake_seconds: float = 5


class LiveProcess:
    """Runs until it is told to stop, or fails."""

    def __init__(self, platform: Platform, declaration: Declaration, options: Options) -> None:
        self._platform = platform
        self._declaration = declaration
        self._options = options
        self._stop = threading.Event()
        self._meter = Meter()
        self._pace = Pace(options.latency_goal, options.max_rate)
        self._counts = Counts()
        self._refused = 0
        self._restarts = 0
        self._paused = self._slowed = False
        self._error: str | None = None
        self._started_at = utc_now()
        self._lake: LakeSink | None = None
        self._profiles: ProfileSink | None = None
        self._held: set[int] = set()
        self._status: Status | None = None

    @property
    def status(self) -> Status | None:
        """How the process was a second ago or less; None before it began."""
        return self._status

    @property
    def events(self) -> int:
        """Events that went into profiles since the start."""
        return self._counts.events

    def stop(self) -> None:
        """Stop after what was read; safe to call from a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Follow the log until `stop`, then write what was read and leave.

        Raises:
            ProfilehouseError: if log, store or lake cannot be used. All that was committed stays;
                the next process goes on from there.
        """
        gc.set_threshold(100_000, 50, 50)  # millions of small objects live short lives here
        sys.setswitchinterval(0.0005)  # the thread of the lake must not hold up a commit
        with self._platform.log() as log:
            watched = threading.Event()
            watch = threading.Thread(target=self._watch, args=(log, watched), daemon=True)
            watch.start()
            state: State = "failed"
            try:
                while not self._stop.is_set():
                    try:
                        self._follow(log)
                    except (StaleWriter, NoAnswer) as error:
                        self._error = str(error)
                        self._restarts += 1
                        self._stop.wait(_SECONDS_BEFORE_BEGINNING_AGAIN)
                state = "stopped"
            except ProfilehouseError as error:
                self._error = str(error)
                raise
            finally:
                watched.set()
                watch.join()
                self._report(log, state)

    def _follow(self, log: Log) -> None:
        """One life of both sinks, from what is stored until `stop`."""
        with self._platform.profile_store(self._declaration) as store:
            create_if_missing(store, self._declaration)
            self._profiles = profiles = ProfileSink(
                store, self._declaration, log.topic_id, self._counts
            )
            with closing(
                LakeSink(self._platform.lake(), log.topic_id, self._options.lake_seconds)
            ) as lake:
                self._lake = lake

                def take(partitions: Sequence[int]) -> Begin:
                    stored = profiles.resume()
                    self._held |= set(partitions)
                    begins = lake.begin(partitions)
                    return {p: _lower(begins[p], stored.get(p)) for p in partitions}

                def release(partitions: Sequence[int]) -> None:
                    self._held -= set(partitions)
                    lake.flush()

                self._paused = False
                with log.join(GROUP, take, release) as consumer:
                    while not self._stop.is_set():
                        self._step(log, consumer, profiles, lake)
                    lake.flush()

    def _step(self, log: Log, consumer: Consumer, profiles: ProfileSink, lake: LakeSink) -> None:
        self._hold_back(consumer, lake)
        batches = consumer.read(self._pace.limit, _SECONDS_TO_WAIT)
        began = monotonic()
        parts = [
            Part(batch.partition, batch.next_offset, decode(batch, log.topic_id))
            for batch in batches
        ]
        profiles.write(parts)
        lake.add(parts)
        if not batches:
            return
        for batch in batches:
            self._meter.count(latencies(batch.received_at))
        self._refused += sum(part.decoded.dead.num_rows for part in parts)
        self._error = None
        read = sum(len(batch.offsets) for batch in batches)
        oldest = min(batch.received_at[0] for batch in batches)
        self._pace.adapt(read, monotonic() - began, time() - oldest / 1e6)
        wait = self._pace.wait(read)
        if wait > 0:
            self._slowed = True
            self._stop.wait(wait)
            self._slowed = False

    def _hold_back(self, consumer: Consumer, lake: LakeSink) -> None:
        """Pause the partitions while too much waits for the lake, until half of it is gone."""
        if lake.buffered > (BUFFERED // 2 if self._paused else BUFFERED):
            consumer.pause(self._held)
            self._paused = True
        elif self._paused:
            consumer.resume(self._held)
            self._paused = False

    def _watch(self, log: Log, ended: threading.Event) -> None:
        try:
            remove_old(self._platform.settings, self._platform.aws)
            self._report(log, "running")
            while not ended.wait(_SECONDS_BETWEEN_STATUSES):
                self._report(log, "running")
        except Exception:
            logger.exception("the live process goes on, but no longer says how it is")

    def _report(self, log: Log, state: State) -> None:
        profiles, lake = self._profiles, self._lake
        held = sorted(self._held)
        try:
            ends = log.ends()
            status = Status(
                instance=f"{socket.gethostname()}-{os.getpid()}",
                state=state,
                started_at=self._started_at,
                written_at=utc_now(),
                log=self._platform.settings.log,
                topic_id=log.topic_id,
                ends={p: ends[p] for p in held},
                profiles=_of(profiles.positions if profiles else {}, held),
                lake=_of(lake.positions(EVENTS) if lake else {}, held),
                dead_letters=_of(lake.positions(DEAD_LETTERS) if lake else {}, held),
                events=self._counts.events,
                refused=self._refused,
                unconsented=self._counts.unconsented,
                late=self._counts.late,
                rate=round(self._meter.rate(), 1),
                latency=self._meter.latency(),
                buffered=lake.buffered if lake else 0,
                paused=self._paused or self._slowed,
                batch_limit=self._pace.limit,
                restarts=self._restarts,
                oversized=self._counts.oversized,
                error=self._error,
            )
            self._status = status
            write_status(self._platform.settings, status, self._platform.aws)
        except ProfilehouseError as error:
            logger.warning("the live process could not say how it is: %s", error)


def _lower(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else min(one, other)


def _of(positions: Positions, partitions: Sequence[int]) -> dict[int, int]:
    return {p: positions[p] for p in partitions if p in positions}
