"""Reading: a stored row as the profile of one day, with exactly the warehouse table's columns.

Belongs here: windows, decay, lists and segments over a row. Does not belong here: how rows come
about (fold.py) or the same in SQL (sql.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Any

from profilehouse.errors import ProfilehouseError
from profilehouse.profiles import features as f
from profilehouse.profiles.fold import DAY, Row, Tiles

_EPOCH = datetime(1970, 1, 1)


def profile_at(user_id: str, row: Row, declaration: f.Declaration, as_of: date) -> dict[str, Any]:
    """The profile of a user on a UTC day, by column in the order of the profile's contract.

    A window of N days is the days as_of - N + 1 to as_of. A row holds the newest state only, so
    as_of may not lie before the row's newest event; the warehouse's SQL can look back.

    Raises:
        ProfilehouseError: if as_of lies before the row's newest event.
    """
    if as_of < row.newest_day:
        raise ProfilehouseError(
            f"a profile as of {as_of} was asked for, but the stored one holds events up to"
            f" {row.newest_day}: ask for that day or a later one, or compute it in the warehouse"
        )
    today = (as_of - _EPOCH.date()).days
    tiles = iter(row.tiles)
    totals = iter(row.totals)
    lists = iter(row.lists)
    profile: dict[str, Any] = {"user_id": user_id, "as_of": as_of}
    for feature in declaration.features:
        match feature:
            case f.Count() | f.Sum():
                if feature.windows:
                    days = next(tiles).get("", {})
                    for window in feature.windows:
                        profile[f.window_column(feature, window)] = sum(
                            value for day, value in days.items() if day > today - window
                        )
                if feature.lifetime:
                    profile[f.lifetime_column(feature)] = next(totals)
            case f.Decayed():
                best = sorted(_scores(next(tiles), feature, today))[: feature.top]
                profile[feature.name] = [key for _, key in best]
                profile[f.scores_column(feature)] = [str(-negated) for negated, _ in best]
            case f.Last():
                profile[feature.name] = [value for _, _, value in reversed(next(lists))]
            case f.FirstSeen():
                profile[feature.name] = _time(row.first_seen)
            case f.LastSeen():
                profile[feature.name] = _time(row.last_seen)
                profile[f.days_since_column(feature)] = today - row.last_seen // DAY
    for column, predicate in declaration.predicates.items():
        profile[column] = predicate.holds(profile)
    return profile


def _scores(tiles: Tiles, feature: f.Decayed, today: int) -> Iterator[tuple[int, str]]:
    """(minus the score, key) of each key with an event in the window: sorts best first."""
    weights = f.weights(feature.half_life_days, feature.window)
    for key, days in tiles.items():
        ages = [(today - day, value) for day, value in days.items()]
        if any(age < feature.window for age, _ in ages):
            yield -sum(weights[age] * value for age, value in ages if age < feature.window), key


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)
