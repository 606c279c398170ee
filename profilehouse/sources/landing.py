"""Landing: delivered files into the lake, good records as received, bad ones as dead letters, those
that break a rule into quarantine.

The order of the commits makes it safe to be killed anywhere: records, dead letters, quarantine,
then the row in `deliveries` that says the day is whole. A day without that row is landed again, so
the row of an earlier delivery of that day is taken away first.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TypeVar
from zoneinfo import ZoneInfo

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.contracts import Contract, contract
from profilehouse.decode import refusals, typed_columns
from profilehouse.errors import ProfilehouseError
from profilehouse.lake import Lake
from profilehouse.quality.rules import Depends, Unique
from profilehouse.sources.deliveries import Deliveries, Folder, close_of, fingerprint
from profilehouse.sources.drift import accept
from profilehouse.sources.formats import Lines, read_parts, read_records, too_large
from profilehouse.sources.held_back import TABLE as QUARANTINE
from profilehouse.sources.held_back import held_back, holding_rules
from profilehouse.sources.repairs import digest, repaired_at, repairs_of, with_repairs
from profilehouse.times import utc_now

PLACE = ("delivered_on", "line")
"""What tells a landed record."""
ENVELOPE = ("delivered_on", "line", "received_at")
"""What stays of a landed row beside its record's own columns."""
BYTES_PER_COMMIT = 96 * 2**20
"""Uncompressed bytes after which landed days are committed, to bound memory."""
LARGE = 32 * 2**20
"""Uncompressed bytes above which a file is landed in parts."""

T = TypeVar("T")


@dataclass
class Landed:
    """What one call landed.

    `problems` has a line for each day whose file could not be, `drift` the number of records that
    had each field that the contract does not know.
    """

    days: list[date] = field(default_factory=list)
    records: int = 0
    dead_letters: int = 0
    quarantined: int = 0
    unchanged: int = 0
    problems: dict[date, str] = field(default_factory=dict)
    drift: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Day:
    """A delivery. `read` has its records, or is None where they are to be read in parts."""

    delivered_on: date
    file: str | None
    sha256: str
    read: Lines | None
    repairs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sorted:
    """What becomes of the records that were read: rows for the lake, and dead letters."""

    read: Lines
    records: int
    rows: pa.Table
    dead: pa.Table
    drift: Counter[str]


def land(
    source: Contract,
    days: Collection[date],
    folder: Folder,
    lake: Lake,
    zone: ZoneInfo,
    run: str | None = None,
) -> Landed:
    """Land one source's deliveries of the given business days.

    A day that was landed from the same bytes under the same contract version, with the same repairs
    of refused records, is left alone. A file that cannot be read leaves its day as it was and is
    named in `problems`; the others go on.

    Args:
        source: the contract; its property `delivery` is `daily` or `on_change`: whether a day
            without a file is a problem. Its property `drift` says what becomes of records with
            fields that the contract does not know, see drift.py. Its property `announced` is true
            where a file counts only once it is announced.
        run: that lands, if one does; it is noted beside the records that are held back.
    """
    landed = Landed()
    pending: list[_Day] = []
    size = 0
    for day in _ahead(_new_days(source, days, folder, lake, zone, landed)):
        if day.read is None:
            _commit_in_parts(source, day, folder, lake, zone, run, landed)
            continue
        pending.append(day)
        size += sum(map(len, day.read.lines))
        if size >= BYTES_PER_COMMIT:
            _commit(source, pending, lake, zone, run, landed)
            pending, size = [], 0
    if pending:
        _commit(source, pending, lake, zone, run, landed)
    return landed


def _ahead(items: Iterator[T]) -> Generator[T]:
    """The items; while one is worked on, another thread makes the next."""
    with ThreadPoolExecutor(1, "ahead") as worker:
        upcoming = worker.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = worker.submit(next, items, None)
            yield item


def records(source: Contract, lake: Lake, days: Collection[date] | None = None) -> pa.Table:
    """A source's landed records in the contract's columns, beside delivered_on, line, received_at.

    Args:
        days: business days of the deliveries; all of them where None.
    """
    raw = lake.read(source.name, columns=[*ENVELOPE, "record"], days=days)
    return typed_columns(raw, source)


def histories(source: Contract, lake: Lake, key: str, days: Collection[date]) -> pa.Table:
    """All records, of whatever day, of the keys that were delivered on some days; as `records`."""
    touched = records(source, lake, days)[key].unique()
    everything = records(source, lake)
    return everything.filter(pc.is_in(everything[key], touched))


def record_schema(source: Contract) -> pa.Schema:
    """The columns of `records` and `histories`."""
    raw = contract("raw").arrow_schema
    return pa.schema([*(raw.field(name) for name in ENVELOPE), *source.arrow_schema])


