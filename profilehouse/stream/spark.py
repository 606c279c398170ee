"""The live path on Spark: micro-batches of the log, folded and written by the executors.

Belongs here: what a task does with its partition's records, and how a micro-batch is made complete.
Does not belong here: decoding, folding and storing, which are the one-process engine's own, or the
Spark session (spark_driver.py).

Where a sink stands is in the sink, changed by the commit that writes, and each commit is
compare-and-set on it. So a micro-batch that is run again changes nothing, and Spark's own
checkpoint matters to nobody: every start reads on from where the sinks stand.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.errors import NoAnswer, StaleWriter
from profilehouse.events.web import DEAD_LETTERS, EVENTS, decode
from profilehouse.log import Batch
from profilehouse.profiles.features import Declaration
from profilehouse.profiles.store import Store
from profilehouse.settings import Settings
from profilehouse.stream.meter import Latencies, latencies
from profilehouse.stream.profiles import Counts, Part, ProfileSink

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyspark.sql import DataFrame

    from profilehouse.lake import Lake

TABLES = (EVENTS, DEAD_LETTERS)
COLUMNS = ("partition", "offset", "timestamp", "value")
"""Of Spark's Kafka source: what a task reads."""

_ATTEMPTS = 5
"""How often a micro-batch is tried while other writers are quicker or the store does not answer."""


@dataclass
class Outcome:
    """What a task did with its partition, small enough for the driver.

    Attributes:
        partition: of the log.
        end: offset after the last that is written.
        is_done: False where it wrote nothing or not all: the sink is behind, another writer came
            between, or the store did not answer.
        stands: where the sink stands then; None for nowhere.
        counts: of the profiles.
        latencies: of the profiles.
        files: the lake's data files, by table; not committed.
        refused: dead letters that the lake did not hold yet.
    """

    partition: int
    end: int
    is_done: bool = False
    stands: int | None = None
    counts: Counts = field(default_factory=Counts)
    latencies: Latencies | None = None
    files: dict[str, list[DataFile]] = field(default_factory=dict)
    refused: int = 0


Reached = Mapping[int, int]
"""Partition -> offset up to which the sink held everything when the last micro-batch had ended."""

Work = Callable[[Iterable[pa.RecordBatch]], Outcome | None]
"""What a task does with the records of its partition; None where it has none."""


class BehindError(Exception):
    """The sink stands before the micro-batch: its generation was replaced by a rebuilt one."""


def run_batch(
    frame: DataFrame,
    reached: Reached,
    work: Callable[[Reached], Work],
    done: Callable[[Sequence[Outcome]], None],
) -> None:
    """Write a micro-batch.

    Args:
        frame: the micro-batch, COLUMNS of one topic, a task a partition of the log. No record is
            missing between `reached` and it.
        reached: see there.
        work: the work of a task; asked anew for each attempt.
        done: told what tasks did; commits files to the lake.

    Raises:
        BehindError: if records before the micro-batch have to be read first.
    """
    for _ in range(_ATTEMPTS):
        outcomes = _run(frame, work(reached))
        done(outcomes)
        undone = [outcome for outcome in outcomes if not outcome.is_done]
        if not undone:
            return
        for outcome in undone:
            if is_behind(outcome.stands, outcome.partition, reached):
                raise BehindError
    raise BehindError


def is_behind(stands: int | None, partition: int, reached: Reached) -> bool:
    """Whether a sink that stands there lacks records that no micro-batch will bring."""
    return (stands or 0) < reached.get(partition, 0)


