"""The warehouse on BigQuery: the common suite, and how it connects, stages and fails.

It runs against the emulator, and against the real BigQuery as well where BIGQUERY_PROJECT is set
and Google's libraries find credentials. There each test works in a dataset of its own, which it
deletes (BIGQUERY_LOCATION says where, US by default).
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from google.api_core.exceptions import GoogleAPICallError
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from profilehouse.contracts import contract, contracts_of
from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.features import load_declaration, profile_contract
from profilehouse.quality.sql import check_rows
from profilehouse.settings import Settings, load_settings
from profilehouse.warehouse import open_warehouse
from profilehouse.warehouse.load import load_fact
from services.bigquery import PROJECT, BigQueryEmulator, bigquery_emulator
from tests.visits import FAILING, LENIENT, RULES, SCHEMA, VISITS, all_faults

pytest.register_assert_rewrite("tests.warehouse_suite", "tests.session_suite")
from tests.integration.test_questions import questions  # noqa: E402
from tests.session_suite import SessionSuite  # noqa: E402
from tests.warehouse_suite import (  # noqa: E402
    DAY_1,
    PURCHASES,
    WarehouseSuite,
    events,
    purchase,
    rows_of,
)

ENGINES = ["emulator", *(["bigquery"] if os.environ.get("BIGQUERY_PROJECT") else [])]


@pytest.fixture(scope="module")
def emulator() -> Iterator[BigQueryEmulator]:
    with bigquery_emulator() as running:
        yield running


@pytest.fixture
def emulated(emulator: BigQueryEmulator) -> Settings:
    """An empty dataset of the emulator."""
    dataset = f"test_{uuid4().hex}"
    client(emulator).create_dataset(f"{PROJECT}.{dataset}")
    return load_settings(warehouse=emulator.url(dataset))


def client(emulator: BigQueryEmulator) -> bigquery.Client:
    return bigquery.Client(
        PROJECT,
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": emulator.endpoint},
    )


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Iterator[Settings]:
    """An empty dataset of the engine that the test is run for."""
    if request.param == "emulator":
        yield request.getfixturevalue("emulated")
        return
    project, location = os.environ["BIGQUERY_PROJECT"], os.environ.get("BIGQUERY_LOCATION", "US")
    name = f"profilehouse_test_{uuid4().hex}"
    with bigquery.Client(project, location=location) as real:
        dataset = bigquery.Dataset(f"{project}.{name}")
        dataset.location = location
        real.create_dataset(dataset)
        try:
            yield load_settings(warehouse=f"bigquery://{project}/{name}?location={location}")
        finally:
            real.delete_dataset(dataset, delete_contents=True)


@pytest.mark.parametrize("settings", ENGINES, indirect=True)
class TestOnBigQuery(WarehouseSuite, SessionSuite):
    pass


# What it makes


def test_a_fact_is_partitioned_and_typed_as_its_contract_says(
    emulated: Settings, emulator: BigQueryEmulator
) -> None:
    with open_warehouse(emulated) as warehouse:
        warehouse.create(PURCHASES)
        warehouse.create(contract("load_ledger"))
    dataset = emulated.warehouse_url.path.strip("/")
    fact = client(emulator).get_table(f"{PROJECT}.{dataset}.fct_purchase")
    assert fact.time_partitioning.field == "occurred_on"
    assert {field.name: (field.field_type, field.mode) for field in fact.schema} == {
        column.name: (
            {"string": "STRING", "integer": "INTEGER", "date": "DATE", "timestamp": "DATETIME"}[
                column.type
            ],
            "REQUIRED" if column.required else "NULLABLE",
        )
        for column in PURCHASES.columns
    }


def test_staged_rows_are_gone_in_the_end_also_after_a_failure(
    emulated: Settings, emulator: BigQueryEmulator
) -> None:
    lake = events()
    lake.deliver(DAY_1, purchase(1))
    with open_warehouse(emulated) as warehouse:
        lake.load(load_fact, warehouse, PURCHASES)
    lake.deliver(DAY_1, purchase(1, properties={"quantity": "many"}))
    with pytest.raises(GoogleAPICallError, match="many"), open_warehouse(emulated) as warehouse:
        lake.load(load_fact, warehouse, PURCHASES)
    dataset = emulated.warehouse_url.path.strip("/")
    tables = {table.table_id for table in client(emulator).list_tables(f"{PROJECT}.{dataset}")}
    assert tables == {"fct_purchase", "load_ledger"}


@pytest.mark.parametrize(
    "text",
    [
        "O'Hara'; DROP TABLE load_ledger; --",
        'say "hello" \\ and \\" ? @p',
        "a\nb\r\tcd\x7f",
        "\u202eå 田\n🍕",
        "`staged`",
        "",
    ],
)
def test_a_value_in_a_transaction_stays_a_value(emulated: Settings, text: str) -> None:
    ledger = contract("load_ledger")
    insert = f"INSERT INTO load_ledger ({', '.join(c.name for c in ledger.columns)})"
    with open_warehouse(emulated) as warehouse:
        warehouse.create(ledger)
        with warehouse.transaction():
            warehouse.execute(f"{insert} VALUES (?, ?, 'is ? here', ?)", (text, DAY_1, 7))
        assert rows_of(warehouse, ledger) == [(text, DAY_1, "is ? here", 7)]
        with warehouse.transaction():
            warehouse.execute("DELETE FROM load_ledger WHERE table_name = ?", (text,))
        assert rows_of(warehouse, ledger) == []


def test_every_fault_of_rows_is_counted(emulated: Settings) -> None:
    with open_warehouse(emulated) as warehouse:
        warehouse.create(LENIENT)
        warehouse.stage(all_faults().to_batches(), SCHEMA)
        with warehouse.transaction():
            warehouse.swap(LENIENT, f"SELECT {', '.join(SCHEMA.names)} FROM staged")
        results = check_rows(VISITS, RULES, warehouse)
    assert {result.name: result.failing for result in results} == FAILING


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


def refusal(url: str) -> str:
    with pytest.raises(ProfilehouseError) as caught, open_warehouse(load_settings(warehouse=url)):
        pass
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_dataset_that_is_missing_is_named_with_the_command_that_makes_it(
    emulator: BigQueryEmulator,
) -> None:
    assert refusal(emulator.url("nowhere")) == (
        f"BigQuery dataset {PROJECT}.nowhere does not exist: create it, for example with"
        f" `bq mk --dataset {PROJECT}:nowhere`"
    )


def test_a_table_that_is_missing_is_named(emulated: Settings) -> None:
    with (
        pytest.raises(ProfilehouseError, match=r"Table .*dim_user.* materialize its asset first"),
        open_warehouse(emulated) as warehouse,
    ):
        warehouse.query("SELECT user_key FROM dim_user")


def test_an_unreachable_endpoint_is_named_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profilehouse.warehouse.on_bigquery.CONNECT_SECONDS", 1)
    begin = time.monotonic()
    message = refusal("bigquery://project/star?endpoint=http://127.0.0.1:9")
    assert time.monotonic() - begin < 30
    assert "BigQuery dataset project.star cannot be reached" in message


def test_without_credentials_one_line_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    message = refusal("bigquery://project/star")
    assert "no credentials" in message
    assert "gcloud auth application-default login" in message


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("region=EU", "unknown parameter region; it may have location, maximum_bytes_billed"),
        ("maximum_bytes_billed=1TB", "maximum_bytes_billed is '1TB'; it must be a number"),
    ],
)
def test_a_wrong_parameter_of_the_url_is_named(query: str, says: str) -> None:
    assert says in refusal(f"bigquery://project/star?{query}")
