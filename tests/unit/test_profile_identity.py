from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profilehouse.contracts import contract
from profilehouse.profiles import identity
from profilehouse.profiles.features import load_declaration
from profilehouse.profiles.fold import Row
from profilehouse.profiles.identity import Entry, Visitor
from profilehouse.profiles.reading import profile_at
from profilehouse.profiles.rebuild import fold_all

START = datetime(2026, 3, 1, 12)
DECLARATION = load_declaration()
SCHEMA = contract("web_events").arrow_schema
Event = dict[str, Any]


def event(number: int, **given: Any) -> Event:
    received_at = given.get("received_at", START + timedelta(minutes=number))
    return (
        dict.fromkeys(SCHEMA.names)
        | {
            "event_id": f"e{number}",
            "event_type": "click",
            "content_id": f"c{number}",
            "occurred_at": received_at - timedelta(seconds=1),
            "received_at": received_at,
            "consent": True,
            "contract_version": "1.0.0",
            "topic_id": "T",
            "log_partition": 0,
            "log_offset": number,
            "delivered_on": received_at.date(),
        }
        | given
    )


def table(events: list[Event]) -> pa.Table:
    return pa.Table.from_pylist(events, SCHEMA)


def absorbed(*batches: list[Event]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for batch in batches:
        identity.absorb(entries, identity.subjects(table(batch)), DECLARATION)
    return entries


def clicks(entries: dict[str, Entry], user: str) -> list[str]:
    """The contents in the profile of a user, newest first."""
    row = entries[user]
    assert isinstance(row, Row)

    def visitor(name: str) -> Visitor | None:
        found = entries.get(identity.visitor_key(name))
        assert found is None or isinstance(found, Visitor)
        return found

    whole = identity.whole(user, row, visitor, DECLARATION)
    profile = profile_at(user, whole, DECLARATION, date(2026, 3, 9))
    return list(profile["recent_clicks"])


ANONYMOUS = {"anonymous_id": "browser", "session_id": "s1"}
LOGGED_IN = {**ANONYMOUS, "user_id": "ann"}


def test_a_visitor_who_logs_in_is_one_person_with_what_was_before_and_comes_after() -> None:
    entries = absorbed([event(1, **ANONYMOUS)], [event(2, **LOGGED_IN)], [event(3, **ANONYMOUS)])

    assert clicks(entries, "ann") == ["c3", "c2", "c1"]


def test_two_people_on_one_device_stay_two() -> None:
    other = {"anonymous_id": "browser", "session_id": "s2"}
    entries = absorbed(
        [event(1, **ANONYMOUS), event(2, **LOGGED_IN)],
        [event(3, **other), event(4, **other, user_id="bob"), event(5, **ANONYMOUS)],
    )

    assert clicks(entries, "ann") == ["c5", "c2", "c1"]
    assert clicks(entries, "bob") == ["c4", "c3"]


def test_the_first_login_owns_a_session_also_if_it_is_read_last() -> None:
    first, second = event(2, **LOGGED_IN), event(3, **ANONYMOUS, user_id="bob")

    for order in ([first], [second]), ([second], [first]), ([second, first],):
        entries = absorbed([event(1, **ANONYMOUS)], *order)
        assert clicks(entries, "ann") == ["c2", "c1"]
        assert clicks(entries, "bob") == ["c3"]


def test_events_without_a_session_belong_to_no_login() -> None:
    entries = absorbed([event(1, anonymous_id="browser"), event(2, **LOGGED_IN)])
    visitor = entries[identity.visitor_key("browser")]

    assert clicks(entries, "ann") == ["c2"]
    assert isinstance(visitor, Visitor)
    row = identity.unowned(visitor, DECLARATION)
    assert row is not None
    assert row.lists[1][0][2] == "c1"


def test_without_consent_there_is_no_profile_and_no_login() -> None:
    batch = [event(1, **ANONYMOUS), event(2, **LOGGED_IN, consent=False)]
    subjects = identity.subjects(table([*batch, event(3, user_id="bob", consent=False)]))

    assert absorbed(batch).keys() == {identity.visitor_key("browser")}
    assert (subjects.unconsented, subjects.late, subjects.events.num_rows) == (2, 0, 1)


def test_what_comes_more_than_a_week_late_counts_for_nobody_and_is_no_login() -> None:
    late = event(2, **LOGGED_IN, occurred_at=START - timedelta(days=7))
    subjects = identity.subjects(table([event(1, **ANONYMOUS), late]))

    assert (subjects.unconsented, subjects.late, subjects.logins) == (0, 1, [])


@st.composite
def visits(draw: st.DrawFn) -> list[Event]:
    events = []
    for number in range(draw(st.integers(1, 20))):
        user = draw(st.sampled_from([None, "ann", "bob"]))
        anonymous = draw(st.sampled_from(["x", "y"] if user is None else [None, "x", "y"]))
        events.append(
            event(
                number,
                event_id=f"e{draw(st.integers(0, 30))}-{user or anonymous}",
                user_id=user,
                anonymous_id=anonymous,
                session_id=draw(st.sampled_from([None, "s1", "s2"])),
                consent=draw(st.sampled_from([True, True, True, False])),
                event_type=draw(st.sampled_from(["click", "page_view", "purchase"])),
            )
        )
    return events


@settings(max_examples=100, deadline=None)
@given(events=visits())
def test_entries_of_compiled_rows_are_the_same(events: list[Event]) -> None:
    compiled = pytest.importorskip(
        "profilehouse.profiles.compiled", reason="native/ is not installed: it wants Rust"
    )
    entries: dict[str, Any] = {}
    for batch in (events[::2], events[1::2]):
        identity.absorb(entries, identity.subjects(table(batch)), DECLARATION, compiled)
        stored = {key: identity.encode(entry, compiled) for key, entry in entries.items()}
        entries = {key: identity.decode(key, data, compiled) for key, data in stored.items()}

    assert {key: identity.decode(key, data) for key, data in stored.items()} == absorbed(
        events[::2], events[1::2]
    )


@settings(max_examples=150, deadline=None)
@given(data=st.data(), events=visits())
def test_partitions_read_in_any_turn_give_the_entries_of_a_rebuild(
    data: st.DataObject, events: list[Event]
) -> None:
    """Each key's events come in order, as in a partition of the log; the keys in any turn."""
    queues: dict[str, list[Event]] = {}
    for each in events:
        queues.setdefault(each["user_id"] or each["anonymous_id"], []).append(each)
    batches = []
    while queues:
        key = data.draw(st.sampled_from(sorted(queues)))
        size = data.draw(st.integers(1, len(queues[key])))
        batches.append(queues[key][:size])
        queues[key] = queues[key][size:]
        if not queues[key]:
            del queues[key]

    rebuilt = fold_all(DECLARATION, [], [table(events)], {}).entries

    assert absorbed(*batches) == {
        key: identity.decode(key, stored) for key, stored in rebuilt.items()
    }
