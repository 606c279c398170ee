"""Row rules pushed down to (emulated) Snowflake by Great Expectations."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from profilehouse.errors import ProfilehouseError
from profilehouse.quality.gx import check_snowflake
from profilehouse.quality.rules import Holds
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


def test_a_rule_that_snowflake_refuses_raises_instead_of_passing(
    place: Settings, warehouse: Warehouse
) -> None:
    warehouse.stage(all_faults().to_batches(), SCHEMA)
    with warehouse.transaction():
        warehouse.swap(LENIENT, f"SELECT {', '.join(SCHEMA.names)} FROM staged")
    divided = replace(RULES[0], name="id_is_divided", test=Holds("id / 'x' > 1"))
    with pytest.raises(ProfilehouseError, match=r"could not evaluate id_is_divided: .*Conversion"):
        check_snowflake(VISITS, [divided, *RULES], warehouse, place)


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


class Refusing(BaseHTTPRequestHandler):
    """Refuses every login and keeps what it was sent."""

    logins: list[dict[str, Any]]

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        self.logins.append(json.loads(gzip.decompress(sent))["data"])
        body = json.dumps({"data": {}, "code": "390144", "message": "No.", "success": False})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    file = tmp_path / "key.p8"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"opens it"),
        )
    )
    return file


def test_great_expectations_logs_in_by_key_pair_as_the_warehouse_does(
    warehouse: Warehouse, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SNOWFLAKE_PASSWORD")
    monkeypatch.setenv("SNOWFLAKE_PRIVATE_KEY_FILE", str(key_file))
    monkeypatch.setenv("SNOWFLAKE_PRIVATE_KEY_FILE_PWD", "opens it")
    logins: list[dict[str, Any]] = []
    handler = type("Recording", (Refusing,), {"logins": logins})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = load_settings(
            warehouse="snowflake://me@acc/DB/STAR?role=R"
            f"&host=127.0.0.1&port={server.server_port}&protocol=http"
        )
        with pytest.raises(ProfilehouseError, match=r"cannot log in: .*No\."), open_warehouse(at):
            pass
        with pytest.raises(ProfilehouseError, match=r"cannot connect to Snowflake: .*No\."):
            check_snowflake(VISITS, RULES, warehouse, at)
        server.shutdown()
    who = ("ACCOUNT_NAME", "LOGIN_NAME", "AUTHENTICATOR")
    assert {tuple(login[name] for name in who) for login in logins} == {
        ("acc", "me", "SNOWFLAKE_JWT")
    }
    assert {login["CLIENT_APP_ID"] for login in logins} == {
        "PythonConnector",
        "SnowflakeSQLAlchemy",
    }
    assert all(login["TOKEN"] and "PASSWORD" not in login for login in logins)
    assert all(
        login["SESSION_PARAMETERS"]["QUERY_TAG"] == '{"application":"profilehouse"}'
        for login in logins
    )
