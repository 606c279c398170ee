"""Profiles of web visitors: the same in the store and in the warehouse's SQL, also at a cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profilehouse.contracts import contract
from profilehouse.errors import ProfilehouseError
from profilehouse.events.web import Decoded, empty
from profilehouse.profiles.agreement import NotCovered, compare, compare_at_cut
from profilehouse.profiles.features import load_declaration
from profilehouse.profiles.rebuild import fold_all
from profilehouse.profiles.serving import read_profile
from profilehouse.profiles.store import Store
from profilehouse.profiles.store.lmdb import LmdbStore
from profilehouse.stream.profiles import Part, ProfileSink, create_if_missing
from profilehouse.warehouse.load import load_fact
from profilehouse.warehouse.on_duckdb import DuckDBWarehouse, open_duckdb

pytest.register_assert_rewrite("tests.warehouse_suite")
from tests.integration.test_profile_agreement import (  # noqa: E402
    Event,
    in_duckdb,
    in_snowflake,
    naive,
    purchase,
    read,
    stored,
)
from tests.warehouse_suite import (  # noqa: E402
    DAY_1,
    DAY_2,
    DAY_3,
    TOPIC,
    Lake,
    WebLog,
    events,
    web_event,
)
from tests.warehouse_suite import purchase as delivered_purchase  # noqa: E402

DECLARATION = load_declaration()
AS_OF = date(2026, 3, 31)
NOON = datetime(2026, 3, 20, 12)


def web(number: int, **given: Any) -> Event:
    """A click, received so many minutes after noon, a second after it happened."""
    received_at = given.get("received_at", NOON + timedelta(minutes=number))
    return {
        "event_id": f"web-{number}",
        "event_type": "click",
        "user_id": None,
        "anonymous_id": None,
        "session_id": None,
        "content_id": f"c{number}",
        "category": "DELI",
        "value_cents": None,
        "occurred_at": received_at - timedelta(seconds=1),
        "received_at": received_at,
        "consent": True,
        "contract_version": "1.0.0",
        "topic_id": TOPIC,
        "log_partition": 0,
        "log_offset": number,
        "delivered_on": received_at.date(),
    } | given


def visit(anonymous_id: str, session_id: str | None = "s", user_id: str | None = None) -> Event:
    return {"anonymous_id": anonymous_id, "session_id": session_id, "user_id": user_id}


LONG_AGO = {"occurred_at": NOON - timedelta(days=8)}
BROWSED = [
    # Ann logs in later and claims what was before, and what comes after; Bob, second, does not.
    web(0, **visit("d1")),
    web(1, **visit("d1", user_id="ann")),
    web(2, **visit("d1", user_id="bob")),
    web(3, **visit("d1")),
    # Other sessions of the device stay nobody's, so do events without a session.
    web(4, **visit("d1", "other")),
    web(5, **visit("d1", None)),
    web(6, **visit("d1", None, user_id="ann")),
    # No login: without consent, too late, or without a session. Dan's is the first that counts.
    web(7, **visit("d2")),
    web(8, **visit("d2", user_id="cas"), consent=False),
    web(9, **visit("d2", user_id="cas"), **LONG_AGO),
    web(10, user_id="cas"),
    web(11, **visit("d2", user_id="dan")),
    # Anonymous events that do not count are not claimed.
    web(12, **visit("d2"), consent=False),
    web(13, **visit("d2"), **LONG_AGO),
    # Read first but received later: Eve's login is not the first, Fay's is. Equal: the lower id.
    web(14, **visit("d3", user_id="eve"), received_at=NOON + timedelta(hours=2)),
    web(15, **visit("d3")),
    web(16, **visit("d3", user_id="fay"), received_at=NOON + timedelta(hours=1)),
    web(17, **visit("d4", user_id="hal"), received_at=NOON + timedelta(hours=1)),
    web(18, **visit("d4", user_id="gil"), received_at=NOON + timedelta(hours=1)),
    web(19, **visit("d4")),
    # A copy counts once, an event of no consent not at all.
    web(20, user_id="ivy"),
    web(21, user_id="ivy") | {"event_id": "web-20"},
    web(22, user_id="ivy", consent=False),
]
CLICKED = {
    "ann": {"c0", "c1", "c3", "c6"},
    "bob": {"c2"},
    "cas": {"c10"},
    "dan": {"c7", "c11"},
    "eve": {"c14"},
    "fay": {"c15", "c16"},
    "hal": {"c17"},
    "gil": {"c18", "c19"},
    "ivy": {"c20"},
}


def clicked(profiles: Mapping[str, Any]) -> dict[str, set[str]]:
    return {user: set(profile["recent_clicks"]) for user, profile in profiles.items()}


def by_user(table: pa.Table) -> dict[str, Any]:
    return {row["user_id"]: row for row in table.to_pylist()}


def test_a_visit_counts_for_its_first_login_in_the_store_and_in_the_warehouse_alike() -> None:
    table = in_duckdb([], AS_OF, BROWSED)

    assert clicked(by_user(table)) == CLICKED
    assert by_user(table) == naive([], DECLARATION, AS_OF, BROWSED)
    with stored([], BROWSED) as store:
        assert read(store, AS_OF) == by_user(table)
        assert compare(store, DECLARATION, table, AS_OF).differing == 0


BOTH_WAYS = [
    # In the web before the batch, after it, and at the same time; and once by another user.
    web(30, event_type="purchase", user_id="7", event_id="purchases/1/1", value_cents=100),
    web(31, event_type="purchase", user_id="7", event_id="purchases/2/1", value_cents=200),
    web(32, event_type="purchase", user_id="7", event_id="purchases/3/1", value_cents=300),
    web(33, event_type="purchase", user_id="8", event_id="purchases/4/1", value_cents=400),
    # Without consent it is as if it had never come.
    web(34, event_type="purchase", user_id="7", event_id="purchases/5/1", consent=False)
    | {"value_cents": 500},
]
DELIVERED = [
    purchase("1/1", "2026-03-20 12:00:00", "DELI", 1, "1"),
    purchase("2/1", "2026-03-18 12:00:00", "DELI", 2, "1"),
    purchase("3/1", "2026-03-20 12:00:00", "DELI", 3, "1", received_at=BOTH_WAYS[2]["received_at"]),
    purchase("4/1", "2026-03-20 12:00:00", "DELI", 4, "1"),
    purchase("5/1", "2026-03-20 12:00:00", "DELI", 5, "1"),
]


def test_a_purchase_of_the_web_that_is_delivered_too_counts_once_as_first_received() -> None:
    found = by_user(in_duckdb(DELIVERED, AS_OF, BOTH_WAYS))

    assert found == naive(DELIVERED, DECLARATION, AS_OF, BOTH_WAYS)
    assert (found["7"]["purchases_lifetime"], found["8"]["purchases_lifetime"]) == (5, 1)
    assert found["7"]["spend_cents_lifetime"] == 100 + 2 + 3 + 4 + 5
    with stored(DELIVERED, BOTH_WAYS) as store:
        assert read(store, AS_OF) == found


def test_snowflake_computes_the_same_profiles_of_visitors() -> None:
    table = in_snowflake(DELIVERED, AS_OF, [*BROWSED, *BOTH_WAYS])

    with stored(DELIVERED, [*BROWSED, *BOTH_WAYS]) as store:
        found = compare(store, DECLARATION, table, AS_OF)
    assert (found.users, found.differing, found.sample) == (len(CLICKED) + 2, 0, ())


def test_events_that_are_not_below_the_positions_have_not_happened() -> None:
    other = [web(n, **visit("d9"), log_partition=1, log_offset=n - 40) for n in (40, 41)]
    log = [*BROWSED, *other, web(42, **visit("d9", user_id="ann"), log_offset=23)]

    for positions in ({0: 24, 1: 2}, {0: 24, 1: 1}, {0: 24}, {0: 3}, {1: 2}, {}):
        below = [e for e in log if e["log_offset"] < positions.get(e["log_partition"], 0)]
        found = by_user(in_duckdb(DELIVERED, AS_OF, log, positions))
        assert found == naive(DELIVERED, DECLARATION, AS_OF, below)
    assert "ann" not in found


# Any events

IDS = st.sampled_from([None, "a", "b"])


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Events of visitors in the order of the log, with copies, late ones and wrong clocks."""
    log: list[Event] = []
    received_at = NOON
    for number in range(draw(st.integers(1, 25))):
        received_at += timedelta(seconds=draw(st.sampled_from([0, 1, 3600, 200_000])))
        copied = log and draw(st.integers(0, 9)) == 0
        if copied:
            again = draw(st.sampled_from(log))
            log.append(again | {"received_at": received_at, "log_offset": number})
            continue
        user_id, anonymous_id, session_id = draw(IDS), draw(IDS), draw(IDS)
        event_type = draw(st.sampled_from(["click", "page_view", "purchase"]))
        lag = timedelta(hours=draw(st.sampled_from([-5, 0, 1, 7 * 24, 7 * 24 + 1])))
        event = web(
            number,
            event_type=event_type,
            user_id=user_id,
            anonymous_id=anonymous_id if user_id else anonymous_id or "a",
            session_id=session_id,
            value_cents=number if event_type == "purchase" else None,
            occurred_at=received_at - lag,
            received_at=received_at,
            consent=draw(st.integers(0, 5)) > 0,
        )
        if user_id and event_type == "purchase":
            event["event_id"] = f"purchases/{user_id}/{number % 5}"
            if any(e["event_id"] == event["event_id"] for e in log):
                event["event_id"] += f"/{number}"
        log.append(event)
    return log


