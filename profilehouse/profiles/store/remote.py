"""The profile store on a database server: the order of writes that makes them exactly-once.

Belongs here: generations and commits, in terms of what a server can do to single rows. Does not
belong here: a server's own language (cassandra.py, dynamodb.py).

A generation has a table of its own for its rows, so that removing it costs nothing, and a control
row with its Meta, its topic id and its positions. One more control row, the pointer, tells the
current generation. Every write to a control row or to a row of a serving generation is conditional.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, Self, TypeVar

import msgspec

from profilehouse.errors import ProfilehouseError, StaleWriter
from profilehouse.profiles.store import (
    MAX_KEY,
    Cut,
    Meta,
    Positions,
    Stored,
    Write,
    check_topic,
    initial,
    key,
    outcomes,
)

T = TypeVar("T")


class Pointer(msgspec.Struct, frozen=True):
    """The current generation, None before the first, and the number given out last."""

    current: int | None = None
    last: int = 0


class Control(msgspec.Struct, frozen=True):
    """What is known of a generation beside its rows."""

    meta: Meta
    topic_id: str | None
    positions: dict[int, int]


class Server(Protocol):
    """What Cassandra and DynamoDB do alike. Each call raises ProfilehouseError where it cannot.

    Connections are made when first used. Methods without a generation are about the control table,
    which is made when first written; where it is missing there is nothing in it.
    """

    url: str
    row_limit: int
    """Bytes of the largest row."""

    def close(self) -> None:
        """Close connections; the next call opens them anew."""

    def pointer(self) -> Pointer:
        """The newest acknowledged pointer; one that points nowhere where there is none."""

    def move_pointer(self, before: Pointer, after: Pointer) -> bool:
        """Replace the pointer on condition of what it was; False where it was something else."""

    def control(self, generation: int) -> Control | None:
        """The control row of a generation as last acknowledged."""

    def claim(self, generation: int, topic_id: str) -> None:
        """Set the topic id where there is none."""

    def advance(self, generation: int, topic_id: str, before: Positions, after: Positions) -> bool:
        """Move positions on condition of the topic id and of what each was; False where not so."""

    def generations(self) -> list[int]:
        """The generations that have a table of rows."""

    def create(self, generation: int, control: Control) -> None:
        """Make an empty table of rows and the control row."""

    def drop(self, generation: int) -> None:
        """Remove the control row, then the table of rows, where they are there."""

    def fill(self, generation: int, rows: Iterable[tuple[str, Stored]]) -> None:
        """Write rows to a new table, unconditionally."""

    def load(self, generation: int, user_ids: Sequence[str], *, newest: bool) -> dict[str, Stored]:
        """The rows that are there; `newest`: including all acknowledged writes."""

    def put(self, generation: int, rows: Sequence[tuple[str, int, Stored]]) -> int:
        """Write each (user_id, revision it must have, row); 0 as the revision: no such row.

        Returns once all are answered.

        Returns:
            How many had another revision and were left as they are.
        """

    def scan(self, generation: int) -> Iterator[tuple[str, Stored]]:
        """All rows, in any order."""


class RemoteStore:
    """The Store on a server.

    A reader keeps its generation until it is closed or refreshed, or until the generation is gone.
    """

    def __init__(self, server: Server, fingerprint: str) -> None:
        """Open nothing yet.

        Args:
            server: where the tables are.
            fingerprint: of the declaration in force; a store folded by another is refused.
        """
        self._server = server
        self._fingerprint = fingerprint
        self._open: tuple[int, Meta] | None = None
        self._topic_id: str | None = None
        self._staged = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """See Store."""
        self._open = None
        self._topic_id = None
        self._staged = False
        self._server.close()

    def exists(self) -> bool:
        """See Store."""
        return self._server.pointer().current is not None

    @property
    def generation(self) -> int:
        """Number of the generation at hand."""
        return self._at_hand()[0]

    @property
    def meta(self) -> Meta:
        """What the generation at hand was rebuilt from."""
        return self._at_hand()[1]

    def refresh(self) -> int:
        """See Store."""
        if not self._staged:
            current = self._server.pointer().current
            if self._open is None or self._open[0] != current:
                self._open = self._open_current()
        return self.generation

    def get(self, user_id: str) -> bytes | None:
        """See Store."""
        return self.get_many([user_id]).get(user_id)

    def get_many(self, user_ids: Iterable[str]) -> dict[str, bytes]:
        """See Store."""
        possible = [user for user in dict.fromkeys(user_ids) if 0 < len(user.encode()) <= MAX_KEY]
        found = self._following(lambda number: self._server.load(number, possible, newest=False))
        return {user: stored.row for user, stored in found.items() if stored.row}

    def items(self) -> Iterator[tuple[str, bytes]]:
        """See Store. Not as of one moment, and it fails where the generation goes meanwhile."""
        for user, stored in self._server.scan(self.generation):
            if stored.row:
                yield user, stored.row

    def __len__(self) -> int:
        """See Store."""
        return sum(1 for _ in self.items())

    def oversized(self) -> Iterator[str]:
        """See Store."""
        return (user for user, stored in self._server.scan(self.generation) if stored.oversized)

    @contextmanager
    def cut(self) -> Iterator[Cut]:
        """See Store."""
        number = self.refresh()
        control = self._server.control(number)
        if control is None:
            raise StaleWriter(f"{self._server.url}: generation {number} was replaced")
        try:
            yield Cut(
                control.meta,
                control.topic_id,
                control.positions,
                lambda: self._server.scan(number),
                lambda user_ids: self._server.load(number, user_ids, newest=True),
            )
        except ProfilehouseError as error:
            raise self._because(error, number) from error

    def resume(self, topic_id: str) -> dict[int, int]:
        """See Store."""
        number = self.refresh()
        control = self._server.control(number)
        if control is not None and control.topic_id is None:
            self._server.claim(number, topic_id)
            control = self._server.control(number)
        if control is None:
            raise StaleWriter(f"{self._server.url}: generation {number} was replaced")
        check_topic(self._server.url, control.topic_id, topic_id)
        self._topic_id = topic_id
        return control.positions

    def read(self, user_ids: Sequence[str]) -> dict[str, Stored]:
        """See Store."""
        for user_id in user_ids:
            key(user_id)
        number = self.generation
        try:
            found = self._server.load(number, list(dict.fromkeys(user_ids)), newest=True)
        except ProfilehouseError as error:
            raise self._because(error, number) from error
        return {user_id: found.get(user_id, Stored()) for user_id in user_ids}

    def commit(self, writes: Sequence[Write], before: Positions, after: Positions) -> list[Stored]:
        """See Store."""
        if self._topic_id is None:
            raise ValueError("resume before the first commit")
        url, number = self._server.url, self.generation
        for write in writes:
            key(write.user)
        stored = outcomes(writes, self._server.row_limit)
        if (self._server.pointer().current or 0) > number:
            raise StaleWriter(f"{url}: generation {number} was replaced")
        rows = [(w.user, w.read.revision, s) for w, s in zip(writes, stored, strict=True)]
        try:
            lost = self._server.put(number, rows)
            moved = not lost and (
                not after or self._server.advance(number, self._topic_id, before, after)
            )
        except ProfilehouseError as error:
            raise self._because(error, number) from error
        if lost:
            raise StaleWriter(f"{url}: {lost} of {len(rows)} rows were written by another writer")
        if not moved:
            raise StaleWriter(f"{url}: a batch that starts from {dict(before)} comes too late")
        return stored

    def stage(
        self,
        rows: Iterable[tuple[str, bytes]],
        meta: Meta,
        topic_id: str | None = None,
        positions: Positions | None = None,
    ) -> RemoteStore:
        """See Store. Of two that are staged at once, the later one can be flipped.

        The staged store shares this one's connections.
        """
        server = self._server
        pointer = server.pointer()
        number = pointer.last + 1
        if not server.move_pointer(pointer, Pointer(pointer.current, number)):
            raise ProfilehouseError(f"{server.url}: another process is rebuilding; wait for it")
        for other in server.generations():
            if other not in (pointer.current, number):
                server.drop(other)
        server.create(number, Control(meta, topic_id, dict(positions or {})))
        server.fill(
            number, ((user, initial(row, server.row_limit)) for user, row in rows if key(user))
        )
        staged = RemoteStore(server, self._fingerprint)
        staged._open = (number, meta)
        staged._staged = True
        return staged

    def flip(self) -> None:
        """See Store. Readers of the old generation go over to the new one."""
        if not self._staged or self._open is None:
            raise ValueError("only a staged store can be flipped")
        number = self._open[0]
        pointer = self._server.pointer()
        if pointer.last != number or not self._server.move_pointer(
            pointer, Pointer(number, number)
        ):
            raise ProfilehouseError(
                f"{self._server.url}: another process has begun to rebuild the profiles; wait for"
                " it"
            )
        self._staged = False
        for other in self._server.generations():
            if other < number:
                self._server.drop(other)

    def rebuild(
        self,
        rows: Iterable[tuple[str, bytes]],
        meta: Meta,
        topic_id: str | None = None,
        positions: Positions | None = None,
    ) -> int:
        """See Store."""
        staged = self.stage(rows, meta, topic_id, positions)
        staged.flip()
        self._open = self._topic_id = None
        return staged.generation

    def _at_hand(self) -> tuple[int, Meta]:
        if self._open is None:
            self._open = self._open_current()
        return self._open

    def _open_current(self) -> tuple[int, Meta]:
        url = self._server.url
        number = self._server.pointer().current
        if number is None:
            raise ProfilehouseError(
                f"{url}: no profile store here; materialize profiles/profile_store"
            )
        control = self._server.control(number)
        if control is None:
            if self._server.pointer().current != number:
                return self._open_current()
            raise ProfilehouseError(
                f"{url}: generation {number} of the profile store is not there; rebuild the"
                " profiles"
            )
        if control.meta.fingerprint != self._fingerprint:
            raise ProfilehouseError(
                f"{url}: the profile store was folded by another declaration (version"
                f" {control.meta.version}, features since changed); materialize"
                " profiles/profile_store again"
            )
        return number, control.meta

    def _following(self, read: Callable[[int], T]) -> T:
        """What is read at the generation at hand, or at the current one if that is gone."""
        number = self.generation
        try:
            return read(number)
        except ProfilehouseError:
            if self._server.control(number) is not None:
                raise
        return read(self.refresh())

    def _because(self, error: ProfilehouseError, number: int) -> ProfilehouseError:
        """Why a writer's request failed: the error, or that its generation is gone."""
        if self._server.control(number) is not None:
            return error
        return StaleWriter(f"{self._server.url}: generation {number} was replaced")