def delivered(lake: Lake, topic: str, days: Collection[date] | None = None) -> dict[date, str]:
    """The fingerprint of each landed day of a topic."""
    rows = lake.read(
        "deliveries", columns=["delivered_on", "sha256"], topic=topic, days=days
    ).to_pylist()
    return {row["delivered_on"]: row["sha256"] for row in rows}


def unlanded_days(source: Contract, folder: Folder, lake: Lake, zone: ZoneInfo) -> list[date]:
    """The days with a file that was never landed, or whose content or repairs changed since.

    Only files written or repaired after they were landed are read.
    """
    rows = lake.read(
        "deliveries", columns=["delivered_on", "sha256", "landed_at"], topic=source.name
    ).to_pylist()
    landed = {row["delivered_on"]: row for row in rows}
    found = folder.deliveries(source)
    repairs, repaired = repairs_of(lake, source.name), repaired_at(lake, source.name)

    def changed(day: date, name: str) -> bool:
        before = landed.get(day)
        if before is None:
            return True
        written_at = max(found.written_at[day], repaired.get(day, found.written_at[day]))
        if written_at <= before["landed_at"]:
            return False
        sha256 = fingerprint(source, folder.digest(source, name), zone)
        return bool(before["sha256"] != with_repairs(sha256, repairs.get(day, {})))

    return [
        day
        for day, name in sorted(found.files.items())
        if not _awaits_announcement(source, found, day) and changed(day, name)
    ]


def delivery_rows(topic: str, rows: list[dict[str, object]]) -> pa.Table:
    """Rows of the lake's `deliveries`, landed now."""
    landed_at = utc_now()
    return pa.Table.from_pylist(
        [{"topic": topic, "landed_at": landed_at, **row} for row in rows],
        schema=contract("deliveries").arrow_schema,
    )


def begin_anew(lake: Lake, topic: str, days: Collection[date]) -> None:
    """Take away the rows in `deliveries` of days that are about to be written again.

    Otherwise a crash in between, and the old file delivered once more, would leave the new rows.
    """
    known = delivered(lake, topic, days)
    if known:
        lake.replace("deliveries", delivery_rows(topic, []), days=known, topic=topic)


def _new_days(
    source: Contract,
    days: Collection[date],
    folder: Folder,
    lake: Lake,
    zone: ZoneInfo,
    landed: Landed,
) -> Iterator[_Day]:
    deliveries = folder.deliveries(source)
    before = delivered(lake, source.name, days)
    repairs = repairs_of(lake, source.name, days)
    absent = [day for day in days if day not in deliveries.files and day not in before]
    begun = set(lake.read(source.name, days=absent, columns=PLACE[:1])[PLACE[0]].to_pylist())
    for day in sorted(days):
        mended = repairs.get(day, {})
        name = deliveries.files.get(day)
        if day in deliveries.repeated:
            landed.problems[day] = (
                f"{source.name}: more than one file for {day}:"
                f" {', '.join(deliveries.repeated[day])}; remove the wrong one and run again"
            )
            continue
        if name is None or _awaits_announcement(source, deliveries, day):
            if day in before:
                landed.unchanged += 1
            elif day in begun:
                landed.problems[day] = (
                    f"{source.name}: the landing of {day} was interrupted, and its file is no"
                    f" longer in {folder.path}/{source.name}; deliver it again"
                )
            elif source.properties["delivery"] == "on_change":
                yield _Day(
                    day, None, hashlib.sha256(source.version.encode()).hexdigest(), Lines([])
                )
            else:
                landed.problems[day] = (
                    f"{source.name}: no file for {day} in {folder.path}/{source.name};"
                    f" deliver {day}.jsonl (an empty one if nothing happened) and run again"
                )
            continue
        file = f"{source.name}/{name}"
        try:
            large = too_large(file, deliveries.sizes[day], LARGE)
            in_parts = large and not _looks_across_records(source)
            data = None if in_parts else folder.read(source, name)
            hashed = folder.digest(source, name) if data is None else hashlib.sha256(data)
            _refuse_unlike_announced(source, folder, deliveries, day, hashed.hexdigest())
            sha256 = with_repairs(fingerprint(source, hashed, zone), mended)
            if before.get(day) != sha256:
                read = None if data is None else read_records(source, data, file)
                yield _Day(day, file, sha256, read, mended)
                continue
            landed.unchanged += 1
        except ProfilehouseError as error:
            landed.problems[day] = str(error)


def _looks_across_records(source: Contract) -> bool:
    """Whether a rule compares a day's records with each other, which then are read at once."""
    return any(isinstance(rule.test, Unique | Depends) for rule in holding_rules(source))


