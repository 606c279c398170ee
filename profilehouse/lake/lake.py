"""The lake as the rest of the platform sees it: tables by name, rows as Arrow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from time import time
from typing import TYPE_CHECKING

import pyarrow as pa

from profilehouse.contracts import Contract, contract
from profilehouse.errors import ProfilehouseError
from profilehouse.settings import Settings

if TYPE_CHECKING:
    from boto3.session import Session
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

    from profilehouse.lake.appending import Positions
    from profilehouse.lake.upkeep import Compacted, Expired, Orphans

NAMESPACE = "profilehouse"
"""The catalog's namespace (in Glue: the database) that holds the tables."""


PART_BYTES = 24 * 2**20
"""Of rows in memory, at which a part of a replacement is written."""


def layout_of(name: str) -> Contract:
    """The contract that a lake table's columns follow: `raw` for a source's table, else its own.

    Raises:
        ProfilehouseError: where the lake has no table of that name.
    """
    declared = contract(name)
    if declared.kind in ("sources", "feeds"):
        return contract("raw")
    if declared.kind == "lake" and name != "raw":
        return declared
    raise ProfilehouseError(f"{declared.path}: {name} is no table of the lake")


def open_lake(
    settings: Settings,
    session: Session | None = None,
    layouts: Callable[[str], Contract] = layout_of,
) -> Lake:
    """The lake and catalog that the settings name; an empty local lake is created.

    Credentials of AWS are taken once: open a lake for each run rather than keep one for days.

    Args:
        session: credentials, profile and region for AWS; by default boto3's own rules.
        layouts: the contract of each table, by name.

    Raises:
        ProfilehouseError: where the folder, bucket or catalog cannot be used, with the remedy.
    """
    from profilehouse.lake.catalog import open_catalog  # noqa: PLC0415

    catalog, url = open_catalog(settings, session, NAMESPACE)
    return Lake(catalog, url, layouts)


