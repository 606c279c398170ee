from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import reduce
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profilehouse.errors import ProfilehouseError
from profilehouse.profiles import bulk
from profilehouse.profiles.bulk import fold
from profilehouse.profiles.features import Count, Decayed, Declaration, Last, Sum
from profilehouse.profiles.fold import (
    EVENT_SCHEMA,
    Row,
    absorb,
    decode,
    encode,
    id_hash,
    merge,
)

START = datetime(2026, 1, 10)
WEEK = timedelta(days=7)
NOT_BUILT = "native/ is not installed: it wants a Rust toolchain"
SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)

DECLARATION = Declaration(
    version="1.0.0",
    owner="tests",
    description="Windows so short that tests reach beyond them.",
    features=(
        Count(name="n", description="N.", event_type="purchase", windows=(1, 3), lifetime=True),
        Sum(
            name="cents",
            description="C.",
            event_type="purchase",
            field="value_cents",
            windows=(4,),
            lifetime=True,
        ),
        Decayed(
            name="top",
            description="T.",
            event_type="purchase",
            key="category",
            half_life_days=2,
            window=9,
            top=2,
        ),
        Last(name="recent", description="R.", event_type="purchase", field="content_id", count=3),
        Count(name="clicks", description="K.", event_type="click", lifetime=True),
    ),
)

Event = dict[str, Any]


def event(number: int, **given: Any) -> Event:
    """A purchase at the start of 2026-01-10, received a second later unless given otherwise."""
    occurred_at = given.get("occurred_at", START)
    return {
        "event_id": f"e{number}",
        "event_type": "purchase",
        "user_id": "u",
        "content_id": f"c{number}",
        "category": "A",
        "value_cents": 100,
        "occurred_at": occurred_at,
        "received_at": occurred_at + SECOND,
    } | given


def apply(rows: dict[str, Row], events: pa.Table, declaration: Declaration) -> dict[str, Row]:
    rows = {user: decode(encode(row)) for user, row in rows.items()}
    absorb(rows, events, declaration)
    return rows


def table(events: list[Event]) -> pa.Table:
    return pa.Table.from_pylist(events, EVENT_SCHEMA)


def folded(*batches: list[Event]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for batch in batches:
        rows |= apply(rows, table(batch), DECLARATION)
    return rows


def row_of(*batches: list[Event]) -> Row:
    return folded(*batches)["u"]


def day(text: str) -> int:
    return (date.fromisoformat(text) - date(1970, 1, 1)).days


times = st.integers(0, 20 * 24).map(lambda hours: START + timedelta(hours=hours))
lags = st.sampled_from(
    [
        timedelta(0),
        SECOND,
        timedelta(days=1),
        timedelta(days=6),
        WEEK,
        WEEK + SECOND,
        -SECOND,
        -WEEK,
    ]
)


@st.composite
def distinct_events(draw: st.DrawFn) -> list[Event]:
    events = []
    for number in range(draw(st.integers(1, 25))):
        occurred_at = draw(times)
        events.append(
            event(
                number,
                user_id=draw(st.sampled_from(["u", "v"])),
                event_type=draw(st.sampled_from(["purchase", "purchase", "click"])),
                category=draw(st.sampled_from(["A", "B", None])),
                content_id=draw(st.sampled_from(["x", "y", None])),
                value_cents=draw(st.sampled_from([None, 0, 1, 250])),
                occurred_at=occurred_at,
                received_at=occurred_at + draw(lags),
            )
        )
    return events


@st.composite
def deliveries(draw: st.DrawFn) -> list[Event]:
    """Events and copies of them received later, in the order they were received."""
    events = draw(distinct_events())
    for original in draw(st.lists(st.sampled_from(events), max_size=15)):
        later = timedelta(hours=draw(st.integers(0, 12 * 24)))
        events.append(original | {"received_at": original["received_at"] + later})
    return sorted(events, key=lambda e: e["received_at"])


def split(draw: st.DrawFn, events: list[Event]) -> list[list[Event]]:
    cuts = sorted(draw(st.lists(st.integers(0, len(events)), max_size=5)))
    return [events[a:b] for a, b in zip([0, *cuts], [*cuts, len(events)], strict=True)]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), events=distinct_events())
def test_distinct_events_give_the_same_bytes_in_any_order_and_any_split(
    data: st.DataObject, events: list[Event]
) -> None:
    shuffled = data.draw(st.permutations(events))

    assert folded(*split(data.draw, shuffled)) == folded(events)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), events=distinct_events())
