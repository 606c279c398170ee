"""The live path on Spark: micro-batches of the log, folded and written by the executors.

Belongs here: what a task does with its partition's records, and what the driver commits. Does not
belong here: decoding, folding and storing, which are the one-process engine's own.

Spark keeps a checkpoint of offsets and nothing else, and even that is only where it reads next:
every commit is compare-and-set on the position it starts from, so a micro-batch that is run again
changes nothing. Where a sink stands *before* a micro-batch (a rebuilt generation, a checkpoint that
is ahead) the task writes nothing and says so, and the driver first has the missing records read.
Without a checkpoint Spark begins where the sinks stand.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.errors import StaleWriter
from profilehouse.events.web import DEAD_LETTERS, EVENTS, decode
from profilehouse.log import Batch
from profilehouse.profiles.features import Declaration
from profilehouse.settings import Settings
from profilehouse.stream.profiles import Counts, Part, ProfileSink

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyspark.sql import DataFrame

TABLES = (EVENTS, DEAD_LETTERS)
COLUMNS = ("partition", "offset", "timestamp", "value")
"""Of Spark's Kafka source: what a task reads."""

_ROUNDS = 10
"""So often a micro-batch is tried while rebuilt generations fall behind it."""


@dataclass(frozen=True)
class Task:
    """What every task is told.

    Attributes:
        settings: of the platform.
        declaration: what profiles hold.
        topic_id: of the log.
        lake: table -> positions, as the driver read them before the micro-batch.
        covered: partition -> offset from which on no record is missing up to the first the task
            gets; for a partition that is not named, that first record's own.
    """

    settings: Settings
    declaration: Declaration
    topic_id: str
    lake: Mapping[str, Mapping[int, int]]
    covered: Mapping[int, int]


@dataclass
class Outcome:
    """What a task did with its partition, small enough for the driver.

    Attributes:
        partition: of the log.
        first: offset of the first record it was given.
        end: offset after the last.
        is_behind: whether the driver has to run the partition again: a sink lacks records before
            `first`, or another writer came between. Profiles may be written, no file is.
        behind: where the lowest sink stands then; None for nowhere.
        files: the lake's data files, by table; not committed.
        counts: of the profiles.
        refused: dead letters that the lake did not hold yet.
    """

    partition: int
    first: int
    end: int
    is_behind: bool = False
    behind: int | None = None
    files: dict[str, list[DataFile]] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    refused: int = 0


def run_batch(
    frame: DataFrame,
    task: Callable[[Mapping[int, int]], Task],
    between: Callable[[int, int | None, int], DataFrame],
    commit: Callable[[Sequence[Outcome]], None],
) -> list[Outcome]:
    """Write a micro-batch, and first what the sinks lack before it.

    Args:
        frame: the micro-batch, COLUMNS of one topic, a task a partition of the log.
        task: what to tell the tasks, given `covered`; asked anew each round.
        between: the records of (partition, from, to), None for the partition's beginning.
        commit: commits the files to the lake.
    """
    covered: dict[int, int] = {}
    done: list[Outcome] = []
    for _ in range(_ROUNDS):
        outcomes = _run(frame, task(covered))
        written = [outcome for outcome in outcomes if not outcome.is_behind]
        commit(written)
        done += written
        late = [outcome for outcome in outcomes if outcome.is_behind]
        if not late:
            return done
        for outcome in late:
            start = outcome.behind or 0
            if start >= outcome.first:
                continue  # another writer was faster; the next round skips what it wrote
            missing = between(outcome.partition, outcome.behind, outcome.first)
            found = _run(missing, task({**covered, outcome.partition: start}))
            commit([each for each in found if not each.is_behind])
            if not any(each.is_behind for each in found):
                covered[outcome.partition] = max([start, *(each.end for each in found)])
    raise RuntimeError("the sinks were put back faster than the log could be read")


def _run(frame: DataFrame, task: Task) -> list[Outcome]:
    def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        outcome = write_partition(batches, task)
        if outcome is not None:
            yield pa.RecordBatch.from_pydict({"outcome": [pickle.dumps(outcome)]})

    rows = frame.select(*COLUMNS).mapInArrow(work, "outcome binary").collect()
    return [pickle.loads(bytes(row.outcome)) for row in rows]  # noqa: S301


def write_partition(batches: Iterable[pa.RecordBatch], task: Task) -> Outcome | None:
    """Fold a partition's records into the profiles and write the lake's files; in an executor."""
    from profilehouse.platform import Platform  # noqa: PLC0415

    records = (_batch(each) for each in batches if each.num_rows)
    first = next(records, None)
    if first is None:
        return None
    partition, begin = first.partition, first.offsets[0]
    outcome = Outcome(partition, begin, begin)
    platform = Platform(task.settings)
    with platform.profile_store(task.declaration) as store:
        sink = ProfileSink(store, task.declaration, task.topic_id, outcome.counts)
        stands = [
            sink.positions.get(partition),
            *(task.lake[table].get(partition) for table in TABLES),
        ]
        lowest = _lowest(stands)
        if (lowest or 0) < task.covered.get(partition, begin):
            outcome.is_behind, outcome.behind = True, lowest
            return outcome
        tables: dict[str, list[pa.Table]] = {table: [] for table in TABLES}
        for batch in _chain(first, records):
            if batch.partition != partition:
                raise RuntimeError("a Spark task got records of two partitions of the log")
            decoded = decode(batch, task.topic_id)
            try:
                sink.write([Part(partition, batch.next_offset, decoded)])
            except StaleWriter:
                stands[0] = sink.resume().get(partition)
                outcome.is_behind, outcome.behind = True, _lowest(stands)
                return outcome
            tables[EVENTS].append(decoded.events)
            tables[DEAD_LETTERS].append(decoded.dead)
            outcome.end = batch.next_offset
    lake = platform.lake()
    for name, parts in tables.items():
        rows = pa.concat_tables(parts)
        stored = task.lake[name].get(partition, 0)
        rows = rows.filter(pc.greater_equal(rows["log_offset"], stored))
        outcome.files[name] = lake.write_files(name, rows)
        if name == DEAD_LETTERS:
            outcome.refused = rows.num_rows
    return outcome


def _lowest(stands: Sequence[int | None]) -> int | None:
    """None where one of them holds nothing yet."""
    known = [each for each in stands if each is not None]
    return min(known) if len(known) == len(stands) else None


def _batch(records: pa.RecordBatch) -> Batch:
    places = pc.unique(records["partition"])
    if len(places) != 1:
        raise RuntimeError("a Spark task got records of two partitions of the log")
    return Batch(
        partition=places[0].as_py(),
        offsets=records["offset"].to_pylist(),
        received_at=records["timestamp"].cast(pa.int64()).to_pylist(),
        values=records["value"].to_pylist(),
    )


def _chain(first: Batch, others: Iterator[Batch]) -> Iterator[Batch]:
    yield first
    yield from others


def kafka_range(topic: str, partition: int, begin: int | None, end: int) -> dict[str, Any]:
    """Options of Spark's Kafka source that read a range of one partition."""
    start = -2 if begin is None else begin  # -2: the beginning of what is kept
    return {
        "assign": json.dumps({topic: [partition]}),
        "startingOffsets": json.dumps({topic: {str(partition): start}}),
        "endingOffsets": json.dumps({topic: {str(partition): end}}),
    }
