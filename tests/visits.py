"""A dataset with every kind of row rule, and rows that break each of them."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from profilehouse.contract_quality import Dependency, Distinct, Expression, QualityRule
from profilehouse.contracts import Column, Contract
from profilehouse.quality.rules import row_rules

VISITS = Contract(
    name="visits",
    kind="warehouse",
    version="1.0.0",
    description="Visits.",
    owner="web-team",
    columns=(
        Column("id", "integer", "Id.", required=True),
        Column("kind", "string", "Kind.", required=True, personal=True, values=("web", "app")),
        Column("share", "number", "Share.", minimum=0, maximum=1),
        Column("pages", "integer", "Pages.", minimum=1),
        Column("url", "string", "Url.", pattern=r"^https?://[\w.]+$"),
        Column("token", "string", "Token.", unique=True),
        Column("began_at", "timestamp", "Begin.", required=True),
        Column("ended_at", "timestamp", "End."),
        Column("note", "string", "Note.", shortest=2, longest=4),
        Column("zip", "string", "Postal code."),
        Column("city", "string", "City."),
        Column("seat", "integer", "Seat."),
    ),
    primary_key=("id", "kind"),
    partition_by=(),
    cluster_by=(),
    quality=(
        QualityRule(
            "ends_after_it_begins", Expression("ended_at >= began_at"), "It ends.", "error"
        ),
        QualityRule(
            "zip_tells_city", Dependency(("zip",), "city"), "One city a zip.", "error", "geo-team"
        ),
        QualityRule("seat_is_taken_once", Distinct(("seat", "zip")), "One a seat.", "error"),
    ),
    path=Path("contracts/warehouse/visits.odcs.yaml"),
)
RULES = row_rules(VISITS)
LENIENT = replace(VISITS, columns=tuple(replace(c, required=False) for c in VISITS.columns))
"""The same columns in a table that takes anything."""
SCHEMA = LENIENT.arrow_schema

NOON = datetime(2026, 3, 1, 12)
GOOD: dict[str, Any] = {
    "id": 1,
    "kind": "web",
    "share": 0.5,
    "pages": 3,
    "url": "https://shop.example",
    "token": "a",
    "began_at": NOON,
    "ended_at": NOON.replace(hour=13),
    "note": "ok",
    "zip": "10115",
    "city": "Berlin",
}
FAULTS: dict[str, list[dict[str, Any]]] = {
    "id_is_present": [{"id": None}],
    "kind_is_present": [{"kind": None}],
    "kind_is_in_set": [{"kind": "Web"}, {"kind": "tv"}],
    "share_is_between_0_and_1": [{"share": -0.01}, {"share": 1.5}, {"share": math.inf}],
    "pages_is_at_least_1": [{"pages": 0}],
    "url_matches_pattern": [{"url": "ftp://x"}, {"url": ""}, {"url": "https://x\n"}],
    "token_is_unique": [{"token": "twice"}, {"token": "twice"}],
    "began_at_is_present": [{"began_at": None}],
    "primary_key_is_unique": [{"id": 7}, {"id": 7}, {"id": 7, "kind": "app"}],
    "ends_after_it_begins": [{"ended_at": NOON.replace(hour=11)}],
    "note_has_length_between_2_and_4": [{"note": "é"}, {"note": "seven"}],
    "zip_tells_city": [{"city": "Bonn"}, {"zip": "1", "city": "A"}, {"zip": "1", "city": "B"}],
    "seat_is_taken_once": [{"seat": 4}, {"seat": 4}],
}
"""For each rule, rows of which those and no others break it (the last key has a twin only once)."""
FAILING = {name: len(rows) for name, rows in FAULTS.items()} | {"primary_key_is_unique": 2}


def visits(*changes: dict[str, Any]) -> pa.Table:
    """Good rows, each with some changes."""
    rows = [GOOD | {"id": 100 + i, "token": f"t{i}"} | change for i, change in enumerate(changes)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def all_faults() -> pa.Table:
    """Every fault, and values that break nothing though they are missing."""
    return visits(
        {},
        {"share": None, "pages": None, "url": None, "token": None, "ended_at": None},
        {"note": None, "zip": None, "city": "Bonn"},
        {"city": None},
        {"note": "éééé", "seat": 5},
        *(change for rows in FAULTS.values() for change in rows),
    )
