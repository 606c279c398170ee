"""The warehouse's SQL as text: the star's files, the operations, translation and lineage."""

from dataclasses import replace
from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pytest
import sqlglot
from pyarrow import fs
from sqlglot import exp

from profilehouse import warehouse
from profilehouse.contracts import Contract, contract, contracts_of
from profilehouse.errors import ProfilehouseError
from profilehouse.settings import load_settings
from profilehouse.warehouse import statements
from profilehouse.warehouse.migration import difference
from profilehouse.warehouse.on_bigquery import labels, with_values
from profilehouse.warehouse.on_snowflake import (
    ExternalStage,
    connection_arguments,
    external_stage_statements,
    stage_statements,
)
from profilehouse.warehouse.sql import lineage, select_columns, translate

SQL_DIR = Path(__file__).resolve().parents[2] / "assets" / "warehouse" / "sql"
LEDGERS = ("load_ledger", "web_load_ledger", "metric_history")
STAR = [c for c in contracts_of("warehouse") if c.name not in LEDGERS]
FEEDS = contracts_of("feed_tables")
FACTS = [c for c in STAR if c.name.startswith("fct_") and c.name != "fct_session"]
WEB = contract("fct_web_event")


def position_of(fact: Contract) -> tuple[str, ...]:
    return statements.LOGGED if fact == WEB else statements.DELIVERED


def sql_of(table: str) -> str:
    return (SQL_DIR / f"{table}.sql").read_text("utf-8")


def merge_of(fact: Contract) -> str:
    return statements.merge(fact, sql_of(fact.name), position_of(fact))


def by_name(table: Contract) -> str:
    return table.name


# The star's files


def test_every_table_of_the_star_has_its_sql_and_no_sql_is_without_table() -> None:
    tables = {table.name for table in (*STAR, *FEEDS)}
    assert {path.stem for path in SQL_DIR.glob("*.sql")} == tables


@pytest.mark.parametrize("table", [*STAR, *FEEDS], ids=by_name)
def test_a_file_yields_the_contracts_columns_in_their_order(table: Contract) -> None:
    assert select_columns(sql_of(table.name)) == tuple(c.name for c in table.columns)


@pytest.mark.parametrize("table", [*STAR, *FEEDS], ids=by_name)
def test_a_file_reads_nothing_but_what_was_staged(table: Contract) -> None:
    assert {origin for inputs in lineage(sql_of(table.name)).values() for origin, _ in inputs} == {
        "staged"
    }


@pytest.mark.parametrize("table", STAR, ids=by_name)
def test_every_column_comes_from_some_column_of_the_source(table: Contract) -> None:
    assert all(lineage(sql_of(table.name)).values())


# The operations


@pytest.mark.parametrize("fact", FACTS, ids=by_name)
def test_the_source_of_a_merge_has_one_row_a_key_the_one_with_the_lowest_position(
    fact: Contract,
) -> None:
    merge = sqlglot.parse_one(merge_of(fact), read="snowflake")
    assert isinstance(merge, exp.Merge)
    using = merge.args["using"].this
    rank = using.args["qualify"].this
    assert isinstance(rank, exp.EQ)
    assert rank.expression == exp.Literal.number(1)
    window = rank.this
    assert isinstance(window.this, exp.RowNumber)
    assert [c.name for c in window.args["partition_by"]] == list(fact.primary_key)
    order = window.args["order"].expressions
    assert tuple(c.this.name for c in order) == position_of(fact)
    assert not any(c.args.get("desc") for c in order)


@pytest.mark.parametrize("fact", FACTS, ids=by_name)
def test_a_merge_updates_only_what_came_later_and_inserts_every_column(fact: Contract) -> None:
    merge = sqlglot.parse_one(merge_of(fact), read="snowflake")
    update, insert = merge.args["whens"].expressions
    *others, last = position_of(fact)
    condition = f"incoming.{last} < {fact.name}.{last}"
    for column in reversed(others):
        first, same = (f"incoming.{column} {sign} {fact.name}.{column}" for sign in "<=")
        condition = f"({first} OR {same} AND {condition})"
    assert update.args["condition"].sql("snowflake") == condition
    assert [e.this.name for e in update.args["then"].expressions] == [c.name for c in fact.columns]
    assert insert.args["matched"] is False
    assert [c.name for c in insert.args["then"].this.expressions] == [c.name for c in fact.columns]


