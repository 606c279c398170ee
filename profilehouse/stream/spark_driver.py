"""The driver of the live path on Spark: the query, its stop, its status and the lake's commits.

Belongs here: what needs a Spark session. Does not belong here: what tasks do (spark.py).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from profilehouse.errors import ProfilehouseError
from profilehouse.lake.appending import check_topic
from profilehouse.profiles.features import Declaration
from profilehouse.stream.profiles import Counts, ProfileSink, create_if_missing
from profilehouse.stream.spark import COLUMNS, TABLES, Outcome, Task, kafka_range, run_batch
from profilehouse.stream.status import State, Status, write_status
from profilehouse.times import utc_now

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from profilehouse.platform import Platform

logger = logging.getLogger(__name__)

_RECORDS_AT_ONCE = 5_000


class SparkProcess:
    """Runs the query until it is told to stop, or fails."""

    def __init__(
        self,
        platform: Platform,
        declaration: Declaration,
        checkpoint: str,
        max_offsets: int,
    ) -> None:
        """Start nothing yet.

        Args:
            platform: log in Kafka; store and lake that every executor reaches.
            declaration: what to keep.
            checkpoint: folder that every node reaches. Each topic has its own folder in it.
            max_offsets: records of a micro-batch, at most.
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
        self._platform, self._declaration = platform, declaration
        self._checkpoint, self._max_offsets = checkpoint, max_offsets
        self._stop = threading.Event()
        self._spark: SparkSession
        self._lake = platform.lake()
        self._stored: dict[str, dict[int, int]] = {table: {} for table in TABLES}
        self._counts = Counts()
        self._refused = 0
        self._error: str | None = None
        self._started_at = utc_now()

    def stop(self) -> None:
        """Stop after the micro-batch; safe to call from a signal handler."""
        self._stop.set()

    @property
    def events(self) -> int:
        """Events that went into profiles since the start."""
        return self._counts.events

    def run(self) -> None:
        """Follow the log until `stop`.

        Raises:
            ProfilehouseError: if log, store or lake cannot be used. The next process goes on from
                what is stored.
        """
        self._spark = local_session()
        try:
            self._follow()
        finally:
            self._spark.stop()

    def _follow(self) -> None:
        with self._platform.log() as log, self._platform.profile_store(self._declaration) as store:
            create_if_missing(store, self._declaration)
            profiles = ProfileSink(store, self._declaration, log.topic_id).positions
            self._read_lake(log.topic_id)
            sinks = (profiles, *self._stored.values())
            starts = {str(p): min(sink.get(p, -2) for sink in sinks) for p in log.ends()}
            query = (
                self._source(
                    "readStream",
                    {
                        "subscribe": self._topic,
                        "startingOffsets": json.dumps({self._topic: starts}),
                        "maxOffsetsPerTrigger": self._max_offsets,
                    },
                )
                .writeStream.option("checkpointLocation", f"{self._checkpoint}/{log.topic_id}")
                .foreachBatch(lambda frame, _: self._write(frame, log.topic_id))
                .start()
            )
            state: State = "failed"
            try:
                while not self._stop.is_set() and not query.awaitTermination(1):
                    self._report(log.topic_id, log.ends(), store.resume(log.topic_id), "running")
                state = "stopped"
            except Exception as error:
                self._error = str(error).splitlines()[0]
                raise ProfilehouseError(f"Spark: {self._error}") from error
            finally:
                query.stop()
                self._report(log.topic_id, log.ends(), store.resume(log.topic_id), state)

    def _source(self, reader: str, options: Mapping[str, Any]) -> DataFrame:
        read = getattr(self._spark, reader).format("kafka").options(**options)
        read = read.option("kafka.bootstrap.servers", self._brokers)
        frame: DataFrame = read.load().select(*COLUMNS)
        return frame

    def _write(self, frame: DataFrame, topic_id: str) -> None:
        begun = time.time()
        settings = self._platform.settings

        def task(covered: Mapping[int, int]) -> Task:
            self._read_lake(topic_id)
            return Task(settings, self._declaration, topic_id, self._stored, covered)

        def between(partition: int, begin: int | None, end: int) -> DataFrame:
            return self._source("read", kafka_range(self._topic, partition, begin, end))

        def commit(outcomes: Sequence[Outcome]) -> None:
            self._commit(outcomes, topic_id, begun)

        for outcome in run_batch(frame, task, between, commit):
            self._counts.events += outcome.counts.events
            self._counts.unconsented += outcome.counts.unconsented
            self._counts.late += outcome.counts.late
            self._counts.oversized += outcome.counts.oversized
            self._refused += outcome.refused

    def _commit(self, outcomes: Sequence[Outcome], topic_id: str, begun: float) -> None:
        for name in TABLES:
            stored = self._stored[name]
            after = {o.partition: o.end for o in outcomes if o.end > stored.get(o.partition, 0)}
            if not after:
                continue
            before = {p: stored[p] for p in after if p in stored}
            files = [file for o in outcomes for file in o.files[name] if o.partition in after]
            self._lake.append_files(
                name, files, topic_id=topic_id, before=before, after=after, begun=begun
            )

    def _read_lake(self, topic_id: str) -> None:
        for name in TABLES:
            held = self._lake.positions(name)
            check_topic(f"lake table {name}", held, topic_id)
            self._stored[name] = held.offsets

    def _report(
        self, topic_id: str, ends: dict[int, int], profiles: Mapping[int, int], state: State
    ) -> None:
        status = Status(
            instance=f"{socket.gethostname()}-{os.getpid()}",
            state=state,
            started_at=self._started_at,
            written_at=utc_now(),
            log=self._platform.settings.log,
            topic_id=topic_id,
            ends=ends,
            profiles=dict(profiles),
            lake=dict(self._stored[TABLES[0]]),
            dead_letters=dict(self._stored[TABLES[1]]),
            events=self._counts.events,
            refused=self._refused,
            unconsented=self._counts.unconsented,
            late=self._counts.late,
            batch_limit=self._max_offsets,
            oversized=self._counts.oversized,
            error=self._error,
        )
        write_status(self._platform.settings, status, self._platform.aws)


def local_session(master: str = "local[2]") -> SparkSession:
    """A session on this machine, with the Kafka connector of services/jars.

    Raises:
        ProfilehouseError: where pyspark or a full Java is missing.
    """
    if find_spec("pyspark") is None:
        raise ProfilehouseError("pyspark is not installed; pip install 'profilehouse[spark]'")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        raise ProfilehouseError("Spark needs Java 17 or newer; install one, or set JAVA_HOME")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    from pyspark.sql import SparkSession  # noqa: PLC0415

    from services.java import JavaError, jars  # noqa: PLC0415

    try:
        connector = ",".join(map(str, jars("spark")))
    except JavaError as error:
        raise ProfilehouseError(f"Spark's Kafka connector cannot be had: {error}") from error
    session = (
        SparkSession.builder.master(master)
        .appName("profilehouse")
        .config("spark.jars", connector)
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", _RECORDS_AT_ONCE)
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        return session.getOrCreate()
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)  # pyspark puts its own there
