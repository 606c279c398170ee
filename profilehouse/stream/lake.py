"""The lake sink: gathers decoded batches and appends them to the lake every few seconds.

Belongs here: what waits for the lake, and the thread that writes it. Does not belong here: how a
table takes an append (lake/).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.events.web import DEAD_LETTERS, EVENTS
from profilehouse.lake import Lake
from profilehouse.lake.appending import check_topic
from profilehouse.stream.profiles import Part

EVENTS_PER_COMMIT = 250_000
"""Records that are written before their time has come."""

BUFFERED = 2 * EVENTS_PER_COMMIT
"""Records that may wait: more, and reading the log has to pause. Bounds the memory."""

TABLES = (EVENTS, DEAD_LETTERS)


class LakeSink:
    """Appends what it is given, from its own thread, each record once.

    Both tables move their positions together; where a crash comes between, the later one is told
    apart by its own position. After an error every call raises it: a new sink goes on from what is
    stored.
    """

    def __init__(self, lake: Lake, topic_id: str, seconds: float) -> None:
        """Start the thread.

        Args:
            lake: where to; used by the thread alone from here on.
            topic_id: of the log.
            seconds: between two commits, unless there is much to write.

        Raises:
            ProfilehouseError: if the lake holds positions of another topic.
        """
        self._lake = lake
        self._topic_id = topic_id
        self._seconds = seconds
        self._stored: dict[str, dict[int, int]] = {table: {} for table in TABLES}
        self._waiting: list[Part] = []
        self._writing: list[Part] = []
        self._error: BaseException | None = None
        self._closed = self._hurried = False
        self._changed = threading.Condition()
        for table in TABLES:
            check_topic(f"lake table {table}", lake.positions(table), topic_id)
        self._thread = threading.Thread(target=self._run, name="lake sink", daemon=True)
        self._thread.start()

    def begin(self, partitions: Collection[int]) -> dict[int, int | None]:
        """Take over partitions: the offset each is to be read from, None for its beginning."""
        for table in TABLES:
            held = self._lake.positions(table)
            check_topic(f"lake table {table}", held, self._topic_id)
            offsets = held.offsets
            with self._changed:
                for partition in partitions:
                    self._stored[table].pop(partition, None)
                    if partition in offsets:
                        self._stored[table][partition] = offsets[partition]
        return {p: self._begin(p) for p in partitions}

    def positions(self, table: str) -> dict[int, int]:
        """The positions of a table, as it holds them."""
        with self._changed:
            return dict(self._stored[table])

    @property
    def buffered(self) -> int:
        """Records that are not in the lake yet."""
        with self._changed:
            return sum(_records(part) for part in (*self._waiting, *self._writing))

    def add(self, parts: Sequence[Part]) -> None:
        """Hand over what follows what was handed over before.

        Raises:
            StaleWriter: if another writer has moved the positions.
            ProfilehouseError: if the lake cannot be written.
        """
        with self._changed:
            self._raise()
            self._waiting += parts
            if sum(map(_records, self._waiting)) >= EVENTS_PER_COMMIT:
                self._changed.notify_all()

    def flush(self) -> None:
        """Return once all that was handed over is in the lake; raises what `add` does."""
        with self._changed:
            while (self._waiting or self._writing) and self._error is None:
                self._hurried = True
                self._changed.notify_all()
                self._changed.wait(1)
            self._raise()

    def close(self) -> None:
        """End the thread; what is not in the lake yet stays in the log, and is read again."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join()

    def _begin(self, partition: int) -> int | None:
        offsets = [self._stored[table].get(partition) for table in TABLES]
        return None if None in offsets else min(o for o in offsets if o is not None)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._must_write, self._seconds)
                if self._closed:
                    return
                self._writing, self._waiting = self._waiting, []
                self._hurried = False
            try:
                for table in TABLES:
                    self._append(table, self._writing)
            except BaseException as error:  # told by the next call
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._writing = []
                self._changed.notify_all()

    def _must_write(self) -> bool:
        many = sum(map(_records, self._waiting)) >= EVENTS_PER_COMMIT
        return self._closed or self._hurried or many

    def _append(self, table: str, parts: Sequence[Part]) -> None:
        stored = self.positions(table)
        after = {part.partition: part.end for part in parts}
        after = {p: end for p, end in after.items() if end > stored.get(p, 0)}
        if not after:
            return
        before = {partition: stored[partition] for partition in after if partition in stored}
        rows = pa.concat_tables(_table(part, table, stored) for part in parts)
        self._lake.append(table, rows, topic_id=self._topic_id, before=before, after=after)
        with self._changed:
            self._stored[table] |= after


def _records(part: Part) -> int:
    return int(part.decoded.events.num_rows + part.decoded.dead.num_rows)


def _table(part: Part, table: str, stored: Mapping[int, int]) -> pa.Table:
    """The part's rows for a table, without those it has already."""
    rows = part.decoded.events if table == EVENTS else part.decoded.dead
    position = stored.get(part.partition, 0)
    if rows.num_rows == 0 or rows["log_offset"][0].as_py() >= position:
        return rows
    return rows.filter(pc.greater_equal(rows["log_offset"], position))