@st.composite
def deliveries(draw: st.DrawFn) -> list[Event]:
    """Purchases that a batch source delivers, some of which came over the log too."""
    found = []
    for user, number in draw(
        st.sets(st.tuples(st.sampled_from("abz"), st.integers(0, 4)), max_size=8)
    ):
        day = draw(st.sampled_from(["2026-03-19", "2026-03-20", "2026-03-22"]))
        line = purchase(f"{user}/{number}", f"{day} 11:00:00", "DELI", 7, "c", user_id=user)
        found.append(line)
    return found


@settings(max_examples=20, deadline=None)
@given(log=logs(), delivered=deliveries(), idle=st.integers(0, 40))
def test_store_warehouse_and_definition_agree_on_any_visitors(
    log: list[Event], delivered: list[Event], idle: int
) -> None:
    newest = max(event["received_at"] for event in [*log, *delivered])
    as_of = newest.date() + timedelta(days=idle)
    expected = naive(delivered, DECLARATION, as_of, log)

    assert by_user(in_duckdb(delivered, as_of, log)) == expected
    with stored(delivered, log) as store:
        assert read(store, as_of) == expected


# At a cut


@dataclass
class Live:
    """A store that a log is folded into, a warehouse it is loaded into, and the log."""

    store: Store
    warehouse: DuckDBWarehouse
    log: WebLog = field(default_factory=WebLog)
    lake: Lake = field(default_factory=events)
    sink: ProfileSink | None = None

    def fold(self, **ends: int) -> None:
        """Fold the log into the store up to some offsets, p0=..., p1=..., or to its end."""
        if self.sink is None:
            create_if_missing(self.store, DECLARATION)
            self.sink = ProfileSink(self.store, DECLARATION, self.log.topic_id)
        parts = []
        for partition, (_, end) in self.log.ends().items():
            until = ends.get(f"p{partition}", 0) if ends else end
            start = self.sink.positions.get(partition, 0)
            if until > start:
                batches = self.log.read({partition: (start, until)})
                rows = pa.Table.from_batches(batches, self.log.schema)
                parts.append(Part(partition, until, Decoded(rows, empty().dead)))
        self.sink.write(parts)

    def load(self, ranges: Mapping[int, tuple[int, int]] | None = None) -> None:
        self.log.load(self.warehouse, ranges)

    def deliver(self, day: date, *rows: Event) -> None:
        """Deliver a day of purchases and load it."""
        self.lake.deliver(day, *rows)
        for fact in ("fct_purchase", "fct_interaction"):
            self.lake.load(load_fact, self.warehouse, contract(fact))

    def rebuild(self, *days: date) -> None:
        """Rebuild the store from these days and the log so far."""
        rows = [pa.Table.from_batches(self.lake.read([day]), self.lake.schema) for day in days]
        ends = self.log.ends()
        logged = pa.Table.from_batches(self.log.read(ends), self.log.schema)
        logged = [logged.sort_by("received_at")] if logged.num_rows else []
        folded = fold_all(DECLARATION, rows, logged, {str(day): "sha" for day in days})
        positions = {partition: end for partition, (_, end) in ends.items()}
        topic_id = self.log.topic_id if positions else None
        self.store.rebuild(folded.entries.items(), folded.meta, topic_id, positions)
        self.sink = None


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with (
        LmdbStore(tmp_path / "profiles", DECLARATION.fingerprint) as store,
        open_duckdb(tmp_path / "warehouse.duckdb") as warehouse,
    ):
        for table in ("fct_purchase", "fct_interaction", "fct_web_event"):
            warehouse.create(contract(table))
        yield Live(store, warehouse)


