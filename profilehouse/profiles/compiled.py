"""The fold compiled: what fold.py does to live batches, done by the package in native/.

Belongs here: handing rows and columns over. Does not belong here: what folding means (fold.py);
tests hold both equal.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import pyarrow as pa
from profilehouse_native import Fold, Row

from profilehouse.profiles.features import Decayed, Declaration, Sum, span
from profilehouse.profiles.fold import EVENT_SCHEMA, LATE

_TEXTS = ("content_id", "category")
_COLUMNS = ("user_id", "event_id", "event_type", *_TEXTS, "occurred_at", "received_at")

_Totals = list[tuple[int, bool]]
_Tiles = list[tuple[int, int | None, bool, int]]
_Lists = list[tuple[int, int, int]]


def absorb(rows: dict[str, Row], events: pa.Table, declaration: Declaration) -> list[str]:
    """See fold.absorb."""
    columns = events.select([*_COLUMNS, "value_cents"]).combine_chunks()
    return _fold(declaration).absorb(
        rows,
        [_buffers(columns[name], EVENT_SCHEMA.field(name).type) for name in columns.column_names],
    )


def encode(row: Row) -> bytes:
    """See fold.encode."""
    return row.encode()


def decode(data: bytes) -> Row:
    """See fold.decode."""
    return Row.decode(data)


@cache
def _fold(declaration: Declaration) -> Fold:
    actions: dict[str, tuple[_Totals, _Tiles, _Lists]] = defaultdict(lambda: ([], [], []))
    for place, feature in enumerate(declaration.totalled):
        actions[feature.event_type][0].append((place, isinstance(feature, Sum)))
    for place, tiled in enumerate(declaration.tiled):
        key = _TEXTS.index(tiled.key) if isinstance(tiled, Decayed) else None
        actions[tiled.event_type][1].append((place, key, isinstance(tiled, Sum), span(tiled)))
    for place, listed in enumerate(declaration.listed):
        actions[listed.event_type][2].append((place, _TEXTS.index(listed.field), listed.count))
    return Fold(
        len(declaration.totalled),
        [span(feature) for feature in declaration.tiled],
        len(declaration.listed),
        LATE,
        actions,
    )


def _buffers(
    column: pa.ChunkedArray, type_: pa.DataType
) -> tuple[int, int, list[pa.Buffer | None]]:
    array = column.cast(type_).combine_chunks()
    return len(array), array.offset, array.buffers()