class Lake:
    """Iceberg tables, made by `open_lake`. Safe to use from several threads and processes at once.

    A table is created by its contract when rows first come; until then it reads as empty. Columns
    the contract gains are added when rows next come and read as null before; every other change
    of a contract is refused.
    """

    def __init__(self, catalog: Catalog, url: str, layouts: Callable[[str], Contract]) -> None:
        self.url = url
        self._catalog = catalog
        self._layouts = layouts

    def replace(
        self, name: str, rows: pa.Table, *, days: Collection[date], topic: str | None = None
    ) -> None:
        """Put `rows` in the place of all rows of those delivery days, in one atomic commit.

        Readers see the table as before or as after. Concurrent calls are all kept where their days
        (or topics) differ; where they are the same the last one wins. Killed anywhere, it leaves
        the table as before.

        Args:
            name: a source, or a table of contracts/lake.
            rows: the columns of the table's contract, in any order; may be empty.
            days: every `delivered_on` of the rows is one of them.
            topic: replace this topic's rows only; every `topic` of the rows is this one.

        Raises:
            ValueError: where the rows break these rules.
            ProfilehouseError: where the lake cannot be written, or the table differs from its
                contract in a way that cannot be mended.
        """
        from profilehouse.lake import layout, replacing  # noqa: PLC0415

        declared = self._layouts(name)
        rows = layout.conform(rows, declared)
        layout.check_replaced(rows, declared, days, topic)
        with self._explained(f"write {name}"):
            if rows.num_rows == 0 and self._load(name) is None:
                return
            replacing.replace(self._made(name), rows, days, topic)

    @contextmanager
    def replacing(
        self, name: str, *, days: Collection[date], topic: str | None = None
    ) -> Iterator[Replacement]:
        """As `replace`, for more rows than memory holds: they are given in parts.

        What is not committed at the end of the block is gone.
        """
        replacement = Replacement(self, name, days, topic)
        try:
            yield replacement
        finally:
            replacement.discard()

    def append(
        self,
        name: str,
        rows: pa.Table,
        *,
        topic_id: str,
        before: Mapping[int, int],
        after: Mapping[int, int],
    ) -> None:
        """Add rows of the log and move the table's positions, in one atomic commit.

        Compare-and-set: it succeeds only where the stored positions of these partitions are
        `before`. So each record is in the table once: resume from `positions` after a crash and
        after every error of this call (the commit may have been stored).

        Args:
            name: a table of contracts/lake that has positions of the log.
            rows: the columns of the table's contract, in any order, offsets from `before` up to
                `after`; may be empty, then only the positions move.
            topic_id: of the log.
            before: the offset where each partition of `after` stands; a partition that is not
                stored yet is absent.
            after: the offset of the next record of each partition.

        Raises:
            ValueError: where the rows break these rules.
            StaleWriter: where other positions are stored; nothing of the rows stays.
            ProfilehouseError: where the table holds another topic, or as for `replace`.
        """
        from profilehouse.lake import appending, layout  # noqa: PLC0415

        declared = self._layouts(name)
        rows = layout.conform(rows, declared)
        appending.check_rows(rows, topic_id, before, after)
        with self._explained(f"append to {name}"):
            appending.append(self._made(name), rows, topic_id, before, after)

    def write_files(self, name: str, rows: pa.Table) -> list[DataFile]:
        """Write rows of the log as data files for `append_files`; nothing is committed.

        A table is made where there is none. Files that are never committed are orphans.
        """
        from profilehouse.lake import commit, layout  # noqa: PLC0415

        rows = layout.conform(rows, self._layouts(name))
        with self._explained(f"write {name}"):
            return commit.write(self._made(name), rows)

    def append_files(
        self,
        name: str,
        files: list[DataFile],
        *,
        topic_id: str,
        before: Mapping[int, int],
        after: Mapping[int, int],
        begun: float,
    ) -> None:
        """As `append`, of files that `write_files` wrote, maybe elsewhere, since `begun`."""
        from profilehouse.lake import appending  # noqa: PLC0415

        with self._explained(f"append to {name}"):
            appending.add(self._made(name), files, topic_id, before, after, begun)

    def positions(self, name: str) -> Positions:
        """Up to where a table holds the log."""
        from profilehouse.lake import appending  # noqa: PLC0415

        self._layouts(name)
        with self._explained(f"read {name}"):
            table = self._load(name)
            return appending.Positions(None, {}) if table is None else appending.positions(table)

    def read(
        self,
        name: str,
        *,
        columns: Sequence[str] | None = None,
        days: Collection[date] | None = None,
        topic: str | None = None,
        offsets: Mapping[int, tuple[int, int]] | None = None,
    ) -> pa.Table:
        """The rows in order of their position.

        That is (delivered_on, topic, line), or (delivered_on, log_partition, log_offset), as far
        as the table has these columns.

        Args:
            columns: only these, in this order; all of the contract where None.
            days: only these delivery days.
            topic: only this topic.
            offsets: only these partitions of the log, each from an offset up to before another.
        """
        schema = _selected(self._layouts(name), columns)
        batches = self.batches(name, columns=columns, days=days, topic=topic, offsets=offsets)
        return pa.Table.from_batches(batches, schema)

    def batches(
        self,
        name: str,
        *,
        columns: Sequence[str] | None = None,
        days: Collection[date] | None = None,
        topic: str | None = None,
        offsets: Mapping[int, tuple[int, int]] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """As `read`, but streamed: only a few days, or half a million rows, are in memory."""
        from profilehouse.lake import layout, reading  # noqa: PLC0415

        declared = self._layouts(name)
        schema = _selected(declared, columns)
        with self._explained(f"read {name}"):
            table = self._load(name)
            if table is not None:
                layout.check(table, declared)
                yield from reading.batches(table, schema, days, topic, offsets)

    def days(self, name: str) -> dict[date, int]:
        """The number of rows of each delivery day that has any, oldest day first."""
        from profilehouse.lake import reading  # noqa: PLC0415

        self._layouts(name)
        with self._explained(f"read {name}"):
            table = self._load(name)
            return {} if table is None else reading.days(table)

    def compact(self, name: str, before: date) -> Compacted:
        """Rewrite the small files of each delivery day before that one into few large ones.

        Rows and positions stay as they are, and whoever appends meanwhile is not held up: this
        waits. A reader of the small files goes on until they are expired.

        Raises:
            ProfilehouseError: where other writers were quicker for minutes.
        """
        from profilehouse.lake import upkeep  # noqa: PLC0415

        self._layouts(name)
        with self._explained(f"compact {name}"):
            table = self._load(name)
            return upkeep.Compacted() if table is None else upkeep.compact(table, before)

    def expire(self, name: str, age: timedelta = timedelta(days=1)) -> Expired:
        """Forget the states of a table that are older than that, and delete files none needs.

        `replace` does this by itself now and then. Whoever reads a state that is no longer the
        newest fails once it has been expired.

        Raises:
            ProfilehouseError: where other writers were quicker for minutes.
        """
        from profilehouse.lake import upkeep  # noqa: PLC0415

        self._layouts(name)
        with self._explained(f"expire {name}"):
            table = self._load(name)
            return upkeep.Expired() if table is None else upkeep.expire(table, age)

    def remove_orphans(self, name: str, older_than: timedelta = timedelta(days=1)) -> Orphans:
        """Delete files under a table's folder that no state of it needs: a killed writer left them.

        A file of a commit in flight looks the same, so `older_than` must exceed the longest commit.
        No commit takes more than 12 hours: it gives up.
        """
        from profilehouse.lake import upkeep  # noqa: PLC0415

        self._layouts(name)
        with self._explained(f"clear {name}"):
            table = self._load(name)
            return upkeep.Orphans() if table is None else upkeep.remove_orphans(table, older_than)

    def _made(self, name: str) -> Table:
        """The table, created where it is not there, in the columns of its contract."""
        from profilehouse.lake import layout  # noqa: PLC0415

        declared = self._layouts(name)
        table = self._load(name)
        if table is None:
            table = layout.create(self._catalog, (NAMESPACE, name), self._place(name), declared)
        layout.evolve(table, declared)
        return table

    def _place(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _load(self, name: str) -> Table | None:
        from pyiceberg.exceptions import NoSuchTableError  # noqa: PLC0415

        try:
            table = self._catalog.load_table((NAMESPACE, name))
        except NoSuchTableError:
            return None
        except FileNotFoundError as error:
            raise self._misplaced(name, str(error)) from error
        if table.location() != self._place(name):
            raise self._misplaced(name, f"its files lie in {table.location()}")
        return table

    def _misplaced(self, name: str, reason: str) -> ProfilehouseError:
        return ProfilehouseError(
            f"lake {self.url}: table {name}: {reason}; a lake cannot be moved or copied:"
            " put it back where it was made, or land into an empty one"
        )

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn what storage and catalog raise into one line that names lake, table and remedy."""
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

        try:
            yield
        except (OSError, SQLAlchemyError, BotoCoreError, ClientError) as error:
            reason = " ".join(str(error).split())
            raise ProfilehouseError(
                f"lake {self.url}: cannot {doing}: {reason};"
                " see that the place can be reached, has room and may be written, then run again"
            ) from error


class Replacement:
    """Rows in the place of others, given in parts: written as they come, seen all at once."""

    def __init__(self, lake: Lake, name: str, days: Collection[date], topic: str | None) -> None:
        self._lake, self._name, self._days, self._topic = lake, name, days, topic
        self._layout = lake._layouts(name)
        self._table: Table | None = None
        self._rest: list[pa.Table] = []
        self._written: list[DataFile] = []
        self._begun: float | None = None

    def add(self, rows: pa.Table) -> None:
        """More of the rows; as `Lake.replace` takes them."""
        from profilehouse.lake import commit, layout  # noqa: PLC0415

        rows = layout.conform(rows, self._layout)
        layout.check_replaced(rows, self._layout, self._days, self._topic)
        self._rest.append(rows)
        if sum(part.nbytes for part in self._rest) < PART_BYTES:
            return
        with self._lake._explained(f"write {self._name}"):
            self._begun = self._begun or time()
            self._table = self._table or self._lake._made(self._name)
            self._written += commit.write(self._table, pa.concat_tables(self._rest))
        self._rest = []

    def commit(self) -> None:
        """Put all of them in the place of the others, in one atomic commit."""
        from profilehouse.lake import replacing  # noqa: PLC0415

        rows = pa.concat_tables([self._layout_schema().empty_table(), *self._rest])
        if self._table is None:
            self._lake.replace(self._name, rows, days=self._days, topic=self._topic)
        else:
            with self._lake._explained(f"write {self._name}"):
                parts = self._written
                self._written = []
                replacing.replace(self._table, rows, self._days, self._topic, parts, self._begun)
        self._rest = []

    def discard(self) -> None:
        """Take away what was written and not committed."""
        from profilehouse.lake import commit  # noqa: PLC0415

        if self._table is not None and self._written:
            with self._lake._explained(f"write {self._name}"):
                commit.remove(self._table, self._written)
        self._written = []

    def _layout_schema(self) -> pa.Schema:
        return pa.schema([field.with_nullable(True) for field in self._layout.arrow_schema])


def _selected(declared: Contract, columns: Sequence[str] | None) -> pa.Schema:
    """The schema of a read. No column is promised to be free of nulls: old rows may lack it."""
    names = [c.name for c in declared.columns] if columns is None else columns
    return pa.schema([(name, declared.column(name).arrow_type) for name in names])
