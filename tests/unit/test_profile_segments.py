from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest
import sqlglot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profilehouse.profiles.segments import compile_predicate

TYPES = {"a": "integer", "b": "integer", "p": "boolean", "name": "string", "tags": "array"}

numbers = st.recursive(
    st.sampled_from(["a", "b", "B", "0", "1", "7", "NULL"]),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner),
        st.builds("(-{})".format, inner),
    ),
    max_leaves=4,
)
conditions = st.recursive(
    st.one_of(
        st.builds(
            "{} {} {}".format,
            numbers,
            st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="]),
            numbers,
        ),
        st.builds("{} IS {}".format, numbers, st.sampled_from(["NULL", "NOT NULL"])),
        st.sampled_from(["p", "TRUE", "FALSE", "NULL", "name = 'it''s'", "name <> 'x'"]),
    ),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["AND", "OR"]), inner),
        st.builds("(({}) {} ({}))".format, inner, st.sampled_from(["=", "<>"]), inner),
        st.builds("({}) IS NULL".format, inner),
        st.builds("{} {} {}".format, inner, st.sampled_from(["AND", "OR"]), inner),
        st.builds("NOT ({})".format, inner),
    ),
    max_leaves=6,
)
rows = st.fixed_dictionaries(
    {
        "a": st.none() | st.integers(-3, 9),
        "b": st.none() | st.integers(-3, 9),
        "p": st.none() | st.booleans(),
        "name": st.none() | st.sampled_from(["it's", "x"]),
    }
)


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE one (a BIGINT, b BIGINT, p BOOLEAN, name VARCHAR)")
        yield connection


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sql=conditions, row=rows)
def test_a_predicate_decides_as_sql_does_nulls_included(
    database: duckdb.DuckDBPyConnection, sql: str, row: dict[str, Any]
) -> None:
    predicate = compile_predicate(sql, TYPES)
    database.execute("DELETE FROM one")
    database.execute("INSERT INTO one VALUES ($a, $b, $p, $name)", row)

    for text in (sql, predicate.sql):
        translated = sqlglot.transpile(
            f"SELECT COALESCE({text}, FALSE) FROM one", read="snowflake", write="duckdb"
        )[0]
        decided = database.execute(translated).fetchone()
        assert decided == (predicate.holds(row),)


@pytest.mark.parametrize(
    ("sql", "value", "holds"),
    [
        ("a > 3", None, False),
        ("NOT a > 3", None, False),
        ("a > 3 OR TRUE", None, True),
        ("a > 3 AND FALSE", None, False),
        ("NOT (a > 3 AND FALSE)", None, True),
        ("a IS NULL", None, True),
        ("a = NULL", 1, False),
        ("2 * a + 1 >= 7", 3, True),
    ],
)
def test_an_unknown_is_a_no(sql: str, value: int | None, holds: bool) -> None:
    assert compile_predicate(sql, TYPES).holds({"a": value}) is holds


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("a / 2 > 1", "DIV"),
        ("a % 2 = 1", "MOD"),
        ("a IN (1, 2)", "IN"),
        ("a BETWEEN 1 AND 2", "BETWEEN"),
        ("LENGTH(name) > 2", "LENGTH"),
        ("a > (SELECT 1)", "SUBQUERY"),
        ("CAST(a AS VARCHAR) = 'x'", "CAST"),
        ("p IS TRUE", "IS"),
        ("a > 0.5", "0.5 is not a whole number"),
        ("a", "a is integer, where boolean is needed"),
        ("NOT a", "a is integer, where boolean is needed"),
        ("p + 1 > 0", "p is boolean, where integer is needed"),
        ("name > 1", "compares string with integer"),
        ("tags = tags", "compares array with array"),
        ("missing > 1", "missing is not a column; there are: a, b, p, name, tags"),
        ("other.a > 1", "other.a is not a column"),
        ('"a" > 1', '"a" is not a column'),
        ("a = 1; DROP TABLE x", "is not one SQL expression"),
        ("p = a IS NULL", "is ambiguous: put a IS NULL in parentheses"),
        ("a = b = p", "is ambiguous: put a = b in parentheses"),
        ("a >", "is not an SQL expression"),
        ("", "is not one SQL expression"),
    ],
)
def test_anything_beyond_the_supported_part_of_sql_is_refused_by_name(sql: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        compile_predicate(sql, TYPES)
