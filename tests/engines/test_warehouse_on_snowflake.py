"""The warehouse on Snowflake: the common suite, and how it connects, stages and fails.

It runs against the emulator, and against the real Snowflake as well where SNOWFLAKE_ACCOUNT,
SNOWFLAKE_USER, SNOWFLAKE_DATABASE and a credential are set (SNOWFLAKE_WAREHOUSE and SNOWFLAKE_ROLE
are optional). There each test works in a schema of its own, which it drops.
"""

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest
import snowflake.connector
from boto3.session import Session
from dagster_snowflake import SnowflakeResource
from snowflake.connector import SnowflakeConnection

from profilehouse.contracts import contract, contracts_of
from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.features import load_declaration, profile_contract
from profilehouse.settings import Settings, load_settings
from profilehouse.warehouse import open_warehouse
from profilehouse.warehouse.load import load_fact
from profilehouse.warehouse.on_snowflake import connection_arguments
from services.fakesnow import FakesnowServer, fakesnow_server
from services.moto import REGION, credentials, moto_server

pytest.register_assert_rewrite("tests.warehouse_suite", "tests.session_suite")
from tests.integration.test_questions import questions  # noqa: E402
from tests.session_suite import SessionSuite  # noqa: E402
from tests.warehouse_suite import (  # noqa: E402
    DAY_1,
    DAY_2,
    PURCHASES,
    WarehouseSuite,
    events,
    ledger_of,
    purchase,
    rows_of,
)

ENGINES = ["fakesnow", *(["snowflake"] if os.environ.get("SNOWFLAKE_ACCOUNT") else [])]


@pytest.fixture(scope="module")
def server() -> Iterator[FakesnowServer]:
    with fakesnow_server() as running:
        yield running


