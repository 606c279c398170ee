"""Dead letters as the operator sees them: of files and of the event log alike.

Belongs here: finding, and replaying mended. Does not belong here: why a record is refused
(decode.py, events/web.py) or printing (cli/).

A dead letter of a file is `<source>/<day>/<line>`, one of the log `web/<partition>/<offset>`. A
replay of the first lands the day again with the repaired record in the place of the refused one; a
replay of the second appends the repaired record to the log. Either is noted in the lake's table
`repairs`, and the dead letter of the log stays where it is, as what was refused.

An event counts once however often it is replayed, as it keeps its event_id. Profiles remember an
id for LATE_DAYS only, and a replayed event counts as received when it first was. So before an event
that they may have forgotten is appended, lake and log are searched for a copy of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.contracts import contract, contracts_of
from profilehouse.decode import refusals
from profilehouse.errors import ProfilehouseError
from profilehouse.events.web import DEAD_LETTERS, EVENTS, decode
from profilehouse.lake import Lake
from profilehouse.log import Batch, Log, check_size, key_of
from profilehouse.profiles.features import LATE_DAYS
from profilehouse.sources.landing import land
from profilehouse.sources.repairs import Repair, digest, keep, repaired_letters
from profilehouse.times import utc_now

if TYPE_CHECKING:
    from profilehouse.platform import Platform

WEB = "web"
"""The topic of the event log's letters."""

_REMEMBERED = timedelta(days=LATE_DAYS - 1)
"""Profiles remember a younger event surely, also when it is folded some hours from now."""
_SLACK = timedelta(days=LATE_DAYS)
"""A copy may have come so long before the event, by a wrong clock."""
_RECORDS_AT_ONCE = 20_000
_SECONDS_TO_WAIT = 10.0

_NOT_AS_IT_WAS = (
    "its file is not there, or no longer as it was; the repair is kept, and applied when it is"
)

_FILE_PLACE, _LOG_PLACE = ("delivered_on", "line"), ("log_partition", "log_offset")


@dataclass(frozen=True)
class DeadLetter:
    """One refused record; `record_of` has its bytes.

    Attributes:
        id: names it.
        topic: the source, or `web`.
        delivered_on: UTC day of `received_at`, or the day of the delivery.
        received_at: UTC.
        position: where it came from, in words.
        reason: why it was refused.
        contract_version: of the contract that refused it.
        replayed: whether it was brought in; one of a file is no dead letter any more then.
        place: its key among the letters of its topic.
    """

    id: str
    topic: str
    delivered_on: date
    received_at: datetime
    position: str
    reason: str
    contract_version: str
    replayed: bool
    place: tuple[Any, int]


def letters(lake: Lake, topic: str | None = None, since: date | None = None) -> list[DeadLetter]:
    """The dead letters there are, newest first.

    Args:
        lake: to read.
        topic: only of this source, or of `web`.
        since: only of this delivery day and later.

    Raises:
        ProfilehouseError: where there is no such source.
    """
    known = [WEB, *(c.name for kind in ("sources", "feeds") for c in contracts_of(kind))]
    if topic is not None and topic not in known:
        raise ProfilehouseError(f"no source {topic}; there are: {', '.join(known)}")
    found = [
        letter
        for letter in (*_of_files(lake, topic), *_of_log(lake, topic))
        if since is None or letter.delivered_on >= since
    ]
    return sorted(found, key=_age, reverse=True)


def find(lake: Lake, ids: Sequence[str]) -> list[DeadLetter]:
    """The dead letters with these ids.

    Raises:
        ProfilehouseError: where there is none.
    """
    by_id = {letter.id: letter for letter in letters(lake)}
    missing = [name for name in ids if name not in by_id]
    if missing:
        raise ProfilehouseError(
            f"no dead letter {missing[0]}: `profilehouse dead-letters list` shows the ids; one of a"
            " file is gone once the file was corrected or the record repaired"
        )
    return [by_id[name] for name in ids]


def record_of(lake: Lake, letter: DeadLetter) -> bytes:
    """The original bytes."""
    [(_, record)] = _with_records(lake, [letter])
    return record


@dataclass
class Replayed:
    """What a replay did.

    Attributes:
        replayed: ids of the letters that were brought in.
        known: ids of those that needed not be, as a copy of the event had come.
        refused: id -> why it was left alone.
        landed: source -> the days that were landed again.
    """

    replayed: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    landed: dict[str, list[date]] = field(default_factory=dict)


