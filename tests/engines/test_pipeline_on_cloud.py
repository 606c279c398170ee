"""The daily job with sources and lake on S3, a Glue catalog and Snowflake, against emulators.

The very same job on the embedded engines gives what is expected.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from boto3.session import Session
from dagster_aws.s3 import S3Resource

from platform_defs.resources import open_platform
from profilehouse.contracts import contracts_of
from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration
from profilehouse.settings import Settings
from profilehouse.sources.retailer import TIMEZONE
from services.fakesnow import fakesnow_server
from services.moto import REGION, credentials, moto_server
from tests.three_days import (
    BUYERS,
    DAYS,
    MAILINGS,
    PURCHASES,
    REDEMPTIONS,
    UNKNOWN_BUYERS,
    UNKNOWN_PRODUCTS,
    deliver,
    run_daily_job,
)

BUCKET = "house"
LAKE_TABLES = [
    *(source.name for source in contracts_of("sources")),
    "events",
    "dead_letters",
    "deliveries",
]
WAREHOUSE_TABLES = [
    *(
        table.name
        for table in contracts_of("warehouse")
        if table.name
        not in ("fct_web_event", "dim_identity", "fct_session", "web_load_ledger", "metric_history")
    ),
    "profile",
]
LOAD_TIMES = {"landed_at", "loaded_at"}

Verdicts = dict[tuple[str, str], tuple[bool, str, dict[str, Any]]]


@dataclass(frozen=True)
class Ran:
    """What a run left, and the platform it left it in."""

    platform: Platform
    lake: dict[str, list[dict[str, Any]]]
    warehouse: dict[str, list[dict[str, Any]]]
    profiles: dict[str, bytes]
    verdicts: Verdicts
    told: dict[str, Set[str]]


def run(platform: Platform) -> Ran:
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_daily_job(platform.settings, instance, platform=platform)
    lake = platform.lake()
    with (
        platform.warehouse() as warehouse,
        platform.profile_store(load_declaration()) as store,
    ):
        return Ran(
            platform,
            {name: in_order(lake.read(name)) for name in LAKE_TABLES},
            {name: in_order(warehouse.query(f"SELECT * FROM {name}")) for name in WAREHOUSE_TABLES},
            dict(store.items()),
            {
                (e.asset_key.to_user_string(), e.check_name): (
                    e.passed,
                    e.severity.value,
                    {name: value.value for name, value in e.metadata.items()},
                )
                for e in result.get_asset_check_evaluations()
            },
            {
                key.path[1]: e.materialization.metadata.keys()
                for e in result.get_asset_materialization_events()
                if (key := e.asset_key) and key.path[0] == "warehouse"
            },
        )


def in_order(rows: pa.Table) -> list[dict[str, Any]]:
    """The rows without the times of loading, in an order that does not depend on the engine."""
    kept = rows.drop_columns([name for name in rows.column_names if name in LOAD_TIMES])
    return sorted(kept.to_pylist(), key=repr)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cloud")
    deliver(folder / "sources")
    return folder


@pytest.fixture(scope="module")
def embedded(folder: Path) -> Ran:
    settings = Settings(
        sources=str(folder / "sources"),
        lake=str(folder / "lake"),
        warehouse=f"duckdb:{folder}/warehouse.duckdb",
        profiles=f"lmdb:{folder}/profiles",
        timezone=TIMEZONE,
        first_day=DAYS[0],
        _env_file=None,
    )
    return run(open_platform(settings))


@pytest.fixture(scope="module")
def in_the_cloud(folder: Path) -> Iterator[Platform]:
    """All but the profile store on servers; Dagster's resource gives S3's keys and endpoint."""
    with ExitStack() as stack:
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        endpoint = stack.enter_context(moto_server(folder))
        snowflake = stack.enter_context(fakesnow_server())
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", *credentials(endpoint)):
            environment.delenv(name, raising=False)
        environment.setenv("AWS_CONFIG_FILE", str(folder / "no-config"))
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "no-credentials"))
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setenv("AWS_ENDPOINT_URL_GLUE", endpoint)
        environment.setenv("SNOWFLAKE_PASSWORD", "any")
        settings = Settings(
            sources=f"s3://{BUCKET}/delivered",
            lake=f"s3://{BUCKET}/lake",
            catalog="glue:",
            warehouse=snowflake.url("HOUSE", "STAR"),
            profiles=f"lmdb:{folder}/profiles-of-the-cloud",
            timezone=TIMEZONE,
            first_day=DAYS[0],
            _env_file=None,
        )
        keys = S3Resource(
            endpoint_url=endpoint,
            region_name=REGION,
            aws_access_key_id="moto",
            aws_secret_access_key="moto",
        )
        platform = open_platform(settings, keys)
        assert platform.aws is not None
        upload(folder / "sources", platform.aws)
        yield platform


def upload(folder: Path, session: Session) -> None:
    s3 = session.client("s3")
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    for file in folder.glob("*/*"):
        key = f"delivered/{file.relative_to(folder).as_posix()}"
        s3.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes())


@pytest.fixture(scope="module")
def cloud(in_the_cloud: Platform) -> Ran:
    return run(in_the_cloud)


def stored(session: Session) -> dict[str, str]:
    """Every object of the bucket with the hash of what it holds."""
    pages = session.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return {entry["Key"]: entry["ETag"] for page in pages for entry in page["Contents"]}


@pytest.mark.parametrize("table", LAKE_TABLES)
def test_the_lake_on_s3_holds_what_the_local_one_holds(
    table: str, cloud: Ran, embedded: Ran
) -> None:
    assert cloud.lake[table] == embedded.lake[table]


@pytest.mark.parametrize("table", WAREHOUSE_TABLES)
def test_tables_in_snowflake_are_those_in_duckdb(table: str, cloud: Ran, embedded: Ran) -> None:
    assert len(cloud.warehouse[table]) > 0
    assert cloud.warehouse[table] == embedded.warehouse[table]


def test_every_table_tells_the_queries_it_was_loaded_by(cloud: Ran, embedded: Ran) -> None:
    assert cloud.told.keys() == embedded.told.keys() >= {"fct_purchase", "dim_user", "profile"}
    for table, names in cloud.told.items():
        assert names - embedded.told[table] == {"query_ids"}


def test_profiles_folded_from_the_lake_on_s3_are_the_same(cloud: Ran, embedded: Ran) -> None:
    assert len(cloud.profiles) >= BUYERS
    assert cloud.profiles == embedded.profiles


def test_nothing_of_the_real_days_is_lost(cloud: Ran) -> None:
    assert {name: len(cloud.lake[name]) for name in ("purchases", "mailings", "redemptions")} == {
        "purchases": PURCHASES,
        "mailings": MAILINGS,
        "redemptions": REDEMPTIONS,
    }
    assert len(cloud.lake["events"]) == PURCHASES + MAILINGS + REDEMPTIONS
    assert len(cloud.warehouse["fct_purchase"]) == PURCHASES
    assert len(cloud.warehouse["fct_interaction"]) == MAILINGS + REDEMPTIONS
    assert cloud.lake["dead_letters"] == []


def test_every_check_comes_to_the_same_verdict_with_the_same_numbers(
    cloud: Ran, embedded: Ran
) -> None:
    assert len(cloud.verdicts) > 200
    assert cloud.verdicts == embedded.verdicts
    failing = {
        key: (severity, numbers["failing"])
        for key, (passed, severity, numbers) in cloud.verdicts.items()
        if not passed
    }
    assert failing == {
        ("warehouse/fct_purchase", "content_key_is_in_dim_content"): ("WARN", UNKNOWN_PRODUCTS),
        ("warehouse/dim_user", "every_buyer_has_demographics"): ("WARN", UNKNOWN_BUYERS),
    }


def test_a_second_run_changes_nothing(cloud: Ran) -> None:
    session = cloud.platform.aws
    assert session is not None
    before = stored(session)
    assert any(key.startswith("lake/") and key.endswith(".parquet") for key in before)
    again = run(cloud.platform)
    assert stored(session) == before
    assert again.warehouse == cloud.warehouse
    assert again.profiles == cloud.profiles
    assert again.verdicts == cloud.verdicts
