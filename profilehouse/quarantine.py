"""The quarantine as the operator sees it: records held back by a rule, until they are fixed.

Belongs here: finding, fixing, and landing anew what was fixed. Does not belong here: which records
a rule holds back (sources/held_back.py) or printing (cli/).

A fix is noted in the lake's table `repairs`, as that of a dead letter. A replay lands the days of
the fixes again; a fixed record that satisfies its contract then stands in its place, under its
line.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from profilehouse.contracts import contract, contracts_of
from profilehouse.decode import refusals
from profilehouse.errors import ProfilehouseError
from profilehouse.lake import Lake
from profilehouse.quality.rules import Rule
from profilehouse.sources.held_back import TABLE, holding_rules
from profilehouse.sources.landing import land
from profilehouse.sources.repairs import Repair, keep, repairs_of
from profilehouse.times import utc_now

if TYPE_CHECKING:
    from profilehouse.platform import Platform


@dataclass(frozen=True)
class Held:
    """One record that is held back.

    Attributes:
        id: `<source>/<day>/<line>`.
        topic: the source.
        delivered_on: its day.
        position: where it came from, in words.
        rules: names of the rules that it breaks.
        contract_version: of the contract that has them.
        run: that held it back, if it was one.
        sha256: of the line as delivered.
        fixed: whether a fix waits to be replayed.
    """

    id: str
    topic: str
    delivered_on: date
    position: str
    rules: tuple[str, ...]
    contract_version: str
    run: str | None
    sha256: str
    fixed: bool


def held(
    lake: Lake, topic: str | None = None, rule: str | None = None, since: date | None = None
) -> list[Held]:
    """The records that are held back, newest delivery first.

    Args:
        lake: to read.
        topic: only of this source.
        rule: only those that break this rule.
        since: only of this delivery day and later.

    Raises:
        ProfilehouseError: where there is no such source.
    """
    known = [source.name for source in contracts_of("sources")]
    if topic is not None and topic not in known:
        raise ProfilehouseError(f"no source {topic}; there are: {', '.join(known)}")
    columns = [c.name for c in contract(TABLE).columns if c.name != "record"]
    by_place: dict[tuple[str, date, int], list[dict[str, object]]] = {}
    for row in lake.read(TABLE, topic=topic, columns=columns).to_pylist():
        place = (row["topic"], row["delivered_on"], row["line"])
        by_place.setdefault(place, []).append(row)
    repairs = {name: repairs_of(lake, name) for name in {name for name, _, _ in by_place}}
    found = []
    for (name, day, line), rows in by_place.items():
        first = rows[0]
        rules = tuple(sorted(str(row["rule"]) for row in rows))
        if (rule is None or rule in rules) and (since is None or day >= since):
            found.append(
                Held(
                    id=f"{name}/{day}/{line}",
                    topic=name,
                    delivered_on=day,
                    position=f"line {line} of {first['file']}",
                    rules=rules,
                    contract_version=str(first["contract_version"]),
                    run=None if first["run"] is None else str(first["run"]),
                    sha256=str(first["sha256"]),
                    fixed=first["sha256"] in repairs[name].get(day, {}),
                )
            )
    lines = {one.id: int(one.id.rpartition("/")[2]) for one in found}
    return sorted(found, key=lambda one: (-one.delivered_on.toordinal(), one.topic, lines[one.id]))


def find(lake: Lake, ids: Sequence[str]) -> list[Held]:
    """The held-back records with these ids.

    Raises:
        ProfilehouseError: where there is none.
    """
    by_id = {one.id: one for one in held(lake)}
    if missing := [name for name in ids if name not in by_id]:
        raise ProfilehouseError(
            f"{missing[0]} is not in quarantine; `profilehouse quarantine list` shows what is"
        )
    return [by_id[name] for name in ids]


def record_of(lake: Lake, one: Held) -> str:
    """The record as it breaks the rules."""
    line = int(one.id.rpartition("/")[2])
    rows = lake.read(
        TABLE, topic=one.topic, days=[one.delivered_on], columns=["line", "record"]
    ).to_pylist()
    return next(str(row["record"]) for row in rows if row["line"] == line)


def rules_of(one: Held) -> list[Rule]:
    """The rules that a record breaks, as its contract says them now."""
    return [rule for rule in holding_rules(contract(one.topic)) if rule.name in one.rules]


def fix(lake: Lake, one: Held, record: bytes) -> None:
    """Note what a record should have been; `replay` brings it in.

    Raises:
        ProfilehouseError: where it breaks the contract. Whether it satisfies the rules too shows
            when it is replayed, among the other records of its day.
    """
    record = record.strip()
    if reasons := refusals([record], contract(one.topic)):
        raise ProfilehouseError(f"the fix of {one.id} breaks its contract: {reasons[0]}")
    repair = Repair(one.id, one.delivered_on, one.sha256, record)
    keep(lake, one.topic, [repair], utc_now())


@dataclass
class Replayed:
    """What a replay did.

    Attributes:
        freed: ids of the records that are held back no longer.
        left: id -> why it is held back still.
        landed: source -> the days that were landed again.
    """

    freed: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    landed: dict[str, list[date]] = field(default_factory=dict)


def replay(platform: Platform, chosen: Collection[Held]) -> Replayed:
    """Land the days of held-back records again, where a fix or the contract changed since.

    Raises:
        ProfilehouseError: where the lake cannot be used; replaying again does the rest.
    """
    lake, done = platform.lake(), Replayed()
    for topic in sorted({one.topic for one in chosen}):
        of_topic = [one for one in chosen if one.topic == topic]
        days = {one.delivered_on for one in of_topic}
        zone = platform.settings.zone
        folder = platform.sources()
        landed = land(contract(topic), days, folder, lake, zone)
        if landed.days:
            done.landed[topic] = landed.days
        after = {one.id: one for one in held(lake, topic)}
        files = folder.deliveries(contract(topic)).files
        for one in of_topic:
            if one.id not in after:
                done.freed.append(one.id)
            elif one.delivered_on in landed.problems:
                done.left[one.id] = landed.problems[one.delivered_on]
            elif one.delivered_on not in files:
                done.left[one.id] = (
                    f"the file it came in is no longer in {folder.path}/{topic}; deliver it again"
                )
            elif after[one.id].fixed:
                rules = ", ".join(after[one.id].rules)
                done.left[one.id] = f"as fixed it breaks {rules}"
            else:
                done.left[one.id] = "it has no fix; give one with `profilehouse quarantine fix`"
    return done