@pytest.fixture
def emulated(server: FakesnowServer, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An empty schema of the emulator."""
    monkeypatch.setenv("SNOWFLAKE_PASSWORD", "any")
    return load_settings(warehouse=server.url(f"TEST_{uuid4().hex}", "STAR"))


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Iterator[Settings]:
    """An empty schema of the engine that the test is run for."""
    if request.param == "fakesnow":
        yield request.getfixturevalue("emulated")
        return
    given = os.environ
    database, schema = given["SNOWFLAKE_DATABASE"], f"PROFILEHOUSE_TEST_{uuid4().hex}".upper()
    options = {
        name: given[f"SNOWFLAKE_{name.upper()}"]
        for name in ("warehouse", "role")
        if f"SNOWFLAKE_{name.upper()}" in given
    }
    place = f"snowflake://{given['SNOWFLAKE_USER']}@{given['SNOWFLAKE_ACCOUNT']}/{database}"
    at = load_settings(warehouse=f"{place}/{schema}?{urlencode(options)}")
    with snowflake.connector.connect(**connection_arguments(at)) as connection:
        connection.cursor().execute(f"CREATE SCHEMA {database}.{schema}")
        try:
            yield at
        finally:
            connection.cursor().execute(f"DROP SCHEMA {database}.{schema}")


@pytest.mark.parametrize("settings", ENGINES, indirect=True)
class TestOnSnowflake(WarehouseSuite, SessionSuite):
    pass


# How it connects


def test_a_dagster_resource_may_give_the_connection(emulated: Settings) -> None:
    arguments = connection_arguments(emulated)
    resource = SnowflakeResource(
        account=arguments["account"],
        user=arguments["user"],
        password=arguments["password"],
        additional_snowflake_connection_args=arguments,
    )
    lake = events()
    lake.deliver(DAY_1, purchase(1))
    with open_warehouse(emulated, resource.get_connection) as warehouse:
        lake.load(load_fact, warehouse, PURCHASES)
    lake.deliver(DAY_2, purchase(1, properties={"quantity": "many"}))
    with (
        pytest.raises(snowflake.connector.Error, match="many"),
        open_warehouse(emulated, resource.get_connection) as warehouse,
    ):
        lake.load(load_fact, warehouse, PURCHASES)
    with open_warehouse(emulated) as warehouse:
        assert ledger_of(warehouse, PURCHASES) == {DAY_1: 1}


def test_a_connection_that_would_bind_values_by_pasting_them_is_refused(
    emulated: Settings,
) -> None:
    arguments = connection_arguments(emulated) | {"paramstyle": "pyformat"}
    with (
        pytest.raises(ValueError, match="qmark"),
        open_warehouse(emulated, lambda: snowflake.connector.connect(**arguments)),
    ):
        pass


def test_a_missing_database_is_named_with_the_remedy(emulated: Settings) -> None:
    arguments = connection_arguments(emulated) | {"database": None, "schema": None}
    with (
        pytest.raises(ProfilehouseError, match=r"account fakesnow at .*: create it, or grant"),
        open_warehouse(emulated, lambda: snowflake.connector.connect(**arguments)),
    ):
        pass


# What it runs


class Recorded(SnowflakeConnection):
    """A connection that remembers the text of every statement."""

    statements: list[str]
    tags: set[str]

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        cursor = super().cursor(*args, **kwargs)
        execute, executemany = cursor.execute, cursor.executemany

        def record(command: str, *args: Any, **kwargs: Any) -> Any:
            self.statements.append(" ".join(command.split()))
            self.tags.add(kwargs.get("_statement_params", {}).get("QUERY_TAG"))
            return execute(command, *args, **kwargs)

        def record_many(command: str, *args: Any, **kwargs: Any) -> Any:
            self.statements.append(f"MANY {command}")
            return executemany(command, *args, **kwargs)

        cursor.execute, cursor.executemany = record, record_many
        return cursor


def test_rows_come_by_copy_and_only_dml_runs_in_the_transaction(emulated: Settings) -> None:
    lake = events()
    lake.deliver(DAY_1, purchase(1), purchase(2))
    statements: list[str] = []
    tags: set[str] = set()

    @contextmanager
    def connect() -> Iterator[SnowflakeConnection]:
        with Recorded(**connection_arguments(emulated)) as connection:
            connection.statements, connection.tags = statements, tags
            yield connection

    work = {"run_id": "r-1", "asset": "warehouse/fct_purchase"}
    with open_warehouse(emulated, connect, work) as warehouse:
        lake.load(load_fact, warehouse, PURCHASES)
    [tag] = tags
    assert json.loads(tag) == {"application": "profilehouse", **work}
    verbs = [statement.split()[0] for statement in statements if statement[:6] != "SELECT"]
    assert verbs == [
        *("CREATE", "DELETE", "CREATE"),
        *("CREATE", "PUT", "COPY"),
        *("BEGIN", "DELETE", "MERGE", "DELETE", "INSERT", "COMMIT"),
    ]
    [fact] = [text for text in statements if "CREATE TABLE IF NOT EXISTS fct_purchase" in text]
    assert fact.endswith("CLUSTER BY (occurred_on, user_key)")
    [inserted] = [text for text in statements if text.startswith("INSERT")]
    assert inserted.startswith("INSERT INTO load_ledger")


class Account(SnowflakeConnection):
    """Does what the emulator cannot: it tells of its queries, and takes a size."""

    asked: list[tuple[str, Any]]

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        cursor = super().cursor(*args, **kwargs)
        execute = cursor.execute

        def run(command: str, params: Any = None, **kwargs: Any) -> Any:
            if command.startswith("ALTER WAREHOUSE"):
                self.asked.append((command, params))
                return execute("SELECT 1", **kwargs)
            if "QUERY_HISTORY_BY_SESSION" in command:
                self.asked.append((" ".join(command.split()), params))
                told = "8 AS queries, 4096 AS bytes_scanned, 1.5 AS execution_seconds"
                return execute(f"SELECT {told}, 0.001 AS cloud_services_credits", **kwargs)
            return execute(command, params, **kwargs)

        cursor.execute = run
        return cursor


def test_a_load_tells_its_queries_and_what_they_cost(emulated: Settings) -> None:
    lake = events()
    lake.deliver(DAY_1, purchase(1))
    asked: list[tuple[str, Any]] = []

    @contextmanager
    def connect() -> Iterator[SnowflakeConnection]:
        with Account(**connection_arguments(emulated)) as connection:
            connection.asked = asked
            yield connection

    with open_warehouse(emulated, connect, {"run_id": "r-1"}) as warehouse:
        lake.load(load_fact, warehouse, PURCHASES)
        cost = warehouse.cost()
    ids = cost.pop("query_ids")
    assert cost == {
        "queries": 8,
        "bytes_scanned": 4096,
        "execution_seconds": 1.5,
        "cloud_services_credits": 0.001,
    }
    assert len(set(ids)) == len(ids) > 10
    [(statement, bound)] = asked
    assert statement.endswith(
        "FROM TABLE(INFORMATION_SCHEMA.QUERY_HISTORY_BY_SESSION(RESULT_LIMIT => 10000))"
        " WHERE query_tag = ? AND execution_status <> 'RUNNING'"
    )
    assert [json.loads(tag) for tag in bound] == [{"application": "profilehouse", "run_id": "r-1"}]


def test_where_the_cost_is_not_told_the_queries_still_are(emulated: Settings) -> None:
    with open_warehouse(emulated) as warehouse:
        warehouse.create(PURCHASES)
        assert warehouse.cost().keys() == {"query_ids"}
        assert rows_of(warehouse, PURCHASES) == []


def test_a_size_that_the_url_names_is_set_before_the_work(emulated: Settings) -> None:
    settings = load_settings(
        warehouse=f"{emulated.warehouse}&warehouse=LOAD_WH&warehouse_size=LARGE"
    )
    asked: list[tuple[str, Any]] = []

    @contextmanager
    def connect() -> Iterator[SnowflakeConnection]:
        with Account(**connection_arguments(settings)) as connection:
            connection.asked = asked
            yield connection

    with open_warehouse(settings, connect):
        assert asked == [("ALTER WAREHOUSE LOAD_WH SET WAREHOUSE_SIZE = LARGE", None)]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an empty one, on moto's S3."""
    with moto_server(tmp_path) as endpoint:
        for name, value in credentials(endpoint).items():
            monkeypatch.setenv(name, value)
        Session().client("s3").create_bucket(
            Bucket="house", CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        yield "house"


class OnS3(SnowflakeConnection):
    """Does what the emulator cannot: its temporary stage is a folder on S3, read at the COPY."""

    stages: list[str]
    copied: list[str]

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        cursor = super().cursor(*args, **kwargs)
        execute = cursor.execute

        def run(command: str, *args: Any, **kwargs: Any) -> Any:
            if command.startswith("CREATE TEMPORARY STAGE"):
                self.stages.append(command)
                return cursor
            if at := re.search(r"@staged_files/(\S+)\)", command):
                self.copied.append(at[1])
                objects = Session().client("s3")
                with TemporaryDirectory() as folder:
                    file = f"{folder}/{at[1]}"
                    objects.download_file("house", f"lake/staging/{at[1]}", file)
                    execute(f"PUT 'file://{file}' @%staged AUTO_COMPRESS = FALSE")
                command = command.replace(at[0], "@%staged)")
            return execute(command, *args, **kwargs)

        cursor.execute = run
        return cursor


def test_rows_come_through_the_lake_s_bucket_where_an_integration_is_named(
    emulated: Settings, bucket: str
) -> None:
    settings = load_settings(
        warehouse=f"{emulated.warehouse}&storage_integration=LAKE",
        lake=f"s3://{bucket}/lake",
        catalog="glue:",
    )
    stages: list[str] = []
    copied: list[str] = []

    @contextmanager
    def connect() -> Iterator[SnowflakeConnection]:
        with OnS3(**connection_arguments(settings)) as connection:
            connection.stages, connection.copied = stages, copied
            yield connection

    lake = events()
    lake.deliver(DAY_1, purchase(1), purchase(2))
    with open_warehouse(settings, connect) as warehouse:
        lake.load(load_fact, warehouse, PURCHASES)
        assert ledger_of(warehouse, PURCHASES) == {DAY_1: 2}
    assert stages == [
        "CREATE TEMPORARY STAGE IF NOT EXISTS staged_files URL = 's3://house/lake/staging/'"
        " STORAGE_INTEGRATION = LAKE"
    ]
    assert len(copied) == 1
    left = Session().client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])
    assert not [one["Key"] for one in left if one["Size"]]


