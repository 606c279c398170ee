"""The profile sink: folds decoded batches of the log into the profile store, each once.

Belongs here: reading, folding and committing with positions. Does not belong here: the fold and
identity (profiles/), or when to read the log (process.py).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from importlib.util import find_spec

import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.errors import ProfilehouseError, StaleWriter
from profilehouse.events.web import Decoded
from profilehouse.profiles import fold, identity
from profilehouse.profiles.features import Declaration
from profilehouse.profiles.identity import Entry, Folding, Subjects
from profilehouse.profiles.store import Meta, Positions, Store, Stored, Write

folding: Folding = fold
if find_spec("profilehouse_native"):
    from profilehouse.profiles import compiled

    folding = compiled

CACHED = 32 * 2**20
"""Bytes of the entries kept in memory, of those written last, as they are stored; decoded they take
some times that."""

ATTEMPTS = 5
"""How often a batch is folded anew because rows that it shares were written by another process."""


_SECONDS_TO_CREATE = 2.0
"""How long another process may take to make an empty store."""


Held = tuple[Stored, Entry | None]
"""What is stored under a key, and the entry it decodes to."""


@dataclass(frozen=True)
class Part:
    """One partition's records of a batch, and the offset after the last of them."""

    partition: int
    end: int
    decoded: Decoded


@dataclass
class Counts:
    """What a sink did so far."""

    events: int = 0
    unconsented: int = 0
    late: int = 0
    oversized: int = 0


class ProfileSink:
    """Writes the profiles of the partitions it was given. For one thread.

    After any error of `write` the sink is of no use; a new one goes on from what is stored.
    """

    def __init__(
        self, store: Store, declaration: Declaration, topic_id: str, counts: Counts | None = None
    ) -> None:
        """Resume writing.

        Args:
            store: where to.
            declaration: what to keep.
            topic_id: of the log.
            counts: go on with these.

        Raises:
            ProfilehouseError: if the store cannot be written, or holds positions of another topic.
        """
        self.counts = counts or Counts()
        self._store = store
        self._declaration = declaration
        self._topic_id = topic_id
        self._cache = _Cache()
        self._resumed = store.resume(topic_id)

    @property
    def positions(self) -> Positions:
        """Partition -> offset of the next event; a partition without any is missing."""
        return self._resumed

    def resume(self) -> Positions:
        """Forget what is held in memory; the positions that are stored now."""
        self._cache.clear()
        self._resumed = self._store.resume(self._topic_id)
        return self._resumed

    def write(self, parts: Sequence[Part]) -> None:
        """Fold the parts and store the profiles, in one commit; what is in them is skipped.

        Raises:
            StaleWriter: if another writer has moved the positions or replaced the generation.
            NoAnswer: if the store was too slow to say whether it took them.
            ProfilehouseError: if the store cannot be written.
        """
        parts = [part for part in parts if part.end > self._resumed.get(part.partition, 0)]
        if not parts:
            return
        partitions = {part.partition for part in parts}
        before = {p: offset for p, offset in self._resumed.items() if p in partitions}
        events = pa.concat_tables([part.decoded.events for part in parts])
        events = _not_below(events, before)
        batch = identity.subjects(events)
        places = events.select(["log_partition", "log_offset"]).take(pa.array(batch.rows))
        after = {part.partition: part.end for part in parts}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._commit(batch, places, before, after)
                break
            except StaleWriter:
                stored = self.resume()
                moved = any(stored.get(p) != before.get(p) for p in after)
                if moved or attempt == ATTEMPTS:
                    raise
        self._resumed = {**self._resumed, **after}
        self.counts.events += batch.events.num_rows
        self.counts.unconsented += batch.unconsented
        self.counts.late += batch.late

    def _commit(
        self, batch: Subjects, places: pa.Table, before: Positions, after: Positions
    ) -> None:
        ends = _ends(batch, places, after)
        held = self._held(ends)
        stored_in = {key: stored.positions for key, (stored, _) in held.items() if stored.positions}
        if stored_in:
            batch = batch.where(_new(batch, places, stored_in))
        entries = {key: entry for key, (_, entry) in held.items() if entry is not None}
        changed = identity.absorb(entries, batch, self._declaration, folding)
        writes = [
            Write(key, held[key][0], identity.encode(entries[key], folding), ends[key])
            for key in changed
        ]
        for write, stored in zip(writes, self._store.commit(writes, before, after), strict=True):
            if stored.oversized:
                self.counts.oversized += not write.read.oversized
                self._cache.forget(write.user)
            else:
                self._cache.put(write.user, (stored, entries[write.user]))

    def _held(self, keys: Collection[str]) -> dict[str, Held]:
        held = {key: found for key in keys if (found := self._cache.get(key)) is not None}
        for key, stored in self._store.read([key for key in keys if key not in held]).items():
            entry = None if stored.row is None else identity.decode(key, stored.row, folding)
            held[key] = (stored, entry)
        return held


