"""All events of the lake, folded into the entries of a new generation of the store.

Belongs here: that fold. Does not belong here: reading the lake (lake/), writing the store, or
catching up with the log (stream/).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.profiles.bulk import fold
from profilehouse.profiles.features import Declaration
from profilehouse.profiles.fold import EVENT_SCHEMA
from profilehouse.profiles.identity import Login, assemble, encode, subjects
from profilehouse.profiles.store import Meta

Tables = Iterable[pa.Table | pa.RecordBatch]


@dataclass(frozen=True)
class Folded:
    """All entries of a generation, encoded, by key; and what they were folded from."""

    entries: Mapping[str, bytes]
    meta: Meta


def fold_all(
    declaration: Declaration, delivered: Tables, web: Tables, deliveries: Mapping[str, str]
) -> Folded:
    """Fold all events of the lake.

    Args:
        declaration: what to keep.
        delivered: events of lake/events, in the order they were received (see bulk.fold).
        web: events of lake/web_events, each day's together and the days in order.
        deliveries: fingerprint of each delivery in `delivered`, kept in the store's meta.

    Raises:
        ProfilehouseError: if `delivered` goes back in time.
    """
    logins: dict[tuple[str, str, str], Login] = {}
    rows = fold(_in_time(delivered, _by_subject(web, logins)), declaration)
    entries = assemble(rows, logins.values())
    newest_day = max((row.newest_day for row in rows.values()), default=None)
    meta = Meta(
        version=declaration.version,
        fingerprint=declaration.fingerprint,
        newest_day=newest_day,
        deliveries=deliveries,
    )
    return Folded({key: encode(entries[key]) for key in sorted(entries)}, meta)


def _by_subject(days: Tables, logins: dict[tuple[str, str, str], Login]) -> Iterator[pa.Table]:
    """Each day's events that count, by subject and as received; notes the first logins."""
    for events in days:
        batch = subjects(pa.table(events))
        for login in batch.logins:
            visit = (login.user_id, login.anonymous_id, login.session_id)
            logins[visit] = min(login, logins.get(visit, login))
        order = pc.sort_indices(batch.events, [("received_at", "ascending")])
        yield batch.events.take(order)


def _in_time(one: Tables, other: Tables) -> Iterator[pa.Table]:
    """Two streams of tables, each in the order of received_at, as one."""
    streams = [iter(one), iter(other)]
    heads = [_next(stream) for stream in streams]
    while all(head is not None for head in heads):
        ends = [head["received_at"][-1].as_py() for head in heads if head is not None]
        cut = min(ends)
        ready = []
        for place, head in enumerate(heads):
            if head is None:
                continue
            until = int(
                np.searchsorted(head["received_at"].to_numpy(), np.datetime64(cut), "right")
            )
            ready.append(head.slice(0, until))
            rest = head.slice(until)
            heads[place] = rest if rest.num_rows else _next(streams[place])
        together = pa.concat_tables(ready)
        yield together.take(pc.sort_indices(together, [("received_at", "ascending")]))
    for stream, head in zip(streams, heads, strict=True):
        if head is not None:
            yield head
            while (following := _next(stream)) is not None:
                yield following


def _next(stream: Iterator[pa.Table | pa.RecordBatch]) -> pa.Table | None:
    for batch in stream:
        if batch.num_rows:
            return pa.table(batch.select(EVENT_SCHEMA.names)).cast(EVENT_SCHEMA)
    return None
