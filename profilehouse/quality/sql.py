"""Row rules and references as SQL: one generated statement counts all that fail in a dataset.

Belongs here: the statements (Snowflake dialect), running them, and comparing a dataset's columns
with its contract. Does not belong here: what the rules are (rules.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import pyarrow as pa
from sqlglot import exp

from profilehouse.contract_quality import Silence
from profilehouse.contracts import Contract, Severity
from profilehouse.errors import ProfilehouseError
from profilehouse.quality.result import SAMPLE_SIZE, CheckResult, percent, sample_of
from profilehouse.quality.rules import (
    Between,
    Depends,
    Holds,
    InSet,
    Length,
    Matches,
    Present,
    RowTest,
    Rule,
    Test,
    Unique,
    silenced_days,
)

PARTITION = "delivered_on"
"""The column whose days a silence names."""
Counts = tuple[int, dict[str, int]]
"""Rows in all, and how many of them fail, by rule."""

_TYPES: Mapping[str, Callable[[pa.DataType], bool]] = {
    "integer": lambda t: pa.types.is_integer(t) or (pa.types.is_decimal(t) and t.scale == 0),
    "number": pa.types.is_float64,
    "string": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t),
    "boolean": pa.types.is_boolean,
    "date": pa.types.is_date,
    "timestamp": lambda t: pa.types.is_timestamp(t) and t.tz is None,
    "bytes": lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t),
    "array": lambda t: pa.types.is_list(t) or pa.types.is_large_list(t),
}


class Source(Protocol):
    """Where a dataset can be asked with SQL: a warehouse, or Arrow tables."""

    def query(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """The rows of a query in the Snowflake dialect, with lower-case column names."""

    def schema_of(self, table: str) -> pa.Schema:
        """The columns of a table, with the types that query() gives."""


class ArrowSource:
    """Arrow tables that can be asked with SQL, through DuckDB in memory."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def query(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """The rows of a query in the Snowflake dialect.

        Raises:
            ProfilehouseError: where it cannot be computed, as a product above 64 bits; without the
                values, which may be personal.
        """
        import duckdb  # noqa: PLC0415

        from profilehouse.warehouse.sql import translate  # noqa: PLC0415

        try:
            relation = self._connection.sql(translate(sql, "duckdb"), params=list(params))
            table: pa.Table = relation.to_arrow_table()
        except duckdb.Error as error:
            reason = str(error).partition("(")[0].partition("\n")[0].strip()
            raise ProfilehouseError(
                f"SQL cannot be computed: {reason}; mend the rule that asks for it, as by"
                " CAST(... AS DOUBLE) where numbers become too large"
            ) from error
        return table

    def schema_of(self, table: str) -> pa.Schema:
        """The columns of a table, with the types that query() gives."""
        return self.query(f"SELECT * FROM {table} LIMIT 0").schema  # noqa: S608


@contextmanager
def arrow_source(tables: Mapping[str, pa.Table]) -> Iterator[ArrowSource]:
    """Arrow tables by the names that SQL knows them by; nothing is copied."""
    import duckdb  # noqa: PLC0415

    with duckdb.connect() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        yield ArrowSource(connection)


def check_rows(
    contract: Contract,
    rules: Sequence[Rule],
    source: Source,
    table: str | None = None,
    keys: Sequence[str] = (),
) -> list[CheckResult]:
    """Check a whole dataset with one statement, and one more for the sample of each failing rule.

    Args:
        contract: of the dataset.
        rules: of that contract.
        source: where the dataset is.
        table: its name there, by default the contract's.
        keys: columns that say which row fails, by default the primary key.

    Returns:
        One result a rule, in the order of the rules. A rule whose column is missing or has
        another type than the contract says cannot run, so it fails.
    """
    name = table or contract.name

    def count(runnable: Sequence[Rule], rows: str) -> Counts:
        counted = source.query(count_statement(runnable, rows)).to_pylist()[0]
        return counted["total"], {
            rule.name: counted[f"failing_{i}"] for i, rule in enumerate(runnable)
        }

    return run_rules(contract, rules, source, name, keys or contract.primary_key, count)


def run_rules(
    contract: Contract,
    rules: Sequence[Rule],
    source: Source,
    table: str,
    keys: Sequence[str],
    count: Callable[[Sequence[Rule], str], Counts],
) -> list[CheckResult]:
    """What every executor of row rules does around counting.

    Args:
        contract: of the dataset.
        rules: of that contract.
        source: where the dataset is; it is asked for its columns and for samples.
        table: its name there.
        keys: columns that say which row fails.
        count: counts for the rules that can run, given the dataset as something to select from.
    """
    schema = source.schema_of(table)
    today = datetime.now(UTC).date()
    problems = {rule.name: _problem(contract, rule, schema) for rule in rules}
    runnable = [rule for rule in rules if problems[rule.name] is None]
    reads = [name for rule in runnable for name in rule.columns]
    locate = [name for name in keys if name in schema.names]
    silencing = [PARTITION] if any(rule.silences for rule in runnable) else []
    rows = _rows(table, schema, [*locate, *reads, *silencing])
    total, failing = count(runnable, rows) if runnable else (rows_in(source, rows), {})
    personal = {column.name for column in contract.columns if column.personal}
    results = []
    for rule in rules:
        if problem := problems[rule.name]:
            results.append(_result(rule, total, total, problem=f"{problem} in {table}"))
            continue
        sample: tuple[Mapping[str, str], ...] = ()
        count_failing = failing[rule.name]
        silences = silenced_days(rule, today) if count_failing else ()
        silenced = 0
        if silences:
            silenced, found = _apart(rule, rows, locate, source, silences)
            sample = sample_of(found.to_pylist(), personal)
        elif count_failing:
            found = source.query(sample_statement(rule, rows, locate))
            sample = sample_of(found.to_pylist(), personal)
        result = _result(rule, count_failing - silenced, total, sample)
        if silenced:
            result = _with_silenced(result, silenced, silences)
        results.append(result)
    return results


def _apart(
    rule: Rule, rows: str, keys: Sequence[str], source: Source, silences: Sequence[Silence]
) -> tuple[int, pa.Table]:
    """How many failing rows are silenced, and the first of the others."""
    days = [silence.partition for silence in silences]
    among = f"{PARTITION} IN ({', '.join('?' for _ in days)})"
    names = list(dict.fromkeys([*keys, *rule.columns]))
    failing = f"({failing_rows(rule.test, rows, [*dict.fromkeys([PARTITION, *names])])}) AS failing"
    counted = source.query(f"SELECT COUNT(*) AS silenced FROM {failing} WHERE {among}", days)  # noqa: S608
    listed = ", ".join(names)
    others = source.query(
        f"SELECT {listed} FROM {failing} WHERE {PARTITION} IS NULL OR NOT {among}"  # noqa: S608
        f" ORDER BY {listed} LIMIT {SAMPLE_SIZE}",
        days,
    )
    return int(counted["silenced"][0].as_py()), others


def _with_silenced(result: CheckResult, silenced: int, silences: Sequence[Silence]) -> CheckResult:
    why = "; ".join(f"{s.partition} until {s.until}: {s.reason}" for s in silences)
    return replace(
        result,
        observed=f"{result.observed}; {silenced:,} rows are silenced ({why})",
        numbers={**result.numbers, "silenced": silenced},
    )


def rows_in(source: Source, rows: str) -> int:
    """How many rows there are to select from."""
    counted = source.query(f"SELECT COUNT(*) AS total FROM {rows}")  # noqa: S608
    return int(counted["total"][0].as_py())


def count_statement(rules: Sequence[Rule], rows: str) -> str:
    """One SELECT of one row: `total`, and `failing_<i>` for the i-th rule.

    All tests of single rows are one scan; every uniqueness and dependency is one aggregate beside
    it.

    Args:
        rules: to count.
        rows: what to select from.
    """
    scan = ["COUNT(*) AS total"]
    parts = []
    for i, rule in enumerate(rules):
        if isinstance(rule.test, Unique | Depends):
            groups = (
                _duplicates(rule.test, rows)
                if isinstance(rule.test, Unique)
                else _minorities(rule.test, rows)
            )
            parts.append(
                f"(SELECT CAST(COALESCE(SUM(copies), 0) AS BIGINT) AS failing_{i}"  # noqa: S608
                f" FROM ({groups}) AS groups_{i}) AS group_{i}"
            )
        else:
            scan.append(f"COUNT(CASE WHEN {fails_where(rule.test)} THEN 1 END) AS failing_{i}")
    parts.insert(0, f"(SELECT {', '.join(scan)} FROM {rows}) AS scan")  # noqa: S608
    return f"SELECT * FROM {' CROSS JOIN '.join(parts)}"  # noqa: S608


def sample_statement(rule: Rule, rows: str, keys: Sequence[str]) -> str:
    """The first failing rows by their keys; of what rows share, the values and their copies."""
    if isinstance(rule.test, Unique | Depends):
        order = ", ".join(rule.test.columns)
        groups = (
            _duplicates(rule.test, rows)
            if isinstance(rule.test, Unique)
            else _minorities(rule.test, rows)
        )
        return f"{groups} ORDER BY {order} LIMIT {SAMPLE_SIZE}"
    names = ", ".join(dict.fromkeys([*keys, *rule.columns]))
    return (
        f"SELECT {names} FROM {rows} WHERE {fails_where(rule.test)}"  # noqa: S608
        f" ORDER BY {names} LIMIT {SAMPLE_SIZE}"
    )


def fails_where(test: RowTest) -> str:
    """The condition of the rows that fail a test; never true for null, Present excepted."""
    match test:
        case Present(column):
            return f"{column} IS NULL"
        case Between(column, minimum, maximum):
            below = [] if minimum is None else [f"{column} < {_number(minimum)}"]
            above = [] if maximum is None else [f"{column} > {_number(maximum)}"]
            return " OR ".join(below + above)
        case InSet(column, values):
            return f"{column} NOT IN ({', '.join(map(_text, values))})"
        case Matches(column, pattern):
            return f"REGEXP_COUNT({column}, {_text(pattern)}) = 0"
        case Length(column, shortest, longest):
            short = [] if shortest is None else [f"LENGTH({column}) < {shortest}"]
            long = [] if longest is None else [f"LENGTH({column}) > {longest}"]
            return " OR ".join(short + long)
        case Holds(expression):
            return f"NOT ({expression})"


def failing_rows(test: Test, rows: str, columns: Sequence[str]) -> str:
    """A query of the rows that fail a test, one by one.

    Args:
        test: of a rule.
        rows: what to select from.
        columns: those wanted of each row.
    """
    select = f"SELECT {', '.join(columns)} FROM {rows}"  # noqa: S608
    match test:
        case Unique(names):
            shared = ", ".join(names)
            return (
                f"{select} WHERE {_complete(names)}"
                f" QUALIFY COUNT(*) OVER (PARTITION BY {shared}) > 1"
            )
        case Depends(determinant, dependent):
            alike = ", ".join(determinant)
            return (
                f"{select} WHERE {_complete(test.columns)}"
                f" QUALIFY 2 * COUNT(*) OVER (PARTITION BY {alike}, {dependent})"
                f" <= COUNT(*) OVER (PARTITION BY {alike})"
            )
        case _:
            return f"{select} WHERE {fails_where(test)}"


def passes(test: Depends | Holds) -> str:
    """An expression that is not false of a row that satisfies the test."""
    if isinstance(test, Holds):
        return test.expression
    alike, complete = ", ".join(test.determinant), _complete(test.columns)
    same = f"SUM(CASE WHEN {complete} THEN 1 END) OVER (PARTITION BY {alike}"
    return f"NOT ({complete}) OR 2 * {same}, {test.dependent}) > {same})"


def schema_difference(contract: Contract, actual: pa.Schema) -> CheckResult:
    """Whether a dataset has the columns of its contract, each of its type, and no others."""
    found = {field.name: type_name(field.type) for field in actual}
    wanted = {column.name: type_name(column.arrow_type) for column in contract.columns}
    differences = [
        {
            "column": name,
            "expected": wanted.get(name, "no such column"),
            "observed": found.get(name, "missing"),
        }
        for name in dict.fromkeys([*wanted, *found])
        if wanted.get(name) != found.get(name)
    ]
    return CheckResult(
        name="columns_are_those_of_the_contract",
        state="failed" if differences else "passed",
        severity="error",
        description=f"{contract.name} has the columns and types of its contract",
        expected=f"the {len(wanted)} columns of contract {contract.name} {contract.version}",
        observed="; ".join(
            f"{d['column']}: {d['observed']}, expected {d['expected']}" for d in differences
        )
        or "exactly these",
        failing=len(differences),
        total=len(wanted),
        sample=sample_of(differences, ()),
        remedy=f"Change contracts/{contract.kind}/{contract.path.name} if the change is meant,"
        f" else ask {contract.owner} to undo it",
        numbers={"failing": len(differences), "columns": len(found)},
    )


def type_name(kind: pa.DataType) -> str:
    """A contract's name for an Arrow type, whatever its width; else the Arrow name."""
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type)
    return next((name for name, holds in _TYPES.items() if holds(kind)), str(kind))


