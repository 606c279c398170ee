"""Delivered files: which there are, which day each is for, and the lines in them.

A source delivers one file a business day, `<source>/<YYYY-MM-DD>.jsonl`, or `.jsonl.gz`. It may
announce one, before or after, by `<source>/<YYYY-MM-DD>.announced.json`, which says how many
records the file has: `{"records": 4021}`.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from gzip import BadGzipFile, decompress
from typing import Annotated
from zoneinfo import ZoneInfo

import msgspec
from pyarrow import fs

from profilehouse.contracts import Contract
from profilehouse.decode import FIRST_YEAR, LAST_YEAR
from profilehouse.errors import ProfilehouseError

_FILE_NAME = re.compile(r"(\d{4}-\d{2}-\d{2})\.jsonl(\.gz)?")
_ANNOUNCED = re.compile(r"(\d{4}-\d{2}-\d{2})\.announced\.json")


class _Announcement(msgspec.Struct, forbid_unknown_fields=True):
    records: Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class Deliveries:
    """What lies in one source's folder: a file a day, and names that say no day.

    `written_at` is when each file was last written, UTC without a zone.

    `repeated` has the days with more than one file, and all names of each; which of them is right
    only the source can say. `announced` names the announcement of each day that has one.
    """

    files: dict[date, str]
    written_at: dict[date, datetime]
    unrecognised: tuple[str, ...]
    repeated: dict[date, tuple[str, ...]]
    announced: dict[date, str]


@dataclass(frozen=True)
class Folder:
    """Where the sources deliver: a file system and the folder in it."""

    filesystem: fs.FileSystem
    path: str

    def deliveries(self, source: Contract) -> Deliveries:
        """The files of one source, by business day."""
        selector = fs.FileSelector(f"{self.path}/{source.name}", allow_not_found=True)
        named: dict[date, list[str]] = {}
        written_at: dict[date, datetime] = {}
        unrecognised: list[str] = []
        announced: dict[date, str] = {}
        for info in self._listed(selector):
            day = _day(info.base_name)
            if info.type != fs.FileType.File or info.base_name.startswith("."):
                continue
            if told := _day(info.base_name, _ANNOUNCED):
                announced[told] = info.base_name
            elif day is None:
                unrecognised.append(info.base_name)
            else:
                named.setdefault(day, []).append(info.base_name)
                written_at[day] = info.mtime.astimezone(UTC).replace(tzinfo=None)
        return Deliveries(
            files={day: min(names) for day, names in named.items()},
            written_at=written_at,
            unrecognised=tuple(sorted(unrecognised)),
            repeated={day: tuple(sorted(names)) for day, names in named.items() if len(names) > 1},
            announced=announced,
        )

    def announced_records(self, source: Contract, name: str) -> int:
        """How many records an announcement says that the file of its day has.

        Raises:
            ProfilehouseError: where it cannot be read or says something else.
        """
        try:
            return msgspec.json.decode(self.read(source, name), type=_Announcement).records
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
            reason = " ".join(str(error).split())
            raise ProfilehouseError(
                f"{source.name}/{name}: cannot be read ({reason}); see that it may be, run again"
            ) from error
        return data


def lines_of(data: bytes, file: str) -> list[bytes]:
    """The lines of a file, uncompressed, without line ends; blank lines stay, to keep the count.

    Raises:
        ProfilehouseError: where a compressed file is cut short or not compressed at all.
    """
    if file.endswith(".gz"):
        try:
            if not data:
                raise EOFError("it has 0 bytes")
            data = decompress(data)
        except (BadGzipFile, EOFError, zlib.error) as error:
            raise ProfilehouseError(
                f"{file}: not a whole gzip file ({error}); ask the source to deliver it again"
            ) from error
    lines = data.split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


def fingerprint(source: Contract, data: bytes, zone: ZoneInfo) -> str:
    """Of a delivery: its bytes, the contract they are read with and the zone of its day."""
    digest = hashlib.sha256(data)
    digest.update(f"{source.name} {source.version} {zone.key}".encode())
    return digest.hexdigest()


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
