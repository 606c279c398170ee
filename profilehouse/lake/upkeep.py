"""Keeping tables small and quick beside whoever writes them: compaction, expiry, orphan files.

None of it changes what a table's rows or positions are, and each gives way to other writers: it
tries again until it meets none.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby, pairwise
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs
from pyiceberg.exceptions import CommitFailedException, ValidationException
from pyiceberg.expressions import LessThan, Reference
from pyiceberg.expressions.literals import literal
from pyiceberg.io.fileformat import FileFormatFactory
from pyiceberg.io.pyarrow import PyArrowFileIO, _to_requested_schema
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestFile
from pyiceberg.table import FileScanTask, Table, Transaction
from pyiceberg.table.snapshots import Operation, Snapshot
from pyiceberg.table.update import RemoveSnapshotsUpdate
from pyiceberg.table.update.snapshot import _SnapshotProducer
from pyiceberg.utils.concurrent import ExecutorFactory

from profilehouse.errors import ProfilehouseError
from profilehouse.lake.commit import commit, partition_key, pause, remove
from profilehouse.lake.layout import DAY
from profilehouse.lake.reading import day_number, day_of, ordered

FILE_BYTES = 256 * 1024**2
"""Compaction makes files of about this size; those above half of it are left alone."""
STATES = 50
"""So many newest states of a table that is appended to are kept, before they are old enough."""
PATIENCE = timedelta(minutes=5)
"""For so long a commit is tried against other writers."""
_LONGEST_WAIT = 1.0
_READS = 5

_Read = TypeVar("_Read")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compacted:
    """What a compaction did: the rewritten days, their files and bytes, before and after."""

    days: tuple[date, ...] = ()
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0


@dataclass(frozen=True)
class Expired:
    """What an expiry did: states of the table that were forgotten and are left, files deleted."""

    forgotten: int = 0
    left: int = 0
    files: int = 0


@dataclass(frozen=True)
class Orphans:
    """What was cleared away, and the files that stay, needed or too young to tell."""

    files: int = 0
    bytes: int = 0
    left: int = 0


def compact(table: Table, before: date) -> Compacted:
    """Rewrite the small files of each delivery day before that one into few, in order of position.

    A day is one commit. A day that somebody else changed in the meantime waits for the next time.
    """
    if not table.spec().fields:
        return Compacted()
    closed = LessThan(term=Reference(DAY), value=literal(before))
    scan = table.scan(closed)
    rewritten: list[tuple[date, list[DataFile], list[DataFile]]] = []
    tasks = sorted(scan.plan_files(), key=day_number)
    for day, of_day in groupby(tasks, day_of):
        small = [task for task in of_day if task.file.file_size_in_bytes < FILE_BYTES // 2]
        if len(small) < 2:  # noqa: PLR2004
            continue
        begun = time.time()
        old = [task.file for task in small]
        new = list(_rewritten(table, day, small))
        if _exchanged(table, old, new, begun):
            rewritten.append((day, old, new))
    return Compacted(
        days=tuple(day for day, _, _ in rewritten),
        files_before=sum(len(old) for _, old, _ in rewritten),
        files_after=sum(len(new) for _, _, new in rewritten),
        bytes_before=sum(_size(old) for _, old, _ in rewritten),
        bytes_after=sum(_size(new) for _, _, new in rewritten),
    )


def expire(table: Table, age: timedelta) -> Expired:
    """Forget the states of the table that are older, and delete the files that only they need."""
    limit = int((datetime.now(UTC) - age).timestamp() * 1000)
    deadline = time.monotonic() + PATIENCE.total_seconds()
    attempt = 0
    while True:
        needed_before, old = _standing(table, lambda: _expiring(table, limit))
        if not old:
            return Expired(left=len(table.metadata.snapshots))
        if _forget(table, old):
            break
        if time.monotonic() > deadline:
            raise _outrun(table)
        pause(attempt, _LONGEST_WAIT)
        attempt += 1
        table.refresh()
    spent = needed_before - _standing(table, lambda: _files(table, table.metadata.snapshots))
    _delete(table, spent)
    return Expired(len(old), len(table.metadata.snapshots), len(spent))


def thin(table: Table) -> None:
    """Forget appended states beyond the newest ones: a table's metadata is written at each commit.

    A state is kept until it expires where the next one may have given up files of it. So no data
    file is lost to a reader; manifests that nothing needs any more become orphans.
    """
    if len(table.metadata.snapshots) <= 2 * STATES:
        return
    states = sorted(table.metadata.snapshots, key=lambda snapshot: snapshot.sequence_number or 0)
    unprotected = {snapshot.snapshot_id for snapshot in _unprotected(table)}
    superfluous = [
        state
        for state, following in pairwise(states[: 1 - STATES])
        if state.snapshot_id in unprotected
        and following.summary is not None
        and following.summary.operation == Operation.APPEND
        and following.parent_snapshot_id == state.snapshot_id
    ]
    if superfluous:
        _forget(table, superfluous)


def remove_orphans(table: Table, older_than: timedelta) -> Orphans:
    """Delete the files under the table's folder that no state needs and that are older than that.

    Files are listed before the table is looked at, so what is committed meanwhile is seen.
    """
    limit = datetime.now(UTC) - older_than
    folder, filesystem = _place(table)
    found = filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    files = [info for info in found if info.type == fs.FileType.File]
    old = [info for info in files if info.mtime < limit]
    if not old:
        return Orphans(left=len(files))
    table.refresh()
    needed = {_path(location) for location in _standing(table, lambda: _all_files(table))}
    orphans = [info for info in old if info.path not in needed]
    _delete(table, [info.path for info in orphans], filesystem)
    return Orphans(
        files=len(orphans),
        bytes=sum(info.size for info in orphans),
        left=len(files) - len(orphans),
    )


class _Rewriting:
    """Files for files with the same rows: one snapshot, so no state lacks rows."""

    def __init__(self, old: list[DataFile], new: list[DataFile]) -> None:
        self._old = old
        self._new = new

    def __call__(self, transaction: Transaction) -> Sequence[_SnapshotProducer[Any]]:
        with transaction.update_snapshot().overwrite() as exchange:
            for file in self._old:
                exchange.delete_data_file(file)
            for file in self._new:
                exchange.append_data_file(file)
        return [exchange]


def _exchanged(table: Table, old: list[DataFile], new: list[DataFile], begun: float) -> bool:
    """Commit new files for old ones; False where the old ones are no longer the table's."""
    if sum(f.record_count for f in old) != sum(f.record_count for f in new):
        remove(table, new)
        raise ProfilehouseError(
            f"lake table {table.name()[-1]} at {table.location()}: rows of"
            f" {old[0].file_path} and {len(old) - 1} more could not all be read;"
            " nothing was changed; check these files"
        )
    deadline = time.monotonic() + PATIENCE.total_seconds()
    attempt = 0
    while time.monotonic() < deadline:
        table.refresh()
        try:
            commit(table, _Rewriting(old, new), begun)
        except CommitFailedException as error:
            logger.info("table %s was changed meanwhile, again: %s", table.name(), error)
            pause(attempt, _LONGEST_WAIT)
            attempt += 1
        except ValidationException as error:
            logger.info("table %s: its files were replaced meanwhile: %s", table.name(), error)
            remove(table, new)
            return False
        else:
            return True
    remove(table, new)
    raise _outrun(table)


