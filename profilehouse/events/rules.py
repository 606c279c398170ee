"""Rules of the stream's contract on a batch of decoded events, a statement a batch.

Belongs here: which events break a rule of severity error in the quality section, of those that one
row decides. Does not belong here: what columns demand, which the decoder refuses record by record
(decode.py, web.py), and rules on what rows share, which are checked where the events have landed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from profilehouse.contracts import Contract
from profilehouse.quality.rules import Depends, Rule, Unique, row_rules
from profilehouse.quality.sql import fails_where
from profilehouse.warehouse.sql import translate

_PLACE = "place_in_batch"
_RULE = "broken_rule"
_TOO_BIG = "The rules cannot be computed of its values, such as a product above 64 bits"
_local = threading.local()


def rules_of_batches(stream: Contract) -> tuple[Rule, ...]:
    """The rules that are run on every batch."""
    return tuple(
        rule
        for rule in row_rules(stream)
        if rule.declared
        and rule.severity == "error"
        and not isinstance(rule.test, Unique | Depends)
    )


def broken(events: pa.Table, rules: Sequence[Rule]) -> dict[int, str]:
    """The events that break a rule, by their place in the table, and why.

    Args:
        events: has the columns that the rules read; missing values are null, never NaN.
        rules: of `rules_of_batches`; of several that an event breaks, the first is told.
    """
    if not rules or not events.num_rows:
        return {}
    conditions = [fails_where(rule.test) for rule in rules]  # type: ignore[arg-type]
    first = " ".join(f"WHEN {condition} THEN {i}" for i, condition in enumerate(conditions))
    read = list(dict.fromkeys(name for rule in rules for name in rule.columns))
    batch = events.select(read).append_column(_PLACE, pa.array(range(events.num_rows), pa.int64()))
    sql = (
        f"SELECT {_PLACE}, CASE {first} END AS {_RULE} FROM batch"  # noqa: S608
        f" WHERE {' OR '.join(f'({condition})' for condition in conditions)}"
    )
    found = _found(batch, translate(sql, "duckdb"))
    return {
        place: _TOO_BIG
        if rule is None
        else f"Rule {rules[rule].name} is broken: {rules[rule].description}"
        for place, rule in found
    }


def _found(batch: pa.Table, sql: str) -> list[tuple[int, int | None]]:
    """The rows of the query; of a record whose numbers it cannot compute with, no rule is told.

    Such a record makes the statement fail for all, so it is looked for by halves.
    """
    import duckdb  # noqa: PLC0415

    connection = _connection()
    connection.register("batch", batch)
    try:
        found: list[tuple[int, int | None]] = connection.sql(sql).fetchall()
        return found
    except duckdb.DataError:
        if batch.num_rows == 1:
            return [(batch[_PLACE][0].as_py(), None)]
    finally:
        connection.unregister("batch")
    half = batch.num_rows // 2
    return _found(batch[:half], sql) + _found(batch[half:], sql)


def _connection() -> Any:
    """This thread's own; making one for every batch would take longer than the batch."""
    if not hasattr(_local, "connection"):
        import duckdb  # noqa: PLC0415

        _local.connection = duckdb.connect()
    return _local.connection
