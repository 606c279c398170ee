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
STAGED = "staged"
"""The table that the SQL files select from; it lives as long as the connection."""


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
        trees = [tree for tree in sqlglot.parse(sql, read=DIALECT) if tree]
        if len(trees) != 1:
            warnings.append(f"{len(trees)} statements instead of one")
        text = "; ".join(
            (_for_bigquery(tree) if dialect == "bigquery" else tree).sql(
                dialect, unsupported_level=ErrorLevel.RAISE
            )
            for tree in trees
        )
    if warnings:
        raise ProfilehouseError(f"SQL for {dialect}: {'; '.join(warnings)}; in: {_start(sql)}")
    return text


def select_columns(sql: str) -> tuple[str, ...]:
    """Names of the columns that a query in the Snowflake dialect yields, in order, lower case."""
    with _sqlglot(sql):
        query = sqlglot.parse_one(sql, read=DIALECT)
    if not isinstance(query, exp.Query):
        raise ProfilehouseError(f"SQL: must be one SELECT: {_start(sql)}")
    return tuple(name.lower() for name in query.named_selects)


def over(select: str, query: str) -> str:
    """A query that selects from `staged`, over what another query yields instead of it.

    Both are in the Snowflake dialect; the other one may itself select from the table `staged`.
    """
    with _sqlglot(select):
        tree = sqlglot.parse_one(select, read=DIALECT)
        rows = sqlglot.parse_one(query, read=DIALECT)
        for table in list(tree.find_all(exp.Table)):
            if table.name == STAGED:
                table.replace(exp.Subquery(this=rows.copy()).as_(table.alias or STAGED, table=True))
        return tree.sql(DIALECT, comments=False)


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


_PARTS: dict[type[exp.Expr], str] = {
    exp.Year: "YEAR",
    exp.Quarter: "QUARTER",
    exp.Month: "MONTH",
    exp.WeekOfYear: "ISOWEEK",
}


def literal(text: str, dialect: str) -> str:
    """A text as a literal, for statements that take no bound values."""
    return exp.Literal.string(text).sql(dialect)


def _for_bigquery(tree: exp.Expr) -> exp.Expr:
    for node in reversed(list(tree.walk())):  # children before parents
        mended = _in_bigquery(node)
        if mended is not node:
            tree = mended if node is tree else tree
            node.replace(mended)
    return tree


def _in_bigquery(node: exp.Expr) -> exp.Expr:  # noqa: PLR0911
    """A node as BigQuery has it, where sqlglot leaves it in the words of Snowflake.

    What windows and arrays are ordered by is never null in our SQL, so where nulls would go, which
    BigQuery does not let them say everywhere, is left out.
    """
    if type(node) in _PARTS:
        return exp.Extract(this=exp.var(_PARTS[type(node)]), expression=node.this)
    match node:
        case exp.DayOfWeekIso():
            day = exp.Extract(this=exp.var("DAYOFWEEK"), expression=node.this)
            monday_first = exp.func("MOD", day + 5, exp.Literal.number(7))
            return exp.paren(monday_first + 1)
        case exp.DateAdd():
            # DATE_ADD takes no unit below a day; where a time is due, a date becomes one.
            return exp.DatetimeAdd(this=node.this, expression=node.expression, unit=node.unit)
        case exp.DateDiff():
            return exp.DatetimeDiff(this=node.this, expression=node.expression, unit=node.unit)
        case exp.TimestampTrunc():
            unit = "WEEK(MONDAY)" if node.text("unit").upper() == "WEEK" else node.text("unit")
            return exp.Anonymous(this="DATE_TRUNC", expressions=[node.this, exp.var(unit)])
        case exp.RegexpCount():
            matches = exp.Anonymous(
                this="REGEXP_EXTRACT_ALL", expressions=[node.this, node.expression]
            )
            return exp.Anonymous(this="ARRAY_LENGTH", expressions=[matches])
        case exp.WithinGroup(this=exp.ArrayAgg()):
            order = exp.Order(this=node.this.this, expressions=node.expression.expressions)
            return exp.ArrayAgg(this=order)
        case exp.Ordered() if isinstance(_user_of(node), exp.Window | exp.WithinGroup):
            descending = bool(node.args.get("desc"))
            return exp.Ordered(this=node.this, desc=descending, nulls_first=not descending)
        case exp.Delete() if not node.args.get("where"):
            return node.where(exp.true(), copy=False)
        case exp.Table() if node.name == STAGED and not node.db:
            named = exp.Table(this=exp.to_identifier(STAGED, quoted=True))
            return exp.alias_(named, node.alias or STAGED, table=True)
    return node


def _user_of(ordered: exp.Ordered) -> exp.Expr | None:
    """What the order is for: a query, a window or an aggregate."""
    return ordered.parent.parent if ordered.parent else None


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
