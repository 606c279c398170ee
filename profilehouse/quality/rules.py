"""Row rules: what a contract demands of each row and key, as values that two executors run.

Belongs here: making rules out of a contract. Does not belong here: running them (sql.py, gx.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from profilehouse.contracts import Column, Contract, RowExpression, Severity
from profilehouse.errors import ProfilehouseError

PORTABLE_ESCAPES = "dDwW"


@dataclass(frozen=True)
class Present:
    """The column is not null. NaN counts as null, here and in every other test."""

    column: str


@dataclass(frozen=True)
class Between:
    """A value lies between the bounds, both included. Null passes, as in the tests below."""

    column: str
    minimum: float | None
    maximum: float | None


@dataclass(frozen=True)
class InSet:
    """A text is one of the values."""

    column: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Matches:
    """A text has a part that matches the pattern, as in JSON Schema: anchor it to match all."""

    column: str
    pattern: str


@dataclass(frozen=True)
class Unique:
    """No two rows have the same values; rows in which one of them is null are left out.

    All rows that share their values count as failing, the first one too.
    """

    columns: tuple[str, ...]


@dataclass(frozen=True)
class Holds:
    """An SQL expression (Snowflake dialect) is not false; unknown (null) passes, as in CHECK."""

    expression: str

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads, in lower case."""
        found = sqlglot.parse_one(self.expression, read="snowflake").find_all(exp.Column)
        return tuple(dict.fromkeys(column.name.lower() for column in found))


Test = Present | Between | InSet | Matches | Unique | Holds


@dataclass(frozen=True)
class Rule:
    """One demand on the rows of a dataset, named as a predicate."""

    name: str
    test: Test
    severity: Severity
    description: str
    remedy: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        if isinstance(self.test, Unique | Holds):
            return self.test.columns
        return (self.test.column,)


def row_rules(contract: Contract, within: Sequence[str] = ()) -> tuple[Rule, ...]:
    """The rules of a contract, in the order of its columns, then keys, then expressions.

    Args:
        contract: whose rules.
        within: columns inside whose values keys are unique. A source may deliver the same key
            again another day, so for landed records it is the delivery day.

    Raises:
        ProfilehouseError: for a rule that does not fit the type of its column, or that the
            engines would read differently; it names the contract and the column.
    """
    rules: list[Rule] = []
    for column in contract.columns:
        rules += _column_rules(contract, column)
    keys: list[tuple[str, ...]] = [(column.name,) for column in contract.columns if column.unique]
    if contract.primary_key and contract.primary_key not in keys:
        keys.append(contract.primary_key)
    rules += [_unique(contract, key, tuple(within)) for key in keys]
    rules += [_holds(contract, expression) for expression in contract.expressions]
    names = [rule.name for rule in rules]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ProfilehouseError(
            f"{contract.path.name}: two rules are named {', '.join(repeated)};"
            " rename a quality rule"
        )
    return tuple(rules)


def python_pattern(pattern: str) -> str:
    """A portable pattern for Python's `re`, so that it matches what the SQL engines match.

    There classes are ASCII and `$` is the very end; in Python it is also before a last newline.
    """
    return "(?a)" + "".join(
        r"\Z" if piece == "$" and not in_class else piece for piece, in_class in _pieces(pattern)
    )


def _column_rules(contract: Contract, column: Column) -> list[Rule]:
    _refuse_misfits(contract, column)
    name, place = column.name, f"contracts/{contract.kind}/{contract.path.name}"
    correct = f"Ask {contract.owner} to correct the values, or widen the rule in {place}"
    rules: list[Rule] = []
    if column.required:
        rules.append(
            Rule(
                name=f"{name}_is_present",
                test=Present(name),
                severity="error",
                description=f"{name} is not null",
                remedy=f"Ask {contract.owner} to fill {name}, or make it optional in {place}",
            )
        )
    if column.minimum is not None or column.maximum is not None:
        text = _bounds(column.minimum, column.maximum)
        rules.append(
            Rule(
                name=f"{name}_is_{_word(text)}",
                test=Between(name, column.minimum, column.maximum),
                severity="error",
                description=f"{name} is {text}",
                remedy=correct,
            )
        )
    if column.values:
        rules.append(
            Rule(
                name=f"{name}_is_in_set",
                test=InSet(name, column.values),
                severity="error",
                description=f"{name} is one of {', '.join(column.values)}",
                remedy=correct,
            )
        )
    if column.pattern is not None:
        rules.append(
            Rule(
                name=f"{name}_matches_pattern",
                test=Matches(name, column.pattern),
                severity="error",
                description=f"{name} matches {column.pattern}",
                remedy=correct,
            )
        )
    return rules


