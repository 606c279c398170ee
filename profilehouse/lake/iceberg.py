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
from datetime import UTC, date, datetime, timedelta
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
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot

from profilehouse.errors import ProfilehouseError
from profilehouse.lake.layout import DAY, POSITION, TOPIC

FILES_AT_ONCE = 16
"""Files written or read together: bounds the memory, keeps the cores busy."""
ATTEMPTS = 30
SNAPSHOTS = 200
"""Above so many, a table's snapshots older than HISTORY are expired."""
HISTORY = timedelta(days=1)
_LONGEST_WAIT = 2.0
_EPOCH = date(1970, 1, 1)

logger = logging.getLogger(__name__)


def replace(table: Table, rows: pa.Table, days: Collection[date], topic: str | None) -> None:
    """Replace the rows of the days (and topic) by `rows`, in one commit.

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
        except CommitFailedException as error:
            logger.info("table %s was changed meanwhile, again: %s", table.name(), error)
            time.sleep(random.uniform(0, min(_LONGEST_WAIT, 0.05 * 2**attempt)))  # noqa: S311
            table.refresh()
        else:
            if len(table.metadata.snapshots) > SNAPSHOTS:
                expire(table, HISTORY)
            return
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


def expire(table: Table, age: timedelta) -> None:
    """Forget the states of the table that are older, and delete the files that only they need."""
    before = int((datetime.now(UTC) - age).timestamp() * 1000)
    current = table.metadata.current_snapshot_id
    old = [
        snapshot
        for snapshot in table.metadata.snapshots
        if snapshot.timestamp_ms < before and snapshot.snapshot_id != current
    ]
    if not old:
        return
    needed_before = _files(table, old)
    try:
        table.maintenance.expire_snapshots().by_ids([s.snapshot_id for s in old]).commit()
    except CommitFailedException:
        return  # another writer was quicker: it, or the next one, expires them
    for path in needed_before - _files(table, table.metadata.snapshots):
        table.io.delete(path)


def _files(table: Table, snapshots: list[Snapshot]) -> set[str]:
    """All files that reading these snapshots needs: manifest lists, manifests and data."""
    paths: set[str] = set()
    for snapshot in snapshots:
        paths.add(snapshot.manifest_list)
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path not in paths:
                paths.add(manifest.manifest_path)
                entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
                paths.update(entry.data_file.file_path for entry in entries)
    return paths


def _commit(table: Table, old: list[DataFile], new: list[DataFile]) -> None:
    """One commit. The append is a step of its own: only that drops and merges spent manifests."""
    table.metadata = _without_history(table.metadata)
    with table.transaction() as transaction:
        if old:
            with transaction.update_snapshot().overwrite() as removal:
                for file in old:
                    removal.delete_data_file(file)
        if new:
            with transaction.update_snapshot().merge_append() as addition:
                for file in new:
                    addition.append_data_file(file)


def _without_history(metadata: TableMetadata) -> TableMetadata:
    """With the current snapshot alone: pyiceberg copies all of them at every step of a commit."""
    current = metadata.current_snapshot()
    snapshots = [] if current is None else [current]
    return metadata.model_copy(update={"snapshots": snapshots, "snapshot_log": []})


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
