"""Appending what a log holds: rows and the log's positions in one commit, each exactly once.

The positions are table properties, one a partition of the log, changed in the commit that adds the
rows up to them. A commit is compare-and-set: on the table being as it was read, and on the
positions being those the writer starts from.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table, Transaction
from pyiceberg.table.update.snapshot import _SnapshotProducer

from profilehouse.errors import ForeignTopic, ProfilehouseError, StaleWriter
from profilehouse.lake.commit import commit, pause, remove, write
from profilehouse.lake.layout import OFFSET, PARTITION, TOPIC_ID
from profilehouse.lake.upkeep import thin

ATTEMPTS = 30
_LONGEST_WAIT = 0.5
_AT_ONCE = 3
"""So many attempts are made without a pause: who is in the way is upkeep, which waits."""
_TOPIC_PROPERTY = "profilehouse.topic_id"
_POSITION_PROPERTY = "profilehouse.position."

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Positions:
    """Up to where a table holds the log.

    Attributes:
        topic_id: of the log; None where nothing was appended yet.
        offsets: for each partition of the log, the offset of the first record not appended.
    """

    topic_id: str | None
    offsets: dict[int, int]


def positions(table: Table) -> Positions:
    """What the table's properties say."""
    properties = table.metadata.properties
    return Positions(
        topic_id=properties.get(_TOPIC_PROPERTY),
        offsets={
            int(name.removeprefix(_POSITION_PROPERTY)): int(value)
            for name, value in sorted(properties.items())
            if name.startswith(_POSITION_PROPERTY)
        },
    )


def append(
    table: Table,
    rows: pa.Table,
    topic_id: str,
    before: Mapping[int, int],
    after: Mapping[int, int],
) -> None:
    """Add the rows and move the positions from `before` to `after`, in one commit.

    Every commit makes a snapshot, even without rows: so the catalog's own comparison of the
    snapshot that a commit starts from guards the positions too.

    Args:
        table: as it is now.
        rows: as `check_rows` wants them.
        topic_id: of the log.
        before: the stored offset of each partition of `after` that has one.
        after: the new offsets.

    Raises:
        StaleWriter: where other positions are stored; nothing of the rows stays.
        ProfilehouseError: where the table holds another topic.
    """
    _compare(table, topic_id, before, after)
    begun = time.time()
    add(table, write(table, rows), topic_id, before, after, begun)


def add(
    table: Table,
    files: list[DataFile],
    topic_id: str,
    before: Mapping[int, int],
    after: Mapping[int, int],
    begun: float,
) -> None:
    """As `append`, of files that are written already, by `write`; they go where it fails.

    Args:
        begun: time.time() before the first of the files was written.
    """
    try:
        _compare(table, topic_id, before, after)
    except ProfilehouseError:
        remove(table, files)
        raise
    for attempt in range(ATTEMPTS):
        try:
            commit(table, _Addition(files, topic_id, after), begun)
        except CommitFailedException as error:
            logger.info("table %s was changed meanwhile, again: %s", table.name(), error)
        else:
            thin(table)
            return
        try:
            _compare(table, topic_id, before, after)
        except ProfilehouseError:
            remove(table, files)
            raise
        if attempt >= _AT_ONCE:
            pause(attempt - _AT_ONCE, _LONGEST_WAIT)
            table.refresh()
    remove(table, files)
    raise ProfilehouseError(
        f"{_named(table)}: other writers were quicker {ATTEMPTS} times; let fewer processes write"
        " it at once, and start again"
    )


def check_rows(
    rows: pa.Table, topic_id: str, before: Mapping[int, int], after: Mapping[int, int]
) -> None:
    """See that the rows are of the topic and lie from `before` up to `after`.

    Raises:
        ValueError: where they do not.
    """
    if set(before) - set(after):
        raise ValueError(f"positions before, {before}, of partitions that have none after: {after}")
    if any(offset < before.get(partition, 0) for partition, offset in after.items()):
        raise ValueError(f"positions never go back, as from {before} to {after}")
    strange = set(pc.unique(rows[TOPIC_ID]).to_pylist()) - {topic_id}
    if strange:
        raise ValueError(f"rows of other topics than {topic_id}: {strange}")
    extremes = rows.group_by(PARTITION).aggregate([(OFFSET, "min"), (OFFSET, "max")])
    for partition, lowest, highest in zip(
        *(extremes[name].to_pylist() for name in (PARTITION, f"{OFFSET}_min", f"{OFFSET}_max")),
        strict=True,
    ):
        if not before.get(partition, 0) <= lowest <= highest < after.get(partition, 0):
            raise ValueError(
                f"rows of partition {partition} from {lowest} to {highest} are not between the"
                f" positions {before} and {after}"
            )


class _Addition:
    def __init__(self, files: list[DataFile], topic_id: str, after: Mapping[int, int]) -> None:
        self._files = files
        self._properties = {
            _TOPIC_PROPERTY: topic_id,
            **{f"{_POSITION_PROPERTY}{p}": str(offset) for p, offset in after.items()},
        }

    def __call__(self, transaction: Transaction) -> Sequence[_SnapshotProducer[Any]]:
        with transaction.update_snapshot().merge_append() as addition:
            for file in self._files:
                addition.append_data_file(file)
        transaction.set_properties(self._properties)
        return [addition]


def check_topic(holder: str, stored: Positions, topic_id: str) -> None:
    """Refuse a log whose offsets are not those that a table's positions count.

    Raises:
        ForeignTopic: if the topic ids differ.
    """
    if stored.topic_id not in (None, topic_id):
        raise ForeignTopic(holder, stored.topic_id, topic_id, "PROFILEHOUSE_LAKE to an empty lake")


def _compare(
    table: Table, topic_id: str, before: Mapping[int, int], after: Mapping[int, int]
) -> None:
    stored = positions(table)
    check_topic(_named(table), stored, topic_id)
    for partition in after:
        found, expected = stored.offsets.get(partition), before.get(partition)
        if found != expected:
            raise StaleWriter(
                f"{_named(table)}: partition {partition} stands at {found}, not at {expected}:"
                " another process writes it; resume from the stored positions"
            )


def _named(table: Table) -> str:
    return f"lake table {table.name()[-1]} at {table.location()}"
