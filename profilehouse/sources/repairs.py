"""Repairs: mended records that stand in the place of those refused or held back.

Belongs here: keeping them and finding them again. Does not belong here: dead letters as the
operator sees them (dead_letters.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from operator import itemgetter

import pyarrow as pa

from profilehouse.contracts import contract
from profilehouse.lake import Lake

TABLE = "repairs"

Repairs = Mapping[date, Mapping[str, bytes]]
"""Delivery day -> SHA-256 of the bytes as delivered -> the bytes in their place."""


@dataclass(frozen=True)
class Repair:
    """What is done about a record: `record` stands in the place of the bytes with that SHA-256."""

    letter: str
    delivered_on: date
    sha256: str
    record: bytes


def digest(data: bytes) -> str:
    """The SHA-256 of a record, in hex."""
    return hashlib.sha256(data).hexdigest()


def repairs_of(lake: Lake, topic: str, days: Collection[date] | None = None) -> Repairs:
    """The repairs of a topic; of several for the same bytes on a day, the one noted last."""
    found: dict[date, dict[str, bytes]] = {}
    columns = ["delivered_on", "letter", "sha256", "record", "repaired_at"]
    rows = lake.read(TABLE, topic=topic, days=days, columns=columns).to_pylist()
    for row in sorted(rows, key=itemgetter("repaired_at", "letter")):
        found.setdefault(row["delivered_on"], {})[row["sha256"]] = row["record"]
    return found


def repaired_at(lake: Lake, topic: str) -> dict[date, datetime]:
    """When each day of a topic was repaired last."""
    newest: dict[date, datetime] = {}
    columns = ["delivered_on", "repaired_at"]
    for row in lake.read(TABLE, topic=topic, columns=columns).to_pylist():
        day = row["delivered_on"]
        newest[day] = max(row["repaired_at"], newest.get(day, row["repaired_at"]))
    return newest


def repaired_letters(lake: Lake, topic: str) -> set[str]:
    """The ids of a topic's dead letters that were repaired."""
    return set(lake.read(TABLE, topic=topic, columns=["letter"])["letter"].to_pylist())


def with_repairs(fingerprint: str, repairs: Mapping[str, bytes]) -> str:
    """The fingerprint of a delivery that is landed with repairs; without any, its own."""
    if not repairs:
        return fingerprint
    made = "".join(f"{sha}{digest(record)}" for sha, record in sorted(repairs.items()))
    return digest(f"{fingerprint}{made}".encode())


def keep(lake: Lake, topic: str, repairs: Collection[Repair], now: datetime) -> None:
    """Note repairs of one topic, beside those of other letters, in place of those of the same.

    Args:
        lake: where to.
        topic: the source, or web.
        repairs: each of another letter.
        now: UTC.
    """
    days = {repair.delivered_on for repair in repairs}
    if not days:
        return
    rows = {row["letter"]: row for row in lake.read(TABLE, topic=topic, days=days).to_pylist()}
    for repair in repairs:
        rows[repair.letter] = {
            "topic": topic,
            "delivered_on": repair.delivered_on,
            "letter": repair.letter,
            "sha256": repair.sha256,
            "record": repair.record,
            "repaired_at": now,
        }
    table = pa.Table.from_pylist(list(rows.values()), contract(TABLE).arrow_schema)
    lake.replace(TABLE, table, days=days, topic=topic)