def test_a_store_that_is_behind_the_warehouse_agrees_with_it_at_its_own_positions(
    live: Live,
) -> None:
    live.log.append(0, *(web_event(f"a{n}", user_id="ann") for n in range(6)))
    live.log.append(1, *(web_event(f"b{n}") for n in range(4)))
    live.load()
    live.fold(p0=4, p1=2)

    found = compare_at_cut(live.store, DECLARATION, live.warehouse, AS_OF)

    assert (found.users, found.differing, found.positions) == (1, 0, {0: 4, 1: 2})
    assert (found.moved_on, found.oversized) == (0, 0)
    profile = read_profile(live.store, DECLARATION, "ann", AS_OF)
    assert profile is not None
    assert profile["page_views_lifetime"] == 4 + 2
    live.fold()
    found = compare_at_cut(live.store, DECLARATION, live.warehouse, AS_OF)
    assert (found.users, found.differing, found.positions) == (1, 0, {0: 6, 1: 4})


def test_a_warehouse_that_lacks_positions_of_the_store_is_said_to_with_the_remedy(
    live: Live,
) -> None:
    live.log.append(0, *(web_event(f"a{n}", user_id="ann") for n in range(6)))
    live.load({0: (0, 2)})
    live.load({0: (4, 6)})
    live.fold()
    says = "lacks offsets 2 to 3 of partition 0, .* materialize warehouse/fct_web_event"
    with pytest.raises(NotCovered, match=says):
        compare_at_cut(live.store, DECLARATION, live.warehouse, AS_OF)
    live.load()
    assert compare_at_cut(live.store, DECLARATION, live.warehouse, AS_OF).differing == 0


