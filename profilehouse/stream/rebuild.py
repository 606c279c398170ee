"""Rebuilding the profile store from the lake while the live process goes on.

Belongs here: folding up to a position, catching up with the log, and flipping the readers over.
Does not belong here: the fold (profiles/rebuild.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from profilehouse.errors import ProfilehouseError
from profilehouse.events.web import EVENTS, decode
from profilehouse.lake import Lake
from profilehouse.log import Log
from profilehouse.profiles.features import Declaration
from profilehouse.profiles.fold import EVENT_SCHEMA
from profilehouse.profiles.rebuild import fold_all
from profilehouse.profiles.store import Meta, Positions, Store
from profilehouse.stream.profiles import Part, ProfileSink

if TYPE_CHECKING:
    from profilehouse.platform import Platform

EVENTS_AT_ONCE = 20_000
"""Events of the log that are folded together."""

WEB_COLUMNS = (*EVENT_SCHEMA.names, "anonymous_id", "session_id", "consent")
"""Of lake/web_events: what the fold needs."""

Fold = Callable[
    [Declaration, Lake, Positions, Mapping[str, str]], tuple[Iterable[tuple[str, bytes]], Meta]
]
"""Folds all events of the lake, those of the log up to positions, into entries by key, encoded.
Deliveries go into the meta."""

_SECONDS_TO_WAIT = 2.0


def rebuild_from_lake(
    platform: Platform,
    lake: Lake,
    store: Store,
    declaration: Declaration,
    deliveries: Mapping[str, str],
    fold: Fold | None = None,
) -> int:
    """Fold all events of the lake into a new generation; returns its number.

    Events of the log that are not in the lake yet are read from the log before the readers are
    flipped over, so no profile goes back in time by more than the moment that takes. A live process
    loses its next commit to the new generation and goes on from that one's positions.

    Args:
        platform: where the log is; not opened where neither lake nor store has followed one.
        lake: to read.
        store: to rebuild.
        declaration: what to keep.
        deliveries: fingerprint of each delivery in lake/events.
        fold: who folds; by default this process.

    Raises:
        ProfilehouseError: if a part cannot be used, or another process is rebuilding.
    """
    positions = lake.positions(EVENTS)
    rows, meta = (fold or _fold_here)(declaration, lake, positions.offsets, deliveries)
    topic_id = positions.topic_id or _topic_id(store)
    if topic_id is None:
        return store.rebuild(rows, meta)
    with platform.log() as log:
        if log.topic_id != topic_id:  # made anew: its events are all yet to come
            return store.rebuild(rows, meta)
        with store.stage(rows, meta, log.topic_id, positions.offsets) as staged:
            _catch_up(log, ProfileSink(staged, declaration, log.topic_id))
            staged.flip()
            return staged.generation


def _topic_id(store: Store) -> str | None:
    """Of the log that the store follows; None where there is no store, or none of today's form."""
    try:
        with store.cut() as cut:
            return cut.topic_id
    except ProfilehouseError:
        return None


def _fold_here(
    declaration: Declaration, lake: Lake, positions: Positions, deliveries: Mapping[str, str]
) -> tuple[Iterable[tuple[str, bytes]], Meta]:
    delivered = lake.batches("events", columns=EVENT_SCHEMA.names)
    folded = fold_all(declaration, delivered, _days(lake, positions), deliveries)
    return folded.entries.items(), folded.meta


def _days(lake: Lake, positions: Positions) -> Iterator[pa.Table]:
    offsets = {partition: (0, end) for partition, end in positions.items()}
    for day in lake.days(EVENTS):
        yield lake.read(EVENTS, columns=WEB_COLUMNS, days=[day], offsets=offsets)


def _catch_up(log: Log, sink: ProfileSink) -> None:
    """Fold what the log has now beyond the sink's positions."""
    ends = {p: end for p, end in log.ends().items() if end > sink.positions.get(p, 0)}
    begin = {partition: sink.positions.get(partition) for partition in ends}
    if not begin:
        return
    with log.consumer(begin) as consumer:
        while any(sink.positions.get(p, 0) < ends[p] for p in begin):
            batches = consumer.read(EVENTS_AT_ONCE, _SECONDS_TO_WAIT)
            if not batches:
                return  # records were removed from the log: the live process goes on from here
            sink.write([Part(b.partition, b.next_offset, decode(b, log.topic_id)) for b in batches])