def replay(
    platform: Platform, chosen: Collection[DeadLetter], mended: bytes | None = None
) -> Replayed:
    """Bring dead letters back in, as they are (the contract was mended) or as `mended`.

    Nothing of a letter that breaks its contract still is written.

    Args:
        platform: where lake, sources and log are.
        chosen: the letters; with `mended` one.
        mended: what the record should have been.

    Raises:
        ProfilehouseError: where lake or log cannot be used; replaying again does the rest.
    """
    lake = platform.lake()
    done = Replayed()
    oldest_first = sorted(set(chosen), key=_age)
    of_log = [letter for letter in oldest_first if letter.topic == WEB]
    if of_log:
        _replay_log(platform, lake, of_log, mended, done)
    by_topic = sorted((one for one in oldest_first if one.topic != WEB), key=lambda one: one.topic)
    for topic, of_topic in groupby(by_topic, key=lambda one: one.topic):
        _replay_files(platform, lake, topic, list(of_topic), mended, done)
    return done


def _age(letter: DeadLetter) -> tuple[datetime, str, Any]:
    return letter.received_at, letter.topic, letter.place


def _of_files(lake: Lake, topic: str | None) -> Iterator[DeadLetter]:
    if topic == WEB:
        return
    columns = [c.name for c in contract("dead_letters").columns if c.name != "record"]
    for row in lake.read("dead_letters", topic=topic, columns=columns).to_pylist():
        yield DeadLetter(
            id=f"{row['topic']}/{row['delivered_on']}/{row['line']}",
            topic=row["topic"],
            delivered_on=row["delivered_on"],
            received_at=row["received_at"],
            position=f"line {row['line']} of {row['file']}",
            reason=row["reason"],
            contract_version=row["contract_version"],
            replayed=False,
            place=(row["delivered_on"], row["line"]),
        )


def _of_log(lake: Lake, topic: str | None) -> Iterator[DeadLetter]:
    if topic not in (None, WEB):
        return
    repaired = repaired_letters(lake, WEB)
    columns = [c.name for c in contract(DEAD_LETTERS).columns if c.name != "record"]
    for row in lake.read(DEAD_LETTERS, columns=columns).to_pylist():
        name = f"{WEB}/{row['log_partition']}/{row['log_offset']}"
        yield DeadLetter(
            id=name,
            topic=WEB,
            delivered_on=row["delivered_on"],
            received_at=row["received_at"],
            position=f"offset {row['log_offset']} of partition {row['log_partition']}"
            f" of the log {row['topic_id']}",
            reason=row["reason"],
            contract_version=row["contract_version"],
            replayed=name in repaired,
            place=(row["log_partition"], row["log_offset"]),
        )


def _with_records(lake: Lake, chosen: Collection[DeadLetter]) -> Iterator[tuple[DeadLetter, bytes]]:
    """Letters of one topic, each with its bytes; a few thousand are in memory at a time."""
    wanted = {letter.place: letter for letter in chosen}
    days = {letter.delivered_on for letter in chosen}
    topic = next(iter(chosen)).topic
    if topic == WEB:
        table, place, of_topic = DEAD_LETTERS, _LOG_PLACE, None
    else:
        table, place, of_topic = "dead_letters", _FILE_PLACE, topic
    for batch in lake.batches(table, columns=[*place, "record"], days=days, topic=of_topic):
        keys = zip(*(batch[name].to_pylist() for name in place), strict=True)
        for row, key in enumerate(keys):
            if key in wanted:
                yield wanted[key], batch["record"][row].as_py()


def _repairs(
    lake: Lake, chosen: Collection[DeadLetter], mended: bytes | None
) -> list[tuple[DeadLetter, Repair]]:
    """What is to stand in the place of each letter of one topic, whether it is good or not."""
    return [
        (
            letter,
            Repair(
                letter=letter.id,
                delivered_on=letter.delivered_on,
                sha256=digest(refused),
                record=refused if mended is None else mended.strip(),
            ),
        )
        for letter, refused in _with_records(lake, chosen)
    ]


def _replay_files(
    platform: Platform,
    lake: Lake,
    topic: str,
    chosen: Collection[DeadLetter],
    mended: bytes | None,
    done: Replayed,
) -> None:
    repairs = [repair for _, repair in _repairs(lake, chosen, mended)]
    reasons = refusals([repair.record for repair in repairs], contract(topic))
    done.refused |= {repairs[index].letter: reason for index, reason in reasons.items()}
    repairs = [repair for index, repair in enumerate(repairs) if index not in reasons]
    if not repairs:
        return
    keep(lake, topic, repairs, utc_now())
    days = {repair.delivered_on for repair in repairs}
    zone = platform.settings.zone
    landed = land(contract(topic), days, platform.sources(), lake, zone)
    if landed.days:
        done.landed[topic] = landed.days
    left = {letter.id for letter in letters(lake, topic)}
    for repair in repairs:
        if repair.letter in left:
            problem = landed.problems.get(repair.delivered_on, _NOT_AS_IT_WAS)
            done.refused[repair.letter] = problem
        else:
            done.replayed.append(repair.letter)


