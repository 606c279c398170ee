"""SQL as text: from the Snowflake dialect to an engine's own, its columns and where they come from.

Does not belong here: running anything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache

import sqlglot
from sqlglot import ErrorLevel, exp
from sqlglot.errors import SqlglotError
from sqlglot.lineage import lineage as column_lineage

from profilehouse.errors import ProfilehouseError

DIALECT = "snowflake"


@lru_cache(maxsize=512)
def translate(sql: str, dialect: str) -> str:
    """One statement in the Snowflake dialect as a warehouse's own; Snowflake's stays as it is.

    Raises:
        ProfilehouseError: where the translation would be less than exact, even if the translator
            would only have warned.
    """
    if dialect == DIALECT:
        return sql
    with _sqlglot(sql) as warnings:
        statements = sqlglot.transpile(
            sql, read=DIALECT, write=dialect, unsupported_level=ErrorLevel.RAISE
        )
    if warnings or len(statements) != 1:
        reason = "; ".join(warnings) or f"{len(statements)} statements instead of one"
        raise ProfilehouseError(f"SQL for {dialect}: {reason}; in: {_start(sql)}")
    return statements[0]


def select_columns(sql: str) -> tuple[str, ...]:
    """Names of the columns that a query in the Snowflake dialect yields, in order, lower case."""
    with _sqlglot(sql):
        query = sqlglot.parse_one(sql, read=DIALECT)
    if not isinstance(query, exp.Query):
        raise ProfilehouseError(f"SQL: must be one SELECT: {_start(sql)}")
    return tuple(name.lower() for name in query.named_selects)


def lineage(
    sql: str, tables: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[tuple[str, str]]]:
    """Where each column of a query comes from: {column: [(table, column it is computed from)]}.

    Args:
        sql: a query in the Snowflake dialect.
        tables: columns of the tables read; needed only where a query joins tables and leaves
            open from which of them a column is.

    Returns:
        Every output column, in order; its inputs sorted, without repetition. A column made of
        constants has none.
    """
    schema = {table: dict.fromkeys(columns, "VARIANT") for table, columns in (tables or {}).items()}
    with _sqlglot(sql):
        nodes = column_lineage(None, sql, schema, dialect=DIALECT, trim_selects=False)
    return {
        name.lower(): sorted(
            {
                (leaf.expression.name.lower(), leaf.name.rpartition(".")[2].lower())
                for leaf in node.walk()
                if isinstance(leaf.expression, exp.Table)
            }
        )
        for name, node in nodes.items()
    }


@contextmanager
def _sqlglot(sql: str) -> Iterator[list[str]]:
    """Collects what sqlglot warns of; its errors become one line."""
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("sqlglot")
    logger.addHandler(handler)
    try:
        yield warnings
    except SqlglotError as error:
        reason = " ".join(str(error).split())
        raise ProfilehouseError(f"SQL: {reason}; in: {_start(sql)}") from error
    finally:
        logger.removeHandler(handler)


def _start(sql: str) -> str:
    flat = " ".join(sql.split())
    return flat if len(flat) <= 120 else f"{flat[:117]}..."  # noqa: PLR2004
