"""The embedded profile store: LMDB, an environment for each generation and a pointer to one.

Belongs here: generations, their files and what a crash may leave of them. Does not belong here:
what a row means.

    FOLDER/current          number of the current generation, replaced by a rename
    FOLDER/generation-7/    its LMDB environment, with the databases `profiles` and `meta`
    FOLDER/rebuild.lock     held by the process that rebuilds
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self
from weakref import WeakValueDictionary

import lmdb
import msgspec

from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.store import Meta

_PRIVATE = 0o700
_FIRST_MAP_SIZE = 64 * 2**20
_ROWS_PER_COMMIT = 10_000
_PROFILES, _META = b"profiles", b"meta"


class LmdbStore:
    """Profiles by user_id, read from the generation that is current at the first read.

    A reader keeps its generation until it is closed, whatever is rebuilt meanwhile.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Open nothing yet.

        Args:
            folder: where the generations are; made by the first rebuild.
            fingerprint: of the declaration in force; a store folded by another is refused.
        """
        self._folder = folder
        self._fingerprint = fingerprint
        self._reader: _Reader | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the generation; the next read opens what is current then."""
        self._reader = None

    @property
    def generation(self) -> int:
        """Number of the generation being read."""
        return self._opened().generation

    @property
    def meta(self) -> Meta:
        """What the generation being read was folded from."""
        return self._opened().meta

    def get(self, user_id: str) -> bytes | None:
        """The row of a user, None where there is none."""
        reader = self._opened()
        try:
            with reader.env.begin(reader.profiles) as transaction:
                row: bytes | None = transaction.get(user_id.encode())
        except (lmdb.BadValsizeError, UnicodeEncodeError):
            return None  # no key of the store
        return row

    def items(self) -> Iterator[tuple[str, bytes]]:
        """(user_id, row) of every user, ordered by user_id, as of one moment."""
        reader = self._opened()
        with reader.env.begin(reader.profiles) as transaction:
            for key, row in transaction.cursor():
                yield key.decode(), row

    def __len__(self) -> int:
        """The number of users."""
        reader = self._opened()
        with reader.env.begin(reader.profiles) as transaction:
            users: int = transaction.stat(reader.profiles)["entries"]
        return users

    def rebuild(self, rows: Iterable[tuple[str, bytes]], meta: Meta) -> int:
        """Write a new generation, make it current in one step and remove the old one.

        Readers of the old generation go on undisturbed. A crash before the step leaves the old
        one current; what is left over is removed by the next rebuild. Written data is synced.

        Returns:
            The number of the new generation.

        Raises:
            ProfilehouseError: if another process is rebuilding, a user_id cannot be a key, or the
                folder cannot be written.
        """
        self._make_folder()
        with self._locked():
            current = self._current()
            self._remove_all_but(current)
            generation = 1 if current is None else current + 1
            _write(self._path(generation), rows, meta)
            self._point_to(generation)
            self.close()
            self._remove_all_but(generation)
        return generation

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            self._folder.chmod(_PRIVATE)
        except OSError as error:
            raise ProfilehouseError(
                f"{self._folder}: cannot make the folder of the profile store ({error});"
                " set PROFILEHOUSE_PROFILES to one that may be written"
            ) from error

    def _opened(self) -> _Reader:
        if self._reader is None:
            self._reader = self._open_current()
        return self._reader

    def _open_current(self) -> _Reader:
        generation = self._current()
        if generation is None:
            raise ProfilehouseError(
                f"{self._folder}: no profile store here; materialize profiles/profile_store"
            )
        try:
            reader = _shared_reader(self._path(generation), generation)
        except (OSError, lmdb.Error, msgspec.DecodeError) as error:
            if self._current() != generation:
                return self._open_current()
            raise ProfilehouseError(
                f"{self._folder}: cannot open generation {generation} of the profile store"
                f" ({error}); materialize profiles/profile_store again"
            ) from error
        if reader.meta.fingerprint != self._fingerprint:
            raise ProfilehouseError(
                f"{self._folder}: the profile store was folded by another declaration (version"
                f" {reader.meta.version}, features since changed); materialize"
                " profiles/profile_store again"
            )
        return reader

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

    def _point_to(self, generation: int) -> None:
        written = self._folder / "current.new"
        with written.open("w", encoding="ascii") as file:
            file.write(f"{generation}\n")
            file.flush()
            os.fsync(file.fileno())
        written.replace(self._folder / "current")
        _sync_folder(self._folder)

    def _path(self, generation: int) -> Path:
        return self._folder / f"generation-{generation}"

    def _remove_all_but(self, generation: int | None) -> None:
        """Remove other generations; renamed first, so that nobody opens one half removed."""
        for path in self._folder.glob("generation-*"):
            if generation is None or path != self._path(generation):
                path.rename(path.with_name(f"removed-{path.name}"))
        for path in self._folder.glob("removed-generation-*"):
            shutil.rmtree(path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "rebuild.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ProfilehouseError(
                    f"{self._folder}: another process is rebuilding the profiles; wait for it"
                ) from error
            yield


@dataclass(frozen=True, weakref_slot=True, slots=True)
class _Reader:
    """An open generation; LMDB closes it when nobody holds it any more."""

    env: lmdb.Environment
    profiles: Any
    generation: int
    meta: Meta

    @classmethod
    def open(cls, path: Path, generation: int) -> _Reader:
        env = lmdb.open(str(path), max_dbs=2, readonly=True, create=False)
        with env.begin(env.open_db(_META, create=False)) as transaction:
            meta = msgspec.json.decode(transaction.get(_META, b""), type=Meta)
        return cls(env, env.open_db(_PROFILES, create=False), generation, meta)


_open_readers: WeakValueDictionary[tuple[int, int], _Reader] = WeakValueDictionary()
_opening = Lock()


def _shared_reader(path: Path, generation: int) -> _Reader:
    """The process's one reader of a generation: LMDB forbids to open a file twice."""
    with _opening:
        file = (path / "data.mdb").stat()
        reader = _open_readers.get((file.st_dev, file.st_ino))
        if reader is None:
            reader = _Reader.open(path, generation)
            _open_readers[file.st_dev, file.st_ino] = reader
        return reader


def _write(path: Path, rows: Iterable[tuple[str, bytes]], meta: Meta) -> None:
    path.mkdir(mode=_PRIVATE)
    with lmdb.open(str(path), max_dbs=2, map_size=_FIRST_MAP_SIZE, mode=0o600) as env:
        profiles, about = env.open_db(_PROFILES), env.open_db(_META)
        remaining = ((user_id.encode(), row) for user_id, row in rows)
        while batch := list(islice(remaining, _ROWS_PER_COMMIT)):
            _commit(env, profiles, batch)
        _commit(env, about, [(_META, msgspec.json.encode(meta))])
    _sync_folder(path)


def _commit(env: lmdb.Environment, database: Any, batch: list[tuple[bytes, bytes]]) -> None:
    """Write a batch in one transaction, in a map as large as it takes."""
    while True:
        try:
            with env.begin(database, write=True) as transaction:
                for key, value in batch:
                    transaction.put(key, value)
        except lmdb.MapFullError:
            env.set_mapsize(2 * env.info()["map_size"])
        except lmdb.BadValsizeError as error:
            refused = next(k for k, _ in batch if not 0 < len(k) <= env.max_key_size())
            raise ProfilehouseError(
                f"user_id {refused[:20]!r}... has {len(refused)} bytes; a key of the profile store"
                f" has 1 to {env.max_key_size()}: refuse such users where events are taken in"
            ) from error
        else:
            return


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
