"""Landing: delivered files into the lake, good records as received, bad ones as dead letters, those
that break a rule into quarantine.

The order of the commits makes it safe to be killed anywhere: records, dead letters, quarantine,
then the row in `deliveries` that says the day is whole. A day without that row is landed again, so
the row of an earlier delivery of that day is taken away first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.contracts import Contract, contract
from profilehouse.decode import refusals, typed_columns
from profilehouse.errors import ProfilehouseError
from profilehouse.lake import Lake
from profilehouse.sources.deliveries import Folder, close_of, fingerprint, lines_of
from profilehouse.sources.held_back import TABLE as QUARANTINE
from profilehouse.sources.held_back import held_back
from profilehouse.sources.repairs import digest, repaired_at, repairs_of, with_repairs
from profilehouse.times import utc_now

PLACE = ("delivered_on", "line")
"""What tells a landed record."""
ENVELOPE = ("delivered_on", "line", "received_at")
"""What stays of a landed row beside its record's own columns."""
BYTES_PER_COMMIT = 96 * 2**20
"""Uncompressed bytes after which landed days are committed, to bound memory."""


@dataclass
class Landed:
    """What one call landed. `problems` has a line for each day whose file could not be."""

    days: list[date] = field(default_factory=list)
    records: int = 0
    dead_letters: int = 0
    quarantined: int = 0
    unchanged: int = 0
    problems: dict[date, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Day:
    delivered_on: date
    file: str | None
    sha256: str
    lines: list[bytes]
    repairs: Mapping[str, bytes] = field(default_factory=dict)


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
            without a file is a problem.
        run: that lands, if one does; it is noted beside the records that are held back.
    """
    landed = Landed()
    pending: list[_Day] = []
    size = 0
    for day in _new_days(source, days, folder, lake, zone, landed):
        pending.append(day)
        size += sum(map(len, day.lines))
        if size >= BYTES_PER_COMMIT:
            _commit(source, pending, lake, zone, run, landed)
            pending, size = [], 0
    if pending:
        _commit(source, pending, lake, zone, run, landed)
    return landed


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
        sha256 = fingerprint(source, folder.read(source, name), zone)
        return bool(before["sha256"] != with_repairs(sha256, repairs.get(day, {})))

    return [day for day, name in sorted(found.files.items()) if changed(day, name)]


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
        if name is None:
            if day in before:
                landed.unchanged += 1
            elif day in begun:
                landed.problems[day] = (
                    f"{source.name}: the landing of {day} was interrupted, and its file is no"
                    f" longer in {folder.path}/{source.name}; deliver it again"
                )
            elif source.properties["delivery"] == "on_change":
                yield _Day(day, None, hashlib.sha256(source.version.encode()).hexdigest(), [])
            else:
                landed.problems[day] = (
                    f"{source.name}: no file for {day} in {folder.path}/{source.name};"
                    f" deliver {day}.jsonl (an empty one if nothing happened) and run again"
                )
            continue
        file = f"{source.name}/{name}"
        try:
            data = folder.read(source, name)
            sha256 = with_repairs(fingerprint(source, data, zone), mended)
            if before.get(day) != sha256:
                yield _Day(day, file, sha256, lines_of(data, file), mended)
                continue
            landed.unchanged += 1
        except ProfilehouseError as error:
            landed.problems[day] = str(error)


def _commit(
    source: Contract,
    pending: list[_Day],
    lake: Lake,
    zone: ZoneInfo,
    run: str | None,
    landed: Landed,
) -> None:
    days = [day.delivered_on for day in pending]
    good: list[pa.Table] = []
    dead: list[pa.Table] = []
    deliveries: list[dict[str, object]] = []
    for day in pending:
        numbered = [(n, line) for n, line in enumerate(day.lines, start=1) if line.strip()]
        refused = refusals([line for _, line in numbered], source)
        for i in list(refused) if day.repairs else ():
            number, line = numbered[i]
            mended = day.repairs.get(digest(line))
            if mended is not None and not refusals([mended], source):
                numbered[i] = (number, mended)
                del refused[i]
        kept = [pair for i, pair in enumerate(numbered) if i not in refused]
        received_at = close_of(day.delivered_on, zone)
        if kept:
            good.append(_raw_rows(day, received_at, kept))
        if refused:
            reasons = [(*numbered[i], reason) for i, reason in refused.items()]
            dead.append(_dead_letters(source, day, received_at, reasons))
        deliveries.append(
            {
                "delivered_on": day.delivered_on,
                "file": day.file,
                "sha256": day.sha256,
                "records": len(numbered),
                "dead_letters": len(refused),
            }
        )
        landed.days.append(day.delivered_on)
        landed.records += len(numbered)
        landed.dead_letters += len(refused)
    rows, held = _hold_back(source, pending, _concat(good, contract("raw")), run)
    landed.quarantined += len({*zip(*(held[name].to_pylist() for name in PLACE), strict=True)})
    begin_anew(lake, source.name, days)
    lake.replace(source.name, rows, days=days)
    lake.replace(
        "dead_letters", _concat(dead, contract("dead_letters")), days=days, topic=source.name
    )
    lake.replace(QUARANTINE, held, days=days, topic=source.name)
    lake.replace("deliveries", delivery_rows(source.name, deliveries), days=days, topic=source.name)


def _hold_back(
    source: Contract, pending: list[_Day], rows: pa.Table, run: str | None
) -> tuple[pa.Table, pa.Table]:
    """The rows that break no rule of the quality section, and the quarantine of the others.

    A row that breaks one is looked at again with its repair in its place, if it has one; so is a
    row that breaks one only beside repairs of others.
    """
    schema = contract(QUARANTINE).arrow_schema
    by_day = {day.delivered_on: day for day in pending}

    def delivered_as(day: date, line: int) -> str:
        return digest(by_day[day].lines[line - 1])

    tried: set[tuple[date, int]] = set()
    while new := (held := held_back(source, rows)).keys() - tried:
        tried |= new
        mended = {
            (day, line): record
            for day, line in new
            if (record := by_day[day].repairs.get(delivered_as(day, line))) is not None
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
    numbers, lines = zip(*kept, strict=True)
    return _table(
        contract("raw"),
        len(kept),
        delivered_on=day.delivered_on,
        line=pa.array(numbers, pa.int64()),
        file=day.file,
        received_at=received_at,
        record=pa.array(lines, pa.binary()).cast(pa.string()),
    )


def _dead_letters(
    source: Contract, day: _Day, received_at: datetime, letters: list[tuple[int, bytes, str]]
) -> pa.Table:
    numbers, lines, reasons = zip(*letters, strict=True)
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


def _concat(tables: list[pa.Table], layout: Contract) -> pa.Table:
    return pa.concat_tables(tables) if tables else layout.arrow_schema.empty_table()