def _unique(contract: Contract, key: tuple[str, ...], within: tuple[str, ...]) -> Rule:
    scope = tuple(name for name in within if name not in key)
    return Rule(
        name=f"{key[0]}_is_unique" if len(key) == 1 else "primary_key_is_unique",
        test=Unique(scope + key),
        severity="error",
        description=f"({', '.join(key)}) is unique"
        + (f" within one {', '.join(scope)}" if scope else ""),
        remedy=f"Ask {contract.owner} which of the rows is right, remove the others and load again",
    )


def _holds(contract: Contract, rule: RowExpression) -> Rule:
    try:
        test = Holds(sqlglot.parse_one(rule.expression, read="snowflake").sql("snowflake"))
    except SqlglotError as error:
        reason = " ".join(str(error).split())
        raise ProfilehouseError(
            f"{contract.path.name}: quality rule {rule.name}: {rule.expression!r} is no SQL"
            f" expression: {reason}"
        ) from error
    return Rule(
        name=rule.name,
        test=test,
        severity=rule.severity,
        description=rule.description.rstrip("."),
        remedy=f"Ask {contract.owner} to correct the rows, or mend the rule"
        f" in contracts/{contract.kind}/{contract.path.name}",
    )


def _refuse_misfits(contract: Contract, column: Column) -> None:
    place = f"{contract.path.name}: property {column.name}"
    bounds = [bound for bound in (column.minimum, column.maximum) if bound is not None]
    if bounds and column.type not in ("integer", "number"):
        raise ProfilehouseError(f"{place}: minimum and maximum are for integer and number only")
    if column.type == "integer" and any(bound != int(bound) for bound in bounds):
        raise ProfilehouseError(f"{place}: minimum and maximum of an integer must be whole")
    if len(bounds) > 1 and bounds[0] > bounds[1]:
        raise ProfilehouseError(f"{place}: minimum {bounds[0]} is above maximum {bounds[1]}")
    if (column.values or column.pattern is not None) and column.type != "string":
        raise ProfilehouseError(f"{place}: enum and pattern are for string only")
    if column.pattern is not None:
        problem = _pattern_problem(column.pattern)
        if problem:
            raise ProfilehouseError(f"{place}: pattern {column.pattern!r}: {problem}")


def _pattern_problem(pattern: str) -> str | None:
    """Why a pattern could match differently in Python, DuckDB (RE2) and Snowflake, if it could."""
    if not pattern:
        return "it is empty"
    outside = ""
    for piece, in_class in _pieces(pattern):
        if len(piece) > 1 and piece[1].isalnum() and piece[1] not in PORTABLE_ESCAPES:
            return f"{piece} is not read alike by all engines; write the characters in [ ]"
        if in_class and piece == "[":
            return r"inside [ ] write \[ for ["
        outside += "x" if in_class or len(piece) > 1 else piece
    if re.search(r"\(\?|\{,|[*+?}]\+", outside):
        return "groups with (?, {,n} and possessive quantifiers are not read alike by all engines"
    try:
        re.compile(python_pattern(pattern))
        pc.match_substring_regex(pa.scalar(""), pattern)
    except (re.error, pa.ArrowInvalid) as error:
        return str(error)
    return None


def _pieces(pattern: str) -> list[tuple[str, bool]]:
    """A pattern's characters, escapes kept whole, each with whether it is within [ ]."""
    pieces: list[tuple[str, bool]] = []
    in_class = False
    for piece in re.findall(r"\\.|.", pattern, re.DOTALL):
        if piece == "]":
            in_class = False
        pieces.append((piece, in_class))
        if piece == "[":
            in_class = True
    return pieces


def _bounds(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high}"
    if high is None:
        return f"at least {low}"
    return f"between {low} and {high}"


def _word(text: str) -> str:
    """Text as part of a check's name."""
    spelled = text.replace("-", "minus_").replace(".", "_point_").replace("+", "")
    return re.sub(r"\W+", "_", spelled)
