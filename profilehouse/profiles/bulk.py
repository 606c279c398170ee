"""The fold of many events at once: columns in, rows out, as fold.py would fold them one by one.

Belongs here: folding what a rebuild reads, hundreds of events a user, three times as fast as
fold.absorb (which is the faster one for the few events a user that a live batch has). Does not
belong here: any rule of its own. Both give the same rows; a property test holds them to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.features import Count, Decayed, Declaration, Last, Sum, span
from profilehouse.profiles.fold import (
    DAY,
    EVENT_SCHEMA,
    HIGHEST,
    LATE,
    LOWEST,
    Integers,
    Row,
    id_hash,
    integers,
    merge,
)

EVENTS_PER_STEP = 250_000
"""Events folded together: bounds memory, and spreads the cost of merging rows."""


def fold(batches: Iterable[pa.Table | pa.RecordBatch], declaration: Declaration) -> dict[str, Row]:
    """Fold all events of the lake into rows, by user_id.

    Args:
        batches: events with the columns of EVENT_SCHEMA, in the order they were received: no
            batch starts before the newest received_at of the ones before it.
        declaration: what to keep.

    Raises:
        ProfilehouseError: if a batch goes back in time, which would count copies twice.
    """
    rows: dict[str, Row] = {}
    for events in _steps(_in_order(batches)):
        rows.update(apply(rows, events, declaration))
    return rows


def apply(
    rows: Mapping[str, Row], events: pa.Table | pa.RecordBatch, declaration: Declaration
) -> dict[str, Row]:
    """Fold a batch of events into the rows of their users.

    Args:
        rows: the present rows by user_id; those of the batch's users are read, none is changed.
        events: columns of EVENT_SCHEMA, in any order of rows.
        declaration: what to keep; the rows must have been folded with the same fingerprint.

    Returns:
        The new rows of the users the batch changes; users without a counted event have none.
    """
    batch = _Batch.of(events)
    if not batch.users:
        return {}
    present = [rows.get(user) for user in batch.users]
    newest_received = _per_user(np.maximum, batch.user, batch.received, len(present), LOWEST)
    batch = batch.take(_first_copies(batch))
    new, remembered = _unseen(batch, present, newest_received)
    batch = batch.take(new)
    folded = _partial_rows(batch, newest_received, declaration)
    for user, occurred, event_hash in remembered:
        folded[user].seen_ids[event_hash] = occurred
    return {
        name: row if before is None else merge(before, row, declaration)
        for name, before, row in zip(batch.users, present, folded, strict=True)
    }


class _Batch(msgspec.Struct, frozen=True):
    """Events that count, as columns; `user` indexes `users`."""

    users: list[str]
    user: Integers
    occurred: Integers
    received: Integers
    happened: Integers
    table: pa.Table

    @classmethod
    def of(cls, events: pa.Table | pa.RecordBatch) -> _Batch:
        table = pa.table(events.select(EVENT_SCHEMA.names)).cast(EVENT_SCHEMA)
        lag = integers(table["received_at"]) - integers(table["occurred_at"])
        table = table.filter(pa.array(lag <= LATE)).combine_chunks()
        users = table["user_id"].combine_chunks().dictionary_encode()
        occurred, received = integers(table["occurred_at"]), integers(table["received_at"])
        return cls(
            users=users.dictionary.to_pylist(),
            user=integers(users.indices),
            occurred=occurred,
            received=received,
            happened=np.minimum(occurred, received - 1),
            table=table,
        )

    def take(self, index: Integers) -> _Batch:
        if len(index) == len(self.user):
            return self
        return _Batch(
            users=self.users,
            user=self.user[index],
            occurred=self.occurred[index],
            received=self.received[index],
            happened=self.happened[index],
            table=self.table.take(pa.array(index)),
        )

    def mask(self, feature: Count | Sum | Decayed | Last) -> npt.NDArray[np.bool_]:
        """The events a feature counts."""
        chosen = pc.equal(self.table["event_type"], feature.event_type)
        if isinstance(feature, Decayed):
            chosen = pc.and_(chosen, self.table[feature.key].is_valid())
        elif isinstance(feature, Last):
            chosen = pc.and_(chosen, self.table[feature.field].is_valid())
        return np.asarray(chosen)

    def values(self, feature: Count | Sum | Decayed) -> Integers:
        """What each event adds to a feature."""
        if isinstance(feature, Sum):
            return integers(pc.fill_null(self.table[feature.field], 0))
        return np.ones(len(self.user), np.int64)


def _in_order(batches: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[pa.Table]:
    newest = None
    for batch in batches:
        if not batch.num_rows:
            continue
        ends = pc.min_max(batch["received_at"])
        if newest is not None and ends["min"].as_py() < newest:
            raise ProfilehouseError(
                f"events received at {ends['min'].as_py()} come after events received at {newest};"
                " profiles are folded in the order of received_at: read the days in order"
            )
        newest = ends["max"].as_py()
        yield pa.table(batch.select(EVENT_SCHEMA.names)).cast(EVENT_SCHEMA)


def _steps(batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    gathered: list[pa.Table] = []
    for batch in batches:
        gathered.append(batch)
        if sum(b.num_rows for b in gathered) >= EVENTS_PER_STEP:
            yield pa.concat_tables(gathered)
            gathered = []
    if gathered:
        yield pa.concat_tables(gathered)


def _first_copies(batch: _Batch) -> Integers:
    """Indices of one event for each user and event_id: the first received, the first of equals."""
    ids = integers(batch.table["event_id"].combine_chunks().dictionary_encode().indices)
    by_received = np.argsort(batch.received, kind="stable")
    pairs = (ids * len(batch.users) + batch.user)[by_received]
    return np.sort(by_received[np.unique(pairs, return_index=True)[1]])


def _unseen(
    batch: _Batch, present: list[Row | None], newest_received: Integers
) -> tuple[Integers, list[tuple[int, int, int]]]:
    """Indices of the events that their user's row has not seen, and (user, occurred_at, id hash)
    of those among them that it will remember.

    An id is hashed only where the row will remember it or, by its time, may do so already.
    """
    memories = np.array([_memory(row) for row in present], np.int64)
    before, oldest, newest = memories.T[:, batch.user]
    kept = batch.occurred + LATE >= np.maximum(before, newest_received[batch.user])
    known = (batch.occurred >= oldest) & (batch.occurred <= newest)
    asked = np.flatnonzero(kept | known)
    ids = batch.table["event_id"].take(pa.array(asked)).to_pylist()
    columns = (asked.tolist(), ids, batch.user[asked].tolist(), batch.occurred[asked].tolist())
    new = np.ones(len(batch.user), np.bool_)
    remembered: list[tuple[int, int, int]] = []
    for index, event_id, user, occurred in zip(*columns, strict=True):
        event_hash = id_hash(event_id)
        row = present[user]
        if row is not None and event_hash in row.seen_ids:
            new[index] = False
        elif kept[index]:
            remembered.append((user, occurred, event_hash))
    return np.flatnonzero(new), remembered


def _memory(row: Row | None) -> tuple[int, int, int]:
    """(newest_received, least and greatest occurred_at of the ids remembered) of a row."""
    if row is None:
        return LOWEST, HIGHEST, LOWEST
    times = row.seen_ids.values()
    return row.newest_received, min(times, default=HIGHEST), max(times, default=LOWEST)


def _partial_rows(batch: _Batch, newest_received: Integers, declaration: Declaration) -> list[Row]:
    """The rows of a batch's events alone, without `seen_ids`.

    A user all of whose events were copies gets a row that changes nothing but `newest_received`.
    """
    size = len(batch.users)
    first_seen = _per_user(np.minimum, batch.user, batch.happened, size, HIGHEST)
    last_seen = _per_user(np.maximum, batch.user, batch.happened, size, LOWEST)
    totals = [
        _per_user(np.add, batch.user[chosen], batch.values(feature)[chosen], size, 0).tolist()
        for feature in declaration.totalled
        for chosen in [batch.mask(feature)]
    ]
    rows = [
        Row(
            newest_received=received,
            first_seen=first,
            last_seen=last,
            totals=[total[user] for total in totals],
            tiles=[{} for _ in declaration.tiled],
            lists=[[] for _ in declaration.listed],
            seen_ids={},
        )
        for user, (received, first, last) in enumerate(
            zip(newest_received.tolist(), first_seen.tolist(), last_seen.tolist(), strict=True)
        )
    ]
    newest_day = last_seen // DAY
    for place, feature in enumerate(declaration.tiled):
        for user, key, day, value in _tiles(batch, feature, newest_day):
            rows[user].tiles[place].setdefault(key, {})[day] = value
    for place, listed in enumerate(declaration.listed):
        for user, entry in _newest(batch, listed):
            rows[user].lists[place].append(entry)
    for row in rows:
        row.lists = [
            sorted(entries)[-feature.count :]
            for feature, entries in zip(declaration.listed, row.lists, strict=True)
        ]
    return rows


def _tiles(
    batch: _Batch, feature: Count | Sum | Decayed, newest_day: Integers
) -> Iterable[tuple[int, str, int, int]]:
    """(user, key, day, sum) of the days that a feature's longest window reaches."""
    day = batch.happened // DAY
    chosen = batch.mask(feature) & (day > newest_day[batch.user] - span(feature))
    key = (
        batch.table[feature.key].filter(pa.array(chosen))
        if isinstance(feature, Decayed)
        else pa.repeat("", int(chosen.sum()))
    )
    tiles = (
        pa.table(
            {
                "user": batch.user[chosen],
                "key": key,
                "day": day[chosen],
                "value": batch.values(feature)[chosen],
            }
        )
        .group_by(["user", "key", "day"])
        .aggregate([("value", "sum")])
    )
    columns = (tiles[name].to_pylist() for name in ("user", "key", "day", "value_sum"))
    return zip(*columns, strict=True)


def _newest(batch: _Batch, feature: Last) -> Iterator[tuple[int, tuple[int, str, str]]]:
    """(user, list entry) of at least the newest `count` events of each user, in no order."""
    chosen = np.flatnonzero(batch.mask(feature))
    user, happened = batch.user[chosen], batch.happened[chosen]
    order = np.lexsort((happened, user))
    starts = np.searchsorted(user[order], np.arange(len(batch.users)), side="left")
    ends = np.searchsorted(user[order], np.arange(len(batch.users)), side="right")
    oldest_kept = np.maximum(starts, ends - feature.count)
    kept_from = np.append(happened[order], HIGHEST)[oldest_kept]
    young = happened >= kept_from[user]
    table = batch.table.take(pa.array(chosen[young]))
    entries = zip(
        happened[young].tolist(),
        table["event_id"].to_pylist(),
        table[feature.field].to_pylist(),
        strict=True,
    )
    return zip(user[young].tolist(), entries, strict=True)


def _per_user(
    combine: np.ufunc, user: Integers, values: Integers, size: int, start: int
) -> Integers:
    result = np.full(size, start, np.int64)
    combine.at(result, user, values)
    return result
