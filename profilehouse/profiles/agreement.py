"""Agreement: the store's profiles against what the warehouse makes of the same events, every user
and column.

Belongs here: the comparison, and where to cut for it. Does not belong here: waiting until the
warehouse has caught up, or what follows from a difference (checks).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from profilehouse.contracts import Contract
from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.features import Declaration, profile_contract
from profilehouse.profiles.fold import Row, decode
from profilehouse.profiles.identity import MARK, Visitor, decode_visitor, visitor_key, whole
from profilehouse.profiles.reading import profile_at
from profilehouse.profiles.sql import BATCH_FACTS, WEB_FACT, profile_sql
from profilehouse.profiles.store import Cut, Positions, Store, Stored
from profilehouse.warehouse import Warehouse
from profilehouse.warehouse.load import loaded_days
from profilehouse.warehouse.ranges import behind, loaded_ranges

SAMPLE = 20
"""Differences listed at most."""

PRESENT = "(profile)"
"""Stands for the column where only one side has a profile at all."""

_AT_ONCE = 1000
"""Users compared together: bounds memory, and the requests for their visitors' rows."""

LeftOut = Literal["moved on", "oversized"]


class NotCovered(ProfilehouseError):  # noqa: N818
    """The warehouse lacks events that are in the store: load them, then compare again."""


@dataclass(frozen=True)
class Difference:
    """One differing column of one user; `user_key` is dim_user's, the MD5 hex of the user_id."""

    user_key: str
    column: str
    store: Any
    warehouse: Any


@dataclass(frozen=True)
class Agreement:
    """What a comparison found.

    Attributes:
        users: how many either side knows and were compared.
        differing: how many of them differ.
        sample: the first differing columns.
        moved_on: users left out as newer events reached their rows while they were read.
        oversized: users left out as a row outgrew the store's limit and stands still.
        positions: of the log, below which events were compared.
    """

    users: int
    differing: int
    sample: tuple[Difference, ...]
    moved_on: int
    oversized: int
    positions: Positions


def compare(
    store: Store, declaration: Declaration, warehouse_rows: pa.Table, as_of: date
) -> Agreement:
    """Compare every column of every user's profile, reading the store row by row.

    Args:
        store: folded with the declaration, from the events that the table is made of.
        declaration: the one in force.
        warehouse_rows: the table `profile` as of the same day; arrays as lists or as JSON text.
        as_of: UTC day, not before the newest event in the store.

    Raises:
        ProfilehouseError: if the store has newer events than as_of, or the table lacks a column or
            has two rows for a user.
    """
    with store.cut() as cut:
        return _compare(cut, declaration, warehouse_rows, as_of)


def compare_at_cut(
    store: Store, declaration: Declaration, warehouse: Warehouse, as_of: date
) -> Agreement:
    """Compare the store, which may be written meanwhile, with the profile SQL over the same events.

    The events are those of the delivery days that the store was rebuilt from, and those of the log
    below the store's positions.

    Args:
        store: folded with the declaration.
        declaration: the one in force.
        warehouse: an open connection to the facts.
        as_of: UTC day, not before the newest event in the store.

    Raises:
        NotCovered: if the warehouse lacks some of these events.
        ProfilehouseError: if it holds events of another topic, or the store has newer events than
            as_of.
    """
    with store.cut() as cut:
        _refuse_uncovered(cut, warehouse)
        folded = _delivery_days(cut)
        without = {day for fact in BATCH_FACTS for day in loaded_days(warehouse, fact)} - folded
        sql = profile_sql(declaration, as_of, cut.positions, without)
        return _compare(cut, declaration, warehouse.query(sql), as_of)


def _delivery_days(cut: Cut) -> set[date]:
    return {date.fromisoformat(day) for day in cut.meta.deliveries}


def _refuse_uncovered(cut: Cut, warehouse: Warehouse) -> None:
    for fact in BATCH_FACTS:
        missing = _delivery_days(cut) - loaded_days(warehouse, fact)
        if missing:
            raise NotCovered(
                f"warehouse table {fact} lacks {len(missing)} days that the profiles hold, from"
                f" {min(missing)} on: materialize them of warehouse/{fact}, then compare again"
            )
    if cut.topic_id is None:
        return
    lacking = behind(loaded_ranges(warehouse, cut.topic_id, WEB_FACT), cut.positions)
    for partition, (first, end) in lacking.items():
        raise NotCovered(
            f"warehouse table {WEB_FACT} lacks offsets {first} to {end - 1} of partition"
            f" {partition}, which the profiles hold: materialize warehouse/{WEB_FACT} when the lake"
            " has them, then compare again"
        )


