"""Identity: whom an event counts for, and what is kept of visitors who did not log in.

Belongs here: the rule, and the entries it makes of folded rows. Does not belong here: the fold
itself (fold.py) or where entries are kept (store/).

Only events that count do anything: with consent, and received at most LATE_DAYS after they
occurred. An event with a user_id counts for that user. If it names an anonymous_id and a session_id
too, it is a login: it ties that session of that visitor to the user. Of several logins the one with
the least (received_at, user_id) owns the session for ever. An event without a user_id counts for
the owner of its session, whenever either came; without a session_id it belongs to no login.

What a session's anonymous events add up to stays where it is, in the visitor's entry, one part a
session. The user's row remembers the sessions; `whole` merges the parts that the user owns when a
profile is read. So rows never move, and every order of events gives the same entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.profiles import fold
from profilehouse.profiles.features import Declaration
from profilehouse.profiles.fold import EVENT_SCHEMA, LATE, Row, integers, merge

MARK = "\x1f"
"""What a visitor's key begins with; ids of the event contract cannot hold it."""


class Login(msgspec.Struct, frozen=True, order=True):
    """A login that counts; `received_at` in microseconds since 1970. The least owns the session."""

    received_at: int
    user_id: str
    anonymous_id: str
    session_id: str


class Part(msgspec.Struct, array_like=True):
    """One session of a visitor: its first login as (received_at, user_id), its anonymous events."""

    owner: tuple[int, str] | None = None
    row: Row | None = None


class Visitor(msgspec.Struct, array_like=True):
    """What is kept under a visitor's key: a part for each session_id, "" for events without one."""

    parts: dict[str, Part]


Entry = Row | Visitor
"""What a store holds under a key: a user's row, or a visitor."""


@dataclass(frozen=True)
class Subjects:
    """The events of a batch that count, and for whom.

    Attributes:
        events: the columns of fold.EVENT_SCHEMA, user_id being the subject: a user_id, or of an
            anonymous event `subject_of` its visitor and session.
        rows: indices of those events in the batch.
        logins: the logins among them.
        unconsented: events that do not count for want of consent.
        late: events that have consent, but came too late.
    """

    events: pa.Table
    rows: np.ndarray[tuple[int], np.dtype[np.int64]]
    logins: list[Login]
    unconsented: int
    late: int

    def where(self, chosen: Sequence[bool]) -> Subjects:
        """With some of the events, and all logins."""
        mask = np.asarray(chosen, bool)
        return replace(self, events=self.events.filter(pa.array(mask)), rows=self.rows[mask])


def subjects(events: pa.Table) -> Subjects:
    """Whom the events of lake/web_events (all its columns, or those needed here) count for."""
    consent = np.asarray(events["consent"].combine_chunks().cast(pa.uint8())).astype(bool)
    received, occurred = integers(events["received_at"]), integers(events["occurred_at"])
    on_time = received - occurred <= LATE
    rows = np.flatnonzero(consent & on_time)
    if len(rows) < len(consent):
        events = events.take(pa.array(rows))
    user, anonymous, session = (
        events[name].combine_chunks() for name in ("user_id", "anonymous_id", "session_id")
    )
    subject = user
    if user.null_count:
        visit = pc.binary_join_element_wise(
            pc.binary_join_element_wise("", anonymous, MARK), pc.fill_null(session, ""), MARK
        )
        subject = pc.coalesce(user, visit)
    login = pc.and_(pc.and_(user.is_valid(), anonymous.is_valid()), session.is_valid())
    logins: list[Login] = []
    if pc.any(login).as_py():
        columns = (
            received[rows][np.asarray(login)].tolist(),
            *(column.filter(login).to_pylist() for column in (user, anonymous, session)),
        )
        logins = [Login(*values) for values in zip(*columns, strict=True)]
    place = events.column_names.index("user_id")
    return Subjects(
        events=events.set_column(place, "user_id", subject).select(EVENT_SCHEMA.names),
        rows=rows,
        logins=logins,
        unconsented=int((~consent).sum()),
        late=int((consent & ~on_time).sum()),
    )


def visitor_key(anonymous_id: str) -> str:
    """The key that a store keeps a visitor under."""
    return MARK + anonymous_id


def subject_of(anonymous_id: str, session_id: str | None) -> str:
    """The subject of an anonymous event."""
    return f"{MARK}{anonymous_id}{MARK}{session_id or ''}"


def key_of(subject: str) -> str:
    """The key that a store keeps a subject's entry under."""
    return subject.rpartition(MARK)[0] if subject.startswith(MARK) else subject


class Folding(Protocol):
    """What folds: fold.py, or its compiled twin with rows of its own kind."""

    def absorb(self, rows: dict[str, Any], events: pa.Table, declaration: Declaration) -> list[str]:
        """See fold.absorb."""
        ...

    def encode(self, row: Any) -> bytes:
        """See fold.encode."""
        ...

    def decode(self, data: bytes) -> Any:
        """See fold.decode."""
        ...


