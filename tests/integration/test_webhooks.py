"""Webhooks: posted to the collector, from its log into the lake and the star, held against schemas.

The payloads of real senders are those of the data set octokit/webhooks, where it lies in
../shared/data beside the repository.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from profilehouse.contracts import Contract, contract
from profilehouse.sources.fetching import Fetched
from profilehouse.sources.landing import Landed, land
from profilehouse.sources.webhooks import fetch_webhooks
from tests.collecting import Answer, Running, collector
from tests.feeds import load
from tests.pipeline import DAYS, Installation

FIRST, SECOND = DAYS[:2]
SECRET = "correct-horse-battery-staple"
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "octokit_webhooks"
SCHEMAS = {
    "definitions": {
        "star$created": {
            "type": "object",
            "properties": {
                "action": {"const": "created"},
                "starred_at": {"type": "string"},
                "sender": {"$ref": "#/definitions/user"},
                "labels": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["action", "sender"],
            "additionalProperties": False,
        },
        "star_event": {"oneOf": [{"$ref": "#/definitions/star$created"}]},
        "user": {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}},
    }
}
GOOD = {"action": "created", "starred_at": "2025-04-22", "sender": {"id": 7}}


@pytest.fixture
def house(tmp_path: Path) -> Installation:
    (tmp_path / "sources").mkdir()
    return Installation(tmp_path, feeds="webhooks", webhooks=f"file:{tmp_path / 'webhooks'}")


@contextmanager
def receiver(house: Installation) -> Iterator[Running]:
    env = {
        "PROFILEHOUSE_WEBHOOKS": house.settings.webhooks,
        "PROFILEHOUSE_WEBHOOKS_SECRET": SECRET,
    }
    with collector(house.folder, env=env) as server:
        yield server


def post(server: Running, event: str, payload: Any, **headers: str | None) -> Answer:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    shown = {"X-GitHub-Event": event, "X-Hub-Signature-256": f"sha256={signature}"}
    changed = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {name: value for name, value in (shown | changed).items() if value is not None}
    return server.ask("POST", "/webhooks", body, sent)


def fetch(house: Installation, day: Any = FIRST) -> Fetched:
    with house.platform.webhooks() as log:
        return fetch_webhooks(log, house.platform.sources(), day)


def with_schemas(policy: str, schemas: Path) -> Contract:
    feed = contract("webhooks")
    drift = {**feed.properties, "drift": policy, "payloadSchemas": str(schemas)}
    return replace(feed, properties=drift)


def landed(house: Installation, feed: Contract) -> Landed:
    platform = house.platform
    return land(feed, [FIRST], platform.sources(), platform.lake(), house.settings.zone)


def test_a_webhook_that_was_accepted_is_a_fact_however_often_it_is_posted_and_fetched(
    house: Installation,
) -> None:
    with receiver(house) as server:
        for number in (1, 2, 2):
            answer = post(server, "star", {**GOOD, "n": number}, X_GitHub_Delivery=f"d{number}")
            assert (answer.status, answer.json) == (202, {"accepted": 1})
        assert post(server, "push", {"ref": "main"}).status == 202
        assert fetch(house).new == 4
        assert fetch(house) == Fetched(0, 0, 0, None)
        assert post(server, "ping", {"zen": "x"}, X_GitHub_Delivery="d3").status == 202
        assert (
            "profilehouse_collector_webhooks_total" in server.ask("GET", "/metrics").body.decode()
        )
    assert (fetch(house).new, fetch(house, SECOND).new) == (1, 0)
    checks = load(house, "webhooks", "fct_webhook")
    assert [name for name, passed in checks.items() if not passed] == []
    rows = house.query("SELECT * FROM fct_webhook ORDER BY delivery_id")
    told = [(row["event"], row["action"], json.loads(row["payload"]).get("n")) for row in rows]
    assert sorted(told, key=str) == [
        ("ping", None, None),
        ("push", None, None),
        ("star", "created", 1),
        ("star", "created", 2),
    ]
    named = {row["delivery_id"] for row in rows if row["event"] != "push"}
    assert named == {"d1", "d2", "d3"}


def test_who_does_not_know_the_secret_or_posts_no_json_object_is_refused(
    house: Installation,
) -> None:
    with receiver(house) as server:
        for said, answer in (
            ("X-Hub-Signature-256", post(server, "star", GOOD, X_Hub_Signature_256=None)),
            ("X-Hub-Signature-256", post(server, "star", GOOD, X_Hub_Signature_256="sha256=ab")),
        ):
            assert answer.status == 401
            assert said in answer.json["error"]
        for event, body in (
            ("star", b"payload=%7B%7D"),
            ("star", b"[1]"),
            ("star", b"\xff{}"),
            ("star", b""),
            ("", b"{}"),
        ):
            assert post(server, event, body).status == 400
        assert post(server, "star", {"a": "x" * 950_000}).status == 413
        assert post(server, "star", GOOD, X_GitHub_Delivery="a b").status == 400
    assert fetch(house).new == 0
    with collector(house.folder) as server:
        assert post(server, "star", GOOD).status == 404


@pytest.mark.parametrize("policy", ["evolve", "quarantine", "refuse"])
def test_what_becomes_of_payloads_that_differ_from_their_schema_is_the_policys(
    house: Installation, policy: str
) -> None:
    schemas = house.folder / "schemas.json"
    schemas.write_text(json.dumps(SCHEMAS), "utf-8")
    with receiver(house) as server:
        for event, payload in (
            ("star", GOOD),
            ("star", {**GOOD, "mood": "happy", "sender": {"id": "seven"}, "labels": ["a", 1, 2]}),
            ("star", {"action": "deleted", "starred_at": None}),
            ("push", {"ref": "main"}),
        ):
            assert post(server, event, payload).status == 202
    fetch(house)
    report = landed(house, with_schemas(policy, schemas))
    if policy == "refuse":
        [problem] = report.problems.values()
        assert "has fields that webhooks.odcs.yaml does not know: " in problem
        assert "push: has no schema (1)" in problem
        assert house.platform.lake().read("webhooks").num_rows == 0
        return
    assert report.drift == {
        "push: has no schema": 1,
        "star: it is not of its oneOf": 1,
        "star: labels[*] is not of its type": 1,
        "star: mood is not known": 1,
        "star: sender.id is not of its type": 1,
    }
    rows, letters = house.platform.lake().read("webhooks").num_rows, house.dead_letters()
    assert (rows, len(letters)) == ((4, 0) if policy == "evolve" else (1, 3))
    assert all("seven" not in letter["reason"] for letter in letters)


def test_every_payload_of_a_real_sender_is_accounted_for(house: Installation) -> None:
    if not REAL.exists():
        pytest.skip(f"{REAL.name} of the project's shared data is not beside the repository")
    events = json.loads(gzip.decompress((REAL / "examples_api.github.com.json.gz").read_bytes()))
    sent = [(event["name"], payload) for event in events for payload in event["examples"]]
    assert (len(sent), len(events)) == (329, 58)
    with receiver(house) as server:
        for number, (event, payload) in enumerate(sent):
            answer = post(server, event, payload, X_GitHub_Delivery=f"d{number}")
            assert answer.status == 202
    assert fetch(house).new == 329
    evolved = landed(house, with_schemas("evolve", REAL / "schema.json.gz"))
    assert (evolved.records, evolved.dead_letters, evolved.problems) == (329, 0, {})
    kept = {
        record["delivery_id"]: (record["event"], record["payload"])
        for text in house.platform.lake().read("webhooks")["record"].to_pylist()
        for record in [json.loads(text)]
    }
    assert kept == {f"d{number}": one for number, one in enumerate(sent)}
    without = {name: n for name, n in evolved.drift.items() if name.endswith(": has no schema")}
    assert (sum(without.values()), len(without)) == (45, 13)

    feed = replace(with_schemas("quarantine", REAL / "schema.json.gz"), version="1.0.1")
    quarantined = landed(house, feed)
    assert quarantined.drift == evolved.drift
    reasons = Counter(
        "no schema" if "no schema" in x["reason"] else "differs" for x in house.dead_letters()
    )
    assert reasons == {"no schema": 45, "differs": 39}
    assert house.platform.lake().read("webhooks").num_rows == 329 - 45 - 39
