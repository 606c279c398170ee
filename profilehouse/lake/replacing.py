"""Replacing the rows of delivery days, in one commit.

Each partition (a delivery day, or the whole of an unpartitioned table) becomes one file, so what is
only ever replaced needs no compaction.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.expressions import AlwaysTrue, BooleanExpression, Not
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask, Table, Transaction
from pyiceberg.table.update.snapshot import _SnapshotProducer

from profilehouse.errors import ProfilehouseError
from profilehouse.lake.commit import commit, pause, remove, write
from profilehouse.lake.reading import those_of
from profilehouse.lake.upkeep import expire

ATTEMPTS = 30
SNAPSHOTS = 200
"""Above so many, a table's snapshots older than HISTORY are expired."""
HISTORY = timedelta(days=1)
_LONGEST_WAIT = 2.0

logger = logging.getLogger(__name__)


def replace(
    table: Table,
    rows: pa.Table,
    days: Collection[date],
    topic: str | None,
    parts: Sequence[DataFile] = (),
    begun: float | None = None,
) -> None:
    """Replace the rows of the days (and topic) by `rows`, in one commit.

    Optimistic: the files are written, then committed on condition that the table is as it was
    planned on; where it is not, planned again on the newer table.

    Args:
        table: theirs.
        rows: to be written.
        days: whose rows go.
        topic: whose rows go; everybody's where None.
        parts: files with more of the new rows, written already.
        begun: time.time() before the first of these was written.

    Raises:
        ProfilehouseError: where other writers were quicker at every attempt.
    """
    goes = those_of(days, topic)
    touched = those_of(days, None) if table.spec().fields else AlwaysTrue()
    partly = goes != touched
    written: list[DataFile] = []
    since = begun or time.time()
    for attempt in range(ATTEMPTS):
        old = list(table.scan(touched).plan_files())
        if attempt == 0 or partly:
            remove(table, written)
            since = begun or time.time()
            stay = _rows(table, old, Not(goes), rows.schema) if partly else rows.slice(0, 0)
            written = write(table, pa.concat_tables([stay, rows]))
        if not old and not written and not parts:
            return
        try:
            commit(table, _Exchange([task.file for task in old], [*parts, *written]), since)
        except CommitFailedException as error:
            logger.info("table %s was changed meanwhile, again: %s", table.name(), error)
            pause(attempt, _LONGEST_WAIT)
            table.refresh()
        else:
            if len(table.metadata.snapshots) > SNAPSHOTS:
                expire(table, HISTORY)
            return
    remove(table, [*parts, *written])
    raise ProfilehouseError(
        f"lake table {table.name()[-1]} at {table.location()}: other writers were quicker"
        f" {ATTEMPTS} times; let fewer runs write it at once, and run again"
    )


class _Exchange:
    """Files for files. The append is a step of its own: only that merges spent manifests."""

    def __init__(self, old: list[DataFile], new: list[DataFile]) -> None:
        self._old = old
        self._new = new

    def __call__(self, transaction: Transaction) -> Sequence[_SnapshotProducer[Any]]:
        made: list[_SnapshotProducer[Any]] = []
        if self._old:
            with transaction.update_snapshot().overwrite() as removal:
                for file in self._old:
                    removal.delete_data_file(file)
            made.append(removal)
        if self._new:
            with transaction.update_snapshot().merge_append() as addition:
                for file in self._new:
                    addition.append_data_file(file)
            made.append(addition)
        return made


def _rows(
    table: Table, tasks: list[FileScanTask], wanted: BooleanExpression, schema: pa.Schema
) -> pa.Table:
    found = ArrowScan(table.metadata, table.io, table.schema(), wanted).to_table(tasks)
    return found.select(schema.names).cast(schema)