def _run(frame: DataFrame, work: Work) -> list[Outcome]:
    def told(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        outcome = work(batches)
        if outcome is not None:
            yield pa.RecordBatch.from_pydict({"outcome": [pickle.dumps(outcome)]})

    rows = frame.select(*COLUMNS).mapInArrow(told, "outcome binary").collect()
    return [pickle.loads(bytes(row.outcome)) for row in rows]  # noqa: S301


@dataclass(frozen=True)
class FoldIntoProfiles:
    """Folds a partition's records into the profile store.

    Attributes:
        settings: of the platform.
        declaration: what profiles hold.
        topic_id: of the log.
        reached: see there.
    """

    settings: Settings
    declaration: Declaration
    topic_id: str
    reached: Reached

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Outcome | None:
        """In an executor."""
        records = _records(batches)
        first = next(records, None)
        if first is None:
            return None
        partition = first.partition
        outcome = Outcome(partition, first.offsets[0])
        sink = _Opened.sink(self.settings, self.declaration, self.topic_id, outcome.counts)
        outcome.stands = sink.positions.get(partition)
        if is_behind(outcome.stands, partition, self.reached):
            return outcome
        told: list[Latencies] = []
        for batch in chain([first], records):
            _check_partition(batch, partition)
            decoded = decode(batch, self.topic_id)
            try:
                sink.write([Part(partition, batch.next_offset, decoded)])
            except (StaleWriter, NoAnswer):
                outcome.stands = sink.resume().get(partition)
                break
            told.append(latencies(batch.received_at))
            outcome.end = batch.next_offset
        else:
            outcome.is_done = True
        outcome.latencies = np.sum(told, axis=0) if told else None
        return outcome


@dataclass(frozen=True)
class WriteFiles:
    """Writes a partition's records as files for the lake, which the driver commits.

    Attributes:
        settings: of the platform.
        topic_id: of the log.
        stored: table -> positions, as the driver read them before the micro-batch.
        reached: see there.
    """

    settings: Settings
    topic_id: str
    stored: Mapping[str, Mapping[int, int]]
    reached: Reached

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Outcome | None:
        """In an executor."""
        records = _records(batches)
        first = next(records, None)
        if first is None:
            return None
        partition = first.partition
        outcome = Outcome(partition, first.offsets[0])
        outcome.stands = lowest(self.stored[table].get(partition) for table in TABLES)
        if is_behind(outcome.stands, partition, self.reached):
            return outcome
        rows: dict[str, list[pa.Table]] = {table: [] for table in TABLES}
        for batch in chain([first], records):
            _check_partition(batch, partition)
            decoded = decode(batch, self.topic_id)
            rows[EVENTS].append(decoded.events)
            rows[DEAD_LETTERS].append(decoded.dead)
            outcome.end = batch.next_offset
        lake = _Opened.lake(self.settings)
        for table, parts in rows.items():
            new = pa.concat_tables(parts)
            position = self.stored[table].get(partition, 0)
            new = new.filter(pc.greater_equal(new["log_offset"], position))
            outcome.files[table] = lake.write_files(table, new) if new.num_rows else []
            if table == DEAD_LETTERS:
                outcome.refused = new.num_rows
        outcome.is_done = True
        return outcome


class _Opened:
    """What a Python worker, which Spark keeps from task to task, has open: one of each.

    A worker whose task failed is not used again, so nothing broken stays.
    """

    _store: Store | None = None
    _lake: Lake | None = None

    @classmethod
    def sink(
        cls, settings: Settings, declaration: Declaration, topic_id: str, counts: Counts
    ) -> ProfileSink:
        """A new sink on the store: what other workers wrote since must not be taken from memory."""
        from profilehouse.platform import Platform  # noqa: PLC0415

        if cls._store is None:
            cls._store = Platform(settings).profile_store(declaration)
        return ProfileSink(cls._store, declaration, topic_id, counts)

    @classmethod
    def lake(cls, settings: Settings) -> Lake:
        from profilehouse.platform import Platform  # noqa: PLC0415

        if cls._lake is None:
            cls._lake = Platform(settings).lake()
        return cls._lake


def lowest(positions: Iterable[int | None]) -> int | None:
    """None where one of them is nowhere yet."""
    known = list(positions)
    there = [position for position in known if position is not None]
    return min(there) if len(there) == len(known) else None


def _records(batches: Iterable[pa.RecordBatch]) -> Iterator[Batch]:
    for records in batches:
        if records.num_rows:
            yield Batch(
                partition=records["partition"][0].as_py(),
                offsets=records["offset"].to_pylist(),
                received_at=records["timestamp"].cast(pa.int64()).to_pylist(),
                values=records["value"].to_pylist(),
            )


def _check_partition(batch: Batch, partition: int) -> None:
    if batch.partition != partition:
        raise RuntimeError("a Spark task got records of two partitions of the log")