def test_a_warehouse_of_another_topic_is_refused_with_the_remedy(live: Live) -> None:
    live.log.append(0, web_event("a", user_id="ann"))
    live.fold()
    other = WebLog({0: [web_event("a", user_id="ann")]}, "topic-2")
    other.load(live.warehouse)
    with pytest.raises(ProfilehouseError, match="topic was created anew"):
        compare_at_cut(live.store, DECLARATION, live.warehouse, AS_OF)


def test_deliveries_that_only_one_side_has_are_left_out_or_asked_for(live: Live) -> None:
    live.log.append(0, web_event("a", user_id="900"))
    live.load()
    live.deliver(DAY_1, delivered_purchase(1))
    live.deliver(DAY_2, delivered_purchase(2))
    live.rebuild(DAY_1)

    found = compare_at_cut(live.store, DECLARATION, live.warehouse, AS_OF)
    assert (found.users, found.differing) == (1, 0)
    live.rebuild(DAY_1, DAY_2)
    assert compare_at_cut(live.store, DECLARATION, live.warehouse, AS_OF).differing == 0
    live.lake.deliver(DAY_3, delivered_purchase(3))
    live.rebuild(DAY_1, DAY_2, DAY_3)
    with pytest.raises(NotCovered, match=r"fct_purchase lacks 1 days .* from 2026-03-03 on"):
        compare_at_cut(live.store, DECLARATION, live.warehouse, AS_OF)


def test_a_difference_at_a_cut_is_found_also_in_what_a_visitor_did_before_the_login(
    live: Live,
) -> None:
    live.log.append(0, web_event("a"), web_event("b", user_id="ann"), web_event("c", user_id="bo"))
    live.load()
    live.fold()
    assert compare_at_cut(live.store, DECLARATION, live.warehouse, AS_OF).differing == 0

    live.warehouse.execute("DELETE FROM fct_web_event WHERE event_id = 'a'")

    found = compare_at_cut(live.store, DECLARATION, live.warehouse, AS_OF)
    assert (found.users, found.differing) == (2, 1)
    assert {d.column for d in found.sample} >= {"page_views_lifetime"}


def test_users_whose_rows_or_visits_outgrew_the_store_are_left_out_and_counted(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.log.append(0, web_event("a"), web_event("b", user_id="ann"), web_event("c", user_id="bo"))
    live.log.append(1, web_event("d", user_id="bo"))
    live.load()
    live.fold(p0=3)
    monkeypatch.setattr("profilehouse.profiles.store.lmdb.ROW_LIMIT", 10)
    live.fold(p1=1)

    found = compare_at_cut(live.store, DECLARATION, live.warehouse, AS_OF)

    assert (found.users, found.differing, found.oversized) == (1, 0, 1)


@settings(max_examples=8, deadline=None)
@given(
    log=logs(), steps=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 2)
)
def test_a_live_store_agrees_with_the_warehouse_at_every_cut(
    log: list[Event], steps: list[int], seed: int
) -> None:
    partition = {user: (len(user or "") * 7 + seed) % 2 for user in (None, "a", "b")}
    with (
        TemporaryDirectory() as folder,
        LmdbStore(Path(folder) / "profiles", DECLARATION.fingerprint) as store,
        open_duckdb(Path(folder) / "warehouse.duckdb") as warehouse,
    ):
        for table in ("fct_purchase", "fct_interaction", "fct_web_event"):
            warehouse.create(contract(table))
        live = Live(store, warehouse)
        for event in log:
            live.log.append(partition[event["user_id"]], event)
        live.load()
        as_of = max(event["received_at"] for event in log).date()
        at = dict.fromkeys(live.log.ends(), 0)
        for step in steps:
            at = {p: min(at[p] + step + p, end) for p, (_, end) in live.log.ends().items()}
            live.fold(**{f"p{p}": offset for p, offset in at.items()})
            found = compare_at_cut(store, DECLARATION, warehouse, as_of)
            assert (found.differing, found.sample, found.positions) == (0, (), at)
