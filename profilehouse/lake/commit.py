"""Writing data files and committing them: what every change of a table shares.

Rows are written in the order of `POSITION`. Commits are optimistic: they succeed on condition that
the table is as it was when they were made.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import write_file
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PartitionFieldValue, PartitionKey
from pyiceberg.table import Table, Transaction, WriteTask
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update.snapshot import _SnapshotProducer

from profilehouse.errors import ProfilehouseError
from profilehouse.lake.durable import sync
from profilehouse.lake.layout import DAY, POSITION

FILES_AT_ONCE = 16
"""Files written or read together: bounds the memory, keeps the cores busy."""
LONGEST = timedelta(hours=12)
"""A commit that takes longer is given up: an older file that no state needs never will be."""

Change = Callable[[Transaction], Sequence[_SnapshotProducer[Any]]]
"""Stages a commit's changes; gives back the snapshots it makes."""

logger = logging.getLogger(__name__)


def write(table: Table, rows: pa.Table) -> list[DataFile]:
    """Write the rows, a file a partition, each in order of `POSITION`. Nothing is committed."""
    if rows.num_rows == 0:
        return []
    rows = in_order(rows.select([field.name for field in table.schema().fields]))
    tasks = _write_tasks(table, rows)
    files: list[DataFile] = []
    while some := list(islice(tasks, FILES_AT_ONCE)):
        files.extend(write_file(table.io, table.metadata, iter(some)))
    return files


def remove(table: Table, files: Sequence[DataFile]) -> None:
    """Delete files that no commit refers to."""
    for file in files:
        try:
            table.io.delete(file.file_path)
        except FileNotFoundError:
            logger.info("%s was gone already", file.file_path)


def commit(table: Table, change: Change, begun: float) -> None:
    """Make the changes in one commit; `table` is then as committed, or as it is now.

    Args:
        table: as the changes were planned on.
        change: adds and removes data files, sets properties.
        begun: time.time() before the first of its files was written.

    Raises:
        CommitFailedException: where the table was changed meanwhile; nothing was committed.
        ProfilehouseError: where the commit took so long that its files may have been cleared away.
    """
    table.metadata = _without_history(table.metadata)
    transaction = _Transaction(table)
    made = change(transaction)
    # pyiceberg would delete the manifests of a commit that is reported as failed. It may have
    # landed: its answer was lost, and the client of the catalog sent it again, in vain.
    transaction._snapshot_producers.clear()
    if time.time() - begun > LONGEST.total_seconds():
        raise ProfilehouseError(
            f"lake table {table.name()[-1]} at {table.location()}: a commit took longer than"
            f" {LONGEST}; was the machine asleep? Run again"
        )
    for snapshot in made:
        sync(file.file_path for file in snapshot._added_data_files)
        sync((*snapshot._written_manifests, *snapshot._written_manifest_lists))
    try:
        transaction.commit_transaction()
    except CommitFailedException:
        table.refresh()
        if all(table.snapshot_by_id(snapshot.snapshot_id) for snapshot in made):
            return
        for snapshot in made:
            snapshot._clean_all_uncommitted()
        raise


def pause(attempt: int, longest: float) -> None:
    """Wait a random while before the next attempt, so that writers do not meet again."""
    time.sleep(random.uniform(0, min(longest, 0.05 * 2**attempt)))  # noqa: S311


def in_order(rows: pa.Table) -> pa.Table:
    """The rows in order of `POSITION`."""
    keys = [(name, "ascending") for name in POSITION if name in rows.column_names]
    order = pc.sort_indices(rows, keys)
    steps = np.diff(order.to_numpy().astype(np.int64))
    return rows if np.all(steps == 1) else rows.take(order)


def partition_key(table: Table, day: date) -> PartitionKey:
    """The partition of a delivery day."""
    values = [PartitionFieldValue(table.spec().fields[0], day)]
    return PartitionKey(values, table.spec(), table.schema())


class _Transaction(Transaction):
    """Works the metadata out once for each change: pyiceberg copies it at every look."""

    _known: tuple[int, TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        if self._known is None or self._known[0] != len(self._updates):
            self._known = len(self._updates), super().table_metadata
        return self._known[1]


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
        yield start, end - start, partition_key(table, day)
        start = end


def _without_history(metadata: TableMetadata) -> TableMetadata:
    """With the current snapshot alone: pyiceberg copies all of them at every step of a commit."""
    current = metadata.current_snapshot()
    snapshots = [] if current is None else [current]
    return metadata.model_copy(update={"snapshots": snapshots, "snapshot_log": []})
