"""The embedded profile store: LMDB, an environment for each generation and a pointer to one.

Belongs here: generations, their files and what a crash may leave of them. Does not belong here:
what a row means.

    FOLDER/current          number of the current generation, replaced by a rename
    FOLDER/generation-7/    its LMDB environment, with the databases `rows` and `about`
    FOLDER/rebuild.lock     held by the process that rebuilds

A value of `rows` is the row's revision, whether it is oversized, and the row. `about` holds the
generation's Meta and the topic id with the positions. Commits are synced to disk.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Self, TextIO
from weakref import WeakValueDictionary

import lmdb
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
from profilehouse.storage import sync_folder

ROW_LIMIT = 1024 * 1024
"""Bytes. LMDB could hold more; a row of this size takes milliseconds to fold and write."""

_PRIVATE = 0o700
_MAP_SIZE = 256 * 2**30
"""The most an environment can grow to. Address space only: the file is as large as its content."""
_ROWS_PER_COMMIT = 10_000
_SECONDS_TO_CLOSE = 5
_ROWS, _ABOUT = b"rows", b"about"
_META, _LOG = b"meta", b"log"
_HEADER = struct.Struct(">Q?")


class _Log(msgspec.Struct, frozen=True):
    topic_id: str | None
    positions: dict[int, int]


class LmdbStore:
    """The Store in a folder. Readers and writers may be in any number of processes of one machine.

    A reader keeps its generation until it is closed or refreshed, whatever is rebuilt meanwhile.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Open nothing yet.

        Args:
            folder: where the generations are; made by the first rebuild.
            fingerprint: of the declaration in force; a store folded by another is refused.
        """
        self._folder = folder
        self._fingerprint = fingerprint
        self._open: _Generation | None = None
        self._topic_id: str | None = None
        self._rebuilding: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the generation; the next call opens what is current then."""
        self._open = None
        self._topic_id = None
        if self._rebuilding is not None:
            self._rebuilding.close()
            self._rebuilding = None

    def exists(self) -> bool:
        """See Store."""
        return self._current() is not None

    @property
    def generation(self) -> int:
        """Number of the generation at hand."""
        return self._at_hand().number

    @property
    def meta(self) -> Meta:
        """What the generation at hand was rebuilt from."""
        return self._at_hand().meta

    def refresh(self) -> int:
        """See Store."""
        if self._rebuilding is None and (
            self._open is None or self._open.number != self._current()
        ):
            self._open = self._open_current()
        return self.generation

    def get(self, user_id: str) -> bytes | None:
        """See Store."""
        return self.get_many([user_id]).get(user_id)

    def get_many(self, user_ids: Iterable[str]) -> dict[str, bytes]:
        """See Store."""
        rows: dict[str, bytes] = {}
        generation = self._at_hand()
        with generation.env.begin(generation.rows) as transaction:
            for user_id in user_ids:
                encoded = user_id.encode(errors="replace")
                value = transaction.get(encoded) if 0 < len(encoded) <= MAX_KEY else None
                if value and len(value) > _HEADER.size:
                    rows[user_id] = value[_HEADER.size :]
        return rows

    def items(self) -> Iterator[tuple[str, bytes]]:
        """See Store."""
        generation = self._at_hand()
        with generation.env.begin(generation.rows) as transaction:
            for encoded, value in transaction.cursor():
                if len(value) > _HEADER.size:
                    yield encoded.decode(), value[_HEADER.size :]

    def __len__(self) -> int:
        """See Store."""
        generation = self._at_hand()
        with generation.env.begin(generation.rows, buffers=True) as transaction:
            values = transaction.cursor().iternext(keys=False)
            return sum(len(value) > _HEADER.size for value in values)

    def oversized(self) -> Iterator[str]:
        """See Store."""
        generation = self._at_hand()
        with generation.env.begin(generation.rows, buffers=True) as transaction:
            for encoded, value in transaction.cursor():
                if _HEADER.unpack_from(value)[1]:
                    yield str(encoded, "utf-8")

    @contextmanager
    def cut(self) -> Iterator[Cut]:
        """See Store."""
        self.refresh()
        generation = self._at_hand()
        with generation.env.begin(generation.rows) as transaction:
            log = _log(transaction, generation.about)

            def items() -> Iterator[tuple[str, Stored]]:
                for encoded, value in transaction.cursor():
                    yield encoded.decode(), _decoded(value)

            def read(user_ids: Sequence[str]) -> dict[str, Stored]:
                values = ((user_id, transaction.get(key(user_id))) for user_id in user_ids)
                return {user_id: _decoded(value) for user_id, value in values if value is not None}

            yield Cut(generation.meta, log.topic_id, log.positions, items, read)

    def resume(self, topic_id: str) -> dict[int, int]:
        """See Store."""
        self.refresh()
        generation = self._at_hand()
        with self._explained(), generation.env.begin(generation.about, write=True) as transaction:
            log = _log(transaction)
            check_topic(str(self._folder), log.topic_id, topic_id)
            if log.topic_id is None:
                log = _Log(topic_id, log.positions)
                transaction.put(_LOG, msgspec.json.encode(log))
        generation.env.reader_check()
        self._topic_id = topic_id
        return log.positions

    def read(self, user_ids: Sequence[str]) -> dict[str, Stored]:
        """See Store."""
        generation = self._at_hand()
        keys = {key(user_id): user_id for user_id in sorted(user_ids)}
        stored = dict.fromkeys(user_ids, Stored())
        with generation.env.begin(generation.rows) as transaction, transaction.cursor() as cursor:
            for encoded, value in cursor.getmulti(list(keys)):
                stored[keys[encoded]] = _decoded(value)
        return stored

    def commit(self, writes: Sequence[Write], before: Positions, after: Positions) -> list[Stored]:
        """See Store."""
        generation = self._at_hand()
        if self._topic_id is None:
            raise ValueError("resume before the first commit")
        stored = outcomes(writes, ROW_LIMIT, positions=False)
        users = [key(write.user) for write in writes]
        revisions = {user: write.read.revision for user, write in zip(users, writes, strict=True)}
        rows = sorted((user, _encoded(one)) for user, one in zip(users, stored, strict=True))
        if (self._current() or 0) > generation.number:
            raise StaleWriter(f"{self._folder}: generation {generation.number} was replaced")
        with self._explained(), generation.env.begin(generation.rows, write=True) as transaction:
            log = _log(transaction, generation.about)
            if log.topic_id != self._topic_id or any(
                log.positions.get(partition) != before.get(partition)
                for partition in {*before, *after}
            ):
                raise StaleWriter(
                    f"{self._folder}: a batch that starts from {dict(before)} comes too late, the"
                    f" profiles are at {log.positions}"
                )
            with transaction.cursor() as cursor:
                present = {
                    encoded: _HEADER.unpack_from(value)[0]
                    for encoded, value in cursor.getmulti([user for user, _ in rows])
                }
                if any(present.get(user, 0) != revision for user, revision in revisions.items()):
                    raise StaleWriter(f"{self._folder}: rows were written by another writer")
                cursor.putmulti(rows)
            moved = _Log(self._topic_id, {**log.positions, **after})
            transaction.put(_LOG, msgspec.json.encode(moved), db=generation.about)
        return stored

    def stage(
        self,
        rows: Iterable[tuple[str, bytes]],
        meta: Meta,
        topic_id: str | None = None,
        positions: Positions | None = None,
    ) -> LmdbStore:
        """See Store. The folder stays locked until the staged store is flipped or closed."""
        self._make_folder()
        staged = LmdbStore(self._folder, self._fingerprint)
        staged._rebuilding = self._locked()
        try:
            current = self._current()
            self._remove_all_but(current)
            number = 1 if current is None else current + 1
            log = _Log(topic_id, dict(positions or {}))
            staged._open = _create(self._path(number), number, rows, meta, log)
        except BaseException:
            staged.close()
            raise
        return staged

    def flip(self) -> None:
        """See Store. Readers of the old generation go on undisturbed."""
        if self._rebuilding is None or self._open is None:
            raise ValueError("only a staged store can be flipped")
        self._point_to(self._open.number)
        self._remove_all_but(self._open.number)
        self._rebuilding.close()
        self._rebuilding = None

    def rebuild(
        self,
        rows: Iterable[tuple[str, bytes]],
        meta: Meta,
        topic_id: str | None = None,
        positions: Positions | None = None,
    ) -> int:
        """See Store."""
        with closing(self.stage(rows, meta, topic_id, positions)) as staged:
            staged.flip()
            number = staged.generation
        self.close()
        return number

    def copy_to(self, folder: Path) -> None:
        """Copy the generation at hand into a new folder, as of one moment, while others write."""
        generation = self._at_hand()
        copy = LmdbStore(folder, self._fingerprint)
        copy._make_folder()
        path = copy._path(generation.number)
        path.mkdir(mode=_PRIVATE)
        with self._explained():
            generation.env.copy(str(path), compact=True)
        copy._point_to(generation.number)

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            self._folder.chmod(_PRIVATE)
        except OSError as error:
            raise ProfilehouseError(
                f"{self._folder}: cannot make the folder of the profile store ({error});"
                " set PROFILEHOUSE_PROFILES to one that may be written"
            ) from error

    def _at_hand(self) -> _Generation:
        if self._open is None:
            self._open = self._open_current()
        return self._open

    def _open_current(self) -> _Generation:
        number = self._current()
        if number is None:
            raise ProfilehouseError(
                f"{self._folder}: no profile store here; materialize profiles/profile_store"
            )
        try:
            generation = _shared(self._path(number), number)
        except (OSError, lmdb.Error, msgspec.DecodeError) as error:
            if self._current() != number:
                return self._open_current()
            raise ProfilehouseError(
                f"{self._folder}: cannot open generation {number} of the profile store"
                f" ({error}); materialize profiles/profile_store again"
            ) from error
        if generation.meta.fingerprint != self._fingerprint:
            raise ProfilehouseError(
                f"{self._folder}: the profile store was folded by another declaration (version"
                f" {generation.meta.version}, features since changed); materialize"
                " profiles/profile_store again"
            )
        return generation

    def _current(self) -> int | None:
        pointer = self._folder / "current"
        try:
            return int(pointer.read_text("ascii"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ProfilehouseError(
                f"{pointer}: cannot read the number of the current generation ({error});"
                " remove the file and materialize profiles/profile_store again"
            ) from error

    def _point_to(self, number: int) -> None:
        written = self._folder / "current.new"
        with written.open("w", encoding="ascii") as file:
            file.write(f"{number}\n")
            file.flush()
            os.fsync(file.fileno())
        written.replace(self._folder / "current")
        sync_folder(self._folder)

    def _path(self, number: int) -> Path:
        return self._folder / f"generation-{number}"

    def _remove_all_but(self, number: int | None) -> None:
        """Remove other generations; renamed first, so that nobody opens one half removed."""
        for path in self._folder.glob("generation-*"):
            if number is None or path != self._path(number):
                path.rename(path.with_name(f"removed-{path.name}"))
        for path in self._folder.glob("removed-generation-*"):
            shutil.rmtree(path)

    def _locked(self) -> TextIO:
        """The lock file, locked until it is closed."""
        lock = (self._folder / "rebuild.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise ProfilehouseError(
                f"{self._folder}: another process is rebuilding the profiles; wait for it"
            ) from error
        return lock

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise ProfilehouseError(
                f"{self._folder}: cannot write the profile store ({error}); see to the disk's space"
            ) from error


@dataclass(frozen=True, weakref_slot=True, slots=True)
class _Generation:
    """An open generation; LMDB closes it when nobody holds it any more."""

    env: lmdb.Environment
    rows: Any
    about: Any
    number: int
    meta: Meta

    @classmethod
    def open(cls, path: Path, number: int) -> _Generation:
        env = lmdb.open(str(path), max_dbs=2, map_size=_MAP_SIZE, create=False, mode=0o600)
        rows, about = (env.open_db(name, create=False) for name in (_ROWS, _ABOUT))
        with env.begin(about) as transaction:
            meta = msgspec.json.decode(transaction.get(_META, b""), type=Meta)
        return cls(env, rows, about, number, meta)


_open_generations: WeakValueDictionary[tuple[int, int], _Generation] = WeakValueDictionary()
_opening = Lock()


def _shared(path: Path, number: int) -> _Generation:
    """The process's one environment of a generation: LMDB forbids to open a file twice."""
    with _opening:
        file = (path / "data.mdb").stat()
        generation = _open_generations.get((file.st_dev, file.st_ino))
        if generation is None:
            generation = _opened(path, number)
            _open_generations[file.st_dev, file.st_ino] = generation
        return generation


def _opened(path: Path, number: int) -> _Generation:
    """A generation opened; another thread that lets go of it may need a moment to close it."""
    deadline = time.monotonic() + _SECONDS_TO_CLOSE
    while True:
        try:
            return _Generation.open(path, number)
        except lmdb.Error as error:
            if "already open in this process" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.001)


def _create(
    path: Path, number: int, rows: Iterable[tuple[str, bytes]], meta: Meta, log: _Log
) -> _Generation:
    path.mkdir(mode=_PRIVATE)
    with lmdb.open(str(path), max_dbs=2, map_size=_MAP_SIZE, mode=0o600) as env:
        database, about = env.open_db(_ROWS), env.open_db(_ABOUT)
        encoded = ((key(user), _encoded(initial(row, ROW_LIMIT))) for user, row in rows)
        while batch := list(islice(encoded, _ROWS_PER_COMMIT)):
            with env.begin(database, write=True) as transaction, transaction.cursor() as cursor:
                cursor.putmulti(batch)
        with env.begin(about, write=True) as transaction:
            transaction.put(_META, msgspec.json.encode(meta))
            transaction.put(_LOG, msgspec.json.encode(log))
    sync_folder(path)
    return _shared(path, number)


def _log(transaction: lmdb.Transaction, about: Any = None) -> _Log:
    data = transaction.get(_LOG, b"", db=about)
    return msgspec.json.decode(data, type=_Log)


def _encoded(stored: Stored) -> bytes:
    return _HEADER.pack(stored.revision, stored.oversized) + (stored.row or b"")


def _decoded(value: bytes) -> Stored:
    revision, oversized = _HEADER.unpack_from(value)
    return Stored(value[_HEADER.size :] or None, {}, revision, oversized)
