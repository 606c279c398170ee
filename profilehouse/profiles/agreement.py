"""Agreement: the store's profiles against the warehouse's profile table, every user and column.

Belongs here: the comparison. Does not belong here: reading the warehouse (warehouse/) or what
follows from a difference (checks).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow as pa

from profilehouse.contracts import Contract
from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.features import Declaration, profile_contract
from profilehouse.profiles.fold import decode
from profilehouse.profiles.reading import profile_at
from profilehouse.profiles.store import Store

SAMPLE = 20
"""Differences listed at most."""

PRESENT = "(profile)"
"""Stands for the column where only one side has a profile at all."""


@dataclass(frozen=True)
class Difference:
    """One differing column of one user; `user_key` is dim_user's, the MD5 hex of the user_id."""

    user_key: str
    column: str
    store: Any
    warehouse: Any


@dataclass(frozen=True)
class Agreement:
    """How many users either side knows, how many differ, and the first differing columns."""

    users: int
    differing: int
    sample: tuple[Difference, ...]


def compare(
    store: Store, declaration: Declaration, warehouse_rows: pa.Table, as_of: date
) -> Agreement:
    """Compare every column of every user's profile, reading the store row by row.

    Args:
        store: folded with the declaration.
        declaration: the one in force.
        warehouse_rows: the table `profile` as of the same day; arrays as lists or as JSON text.
        as_of: UTC day, not before the newest event in the store.

    Raises:
        ProfilehouseError: if the store has newer events than as_of, or the table lacks a column or
            has two rows for a user.
    """
    newest_day = store.meta.newest_day
    if newest_day is not None and as_of < newest_day:
        raise ProfilehouseError(
            f"the profile store holds events up to {newest_day}, the warehouse's profiles are as of"
            f" {as_of}: compute them as of {newest_day} or later"
        )
    contract = profile_contract(declaration)
    expected = {row["user_id"]: row for row in _typed(warehouse_rows, contract).to_pylist()}
    if len(expected) != warehouse_rows.num_rows:
        raise ProfilehouseError(
            f"the warehouse's table profile has {warehouse_rows.num_rows} rows for {len(expected)}"
            " users: compute it again"
        )
    users, differing = len(expected), 0
    sample: list[Difference] = []
    for user_id, data in store.items():
        profile = profile_at(user_id, decode(data), declaration, as_of)
        other = expected.pop(user_id, None)
        users += other is None
        if profile != other:
            differing += 1
            sample += _differences(user_id, profile, other) if len(sample) < SAMPLE else ()
    for user_id, other in expected.items():
        differing += 1
        sample += _differences(user_id, None, other) if len(sample) < SAMPLE else ()
    return Agreement(users, differing, tuple(sample[:SAMPLE]))


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
