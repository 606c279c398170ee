"""What a table lacks of its contract: what can be added to it, and what can not.

Does not belong here: running anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from profilehouse.contracts import Column, Contract
from profilehouse.errors import ProfilehouseError

WIDENING = {("integer", "number")}
"""(from, to): types of a contract whose values are all values of the other."""
WIDENED_BY = {
    "duckdb": "ALTER TABLE {table} ALTER COLUMN {column} SET DATA TYPE {kind}",
    "bigquery": "ALTER TABLE {table} ALTER COLUMN {column} SET DATA TYPE {kind}",
}
"""The statements that widen; Snowflake has none from NUMBER to FLOAT."""


@dataclass(frozen=True)
class Difference:
    """How a table differs from its contract, by columns."""

    contract: Contract
    dialect: str
    added: tuple[Column, ...]
    widened: tuple[Column, ...]
    required: tuple[Column, ...]
    retyped: tuple[tuple[Column, str], ...]
    unknown: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.widened or self.required or self.retyped or self.unknown)

    def statements(self) -> dict[str, str]:
        """What to run, by what it does, in words.

        Raises:
            ProfilehouseError: where rows that are there cannot become what the contract says; with
                the differences and what to do.
        """
        table = self.contract.name
        if self.required or self.retyped or self.unknown:
            missing = [f"{c.name} (mandatory)" for c in self.required]
            retyped = [f"{c.name} is {was}, not {self._kind(c)}" for c, was in self.retyped]
            raise ProfilehouseError(
                f"warehouse table {table} does not fit its contract {self.contract.version}"
                f" (missing: {_listed([*missing, *(c.name for c in self.added)])};"
                f" unknown: {_listed(self.unknown)}; of another type: {_listed(retyped)}):"
                f" {self._remedy()}"
            )
        return {
            **{
                f"column {c.name} was added to {table}": (
                    f"ALTER TABLE {table} ADD COLUMN {c.name} {self._kind(c)}"
                )
                for c in self.added
            },
            **{
                f"column {c.name} of {table} was widened to {self._kind(c)}": (
                    WIDENED_BY[self.dialect].format(table=table, column=c.name, kind=self._kind(c))
                )
                for c in self.widened
            },
        }

    def _kind(self, column: Column) -> str:
        return column.sql_type(self.dialect)

    def _remedy(self) -> str:
        table = self.contract.name
        anew = (
            f"run DROP TABLE {table} in the warehouse, then materialize warehouse/{table}, all its"
            " days"
        )
        if self.required or self.retyped:
            return anew
        drops = "; ".join(f"ALTER TABLE {table} DROP COLUMN {name}" for name in self.unknown)
        return f"run {drops} in the warehouse if nobody needs what is in there; or {anew}"


def difference(contract: Contract, present: Mapping[str, str], dialect: str) -> Difference:
    """Compare a table with its contract.

    Args:
        contract: of the table.
        present: the table's columns and their types, in the words of the contract's DDL.
        dialect: the warehouse's.
    """
    missing = [c for c in contract.columns if c.name not in present]
    other = [
        (c, present[c.name])
        for c in contract.columns
        if c.name in present and present[c.name] != c.sql_type(dialect)
    ]
    widened = [c for c, was in other if _widens(c, was, dialect)]
    return Difference(
        contract,
        dialect,
        added=tuple(c for c in missing if not c.required),
        widened=tuple(widened),
        required=tuple(c for c in missing if c.required),
        retyped=tuple((c, was) for c, was in other if c not in widened),
        unknown=tuple(sorted(set(present) - {c.name for c in contract.columns})),
    )


def _widens(column: Column, was: str, dialect: str) -> bool:
    return dialect in WIDENED_BY and any(
        column.type == to and was == Column("", of, "").sql_type(dialect) for of, to in WIDENING
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
