"""Backup and restore of what lies on this machine's disks, while everything runs.

Belongs here: the order of copies, and what a backup says of itself. Does not belong here: buckets,
servers and accounts, which have means of their own; Dagster's database (docs/deployment.md).

Every part keeps the positions of the log up to which it has read, the warehouse those of the lake.
So what has read is copied before what it reads from: warehouse, profiles, lake, then the log. Then
no part of the backup is ahead of its source, and after a restore each goes on from its positions.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from profilehouse.errors import ProfilehouseError
from profilehouse.health import places
from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration
from profilehouse.settings import Settings

if TYPE_CHECKING:
    from profilehouse.profiles.store.lmdb import LmdbStore
    from profilehouse.warehouse.on_duckdb import DuckDBWarehouse

ABOUT = "backup.json"
_CATALOG = "catalog.db"
_PRIVATE = 0o700
_LOCKS = "*.lock"


class About(msgspec.Struct, frozen=True):
    """What a backup says of itself.

    Attributes:
        made_at: when it was begun, UTC.
        parts: by what they are, where they were: a lake can be restored to the same place only.
        elsewhere: parts that do not lie on this machine's disks.
    """

    made_at: datetime
    parts: dict[str, str]
    elsewhere: tuple[str, ...]


def back_up(platform: Platform, folder: Path) -> About:
    """Copy all local parts that are there into a new folder, which only its owner may read.

    Raises:
        ProfilehouseError: if the folder exists, or a part cannot be copied; the folder is then no
            backup, as it lacks backup.json.
    """
    settings = platform.settings
    copies: dict[str, Callable[[Path, Path], None]] = {
        "warehouse": lambda _, to: _copy_warehouse(platform, to),
        "profiles": lambda _, to: _copy_profiles(platform, to),
        "alerts": _copy_sqlite,
        "lake": _copy_lake,
        "log": _copy_log,
        "webhooks": _copy_log,
    }
    local = places(settings)
    there = {name: local[name] for name in copies if name in local and local[name].exists()}
    began = datetime.now(UTC)
    try:
        folder.mkdir(mode=_PRIVATE, parents=True)
        for name, place in there.items():
            copies[name](place, folder / name)
        about = About(
            began,
            {n: str(place.resolve()) for n, place in there.items() if (folder / n).exists()},
            tuple(sorted(copies.keys() - local.keys())),
        )
        (folder / ABOUT).write_bytes(msgspec.json.encode(about))
    except FileExistsError as error:
        raise ProfilehouseError(f"{folder}: is there already; name a new folder") from error
    except (OSError, sqlite3.Error) as error:
        raise ProfilehouseError(f"{folder}: the backup failed ({error}); remove it") from error
    return about


def restore(settings: Settings, folder: Path) -> About:
    """Copy a backup to where the settings say that the parts are; nothing may be there.

    Raises:
        ProfilehouseError: if it is no whole backup, something is there, or the lake was elsewhere.
    """
    try:
        about = msgspec.json.decode((folder / ABOUT).read_bytes(), type=About)
    except (OSError, msgspec.MsgspecError) as error:
        raise ProfilehouseError(f"{folder}: is no whole backup ({error})") from error
    local = places(settings)
    for name, origin in about.parts.items():
        if name not in local:
            raise ProfilehouseError(f"{folder} has {name}, which the settings say is not local")
        if local[name].exists():
            raise ProfilehouseError(f"{local[name]}: is there already; move it away, then restore")
        if name == "lake" and str(local[name].resolve()) != origin:
            raise ProfilehouseError(
                f"{folder}: the lake was in {origin}, and its tables name files by that path; set"
                " PROFILEHOUSE_LAKE to it"
            )
    try:
        for name in about.parts:
            _copy(folder / name, local[name])
    except OSError as error:
        raise ProfilehouseError(
            f"{folder}: cannot be restored ({error}); move away what was, and restore again"
        ) from error
    return about


def _copy_warehouse(platform: Platform, to: Path) -> None:
    with platform.warehouse() as warehouse:
        opened: DuckDBWarehouse = warehouse  # type: ignore[assignment]  # a local one is DuckDB
        opened.copy_to(to)


def _copy_profiles(platform: Platform, to: Path) -> None:
    with platform.profile_store(load_declaration()) as store:
        opened: LmdbStore = store  # type: ignore[assignment]  # a local one is LMDB
        if opened.exists():
            opened.copy_to(to)


def _copy_lake(place: Path, to: Path) -> None:
    """The catalog first: files of its states are kept for a day, and new ones do no harm."""
    to.mkdir(mode=_PRIVATE)
    _copy_sqlite(place / _CATALOG, to / _CATALOG)
    _copy(place, to, _CATALOG, f"{_CATALOG}-*")


def _copy_log(place: Path, to: Path) -> None:
    """The ends first: what is behind them is cut off by the next writer."""
    to.mkdir(mode=_PRIVATE)
    for name in ("log.json", "ends"):
        shutil.copy2(place / name, to / name)
    _copy(place, to, "log.json", "ends", _LOCKS)


def _copy_sqlite(place: Path, to: Path) -> None:
    source = sqlite3.connect(f"{place.absolute().as_uri()}?mode=ro", uri=True)
    with closing(source), closing(sqlite3.connect(to)) as target:
        source.backup(target)


def _copy(place: Path, to: Path, *left_out: str) -> None:
    """A file or a folder; what is removed meanwhile is not needed any more."""
    to.parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
    if place.is_file():
        shutil.copy2(place, to)
        return
    try:
        shutil.copytree(
            place, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*left_out, _LOCKS)
        )
    except shutil.Error as error:
        gone = [problem for problem in error.args[0] if Path(problem[0]).exists()]
        if gone:
            raise OSError(str(gone[0][2])) from error
