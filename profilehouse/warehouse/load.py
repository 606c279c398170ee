"""Loading the star: which deliveries a table lacks, and each load with its ledger rows as one.

A load leaves the same table whatever the order of the days, however often it is repeated and
wherever it was interrupted. Does not belong here: reading the lake, which the caller does, or facts
that come by positions of the log (ranges.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import pyarrow as pa

from profilehouse.contracts import Contract, contract
from profilehouse.errors import ProfilehouseError
from profilehouse.warehouse import statements
from profilehouse.warehouse.base import Warehouse
from profilehouse.warehouse.sql import select_columns

LEDGER = "load_ledger"
RANGES_LEDGER = "web_load_ledger"
"""The ledger of facts that are loaded by positions of the log (ranges.py)."""

_LEDGERS = {
    LEDGER: ("table_name", "delivered_on", "fingerprint"),
    RANGES_LEDGER: ("table_name", "log_partition", "first_offset", "end_offset", "fingerprint"),
}
"""What tells the content of a fact, in the ledgers there are."""

Read = Callable[[Sequence[date]], Iterable[pa.RecordBatch]]
"""Reads the rows to be staged for some delivery days, each row with its `delivered_on`."""


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    `staged_rows` has the rows read of each delivery day that was loaded (duplicates included);
    it is empty when the table had everything already. `read_again` are those of them that had not
    changed, but had to be read with the others. `rows` is what the table holds now.
    """

    table: str
    staged_rows: dict[date, int]
    read_again: tuple[date, ...]
    rows: int


def load_fact(
    warehouse: Warehouse,
    fact: Contract,
    sql: str,
    fingerprints: Mapping[date, str],
    read: Read,
    schema: pa.Schema,
) -> LoadReport:
    """Bring a fact up to date with some delivery days; of duplicates the lowest position stays.

    A day already loaded with the same fingerprint is skipped. When a loaded day changed and rows
    of it are gone, duplicates which they hid have to come back. Those have higher positions, so
    they are in later days: all later days that are loaded are read again.

    Args:
        warehouse: an open connection.
        fact: the table.
        sql: yields its columns from `staged`.
        fingerprints: of the content of each day that is to be loaded.
        read: yields all rows of the days it is asked for.
        schema: of these rows.
    """
    ledger = _prepare(warehouse, fact, sql)
    wanted = _fingerprints(fact, sql, fingerprints)
    changed = {day for day, fingerprint in wanted.items() if ledger.get(day) != fingerprint}
    if not changed:
        return _report(warehouse, fact, {}, ())
    counts = _stage(warehouse, changed, read, schema)
    again: set[date] = set()
    redelivered = sorted(changed & ledger.keys())
    if redelivered and warehouse.loses_rows(fact, sql, redelivered):
        again = {day for day in ledger.keys() - changed if day > redelivered[0]}
        counts = _stage(warehouse, changed | again, read, schema)
    with warehouse.transaction():
        warehouse.merge_days(fact, sql, sorted(counts))
        _write_ledger(warehouse, fact, {**ledger, **wanted}, counts)
    return _report(warehouse, fact, counts, again)


def load_history(
    warehouse: Warehouse,
    dimension: Contract,
    sql: str,
    fingerprints: Mapping[date, str],
    read: Read,
    schema: pa.Schema,
) -> LoadReport:
    """Bring a dimension with history (SCD type 2) up to date with some delivery days.

    The versions of a key are computed anew from all its records, so their order does not matter.
    When a loaded day changed, a key may no longer be in it: then all keys are computed anew.

    Args:
        warehouse: an open connection.
        dimension: the table; its contract names the key in `historyOf`.
        sql: yields every version of each key in `staged`.
        fingerprints: of the content of each day that is to be loaded.
        read: yields, for the days it is asked for, all records (of whatever day) of the keys that
            were delivered on these days.
        schema: of these records.
    """
    ledger = _prepare(warehouse, dimension, sql, anew=True)
    wanted = _fingerprints(dimension, sql, fingerprints)
    changed = {day for day, fingerprint in wanted.items() if ledger.get(day) != fingerprint}
    if not changed:
        return _report(warehouse, dimension, {}, ())
    anew = not changed.isdisjoint(ledger)
    again = ledger.keys() - changed if anew else set()
    counts = _stage(warehouse, changed | again, read, schema, other_days=True)
    with warehouse.transaction():
        if anew:
            warehouse.swap(dimension, sql)
        else:
            warehouse.merge_history(dimension, sql)
        _write_ledger(warehouse, dimension, {**ledger, **wanted}, counts)
    return _report(warehouse, dimension, counts, again)


