"""Profile stores: a row for each user, in generations, written with the positions it comes from.

Belongs here: what every store promises, and opening the one a URL names. Does not belong here:
what a row means (fold.py, reading.py) or following the log (stream/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import urlsplit

import msgspec

from profilehouse.errors import ForeignTopic, ProfilehouseError

if TYPE_CHECKING:
    from boto3.session import Session

MAX_KEY = 511
"""Bytes of the longest user_id a store takes: the longest key of LMDB."""

KEPT = timedelta(days=730)
"""A row that nobody wrote for so long may vanish from Cassandra and DynamoDB.

LMDB keeps rows until the rebuild that no longer holds the user.
"""

Positions = Mapping[int, int]
"""Partition -> offset of the next event, in the log's one topic."""


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What a generation was folded from when it was rebuilt.

    Attributes:
        version: of the declaration.
        fingerprint: of what the declaration makes a row hold.
        newest_day: UTC day of the newest event; None where there is no profile.
        deliveries: fingerprint of each delivery folded, by a name the caller chooses.
    """

    version: str
    fingerprint: str
    newest_day: date | None
    deliveries: Mapping[str, str]


class Stored(msgspec.Struct, frozen=True, gc=False):
    """What a store holds of a user.

    Attributes:
        row: the encoded row; None where there is none or it was erased.
        positions: the offsets below which the partition's events of this user are in the row. A
            partition it does not name has none but those below the store's resume position.
        revision: counts the writes of this row, erasures too; 0 where there was none.
        oversized: the row outgrew the engine's limit and stays as it was before that.
    """

    row: bytes | None = None
    positions: Positions = {}
    revision: int = 0
    oversized: bool = False


class Write(msgspec.Struct, frozen=True, gc=False):
    """One user's part of a commit.

    Attributes:
        user: 1 to MAX_KEY bytes of UTF-8.
        read: what the new row was folded from.
        row: the new row; None erases it.
        positions: `after` of the commit, of the partitions whose events are new in the row.
    """

    user: str
    read: Stored
    row: bytes | None
    positions: Positions = {}

    def outcome(self, limit: int, *, positions: bool = True) -> Stored:
        """What is stored after this write.

        Args:
            limit: the most bytes that the engine's rows have.
            positions: whether the engine's rows have positions of their own.
        """
        read = self.read
        oversized = self.row is not None and (read.oversized or len(self.row) > limit)
        return Stored(
            read.row if oversized else self.row,
            self._positions() if positions else {},
            read.revision + 1,
            oversized,
        )

    def _positions(self) -> Positions:
        before = self.read.positions
        return {**before, **{p: max(o, before.get(p, 0)) for p, o in self.positions.items()}}


@dataclass(frozen=True)
class Cut:
    """What a store holds up to some positions, to be compared with what others made of the log.

    Attributes:
        meta: what the generation was rebuilt from.
        topic_id: of the topic the positions are in; None where no event of a log is in the rows.
        positions: below which all events are in the rows.
        items: gives (user_id, what is stored) of every user who was ever written.
        read: gives what is stored of some users, those who were ever written.
    """

    meta: Meta
    topic_id: str | None
    positions: Positions
    items: Callable[[], Iterator[tuple[str, Stored]]]
    read: Callable[[Sequence[str]], dict[str, Stored]]

    def moved_on(self, stored: Stored) -> bool:
        """Whether a row may hold events that are not below the positions."""
        return any(o > self.positions.get(p, 0) for p, o in stored.positions.items())


class Store(Protocol):
    """Rows by user, in generations of which one is current.

    An object stays with the generation that was current at its first call, until `refresh`,
    `resume` or `close`. Where the old rows are gone by then (Cassandra, DynamoDB) reading goes over
    to the new generation by itself. Once a call has returned, several threads may read; a writer is
    one thread.

    **Writing exactly once.** A writer repeats: `read` the users of a batch of events, fold, and
    `commit` with the positions the batch starts from and ends at. Every commit is compared with
    what is stored, so of two writers of a partition one loses with StaleWriter. It then forgets all
    rows it holds in memory, calls `resume` and goes on from the positions that gives, or stops
    where the partition is no longer its own. It does so after any other error of a commit too: that
    commit may have been stored.

    - LMDB: rows and positions are one transaction. After a crash or a lost commit nothing of the
      batch is stored, and rows carry no positions of their own.
    - Cassandra and DynamoDB: rows are written one by one, each on condition of its revision; the
      resume positions follow once all are acknowledged. After a crash or a lost commit some rows of
      the batch may be stored while the resume positions still lie before it. So the writer **skips
      an event whose offset is below `Stored.positions[partition]` of its user**: it is in the row.
      A zombie may still store a row that nobody else touched; it is skipped likewise, so nothing is
      counted twice. Rows it lost stay the winner's.

    Skip events in that way with every engine: in LMDB there is nothing to skip.

    **Large rows.** A row above the engine's limit is not stored. What was stored before stays, and
    is served, with the mark `oversized`; later rows of that user are not stored either, whatever
    their size. `commit` returns the mark, `oversized` lists the users. Nothing else stops, and
    nothing is trimmed: the lake holds the events, and a rebuild tries anew.
    """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None:
        """Let go of the generation and of connections; the next call opens them anew."""

    def exists(self) -> bool:
        """Whether there is a current generation."""

    @property
    def generation(self) -> int:
        """Number of the generation at hand."""

    @property
    def meta(self) -> Meta:
        """What the generation at hand was rebuilt from."""

    def refresh(self) -> int:
        """Go over to the current generation; its number. Readers do so every now and then.

        Raises:
            ProfilehouseError: where there is no store, or it was folded by another declaration.
        """

    def get(self, user_id: str) -> bytes | None:
        """The row of a user, None where there is none."""

    def get_many(self, user_ids: Iterable[str]) -> dict[str, bytes]:
        """The rows of those users who have one, by user_id."""

    def items(self) -> Iterator[tuple[str, bytes]]:
        """(user_id, row) of every user. LMDB: ordered by user_id, as of one moment, which keeps
        the space of rows written meanwhile from being used again."""

    def __len__(self) -> int:
        """The number of users with a row; reads them all."""

    def oversized(self) -> Iterator[str]:
        """The users whose row outgrew the limit; reads all rows."""

    def cut(self) -> AbstractContextManager[Cut]:
        """The current generation as of one moment, while others write; use it inside the `with`.

        - LMDB: rows and positions are of that moment, and keep the space of rows written meanwhile
          from being used again.
        - Cassandra and DynamoDB: the positions are of that moment, the rows of when they are read.
          Those that were written meanwhile are told by `Cut.moved_on`.

        Raises:
            StaleWriter: if the generation is replaced and gone meanwhile.
        """

    def resume(self, topic_id: str) -> dict[int, int]:
        """Begin to write, at the current generation: the positions to read the log from.

        Args:
            topic_id: of the topic the positions are in; the first writer's is kept.

        Returns:
            By partition; one that is missing is read from its beginning.

        Raises:
            ProfilehouseError: if the store was written from a topic with another id.
        """

    def read(self, user_ids: Sequence[str]) -> dict[str, Stored]:
        """What is stored of each of those users, whether there is anything or not.

        Raises:
            StaleWriter: if the generation is gone.
            ProfilehouseError: if a user_id cannot be a key.
        """

    def commit(self, writes: Sequence[Write], before: Positions, after: Positions) -> list[Stored]:
        """Write the rows of a batch and move the positions of its partitions.

        Args:
            writes: one for each user at most.
            before: the positions the batch starts from, as they are stored; a partition that
                `resume` did not give is left out.
            after: the positions behind the batch; none where no events are in it, as in an erasure.

        Returns:
            What is stored now, a Stored for each write: what the next batch may fold onto.

        Raises:
            StaleWriter: if rows or positions are not as they were read, or the generation is no
                longer current.
            ProfilehouseError: if a user_id cannot be a key, or the store cannot be written.
        """

    def stage(
        self,
        rows: Iterable[tuple[str, bytes]],
        meta: Meta,
        topic_id: str | None = None,
        positions: Positions | None = None,
    ) -> Self:
        """Write a new generation beside the current one, which serves on.

        Args:
            rows: of all users, each once.
            meta: what they were folded from.
            topic_id: of the topic whose events are in the rows; None where none is.
            positions: up to which they are.

        Returns:
            A store at the new generation: `resume` and `commit` let it catch up with the log, then
            `flip` makes it current. Closed without that, it is left over for the next rebuild to
            remove.

        Raises:
            ProfilehouseError: if another process is rebuilding, or a user_id cannot be a key.
        """

    def flip(self) -> None:
        """Make a staged generation the current one, in one step, and remove the others.

        Writers of the old one lose at their next commit. Their `resume` gives the positions that
        the new one holds.
        """

    def rebuild(
        self,
        rows: Iterable[tuple[str, bytes]],
        meta: Meta,
        topic_id: str | None = None,
        positions: Positions | None = None,
    ) -> int:
        """`stage` and `flip`: write a new generation and make it current; its number.

        A crash before the flip leaves the old one current.
        """


def open_store(url: str, fingerprint: str, session: Session | None = None) -> Store:
    """The store that the setting `profiles` names; nothing is opened before the first call.

    Args:
        url: a valid value of the setting.
        fingerprint: of the declaration in force; a store folded by another is refused.
        session: AWS credentials and profile for DynamoDB; by default boto3's own rules.
    """
    parts = urlsplit(url)
    if parts.scheme == "cassandra":
        from profilehouse.profiles.store.cassandra import Cassandra  # noqa: PLC0415
        from profilehouse.profiles.store.remote import RemoteStore  # noqa: PLC0415

        return RemoteStore(Cassandra(url), fingerprint)
    if parts.scheme == "dynamodb":
        from profilehouse.profiles.store.dynamodb import DynamoDB  # noqa: PLC0415
        from profilehouse.profiles.store.remote import RemoteStore  # noqa: PLC0415

        return RemoteStore(DynamoDB(url, session), fingerprint)
    from profilehouse.profiles.store.lmdb import LmdbStore  # noqa: PLC0415

    return LmdbStore(Path(url.removeprefix("lmdb:")), fingerprint)


def outcomes(writes: Sequence[Write], limit: int, *, positions: bool = True) -> list[Stored]:
    """What is stored after each of the writes; see Write.outcome.

    Raises:
        ValueError: if a user is written twice.
    """
    if len({write.user for write in writes}) != len(writes):
        raise ValueError("a commit has one write for each user at most")
    return [write.outcome(limit, positions=positions) for write in writes]


def key(user_id: str) -> bytes:
    """A user_id as a store's key.

    Raises:
        ProfilehouseError: if it cannot be one.
    """
    encoded = user_id.encode()
    if not 0 < len(encoded) <= MAX_KEY:
        raise ProfilehouseError(
            f"user_id {encoded[:20]!r}... has {len(encoded)} bytes; a key of the profile store has"
            f" 1 to {MAX_KEY}: refuse such users where events are taken in"
        )
    return encoded


def initial(row: bytes, limit: int) -> Stored:
    """What a rebuild stores of a row."""
    return Write("", Stored(), row).outcome(limit)


def check_topic(where: str, stored: str | None, topic_id: str) -> None:
    """Refuse a log whose offsets are not those that the store's positions count.

    Raises:
        ProfilehouseError: if the topic ids differ.
    """
    if stored not in (None, topic_id):
        raise ForeignTopic(where, stored, topic_id, "rebuild the profiles from the lake")