def _compare(
    cut: Cut, declaration: Declaration, warehouse_rows: pa.Table, as_of: date
) -> Agreement:
    newest_day = cut.meta.newest_day
    if newest_day is not None and as_of < newest_day:
        raise ProfilehouseError(
            f"the profile store holds events up to {newest_day}, the warehouse's profiles are as of"
            f" {as_of}: compute them as of {newest_day} or later"
        )
    expected = _typed(warehouse_rows, profile_contract(declaration))
    places = {user_id: place for place, user_id in enumerate(expected["user_id"].to_pylist())}
    if len(places) != expected.num_rows:
        raise ProfilehouseError(
            f"the warehouse's table profile has {expected.num_rows} rows for {len(places)} users:"
            " compute it again"
        )
    users = differing = 0
    left_out: dict[LeftOut, int] = {"moved on": 0, "oversized": 0}
    sample: list[Difference] = []
    unmet = dict(places)
    for rows in _rows(cut, declaration):
        met = [place for user_id in rows if (place := unmet.pop(user_id, None)) is not None]
        others = {row["user_id"]: row for row in expected.take(met).to_pylist()}
        for user_id, row in rows.items():
            if not isinstance(row, Row):
                left_out[row] += 1
                continue
            users += 1
            profile, other = profile_at(user_id, row, declaration, as_of), others.get(user_id)
            if profile != other:
                differing += 1
                sample += _differences(user_id, profile, other) if len(sample) < SAMPLE else ()
    for user_id in islice(unmet, SAMPLE):
        sample += _differences(user_id, None, {})
    return Agreement(
        users=users + len(unmet),
        differing=differing + len(unmet),
        sample=tuple(sample[:SAMPLE]),
        moved_on=left_out["moved on"],
        oversized=left_out["oversized"],
        positions=cut.positions,
    )


def _rows(cut: Cut, declaration: Declaration) -> Iterator[dict[str, Row | LeftOut]]:
    """All that is kept of each user as one row, or why the user is left out; some users a time."""
    items = ((key, stored) for key, stored in cut.items() if not key.startswith(MARK))
    while some := dict(islice(items, _AT_ONCE)):
        rows = {user: decode(stored.row) for user, stored in some.items() if stored.row is not None}
        keys = {visitor_key(name) for row in rows.values() for name, _ in row.links}
        visitors = cut.read(sorted(keys)) if keys else {}
        yield {
            user: found
            for user, stored in some.items()
            if (found := _row(cut, declaration, user, stored, rows.get(user), visitors)) is not None
        }


def _row(
    cut: Cut,
    declaration: Declaration,
    user_id: str,
    stored: Stored,
    row: Row | None,
    visitors: dict[str, Stored],
) -> Row | LeftOut | None:
    keys = {visitor_key(name) for name, _ in row.links} if row else set()
    parts = [stored, *(visitors[key] for key in keys if key in visitors)]
    if any(cut.moved_on(part) for part in parts):
        return "moved on"
    if any(part.oversized for part in parts):
        return "oversized"

    def visitor(name: str) -> Visitor | None:
        found = visitors.get(visitor_key(name))
        return None if found is None or found.row is None else decode_visitor(found.row)

    return None if row is None else whole(user_id, row, visitor, declaration)


def _differences(
    user_id: str, profile: dict[str, Any] | None, other: dict[str, Any] | None
) -> Iterator[Difference]:
    user_key = hashlib.md5(user_id.encode(), usedforsecurity=False).hexdigest()
    if profile is None or other is None:
        yield Difference(user_key, PRESENT, profile is not None, other is not None)
        return
    for column, value in profile.items():
        if value != other[column]:
            yield Difference(user_key, column, value, other[column])


def _typed(rows: pa.Table, contract: Contract) -> pa.Table:
    missing = [c.name for c in contract.columns if c.name not in rows.column_names]
    if missing:
        raise ProfilehouseError(
            f"the warehouse's table profile lacks {', '.join(missing)}: compute it again with the"
            " declaration in force"
        )
    return pa.table(
        {column.name: rows[column.name].cast(column.arrow_type) for column in contract.columns}
    )