def absorb(
    entries: dict[str, Entry],
    subjects: Subjects,
    declaration: Declaration,
    folding: Folding = fold,
) -> set[str]:
    """Fold a batch's events and logins into the entries, in place.

    Args:
        entries: by key: of all subjects and of the visitors of all logins, as far as there are
            any; new ones are added.
        subjects: of the batch.
        declaration: what to keep.
        folding: what the entries' rows belong to.

    Returns:
        The keys whose entry changed.
    """
    named = subjects.events["user_id"].unique().to_pylist()
    visits = [subject for subject in named if subject.startswith(MARK)]
    rows: dict[str, Any] = {user: entries[user] for user in named if user in entries}
    for subject in visits:
        row = _row(entries.get(key_of(subject)), subject)
        if row is not None:
            rows[subject] = row
    changed = set(folding.absorb(rows, subjects.events, declaration))
    for subject in visits:
        _place(entries, subject, rows.pop(subject))
    changed.difference_update(visits)
    changed.update(map(key_of, visits))
    entries |= rows
    for login in subjects.logins:
        changed |= _tie(entries, login)
    return changed


def assemble(rows: Mapping[str, Row], logins: Iterable[Login]) -> dict[str, Entry]:
    """The entries by key of rows that were folded by subject, and of all their logins."""
    entries: dict[str, Entry] = {}
    for subject, row in rows.items():
        _place(entries, subject, row)
    for login in logins:
        _tie(entries, login)
    return entries


def whole(
    user_id: str,
    row: Row,
    visitor: Callable[[str], Visitor | None],
    declaration: Declaration,
) -> Row:
    """A user's row with the sessions that belong to the user.

    Args:
        user_id: whose row it is.
        row: as it is stored.
        visitor: gives the visitor with an anonymous_id.
        declaration: the rows were folded with.
    """
    for anonymous_id, session_id in row.links:
        found = visitor(anonymous_id)
        part = found.parts.get(session_id) if found else None
        if part and part.row and part.owner and part.owner[1] == user_id:
            row = merge(row, part.row, declaration)
    return row


def unowned(visitor: Visitor, declaration: Declaration) -> Row | None:
    """The row of all sessions of a visitor that nobody logged in in; None where there is none."""
    found: Row | None = None
    for part in visitor.parts.values():
        if part.row is not None and part.owner is None:
            found = part.row if found is None else merge(found, part.row, declaration)
    return found


def encode(entry: Entry, folding: Folding = fold) -> bytes:
    """An entry as bytes."""
    if not isinstance(entry, Visitor):
        return folding.encode(entry)
    parts = [
        (session, part.owner, part.row and folding.encode(part.row))
        for session, part in entry.parts.items()
    ]
    return _ENCODER.encode(parts)


def decode_visitor(data: bytes, folding: Folding = fold) -> Visitor:
    """The visitor that `encode` wrote."""
    return Visitor(
        {
            session: Part(owner, None if row is None else folding.decode(row))
            for session, owner, row in _PARTS.decode(data)
        }
    )


def decode(key: str, data: bytes, folding: Folding = fold) -> Entry:
    """The entry that `encode` wrote and a store held under the key."""
    if key.startswith(MARK):
        return decode_visitor(data, folding)
    row: Row = folding.decode(data)
    return row


_ENCODER = msgspec.msgpack.Encoder()
_PARTS = msgspec.msgpack.Decoder(list[tuple[str, tuple[int, str] | None, bytes | None]])


def _row(entry: Entry | None, subject: str) -> Row | None:
    if isinstance(entry, Visitor):
        part = entry.parts.get(subject.rpartition(MARK)[2])
        return part.row if part else None
    return entry


def _place(entries: dict[str, Entry], subject: str, row: Row) -> None:
    key = key_of(subject)
    if key == subject:
        entries[key] = row
    else:
        _part(entries, key, subject.rpartition(MARK)[2]).row = row


def _part(entries: dict[str, Entry], key: str, session_id: str) -> Part:
    visitor = entries.setdefault(key, Visitor({}))
    if not isinstance(visitor, Visitor):
        raise TypeError(f"{key!r} is no key of a visitor")
    return visitor.parts.setdefault(session_id, Part())


def _tie(entries: dict[str, Entry], login: Login) -> set[str]:
    """Note a login in both entries; the keys of those that changed."""
    changed: set[str] = set()
    user = entries.get(login.user_id)
    link = (login.anonymous_id, login.session_id)
    if user is not None and not isinstance(user, Visitor) and link not in user.links:
        user.links = sorted([*user.links, link])
        changed.add(login.user_id)
    key = visitor_key(login.anonymous_id)
    part = _part(entries, key, login.session_id)
    claim = (login.received_at, login.user_id)
    if part.owner is None or claim < part.owner:
        part.owner = claim
        changed.add(key)
    return changed