@pytest.mark.parametrize(
    ("parameter", "lake", "said"),
    [
        ("LAKE; DROP TABLE x", "s3://house/lake", "must be the name of an integration"),
        ("LAKE", "data/lake", "PROFILEHOUSE_LAKE is not on S3"),
    ],
)
def test_an_integration_that_cannot_be_used_is_refused_with_the_remedy(
    emulated: Settings, parameter: str, lake: str, said: str
) -> None:
    url = f"{emulated.warehouse}&{urlencode({'storage_integration': parameter})}"
    catalog = "glue:" if lake.startswith("s3:") else "sqlite:"
    settings = load_settings(warehouse=url, lake=lake, catalog=catalog)
    with pytest.raises(ProfilehouseError, match=said), open_warehouse(settings):
        pass


def test_every_documented_question_can_be_asked(emulated: Settings) -> None:
    with open_warehouse(emulated) as warehouse:
        for table in (*contracts_of("warehouse"), profile_contract(load_declaration())):
            warehouse.create(table)
        answers = {heading: warehouse.query(sql) for heading, sql in questions().items()}
    assert len(answers) > 5
    assert {heading for heading, rows in answers.items() if rows.num_rows} == {
        "How large the segments are"
    }


# How it fails


def test_an_unreachable_warehouse_is_named_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SNOWFLAKE_PASSWORD", "never shown")
    url = "snowflake://me@nobody/DB/S?host=127.0.0.1&port=9&protocol=http"
    begin = time.monotonic()
    with (
        pytest.raises(ProfilehouseError) as caught,
        open_warehouse(load_settings(warehouse=url)),
    ):
        pass
    assert time.monotonic() - begin < 60
    message = str(caught.value)
    assert "Snowflake account nobody at 127.0.0.1: cannot log in" in message
    assert "check PROFILEHOUSE_WAREHOUSE and SNOWFLAKE_PASSWORD" in message
    assert "\n" not in message
    assert "never shown" not in message