def _replay_log(
    platform: Platform,
    lake: Lake,
    chosen: Sequence[DeadLetter],
    mended: bytes | None,
    done: Replayed,
) -> None:
    days = [list(of_day) for _, of_day in groupby(chosen, key=lambda letter: letter.delivered_on)]
    with platform.log() as log, log.producer() as producer:
        old: dict[str, datetime] = {}
        for of_day in days:
            events, _ = _decoded(_repairs(lake, of_day, mended))
            old |= {e.id: e.occurred_at for e in events.values() if e.may_be_forgotten}
        came = _copies(lake, log, old)
        for of_day in days:
            repairs = _repairs(lake, of_day, mended)
            events, reasons = _decoded(repairs)
            done.refused |= {repairs[index][0].id: reason for index, reason in reasons.items()}
            for index, event in events.items():
                letter, _ = repairs[index]
                if event.id in came:
                    done.known.append(letter.id)
                    continue
                producer.append(key_of(event.value), event.value)
                done.replayed.append(letter.id)
                if event.id in old:
                    came.add(event.id)
            producer.flush()
            keep(lake, WEB, [repairs[index][1] for index in events], utc_now())


class _Event(NamedTuple):
    id: str
    occurred_at: datetime
    value: bytes
    """The record for the log."""

    @property
    def may_be_forgotten(self) -> bool:
        return self.occurred_at + _REMEMBERED < utc_now()


def _decoded(
    repairs: Sequence[tuple[DeadLetter, Repair]],
) -> tuple[dict[int, _Event], dict[int, str]]:
    """The events that the records are, and why others are none, by their index."""
    records = [repair.record for _, repair in repairs]
    decoded = decode(Batch(0, range(len(records)), [0] * len(records), records), "")
    dead = decoded.dead
    reasons = dict(zip(dead["log_offset"].to_pylist(), dead["reason"].to_pylist(), strict=True))
    events: dict[int, _Event] = {}
    columns = (
        decoded.events[name].to_pylist() for name in ("log_offset", "event_id", "occurred_at")
    )
    for index, event_id, occurred_at in zip(*columns, strict=True):
        value = _received(records[index], repairs[index][0].received_at)
        try:
            check_size(key_of(value), value)
            events[index] = _Event(event_id, occurred_at, value)
        except ProfilehouseError as error:
            reasons[index] = str(error)
    return events, reasons


def _received(record: bytes, received_at: datetime) -> bytes:
    """The event as it was received first, if it does not say itself when that was."""
    fields = msgspec.json.decode(record, type=dict[str, msgspec.Raw])
    if bytes(fields.get("received_at", b"null")) == b"null":
        stamp = msgspec.json.encode(received_at.replace(tzinfo=UTC))
        fields["received_at"] = msgspec.Raw(stamp)
    return msgspec.json.encode(fields)


def _copies(lake: Lake, log: Log, events: Mapping[str, datetime]) -> set[str]:
    """The ids that lake or log have, of those events: id -> when it happened."""
    if not events:
        return set()
    wanted = pa.array(list(events), pa.string())
    since = (min(events.values()) - _SLACK).date()
    found: set[str] = set()
    stored = lake.positions(EVENTS)
    for table in (EVENTS, "events"):
        days = [day for day in lake.days(table) if day >= since]
        for batch in lake.batches(table, columns=["event_id"], days=days):
            found |= _among(batch["event_id"], wanted)
    offsets = stored.offsets if stored.topic_id == log.topic_id else {}
    for records in _beyond(log, offsets):
        found |= _among(decode(records, log.topic_id).events["event_id"], wanted)
    return found


def _among(ids: pa.Array | pa.ChunkedArray, wanted: pa.Array) -> set[str]:
    return set(ids.filter(pc.is_in(ids, wanted)).to_pylist())


def _beyond(log: Log, offsets: dict[int, int]) -> Iterator[Batch]:
    """What the log has now beyond some offsets."""
    ends = {p: end for p, end in log.ends().items() if end > offsets.get(p, 0)}
    read = dict.fromkeys(ends, 0)
    with log.consumer({p: offsets.get(p) for p in ends}) as consumer:
        while any(read[p] < end for p, end in ends.items()):
            batches = consumer.read(_RECORDS_AT_ONCE, _SECONDS_TO_WAIT)
            if not batches:
                return
            for batch in batches:
                read[batch.partition] = batch.next_offset
                yield batch
