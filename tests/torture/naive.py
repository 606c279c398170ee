"""What must come of the input: the platform's rules once more, told slowly.

Nothing of the engine is imported. Every event is kept, everything is sorted, and each column is
computed from all events of a person by its definition in contracts/profile.yaml.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DECLARATION = Path(__file__).resolve().parents[2] / "contracts" / "profile.yaml"
VERSION = "1.0.0"
"""Of the web contract: what an event that names none is taken for."""

_WEEK = timedelta(days=7)
_US = timedelta(microseconds=1)
_ID = re.compile(r"[\x21-\x7e]{1,200}")
_TEXT = re.compile(".{1,200}")
_RULES: dict[str, re.Pattern[str]] = {
    **dict.fromkeys(["event_id", "user_id", "anonymous_id", "session_id", "content_id"], _ID),
    **dict.fromkeys(["campaign_id", "order_id"], _ID),
    **dict.fromkeys(["category", "device"], _TEXT),
    **dict.fromkeys(["url", "referrer"], re.compile(".*", re.DOTALL)),
    "contract_version": re.compile(r"1[.][0-9]{1,4}[.][0-9]{1,4}"),
    "event_type": re.compile("impression|page_view|click|add_to_cart|purchase|search|custom"),
}
_FIELDS = [*_RULES, "value_cents", "occurred_at", "received_at", "consent", "properties"]
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")

Position = tuple[int, int]
"""(partition, offset)."""

Event = dict[str, Any]
"""Its columns in the lake, without the topic's id."""


@dataclass(frozen=True)
class Appended:
    """A record where it stands in the log, and when the log took it, UTC and naive."""

    partition: int
    offset: int
    appended_at: datetime
    value: bytes

    @property
    def position(self) -> Position:
        """Its place in the log."""
        return self.partition, self.offset


@dataclass(frozen=True)
class Expected:
    """What the lake holds, by position, and who has which events that count."""

    events: Mapping[Position, Event]
    dead_letters: Mapping[Position, bytes]
    users: Mapping[str, Sequence[Event]]
    visitors: Mapping[str, Sequence[Event]]
    owned: int
    """Events that count for a user only because the visitor logged in."""


def expect(records: Iterable[Appended]) -> Expected:
    """Everything that must come of these records.

    `users` and `visitors` have everybody who is named in a good record, some without events.
    """
    good: dict[Position, Event] = {}
    bad: dict[Position, bytes] = {}
    for record in records:
        event = _decoded(record)
        if event is None:
            bad[record.position] = record.value
        else:
            good[record.position] = event

    counted = [
        event
        for event in good.values()
        if event["consent"] and event["received_at"] - event["occurred_at"] <= _WEEK
    ]
    counted.sort(
        key=lambda event: (event["received_at"], event["log_partition"], event["log_offset"])
    )
    owners = _owners(counted)
    users: dict[str, list[Event]] = {e["user_id"]: [] for e in good.values() if e["user_id"]}
    visitors: dict[str, list[Event]] = {
        e["anonymous_id"]: [] for e in good.values() if e["anonymous_id"]
    }
    copies = set()
    owned = 0
    for event in counted:
        session = (event["anonymous_id"], event["session_id"])
        sender = (event["user_id"],) if event["user_id"] else session
        if (sender, event["event_id"]) in copies:
            continue
        copies.add((sender, event["event_id"]))
        if event["user_id"]:
            users[event["user_id"]].append(event)
        elif session in owners:
            users[owners[session]].append(event)
            owned += 1
        else:
            visitors[event["anonymous_id"]].append(event)
    return Expected(good, bad, users, visitors, owned)