def _awaits_announcement(source: Contract, deliveries: Deliveries, day: date) -> bool:
    """Whether a day's file may be half-written: its source announces every whole one."""
    return bool(source.properties.get("announced")) and day not in deliveries.announced


def _refuse_unlike_announced(
    source: Contract, folder: Folder, deliveries: Deliveries, day: date, sha256: str
) -> None:
    """Raise where the file's bytes are not those that its announcement tells the SHA-256 of."""
    if day not in deliveries.announced:
        return
    announced = folder.announcement(source, deliveries.announced[day])
    if announced.sha256 not in (None, sha256):
        raise ProfilehouseError(
            f"{source.name}/{deliveries.files[day]}: is not the file that"
            f" {deliveries.announced[day]} announces; wait until it is whole, or deliver both again"
        )


def _commit(
    source: Contract,
    pending: list[_Day],
    lake: Lake,
    zone: ZoneInfo,
    run: str | None,
    landed: Landed,
) -> None:
    sorted_days: dict[date, _Sorted] = {}
    deliveries: list[dict[str, object]] = []
    for day in pending:
        assert day.read is not None  # noqa: S101
        try:
            found = _sorted_out(source, day, day.read, zone)
        except ProfilehouseError as error:
            landed.problems[day.delivered_on] = str(error)
            continue
        sorted_days[day.delivered_on] = found
        deliveries.append(_delivery(day, found.records, found.dead.num_rows, found.drift))
        _count(landed, day, found.records, found.dead.num_rows, found.drift)
    if not sorted_days:
        return
    days = list(sorted_days)
    repairs = {day.delivered_on: day.repairs for day in pending}
    rows, held = _hold_back(source, sorted_days, repairs, run)
    landed.quarantined += _places_in(held)
    begin_anew(lake, source.name, days)
    lake.replace(source.name, rows, days=days)
    dead = pa.concat_tables([found.dead for found in sorted_days.values()])
    lake.replace("dead_letters", dead, days=days, topic=source.name)
    lake.replace(QUARANTINE, held, days=days, topic=source.name)
    lake.replace("deliveries", delivery_rows(source.name, deliveries), days=days, topic=source.name)


def _commit_in_parts(
    source: Contract,
    day: _Day,
    folder: Folder,
    lake: Lake,
    zone: ZoneInfo,
    run: str | None,
    landed: Landed,
) -> None:
    """As `_commit`, of one file larger than memory; it is seen in the lake once all of it is."""
    days, name = [day.delivered_on], str(day.file).partition("/")[2]
    records = letters = held_places = 0
    drift: Counter[str] = Counter()
    try:
        with (
            lake.replacing(source.name, days=days) as good,
            lake.replacing("dead_letters", days=days, topic=source.name) as dead,
            lake.replacing(QUARANTINE, days=days, topic=source.name) as quarantine,
            folder.opened(source, name) as stream,
            closing(_ahead(read_parts(source, stream, str(day.file)))) as parts,
        ):
            for part in parts:
                found = _sorted_out(source, day, part, zone)
                rows, held = _hold_back(
                    source, {day.delivered_on: found}, {day.delivered_on: day.repairs}, run
                )
                good.add(rows)
                dead.add(found.dead)
                quarantine.add(held)
                records += found.records
                letters += found.dead.num_rows
                held_places += _places_in(held)
                drift += found.drift
            begin_anew(lake, source.name, days)
            good.commit()
            dead.commit()
            quarantine.commit()
    except ProfilehouseError as error:
        landed.problems[day.delivered_on] = str(error)
        return
    delivery = _delivery(day, records, letters, drift)
    lake.replace("deliveries", delivery_rows(source.name, [delivery]), days=days, topic=source.name)
    landed.quarantined += held_places
    _count(landed, day, records, letters, drift)


def _sorted_out(source: Contract, day: _Day, read: Lines, zone: ZoneInfo) -> _Sorted:
    """Good records, dead letters, and what drifted, of a delivery or a part of it.

    Raises:
        ProfilehouseError: where the whole file is to be refused.
    """
    numbered = [
        (n, line) for n, line in enumerate(read.lines, start=read.before + 1) if line.strip()
    ]
    refused = refusals([line for _, line in numbered], source)
    if read.unreadable:
        for i, (number, _) in enumerate(numbered):
            if (index := number - 1 - read.before) in read.unreadable:
                refused[i] = read.unreadable[index]
    for i in list(refused) if day.repairs else ():
        number, line = numbered[i]
        mended = day.repairs.get(digest(line))
        if mended is not None and not refusals([mended], source):
            numbered[i] = (number, mended)
            del refused[i]
    drift = accept(source, [line for _, line in numbered], refused, day.file)
    kept = numbered
    if refused:
        kept = [pair for i, pair in enumerate(numbered) if i not in refused]
    received_at = close_of(day.delivered_on, zone)
    reasons = [(*numbered[i], reason) for i, reason in refused.items()]
    return _Sorted(
        read,
        len(numbered),
        _raw_rows(day, received_at, kept),
        _dead_letters(source, day, received_at, reasons),
        drift,
    )


