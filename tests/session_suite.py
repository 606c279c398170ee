"""What each warehouse makes of visits, whose they are and their sessions, beside a naive oracle."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import Any

import pytest

from profilehouse.contracts import contract
from profilehouse.settings import Settings
from profilehouse.warehouse import Warehouse, open_warehouse
from profilehouse.warehouse.ranges import RangeReport
from profilehouse.warehouse.visits import load_identity, load_sessions
from tests.warehouse_suite import WEB, Row, WebLog, bytes_of, rows_of, sql_of, web_event

IDENTITY, SESSIONS = contract("dim_identity"), contract("fct_session")
LEDGER = contract("web_load_ledger")
NOON = datetime(2026, 3, 1, 12)
TIMEOUT = timedelta(minutes=30)


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def view(event_id: str, minutes: float, **changes: Any) -> Row:
    """A page view, by default of somebody who is not logged in, received a second later."""
    when = at(minutes)
    return web_event(event_id, occurred_at=when, url=f"https://shop.example/{event_id}", **changes)


def login(event_id: str, minutes: float, user_id: str, **changes: Any) -> Row:
    return view(event_id, minutes, user_id=user_id, **changes)


def bring_up_to_date(warehouse: Warehouse) -> tuple[RangeReport, RangeReport]:
    return (
        load_identity(warehouse, IDENTITY, sql_of(IDENTITY)),
        load_sessions(warehouse, SESSIONS, sql_of(SESSIONS)),
    )


def load(warehouse: Warehouse, log: WebLog, *offsets: tuple[int, int]) -> None:
    """Load ranges of partition 0, by default all of it, each with what is made of it."""
    for first, end in offsets or [(0, len(log.partitions[0]))]:
        log.load(warehouse, {0: (first, end)})
        bring_up_to_date(warehouse)


def sessions_in(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    """(user, device, minutes from noon of the first and the last event, events), in that order."""
    found = rows_of(
        warehouse, SESSIONS, "user_id", "anonymous_id", "started_at", "ended_at", "events"
    )
    minute = timedelta(minutes=1)
    return sorted(
        (
            (user, device, (start - NOON) / minute, (end - NOON) / minute, events)
            for user, device, start, end, events in found
        ),
        key=repr,
    )


def naive_owners(rows: Iterable[Row]) -> dict[tuple[str, str], tuple[datetime, str]]:
    """The first login of each visit, as (received_at, user_id)."""
    owners: dict[tuple[str, str], tuple[datetime, str]] = {}
    for row in rows:
        visit = (row["anonymous_id"], row.get("session_id"))
        if counts(row) and row.get("user_id") and all(visit):
            mine = (row["received_at"], row["user_id"])
            owners[visit] = min(owners.get(visit, mine), mine)
    return owners


def counts(row: Row) -> bool:
    return row["consent"] and row["received_at"] - row["occurred_at"] <= timedelta(days=7)


def naive_sessions(rows: Iterable[Row]) -> list[tuple[Any, ...]]:
    """(user, device, start, end, events, page views) of each session, by definition."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(row["event_id"], row)
    owners = naive_owners(kept.values())
    by_subject: dict[tuple[str | None, str], list[tuple[datetime, str, str]]] = defaultdict(list)
    for row in kept.values():
        if counts(row) and row["anonymous_id"]:
            _, owner = owners.get((row["anonymous_id"], row.get("session_id")), (None, None))
            subject = (row.get("user_id") or owner, row["anonymous_id"])
            happened = min(row["occurred_at"], row["received_at"] - timedelta(microseconds=1))
            by_subject[subject].append((happened, row["event_id"], row["event_type"]))
    sessions: list[tuple[Any, ...]] = []
    for (user, device), events in by_subject.items():
        session: list[tuple[datetime, str, str]] = []
        for event in [*sorted(events), (datetime.max, "", "")]:
            if session and event[0] - session[-1][0] > TIMEOUT:
                views = sum(kind == "page_view" for _, _, kind in session)
                sessions.append((user, device, session[0][0], session[-1][0], len(session), views))
                session = []
            session.append(event)
    return sorted(sessions, key=repr)


