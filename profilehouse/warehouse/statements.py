"""The SQL of the warehouse's operations, as text in the Snowflake dialect.

Names come from contracts, values are always bound (`?`). Does not belong here: running it.
"""

from __future__ import annotations

from collections.abc import Sequence

from profilehouse.contracts import Contract

DELIVERED = ("delivered_on", "topic", "line")
"""The position of a row that a batch source delivered."""
LOGGED = ("log_partition", "log_offset")
"""The position of a row that came over the log."""


def delete_days(table: Contract, days: int) -> str:
    """Remove what was delivered on a number of days, to be bound."""
    return f"DELETE FROM {table.name} WHERE delivered_on IN ({_marks(days)})"  # noqa: S608


def lost_rows(fact: Contract, select: str, days: int) -> str:
    """How many rows, delivered on a number of days, the query has no equal or better row for."""
    keys = ", ".join(fact.primary_key)
    return f"""
SELECT COUNT(*) AS lost FROM {fact.name} LEFT JOIN (
  SELECT {keys}, MIN(delivered_on) AS first_day FROM (
{select}
  ) AS delivered
  GROUP BY {keys}
) AS incoming
ON {_same_key(fact)}
WHERE {fact.name}.delivered_on IN ({_marks(days)})
AND (incoming.first_day IS NULL OR incoming.first_day > {fact.name}.delivered_on)
"""  # noqa: S608


def first_copies(fact: Contract, select: str, position: Sequence[str]) -> str:
    """What the query yields with one row a key, the one with the lowest position."""
    return f"""
  SELECT {", ".join(_names(fact))} FROM (
{select}
  ) AS delivered
  QUALIFY ROW_NUMBER() OVER (
    PARTITION BY {", ".join(fact.primary_key)} ORDER BY {", ".join(position)}
  ) = 1
"""  # noqa: S608


def merge(fact: Contract, select: str, position: Sequence[str], ordered: bool = False) -> str:
    """Bring in rows: of those with the same key, here and there, the lowest position stays.

    The source of the MERGE has one row a key: Snowflake would otherwise take any of them. Where
    `ordered`, it is in the order that the table is clustered by.
    """
    names = _names(fact)
    return f"""
MERGE INTO {fact.name} USING (
{first_copies(fact, select, position)}{_order(fact, ordered)}
) AS incoming
ON {_same_key(fact)}
WHEN MATCHED AND {_lower(fact, position)} THEN
  UPDATE SET {", ".join(f"{name} = incoming.{name}" for name in names)}
WHEN NOT MATCHED THEN
  INSERT ({", ".join(names)}) VALUES ({", ".join(f"incoming.{name}" for name in names)})
"""  # noqa: S608


def replaced_rows(fact: Contract, select: str, position: Sequence[str]) -> str:
    """A row for each that merge() would replace by one with a lower position."""
    return f"""
SELECT 1 AS replaced FROM {fact.name} JOIN (
{first_copies(fact, select, position)}
) AS incoming
ON {_same_key(fact)}
WHERE {_lower(fact, position)}
"""  # noqa: S608


def delete_keys(dimension: Contract, key: str, select: str) -> str:
    """Remove all rows whose business key the query yields."""
    return f"""
DELETE FROM {dimension.name} WHERE {key} IN (
  SELECT {key} FROM (
{select}
  ) AS incoming
)
"""  # noqa: S608


def delete_all(table: Contract) -> str:
    """Remove every row."""
    return f"DELETE FROM {table.name}"  # noqa: S608


def insert(table: Contract, select: str, ordered: bool = False) -> str:
    """Append what the query yields, by name; in the order of its clusters where `ordered`."""
    names = ", ".join(_names(table))
    return f"""
INSERT INTO {table.name} ({names})
SELECT {names} FROM (
{select}
) AS incoming{_order(table, ordered)}
"""  # noqa: S608


def insert_values(table: Contract, rows: int) -> str:
    """Append a few rows, to be bound row by row; many rows are staged instead."""
    names = _names(table)
    values = ", ".join([f"({_marks(len(names))})"] * rows)
    return f"INSERT INTO {table.name} ({', '.join(names)}) VALUES {values}"  # noqa: S608


def _order(table: Contract, ordered: bool) -> str:
    return f"\nORDER BY {', '.join(table.cluster_by)}" if ordered and table.cluster_by else ""


def _names(table: Contract) -> list[str]:
    return [column.name for column in table.columns]


def _lower(fact: Contract, position: Sequence[str]) -> str:
    """Whether the incoming row has the lower position."""
    first, *rest = position
    lower = f"incoming.{first} < {fact.name}.{first}"
    if not rest:
        return lower
    return f"({lower} OR incoming.{first} = {fact.name}.{first} AND {_lower(fact, rest)})"


def _same_key(fact: Contract) -> str:
    return " AND ".join(f"{fact.name}.{key} = incoming.{key}" for key in fact.primary_key)


def _marks(count: int) -> str:
    return ", ".join("?" * count)