def _delivery(day: _Day, records: int, letters: int, drift: Counter[str]) -> dict[str, object]:
    """The day's row in `deliveries`."""
    return {
        "delivered_on": day.delivered_on,
        "file": day.file,
        "sha256": day.sha256,
        "records": records,
        "dead_letters": letters,
        "drift": msgspec.json.encode(drift).decode() if drift else None,
    }


def _count(landed: Landed, day: _Day, records: int, letters: int, drift: Counter[str]) -> None:
    landed.days.append(day.delivered_on)
    landed.records += records
    landed.dead_letters += letters
    landed.drift += drift


def _places_in(held: pa.Table) -> int:
    """How many records are held back, each by any number of rules."""
    return len({*zip(*(held[name].to_pylist() for name in PLACE), strict=True)})


def _hold_back(
    source: Contract,
    found: Mapping[date, _Sorted],
    repairs: Mapping[date, Mapping[str, bytes]],
    run: str | None,
) -> tuple[pa.Table, pa.Table]:
    """The rows that break no rule of the quality section, and the quarantine of the others.

    A row that breaks one is looked at again with its repair in its place, if it has one; so is a
    row that breaks one only beside repairs of others.
    """
    schema = contract(QUARANTINE).arrow_schema
    rows = pa.concat_tables([of_day.rows for of_day in found.values()])

    def delivered_as(day: date, line: int) -> str:
        read = found[day].read
        return digest(read.lines[line - 1 - read.before])

    tried: set[tuple[date, int]] = set()
    while new := (held := held_back(source, rows)).keys() - tried:
        tried |= new
        mended = {
            (day, line): record
            for day, line in new
            if (record := repairs[day].get(delivered_as(day, line))) is not None
            and not refusals([record], source)
        }
        if not mended:
            break
        rows = _with_records(rows, mended)
    if not held:
        return rows, schema.empty_table()
    places = list(zip(*(rows[name].to_pylist() for name in PLACE), strict=True))
    kept = rows.filter(pa.array([place not in held for place in places], pa.bool_()))
    apart = rows.filter(pa.array([place in held for place in places], pa.bool_())).to_pylist()
    quarantine = [
        {
            **row,
            "topic": source.name,
            "rule": rule,
            "contract_version": source.version,
            "run": run,
            "sha256": delivered_as(row["delivered_on"], row["line"]),
        }
        for row in apart
        for rule in held[row["delivered_on"], row["line"]]
    ]
    return kept, pa.Table.from_pylist(quarantine, schema)


def _with_records(rows: pa.Table, mended: Mapping[tuple[date, int], bytes]) -> pa.Table:
    """Rows with other records in some places."""
    columns = (rows[name].to_pylist() for name in (*PLACE, "record"))
    records = [
        mended[day, line].decode() if (day, line) in mended else record
        for day, line, record in zip(*columns, strict=True)
    ]
    place = rows.schema.get_field_index("record")
    return rows.set_column(place, rows.schema.field("record"), pa.array(records, pa.string()))


def _raw_rows(day: _Day, received_at: datetime, kept: list[tuple[int, bytes]]) -> pa.Table:
    return _table(
        contract("raw"),
        len(kept),
        delivered_on=day.delivered_on,
        line=pa.array([number for number, _ in kept], pa.int64()),
        file=day.file,
        received_at=received_at,
        record=pa.array([line for _, line in kept], pa.binary()).cast(pa.string()),
    )


def _dead_letters(
    source: Contract, day: _Day, received_at: datetime, letters: list[tuple[int, bytes, str]]
) -> pa.Table:
    numbers, lines, reasons = zip(*letters, strict=True) if letters else ((), (), ())
    return _table(
        contract("dead_letters"),
        len(letters),
        topic=source.name,
        delivered_on=day.delivered_on,
        line=pa.array(numbers, pa.int64()),
        file=day.file,
        received_at=received_at,
        reason=pa.array(reasons, pa.string()),
        contract_version=source.version,
        record=pa.array(lines, pa.binary()),
    )


def _table(layout: Contract, rows: int, **values: object) -> pa.Table:
    """A table in a contract's schema; a single value stands for every row."""
    schema = layout.arrow_schema
    columns = [
        value
        if isinstance(value := values[f.name], pa.Array)
        else pa.repeat(pa.scalar(value, f.type), rows)
        for f in schema
    ]
    return pa.table(columns, schema=schema)
