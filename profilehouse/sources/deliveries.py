"""Delivered files: which there are, which day each is for, and the lines in them.

A source delivers one file a business day, `<source>/<YYYY-MM-DD>.jsonl`, or `.csv`, `.parquet` or
`.log`, each also with `.gz` or `.zst` behind it. Who cannot overwrite a file corrects it by another
with a revision, `<YYYY-MM-DD>.r2.csv`: the highest counts. A source may announce a day's file,
before or after, by `<source>/<YYYY-MM-DD>.announced.json`, which says how many records it has, and
possibly its SHA-256: `{"records": 4021, "sha256": "9f86d0..."}`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo

import msgspec
import pyarrow as pa
from pyarrow import fs

from profilehouse.contracts import Contract
from profilehouse.decode import FIRST_YEAR, LAST_YEAR
from profilehouse.errors import ProfilehouseError
from profilehouse.sources.formats import ENDINGS

_FILE_NAME = re.compile(
    rf"(\d{{4}}-\d{{2}}-\d{{2}})(?:\.r(\d{{1,6}}))?\.(?:{'|'.join(ENDINGS)})(?:\.gz|\.zst)?",
    re.ASCII,
)
_ANNOUNCED = re.compile(r"(\d{4}-\d{2}-\d{2})\.announced\.json")


_BYTES_AT_ONCE = 4 * 2**20


class Announcement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a source says of a day's file: its records, and its bytes' SHA-256 in hex."""

    records: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None


@dataclass(frozen=True)
class Deliveries:
    """What lies in one source's folder: a file a day, and names that say no day.

    `written_at` is when each file was last written, UTC without a zone.

    `sizes` has the bytes of each file, as delivered.

    `repeated` has the days with more than one file of the highest revision, and their names; which
    of them is right only the source can say. `announced` names the announcement of each day that
    has one.
    """

    files: dict[date, str]
    written_at: dict[date, datetime]
    unrecognised: tuple[str, ...]
    repeated: dict[date, tuple[str, ...]]
    announced: dict[date, str]
    sizes: dict[date, int]