def found_sessions(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    names = ("user_id", "anonymous_id", "started_at", "ended_at", "events", "page_views")
    return sorted(rows_of(warehouse, SESSIONS, *names), key=repr)


def a_day() -> WebLog:
    """One day of two people and a stranger: shared devices, late logins, copies, a midnight."""
    log = WebLog()
    log.append(
        0,
        view("a1", 0),
        view("a2", 10),
        view("b1", 12, session_id="visit-2"),
        login("a3", 20, "anna"),
        login("b2", 25, "ben", session_id="visit-2"),
        view("a4", 55, received_at=at(200)),
        view("a2", 10, received_at=at(300)),
        view("c1", 5, anonymous_id="device-2", session_id=None),
        view("c2", 35, anonymous_id="device-2", session_id=None),
        view("c3", 66, anonymous_id="device-2", session_id=None),
        login("a5", 700, "anna", anonymous_id="device-3", session_id="visit-3"),
        login("a6", 725, "anna", anonymous_id="device-3", session_id="visit-3"),
        view("no", 21, consent=False),
        view("old", 22, received_at=at(22) + timedelta(days=8)),
        login("a0", -5, "ben", received_at=at(15)),
        view("c4", 50, anonymous_id="device-2", session_id=None, received_at=at(400)),
        login("s", 30, "anna", anonymous_id=None),
    )
    return log


class SessionSuite:
    """What every engine has to show.

    Subclasses give the fixture `settings`: a warehouse of its own, empty, for each test.
    """

    @pytest.fixture
    def visited(self, settings: Settings) -> Iterable[Warehouse]:
        with open_warehouse(settings) as warehouse:
            yield warehouse

    def test_a_session_has_its_pages_its_dwell_its_conversions_and_its_end(
        self, visited: Warehouse
    ) -> None:
        log = WebLog()
        bought = {"event_type": "purchase", "order_id": "7"}
        log.append(
            0,
            login("in", 0, "7", referrer="https://search.example", device="phone"),
            view("two", 2.5, campaign_id="later"),
            view("cart", 3, event_type="add_to_cart"),
            view("b1", 4, **bought, value_cents=100),
            view("b2", 4, **bought, value_cents=250),
            view("b3", 5, event_type="purchase", value_cents=1),
            view("out", 6),
            view("click", 6.5, event_type="click"),
        )
        load(visited, log)
        assert rows_of(visited, SESSIONS) == [
            (
                hashlib.md5(b"in").hexdigest(),
                hashlib.md5(b"7").hexdigest(),
                None,
                date(2026, 3, 1),
                at(0),
                at(6.5),
                390,
                "7",
                "device-1",
                "phone",
                "https://search.example",
                "https://shop.example/in",
                "https://shop.example/out",
                8,
                3,
                1,
                1,
                2,
                351,
            )
        ]

    def test_a_late_event_merges_two_sessions_and_leaves_the_others_alone(
        self, visited: Warehouse
    ) -> None:
        log = WebLog()
        log.append(
            0,
            view("1", 0),
            view("2", 50),
            view("3", 200),
            view("x", 25, anonymous_id="device-2"),
            view("late", 25, received_at=at(500)),
        )
        load(visited, log, (0, 4))
        assert len(sessions_in(visited)) == 4
        visited.execute("UPDATE fct_session SET revenue_cents = 77 WHERE events = 1")
        load(visited, log, (4, 5))
        assert sessions_in(visited) == [
            (None, "device-1", 0, 50, 3),
            (None, "device-1", 200, 200, 1),
            (None, "device-2", 25, 25, 1),
        ]
        marked = rows_of(visited, SESSIONS, "events", "revenue_cents")
        assert sorted(marked) == [(1, 77), (1, 77), (3, 0)]

    def test_one_day_in_three_orders_gives_the_same_tables_as_the_definition(
        self, visited: Warehouse
    ) -> None:
        log = a_day()
        size = len(log.partitions[0])
        results = []
        for offsets in (
            [(0, size)],
            [(0, 4), (4, 9), (9, size)],
            [(12, size), (5, 12), (0, 5)],
        ):
            load(visited, log, *offsets)
            assert found_sessions(visited) == naive_sessions(log.partitions[0])
            results.append(bytes_of(visited, IDENTITY, SESSIONS))
            for table in (WEB, IDENTITY, SESSIONS):
                visited.execute(f"DROP TABLE {table.name}")
        assert results[0] == results[1] == results[2]


class SessionRules(SessionSuite):
    """All of the rules, where a test takes no seconds."""

    def test_a_pause_of_thirty_minutes_stays_in_a_session_and_a_longer_one_ends_it(
        self, visited: Warehouse
    ) -> None:
        log = WebLog()
        a_microsecond = 1 / 60e6
        log.append(0, view("1", 0), view("2", 30), view("3", 60 + a_microsecond))
        load(visited, log)
        assert [row[2:] for row in sessions_in(visited)] == [
            (0, 30, 2),
            (pytest.approx(60), pytest.approx(60), 1),
        ]

    def test_a_session_crosses_midnight_and_is_of_the_day_it_began(
        self, visited: Warehouse
    ) -> None:
        log = WebLog()
        log.append(0, view("1", 719), view("2", 721))
        load(visited, log)
        assert rows_of(visited, SESSIONS, "started_on", "ended_at") == [
            (date(2026, 3, 1), datetime(2026, 3, 2, 0, 1))
        ]

    def test_a_late_login_takes_the_visit_out_of_the_strangers_session(
        self, visited: Warehouse
    ) -> None:
        log = WebLog()
        other = {"session_id": "visit-2"}
        log.append(
            0,
            view("1", 0),
            view("2", 20, **other),
            view("3", 40),
            login("in", 21, "anna", **other, received_at=at(90)),
        )
        load(visited, log, (0, 3))
        assert sessions_in(visited) == [(None, "device-1", 0, 40, 3)]
        load(visited, log, (3, 4))
        assert sessions_in(visited) == [
            ("anna", "device-1", 20, 21, 2),
            (None, "device-1", 0, 0, 1),
            (None, "device-1", 40, 40, 1),
        ]

    def test_a_shared_device_does_not_merge_two_people(self, visited: Warehouse) -> None:
        log = WebLog()
        log.append(
            0,
            view("1", 0),
            login("2", 1, "anna"),
            login("3", 2, "ben"),
            view("4", 3),
            view("5", 4, session_id="visit-2"),
            login("6", 5, "ben", session_id="visit-2"),
        )
        load(visited, log)
        assert sessions_in(visited) == [
            ("anna", "device-1", 0, 3, 3),
            ("ben", "device-1", 2, 5, 3),
        ]
        names = ("session_id", "valid_from", "valid_to", "user_id")
        second = timedelta(seconds=1)
        assert sorted(rows_of(visited, IDENTITY, *names), key=repr) == [
            ("visit-1", at(0) + second, at(1) + second, None),
            ("visit-1", at(1) + second, None, "anna"),
            ("visit-2", at(4) + second, at(5) + second, None),
            ("visit-2", at(5) + second, None, "ben"),
        ]

    def test_a_login_received_earlier_but_loaded_later_owns_the_visit(
        self, visited: Warehouse
    ) -> None:
        log = WebLog()
        log.append(
            0,
            view("1", 0),
            login("2", 1, "ben", received_at=at(9)),
            login("3", 2, "anna", received_at=at(8)),
        )
        load(visited, log, (0, 2))
        assert sessions_in(visited) == [("ben", "device-1", 0, 1, 2)]
        load(visited, log, (2, 3))
        assert sessions_in(visited) == [
            ("anna", "device-1", 0, 2, 2),
            ("ben", "device-1", 1, 1, 1),
        ]

    def test_a_better_copy_that_is_loaded_later_moves_its_event(self, visited: Warehouse) -> None:
        log = WebLog()
        log.append(0, view("1", 500), view("2", 0), view("1", 10), view("3", 20))
        load(visited, log, (1, 4))
        assert sessions_in(visited) == [(None, "device-1", 0, 20, 3)]
        load(visited, log, (0, 1))
        assert sessions_in(visited) == [
            (None, "device-1", 0, 20, 2),
            (None, "device-1", 500, 500, 1),
        ]

    def test_what_is_up_to_date_is_left_alone(self, visited: Warehouse) -> None:
        log = a_day()
        load(visited, log)
        before = bytes_of(visited, IDENTITY, SESSIONS, LEDGER)
        identity, sessions = bring_up_to_date(visited)
        assert (identity.loaded, sessions.loaded) == ({}, {})
        assert bytes_of(visited, IDENTITY, SESSIONS, LEDGER) == before

    def test_sessions_wait_for_the_identities_of_their_events(self, visited: Warehouse) -> None:
        log = WebLog()
        log.append(0, view("1", 0), login("2", 1, "anna"))
        load(visited, log, (0, 1))
        log.load(visited)
        assert load_sessions(visited, SESSIONS, sql_of(SESSIONS)).loaded == {}
        bring_up_to_date(visited)
        assert sessions_in(visited) == [("anna", "device-1", 0, 1, 2)]
