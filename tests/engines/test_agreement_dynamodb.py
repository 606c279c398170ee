"""Agreement with a store whose rows are not read as of one moment, against DynamoDB Local."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from profilehouse.contracts import contract
from profilehouse.events.web import Decoded, empty
from profilehouse.profiles.agreement import compare_at_cut
from profilehouse.profiles.features import load_declaration
from profilehouse.profiles.store import open_store
from profilehouse.stream.profiles import Part, ProfileSink, create_if_missing
from profilehouse.warehouse.on_duckdb import DuckDBWarehouse, open_duckdb
from services.dynamodb import REGION, DynamoDbLocal, credentials
from tests.warehouse_suite import WebLog, web_event

DECLARATION = load_declaration()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamoDbLocal]:
    with DynamoDbLocal(tmp_path_factory.mktemp("dynamodb")) as running:
        yield running


@pytest.fixture
def url(server: DynamoDbLocal, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in credentials(server.endpoint).items():
        monkeypatch.setenv(name, value)
    return f"dynamodb://{REGION}/test-{uuid.uuid4().hex[:8]}"


def test_users_whose_rows_move_on_while_they_are_read_are_left_out_and_counted(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = WebLog()
    nowhere = {"anonymous_id": None, "session_id": None}
    log.append(0, web_event("a1"), web_event("b0", user_id="u0"))
    log.append(0, *(web_event(f"b{n}", user_id=f"u{n}", **nowhere) for n in range(1, 5)))
    log.append(0, web_event("a2", session_id="later"), web_event("c", user_id="u3", **nowhere))
    log.append(0, web_event("a3", user_id="u9", session_id="later"))
    with (
        open_store(url, DECLARATION.fingerprint) as store,
        open_store(url, DECLARATION.fingerprint) as writer,
        open_duckdb(tmp_path / "warehouse.duckdb") as warehouse,
    ):
        create_if_missing(writer, DECLARATION)
        sink = ProfileSink(writer, DECLARATION, log.topic_id)

        def fold(first: int, end: int) -> None:
            rows = pa.Table.from_batches(log.read({0: (first, end)}), log.schema)
            sink.write([Part(0, end, Decoded(rows, empty().dead))])

        for table in ("fct_purchase", "fct_interaction"):
            warehouse.create(contract(table))
        log.load(warehouse)
        fold(0, 6)
        before_scan(monkeypatch, lambda: fold(6, 9))

        found = compare_at_cut(store, DECLARATION, warehouse, date(2026, 3, 31))
        then = compare_at_cut(store, DECLARATION, warehouse, date(2026, 3, 31))

    # u3 and u9 have newer events, and u0 owns a session of the visitor that has one.
    assert (found.positions, found.users, found.moved_on) == ({0: 6}, 3, 3)
    assert (found.differing, found.sample) == (0, ())
    assert (then.positions, then.users, then.moved_on) == ({0: 9}, 6, 0)
    assert (then.differing, then.sample) == (0, ())


def before_scan(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Act once, after the cut was made and before the store's rows are read."""
    query = DuckDBWarehouse.query
    acts = [act]

    def acting(self: DuckDBWarehouse, sql: str, params: tuple[object, ...] = ()) -> pa.Table:
        if "login" in sql and acts:
            acts.pop()()
        return query(self, sql, params)

    monkeypatch.setattr(DuckDBWarehouse, "query", acting)
