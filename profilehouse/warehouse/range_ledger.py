"""The ledger of what is loaded by positions of the log: reading it, writing it, its arithmetic.

Belongs here: ranges of offsets and the rows of web_load_ledger. Does not belong here: loading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter

import msgspec

from profilehouse.contracts import contract
from profilehouse.errors import StaleWriter
from profilehouse.warehouse import statements
from profilehouse.warehouse.base import Warehouse
from profilehouse.warehouse.load import RANGES_LEDGER as LEDGER

Range = tuple[int, int]
"""First offset, and the offset behind the last."""


class Loaded(msgspec.Struct, frozen=True, order=True):
    """A row of the ledger."""

    topic_id: str
    partition: int
    first: int
    end: int
    fingerprint: str
    staged_rows: int


def read_ledger(warehouse: Warehouse, table: str) -> list[Loaded]:
    """The table's ledger, in order of positions."""
    rows = warehouse.query(
        "SELECT topic_id, log_partition, first_offset, end_offset, fingerprint, staged_rows"  # noqa: S608
        f" FROM {LEDGER} WHERE table_name = ?",
        (table,),
    )
    return sorted(Loaded(*row) for row in zip(*(c.to_pylist() for c in rows.columns), strict=True))


def by_partition(ledger: Iterable[Loaded]) -> dict[int, list[Range]]:
    """The ranges of a ledger in order of positions, by partition."""
    return {
        partition: [(loaded.first, loaded.end) for loaded in rows]
        for partition, rows in groupby(ledger, attrgetter("partition"))
    }


def without(one: Range, taken: Iterable[Range]) -> list[Range]:
    """The parts of a range that others, in order and apart, leave."""
    first, end = one
    parts = []
    for start, stop in taken:
        if stop > first and start < end:
            if start > first:
                parts.append((first, start))
            first = stop
    return [*parts, (first, end)] if first < end else parts


def joined(ranges: Iterable[Range]) -> list[Range]:
    """The same offsets in as few ranges as they need."""
    few: list[Range] = []
    for first, end in sorted(ranges):
        if few and first <= few[-1][1]:
            few[-1] = (few[-1][0], max(end, few[-1][1]))
        else:
            few.append((first, end))
    return few


def merged(ledger: Iterable[Loaded]) -> list[Loaded]:
    """The ledger with neighbours as one row."""
    few: list[Loaded] = []
    for loaded in sorted(ledger):
        last = few[-1] if few else None
        if last and (last.partition, last.end) == (loaded.partition, loaded.first):
            rows = last.staged_rows + loaded.staged_rows
            few[-1] = msgspec.structs.replace(last, end=loaded.end, staged_rows=rows)
        else:
            few.append(loaded)
    return few


def require_ledger(warehouse: Warehouse, table: str, expected: Sequence[Loaded]) -> None:
    """Let a transaction go on only where the table's ledger is still as it was read.

    Ranges of a ledger do not overlap, so it is the same where it has as many rows and all of these.
    """
    names = ("topic_id", "log_partition", "first_offset", "end_offset", "fingerprint")
    same = " OR ".join([f"({' AND '.join(f'{name} = ?' for name in names)})"] * len(expected))
    warehouse.require(
        f"SELECT COUNT(*) = ? AND COUNT(CASE WHEN {same or 'FALSE'} THEN 1 END) = ? AS same"  # noqa: S608
        f" FROM {LEDGER} WHERE table_name = ?",
        (
            len(expected),
            *(v for loaded in expected for v in msgspec.structs.astuple(loaded)[: len(names)]),
            len(expected),
            table,
        ),
        StaleWriter(f"warehouse: another load of {table} came between; run again"),
    )


def write_ledger(warehouse: Warehouse, table: str, ledger: Sequence[Loaded]) -> None:
    """Replace the table's rows; call it in the transaction of the load."""
    warehouse.execute(f"DELETE FROM {LEDGER} WHERE table_name = ?", (table,))  # noqa: S608
    warehouse.execute(
        statements.insert_values(contract(LEDGER), len(ledger)),
        [v for loaded in ledger for v in (table, *msgspec.structs.astuple(loaded))],
    )
