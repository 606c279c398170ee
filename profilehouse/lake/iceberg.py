"""Replacing and reading the rows of one Iceberg table.

Each partition (a delivery day, or the whole of an unpartitioned table) is one file, in the order of
`POSITION`. A replacement writes anew the partitions it touches, so nothing ever needs compaction.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Collection, Iterator
from datetime import date, timedelta
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.expressions import (
    AlwaysFalse,
    AlwaysTrue,
    And,
    BooleanExpression,
    EqualTo,
    GreaterThanOrEqual,
    In,
    LessThanOrEqual,
    Not,
    Reference,
)
from pyiceberg.expressions.literals import literal
from pyiceberg.io.pyarrow import ArrowScan, write_file
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PartitionFieldValue, PartitionKey
from pyiceberg.table import FileScanTask, Table, WriteTask

from profilehouse.errors import ProfilehouseError
from profilehouse.lake.layout import DAY, POSITION, TOPIC

FILES_AT_ONCE = 16
"""Files written or read together: bounds the memory, keeps the cores busy."""
ATTEMPTS = 30
_LONGEST_WAIT = 2.0
_EPOCH = date(1970, 1, 1)

logger = logging.getLogger(__name__)


def replace(table: Table, rows: pa.Table, days: Collection[date], topic: str | None) -> None:
    """Replace the rows of the days (and topic) by `rows`, in one snapshot.

    Optimistic: the files are written, then committed on condition that the table is as it was
    planned on; where it is not, planned again on the newer table.

    Raises:
        ProfilehouseError: where other writers were quicker at every attempt.
    """
    goes = _filter(days, topic)
    touched = _filter(days, None) if table.spec().fields else AlwaysTrue()
    partly = goes != touched
    written: list[DataFile] = []
    for attempt in range(ATTEMPTS):
        old = list(table.scan(touched).plan_files())
        if attempt == 0 or partly:
            _remove(table, written)
            stay = _rows(table, old, Not(goes), rows.schema) if partly else rows.slice(0, 0)
            written = write(table, pa.concat_tables([stay, rows]))
        if not old and not written:
            return
        try:
            _commit(table, [task.file for task in old], written)
            return
        except CommitFailedException as error:
            logger.info("table %s was changed meanwhile, again: %s", table.name(), error)
            time.sleep(random.uniform(0, min(_LONGEST_WAIT, 0.05 * 2**attempt)))  # noqa: S311
            table.refresh()
    _remove(table, written)
    raise ProfilehouseError(
        f"lake table {table.name()[-1]} at {table.location()}: other writers were quicker"
        f" {ATTEMPTS} times; let fewer runs write it at once, and run again"
    )


def batches(
    table: Table, schema: pa.Schema, days: Collection[date] | None, topic: str | None
) -> Iterator[pa.RecordBatch]:
    """The rows in order of `POSITION`, in the schema; columns the table lacks are null."""
    wanted = _filter(days, topic)
    present = {field.name for field in table.schema().fields}
    selected = (DAY, *(name for name in schema.names if name in present))
    scan = table.scan(wanted, selected_fields=selected)
    reader = ArrowScan(table.metadata, table.io, scan.projection(), wanted)
    tasks = iter(sorted(scan.plan_files(), key=_day_number))
    while some := list(islice(tasks, FILES_AT_ONCE)):
        for batch in reader.to_record_batches(some):
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
    tasks = sorted(table.scan().plan_files(), key=_day_number)
    if table.spec().fields and not any(task.delete_files for task in tasks):
        for task in tasks:
            day = _EPOCH + timedelta(days=_day_number(task))
            counts[day] = counts.get(day, 0) + task.file.record_count
        return counts
    for batch in batches(table, pa.schema([(DAY, pa.date32())]), None, None):
        for pair in pc.value_counts(batch[DAY]).to_pylist():
            counts[pair["values"]] = counts.get(pair["values"], 0) + pair["counts"]
    return dict(sorted(counts.items()))


def write(table: Table, rows: pa.Table) -> list[DataFile]:
    """Write the rows, a file a partition, each in order of `POSITION`. Nothing is committed."""
    if rows.num_rows == 0:
        return []
    rows = _in_order(rows.select([field.name for field in table.schema().fields]))
    tasks = _write_tasks(table, rows)
    files: list[DataFile] = []
    while some := list(islice(tasks, FILES_AT_ONCE)):
        files.extend(write_file(table.io, table.metadata, iter(some)))
    return files


def _in_order(rows: pa.Table) -> pa.Table:
    keys = [(name, "ascending") for name in POSITION if name in rows.column_names]
    order = pc.sort_indices(rows, keys)
    steps = np.diff(order.to_numpy().astype(np.int64))
    return rows if np.all(steps == 1) else rows.take(order)


def _write_tasks(table: Table, rows: pa.Table) -> Iterator[WriteTask]:
    write_id = uuid.uuid4()
    for number, (start, length, key) in enumerate(_partitions(table, rows)):
        yield WriteTask(
            write_uuid=write_id,
            task_id=number,
            schema=table.schema(),
            record_batches=rows.slice(start, length).to_batches(),
            partition_key=key,
        )


def _partitions(table: Table, rows: pa.Table) -> Iterator[tuple[int, int, PartitionKey | None]]:
    """(start, length, partition) of each partition's rows, which stand together."""
    if not table.spec().fields:
        yield 0, rows.num_rows, None
        return
    days = pc.run_end_encode(rows[DAY].combine_chunks())
    start = 0
    for end, day in zip(days.run_ends.to_pylist(), days.values.to_pylist(), strict=True):
        values = [PartitionFieldValue(table.spec().fields[0], day)]
        yield start, end - start, PartitionKey(values, table.spec(), table.schema())
        start = end


def _commit(table: Table, old: list[DataFile], new: list[DataFile]) -> None:
    """One snapshot. An append merges small manifests; an overwrite cannot."""
    with table.transaction() as transaction:
        update = transaction.update_snapshot()
        with update.overwrite() if old else update.merge_append() as snapshot:
            for file in old:
                snapshot.delete_data_file(file)
            for file in new:
                snapshot.append_data_file(file)


def _rows(
    table: Table, tasks: list[FileScanTask], wanted: BooleanExpression, schema: pa.Schema
) -> pa.Table:
    found = ArrowScan(table.metadata, table.io, table.schema(), wanted).to_table(tasks)
    return found.select(schema.names).cast(schema)


def _remove(table: Table, files: list[DataFile]) -> None:
    for file in files:
        table.io.delete(file.file_path)


def _filter(days: Collection[date] | None, topic: str | None) -> BooleanExpression:
    of_days = AlwaysTrue() if days is None else _on(sorted(set(days)))
    of_topic = (
        AlwaysTrue() if topic is None else EqualTo(term=Reference(TOPIC), value=literal(topic))
    )
    return And(of_days, of_topic)


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


def _day_number(task: FileScanTask) -> int:
    """Days from 1970 of the file's partition; 0 in an unpartitioned table."""
    partition = task.file.partition
    return int(partition[0]) if len(partition) else 0
