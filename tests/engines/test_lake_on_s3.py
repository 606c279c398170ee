"""The lake on S3 with a Glue catalog, and source folders on S3, against moto's server.

Moto's Glue does not compare table versions, so writers that race are tested on a local lake only.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from boto3.session import Session
from pyarrow import csv, fs, parquet

from profilehouse.contracts import contract
from profilehouse.errors import ProfilehouseError
from profilehouse.lake import Lake, open_lake
from profilehouse.platform import Platform
from profilehouse.settings import Settings
from profilehouse.sources import landing
from profilehouse.storage import open_folder
from services.moto import REGION, credentials, moto_server
from services.process import free_port
from tests.lake_cases import LakeCases, day, raw
from tests.lake_stream_cases import LakeStreamCases


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto_server(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture(autouse=True)
def aws(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS configured by nothing but what a test sets."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in credentials(endpoint).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(aws: None) -> str:
    """An empty bucket; Glue is empty as well."""
    session = Session()
    glue = session.client("glue")
    for database in glue.get_databases()["DatabaseList"]:
        glue.delete_database(Name=database["Name"])
    name = f"lake-{uuid.uuid4()}"
    session.client("s3").create_bucket(
        Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    return name


@pytest.fixture
def settings(bucket: str) -> Settings:
    return on_s3(bucket)


def on_s3(bucket: str) -> Settings:
    return Settings(lake=f"s3://{bucket}/the/lake", catalog="glue:", _env_file=None)


def keys(bucket: str) -> list[str]:
    objects = Session().client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])
    return [entry["Key"] for entry in objects]


class TestLakeOnS3(LakeCases):
    def data_files(self, lake: Lake) -> list[str]:
        bucket = lake.url.removeprefix("s3://").split("/")[0]
        return [key for key in keys(bucket) if key.endswith(".parquet")]


class TestLakeStreamOnS3(LakeStreamCases):
    def files(self, lake: Lake, name: str) -> list[str]:
        bucket, prefix = lake.url.removeprefix("s3://").split("/", 1)
        of_table = [key for key in keys(bucket) if key.startswith(f"{prefix}/{name}/")]
        return [key for key in of_table if not key.endswith("/")]  # pyarrow marks its folders

    def leave_orphans(self, lake: Lake, name: str) -> set[str]:
        bucket, prefix = lake.url.removeprefix("s3://").split("/", 1)
        places = ("data/delivered_on=2026-03-01/x.parquet", "metadata/snap-1.avro", "other")
        orphans = {f"{prefix}/{name}/{place}" for place in places}
        for key in orphans:
            Session().client("s3").put_object(Bucket=bucket, Key=key, Body=b"orphan")
        time.sleep(1.1)  # S3 tells whole seconds
        return orphans


def test_glue_shows_the_table_with_its_documented_columns(settings: Settings) -> None:
    open_lake(settings).replace("purchases", raw(day(0), [1]), days=[day(0)])
    table = Session().client("glue").get_table(DatabaseName="profilehouse", Name="purchases")
    columns = {c["Name"]: c for c in table["Table"]["StorageDescriptor"]["Columns"]}
    assert table["Table"]["Parameters"]["table_type"] == "ICEBERG"
    assert columns["delivered_on"]["Type"] == "date"
    assert columns["record"]["Comment"] == "The record as received."


def test_a_profile_carries_credentials_region_and_endpoints(
    bucket: str, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in credentials(endpoint):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile retail]\nregion = {REGION}\nservices = here\n"
        "aws_access_key_id = a\naws_secret_access_key = b\n"
        f"[services here]\ns3 =\n  endpoint_url = {endpoint}\nglue =\n  endpoint_url = {endpoint}\n"
    )
    lake = open_lake(on_s3(bucket), Session(profile_name="retail"))
    lake.replace("purchases", raw(day(0), [1]), days=[day(0)])
    assert lake.days("purchases") == {day(0): 1}

    monkeypatch.setenv("AWS_PROFILE", "retail")
    assert open_lake(on_s3(bucket)).days("purchases") == {day(0): 1}


def test_each_service_may_have_an_endpoint_of_its_own(
    bucket: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_GLUE", endpoint)
    lake = open_lake(on_s3(bucket))
    lake.replace("purchases", raw(day(0), [1]), days=[day(0)])
    assert lake.read("purchases").num_rows == 1


def test_a_folder_on_s3_lists_and_reads_what_was_delivered(bucket: str) -> None:
    s3 = Session().client("s3")
    s3.put_object(Bucket=bucket, Key="in/crm/2026-03-01.jsonl", Body=b'{"id": 1}\n')
    s3.put_object(Bucket=bucket, Key="elsewhere/crm/2026-03-02.jsonl", Body=b"")
    filesystem, path = open_folder(f"s3://{bucket}/in/")
    (found,) = filesystem.get_file_info(fs.FileSelector(f"{path}/crm"))
    assert found.base_name == "2026-03-01.jsonl"
    with filesystem.open_input_stream(found.path) as stream:
        assert stream.read() == b'{"id": 1}\n'
    missing = fs.FileSelector(f"{path}/nothing", allow_not_found=True)
    assert filesystem.get_file_info(missing) == []


@pytest.mark.parametrize(("form", "in_parts"), [("csv.gz", True), ("parquet", False)])
def test_a_drop_on_s3_is_landed_once_it_is_what_its_manifest_says(
    bucket: str, form: str, in_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_parts:
        monkeypatch.setattr(landing, "LARGE", 0)
    rows = {
        "timestamp": ["2025-04-22 10:00:00+00:00"] * 900, "item_id": range(900),
        "position": [1] * 900, "click": [0] * 900, "propensity_score": [0.5] * 900,
        "policy": ["bts"] * 900, "campaign": ["all"] * 900,
    }  # fmt: skip
    sink = io.BytesIO()
    table = pa.table({name: list(values) for name, values in rows.items()})
    (csv.write_csv if form == "csv.gz" else parquet.write_table)(table, sink)
    whole = gzip.compress(sink.getvalue()) if form == "csv.gz" else sink.getvalue()
    told = {"records": 900, "sha256": hashlib.sha256(whole).hexdigest()}
    s3, key = Session().client("s3"), f"in/recommendations/{day(0)}"
    platform = Platform(on_s3(bucket).model_copy(update={"sources": f"s3://{bucket}/in"}))
    feed = contract("recommendations")
    feed = replace(feed, properties={**feed.properties, "announced": True})

    def landed() -> landing.Landed:
        folder, lake = platform.sources(), platform.lake()
        return landing.land(feed, [day(0)], folder, lake, platform.settings.zone)

    s3.put_object(Bucket=bucket, Key=f"{key}.{form}", Body=whole[:-100])
    assert (landed().records, landed().problems) == (0, {})
    s3.put_object(Bucket=bucket, Key=f"{key}.announced.json", Body=json.dumps(told).encode())
    [problem] = landed().problems.values()
    assert f"is not the file that {day(0)}.announced.json announces" in problem
    assert platform.lake().read("recommendations").num_rows == 0
    s3.put_object(Bucket=bucket, Key=f"{key}.{form}", Body=whole)
    assert (landed().records, landed().unchanged) == (900, 1)
    assert platform.lake().read("recommendations").num_rows == 900


@pytest.mark.parametrize(
    ("variables", "url", "fault"),
    [
        ({}, "s3://no-such-bucket/lake", "404.*create the bucket or correct the URL"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "s3://b/x", "127.0.0.1:1.*check the network"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, "s3://b/x", "nonsense; check AWS_ENDPOINT_URL"),
        ({"AWS_PROFILE": "ghost"}, "s3://b/x", r"\(ghost\).*correct AWS_PROFILE"),
        ({"AWS_DEFAULT_REGION": None}, "s3://b/x", "region; set AWS_DEFAULT_REGION"),
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
            "s3://b/x",
            "credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID",
        ),
    ],
    ids=["no bucket", "unreachable", "no URL", "no profile", "no region", "no credentials"],
)
def test_what_cannot_be_used_is_named_with_the_remedy_within_seconds(
    variables: dict[str, str | None], url: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    settings = Settings(lake=url, catalog="glue:", _env_file=None)
    for opening in (lambda: open_lake(settings), lambda: open_folder(url)):
        started = time.monotonic()
        with pytest.raises(ProfilehouseError, match=fault) as error:
            opening()
        assert time.monotonic() - started < 20
        assert str(error.value).startswith(url)
        assert "\n" not in str(error.value)


def test_an_unreachable_catalog_is_named_with_the_remedy(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_GLUE", "http://127.0.0.1:1")
    with pytest.raises(
        ProfilehouseError, match=f"lake s3://{bucket}/the/lake: Glue.*127.0.0.1:1.*check the netw"
    ):
        open_lake(on_s3(bucket))


def test_a_store_that_vanishes_is_named_within_seconds_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with moto_server(tmp_path) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        Session().client("s3").create_bucket(
            Bucket="gone", CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        lake = open_lake(on_s3("gone"))
        lake.replace("purchases", raw(day(0), [1]), days=[day(0)])
    started = time.monotonic()
    with pytest.raises(ProfilehouseError, match="lake s3://gone/the/lake: cannot write purchases"):
        lake.replace("purchases", raw(day(0), [1]), days=[day(0)])
    assert time.monotonic() - started < 20
