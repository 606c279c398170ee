"""The profile store on DynamoDB, against Amazon's DynamoDB Local."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boto3.session import Session

from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.store import Store, Stored, Write, open_store
from profilehouse.profiles.store.dynamodb import ROW_LIMIT, DynamoDB
from services.dynamodb import REGION, DynamoDbLocal, credentials
from services.process import free_port
from tests.store_cases import FINGERPRINT, TOPIC, RemoteStoreCases


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamoDbLocal]:
    with DynamoDbLocal(tmp_path_factory.mktemp("dynamodb")) as running:
        yield running


@pytest.fixture(autouse=True)
def aws(server: DynamoDbLocal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS configured by nothing but what a test sets."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    for name, value in credentials(server.endpoint).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def url() -> str:
    return f"dynamodb://{REGION}/test-{uuid.uuid4().hex[:8]}"


class TestDynamoDB(RemoteStoreCases):
    row_limit = ROW_LIMIT
    server_class = DynamoDB

    def rows_expire_in(self, url: str, server: DynamoDbLocal) -> float:
        client: Any = Session().client("dynamodb", region_name=REGION)
        table = f"{url.rsplit('/', 1)[1]}_profiles_1"
        described = client.describe_time_to_live(TableName=table)["TimeToLiveDescription"]
        assert described == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expires"}
        row = client.get_item(TableName=table, Key={"user_id": {"S": "7"}})["Item"]
        return int(row["expires"]["N"]) - time.time()

    def test_large_rows_and_many_go_into_transactions_that_the_server_takes(
        self, store: Store
    ) -> None:
        store.resume(TOPIC)
        rows = {f"large-{n}": bytes([n]) * ROW_LIMIT for n in range(12)}
        rows |= {f"small-{n}": b"x" for n in range(120)}
        store.commit([Write(u, Stored(), row, {0: 1}) for u, row in rows.items()], {}, {0: 1})
        assert store.get_many(rows) == rows


def test_what_cannot_be_reached_is_one_line_with_the_remedy(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", f"http://127.0.0.1:{free_port()}")
    with (
        open_store(url, FINGERPRINT) as store,
        pytest.raises(ProfilehouseError, match=rf"{url}: .*check the network and, where set, AWS"),
    ):
        store.get("7")


def test_without_credentials_one_line_says_what_to_set(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with (
        open_store(url, FINGERPRINT) as store,
        pytest.raises(ProfilehouseError, match="set AWS_PROFILE, or AWS_ACCESS_KEY_ID"),
    ):
        store.get("7")
