"""The driver of the live path on Spark: its queries, their stop, the status, the lake's commits.

Belongs here: what needs a Spark session. Does not belong here: what tasks do (spark.py).

Each sink is a query of its own: profiles are written as fast as micro-batches go, the lake every
few seconds, and neither waits for the other. Both begin where their sinks stand, at every start and
after another generation of profiles was flipped to.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from profilehouse.errors import ProfilehouseError
from profilehouse.lake.appending import check_topic
from profilehouse.profiles.features import Declaration
from profilehouse.stream.meter import Meter
from profilehouse.stream.profiles import Counts, create_if_missing
from profilehouse.stream.spark import (
    COLUMNS,
    TABLES,
    BehindError,
    FoldIntoProfiles,
    Outcome,
    Reached,
    Work,
    WriteFiles,
    is_behind,
    lowest,
    run_batch,
)
from profilehouse.stream.status import State, Status, remove_old, write_status
from profilehouse.times import utc_now

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from profilehouse.log import Log
    from profilehouse.platform import Platform
    from profilehouse.profiles.store import Store

logger = logging.getLogger(__name__)

RECORDS_PER_COMMIT = 250_000
"""Of the lake, at most."""

_RECORDS_AT_ONCE = 5_000
_SECONDS_BETWEEN_STATUSES = 1
_EARLIEST = -2
_LOG_LEVEL = "ERROR"
_SECONDS_TO_END = 60
"""How long a stop waits for a micro-batch. One that is broken off is run again."""


@dataclass(frozen=True)
class SparkOptions:
    """How the live path on Spark behaves.

    Attributes:
        max_offsets: records of a micro-batch of the profiles, at most.
        lake_seconds: seconds between two commits to the lake.
        master: where Spark runs, by default on two cores with four tries of each task; what
            spark-submit was told goes before it.
    """

    max_offsets: int = 20_000
    lake_seconds: float = 5
    master: str = "local[2,4]"


class SparkProcess:
    """Runs the queries until it is told to stop, or one fails."""

    def __init__(self, platform: Platform, declaration: Declaration, options: SparkOptions) -> None:
        """Start nothing yet.

        Args:
            platform: log in Kafka; store and lake that every executor reaches.
            declaration: what to keep.
            options: see there.
        """
        url = urlsplit(platform.settings.log)
        if url.scheme != "kafka":
            raise ProfilehouseError(
                f"PROFILEHOUSE_LOG is {platform.settings.log}: Spark reads Kafka only; set it to"
                " kafka://HOST:PORT/TOPIC"
            )
        if platform.settings.profiles.startswith("lmdb:"):
            raise ProfilehouseError(
                f"PROFILEHOUSE_PROFILES is {platform.settings.profiles}: Spark's executors write at"
                " once, which LMDB cannot; set it to a store in Cassandra or DynamoDB"
            )
        self._brokers, self._topic = url.netloc, url.path.strip("/")
        self._platform, self._declaration, self._options = platform, declaration, options
        self._stop = threading.Event()
        self._ending = threading.Event()
        self._working = {"profiles": threading.Lock(), "lake": threading.Lock()}
        self._reached: dict[str, dict[int, int]] = {}
        self._behind = False
        self._spark: SparkSession
        self._lake = platform.lake()
        self._stored: dict[str, dict[int, int]] = {table: {} for table in TABLES}
        self._meter = Meter()
        self._counts = Counts()
        self._refused = 0
        self._restarts = 0
        self._error: str | None = None
        self._started_at = utc_now()
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
        """Stop after the micro-batch; safe to call from a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Follow the log until `stop`.

        Raises:
            ProfilehouseError: if log, store or lake cannot be used. The next process goes on from
                what is stored.
        """
        with session("the live path", self._options.master) as self._spark:
            remove_old(self._platform.settings, self._platform.aws)
            with (
                self._platform.log() as log,
                self._platform.profile_store(self._declaration) as store,
            ):
                create_if_missing(store, self._declaration)
                self._follow(log, store)

    def _follow(self, log: Log, store: Store) -> None:
        state: State = "failed"
        try:
            while not self._stop.is_set():
                self._behind = False
                self._start_queries(log, store)
                try:
                    self._watch(log, store)
                except Exception:
                    if not self._behind:
                        raise
                finally:
                    self._end_queries()
                self._restarts += self._behind
            state = "stopped"
        except Exception as error:
            self._error = said(error)
            raise
        finally:
            self._report(log, store, state)

    def _watch(self, log: Log, store: Store) -> None:
        """Tell how it is until `stop`, an error, or a generation that lacks what was read."""
        while not self._stop.is_set():
            reached = dict(self._reached["profiles"])
            self._report(log, store, "running")
            self._spark.streams.awaitAnyTermination(_SECONDS_BETWEEN_STATUSES)
            if self._status and any(
                is_behind(self._status.profiles.get(p), p, reached) for p in reached
            ):
                self._behind = True
                return

    def _start_queries(self, log: Log, store: Store) -> None:
        topic_id, partitions = log.topic_id, log.ends()
        self._read_lake(topic_id)
        settings, options = self._platform.settings, self._options
        profiles = store.resume(topic_id)
        lake = {p: lowest(self._stored[table].get(p) for table in TABLES) for p in partitions}

        def files(reached: Reached) -> WriteFiles:
            self._read_lake(topic_id)
            return WriteFiles(settings, topic_id, self._stored, reached)

        self._ending.clear()
        self._start(
            "profiles",
            {p: profiles.get(p) for p in partitions},
            options.max_offsets,
            0,
            partial(FoldIntoProfiles, settings, self._declaration, topic_id),
            self._count,
        )
        self._start(
            "lake",
            lake,
            RECORDS_PER_COMMIT,
            options.lake_seconds,
            files,
            partial(self._commit, topic_id),
        )

    def _end_queries(self) -> None:
        """Stop them, each between two micro-batches; one that was to begin ends with an error."""
        self._ending.set()
        self._spark.sparkContext.setLogLevel("OFF")
        with ExitStack() as held:
            for lock in self._working.values():
                if lock.acquire(timeout=_SECONDS_TO_END):
                    held.callback(lock.release)
        for query in self._spark.streams.active:
            query.stop()
        self._spark.streams.resetTerminated()
        self._spark.sparkContext.setLogLevel(_LOG_LEVEL)

    def _start(
        self,
        sink: str,
        stands: Mapping[int, int | None],
        at_once: int,
        seconds: float,
        work: Callable[[Reached], Work],
        done: Callable[[Sequence[Outcome], float], None],
    ) -> None:
        """Start the query of a sink, where the sink stands."""
        reached = {p: offset or 0 for p, offset in stands.items()}
        self._reached[sink] = reached

        def write(frame: DataFrame, _number: int) -> None:
            with self._working[sink]:
                if self._ending.is_set():
                    raise RuntimeError("stopped before this micro-batch, which is run again")
                begun = time.time()

                def tell(outcomes: Sequence[Outcome]) -> None:
                    done(outcomes, begun)
                    reached.update({each.partition: each.end for each in outcomes if each.is_done})

                try:
                    run_batch(frame, reached, work, tell)
                except BehindError:
                    self._behind = True
                    raise

        offsets = {str(p): _EARLIEST if at is None else at for p, at in stands.items()}
        source = (
            self._spark.readStream.format("kafka")
            .option("kafka.bootstrap.servers", self._brokers)
            .option("subscribe", self._topic)
            .option("startingOffsets", json.dumps({self._topic: offsets}))
            .option("maxOffsetsPerTrigger", at_once)
            .load()
        )
        self._spark.sparkContext.setLocalProperty("spark.scheduler.pool", sink)
        (
            source.select(*COLUMNS)
            .writeStream.queryName(sink)
            .trigger(processingTime=f"{seconds} seconds")
            .foreachBatch(write)
            .start()
        )

    def _count(self, outcomes: Sequence[Outcome], _begun: float) -> None:
        for outcome in outcomes:
            self._counts.events += outcome.counts.events
            self._counts.unconsented += outcome.counts.unconsented
            self._counts.late += outcome.counts.late
            self._counts.oversized += outcome.counts.oversized
            self._restarts += not outcome.is_done
            if outcome.latencies is not None:
                self._meter.count(outcome.latencies)

    def _commit(self, topic_id: str, outcomes: Sequence[Outcome], begun: float) -> None:
        for name in TABLES:
            stored = self._stored[name]
            after = {o.partition: o.end for o in outcomes if o.end > stored.get(o.partition, 0)}
            if not after:
                continue
            before = {p: stored[p] for p in after if p in stored}
            files = [file for o in outcomes for file in o.files.get(name, ())]
            self._lake.append_files(
                name, files, topic_id=topic_id, before=before, after=after, begun=begun
            )
        self._refused += sum(outcome.refused for outcome in outcomes)
        self._read_lake(topic_id)

    def _read_lake(self, topic_id: str) -> None:
        for name in TABLES:
            held = self._lake.positions(name)
            check_topic(f"lake table {name}", held, topic_id)
            self._stored[name] = held.offsets

    def _report(self, log: Log, store: Store, state: State) -> None:
        try:
            self._status = Status(
                instance=f"{socket.gethostname()}-{os.getpid()}",
                state=state,
                started_at=self._started_at,
                written_at=utc_now(),
                log=self._platform.settings.log,
                topic_id=log.topic_id,
                ends=log.ends(),
                profiles=dict(store.resume(log.topic_id)),
                lake=dict(self._stored[TABLES[0]]),
                dead_letters=dict(self._stored[TABLES[1]]),
                events=self._counts.events,
                refused=self._refused,
                unconsented=self._counts.unconsented,
                late=self._counts.late,
                rate=round(self._meter.rate(), 1),
                latency=self._meter.latency(),
                batch_limit=self._options.max_offsets,
                restarts=self._restarts,
                oversized=self._counts.oversized,
                error=self._error,
            )
            write_status(self._platform.settings, self._status, self._platform.aws)
        except ProfilehouseError as error:
            logger.warning("the live process could not say how it is: %s", error)


@contextmanager
def session(work: str, master: str) -> Iterator[SparkSession]:
    """A session with the Kafka connector, until the block ends.

    It is that of spark-submit, where that started this process, else one with services/jars.

    Args:
        work: what it is for, to say where Spark fails.
        master: where it runs, unless spark-submit said it.

    Raises:
        ProfilehouseError: where pyspark or a whole Java is missing, or Spark fails in the block.
    """
    spark = _session(master)
    try:
        yield spark
    except ProfilehouseError:
        raise
    except Exception as error:
        raise ProfilehouseError(
            f"{work} on Spark: {said(error)}; mend that and start it again"
        ) from error
    finally:
        spark.stop()


def _session(master: str) -> SparkSession:
    if find_spec("pyspark") is None:
        raise ProfilehouseError("pyspark is not installed; pip install 'profilehouse[spark]'")
    from pyspark.sql import SparkSession  # noqa: PLC0415

    builder = (
        SparkSession.builder.config("spark.scheduler.mode", "FAIR")
        .config("spark.sql.adaptive.enabled", "false")  # streams refuse it
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", _RECORDS_AT_ONCE)
    )
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # spark-submit has it set
        builder = _on_this_machine(builder, master)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        found = builder.getOrCreate()
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)  # pyspark puts its own there
    found.sparkContext.setLogLevel(_LOG_LEVEL)
    return found


def _on_this_machine(builder: SparkSession.Builder, master: str) -> SparkSession.Builder:
    from services.java import JavaError, jars, java_for_spark  # noqa: PLC0415

    try:
        os.environ["JAVA_HOME"] = str(java_for_spark())
        connector = ",".join(map(str, jars("spark")))
    except JavaError as error:
        raise ProfilehouseError(f"Spark cannot run: {error}") from error
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    return (
        builder.master(master)
        .appName("profilehouse")
        .config("spark.jars", connector)
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
    )


def said(error: BaseException) -> str:
    """What an error of Spark says, without its stack; the platform's own words where they are."""
    lines = str(error).splitlines() or [type(error).__name__]
    ours = [line.partition("ProfilehouseError: ")[2] for line in lines]
    return next((line for line in ours if line), lines[0]).strip()
