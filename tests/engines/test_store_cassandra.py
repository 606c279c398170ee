"""The profile store on Cassandra, against a real node."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from profilehouse.errors import ProfilehouseError
from profilehouse.platform import Platform
from profilehouse.profiles.serving import read_profile
from profilehouse.profiles.store import open_store
from profilehouse.profiles.store.cassandra import ROW_LIMIT, Cassandra
from profilehouse.settings import load_settings
from profilehouse.stream.status import read_statuses
from services.cassandra import CassandraNode
from services.process import HOST, free_port
from tests.integration.test_live_process import DECLARATION, living, record, send, until
from tests.store_cases import FINGERPRINT, RemoteStoreCases


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CassandraNode]:
    with CassandraNode(tmp_path_factory.mktemp("cassandra")) as running:
        yield running


@pytest.fixture
def url(server: CassandraNode) -> str:
    keyspace = f"test_{uuid.uuid4().hex[:8]}"
    server.make_keyspace(keyspace)
    return server.url(keyspace)


class TestCassandra(RemoteStoreCases):
    row_limit = ROW_LIMIT
    server_class = Cassandra

    def rows_expire_in(self, url: str, server: CassandraNode) -> float:
        keyspace = url.rpartition("/")[2]
        with server.session() as session:
            asked = f"SELECT TTL(row) FROM {keyspace}.profiles_1 WHERE user_id = '7'"
            seconds: int = session.execute(asked).one()[0]
            return seconds


def test_a_keyspace_that_is_missing_is_named_with_the_remedy(server: CassandraNode) -> None:
    with (
        open_store(server.url("nowhere"), FINGERPRINT) as store,
        pytest.raises(
            ProfilehouseError, match=r"/nowhere: there is no keyspace .* CREATE KEYSPACE"
        ),
    ):
        store.get("7")


def test_what_cannot_be_reached_is_one_line_with_the_remedy() -> None:
    url = f"cassandra://{HOST}:{free_port()}/profiles"
    with (
        open_store(url, FINGERPRINT) as store,
        pytest.raises(ProfilehouseError, match=rf"{url}: .*see that the hosts are up"),
    ):
        store.get("7")


def test_a_live_process_outlasts_a_node_that_is_too_slow_to_answer(
    server: CassandraNode, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("profilehouse.profiles.store.cassandra.REQUEST_SECONDS", 1)
    settings = load_settings(
        sources=str(tmp_path),
        lake=str(tmp_path / "lake"),
        log=f"file:{tmp_path / 'log'}",
        profiles=url,
        status=str(tmp_path / "status"),
    )
    platform = Platform(settings)
    send(platform, *(record(n, user_id="7") for n in range(10)))
    with living(platform) as process:
        until(lambda: process.events == 10)
        with server.frozen():
            send(platform, *(record(n, user_id="7") for n in range(10, 30)))
            until(lambda: any(status.restarts for status in read_statuses(settings)))
        until(lambda: process.events >= 30)
    with platform.profile_store(DECLARATION) as store:
        profile = read_profile(store, DECLARATION, "7")
    assert profile is not None
    assert profile["clicks_lifetime"] == 30