def test_tables_are_clustered_on_snowflake_as_their_contracts_say() -> None:
    clustered = {table.name: table.cluster_by for table in STAR if table.cluster_by}
    assert clustered.keys() >= {"fct_purchase", "fct_interaction", "dim_user", "dim_content"}
    for name, columns in clustered.items():
        assert contract(name).ddl("snowflake").endswith(f"CLUSTER BY ({', '.join(columns)})")
        assert "CLUSTER" not in contract(name).ddl("duckdb")


def test_rows_are_staged_by_one_bulk_copy_of_a_parquet_file() -> None:
    schema = pa.schema([("user_id", pa.string()), ("at", pa.timestamp("us")), ("day", pa.date32())])
    create, put, copy = stage_statements(Path("/tmp/it's/staged.parquet"), schema)
    assert create == (
        "CREATE OR REPLACE TEMPORARY TABLE staged (user_id VARCHAR, at TIMESTAMP_NTZ(6), day DATE)"
    )
    assert put.startswith("PUT 'file:///tmp/it\\'s/staged.parquet' @%staged ")
    assert copy == (
        "COPY INTO staged (user_id, at, day) FROM (SELECT $1:user_id::VARCHAR,"
        " $1:at::TIMESTAMP_NTZ(6), $1:day::DATE FROM @%staged)"
        " FILE_FORMAT = (TYPE = PARQUET USE_LOGICAL_TYPE = TRUE)"
        " ON_ERROR = ABORT_STATEMENT PURGE = TRUE"
    )


def test_a_file_on_s3_is_copied_through_a_temporary_stage_with_the_named_integration() -> None:
    schema = pa.schema([("user_id", pa.string()), ("day", pa.date32())])
    stage = ExternalStage("LAKE", "s3://it's/lake/staging", fs.LocalFileSystem(), "")
    create, made, copy = external_stage_statements(stage, "ab12.parquet", schema)
    assert create == "CREATE OR REPLACE TEMPORARY TABLE staged (user_id VARCHAR, day DATE)"
    assert made == (
        "CREATE TEMPORARY STAGE IF NOT EXISTS staged_files URL = 's3://it\\'s/lake/staging/'"
        " STORAGE_INTEGRATION = LAKE"
    )
    assert copy == (
        "COPY INTO staged (user_id, day) FROM (SELECT $1:user_id::VARCHAR, $1:day::DATE"
        " FROM @staged_files/ab12.parquet)"
        " FILE_FORMAT = (TYPE = PARQUET USE_LOGICAL_TYPE = TRUE) ON_ERROR = ABORT_STATEMENT"
    )


def test_no_row_goes_to_a_warehouse_one_by_one() -> None:
    folder = Path(warehouse.__file__).parent
    code = {path.name: path.read_text("utf-8") for path in folder.glob("*.py")}
    assert "load.py" in code
    assert not [name for name, text in code.items() if "executemany" in text]
    assert {n for n, text in code.items() if "insert_values(" in text} == {
        "load.py",
        "range_ledger.py",
        "statements.py",
    }
    assert code["load.py"].count("insert_values(ledger") == code["load.py"].count("insert_values(")
    assert code["range_ledger.py"].count("insert_values(contract(LEDGER)") == 1
    assert code["range_ledger.py"].count("insert_values(") == 1


# A table and its contract


@pytest.mark.parametrize("dialect", ["duckdb", "bigquery"])
def test_integers_are_widened_to_numbers_where_the_engine_can(dialect: str) -> None:
    older = {c.name: c.sql_type(dialect) for c in WEB.columns}
    wider = [replace(c, type="number") if c.name == "value_cents" else c for c in WEB.columns]
    newer = replace(WEB, columns=tuple(wider))
    kind = {"duckdb": "DOUBLE", "bigquery": "FLOAT64"}[dialect]
    assert difference(newer, older, dialect).statements() == {
        f"column value_cents of fct_web_event was widened to {kind}": (
            f"ALTER TABLE fct_web_event ALTER COLUMN value_cents SET DATA TYPE {kind}"
        )
    }


def test_snowflake_which_cannot_widen_refuses() -> None:
    older = {c.name: c.sql_type("snowflake") for c in WEB.columns}
    wider = [replace(c, type="number") if c.name == "value_cents" else c for c in WEB.columns]
    with pytest.raises(ProfilehouseError, match=r"value_cents is NUMBER\(38, 0\), not FLOAT"):
        difference(replace(WEB, columns=tuple(wider)), older, "snowflake").statements()


# Translation


@pytest.mark.parametrize("table", STAR, ids=by_name)
def test_what_a_table_is_loaded_with_translates_without_a_warning(table: Contract) -> None:
    sql = sql_of(table.name)
    texts = [table.ddl("snowflake").split(" CLUSTER BY")[0], statements.insert(table, sql)]
    if table in FACTS:
        texts.append(merge_of(table))
    if table in FACTS and table != WEB:
        texts.append(statements.lost_rows(table, sql, 2))
    for text in texts:
        for dialect in ("duckdb", "bigquery"):
            assert sqlglot.parse_one(translate(text, dialect), read=dialect)


