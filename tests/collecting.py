"""A collector in a process of its own, what is sent to it, and what the log holds afterwards."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from profilehouse.log import Log
from services.process import HOST, free_port, running
from tests.log_cases import read_all

TOKEN = "correct-horse-battery-staple"
ORIGIN = "https://shop.example"
SECONDS = 30


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    """A collector that listens."""

    port: int
    pid: int
    output: Path

    def connect(self) -> closing[http.client.HTTPConnection]:
        return closing(http.client.HTTPConnection(HOST, self.port, timeout=SECONDS))

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        with self.connect() as connection:
            return ask(connection, method, path, body, headers)

    def post(self, events: Any, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("POST", "/events", json.dumps(events), headers)

    def profile(self, path: str, token: str = TOKEN) -> Answer:
        return self.ask("GET", path, headers={"Authorization": f"Bearer {token}"})


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    connection.request(method, path, body, dict(headers or {}))
    answer = connection.getresponse()
    return Answer(answer.status, answer.headers, answer.read())


def environment(folder: Path) -> dict[str, str]:
    return {
        "PROFILEHOUSE_LOG": f"file:{folder / 'log'}",
        "PROFILEHOUSE_PROFILES": f"lmdb:{folder / 'profiles'}",
        "PROFILEHOUSE_LAKE": str(folder / "lake"),
        "PROFILEHOUSE_STATUS": str(folder / "status"),
        "PROFILEHOUSE_ORIGINS": ORIGIN,
    }


@contextmanager
def collector(
    folder: Path,
    *options: str,
    env: Mapping[str, str] | None = None,
    port: int | None = None,
    token: str | None = TOKEN,
    before: Sequence[str] = (),
) -> Iterator[Running]:
    """Run `profilehouse collect`; `before` are words in front of the command."""
    port = port or free_port()
    command = [sys.executable, "-m", "profilehouse.cli", "collect", "--port", str(port), *options]
    output = folder / f"collector-{port}.log"
    variables = environment(folder) | dict(env or {})
    if token is not None:
        variables["PROFILEHOUSE_API_TOKEN"] = token
    with running([*before, *command], port=port, log=output, env=variables) as pid:
        yield Running(port, pid, output)


def event(number: int, **given: Any) -> dict[str, Any]:
    return {
        "event_id": f"e{number}",
        "event_type": "click",
        "user_id": f"u{number % 10}",
        "content_id": f"c{number}",
        "occurred_at": "2026-01-01T12:00:00Z",
        "consent": True,
    } | given


def logged(log: Log) -> list[dict[str, Any]]:
    """All records of the log, decoded, in any order of the partitions."""
    return [msgspec.json.decode(value) for values in read_all(log).values() for value in values]


def ids(log: Log) -> list[str]:
    return [record["event_id"] for record in logged(log)]
