"""The input of the torture test: a web site's events, with everything that goes wrong in one.

Visitors come with and without an account, log in and out, share a device, refuse consent. Their
events come late, out of order, twice, from wrong clocks, and some are no events at all.
"""

from __future__ import annotations

import heapq
import json
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

DUPLICATES = 0.02
OUT_OF_ORDER = 0.03
MALFORMED = 0.005
LATE = 0.01
WRONG_CLOCK = 0.005

ACTIVE_DAYS = (100, 99, 69, 60, 40, 31, 30, 29, 14, 8, 7, 6, 3, 2, 1, 0)
"""Days before the end on which the site is visited: around the edges of the profile's windows."""

_WEEK = timedelta(days=7)
_US = timedelta(microseconds=1)
_VISITS_AT_ONCE = 200
_FRAME = struct.Struct(">II")
_ODD_USERS = ("o'hara", 'quo"te', "back\\slash", "{curly}", "a/b?c=d&e", "-", "%00", "NULL")
_CATEGORIES = [f"category {n}" for n in range(12)] + ["Süßes", "чай", "dairy, eggs & 'more'"]
_TYPES = {
    "page_view": 40,
    "impression": 20,
    "click": 18,
    "purchase": 9,
    "search": 5,
    "add_to_cart": 5,
    "custom": 3,
}


@dataclass(frozen=True)
class Record:
    """What a producer appends."""

    key: bytes
    value: bytes


@dataclass
class Input:
    """Records in the order in which they are appended, and how many of each kind there are."""

    records: list[Record] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


@dataclass
class _Visit:
    """`steps` are the users of the events to come, None for those without one."""

    anonymous_id: str | None
    session_id: str | None
    consent: bool
    steps: list[str | None]
    stamped: bool = True


def generate(seed: int, size: int, end: datetime) -> Input:
    """The input of a seed.

    Args:
        seed: the same one gives the same input.
        size: how many records, at least; copies come on top.
        end: when the site's last day ends, UTC and naive: now, as some records take the log's time.
    """
    return _Site(random.Random(seed), size, end).open()


def save(records: Sequence[Record], path: Path) -> None:
    """Write records to a file."""
    with path.open("wb") as file:
        for record in records:
            file.write(_FRAME.pack(len(record.key), len(record.value)))
            file.write(record.key)
            file.write(record.value)


def load(path: Path) -> Iterator[Record]:
    """The records of a file that `save` wrote."""
    with path.open("rb") as file:
        while header := file.read(_FRAME.size):
            key, value = _FRAME.unpack(header)
            yield Record(file.read(key), file.read(value))


