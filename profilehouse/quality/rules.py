"""Rules: what a contract demands of its rows (two executors run these) and of the whole dataset.

Belongs here: making rules out of a contract. Does not belong here: running them (sql.py, gx.py,
datasets.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from profilehouse.contract_quality import (
    BusyHours,
    Dependency,
    Distinct,
    Expression,
    Freshness,
    NullShare,
    OfDataset,
    OfRows,
    QualityRule,
    Reconciliation,
    Silence,
    Volume,
)
from profilehouse.contracts import Column, Contract, Severity
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
class Length:
    """A text has so many code points, both bounds included."""

    column: str
    shortest: int | None
    longest: int | None


@dataclass(frozen=True)
class Depends:
    """Rows that agree in the determinant agree in the dependent column.

    A row fails unless more than half of the rows with its determinant have its value; rows in which
    one of the columns is null are left out.
    """

    determinant: tuple[str, ...]
    dependent: str

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that it reads."""
        return (*self.determinant, self.dependent)


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


RowTest = Present | Between | InSet | Matches | Length | Holds
"""What one row decides alone."""
Test = RowTest | Unique | Depends


@dataclass(frozen=True)
class Rule:
    """One demand on the rows of a dataset, named as a predicate.

    Attributes:
        owner: who is to be asked.
        silences: rows of these delivery days do not count, each until its last day.
        declared: whether the contract's quality section says it. What columns demand is refused
            already where records come in; what the section demands is not.
    """

    name: str
    test: Test
    severity: Severity
    description: str
    remedy: str
    owner: str
    silences: tuple[Silence, ...] = ()
    declared: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        if isinstance(self.test, Unique | Holds | Depends):
            return self.test.columns
        return (self.test.column,)


@dataclass(frozen=True)
class DatasetRule:
    """One demand on a dataset as a whole, named as a predicate."""

    name: str
    demand: OfDataset
    severity: Severity
    description: str
    remedy: str
    owner: str


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
    for rule in contract.quality:
        if isinstance(rule.demand, OfRows):
            rules.append(_declared(contract, rule, tuple(within)))
    of_dataset = [rule.name for rule in dataset_rules(contract)]
    names = [rule.name for rule in rules] + of_dataset
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ProfilehouseError(
            f"{contract.path.name}: two rules are named {', '.join(repeated)};"
            " rename a quality rule"
        )
    for silence in contract.silences:
        if silence.rule not in names or silence.rule in of_dataset:
            raise ProfilehouseError(
                f"{contract.path.name}: silences: there is no row rule {silence.rule};"
                f" there are: {', '.join(rule.name for rule in rules)}"
            )
    return tuple(
        replace(rule, silences=tuple(s for s in contract.silences if s.rule == rule.name))
        for rule in rules
    )


def dataset_rules(contract: Contract) -> tuple[DatasetRule, ...]:
    """The rules of a contract that no row decides: null shares, volume, freshness, reconciliation.

    Raises:
        ProfilehouseError: for a rule that names a column that the contract lacks.
    """
    rules = []
    for rule in contract.quality:
        demand = rule.demand
        if isinstance(demand, OfRows):
            continue
        _refuse_unknown(contract, rule, _columns_of(demand))
        owner = rule.owner or contract.owner
        rules.append(
            DatasetRule(
                name=rule.name,
                demand=demand,
                severity=rule.severity,
                description=rule.description.rstrip("."),
                remedy=_remedy_of_dataset(contract, demand, owner),
                owner=owner,
            )
        )
    return tuple(rules)


def silenced_days(rule: Rule, today: date) -> tuple[Silence, ...]:
    """The silences of a rule that hold today."""
    return tuple(silence for silence in rule.silences if today <= silence.until)


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
                owner=contract.owner,
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
                owner=contract.owner,
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
                owner=contract.owner,
            )
        )
    if column.shortest is not None or column.longest is not None:
        text = _bounds(column.shortest, column.longest)
        rules.append(
            Rule(
                name=f"{name}_has_length_{_word(text)}",
                test=Length(name, column.shortest, column.longest),
                severity="error",
                description=f"{name} has {text} characters",
                remedy=correct,
                owner=contract.owner,
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
                owner=contract.owner,
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
        owner=contract.owner,
    )


def _declared(contract: Contract, rule: QualityRule, within: tuple[str, ...]) -> Rule:
    test: Test
    owner = rule.owner or contract.owner
    match rule.demand:
        case Expression(sql):
            test = _holds(contract, rule.name, sql)
        case Distinct(columns):
            test = Unique(tuple(name for name in within if name not in columns) + columns)
        case Dependency(determinant, dependent):
            apart = tuple(name for name in within if name not in determinant)
            test = Depends(apart + determinant, dependent)
        case _:
            raise TypeError(f"{rule.name} is no row rule")
    if not test.columns:
        raise ProfilehouseError(
            f"{contract.path.name}: quality rule {rule.name} reads no column; say what each row"
            " must satisfy, or count rows with metric: rowCount"
        )
    _refuse_unknown(contract, rule, [name for name in test.columns if name not in within])
    return Rule(
        name=rule.name,
        test=test,
        severity=rule.severity,
        description=rule.description.rstrip("."),
        remedy=f"Ask {owner} to correct the rows, or mend the rule"
        f" in contracts/{contract.kind}/{contract.path.name}",
        owner=owner,
        declared=True,
    )


def _holds(contract: Contract, name: str, sql: str) -> Holds:
    try:
        return Holds(sqlglot.parse_one(sql, read="snowflake").sql("snowflake"))
    except SqlglotError as error:
        reason = " ".join(str(error).split())
        raise ProfilehouseError(
            f"{contract.path.name}: quality rule {name}: {sql!r} is no SQL expression: {reason}"
        ) from error


def _refuse_unknown(contract: Contract, rule: QualityRule, columns: Sequence[str]) -> None:
    known = [column.name for column in contract.columns]
    if unknown := [name for name in columns if name not in known]:
        raise ProfilehouseError(
            f"{contract.path.name}: quality rule {rule.name}: {contract.name} has no column"
            f" {unknown[0]}; there are: {', '.join(known)}"
        )


def _columns_of(demand: OfDataset) -> list[str]:
    match demand:
        case NullShare(column) | Freshness(column) | BusyHours(column):
            return [column]
        case Volume():
            return [] if demand.per is None else [demand.per]
        case Reconciliation():
            return [*demand.columns, *demand.by]


def _remedy_of_dataset(contract: Contract, demand: OfDataset, owner: str) -> str:
    place = f"contracts/{contract.kind}/{contract.path.name}"
    match demand:
        case NullShare(column):
            return f"Ask {owner} why {column} is missing, or allow a larger share in {place}"
        case Volume():
            return (
                f"Ask {owner} whether rows were lost or sent twice, or mend the bounds in {place}"
            )
        case Freshness():
            return f"See that {contract.name} is still loaded; if so, ask {owner} what holds it up"
        case BusyHours():
            return f"Ask {owner} for the records of these hours, and to deliver the days again"
        case Reconciliation(dataset):
            return (
                f"Load {contract.name} again from what {dataset} holds now; if they still differ,"
                f" ask {owner}"
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
    lengths = [length for length in (column.shortest, column.longest) if length is not None]
    if lengths and column.type != "string":
        raise ProfilehouseError(f"{place}: minLength and maxLength are for string only")
    if any(type(length) is not int or length < 0 for length in lengths) or (
        lengths != sorted(lengths)
    ):
        raise ProfilehouseError(
            f"{place}: minLength and maxLength must be whole, from 0 on, and in order"
        )
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
