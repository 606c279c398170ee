"""How a live process is: written by it every second, read by whoever watches.

Belongs here: the status and its files. Does not belong here: Dagster, which reads them elsewhere.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from profilehouse.errors import ProfilehouseError
from profilehouse.settings import Settings
from profilehouse.storage import open_folder
from profilehouse.times import utc_now

if TYPE_CHECKING:
    from boto3.session import Session

KEPT = timedelta(days=1)
"""A status that nobody wrote for so long is removed by the next process that starts."""


State = Literal["running", "stopped", "failed"]


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds from received_at to a durable profile, of the events of the last minute."""

    p50: float
    p95: float
    p99: float
    maximum: float


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One live process. Times are UTC, naive; positions are by partition, the next offset.

    Attributes:
        instance: `<host>-<pid>`, the name of the status's file.
        state: `running`, `stopped` after a drain, `failed` with `error`.
        started_at: when the process began.
        written_at: when this was written; an old one of state running is a process that died.
        log: the setting.
        topic_id: of the log.
        ends: the log's ends, of the partitions this process has.
        profiles: positions of the profile store.
        lake: positions of lake/web_events.
        dead_letters: positions of lake/web_dead_letters.
        events: good events that went into profiles since the start.
        refused: dead letters since the start.
        unconsented: good events that reach no profile, for want of consent.
        late: good events that reach no profile, as they came too late.
        rate: events a second, over the last ten seconds.
        latency: None where the last minute had no event.
        buffered: events that wait for the lake.
        paused: whether reading waits for the lake or for the maximum rate.
        batch_limit: events that are read at once, at most.
        restarts: how often positions were resumed after another writer or a new generation.
        oversized: users seen since the start whose row outgrew the store's limit.
        error: the last error, one line.
    """

    instance: str
    state: State
    started_at: datetime
    written_at: datetime
    log: str
    topic_id: str
    ends: dict[int, int] = {}
    profiles: dict[int, int] = {}
    lake: dict[int, int] = {}
    dead_letters: dict[int, int] = {}
    events: int = 0
    refused: int = 0
    unconsented: int = 0
    late: int = 0
    rate: float = 0.0
    latency: Latency | None = None
    buffered: int = 0
    paused: bool = False
    batch_limit: int = 0
    restarts: int = 0
    oversized: int = 0
    error: str | None = None

    @property
    def lag(self) -> int:
        """Records of the log that are not in the profiles yet."""
        return sum(end - self.profiles.get(p, 0) for p, end in self.ends.items())

    @property
    def lake_lag(self) -> int:
        """Records of the log that are not in the lake yet."""
        return sum(end - self.lake.get(p, 0) for p, end in self.ends.items())


def write_status(settings: Settings, status: Status, session: Session | None = None) -> None:
    """Replace the status of this process, whole.

    Raises:
        ProfilehouseError: if the folder cannot be written.
    """
    if not settings.status.startswith("s3://"):
        Path(settings.status).mkdir(mode=0o700, parents=True, exist_ok=True)
    files, folder = open_folder(settings.status, session)
    path = f"{folder}/{status.instance}.json"
    try:
        with files.open_output_stream(f"{path}.new") as stream:
            stream.write(msgspec.json.encode(status))
        files.move(f"{path}.new", path)
    except OSError as error:
        raise ProfilehouseError(
            f"{settings.status}: cannot write the live process's status ({error}); see that"
            " PROFILEHOUSE_STATUS names a place that may be written"
        ) from error


def read_statuses(settings: Settings, session: Session | None = None) -> list[Status]:
    """The statuses of all live processes of the last day, newest first; none is no error.

    Raises:
        ProfilehouseError: if the folder cannot be read.
    """
    if not settings.status.startswith("s3://") and not Path(settings.status).is_dir():
        return []
    from pyarrow import fs  # noqa: PLC0415

    files, folder = open_folder(settings.status, session)
    statuses = []
    for info in files.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
        if not info.path.endswith(".json"):
            continue
        try:
            with files.open_input_stream(info.path) as stream:
                statuses.append(msgspec.json.decode(stream.read(), type=Status))
        except (OSError, msgspec.MsgspecError):
            continue  # removed or replaced just now, or of another version
    return sorted(statuses, key=lambda status: status.written_at, reverse=True)


def remove_old(settings: Settings, session: Session | None = None) -> None:
    """Remove the statuses that nobody wrote for KEPT."""
    before = utc_now() - KEPT
    for status in read_statuses(settings, session):
        if status.written_at < before:
            files, folder = open_folder(settings.status, session)
            files.delete_file(f"{folder}/{status.instance}.json")