class Refusing(BaseHTTPRequestHandler):
    """Answers a login as Snowflake does when the password is wrong; the emulator takes any."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(
            {
                "data": {},
                "code": "390100",
                "message": "Incorrect username or password was specified.",
                "success": False,
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def test_a_wrong_password_is_said_so_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNOWFLAKE_PASSWORD", "never shown")
    with HTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        url = f"snowflake://me@acc/DB/S?host=127.0.0.1&port={refusing.server_port}&protocol=http"
        with (
            pytest.raises(ProfilehouseError, match="Incorrect username or password") as caught,
            open_warehouse(load_settings(warehouse=url)),
        ):
            pass
        refusing.shutdown()
    assert "Snowflake account acc at 127.0.0.1" in str(caught.value)
    assert "never shown" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_connection_that_breaks_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNOWFLAKE_PASSWORD", "any")

    def broken() -> None:
        with ExitStack() as server:
            settings = load_settings(
                warehouse=server.enter_context(fakesnow_server()).url("BROKEN", "STAR")
            )
            arguments = connection_arguments(settings) | {"network_timeout": 1}
            connect = partial(snowflake.connector.connect, **arguments)
            with open_warehouse(settings, connect) as warehouse:
                warehouse.create(contract("load_ledger"))
                server.close()
                rows_of(warehouse, contract("load_ledger"))

    with pytest.raises(ProfilehouseError, match=r"account fakesnow at .* run again") as caught:
        broken()
    assert "\n" not in str(caught.value)