def profile(events: Sequence[Event], as_of: date) -> dict[str, Any] | None:  # noqa: PLR0912
    """The columns of contracts/profile.yaml over the events of one person, without who it is."""
    if not events:
        return None
    declared = _declared()
    happened = [
        (min(event["occurred_at"], event["received_at"] - _US), event["event_id"], event)
        for event in events
    ]
    happened.sort(key=lambda each: each[:2], reverse=True)
    columns: dict[str, Any] = {"as_of": as_of}
    for feature in declared["features"]:
        name, kind = feature["name"], feature["kind"]
        chosen = [
            ((as_of - moment.date()).days, event)
            for moment, _, event in happened
            if event["event_type"] == feature.get("event_type")
        ]
        if kind in ("count", "sum"):
            amount = feature.get("field")
            amounts = [(age, (event[amount] or 0) if amount else 1) for age, event in chosen]
            for window in feature.get("windows", []):
                columns[f"{name}_{window}d"] = sum(n for age, n in amounts if age < window)
            if feature.get("lifetime"):
                columns[f"{name}_lifetime"] = sum(n for _, n in amounts)
        elif kind == "decayed":
            scores: dict[str, int] = {}
            for age, event in chosen:
                key = event[feature["key"]]
                if key is not None and age < feature["window"]:
                    weight = round(65536 * 2 ** (-age / feature["half_life_days"]))
                    scores[key] = scores.get(key, 0) + weight
            best = sorted(scores.items(), key=lambda each: (-each[1], each[0]))[: feature["top"]]
            columns[name] = [key for key, _ in best]
            columns[f"{name}_scores"] = [str(score) for _, score in best]
        elif kind == "last":
            values = [event[feature["field"]] for _, event in chosen]
            columns[name] = [value for value in values if value is not None][: feature["count"]]
        elif kind == "first_seen":
            columns[name] = happened[-1][0]
        elif kind == "last_seen":
            columns[name] = happened[0][0]
            columns[f"days_since_{name.removesuffix('_at')}"] = (as_of - happened[0][0].date()).days
        else:
            raise ValueError(f"{name}: nobody told this test what a {kind} is")
    for segment in declared["segments"]:
        condition = segment["when"].replace("AND", "and").replace("OR", "or").replace(" = ", " == ")
        columns[f"is_{segment['name']}"] = bool(eval(condition, {}, columns))
    return columns


@cache
def _declared() -> dict[str, Any]:
    declared: dict[str, Any] = yaml.safe_load(DECLARATION.read_text("utf-8"))
    return declared


def _owners(counted: Sequence[Event]) -> dict[tuple[str, str], str]:
    """(anonymous_id, session_id) -> the user whose login is the first."""
    logins: dict[tuple[str, str], list[tuple[datetime, str]]] = {}
    for event in counted:
        if event["user_id"] and event["anonymous_id"] and event["session_id"]:
            session = (event["anonymous_id"], event["session_id"])
            logins.setdefault(session, []).append((event["received_at"], event["user_id"]))
    return {session: min(candidates)[1] for session, candidates in logins.items()}


def _decoded(record: Appended) -> Event | None:
    """The event, or None where the record is none."""
    try:
        told = json.loads(record.value.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or not set(told) <= set(_FIELDS):
        return None
    event: Event = dict.fromkeys(_FIELDS) | told
    for name, rule in _RULES.items():
        value = event[name]
        if value is not None and not (isinstance(value, str) and rule.fullmatch(value)):
            return None
    occurred, received = _moment(event["occurred_at"]), _moment(event["received_at"])
    cents, properties = event["value_cents"], event["properties"]
    sound = (
        event["event_id"] is not None
        and event["event_type"] is not None
        and (event["user_id"] is not None or event["anonymous_id"] is not None)
        and isinstance(event["consent"], bool)
        and occurred is not None
        and (received is not None or event["received_at"] is None)
        and (cents is None or (type(cents) is int and -(2**63) <= cents < 2**63))
        and (properties is None or isinstance(properties, dict))
    )
    if not sound:
        return None
    if event["event_type"] == "purchase" and event["order_id"] and event["content_id"]:
        event["event_id"] = f"purchases/{event['order_id']}/{event['content_id']}"
    event["occurred_at"] = occurred
    event["received_at"] = received or record.appended_at
    event["contract_version"] = event["contract_version"] or VERSION
    event["log_partition"], event["log_offset"] = record.position
    event["delivered_on"] = event["received_at"].date()
    return event


def _moment(text: Any) -> datetime | None:
    """UTC, naive; None for what is no time of a believable year."""
    if not isinstance(text, str) or not _TIME.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None
    return moment if 1900 <= moment.year < 2200 else None


def _refuse(constant: str) -> None:
    raise ValueError(constant)
