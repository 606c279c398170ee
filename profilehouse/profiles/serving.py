"""Serving: the profile of a user or visitor, from what a store holds now.

Belongs here: putting together what belongs to one person. Does not belong here: windows and decay
(reading.py), or HTTP (web/).
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from profilehouse.profiles.features import Declaration
from profilehouse.profiles.fold import Row, decode
from profilehouse.profiles.identity import MARK, decode_visitor, unowned, visitor_key, whole
from profilehouse.profiles.reading import profile_at
from profilehouse.profiles.store import Store


def read_profile(
    store: Store, declaration: Declaration, user_id: str, as_of: date | None = None
) -> dict[str, Any] | None:
    """The profile of a user, with the sessions before the logins; None where there is none.

    Args:
        store: folded with the declaration.
        declaration: the one in force.
        user_id: who.
        as_of: the UTC day that counts as today, by default today or the day of the user's newest
            event, if that is later.

    Raises:
        ProfilehouseError: if as_of lies before the user's newest event.
    """
    row = user_row(store, declaration, user_id)
    return None if row is None else _profile(user_id, row, declaration, as_of)


def read_visitor(
    store: Store, declaration: Declaration, anonymous_id: str, as_of: date | None = None
) -> dict[str, Any] | None:
    """The profile of the sessions of a visitor in which nobody logged in; its user_id is None."""
    data = store.get(visitor_key(anonymous_id))
    row = None if data is None else unowned(decode_visitor(data), declaration)
    if row is None:
        return None
    return _profile(anonymous_id, row, declaration, as_of) | {"user_id": None}


def user_row(store: Store, declaration: Declaration, user_id: str) -> Row | None:
    """All that is kept of a user, as one row."""
    data = None if user_id.startswith(MARK) else store.get(user_id)
    if data is None:
        return None
    row = decode(data)
    if not row.links:
        return row
    keys = {visitor_key(anonymous_id) for anonymous_id, _ in row.links}
    visitors = {key: decode_visitor(found) for key, found in store.get_many(keys).items()}
    return whole(user_id, row, lambda name: visitors.get(visitor_key(name)), declaration)


def _profile(name: str, row: Row, declaration: Declaration, as_of: date | None) -> dict[str, Any]:
    return profile_at(
        name, row, declaration, as_of or max(datetime.now(UTC).date(), row.newest_day)
    )