def _rewritten(table: Table, day: date, tasks: list[FileScanTask]) -> Iterator[DataFile]:
    """The rows of a day's files in new files of about `FILE_BYTES`."""
    rows = sum(task.file.record_count for task in tasks)
    count = math.ceil(_size(task.file for task in tasks) / FILE_BYTES)
    key = partition_key(table, day)
    model = FileFormatFactory.get(FileFormat.PARQUET)
    for number, parts in enumerate(
        _cut(ordered(table.scan(), tasks), math.ceil(rows / count)),
    ):
        location = table.location_provider().new_data_location(
            f"{number:05}-{uuid.uuid4()}.{model.file_extension()}", key
        )
        output = table.io.new_output(location)
        writer = model.create_writer(output, table.schema(), table.metadata.properties)
        with writer:
            for part in parts:
                writer.write(_as_declared(table, part))
        yield DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=location,
            file_format=FileFormat.PARQUET,
            partition=key.partition,
            file_size_in_bytes=len(output),
            sort_order_id=None,
            spec_id=table.metadata.default_spec_id,
            equality_ids=None,
            key_metadata=None,
            **writer.result().to_serialized_dict(),
        )


def _as_declared(table: Table, rows: pa.Table) -> pa.Table:
    """With the field ids and nullability that the table's Parquet files have."""
    batches = [
        _to_requested_schema(
            table.schema(),
            table.schema(),
            batch,
            include_field_ids=True,
            format_model=FileFormatFactory.get(FileFormat.PARQUET),
        )
        for batch in rows.to_batches()
    ]
    return pa.Table.from_batches(batches)


