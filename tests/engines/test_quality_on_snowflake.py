"""Row rules pushed down to (emulated) Snowflake by Great Expectations."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from profilehouse.errors import ProfilehouseError
from profilehouse.quality.gx import check_snowflake
from profilehouse.quality.sql import check_rows
from profilehouse.settings import Settings, load_settings
from profilehouse.warehouse import Warehouse, open_warehouse
from services.fakesnow import FakesnowServer, fakesnow_server
from tests.visits import FAILING, LENIENT, RULES, SCHEMA, VISITS, all_faults


@pytest.fixture(scope="module")
def server() -> Iterator[FakesnowServer]:
    with fakesnow_server() as running:
        yield running


@pytest.fixture
def place(server: FakesnowServer, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("SNOWFLAKE_PASSWORD", "never shown")
    return load_settings(warehouse=server.url(f"TEST_{uuid4().hex}", "STAR"))


@pytest.fixture
def warehouse(place: Settings) -> Iterator[Warehouse]:
    with open_warehouse(place) as opened:
        opened.create(LENIENT)
        yield opened


def test_every_fault_is_counted_as_the_generated_sql_counts_it(
    place: Settings, warehouse: Warehouse
) -> None:
    warehouse.stage(all_faults().to_batches(), SCHEMA)
    with warehouse.transaction():
        warehouse.swap(LENIENT, f"SELECT {', '.join(SCHEMA.names)} FROM staged")
    pushed_down = check_snowflake(VISITS, RULES, warehouse, place)
    assert {result.name: result.failing for result in pushed_down} == FAILING
    assert pushed_down == check_rows(VISITS, RULES, warehouse)


def test_a_table_without_rows_passes(place: Settings, warehouse: Warehouse) -> None:
    results = check_snowflake(VISITS, RULES, warehouse, place)
    assert {(result.state, result.total) for result in results} == {("passed", 0)}


def test_where_great_expectations_cannot_connect_one_line_says_so_without_the_password(
    place: Settings, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("profilehouse.warehouse.on_snowflake.LOGIN_SECONDS", 1)
    nowhere = load_settings(
        warehouse="snowflake://fake@fakesnow/DB/STAR?host=127.0.0.1&port=9&protocol=http"
    )
    with pytest.raises(ProfilehouseError, match="cannot connect to Snowflake") as caught:
        check_snowflake(VISITS, RULES, warehouse, nowhere)
    assert "\n" not in str(caught.value)
    assert "never shown" not in str(caught.value)
