"""The profile store on Cassandra, against a real node."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.store import open_store
from profilehouse.profiles.store.cassandra import ROW_LIMIT, Cassandra
from services.cassandra import CassandraNode
from services.process import HOST, free_port
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