@dataclass(frozen=True)
class Reference:
    """Values of a column must be among those of another table's column; null passes."""

    column: str
    table: str
    target: str
    severity: Severity = "error"

    @property
    def name(self) -> str:
        """Of the check."""
        return f"{self.column}_is_in_{self.table}"


def references_of(contract: Contract) -> tuple[Reference, ...]:
    """The references that a contract declares."""
    found = []
    for column in contract.columns:
        if column.references:
            table, _, target = column.references.partition(".")
            found.append(Reference(column.name, table, target, column.references_severity))
    return tuple(found)


def check_references(
    contract: Contract, references: Sequence[Reference], source: Source, table: str | None = None
) -> list[CheckResult]:
    """Count the rows whose values another table lacks, all references in one statement.

    Args:
        contract: of the dataset.
        references: those that it declares, or others.
        source: where the dataset and the tables it refers to are.
        table: the dataset's name there, by default the contract's.

    Returns:
        One result a reference. The sample lists the values that are missing, the most frequent
        first, with the number of their rows; `numbers` has `distinct_missing`, how many there are.
    """
    name = table or contract.name
    schema = source.schema_of(name)
    problems = [_reference_problem(reference, name, schema, source) for reference in references]
    runnable = [i for i, problem in enumerate(problems) if problem is None]
    orphans = {i: _orphans(references[i], name) for i in runnable}
    counted = source.query(_orphan_counts(name, orphans)).to_pylist()[0]
    personal = {column.name for column in contract.columns if column.personal}
    results = []
    for i, reference in enumerate(references):
        failing = counted.get(f"failing_{i}", counted["total"])
        sample: tuple[Mapping[str, str], ...] = ()
        if failing and i in orphans:
            found = source.query(_orphan_sample(reference, orphans[i]))
            sample = sample_of(found.to_pylist(), personal)
        results.append(
            CheckResult(
                name=reference.name,
                state="failed" if failing or problems[i] else "passed",
                severity=reference.severity,
                description=f"every {reference.column} of {contract.name} is in {reference.table}",
                expected=f"{reference.column} is null or in {reference.table}.{reference.target},"
                " in every row",
                observed=problems[i] or _observed(failing, counted["total"]),
                failing=failing,
                total=counted["total"],
                sample=sample,
                remedy=f"Load what {reference.table} lacks, or ask {contract.owner} to correct"
                f" {reference.column}",
                numbers=_numbers(failing, counted["total"])
                | {"distinct_missing": counted.get(f"missing_{i}", 0)},
            )
        )
    return results