class _Site:
    def __init__(self, chance: random.Random, size: int, end: datetime) -> None:
        self._chance = chance
        self._size = size
        self._end = end
        self._users = [*_ODD_USERS, *(f"user-{n}" for n in range(max(size // 25, 40)))]
        chance.shuffle(self._users)
        self._weights = [1 / (rank + 1) for rank in range(len(self._users))]
        self._visits: list[_Visit] = []
        self._copies: list[tuple[int, int, dict[str, Any], str]] = []
        self._made = 0
        self._numbers = iter(range(10**12))
        self._input = Input()

    def open(self) -> Input:
        for number in range(self._size):
            self._made, self._now = number, self._clock(number)
            if self._chance.random() < MALFORMED:
                self._append_malformed()
            else:
                self._append_event()
            while self._copies and self._copies[0][0] <= self._made:
                _, _, event, kind = heapq.heappop(self._copies)
                self._append(event, kind)
        return self._input

    def _clock(self, number: int) -> datetime:
        """When the collector takes the record of this number; it never goes back."""
        per_day = -(-self._size // len(ACTIVE_DAYS))
        day, within = divmod(number, per_day)
        midnight = datetime.combine(self._end.date(), datetime.min.time())
        length = timedelta(days=1) if ACTIVE_DAYS[day] else self._end - midnight
        return midnight - timedelta(days=ACTIVE_DAYS[day]) + length * within / per_day

    def _append(self, event: dict[str, Any], kind: str = "event") -> None:
        key = (event.get("user_id") or event["anonymous_id"]).encode()
        received = self._now + _US * self._chance.randrange(2)
        stamp = {} if event["event_id"].startswith("server") else {"received_at": _text(received)}
        self._input.records.append(Record(key, _json(event | stamp)))
        self._input.kinds[kind] += 1

    def _append_event(self) -> None:
        visit = self._next_visit()
        user = visit.steps.pop(0)
        event = self._event(visit, user)
        self._append(event)
        if self._chance.random() < DUPLICATES:
            self._repeat(event, "copy")
        if event.get("order_id") and event.get("content_id") and self._chance.random() < 0.3:
            again = event | {"event_id": f"{event['event_id']}-by-the-shop", "url": None}
            other = event | {"event_id": f"{event['event_id']}-b", "content_id": "another"}
            self._repeat(*self._chance.choice([(again, "told twice"), (other, "second line")]))

    def _repeat(self, event: dict[str, Any], kind: str) -> None:
        """Sometimes at once, sometimes days later."""
        distance = self._chance.choice([1, 1, 20, 500, self._size // 10])
        self._copies.append((self._made + distance, next(self._numbers), event, kind))
        heapq.heapify(self._copies)

    def _next_visit(self) -> _Visit:
        while len(self._visits) < _VISITS_AT_ONCE:
            self._visits.append(self._visit())
        place = self._chance.randrange(len(self._visits))
        visit = self._visits[place]
        if len(visit.steps) == 1:
            self._visits[place] = self._visit()
        return visit

    def _visit(self) -> _Visit:
        chance = self._chance
        one, other = chance.choices(self._users, self._weights, k=2)
        kinds = {
            "known": 30,
            "stranger": 20,
            "logs in": 20,
            "logs out": 8,
            "two people": 8,
            "no session": 7,
            "server": 7,
        }
        [kind] = chance.choices(list(kinds), list(kinds.values()))
        self._input.kinds[f"visit: {kind}"] += 1
        device = f"shared-{chance.randrange(20)}" if chance.random() < 0.2 else f"device-of-{one}"
        if kind == "stranger" and chance.random() < 0.7:
            device = f"device-{next(self._numbers)}"
        session = f"session-{next(self._numbers)}"
        some = [chance.randint(1, 8) for _ in range(4)]
        nobody: list[str | None] = [None]
        known: list[str | None] = [one]
        steps: dict[str, list[str | None]] = {
            "known": known * (some[0] + some[1]),
            "stranger": nobody * (some[0] + some[1]),
            "logs in": nobody * some[0] + known * some[1],
            "logs out": known * some[0] + nobody * some[1],
            "two people": nobody * some[0] + [one, other] * some[1] + nobody * some[2],
            "no session": nobody * some[0] + known * some[1] + nobody * some[2],
            "server": [f"shop-customer-{chance.randrange(1 + self._size // 400)}"] * some[0],
        }
        server = kind == "server"
        return _Visit(
            anonymous_id=None if server else device,
            session_id=None if server or kind == "no session" else session,
            consent=chance.random() >= 0.08,
            steps=steps[kind],
            stamped=not server,
        )

    def _event(self, visit: _Visit, user: str | None) -> dict[str, Any]:
        chance = self._chance
        [event_type] = chance.choices(list(_TYPES), list(_TYPES.values()))
        content = f"content-{int(chance.paretovariate(0.7)) % 500}"
        optional: dict[str, Any] = {
            "user_id": user,
            "anonymous_id": visit.anonymous_id,
            "session_id": visit.session_id,
            "content_id": None if chance.random() < 0.1 else content,
            "category": None if chance.random() < 0.1 else chance.choice(_CATEGORIES),
            "campaign_id": f"campaign-{chance.randrange(9)}" if chance.random() < 0.2 else None,
            "url": f"https://shop.example/{content}?q=%20" if chance.random() < 0.8 else None,
            "referrer": "" if chance.random() < 0.3 else None,
            "device": chance.choice(["phone", "desktop", "tablet, old"]),
            "properties": self._properties(),
            "contract_version": chance.choice([None, "1.0.0", "1.12.0"]),
        }
        if event_type == "purchase":
            number = next(self._numbers)
            optional["order_id"] = f"order-{number}" if chance.random() < 0.9 else None
            optional["value_cents"] = chance.choice([None, 0, -500, chance.randrange(10**6)])
        told = {n: v for n, v in optional.items() if v is not None or chance.random() < 0.1}
        prefix = "web" if visit.stamped else "server"
        return {
            "event_id": f"{prefix}-{next(self._numbers)}",
            "event_type": event_type,
            "occurred_at": self._occurred(visit),
            "consent": visit.consent if chance.random() > 0.01 else not visit.consent,
            **told,
        }

    def _occurred(self, visit: _Visit) -> str:
        chance, now = self._chance, self._now
        if not visit.stamped:
            # The log stamps these, some time after the end: they stay clear of the seven days.
            now = self._end - timedelta(hours=chance.uniform(0, 24 * 5))
        luck = chance.random()
        if luck < LATE:
            self._input.kinds["late"] += 1
            late = chance.choice([_WEEK + 2 * _US, timedelta(days=8), timedelta(days=40)])
            return self._zoned((now if visit.stamped else self._end) - late)
        if luck < LATE + OUT_OF_ORDER:
            self._input.kinds["out of order"] += 1
            ago = chance.choice([0.01, 1, 24, 24 * 6.9])
            return self._zoned(now - timedelta(hours=chance.uniform(0, ago)))
        if luck < LATE + OUT_OF_ORDER + 2 * WRONG_CLOCK:
            self._input.kinds["edge or wrong clock"] += 1
            return self._zoned(now + chance.choice([-_WEEK, _US, timedelta(days=3000)]))
        return self._zoned(now - timedelta(milliseconds=chance.randrange(50)))

    def _zoned(self, moment: datetime) -> str:
        """The same moment, as different senders write it."""
        if self._chance.random() < 0.1:
            return _text(moment + timedelta(hours=5, minutes=30)).removesuffix("Z") + "+05:30"
        return _text(moment)

    def _properties(self) -> dict[str, Any] | None:
        chance = self._chance
        if chance.random() < 0.7:
            return None
        some: list[dict[str, Any]] = [
            {},
            {"q": 'чай "grün" \\ / \x07 😀', "results": chance.randrange(100)},
            {"nested": {"list": [1, 2.5, None, True, {"deep": []}]}, "": ""},
            {"text": "x" * chance.randrange(3000)},
        ]
        return chance.choice(some)

    def _append_malformed(self) -> None:
        visit = _Visit("device-of-nobody", "session-of-nobody", True, [])
        event = self._event(visit, self._chance.choice([None, "user-1"]))
        spoil = self._chance.choice(_FAULTS)
        key = self._chance.choice([b"user-1", b"device-of-nobody", bytes(range(256)), b"k"])
        self._input.records.append(Record(key, spoil(event)))
        self._input.kinds["malformed"] += 1


def _json(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode()


def _text(moment: datetime) -> str:
    return moment.replace(tzinfo=UTC).isoformat().replace("+00:00", "Z")


def _with(**changes: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda event: _json(event | changes)


def _without(*names: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda event: _json({n: v for n, v in event.items() if n not in names})


def _bytes(value: bytes) -> Callable[[dict[str, Any]], bytes]:
    return lambda _: value


def _properties(value: bytes) -> Callable[[dict[str, Any]], bytes]:
    return lambda event: _json(event | {"properties": "MARK"}).replace(b'"MARK"', value)


_FAULTS: tuple[Callable[[dict[str, Any]], bytes], ...] = (
    _bytes(b""),
    _bytes(b"   "),
    _bytes(bytes(range(256))),
    _bytes(b"\x89PNG\r\n\x1a\n\x00\x00"),
    _bytes(b"null"),
    _bytes(b"[]"),
    _bytes(b"17"),
    _bytes(b"[" * 100_000),
    _bytes(b'{"properties":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001),
    lambda event: _json(event)[: len(_json(event)) // 2],
    lambda event: _json(event) + b"}",
    lambda event: _json(event) + b"\n" + _json(event),
    lambda event: b"[" + _json(event) + b"]",
    lambda event: _json(event | {"device": "MARK"}).replace(b"MARK", b"\xff\xfe"),
    lambda event: _json(event | {"device": "MARK"}).replace(b'"MARK"', b"NaN"),
    lambda event: _json(event).replace(b'"', b"'"),
    _with(surprise=1),
    _with(Event_ID="x"),
    _with(event_id=5),
    _with(event_id=""),
    _with(event_id="with space"),
    _with(event_id="x" * 201),
    _with(event_id="newline\n"),
    _with(event_type="PAGE_VIEW"),
    _with(event_type=None),
    _with(user_id="ü"),
    _with(user_id="\x1fdevice"),
    _with(user_id={}),
    _with(user_id=None, anonymous_id=None),
    _without("user_id", "anonymous_id"),
    _with(anonymous_id=["a"]),
    _with(content_id=""),
    _with(category="line\nbreak"),
    _with(consent="yes"),
    _with(consent=1),
    _with(consent=None),
    _without("consent"),
    _without("event_id"),
    _without("event_type"),
    _without("occurred_at"),
    _with(occurred_at="2026-03-01T12:00:00"),
    _with(occurred_at="2026-02-30T12:00:00Z"),
    _with(occurred_at="yesterday"),
    _with(occurred_at=1767225600),
    _with(occurred_at="1776-07-04T12:00:00Z"),
    _with(occurred_at="2999-01-01T00:00:00Z"),
    _with(received_at="soon"),
    _with(value_cents="100"),
    _with(value_cents=1.5),
    _with(value_cents=2**63),
    _with(properties=[]),
    _with(properties="{}"),
    _properties(b'{"a": NaN}'),
    _properties(b'{"a": [1,]}'),
    _properties(b'{"a": 01}'),
    _properties(b'{"a": tru}'),
    _properties(b'{"a": "\\q"}'),
    _properties(b'{"a": "\x01"}'),
    _properties(b'{"a": "\xff"}'),
    _properties(b"{'a': 1}"),
    _properties(b'{"a" 1}'),
    _with(url=17),
    _with(referrer=["a", "b"]),
    _with(device=""),
    _with(device="x" * 201),
    _with(contract_version="2.0.0"),
)
