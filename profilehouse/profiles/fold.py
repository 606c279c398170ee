"""The fold: events into one row a user, in integers, so that every order gives the same row.

Belongs here: the row, folding events into it, merging rows, encoding them. Does not belong here:
windows and decay (reading.py) or where rows are kept (store/).

Which events count, and when. An event counts if it was received at most LATE_DAYS after it
occurred. It happened at its occurred_at, but always before it was received: one that claims to
occur later (a wrong clock) happened the microsecond before, so that no event lies in the future.

Why the order does not matter. Every part of a row is a sum, a minimum, a maximum or the N greatest
of a set, and what is forgotten (days before the longest window, ids of old events) depends only on
the row's maxima, which grow. So *distinct* events give the same row in any order, any split into
batches and any tree of merges.

Copies of an event (same user, event_id and occurred_at) count once if they reach the row while it
remembers the id. It does so until its newest received_at passes the event's occurred_at by
LATE_DAYS; a copy received later than that does not count anyway. So copies are exact whenever a
user's events are folded in the order they were received (inside one batch the order is free). A
copy that is folded after its id is forgotten counts again: `fold` refuses batches that go back in
time. Of copies that differ in content the first received counts, of those the first in the batch:
the lowest position, where batches come in the order of positions.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from profilehouse.profiles.features import LATE_DAYS, Count, Decayed, Declaration, Sum, span

Integers = npt.NDArray[np.int64]
Tiles = dict[str, dict[int, int]]

DAY = 24 * 60 * 60 * 1_000_000
"""Microseconds of a day."""

LATE = LATE_DAYS * DAY

EVENT_SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("event_type", pa.string()),
        ("user_id", pa.string()),
        ("content_id", pa.string()),
        ("category", pa.string()),
        ("value_cents", pa.int64()),
        ("occurred_at", pa.timestamp("us")),
        ("received_at", pa.timestamp("us")),
    ]
)
"""What the fold needs of an event; further columns are ignored."""

_EPOCH = date(1970, 1, 1)
LOWEST, HIGHEST = -(2**63), 2**63 - 1
"""Before and after all times."""


class Row(msgspec.Struct, array_like=True):
    """What is kept of one user. Times are microseconds and days are days since 1970, UTC.

    `totals`, `tiles` and `lists` follow the declaration's `totalled`, `tiled` and `listed`.
    A tile is key -> day -> integer, the key being "" for features without one. A list holds
    (when it happened, event_id, value), oldest first. `seen_ids` holds id hash -> occurred_at of
    the events whose copies may still come. `newest_received` is over copies too. `links` holds the
    (anonymous_id, session_id) of the user's logins, sorted (see identity.py).
    """

    newest_received: int
    first_seen: int
    last_seen: int
    totals: list[int]
    tiles: list[Tiles]
    lists: list[list[tuple[int, str, str]]]
    seen_ids: dict[int, int]
    links: list[tuple[str, str]] = []

    @property
    def newest_day(self) -> date:
        """The UTC day of the newest event."""
        return _EPOCH + timedelta(days=self.last_seen // DAY)


def absorb(
    rows: dict[str, Row], events: pa.Table | pa.RecordBatch, declaration: Declaration
) -> list[str]:
    """Fold a batch of events into the rows of their users, in place; the users, each once.

    Args:
        rows: the present rows by user_id, of the batch's users at least; rows of users who had none
            are added. They must have been folded with the declaration's fingerprint.
        events: columns of EVENT_SCHEMA, in any order of rows.
        declaration: what to keep.
    """
    actions = _actions(declaration)
    idle = _Actions()
    ages: dict[str, int] = {}
    for user, event_id, event_type, occurred, received, *fields in _counting(events):
        row = rows.get(user)
        if row is None:
            rows[user] = row = _new(declaration)
        ages.setdefault(user, row.last_seen // DAY)
        row.newest_received = max(row.newest_received, received)
        event_hash = id_hash(event_id)
        seen = row.seen_ids.get(event_hash)
        if seen is not None and seen + LATE >= row.newest_received:
            continue
        if occurred + LATE >= row.newest_received:
            row.seen_ids[event_hash] = occurred
        todo = actions.get(event_type, idle)
        _add(row, todo, event_id, min(occurred, received - 1), fields)
    spans = [span(feature) for feature in declaration.tiled]
    for user, newest_day in ages.items():
        row = rows[user]
        _forget_ids(row)
        if row.last_seen // DAY > newest_day:
            _forget_days(row, spans)
    return list(ages)


def merge(one: Row, other: Row, declaration: Declaration) -> Row:
    """The row of all events of two rows that have none in common. Associative and commutative."""
    newest_received = max(one.newest_received, other.newest_received)
    last_seen = max(one.last_seen, other.last_seen)
    newest_day = last_seen // DAY
    return Row(
        newest_received=newest_received,
        first_seen=min(one.first_seen, other.first_seen),
        last_seen=last_seen,
        totals=[a + b for a, b in zip(one.totals, other.totals, strict=True)],
        tiles=[
            _merged_tiles(a, b, newest_day - span(feature))
            for feature, a, b in zip(declaration.tiled, one.tiles, other.tiles, strict=True)
        ],
        lists=[
            sorted(a + b)[-feature.count :]
            for feature, a, b in zip(declaration.listed, one.lists, other.lists, strict=True)
        ],
        seen_ids={
            event_hash: occurred
            for event_hash, occurred in (one.seen_ids | other.seen_ids).items()
            if occurred + LATE >= newest_received
        },
        links=sorted({*one.links, *other.links}),
    )


def encode(row: Row) -> bytes:
    """The row as bytes: MessagePack. Equal rows may differ in the order of their maps."""
    return _ENCODER.encode(row)


def decode(data: bytes) -> Row:
    """The row that `encode` wrote."""
    return _DECODER.decode(data)


def id_hash(event_id: str) -> int:
    """64 bits of an event id: the first 8 bytes of BLAKE2b (RFC 7693), big-endian."""
    return int.from_bytes(blake2b(event_id.encode(), digest_size=8).digest(), "big")


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Row)


class _Actions(msgspec.Struct):
    """What an event of one type adds to: places in a row, fields by their index in _FIELDS, and
    for tiles the days that are kept."""

    totals: list[tuple[int, int | None]] = []
    tiles: list[tuple[int, int | None, int | None, int]] = []
    lists: list[tuple[int, int, int]] = []


_FIELDS = ("content_id", "category", "value_cents")


def _actions(declaration: Declaration) -> dict[str, _Actions]:
    actions: dict[str, _Actions] = defaultdict(_Actions)
    for place, feature in enumerate(declaration.totalled):
        actions[feature.event_type].totals.append((place, _summed(feature)))
    for place, tiled in enumerate(declaration.tiled):
        key = _FIELDS.index(tiled.key) if isinstance(tiled, Decayed) else None
        actions[tiled.event_type].tiles.append((place, key, _summed(tiled), span(tiled)))
    for place, listed in enumerate(declaration.listed):
        field = _FIELDS.index(listed.field)
        actions[listed.event_type].lists.append((place, field, listed.count))
    return actions


def _add(row: Row, todo: _Actions, event_id: str, happened: int, fields: Sequence[Any]) -> None:
    row.first_seen = min(row.first_seen, happened)
    row.last_seen = max(row.last_seen, happened)
    for place, field in todo.totals:
        row.totals[place] += 1 if field is None else fields[field] or 0
    day = happened // DAY
    newest_day = row.last_seen // DAY
    for place, key, field, days_kept in todo.tiles:
        name = "" if key is None else fields[key]
        if name is not None and day > newest_day - days_kept:
            days = row.tiles[place].setdefault(name, {})
            days[day] = days.get(day, 0) + (1 if field is None else fields[field] or 0)
    for place, field, count in todo.lists:
        if fields[field] is not None:
            entries = row.lists[place]
            insort(entries, (happened, event_id, fields[field]))
            del entries[:-count]


def _summed(feature: Count | Sum | Decayed) -> int | None:
    return _FIELDS.index(feature.field) if isinstance(feature, Sum) else None


def _new(declaration: Declaration) -> Row:
    return Row(
        newest_received=LOWEST,
        first_seen=HIGHEST,
        last_seen=LOWEST,
        totals=[0] * len(declaration.totalled),
        tiles=[{} for _ in declaration.tiled],
        lists=[[] for _ in declaration.listed],
        seen_ids={},
    )


def _counting(events: pa.Table | pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """(user, id, type, occurred, received, *_FIELDS) of the events that count, as received."""
    table = pa.table(events.select(EVENT_SCHEMA.names)).cast(EVENT_SCHEMA)
    occurred, received = (integers(table[name]) for name in ("occurred_at", "received_at"))
    chosen = received - occurred <= LATE
    if not chosen.all() or (np.diff(received) < 0).any():
        order = np.argsort(received, kind="stable")
        order = order[chosen[order]]
        table, occurred, received = table.take(pa.array(order)), occurred[order], received[order]
    return zip(
        *(table[name].to_pylist() for name in ("user_id", "event_id", "event_type")),
        occurred.tolist(),
        received.tolist(),
        *(table[name].to_pylist() for name in _FIELDS),
        strict=True,
    )


def _forget_ids(row: Row) -> None:
    """Drop the ids whose copies would come too late to count."""
    oldest = row.newest_received - LATE
    if row.seen_ids and min(row.seen_ids.values()) < oldest:
        row.seen_ids = {h: occurred for h, occurred in row.seen_ids.items() if occurred >= oldest}


def _forget_days(row: Row, spans: Sequence[int]) -> None:
    """Drop the days before each tiled feature's longest window."""
    newest_day = row.last_seen // DAY
    for days_kept, tiles in zip(spans, row.tiles, strict=True):
        after = newest_day - days_kept
        for key, days in list(tiles.items()):
            for day in [day for day in days if day <= after]:
                del days[day]
            if not days:
                del tiles[key]


def _merged_tiles(one: Tiles, other: Tiles, after: int) -> Tiles:
    merged: Tiles = {}
    for tiles in (one, other):
        for key, days in tiles.items():
            kept = merged.setdefault(key, {})
            for day, value in days.items():
                if day > after:
                    kept[day] = kept.get(day, 0) + value
    return {key: days for key, days in merged.items() if days}


def integers(column: pa.Array | pa.ChunkedArray) -> Integers:
    """A column of integers or times without nulls, as numbers."""
    return np.asarray(column.cast(pa.int64()))