def _result(
    rule: Rule,
    failing: int,
    total: int,
    sample: tuple[Mapping[str, str], ...] = (),
    problem: str | None = None,
) -> CheckResult:
    where = (
        ""
        if isinstance(rule.test, Unique | Depends)
        else f"; find them with WHERE {fails_where(rule.test)}"
    )
    return CheckResult(
        name=rule.name,
        state="failed" if failing or problem else "passed",
        severity=rule.severity,
        description=rule.description,
        expected=f"{rule.description}, in every row",
        observed=problem or _observed(failing, total),
        failing=failing,
        total=total,
        sample=sample,
        remedy=rule.remedy + where,
        numbers=_numbers(failing, total),
    )


def _observed(failing: int, total: int) -> str:
    if not total:
        return "there are no rows"
    if not failing:
        return f"so in all {total:,} rows"
    return f"not so in {failing:,} of {total:,} rows ({percent(failing, total):.2g} %)"


def _numbers(failing: int, total: int) -> dict[str, float]:
    return {"failing": failing, "total": total, "failing_percent": percent(failing, total)}


def _problem(contract: Contract, rule: Rule, schema: pa.Schema) -> str | None:
    """Why a rule cannot run over these columns, if it cannot."""
    wanted = {column.name: type_name(column.arrow_type) for column in contract.columns}
    for name in (*rule.columns, *([PARTITION] if rule.silences else ())):
        if name not in schema.names:
            return f"cannot run: column {name} is missing"
        found = type_name(schema.field(name).type)
        any_type = isinstance(rule.test, Present | Unique | Depends)
        if not any_type and found != wanted.get(name, found):
            return f"cannot run: column {name} is {found} instead of {wanted[name]}"
    return None