def test_rows_of_disjoint_events_merge_in_any_tree_to_the_same_row(
    data: st.DataObject, events: list[Event]
) -> None:
    mine = [e | {"user_id": "u"} for e in events]
    parts = [
        rows["u"]
        for part in split(data.draw, data.draw(st.permutations(mine)))
        if (rows := apply({}, table(part), DECLARATION))
    ]
    whole = folded(mine)
    if not parts:
        assert whole == {}
        return
    while len(parts) > 1:
        one = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        other = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts.append(merge(one, other, DECLARATION))

    assert {"u": parts[0]} == whole


@settings(max_examples=80, deadline=None)
@given(data=st.data(), received=deliveries())
def test_copies_count_once_in_any_split_of_the_order_they_were_received(
    data: st.DataObject, received: list[Event]
) -> None:
    once = {e["event_id"]: e for e in reversed(received)}.values()
    at_once = folded(data.draw(st.permutations(received)))

    assert folded(*split(data.draw, received)) == at_once
    for user, with_copies in at_once.items():
        without = folded(list(once))[user]
        for field in ("first_seen", "last_seen", "totals", "tiles", "lists"):
            assert getattr(with_copies, field) == getattr(without, field)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), received=deliveries())
def test_folding_many_events_at_once_gives_the_same_rows_as_one_by_one(
    data: st.DataObject, received: list[Event]
) -> None:
    at_once: dict[str, Row] = {}
    for part in split(data.draw, received):
        at_once |= bulk.apply(at_once, table(part), DECLARATION)

    assert at_once == folded(received)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), received=deliveries())
def test_the_compiled_fold_gives_the_same_rows(data: st.DataObject, received: list[Event]) -> None:
    compiled = pytest.importorskip("profilehouse.profiles.compiled", reason=NOT_BUILT)
    renamed = {e["event_id"]: data.draw(st.text(max_size=300)) for e in received}
    received = [e | {"event_id": renamed[e["event_id"]]} for e in received]
    ours: dict[str, Any] = {}
    for part in split(data.draw, received):
        ours = {user: compiled.decode(compiled.encode(row)) for user, row in ours.items()}
        users = compiled.absorb(ours, table(part), DECLARATION)
        assert sorted(users) == sorted({e["user_id"] for e in part if counts(e)})

    assert {user: decode(compiled.encode(row)) for user, row in ours.items()} == folded(received)


def counts(event: Event) -> bool:
    return bool(event["received_at"] - event["occurred_at"] <= WEEK)


def test_the_compiled_fold_takes_over_any_row_and_refuses_what_is_none() -> None:
    compiled = pytest.importorskip("profilehouse.profiles.compiled", reason=NOT_BUILT)
    numbers = [0, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**63 - 1]
    numbers += [-1, -32, -33, -128, -129, -32_768, -32_769, -(2**31), -(2**31) - 1, -(2**63)]
    row = row_of([event(1)])
    row.totals = numbers
    row.tiles[0] = {"": {n: n for n in sorted(numbers)}, "ä" * 300: {1: 1}, "x" * 70_000: {1: 1}}
    row.lists[0] = [(n, "i" * n, "v") for n in (1, 31, 32, 255, 256)]
    row.seen_ids = {2**64 - 1: 1, **{n: n for n in range(70_000)}}
    row.links = [("browser", f"s{n}") for n in range(20)]

    assert decode(compiled.encode(compiled.decode(encode(row)))) == row
    for broken in (b"", b"\x90", encode(row)[:-1], b"\x98" + b"\xa1x" * 8):
        with pytest.raises(ValueError, match="not an encoded row"):
            compiled.decode(broken)


@settings(max_examples=25, deadline=None)
@given(events=distinct_events())
def test_a_row_survives_encoding(events: list[Event]) -> None:
    for row in apply({}, table(events), DECLARATION).values():
        assert decode(encode(row)) == row


def test_a_row_holds_integers_per_day_lists_and_totals() -> None:
    row = row_of(
        [
            event(1, occurred_at=START),
            event(2, occurred_at=START + timedelta(hours=5), category="B", value_cents=None),
            event(3, occurred_at=START + timedelta(days=1), category=None, content_id=None),
            event(4, occurred_at=START + timedelta(days=2), event_type="click"),
        ]
    )
    first, second = day("2026-01-10"), day("2026-01-11")

    assert row.tiles == [
        {"": {first: 2, second: 1}},
        {"": {first: 100, second: 100}},
        {"A": {first: 1}, "B": {first: 1}},
    ]
    assert row.totals == [3, 200, 1]
    assert [value for _, _, value in row.lists[0]] == ["c1", "c2"]
    assert row.newest_day == date(2026, 1, 12)
    assert set(row.seen_ids) == {id_hash(f"e{n}") for n in (1, 2, 3, 4)}


def test_days_beyond_the_longest_window_are_forgotten_and_totals_are_not() -> None:
    row = row_of([event(1)], [event(2, occurred_at=START + timedelta(days=9))])

    assert row.tiles[0] == {"": {day("2026-01-19"): 1}}
    assert row.tiles[2] == {"A": {day("2026-01-19"): 1}}
    assert row.totals == [2, 200, 0]


