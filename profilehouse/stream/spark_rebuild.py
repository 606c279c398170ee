"""All events of the lake, folded on Spark into the entries of a new generation of the store.

Belongs here: how days and keys are spread over executors. Does not belong here: the fold and
identity, which are those of profiles/, or staging, catching up and flipping (rebuild.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.events.web import EVENTS
from profilehouse.lake import Lake
from profilehouse.profiles.bulk import fold
from profilehouse.profiles.features import Declaration
from profilehouse.profiles.fold import EVENT_SCHEMA
from profilehouse.profiles.identity import (
    Login,
    assemble,
    encode,
    key_of,
    subjects,
    visitor_key,
)
from profilehouse.profiles.store import Meta, Positions
from profilehouse.settings import Settings
from profilehouse.stream.rebuild import WEB_COLUMNS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS_A_TASK = 500_000
_ROWS_AT_ONCE = 5_000
_LOGIN = pa.schema(
    [(f"login_{name}", pa.string()) for name in ("user_id", "anonymous_id", "session_id")]
)
_KEYED = pa.schema([("key", pa.string()), *EVENT_SCHEMA, *_LOGIN])
"""An event, or a login in the last columns, with the key of the entry that it is folded into."""

_FOLDED = pa.schema([("key", pa.string()), ("entry", pa.binary()), ("newest_day", pa.date32())])


class FoldOnSpark:
    """Folds on a session's executors, as `rebuild_from_lake` wants it."""

    def __init__(self, spark: SparkSession, settings: Settings) -> None:
        """Do nothing yet; the lake must be one that executors reach."""
        self._spark = spark
        self._settings = settings

    def __call__(
        self,
        declaration: Declaration,
        lake: Lake,
        positions: Positions,
        deliveries: Mapping[str, str],
    ) -> tuple[Iterable[tuple[str, bytes]], Meta]:
        """Fold everything; the entries come to the driver a partition at a time."""
        from pyspark import StorageLevel  # noqa: PLC0415
        from pyspark.sql.pandas.types import from_arrow_schema  # noqa: PLC0415

        days = {
            (name, day): rows
            for name in ("events", EVENTS)
            for day, rows in lake.days(name).items()
        }
        places = [(name, day.isoformat()) for name, day in days]
        tasks = 1 + sum(days.values()) // ROWS_A_TASK
        read = _ReadDays(self._settings, dict(positions))
        folded = (
            self._spark.createDataFrame(places, "name string, day string")
            .repartition(max(1, len(places)), "name", "day")
            .mapInArrow(read, from_arrow_schema(_KEYED))
            .repartition(tasks, "key")
            .sortWithinPartitions("received_at")
            .mapInArrow(_Fold(declaration), from_arrow_schema(_FOLDED))
            .persist(StorageLevel.DISK_ONLY)
        )
        newest_day: date | None = folded.agg({"newest_day": "max"}).collect()[0][0]
        meta = Meta(
            version=declaration.version,
            fingerprint=declaration.fingerprint,
            newest_day=newest_day,
            deliveries=deliveries,
        )
        rows = folded.select("key", "entry").toLocalIterator(prefetchPartitions=True)
        return ((row.key, bytes(row.entry)) for row in rows), meta


@dataclass(frozen=True)
class _ReadDays:
    """Reads days of the lake, and says for each event and login which entry it is folded into."""

    settings: Settings
    positions: dict[int, int]

    def __call__(self, places: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from profilehouse.platform import Platform  # noqa: PLC0415

        lake = Platform(self.settings).lake()
        offsets = {partition: (0, end) for partition, end in self.positions.items()}
        for place in places:
            for row in place.to_pylist():
                day = date.fromisoformat(row["day"])
                if row["name"] == EVENTS:
                    web = lake.read(EVENTS, columns=WEB_COLUMNS, days=[day], offsets=offsets)
                    batch = subjects(web)
                    yield from _keyed(batch.events)
                    yield from _of_logins(batch.logins)
                else:
                    columns = EVENT_SCHEMA.names
                    yield from _keyed(lake.read(row["name"], columns=columns, days=[day]))


@dataclass(frozen=True)
class _Fold:
    """Folds all events and logins of some keys."""

    declaration: Declaration

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        keys: set[str] = set()
        logins: set[Login] = set()

        def events() -> Iterator[pa.Table]:
            for batch in batches:
                keyed = pa.table(batch)
                keys.update(keyed["key"].unique().to_pylist())
                is_login = pc.is_valid(keyed["login_user_id"])
                logins.update(_logins(keyed.filter(is_login)))
                yield (
                    keyed.filter(pc.invert(is_login)).select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA)
                )

        rows = fold((table for table in events() if table.num_rows), self.declaration)
        newest_day = max((row.newest_day for row in rows.values()), default=None)
        entries = assemble(rows, sorted(logins))
        mine = sorted(keys & entries.keys())
        for first in range(0, len(mine), _ROWS_AT_ONCE):
            some = mine[first : first + _ROWS_AT_ONCE]
            yield pa.record_batch(
                [some, [encode(entries[key]) for key in some], [newest_day] * len(some)],
                schema=_FOLDED,
            )


def _keyed(events: pa.Table) -> Iterator[pa.RecordBatch]:
    keys = [key_of(subject) for subject in events["user_id"].to_pylist()]
    nothing = [pa.nulls(events.num_rows, pa.string())] * len(_LOGIN)
    columns = [pa.array(keys, pa.string()), *events.select(EVENT_SCHEMA.names).columns, *nothing]
    yield from pa.table(columns, schema=_KEYED).to_batches()


def _of_logins(logins: Iterable[Login]) -> Iterator[pa.RecordBatch]:
    """Each login twice: its user's entry and its visitor's both hold it."""
    rows = [
        {
            "key": key,
            "received_at": login.received_at,
            "login_user_id": login.user_id,
            "login_anonymous_id": login.anonymous_id,
            "login_session_id": login.session_id,
        }
        for login in logins
        for key in (login.user_id, visitor_key(login.anonymous_id))
    ]
    if rows:
        yield from pa.Table.from_pylist(rows, _KEYED).to_batches()


def _logins(rows: pa.Table) -> Iterator[Login]:
    columns = ("received_at", *_LOGIN.names)
    values = (rows[name] for name in columns)
    received, *names = (
        (v.cast(pa.int64()) if pa.types.is_timestamp(v.type) else v).to_pylist() for v in values
    )
    for told in zip(received, *names, strict=True):
        yield Login(*told)