def _reference_problem(
    reference: Reference, table: str, schema: pa.Schema, source: Source
) -> str | None:
    target = source.schema_of(reference.table)
    for name, column, columns in (
        (table, reference.column, schema),
        (reference.table, reference.target, target),
    ):
        if column not in columns.names:
            return f"cannot run: column {column} is missing in {name}"
    here = type_name(schema.field(reference.column).type)
    there = type_name(target.field(reference.target).type)
    if here != there:
        return (
            f"cannot run: {reference.column} is {here},"
            f" {reference.table}.{reference.target} is {there}"
        )
    return None


def _rows(table: str, schema: pa.Schema, columns: Collection[str]) -> str:
    """Some columns of a table as something to select from, with null for NaN."""
    floating = {name for name in columns if pa.types.is_floating(schema.field(name).type)}
    if not floating:
        return table
    picked = ", ".join(
        f"NULLIF({name}, CAST('NaN' AS DOUBLE)) AS {name}" if name in floating else name
        for name in dict.fromkeys(columns)
    )
    return f"(SELECT {picked} FROM {table}) AS checked"  # noqa: S608


def _duplicates(test: Unique, rows: str) -> str:
    names = ", ".join(test.columns)
    return (
        f"SELECT {names}, COUNT(*) AS copies FROM {rows} WHERE {_complete(test.columns)}"  # noqa: S608
        f" GROUP BY {names} HAVING COUNT(*) > 1"
    )