def _cut(parts: Iterator[pa.Table], rows: int) -> Iterator[Iterator[pa.Table]]:
    """The parts, grouped into so many rows each; each group is used up before the next."""
    rest: list[pa.Table] = []

    def group() -> Iterator[pa.Table]:
        missing = rows
        while missing:
            part = rest.pop() if rest else next(parts, None)
            if part is None:
                return
            if part.num_rows > missing:
                rest.append(part.slice(missing))
            part = part.slice(0, missing)
            missing -= part.num_rows
            if part.num_rows:
                yield part

    while True:
        if not rest:
            following = next((part for part in parts if part.num_rows), None)
            if following is None:
                return
            rest.append(following)
        yield group()


def _unprotected(table: Table) -> list[Snapshot]:
    """The snapshots that no branch or tag names."""
    named = {reference.snapshot_id for reference in table.metadata.refs.values()}
    return [s for s in table.metadata.snapshots if s.snapshot_id not in named]


def _forget(table: Table, snapshots: list[Snapshot]) -> bool:
    """Whether it succeeded: another writer may have been quicker."""
    gone = RemoveSnapshotsUpdate(snapshot_ids=[snapshot.snapshot_id for snapshot in snapshots])
    try:
        Transaction(table, autocommit=True)._apply((gone,))
    except (CommitFailedException, ValueError):  # ValueError: some of them are forgotten already
        return False
    return True


def _expiring(table: Table, limit: int) -> tuple[set[str], list[Snapshot]]:
    old = [s for s in _unprotected(table) if s.timestamp_ms < limit]
    return _files(table, old), old


def _standing(table: Table, read: Callable[[], _Read]) -> _Read:
    """What is read of the table's states, of newer ones where another expiry took those away."""
    for _ in range(_READS):
        try:
            return read()
        except FileNotFoundError as error:
            logger.info("table %s was expired meanwhile, again: %s", table.name(), error)
            table.refresh()
    return read()


def _files(table: Table, snapshots: Sequence[Snapshot]) -> set[str]:
    """All files that reading these snapshots needs: manifest lists, manifests and data."""
    executor = ExecutorFactory.get_or_create()
    manifests: dict[str, ManifestFile] = {}
    for some in executor.map(lambda snapshot: snapshot.manifests(table.io), snapshots):
        manifests.update((manifest.manifest_path, manifest) for manifest in some)
    paths = {snapshot.manifest_list for snapshot in snapshots} | set(manifests)
    for entries in executor.map(
        lambda m: [e.data_file.file_path for e in m.fetch_manifest_entry(table.io)],
        manifests.values(),
    ):
        paths.update(entries)
    return paths


def _all_files(table: Table) -> set[str]:
    metadata = table.metadata
    return (
        _files(table, metadata.snapshots)
        | {table.metadata_location}
        | {entry.metadata_file for entry in metadata.metadata_log}
        | {statistics.statistics_path for statistics in metadata.statistics}
        | {statistics.statistics_path for statistics in metadata.partition_statistics}
    )


def _delete(
    table: Table, locations: Collection[str], filesystem: fs.FileSystem | None = None
) -> None:
    """Delete files, several at once; those gone already are no matter."""

    def delete(location: str) -> None:
        try:
            if filesystem is None:
                table.io.delete(location)
            else:
                filesystem.delete_file(location)
        except FileNotFoundError:
            logger.info("%s was gone already", location)

    list(ExecutorFactory.get_or_create().map(delete, locations))


def _place(table: Table) -> tuple[str, fs.FileSystem]:
    if not isinstance(table.io, PyArrowFileIO):
        raise TypeError(f"{type(table.io)} cannot list files")
    scheme, netloc, path = PyArrowFileIO.parse_location(table.location())
    return path, table.io.fs_by_scheme(scheme, netloc)


def _path(location: str) -> str:
    return PyArrowFileIO.parse_location(location)[2]


def _size(files: Iterable[DataFile]) -> int:
    return sum(file.file_size_in_bytes for file in files)


def _outrun(table: Table) -> ProfilehouseError:
    return ProfilehouseError(
        f"lake table {table.name()[-1]} at {table.location()}: other writers were quicker for"
        f" {PATIENCE}; run again when less is written"
    )