def load_dimension(
    warehouse: Warehouse,
    dimension: Contract,
    sql: str,
    fingerprints: Mapping[date, str],
    read: Read,
    schema: pa.Schema,
) -> LoadReport:
    """Replace a dimension without history by what all deliveries say, if any of them is new.

    Args:
        warehouse: an open connection.
        dimension: the table.
        sql: yields its rows from `staged`.
        fingerprints: of the content of every delivery there is; days without records may be left
            out, so that they do not make the table be written again.
        read: yields all rows of the days.
        schema: of these rows.
    """
    ledger = _prepare(warehouse, dimension, sql, anew=True)
    wanted = _fingerprints(dimension, sql, fingerprints)
    if ledger == wanted:
        return _report(warehouse, dimension, {}, ())
    counts = _stage(warehouse, wanted.keys(), read, schema)
    with warehouse.transaction():
        warehouse.swap(dimension, sql)
        _forget(warehouse, dimension)
        _write_ledger(warehouse, dimension, wanted, counts)
    again = {day for day in wanted if ledger.get(day) == wanted[day]}
    return _report(warehouse, dimension, counts, again)


def load_calendar(
    warehouse: Warehouse, calendar: Contract, sql: str, first: date, last: date
) -> LoadReport:
    """Replace a calendar by the days from first to last, both included, if it has another range.

    Args:
        warehouse: an open connection.
        calendar: the table.
        sql: yields its rows from `staged`, whose column `day` has one row a day.
        first: the first day.
        last: the last day; the ledger's row is written under it.
    """
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    rows = pa.table(
        {
            "day": pa.array(days, pa.date32()),
            "delivered_on": pa.array([last] * len(days), pa.date32()),
        }
    )
    return load_dimension(
        warehouse,
        calendar,
        sql,
        {last: f"{first}..{last}"},
        lambda _: rows.to_batches(),
        rows.schema,
    )


def load_derived(
    warehouse: Warehouse, table: Contract, sql: str, facts: Sequence[str], as_of: date
) -> LoadReport:
    """Replace a table by what a query over facts yields, if the facts, the query or as_of changed.

    Args:
        warehouse: an open connection.
        table: the table.
        sql: yields its rows from the facts.
        facts: what is loaded in them is read off the ledger.
        as_of: the day the query computes for; the ledger's row is written under it.
    """
    ledger = _prepare(warehouse, table, sql, anew=True)
    warehouse.create(contract(RANGES_LEDGER))
    loaded = [
        warehouse.query(
            f"SELECT {', '.join(columns)} FROM {name}"  # noqa: S608
            f" WHERE table_name IN ({', '.join('?' * len(facts))}) ORDER BY {', '.join(columns)}",
            facts,
        ).to_pylist()
        for name, columns in _LEDGERS.items()
    ]
    wanted = _fingerprints(table, sql, {as_of: str(loaded)})
    if ledger == wanted:
        return _report(warehouse, table, {}, ())
    with warehouse.transaction():
        warehouse.swap(table, sql)
        _forget(warehouse, table)
        _write_ledger(warehouse, table, wanted, {as_of: 0})
    return _report(warehouse, table, {}, ())


def stale_days(
    warehouse: Warehouse, table: Contract, sql: str, fingerprints: Mapping[date, str]
) -> list[date]:
    """The days that were never loaded, or from other content, by other SQL or another contract.

    Args:
        warehouse: an open connection.
        table: the table.
        sql: what it is loaded by.
        fingerprints: of the content of each day there is.
    """
    ledger = _loaded(warehouse, table)
    wanted = _fingerprints(table, sql, fingerprints)
    return [day for day, fingerprint in wanted.items() if ledger.get(day) != fingerprint]


def loaded_days(warehouse: Warehouse, table: str) -> set[date]:
    """The delivery days that are in a table."""
    if not warehouse.columns(LEDGER) or not warehouse.columns(table):
        return set()
    return set(_loaded(warehouse, contract(table)))