def test_a_late_event_lands_on_the_day_it_happened() -> None:
    late = event(1, occurred_at=START, received_at=START + timedelta(days=6))
    row = row_of([event(2, occurred_at=START + timedelta(days=2))], [late])

    assert row.tiles[0] == {"": {day("2026-01-10"): 1, day("2026-01-12"): 1}}


@pytest.mark.parametrize(
    ("lag", "counts"),
    [(timedelta(0), True), (WEEK, True), (WEEK + SECOND, False), (-SECOND, True)],
)
def test_an_event_counts_if_received_within_a_week(lag: timedelta, counts: bool) -> None:
    assert ("u" in folded([event(1, received_at=START + lag)])) is counts


def test_an_event_dated_after_it_was_received_happened_just_before() -> None:
    received_at = START + timedelta(days=1)
    wrong_clock = event(1, occurred_at=START + timedelta(days=9000), received_at=received_at)
    copy = wrong_clock | {"received_at": START + timedelta(days=30)}
    row = row_of([wrong_clock], [event(2, occurred_at=START + timedelta(days=29))], [copy])

    assert row.first_seen == row_of([event(1, occurred_at=received_at - MICROSECOND)]).first_seen
    assert row_of([wrong_clock]).newest_day == date(2026, 1, 10)
    assert row.newest_day == date(2026, 2, 8)
    assert row.totals[0] == 2


def test_an_event_that_does_not_count_leaves_a_row_untouched() -> None:
    before = folded([event(1)])

    assert folded([event(1)], [event(2, received_at=START + WEEK + SECOND)]) == before


def test_of_the_newest_contents_equal_times_go_by_event_id() -> None:
    row = row_of([event(n) for n in (10, 9, 2, 1)])

    assert [value for _, _, value in row.lists[0]] == ["c10", "c2", "c9"]


def test_an_id_is_forgotten_when_a_copy_of_it_would_be_too_late_to_count() -> None:
    first = event(1)
    at_the_limit = event(2, received_at=START + WEEK)
    beyond = event(3, occurred_at=START + WEEK, received_at=START + WEEK + SECOND)

    assert id_hash("e1") in row_of([first], [at_the_limit]).seen_ids
    assert id_hash("e1") not in row_of([first], [beyond]).seen_ids


def test_a_copy_folded_out_of_order_after_its_id_is_forgotten_counts_again() -> None:
    beyond = event(2, occurred_at=START + WEEK + SECOND)

    assert row_of([event(1)], [beyond], [event(1)]).totals[0] == 3


def test_of_copies_that_differ_the_first_counts() -> None:
    copy = event(1, value_cents=999)

    assert row_of([event(1), copy]).totals[1] == 100
    assert row_of([event(1)], [copy]).totals[1] == 100


def test_an_event_id_counts_once_for_each_user() -> None:
    other = event(1, user_id="v")

    assert folded([event(1), other]).keys() == {"u", "v"}
    assert folded([event(1), other]) == folded([event(1)], [other])


def test_fold_gathers_batches_and_equals_applying_them_one_by_one() -> None:
    batches = [[event(n, occurred_at=START + timedelta(hours=n))] for n in range(30)]

    rows = fold((table(b) for b in batches), DECLARATION)

    assert rows == folded(*batches)


def test_fold_refuses_batches_that_go_back_in_time() -> None:
    newer = table([event(1, occurred_at=START + SECOND)])
    older = table([event(2, occurred_at=START)])

    with pytest.raises(ProfilehouseError, match="come after events received at 2026-01-10"):
        fold([newer, older], DECLARATION)


def test_fold_takes_record_batches_foreign_string_types_and_no_events_at_all() -> None:
    events = table([event(1)])
    large = events.cast(
        pa.schema(
            [f.with_type(pa.large_string()) if f.type == pa.string() else f for f in EVENT_SCHEMA]
        )
    )

    for batch in (events.to_batches()[0], large, large.append_column("more", [[1]])):
        rows = fold([table([]), batch], DECLARATION)
        assert rows == folded([event(1)])
    assert fold([], DECLARATION) == {}


def test_merging_many_single_events_equals_folding_them_together() -> None:
    events = [event(n, occurred_at=START + timedelta(hours=7 * n)) for n in range(40)]
    parts = [apply({}, table([e]), DECLARATION)["u"] for e in events]

    merged = reduce(lambda one, other: merge(one, other, DECLARATION), parts)

    assert {"u": merged} == folded(events)


def test_id_hashes_are_the_same_everywhere() -> None:
    assert f"{id_hash(''):016x}" == "e4a6a0577479b2b4"