def _minorities(test: Depends, rows: str) -> str:
    """Values of a dependent column that at most half of the rows of their determinant have."""
    alike, names = ", ".join(test.determinant), ", ".join(test.columns)
    return (
        f"SELECT {names}, COUNT(*) AS copies FROM {rows} WHERE {_complete(test.columns)}"  # noqa: S608
        f" GROUP BY {names}"
        f" QUALIFY 2 * COUNT(*) <= SUM(COUNT(*)) OVER (PARTITION BY {alike})"
    )


def _complete(columns: Sequence[str]) -> str:
    return " AND ".join(f"{name} IS NOT NULL" for name in columns)


def _orphan_counts(table: str, orphans: Mapping[int, str]) -> str:
    parts = [f"(SELECT COUNT(*) AS total FROM {table}) AS scan"]  # noqa: S608
    parts += [
        f"(SELECT COUNT(*) AS failing_{i}, COUNT(DISTINCT missing) AS missing_{i}"  # noqa: S608
        f" FROM ({select}) AS orphans_{i}) AS counts_{i}"
        for i, select in orphans.items()
    ]
    return f"SELECT * FROM {' CROSS JOIN '.join(parts)}"  # noqa: S608


def _orphans(reference: Reference, table: str) -> str:
    column, target = reference.column, reference.target
    return (
        f"SELECT child.{column} AS missing FROM {table} AS child"  # noqa: S608
        f" WHERE child.{column} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {reference.table}"
        f" AS parent WHERE parent.{target} = child.{column})"
    )


def _orphan_sample(reference: Reference, orphans: str) -> str:
    return (
        f"SELECT missing AS {reference.column}, COUNT(*) AS row_count"  # noqa: S608
        f" FROM ({orphans}) AS orphans GROUP BY missing"
        f" ORDER BY COUNT(*) DESC, missing LIMIT {SAMPLE_SIZE}"
    )


def _number(value: float) -> str:
    """A number as SQL; a fraction in the form that every engine reads as floating."""
    if isinstance(value, int):
        return str(value)
    text = repr(value)
    return text if "e" in text else f"{text}e0"


def _text(value: str) -> str:
    return exp.Literal.string(value).sql("snowflake")