def prepare(
    warehouse: Warehouse, table: Contract, sql: str, ledger: str, anew: bool = False
) -> None:
    """Make sure that the table and its ledger are there and that the SQL fits the table.

    A table that had to be made has nothing in the ledger. With `anew` that is so for a table of
    other columns too, as all its rows can be computed again.

    Raises:
        ProfilehouseError: where the SQL or the table has other columns than the contract.
    """
    names = tuple(column.name for column in table.columns)
    yielded = select_columns(sql)
    if yielded != names:
        missing = [name for name in names if name not in yielded]
        unknown = [name for name in yielded if name not in names]
        wrong = [
            *([f"without {', '.join(missing)}"] if missing else []),
            *([f"with {', '.join(unknown)} besides"] if unknown else []),
        ]
        raise ProfilehouseError(
            f"the SQL of {table.name} does not yield the columns of contract {table.version}, but"
            f" {' and '.join(wrong) or 'in another order'}: change the one or the other"
        )
    warehouse.create(contract(ledger))
    if anew and not warehouse.fits(table):
        warehouse.drop(table)
    if not warehouse.columns(table.name):
        # before the table is there, or a crash between would hide it
        _forget(warehouse, table, ledger)
    warehouse.create(table)


def fingerprint(table: Contract, sql: str, content: str) -> str:
    """Of what content becomes in a table: of itself, the SQL and the contract's version."""
    return hashlib.sha256("\0".join((content, sql, table.version)).encode()).hexdigest()


def row_count(warehouse: Warehouse, table: Contract) -> int:
    """How many rows a table has."""
    total = warehouse.query(f"SELECT COUNT(*) AS total FROM {table.name}")  # noqa: S608
    rows: int = total.column("total")[0].as_py()
    return rows


def _prepare(
    warehouse: Warehouse, table: Contract, sql: str, anew: bool = False
) -> dict[date, str]:
    """As `prepare`; the fingerprints of the deliveries that are loaded."""
    prepare(warehouse, table, sql, LEDGER, anew)
    return _loaded(warehouse, table)


def _loaded(warehouse: Warehouse, table: Contract) -> dict[date, str]:
    rows = warehouse.query(
        f"SELECT delivered_on, fingerprint FROM {LEDGER} WHERE table_name = ?",  # noqa: S608
        (table.name,),
    )
    return dict(
        zip(
            rows.column("delivered_on").to_pylist(),
            rows.column("fingerprint").to_pylist(),
            strict=True,
        )
    )


def _fingerprints(table: Contract, sql: str, deliveries: Mapping[date, str]) -> dict[date, str]:
    return {day: fingerprint(table, sql, content) for day, content in deliveries.items()}


def _stage(
    warehouse: Warehouse,
    days: Collection[date],
    read: Read,
    schema: pa.Schema,
    other_days: bool = False,
) -> dict[date, int]:
    """Read and stage; how many rows each of the days has. Rows of other days are a mistake."""
    counts: Counter[date] = Counter()

    def counted() -> Iterator[pa.RecordBatch]:
        for batch in read(sorted(days)):
            for entry in batch.column("delivered_on").value_counts().to_pylist():
                counts[entry["values"]] += entry["counts"]
            yield batch

    warehouse.stage(counted(), schema)
    if not other_days and not counts.keys() <= set(days):
        raise ValueError(
            f"rows of days that were not asked for: {sorted(counts.keys() - set(days))}"
        )
    return {day: counts[day] for day in sorted(days)}


def _forget(warehouse: Warehouse, table: Contract, ledger: str = LEDGER) -> None:
    warehouse.execute(f"DELETE FROM {ledger} WHERE table_name = ?", (table.name,))  # noqa: S608


def _write_ledger(
    warehouse: Warehouse,
    table: Contract,
    fingerprints: Mapping[date, str],
    counts: Mapping[date, int],
) -> None:
    """Replace the ledger's rows of the days that were staged."""
    if not counts:
        return
    ledger = contract(LEDGER)
    delete = statements.delete_days(ledger, len(counts))
    warehouse.execute(f"{delete} AND table_name = ?", (*counts, table.name))
    rows = ((table.name, day, fingerprints[day], count) for day, count in counts.items())
    warehouse.execute(
        statements.insert_values(ledger, len(counts)), [v for row in rows for v in row]
    )


def _report(
    warehouse: Warehouse, table: Contract, counts: dict[date, int], again: Collection[date]
) -> LoadReport:
    return LoadReport(table.name, counts, tuple(sorted(again)), row_count(warehouse, table))