def _ends(batch: Subjects, places: pa.Table, after: Positions) -> dict[str, Positions]:
    """The keys that a batch is about, and for each `after` of the partitions it has events in."""
    ends: dict[str, Positions] = {}
    for partition, end in after.items():
        within = pc.equal(places["log_partition"], partition)
        subjects = batch.events["user_id"].filter(within).unique().to_pylist()
        alone = {partition: end}
        for key in map(identity.key_of, subjects):
            ends[key] = {**ends[key], **alone} if key in ends else alone
    for login in batch.logins:
        key = identity.visitor_key(login.anonymous_id)
        ends[key] = {**ends.get(key, {}), **ends[login.user_id]}
    return ends


def _new(batch: Subjects, places: pa.Table, stored_in: Mapping[str, Positions]) -> Sequence[bool]:
    """Which events are not in the rows of their keys."""
    return [
        offset >= stored_in.get(identity.key_of(subject), {}).get(partition, 0)
        for subject, partition, offset in zip(
            batch.events["user_id"].to_pylist(),
            places["log_partition"].to_pylist(),
            places["log_offset"].to_pylist(),
            strict=True,
        )
    ]


class _Cache:
    """The entries written last, as many as fit. One goes at a time: many hold up a batch."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Held] = OrderedDict()
        self._bytes = 0

    def get(self, key: str) -> Held | None:
        return self._entries.get(key)

    def put(self, key: str, held: Held) -> None:
        self.forget(key)
        self._entries[key] = held
        self._bytes += _size(held)
        while self._bytes > CACHED:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= _size(oldest)

    def forget(self, key: str) -> None:
        held = self._entries.pop(key, None)
        if held is not None:
            self._bytes -= _size(held)

    def clear(self) -> None:
        self._entries.clear()
        self._bytes = 0


def _size(held: Held) -> int:
    return len(held[0].row or b"")


def _not_below(events: pa.Table, positions: Positions) -> pa.Table:
    """The events that are not below the position of their partition."""
    below = [
        pc.and_(
            pc.equal(events["log_partition"], partition), pc.less(events["log_offset"], position)
        )
        for partition, position in positions.items()
    ]
    mask = reduce(pc.or_, below) if below else None
    return events if mask is None or not pc.any(mask).as_py() else events.filter(pc.invert(mask))


def create_if_missing(store: Store, declaration: Declaration) -> None:
    """Make an empty store where there is none, so that live profiles need no batch run first.

    Several processes may come upon the missing store at once; one of them makes it.

    Raises:
        ProfilehouseError: if there is one of another declaration, or it cannot be made.
    """
    if not store.exists():
        meta = Meta(
            version=declaration.version,
            fingerprint=declaration.fingerprint,
            newest_day=None,
            deliveries={},
        )
        try:
            with closing(store.stage([], meta)) as staged:
                if not store.exists():
                    staged.flip()
            store.close()
        except ProfilehouseError:
            time.sleep(_SECONDS_TO_CREATE)
            if not store.exists():
                raise
