"""What every fetch does: it adds what is new to the day's file, which is landed as any delivery.

Belongs here: that file and the report. Does not belong here: how one source is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from profilehouse.contracts import Contract
from profilehouse.settings import Settings
from profilehouse.sources.deliveries import Folder


@dataclass(frozen=True)
class Fetched:
    """What one fetch did and what it cost.

    Attributes:
        new: records that were delivered.
        calls: requests or queries that it took.
        rows_read: that the source gave for them.
        file: that the new records are in; None where there are none.
        deletions: those of the new records that say something is gone.
    """

    new: int
    calls: int
    rows_read: int
    file: str | None
    deletions: int = 0


def deliver(source: Contract, folder: Folder, day: date, records: Sequence[bytes]) -> str | None:
    """Add records to the day's file, whole or not at all; its name, None where there are none."""
    if not records:
        return None
    name = f"{day}.jsonl"
    before = folder.read(source, name) if name in folder.deliveries(source).files.values() else b""
    folder.write(source, name, before + b"".join(record + b"\n" for record in records))
    return name


def delivery_day(now: datetime, settings: Settings) -> date:
    """The business day whose file is written at a moment."""
    return now.astimezone(settings.zone).date()