@dataclass(frozen=True)
class Folder:
    """Where the sources deliver: a file system and the folder in it."""

    filesystem: fs.FileSystem
    path: str

    def deliveries(self, source: Contract) -> Deliveries:
        """The files of one source, by business day."""
        selector = fs.FileSelector(f"{self.path}/{source.name}", allow_not_found=True)
        named: dict[date, dict[int, list[str]]] = {}
        written_at: dict[date, datetime] = {}
        unrecognised: list[str] = []
        announced: dict[date, str] = {}
        sizes: dict[str, int] = {}
        for info in self._listed(selector):
            day = _day(info.base_name)
            if info.type != fs.FileType.File or info.base_name.startswith("."):
                continue
            if told := _day(info.base_name, _ANNOUNCED):
                announced[told] = info.base_name
            elif day is None:
                unrecognised.append(info.base_name)
            else:
                of_day = named.setdefault(day, {})
                sizes[info.base_name] = info.size or 0
                of_day.setdefault(_revision(info.base_name), []).append(info.base_name)
                written = info.mtime.astimezone(UTC).replace(tzinfo=None)
                written_at[day] = max(written, written_at.get(day, written))
        newest = {day: sorted(revisions[max(revisions)]) for day, revisions in named.items()}
        return Deliveries(
            files={day: names[0] for day, names in newest.items()},
            written_at=written_at,
            unrecognised=tuple(sorted(unrecognised)),
            repeated={day: tuple(names) for day, names in newest.items() if len(names) > 1},
            announced=announced,
            sizes={day: sizes[names[0]] for day, names in newest.items()},
        )

    def announcement(self, source: Contract, name: str) -> Announcement:
        """What an announcement says of the file of its day.

        Raises:
            ProfilehouseError: where it cannot be read or says something else.
        """
        try:
            return msgspec.json.decode(self.read(source, name), type=Announcement)
        except msgspec.MsgspecError as error:
            raise ProfilehouseError(
                f'{source.name}/{name}: {error}; it must be as {{"records": 4021}}'
            ) from error

    def _listed(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        try:
            return list(self.filesystem.get_file_info(selector))
        except (OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ProfilehouseError(
                f"{selector.base_dir}: cannot be listed ({reason}); see that it may be read and"
                " that all names in it are UTF-8"
            ) from error

    def read(self, source: Contract, name: str) -> bytes:
        """The bytes of one delivered file, compressed as delivered.

        Raises:
            ProfilehouseError: where it cannot be read.
        """
        path = f"{self.path}/{source.name}/{name}"
        try:
            with self.filesystem.open_input_stream(path, compression=None) as stream:
                data: bytes = stream.read()
        except OSError as error:
            raise _unreadable(source, name, error) from error
        return data

    def digest(self, source: Contract, name: str) -> hashlib._Hash:
        """The SHA-256 of a delivered file, which may be larger than memory.

        Raises:
            ProfilehouseError: where it cannot be read.
        """
        digest = hashlib.sha256()
        with self.opened(source, name) as stream:
            while data := stream.read(_BYTES_AT_ONCE):
                digest.update(data)
        return digest

    @contextmanager
    def opened(self, source: Contract, name: str) -> Iterator[pa.NativeFile]:
        """A delivered file to read from any place, compressed as delivered.

        Raises:
            ProfilehouseError: where it cannot be read.
        """
        path = f"{self.path}/{source.name}/{name}"
        try:
            with self.filesystem.open_input_file(path) as stream:
                yield stream
        except OSError as error:
            raise _unreadable(source, name, error) from error

    def write(self, source: Contract, name: str, data: bytes) -> None:
        """Put a file in the place of the one of that name, whole or not at all.

        Raises:
            ProfilehouseError: where it cannot be written.
        """
        folder = f"{self.path}/{source.name}"
        unfinished = f"{folder}/.{name}.tmp"
        try:
            self.filesystem.create_dir(folder, recursive=True)
            with self.filesystem.open_output_stream(unfinished, compression=None) as stream:
                stream.write(data)
            self.filesystem.move(unfinished, f"{folder}/{name}")
        except OSError as error:
            reason = " ".join(str(error).split())
            raise ProfilehouseError(
                f"{source.name}/{name}: cannot be written ({reason}); see that it may be"
            ) from error


def fingerprint(source: Contract, digest: hashlib._Hash, zone: ZoneInfo) -> str:
    """Of a delivery: its bytes, the contract they are read with and the zone of its day.

    Args:
        source: the contract.
        digest: SHA-256 of the bytes.
        zone: of the day.
    """
    whole = digest.copy()
    whole.update(f"{source.name} {source.version} {zone.key}".encode())
    return whole.hexdigest()


def _unreadable(source: Contract, name: str, error: OSError) -> ProfilehouseError:
    reason = " ".join(str(error).split())
    return ProfilehouseError(
        f"{source.name}/{name}: cannot be read ({reason}); see that it may be, run again"
    )


def close_of(day: date, zone: ZoneInfo) -> datetime:
    """The moment a business day ends, UTC without a zone: when its delivery counts as received."""
    midnight = datetime.combine(day + timedelta(days=1), time(), zone)
    return midnight.astimezone(UTC).replace(tzinfo=None)


def _day(name: str, form: re.Pattern[str] = _FILE_NAME) -> date | None:
    match = form.fullmatch(name)
    try:
        day = date.fromisoformat(match[1]) if match else None
    except ValueError:
        return None
    return day if day and FIRST_YEAR <= day.year <= LAST_YEAR else None


def _revision(name: str) -> int:
    match = _FILE_NAME.fullmatch(name)
    return int(match[2] or 1) if match else 0
