"""The warehouse in one DuckDB file.

DuckDB admits one process at a time, even for reading, so connections are short and tried again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import duckdb
import pyarrow as pa

from profilehouse.errors import ProfilehouseError
from profilehouse.warehouse.base import NOT_THERE, Warehouse
from profilehouse.warehouse.sql import STAGED, literal

PATIENCE_SECONDS = 30.0
RETRY_SECONDS = 0.1
BUSY = "Could not set lock"
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600
CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "512MB",
    "preserve_insertion_order": False,
}
"""A year of purchases loads within the limit; what needs more is spilled beside the file."""


class DuckDBWarehouse(Warehouse):
    """The operations on an open DuckDB file."""

    dialect: ClassVar[str] = "duckdb"
    lies_as_inserted: ClassVar[bool] = True

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
        super().__init__(folder)
        self._connection = connection

    def _run(self, sql: str, params: Sequence[Any]) -> None:
        self._connection.execute(sql, list(params))

    def _fetch(self, sql: str, params: Sequence[Any]) -> pa.Table:
        try:
            return self._connection.sql(sql, params=list(params)).to_arrow_table()
        except duckdb.CatalogException as error:
            reason = str(error).splitlines()[0].removeprefix("Catalog Error: ").rstrip("!")
            raise ProfilehouseError(f"warehouse: {reason}; {NOT_THERE}") from error

    def copy_to(self, file: Path) -> None:
        """Copy all tables into a new DuckDB file, as of one moment."""
        [(name,)] = self._connection.execute("SELECT current_database()").fetchall()
        self._connection.execute(f"ATTACH {literal(str(file), self.dialect)} AS copy")
        try:
            quoted = name.replace('"', '""')
            self._connection.execute(f'COPY FROM DATABASE "{quoted}" TO copy')
        finally:
            self._connection.execute("DETACH copy")
        file.chmod(_PRIVATE_FILE)

    def _stage(self, file: Path, schema: pa.Schema) -> None:  # noqa: ARG002
        self._connection.read_parquet(str(file)).create_view(STAGED, replace=True)


@contextmanager
def open_duckdb(
    file: Path, patience_seconds: float = PATIENCE_SECONDS
) -> Iterator[DuckDBWarehouse]:
    """Open the file, making it where it is missing, and close it in the end.

    While another process has it, opening is tried again for `patience_seconds`.

    Raises:
        ProfilehouseError: when the file stays busy or is no DuckDB database.
    """
    connection = _connect(file, patience_seconds)
    try:
        with TemporaryDirectory(prefix="profilehouse-") as folder:
            yield DuckDBWarehouse(connection, Path(folder))
    finally:
        connection.close()


def _connect(file: Path, patience_seconds: float) -> duckdb.DuckDBPyConnection:
    deadline = time.monotonic() + patience_seconds
    try:
        file.parent.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
        is_new = not file.exists()
        while True:
            try:
                connection = duckdb.connect(file, config=CONFIG)
                if is_new:
                    file.chmod(_PRIVATE_FILE)
                return connection
            except duckdb.IOException as error:
                if BUSY not in str(error) or time.monotonic() >= deadline:
                    raise
            time.sleep(RETRY_SECONDS)
    except (duckdb.Error, OSError) as error:
        reason = str(error).split(". See also")[0].replace("\n", " ")
        remedy = (
            f"another process has had it for {patience_seconds:g} s: end it, or run again later"
            if BUSY in reason
            else "check PROFILEHOUSE_WAREHOUSE"
        )
        raise ProfilehouseError(f"warehouse {file} cannot be opened: {reason}; {remedy}") from error
