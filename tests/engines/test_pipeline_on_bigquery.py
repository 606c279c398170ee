"""The daily job with its warehouse on BigQuery's emulator: the tables and verdicts of DuckDB."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from platform_defs.resources import open_platform
from profilehouse.settings import Settings
from profilehouse.sources.retailer import TIMEZONE
from services.bigquery import PROJECT, bigquery_emulator
from tests.engines.test_pipeline_on_cloud import WAREHOUSE_TABLES, Ran, run
from tests.three_days import DAYS, deliver


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bigquery")
    deliver(folder / "sources")
    return folder


@pytest.fixture(scope="module")
def embedded(folder: Path) -> Ran:
    return run(open_platform(settings(folder, f"duckdb:{folder}/warehouse.duckdb")))


@pytest.fixture(scope="module")
def on_bigquery(folder: Path) -> Iterator[Ran]:
    with bigquery_emulator() as emulator:
        with bigquery.Client(
            PROJECT,
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": emulator.endpoint},
        ) as client:
            client.create_dataset(f"{PROJECT}.star")
        yield run(open_platform(settings(folder, emulator.url("star"))))


def settings(folder: Path, warehouse: str) -> Settings:
    kind = warehouse.partition(":")[0]
    return Settings(
        sources=str(folder / "sources"),
        lake=str(folder / f"lake-{kind}"),
        warehouse=warehouse,
        profiles=f"lmdb:{folder}/profiles-{kind}",
        timezone=TIMEZONE,
        first_day=DAYS[0],
        _env_file=None,
    )


@pytest.mark.parametrize("table", WAREHOUSE_TABLES)
def test_tables_in_bigquery_are_those_in_duckdb(
    table: str, on_bigquery: Ran, embedded: Ran
) -> None:
    assert len(on_bigquery.warehouse[table]) > 0
    assert on_bigquery.warehouse[table] == embedded.warehouse[table]


def test_every_check_comes_to_the_same_verdict_with_the_same_numbers(
    on_bigquery: Ran, embedded: Ran
) -> None:
    assert len(on_bigquery.verdicts) > 200
    assert on_bigquery.verdicts == embedded.verdicts
