"""Reading the rows of a table in the order of `POSITION`, with bounded memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import reduce
from itertools import groupby, islice

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import (
    AlwaysFalse,
    AlwaysTrue,
    And,
    BooleanExpression,
    EqualTo,
    GreaterThanOrEqual,
    In,
    LessThan,
    LessThanOrEqual,
    Or,
    Reference,
)
from pyiceberg.expressions.literals import literal
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.table import DataScan, FileScanTask, Table
from pyiceberg.types import LongType

from profilehouse.lake.commit import FILES_AT_ONCE, in_order
from profilehouse.lake.layout import DAY, OFFSET, PARTITION, TOPIC

Ranges = Mapping[int, tuple[int, int]]
"""Partition of the log -> its first offset and the offset after its last one."""

ROWS_AT_ONCE = 250_000
BYTES_AT_ONCE = 32 * 1024**2
"""Rows of the log are read and put in order up to so many, or so many compressed bytes, at once."""
_EPOCH = date(1970, 1, 1)
_LARGEST = 2**63 - 1


def batches(
    table: Table,
    schema: pa.Schema,
    days: Collection[date] | None,
    topic: str | None = None,
    offsets: Ranges | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows in order of `POSITION`, in the schema; columns the table lacks are null."""
    wanted = And(those_of(days, topic), _within(offsets))
    present = {field.name for field in table.schema().fields}
    order = [name for name in (DAY, PARTITION, OFFSET) if name in present]
    selected = {*order, *(name for name in schema.names if name in present)}
    scan = table.scan(wanted, selected_fields=tuple(selected))
    tasks = sorted(scan.plan_files(), key=day_number)
    found = _of_the_log(scan, tasks, offsets) if OFFSET in present else _by_file(scan, tasks)
    for batch in found:
        columns = [
            batch[field.name].cast(field.type)
            if field.name in present
            else pa.nulls(batch.num_rows, field.type)
            for field in schema
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def days(table: Table) -> dict[date, int]:
    """The rows of each delivery day: from metadata alone where the table is partitioned by day."""
    counts: dict[date, int] = {}
    tasks = sorted(table.scan().plan_files(), key=day_number)
    if table.spec().fields and not any(task.delete_files for task in tasks):
        for task in tasks:
            counts[day_of(task)] = counts.get(day_of(task), 0) + task.file.record_count
        return counts
    for batch in batches(table, pa.schema([(DAY, pa.date32())]), None):
        for pair in pc.value_counts(batch[DAY]).to_pylist():
            counts[pair["values"]] = counts.get(pair["values"], 0) + pair["counts"]
    return dict(sorted(counts.items()))


def ordered(
    scan: DataScan, tasks: list[FileScanTask], offsets: Ranges | None = None
) -> Iterator[pa.Table]:
    """The rows of files of one day in order of partition and offset, a part of them at a time.

    The files may overlap and each hold several partitions. Space is divided, by partition and then
    by offset, until few enough rows can be in a part: offsets are never used twice.
    """
    files = [_File(task, _bounds(scan, task)) for task in tasks]
    if not files:
        return
    space = reduce(_Box.around, (file.box for file in files))
    if offsets:
        space = space.inside(_around(offsets))
    yield from _divided(scan, files, space)


def those_of(days: Collection[date] | None, topic: str | None) -> BooleanExpression:
    """The rows of these days and this topic; None means all."""
    of_days = AlwaysTrue() if days is None else _on(sorted(set(days)))
    of_topic = (
        AlwaysTrue() if topic is None else EqualTo(term=Reference(TOPIC), value=literal(topic))
    )
    return And(of_days, of_topic)


def day_of(task: FileScanTask) -> date:
    """The delivery day of the file's partition."""
    return _EPOCH + timedelta(days=day_number(task))


def day_number(task: FileScanTask) -> int:
    """Days from 1970 of the file's partition; 0 in an unpartitioned table."""
    partition = task.file.partition
    return int(partition[0]) if len(partition) else 0


def _by_file(scan: DataScan, tasks: list[FileScanTask]) -> Iterator[pa.RecordBatch]:
    """File by file: each partition of the table is one, and sorted."""
    reader = ArrowScan(scan.table_metadata, scan.io, scan.projection(), scan.row_filter)
    rest = iter(tasks)
    while some := list(islice(rest, FILES_AT_ONCE)):
        yield from reader.to_record_batches(some)


def _of_the_log(
    scan: DataScan, tasks: list[FileScanTask], offsets: Ranges | None
) -> Iterator[pa.RecordBatch]:
    for _, of_day in groupby(tasks, day_number):
        for rows in ordered(scan, list(of_day), offsets):
            yield from rows.to_batches()


@dataclass(frozen=True)
class _Box:
    """Partitions and offsets of the log, each from a first one to before an end."""

    partition: int
    partition_end: int
    offset: int
    offset_end: int

    def inside(self, other: _Box) -> _Box:
        return _Box(
            max(self.partition, other.partition),
            min(self.partition_end, other.partition_end),
            max(self.offset, other.offset),
            min(self.offset_end, other.offset_end),
        )

    def around(self, other: _Box) -> _Box:
        return _Box(
            min(self.partition, other.partition),
            max(self.partition_end, other.partition_end),
            min(self.offset, other.offset),
            max(self.offset_end, other.offset_end),
        )

    @property
    def positions(self) -> int:
        partitions = self.partition_end - self.partition
        return max(0, partitions) * max(0, self.offset_end - self.offset)

    def halves(self) -> tuple[_Box, _Box]:
        """The first and the second half in the order of partition and offset."""
        if self.partition_end - self.partition > 1:
            middle = (self.partition + self.partition_end) // 2
            return (
                _Box(self.partition, middle, self.offset, self.offset_end),
                _Box(middle, self.partition_end, self.offset, self.offset_end),
            )
        middle = (self.offset + self.offset_end) // 2
        return (
            _Box(self.partition, self.partition_end, self.offset, middle),
            _Box(self.partition, self.partition_end, middle, self.offset_end),
        )

    def expression(self) -> BooleanExpression:
        return And(
            GreaterThanOrEqual(term=Reference(PARTITION), value=literal(self.partition)),
            LessThan(term=Reference(PARTITION), value=literal(self.partition_end)),
            GreaterThanOrEqual(term=Reference(OFFSET), value=literal(self.offset)),
            LessThan(term=Reference(OFFSET), value=literal(self.offset_end)),
        )


@dataclass(frozen=True)
class _File:
    task: FileScanTask
    box: _Box

    def rows(self, box: _Box) -> int:
        """At most so many of its rows are in the box."""
        return min(self.task.file.record_count, self.box.inside(box).positions)

    def size(self, box: _Box) -> float:
        """About so many of its bytes."""
        file = self.task.file
        return self.rows(box) * file.file_size_in_bytes / max(1, file.record_count)


def _divided(scan: DataScan, files: list[_File], space: _Box) -> Iterator[pa.Table]:
    files = [file for file in files if file.rows(space)]
    if not files:
        return
    space = space.inside(reduce(_Box.around, (file.box for file in files)))
    rows = sum(file.rows(space) for file in files)
    size = sum(file.size(space) for file in files)
    if space.positions > 1 and (rows > ROWS_AT_ONCE or size > BYTES_AT_ONCE):
        for half in space.halves():
            yield from _divided(scan, files, half)
        return
    wanted = And(scan.row_filter, space.expression())
    reader = ArrowScan(scan.table_metadata, scan.io, scan.projection(), wanted)
    yield in_order(reader.to_table([file.task for file in files]))


def _bounds(scan: DataScan, task: FileScanTask) -> _Box:
    """From the file's column statistics; everything where it has none."""
    schema = scan.table_metadata.schema()
    limits: list[int] = []
    for name in (PARTITION, OFFSET):
        number = schema.find_field(name).field_id
        low = (task.file.lower_bounds or {}).get(number)
        high = (task.file.upper_bounds or {}).get(number)
        limits.append(0 if low is None else int(from_bytes(LongType(), low)))
        limits.append(_LARGEST if high is None else int(from_bytes(LongType(), high)) + 1)
    return _Box(*limits)


def _around(offsets: Ranges) -> _Box:
    return _Box(
        min(offsets),
        max(offsets) + 1,
        min(first for first, _ in offsets.values()),
        max(end for _, end in offsets.values()),
    )


def _within(offsets: Ranges | None) -> BooleanExpression:
    if offsets is None:
        return AlwaysTrue()
    parts: list[BooleanExpression] = [
        _Box(partition, partition + 1, first, end).expression()
        for partition, (first, end) in sorted(offsets.items())
        if first < end
    ]
    nothing: BooleanExpression = AlwaysFalse()
    return reduce(Or, parts, nothing)


def _on(days: list[date]) -> BooleanExpression:
    """A range where the days have no gap: it is evaluated much faster than a long list."""
    if not days:
        return AlwaysFalse()
    first, last = days[0], days[-1]
    if (last - first).days == len(days) - 1:
        return And(
            GreaterThanOrEqual(term=Reference(DAY), value=literal(first)),
            LessThanOrEqual(term=Reference(DAY), value=literal(last)),
        )
    return In(term=Reference(DAY), literals={literal(day) for day in days})
