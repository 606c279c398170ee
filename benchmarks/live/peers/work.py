"""The work of one event, for engines that hand over one at a time.

The platform itself decodes and folds batches; this must make the very same rows of them.
"""

from __future__ import annotations

import os
import sys
import time
from bisect import insort
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from profilehouse.contracts import contract
from profilehouse.decode import record_type
from profilehouse.profiles.features import Decayed, Sum, load_declaration
from profilehouse.profiles.fold import DAY, HIGHEST, LATE, LOWEST, Row, id_hash

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)

declaration = load_declaration()
_decoder = msgspec.json.Decoder(record_type(contract("web"), json_object=msgspec.Raw))
_counts: dict[str, list[tuple[int, str | None]]] = {}
_tiles: dict[str, list[tuple[int, str | None, str | None]]] = {}
_lists: dict[str, list[tuple[int, str, int]]] = {}
for _place, _total in enumerate(declaration.totalled):
    _field = _total.field if isinstance(_total, Sum) else None
    _counts.setdefault(_total.event_type, []).append((_place, _field))
for _place, _tiled in enumerate(declaration.tiled):
    _key = _tiled.key if isinstance(_tiled, Decayed) else None
    _field = _tiled.field if isinstance(_tiled, Sum) else None
    _tiles.setdefault(_tiled.event_type, []).append((_place, _key, _field))
for _place, _listed in enumerate(declaration.listed):
    _lists.setdefault(_listed.event_type, []).append((_place, _listed.field, _listed.count))


def decode(value: bytes) -> Any | None:
    """The event, or None where the record breaks the contract."""
    try:
        event: Any = _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if event.user_id is None and event.anonymous_id is None:
        return None
    if event.event_type == "purchase" and event.order_id and event.content_id:
        event.event_id = f"purchases/{event.order_id}/{event.content_id}"
    return event


def fold(row: Row | None, event: Any) -> Row:
    """The row with the event, changed in place; a new one where there was none.

    The load has no late events, and no events older than a window.
    """
    if row is None:
        row = Row(
            LOWEST,
            HIGHEST,
            LOWEST,
            [0] * len(declaration.totalled),
            [{} for _ in declaration.tiled],
            [[] for _ in declaration.listed],
            {},
        )
    occurred = (event.occurred_at - _EPOCH) // _US
    received = (event.received_at - _EPOCH) // _US
    if not event.consent or received - occurred > LATE:
        return row
    row.newest_received = max(row.newest_received, received)
    event_hash = id_hash(event.event_id)
    if event_hash in row.seen_ids:
        return row
    row.seen_ids[event_hash] = occurred
    happened = min(occurred, received - 1)
    row.first_seen = min(row.first_seen, happened)
    row.last_seen = max(row.last_seen, happened)
    kind = event.event_type
    for place, field in _counts.get(kind, ()):
        row.totals[place] += 1 if field is None else getattr(event, field) or 0
    for place, key, field in _tiles.get(kind, ()):
        name = "" if key is None else getattr(event, key)
        if name is not None:
            days = row.tiles[place].setdefault(name, {})
            amount = 1 if field is None else getattr(event, field) or 0
            days[happened // DAY] = days.get(happened // DAY, 0) + amount
    for place, field, count in _lists.get(kind, ()):
        value = getattr(event, field)
        if value is not None:
            entries = row.lists[place]
            insort(entries, (happened, event.event_id, value))
            del entries[:-count]
    return row


class Progress:
    """Tells in a file when the first event came, when the last was durable, how many there were."""

    def __init__(self) -> None:
        self._file = Path(os.environ["PEER_PROGRESS"])
        self._begun = False

    def begin(self) -> None:
        """An event came."""
        if not self._begun:
            self._begun = True
            self._file.write_text(f"{time.time()}\n", "ascii")

    def end(self, events: int) -> None:
        """All events are durable, so many."""
        with self._file.open("a", encoding="ascii") as file:
            file.write(f"{time.time()}\n{events}\n")


def arguments() -> tuple[str, str, int, Path]:
    """Broker, topic, number of events, folder for the state."""
    broker, topic, events, folder = sys.argv[1:]
    return broker, topic, int(events), Path(folder)
