"""What a warehouse can do. The operations are written once here; an engine adds how it connects,
runs a statement and stages a file. Does not belong here: what is loaded when (load.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from profilehouse.contracts import Contract
from profilehouse.warehouse import statements
from profilehouse.warehouse.migration import difference
from profilehouse.warehouse.sql import STAGED, translate

NOT_THERE = "materialize its asset first"
"""What to do about a table that does not exist."""


class Warehouse(ABC):
    """One open connection to a warehouse: one unit of work, one thread.

    All SQL it is given is in the Snowflake dialect and translated where the engine is another
    one; values are bound to `?`.
    """

    dialect: ClassVar[str]
    type_names: ClassVar[Mapping[str, str]] = {}
    """What the engine calls types of contracts' DDL, where it has other names for them."""
    lies_as_inserted: ClassVar[bool] = False
    """Whether rows lie on disk in the order they come, instead of by the table's clusters."""

    def __init__(self, folder: Path) -> None:
        self.changes: list[str] = []
        """What create() changed in tables that were there, in words."""
        self._folder = folder
        self._in_transaction = False

    def execute(self, sql: str, params: Sequence[Any] = ()) -> None:
        """Run one statement; in a transaction at the latest when it is committed."""
        self._run(translate(sql, self.dialect), params)

    def require(self, condition: str, params: Sequence[Any], error: Exception) -> None:
        """Let a transaction go on only where something holds in it, else raise the error.

        Args:
            condition: a query that yields one row with one boolean column.
            params: values bound in it.
            error: raised here or when the transaction would be committed; nothing is done then.
        """
        if not self._in_transaction:
            raise RuntimeError("require() is for transactions")
        self._require(translate(condition, self.dialect), params, error)

    def query(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """The rows of one query. Give every computed column a name.

        Returns:
            Lower-case columns, in the same types whatever the engine: int64, float64, string,
            bool, date32 and timestamp("us").

        Raises:
            RuntimeError: in a transaction, which not every engine can read from; see require().
        """
        if self._in_transaction:
            raise RuntimeError("query() is for outside of transactions: use require() in one")
        return plain(self._fetch(translate(sql, self.dialect), params))

    def cost(self) -> dict[str, Any]:
        """What the statements so far cost, as far as the engine tells; not in a transaction.

        Returns:
            Numbers and lists of texts, by what they are.
        """
        return {}

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of the statements inside. Only DML: Snowflake commits at any DDL."""
        self._begin()
        self._in_transaction = True
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self._rollback()
            raise
        else:
            self._commit()
        finally:
            self._in_transaction = False

    def schema_of(self, table: str) -> pa.Schema:
        """The lower-case columns of a table, with the types that query() gives.

        Raises:
            ProfilehouseError: where it is missing.
        """
        return self.query(f"SELECT * FROM {table} LIMIT 0").schema  # noqa: S608

    def columns(self, table: str) -> dict[str, str]:
        """The columns a table has, with types as in contracts' DDL; empty where it is missing."""
        found = self.query(
            "SELECT LOWER(column_name) AS name, data_type FROM information_schema.columns"
            " WHERE table_schema = CURRENT_SCHEMA() AND LOWER(table_name) = ?"
            " ORDER BY ordinal_position",
            (table,),
        )
        names, types = found.column("name").to_pylist(), found.column("data_type").to_pylist()
        return dict(zip(names, (self.type_names.get(t, t) for t in types), strict=True))

    def create(self, contract: Contract) -> None:
        """Make the contract's table where it is missing, or add to it what it lacks.

        Columns that may be null are added, integers widened to numbers where the engine can;
        `changes` says so. Old rows have no value in a new column until they are loaded again, as a
        new version of the contract makes them be.

        Raises:
            ProfilehouseError: when the table differs otherwise; with the differences and what to
                run.
        """
        self._refuse_in_transaction("create")
        present = self.columns(contract.name)
        if not present:
            self._run(contract.ddl(self.dialect), ())
            return
        for change, statement in difference(contract, present, self.dialect).statements().items():
            self._run(statement, ())
            self.changes.append(change)

    def fits(self, contract: Contract) -> bool:
        """Whether a table is missing, or has exactly the columns of its contract."""
        present = self.columns(contract.name)
        return not present or not difference(contract, present, self.dialect)

    def drop(self, contract: Contract) -> None:
        """Remove the contract's table with all its rows."""
        self._refuse_in_transaction("drop")
        self._run(f"DROP TABLE {contract.name}", ())

    def stage(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
        """Put rows where SQL can select them, as table `staged`; what was there before is gone.

        They go through one Parquet file, so memory holds one batch at a time.

        Args:
            batches: rows with at least the columns of the schema, in any order.
            schema: columns and Arrow types of `staged`.
        """
        self._refuse_in_transaction("stage")
        file = self._folder / f"{STAGED}.parquet"
        with pq.ParquetWriter(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch.select(schema.names).cast(schema))
        pa.default_memory_pool().release_unused()
        self._stage(file, schema)

    def merge(self, fact: Contract, select: str, position: Sequence[str]) -> None:
        """Add the rows that the query yields.

        Of rows with the same primary key, here and in the table, the one with the lowest position
        stays. So the table is the same whatever the order in which rows come, and rows that come
        again change nothing. Call it in a transaction.

        Args:
            fact: the table; it has the position's columns.
            select: yields the fact's columns from `staged`.
            position: the columns that order the rows.
        """
        self.execute(statements.merge(fact, select, position, self.lies_as_inserted))

    def merge_days(self, fact: Contract, select: str, days: Sequence[date]) -> None:
        """Replace the rows that were delivered on some days by what the query yields for them.

        Of rows with the same primary key, here and in the table, the one with the lowest position
        (delivered_on, topic, line) stays. So the table is the same whatever the order in which
        days come. Call it in a transaction.

        Args:
            fact: the table; it has the position's columns.
            select: yields the fact's columns from `staged`, which holds whole days.
            days: the delivery days of `staged`.
        """
        self.execute(statements.delete_days(fact, len(days)), days)
        self.merge(fact, select, statements.DELIVERED)

    def loses_rows(self, fact: Contract, select: str, days: Sequence[date]) -> bool:
        """Whether merge_days() would leave a key with a worse row than it has from these days.

        Then a duplicate which that row has hidden may have to come back, from whatever day.
        """
        lost = self.query(statements.lost_rows(fact, select, len(days)), days)
        return bool(lost.column("lost")[0].as_py())

    def merge_history(self, dimension: Contract, select: str) -> None:
        """Replace all versions of every business key that the query yields; others stay.

        The key is the column that the contract's `historyOf` names. Call it in a transaction.

        Args:
            dimension: the table, with one row a key and version (SCD type 2).
            select: yields the dimension's columns: every version of each key in it.
        """
        self.replace_keys(dimension, str(dimension.properties["historyOf"]), select, select)

    def replace_keys(self, table: Contract, key: str, keys: str, select: str) -> None:
        """Replace the rows with some keys by what a query yields. Call it in a transaction.

        Args:
            table: the table.
            key: its column that says which rows go.
            keys: yields that column: the keys of the rows that go.
            select: yields the table's columns.
        """
        self.execute(statements.delete_keys(table, key, keys))
        self.execute(statements.insert(table, select, self.lies_as_inserted))

    def swap(self, table: Contract, select: str, params: Sequence[Any] = ()) -> None:
        """Replace all rows of a table by what the query yields. Call it in a transaction.

        DELETE and INSERT rather than a new table put in the old one's place: on Snowflake that
        would be DDL, which commits at once, so the ledger's row could not be written with it.
        Readers see the old rows until the commit; grants, clustering and time travel stay.

        Args:
            table: the table.
            select: yields its columns.
            params: values bound in the query.
        """
        self.execute(statements.delete_all(table))
        self.execute(statements.insert(table, select, self.lies_as_inserted), params)

    def _refuse_in_transaction(self, operation: str) -> None:
        if self._in_transaction:
            raise RuntimeError(f"{operation}() is DDL: call it before the transaction")

    def _begin(self) -> None:
        self._run("BEGIN", ())

    def _commit(self) -> None:
        self._run("COMMIT", ())

    def _rollback(self) -> None:
        self._run("ROLLBACK", ())

    def _require(self, condition: str, params: Sequence[Any], error: Exception) -> None:
        if self._fetch(condition, params).column(0).to_pylist() != [True]:
            raise error

    @abstractmethod
    def _run(self, sql: str, params: Sequence[Any]) -> None:
        """Run a statement in the engine's own dialect."""

    @abstractmethod
    def _fetch(self, sql: str, params: Sequence[Any]) -> pa.Table:
        """Rows of a query in the engine's own dialect, in the types the engine gives."""

    @abstractmethod
    def _stage(self, file: Path, schema: pa.Schema) -> None:
        """Make a Parquet file the temporary table `staged`."""


def plain(table: pa.Table) -> pa.Table:
    """The same rows with lower-case column names and the Arrow types that contracts know."""
    return pa.table(
        [column.cast(_plain_type(column.type)) for column in table.columns],
        schema=pa.schema([(f.name.lower(), _plain_type(f.type)) for f in table.schema]),
    )


def _plain_type(kind: pa.DataType) -> pa.DataType:  # noqa: PLR0911
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):
        return pa.int64()
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_large_string(kind) or pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us")
    if pa.types.is_date(kind):
        return pa.date32()
    return kind