def test_values_stay_bound_when_translated() -> None:
    sql = "SELECT a::VARCHAR AS b FROM t WHERE c IN (?, ?)"
    assert translate(sql, "duckdb") == "SELECT CAST(a AS TEXT) AS b FROM t WHERE c IN (?, ?)"


@pytest.mark.parametrize(
    ("snowflake", "bigquery"),
    [
        ("SELECT MD5(a) AS k FROM t", "SELECT TO_HEX(MD5(a)) AS k FROM t"),
        ("SELECT a::TIMESTAMP AS b FROM t", "SELECT CAST(a AS DATETIME) AS b FROM t"),
        (
            "SELECT WEEKISO(d) AS w, DAYOFWEEKISO(d) AS n FROM t",
            "SELECT EXTRACT(ISOWEEK FROM d) AS w,"
            " ((MOD(EXTRACT(DAYOFWEEK FROM d) + 5, 7)) + 1) AS n FROM t",
        ),
        (
            "SELECT DATEADD(MICROSECOND, -1, LEAST(a, DATEADD(DAY, 7, b))) AS c FROM t",
            "SELECT DATETIME_ADD(LEAST(a, DATETIME_ADD(b, INTERVAL 7 DAY)),"
            " INTERVAL -1 MICROSECOND) AS c FROM t",
        ),
        (
            "SELECT DATEDIFF(SECOND, a, b) AS c, DATE_TRUNC('WEEK', d) AS w FROM t",
            "SELECT DATETIME_DIFF(b, a, SECOND) AS c, DATE_TRUNC(d, WEEK(MONDAY)) AS w FROM t",
        ),
        (
            "SELECT ARRAY_AGG(a) WITHIN GROUP (ORDER BY b DESC, a) AS l FROM t",
            "SELECT ARRAY_AGG(a ORDER BY b DESC, a ASC) AS l FROM t",
        ),
        (
            "SELECT SUM(a) OVER (PARTITION BY b ORDER BY c) AS s FROM t",
            "SELECT SUM(a) OVER (PARTITION BY b ORDER BY c ASC) AS s FROM t",
        ),
        (
            "SELECT REGEXP_COUNT(a, 'b') AS n FROM t",
            "SELECT ARRAY_LENGTH(REGEXP_EXTRACT_ALL(a, 'b')) AS n FROM t",
        ),
        ("DELETE FROM t", "DELETE FROM t WHERE TRUE"),
        ("DELETE FROM t WHERE a = ?", "DELETE FROM t WHERE a = ?"),
        ("SELECT a FROM staged", "SELECT a FROM `staged` AS staged"),
    ],
)
def test_bigquery_gets_its_own_words(snowflake: str, bigquery: str) -> None:
    assert translate(snowflake, "bigquery") == bigquery


def test_values_of_a_script_become_typed_literals() -> None:
    text = with_values(
        "SELECT '?' AS a, ? AS b, `?` AS c, ? AS d, ? AS e, ? AS f, ? AS g",
        ['O\'Hara "\\" \n\x00?', 7, date(2026, 3, 1), datetime(2026, 3, 1, 2, 3, 4, 5), True],
    )
    assert text == (
        'SELECT \'?\' AS a, "O\'Hara \\"\\\\\\" \\n\\u0000?" AS b, `?` AS c, 7 AS d,'
        " DATE '2026-03-01' AS e, DATETIME '2026-03-01 02:03:04.000005' AS f, TRUE AS g"
    )
    with pytest.raises(ValueError, match="zip"):
        with_values("SELECT ? AS a, ? AS b", [1])


def test_snowflakes_own_text_is_left_as_it_is() -> None:
    sql = "select  a -- as written\nfrom t"
    assert translate(sql, "snowflake") == sql


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("CREATE TABLE t (id INTEGER AUTOINCREMENT)", "AUTOINCREMENT"),
        ("SELECT TO_CHAR(day, 'YYYY') AS year FROM t", "format"),
        ("SELECT 1 AS a; SELECT 2 AS b", "2 statements"),
        ("SELECT FROM WHERE", "Expected"),
        ("CREATE STREAM s ON TABLE t", "unsupported syntax"),
    ],
)
def test_what_does_not_translate_exactly_is_an_error_of_one_line(sql: str, reason: str) -> None:
    with pytest.raises(ProfilehouseError, match=reason) as caught:
        translate(sql, "duckdb")
    assert "\n" not in str(caught.value)
    assert sql in str(caught.value)


