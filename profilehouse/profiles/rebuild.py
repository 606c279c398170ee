"""Rebuilding the store: the lake's events, folded and written as one new generation.

Belongs here: that one way from events to a store. Does not belong here: reading the lake (lake/).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date

import pyarrow as pa

from profilehouse.profiles.features import Declaration
from profilehouse.profiles.fold import encode, fold
from profilehouse.profiles.store import Meta, Positions, Store


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild made; `newest_day` is the UTC day of the newest event, None without any."""

    generation: int
    users: int
    newest_day: date | None


def rebuild(
    store: Store,
    declaration: Declaration,
    batches: Iterable[pa.Table | pa.RecordBatch],
    deliveries: Mapping[str, str],
    topic_id: str | None = None,
    positions: Positions | None = None,
) -> Rebuilt:
    """Fold events into a new generation of the store and make it the current one.

    Args:
        store: where to; its readers go on with the old generation.
        declaration: what to keep.
        batches: all events, in the order they were received (see fold.fold).
        deliveries: fingerprint of each delivery in the batches, kept in the store's meta.
        topic_id: of the log's topic whose events are in the batches; None where none is.
        positions: up to which they are; the live process goes on from there.

    Raises:
        ProfilehouseError: if batches go back in time, or another process is rebuilding.
    """
    rows = fold(batches, declaration)
    newest_day = max((row.newest_day for row in rows.values()), default=None)
    meta = Meta(
        version=declaration.version,
        fingerprint=declaration.fingerprint,
        newest_day=newest_day,
        deliveries=deliveries,
    )
    encoded = ((user_id, encode(rows[user_id])) for user_id in sorted(rows))
    return Rebuilt(store.rebuild(encoded, meta, topic_id, positions), len(rows), newest_day)
