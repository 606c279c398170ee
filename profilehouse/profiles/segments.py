"""Predicates: a segment's SQL expression, compiled so that Python decides exactly as SQL does.

Belongs here: the small part of SQL that segments may use. Does not belong here: what the columns
mean (features.py).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

SUPPORTED = "comparisons, AND, OR, NOT, +, -, *, IS NULL, whole numbers, texts, TRUE, FALSE, NULL"

_COMPARISONS: dict[type[exp.Expr], Callable[[Any, Any], bool]] = {
    exp.EQ: operator.eq,
    exp.NEQ: operator.ne,
    exp.LT: operator.lt,
    exp.LTE: operator.le,
    exp.GT: operator.gt,
    exp.GTE: operator.ge,
}
_ARITHMETIC: dict[type[exp.Expr], Callable[[int, int], int]] = {
    exp.Add: operator.add,
    exp.Sub: operator.sub,
    exp.Mul: operator.mul,
}

_CONDITIONS = (*_COMPARISONS, exp.Is, exp.Not, exp.And, exp.Or)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Predicate:
    """A compiled predicate: `sql` in the Snowflake dialect, `holds` for one row of columns."""

    sql: str
    holds: Callable[[Row], bool]


@dataclass(frozen=True)
class _Expression:
    """A part of a predicate; `type` is a contract's logical type, None for a bare NULL."""

    type: str | None
    value: Callable[[Row], Any]


def compile_predicate(sql: str, types: Mapping[str, str]) -> Predicate:
    """Compile a boolean SQL expression over the given columns (name -> logical type).

    Comparing with NULL gives NULL, AND and OR follow SQL's three-valued logic, and a predicate
    that ends as NULL does not hold.

    Raises:
        ValueError: naming the part that is not supported, not a column or of the wrong type.
    """
    try:
        statements = sqlglot.parse(sql, read="snowflake")
    except SqlglotError as error:
        raise ValueError(f"{sql!r} is not an SQL expression") from error
    if len(statements) != 1 or statements[0] is None:
        raise ValueError(f"{sql!r} is not one SQL expression")
    tree = statements[0]
    value = _values("boolean", types, tree)
    return Predicate(tree.sql(dialect="snowflake", comments=False), lambda row: value(row) is True)


def _compile(node: exp.Expr, types: Mapping[str, str]) -> _Expression:  # noqa: PLR0911
    kind = type(node)
    if kind in (*_COMPARISONS, exp.Is):
        _refuse_bare_conditions(node)
    if kind in (exp.Column, exp.Literal, exp.Boolean, exp.Null):
        return _leaf(node, types)
    if kind is exp.Paren:
        return _compile(node.this, types)
    if kind is exp.Is and isinstance(node.expression, exp.Null):
        inner = _compile(node.this, types).value
        return _Expression("boolean", lambda row: inner(row) is None)
    if kind is exp.Not:
        return _Expression("boolean", _strict(operator.not_, _values("boolean", types, node.this)))
    if kind is exp.Neg:
        return _Expression("integer", _strict(operator.neg, _values("integer", types, node.this)))
    if kind in (exp.And, exp.Or):
        left = _values("boolean", types, node.this)
        right = _values("boolean", types, node.expression)
        return _Expression("boolean", _decided_by(kind is exp.Or, left, right))
    if kind in _ARITHMETIC:
        left = _values("integer", types, node.this)
        right = _values("integer", types, node.expression)
        return _Expression("integer", _strict(_ARITHMETIC[kind], left, right))
    if kind in _COMPARISONS:
        one, other = _compile(node.this, types), _compile(node.expression, types)
        found = {one.type, other.type} - {None}
        if len(found) > 1 or "array" in found:
            raise ValueError(f"{_text(node)} compares {one.type} with {other.type}")
        return _Expression("boolean", _strict(_COMPARISONS[kind], one.value, other.value))
    raise ValueError(f"{_text(node)} ({node.key.upper()}) is not supported; there are {SUPPORTED}")


def _refuse_bare_conditions(node: exp.Expr) -> None:
    """Engines read `a = b IS NULL` and `a = b = c` differently; parentheses leave no doubt."""
    for side in (node.this, node.expression):
        if type(side) in _CONDITIONS:
            raise ValueError(f"{_text(node)} is ambiguous: put {_text(side)} in parentheses")


def _leaf(node: exp.Expr, types: Mapping[str, str]) -> _Expression:
    if isinstance(node, exp.Column):
        name = node.name.lower()
        if node.table or node.this.quoted or name not in types:
            raise ValueError(f"{_text(node)} is not a column; there are: {', '.join(types)}")
        return _Expression(types[name], operator.itemgetter(name))
    if isinstance(node, exp.Literal) and not node.is_string:
        if not node.this.isdecimal():
            raise ValueError(f"{_text(node)} is not a whole number")
        number = int(node.this)
        return _Expression("integer", lambda _: number)
    if isinstance(node, exp.Null):
        return _Expression(None, lambda _: None)
    constant = node.this
    return _Expression("boolean" if isinstance(node, exp.Boolean) else "string", lambda _: constant)


def _values(wanted: str, types: Mapping[str, str], node: exp.Expr) -> Callable[[Row], Any]:
    expression = _compile(node, types)
    if expression.type not in (wanted, None):
        raise ValueError(f"{_text(node)} is {expression.type}, where {wanted} is needed")
    return expression.value


def _strict(function: Callable[..., Any], *operands: Callable[[Row], Any]) -> Callable[[Row], Any]:
    """NULL where any operand is NULL."""

    def value(row: Row) -> Any:
        values = [operand(row) for operand in operands]
        return None if None in values else function(*values)

    return value


def _decided_by(
    decisive: bool, left: Callable[[Row], Any], right: Callable[[Row], Any]
) -> Callable[[Row], Any]:
    """OR (decided by one true side) and AND (by one false side), else NULL where a side is NULL."""

    def value(row: Row) -> bool | None:
        values = (left(row), right(row))
        if decisive in values:
            return decisive
        return None if None in values else not decisive

    return value


def _text(node: exp.Expr) -> str:
    return node.sql(dialect="snowflake", comments=False)