# Lineage


def test_lineage_goes_through_windows_and_common_tables_to_the_source() -> None:
    found = lineage(sql_of("dim_user"))
    assert found["user_key"] == [("staged", "household_id")]
    assert found["age_band"] == [("staged", "age")]
    assert found["valid_to"] == [("staged", "household_id"), ("staged", "updated_at")]


def test_lineage_names_every_column_that_a_value_is_computed_from() -> None:
    found = lineage(sql_of("fct_purchase"))
    assert found["user_key"] == [("staged", "user_id")]
    assert found["coupon_discount_cents"] == [("staged", "properties")]
    assert found["occurred_on"] == [("staged", "occurred_at")]


def test_lineage_of_a_join_needs_to_know_the_tables_columns() -> None:
    sql = "SELECT SUM(amount) AS spent, brand, 1 AS one FROM f JOIN d ON f.k = d.k GROUP BY brand"
    assert lineage(sql, {"f": ["k", "amount"], "d": ["k", "brand"]}) == {
        "spent": [("f", "amount")],
        "brand": [("d", "brand")],
        "one": [],
    }


# Connecting


def test_a_snowflake_url_and_the_environment_give_the_connections_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SNOWFLAKE_PASSWORD", raising=False)
    monkeypatch.setenv("SNOWFLAKE_PRIVATE_KEY_FILE", "key.p8")
    url = "snowflake://jo%40shop@org-acc/DB/STAR?warehouse=LOAD&role=LOADER"
    arguments = connection_arguments(load_settings(warehouse=url))
    wanted = {
        "account": "org-acc",
        "user": "jo@shop",
        "database": "DB",
        "schema": "STAR",
        "warehouse": "LOAD",
        "role": "LOADER",
        "private_key_file": "key.p8",
        "paramstyle": "qmark",
        "login_timeout": 30,
    }
    assert arguments.items() >= wanted.items()
    assert "password" not in arguments


def test_an_unknown_parameter_in_the_url_is_named_beside_those_it_may_have() -> None:
    url = "snowflake://jo@acc/DB/STAR?wharehouse=LOAD"
    with pytest.raises(ProfilehouseError, match="wharehouse; it may have warehouse, role"):
        connection_arguments(load_settings(warehouse=url))


def test_a_token_logs_in_by_oauth_and_a_timeout_ends_statements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SNOWFLAKE_PASSWORD", "SNOWFLAKE_PRIVATE_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SNOWFLAKE_TOKEN", "ey")
    url = "snowflake://jo@acc/DB/STAR?statement_timeout=600"
    arguments = connection_arguments(load_settings(warehouse=url))
    assert (arguments["authenticator"], arguments["token"]) == ("oauth", "ey")
    assert arguments["session_parameters"]["STATEMENT_TIMEOUT_IN_SECONDS"] == 600
    assert "statement_timeout" not in arguments


@pytest.mark.parametrize("seconds", ["0", "-1", "10m"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(seconds: str) -> None:
    url = f"snowflake://jo@acc/DB/STAR?statement_timeout={seconds}"
    with pytest.raises(ProfilehouseError, match="must be a number of seconds"):
        connection_arguments(load_settings(warehouse=url))


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("warehouse=W&warehouse_size=HUGE", "warehouse_size is 'HUGE'; it must be one of XSMALL"),
        ("warehouse_size=LARGE", "warehouse is None; it must be the name of a virtual warehouse"),
        ("warehouse=W;DROP&warehouse_size=LARGE", "warehouse is 'W;DROP'; it must be the name"),
    ],
)
def test_a_size_that_cannot_be_set_is_refused(query: str, says: str) -> None:
    with pytest.raises(ProfilehouseError, match=says):
        connection_arguments(load_settings(warehouse=f"snowflake://jo@acc/DB/STAR?{query}"))


def test_bigquerys_labels_say_what_the_work_is_for() -> None:
    work = {"run_id": "0A1b-2", "asset": f"warehouse/{'x' * 80}"}
    assert labels(work) == {
        "application": "profilehouse",
        "run_id": "0a1b-2",
        "asset": f"warehouse-{'x' * 53}",
    }


def test_two_credentials_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNOWFLAKE_PASSWORD", "never shown")
    monkeypatch.setenv("SNOWFLAKE_PRIVATE_KEY_FILE", "key.p8")
    with pytest.raises(ProfilehouseError, match="both set: unset one of them"):
        connection_arguments(load_settings(warehouse="snowflake://jo@acc/DB/STAR"))
