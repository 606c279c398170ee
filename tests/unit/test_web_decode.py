from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profilehouse.contract_quality import Distinct, Expression, QualityRule
from profilehouse.contracts import contract
from profilehouse.events import web
from profilehouse.events.rules import rules_of_batches
from profilehouse.events.web import decode
from profilehouse.log import Batch

TAKEN = 1_780_000_000_000_000
"""2026-05-28 20:26:40 UTC."""


@pytest.fixture(params=["as installed", "in Python alone"], autouse=True)
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in Python alone":
        monkeypatch.setattr(web, "plain", None)


def record(**given: Any) -> bytes:
    fields = {
        "event_id": "e1",
        "event_type": "click",
        "user_id": "u1",
        "content_id": "c1",
        "occurred_at": "2026-05-28T22:26:39.5+02:00",
        "consent": True,
    } | given
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not ...})


def batch(*values: bytes) -> Batch:
    return Batch(2, range(7, 7 + len(values)), [TAKEN] * len(values), values)


def refusal(value: bytes) -> str:
    [dead] = decode(batch(value), "T").dead.to_pylist()
    return str(dead["reason"])


def only(value: bytes) -> dict[str, Any]:
    [event] = decode(batch(value), "T").events.to_pylist()
    return dict(event)


def test_an_event_has_its_position_and_times_in_utc() -> None:
    assert only(record(properties={"a": [1, {"b": None}]}, value_cents=5)) == {
        "event_id": "e1",
        "event_type": "click",
        "user_id": "u1",
        "anonymous_id": None,
        "session_id": None,
        "content_id": "c1",
        "category": None,
        "campaign_id": None,
        "order_id": None,
        "value_cents": 5,
        "occurred_at": datetime(2026, 5, 28, 20, 26, 39, 500_000),
        "received_at": datetime(2026, 5, 28, 20, 26, 40),
        "url": None,
        "referrer": None,
        "device": None,
        "consent": True,
        "properties": '{"a":[1,{"b":null}]}',
        "contract_version": "1.0.0",
        "topic_id": "T",
        "log_partition": 2,
        "log_offset": 7,
        "delivered_on": date(2026, 5, 28),
    }


def test_a_time_that_the_collector_stamped_goes_before_the_logs() -> None:
    event = only(record(received_at="2026-05-27T23:59:59Z"))

    assert event["received_at"] == datetime(2026, 5, 27, 23, 59, 59)
    assert event["delivered_on"] == date(2026, 5, 27)


def test_each_bad_record_is_kept_with_its_bytes_position_and_reason_and_stops_no_other() -> None:
    values = [record(), b"{", b"", b"\xff\x00", record(user_id=...), record(event_id="e2")]

    decoded = decode(batch(*values), "T")

    assert decoded.events["event_id"].to_pylist() == ["e1", "e2"]
    assert decoded.events["log_offset"].to_pylist() == [7, 12]
    dead = decoded.dead.to_pylist()
    assert [(d["log_offset"], d["record"]) for d in dead] == [
        (8, b"{"),
        (9, b""),
        (10, b"\xff\x00"),
        (11, record(user_id=...)),
    ]
    assert dead[3] == {
        "received_at": datetime(2026, 5, 28, 20, 26, 40),
        "reason": "Object missing required field `user_id` or `anonymous_id`",
        "contract_version": "1.0.0",
        "record": record(user_id=...),
        "topic_id": "T",
        "log_partition": 2,
        "log_offset": 11,
        "delivered_on": date(2026, 5, 28),
    }


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"event_type": "like"}, "Invalid enum value 'like' - at `$.event_type`"),
        (
            {"value_cents": 10**12 + 1},
            "Expected `int` <= 1000000000000 - at `$.value_cents`",
        ),
        ({"consent": ...}, "Object missing required field `consent`"),
        ({"consent": "yes"}, "Expected `bool`, got `str` - at `$.consent`"),
        ({"colour": "red"}, "Object contains unknown field `colour`"),
        ({"user_id": "a b"}, "at `$.user_id`"),
        ({"user_id": "a\n"}, "at `$.user_id`"),
        ({"user_id": "\x1fa-visitor"}, "at `$.user_id`"),
        ({"user_id": "x" * 201}, "at `$.user_id`"),
        ({"occurred_at": "2026-05-28T22:26:39"}, "at `$.occurred_at`"),
        ({"occurred_at": "0001-01-01T00:00:00Z"}, "Expected a year from 1900 to 2199"),
        ({"received_at": "9999-01-01T00:00:00Z"}, "Expected a year from 1900 to 2199"),
        ({"value_cents": 1.5}, "Expected `int | null`, got `float` - at `$.value_cents`"),
        ({"value_cents": 2**63}, "at `$.value_cents`"),
        ({"properties": [1]}, "Expected `object | null` - at `$.properties`"),
        ({"contract_version": "2.0.0"}, "at `$.contract_version`"),
    ],
)
def test_what_breaks_the_contract_is_refused_with_the_place(
    fields: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(record(**fields))


def test_properties_nested_too_deep_and_bytes_that_are_no_text_are_dead_letters() -> None:
    deep = record()[:-1] + b',"properties":{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}}"
    broken = record()[:-1] + b',"properties":{"a":"\xff"}}'

    assert "recursion" in refusal(deep)
    assert "utf-8" in refusal(broken)


def test_a_purchase_gets_the_event_id_that_the_shops_own_delivery_has() -> None:
    bought = {"event_type": "purchase", "order_id": "o9"}

    assert only(record(**bought))["event_id"] == "purchases/o9/c1"
    assert only(record(**bought, content_id=None))["event_id"] == "e1"
    assert only(record(order_id="o9"))["event_id"] == "e1"


def test_nothing_decodes_to_nothing() -> None:
    decoded = decode(batch(), "T")

    assert (decoded.events.num_rows, decoded.dead.num_rows) == (0, 0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), st.just(record()))))
def test_every_record_comes_out_once_whatever_its_bytes(values: list[bytes]) -> None:
    decoded = decode(batch(*values), "T")

    offsets = decoded.events["log_offset"].to_pylist() + decoded.dead["log_offset"].to_pylist()
    assert sorted(offsets) == list(range(7, 7 + len(values)))
    assert decoded.dead["record"].to_pylist() == [
        values[offset - 7] for offset in decoded.dead["log_offset"].to_pylist()
    ]


def spaced(draw: st.DrawFn, text: str) -> str:
    return draw(st.sampled_from(["", "", "", " ", "\n\t"])) + text


times = st.one_of(
    st.datetimes(datetime(1890, 1, 1), datetime(2210, 1, 1)).flatmap(
        lambda moment: st.sampled_from(["Z", "+02:00", "-23:59", "+00:60", "z", ""]).map(
            lambda zone: f'"{moment.isoformat()}{zone}"'
        )
    ),
    st.sampled_from(
        [
            '"2026-02-29T00:00:00Z"',
            '"2024-02-29T23:59:59.1Z"',
            '"2024-02-29T23:59:60Z"',
            '"2026-11-31T00:00:00Z"',
            '"2026-11-23T24:00:00Z"',
            '"2026-11-23t08:30:00Z"',
            '"2026-11-23 08:30:00Z"',
            '"2026-11-23T08:30:00.1234567Z"',
            '"2026-11-23T08:30:00.Z"',
            '"2026-11-23T08:30Z"',
            '"1900-01-01T00:30:00+01:00"',
            '"2199-12-31T23:30:00-01:00"',
            "1700000000",
        ]
    ),
)
values = st.one_of(
    times,
    st.sampled_from(["null", "true", "false", "{}", "[]", '""', '"\\u0041"', '"a/b"', '"\\/"']),
    st.sampled_from(["0", "-0", "007", "1.0", "1e3", str(2**63 - 1), str(2**63), "-", "+1"]),
    st.integers(-(2**63) - 2, 2**63 + 2).map(str),
    st.text(max_size=6).map(lambda text: msgspec.json.encode(text).decode()),
    st.integers(195, 205).map(lambda n: f'"{"x" * n}"'),
    st.integers(195, 205).map(lambda n: f'"{"ä" * n}"'),
    st.recursive(
        st.sampled_from(["1", "-1.5e+3", "01", "1.", "tru", "null", '"x"', '"\t"', '"\\q"']),
        lambda inner: (
            st.lists(inner, max_size=3)
            .map(lambda some: st.sampled_from([f"[{','.join(some)}]", f'{{"k":{",".join(some)}}}']))
            .flatmap(lambda chosen: chosen)
        ),
        max_leaves=6,
    ).map(lambda inner: f'{{"p": {inner} }}'),
)
fields = {
    "event_id": '"e1"',
    "event_type": '"purchase"',
    "user_id": '"u1"',
    "content_id": '"c1"',
    "order_id": '"o1"',
    "occurred_at": '"2026-11-23T08:30:00Z"',
    "consent": "true",
}
names = st.sampled_from([column.name for column in contract("web").columns])


@st.composite
def near_records(draw: st.DrawFn) -> bytes:
    """A record in which some things are as senders should not have them."""
    given = list(fields.items())
    for _ in range(draw(st.integers(0, 3))):
        change = (draw(names), draw(values))
        kept = [each for each in given if each[0] != change[0]]
        given = draw(st.sampled_from([[*kept, change], [*given, change], kept]))
    members = [f'"{name}"{spaced(draw, ":")}{spaced(draw, value)}' for name, value in given]
    text = spaced(draw, "{") + spaced(draw, ",".join(members)) + spaced(draw, "}")
    data = bytearray((text + spaced(draw, "")).encode("utf-8", "surrogatepass"))
    if draw(st.integers(0, 4)) == 0:
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@settings(max_examples=600, deadline=None)
@given(st.lists(near_records(), max_size=6))
def test_what_is_installed_decodes_as_python_alone_does(values: list[bytes]) -> None:
    found = decode(batch(*values), "T")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "plain", None)
        expected = decode(batch(*values), "T")

    assert found.events.equals(expected.events)
    assert found.dead.equals(expected.dead)


def test_plain_records_are_not_left_to_python() -> None:
    plain = pytest.importorskip(
        "profilehouse.events.plain", reason="native/ is not installed: it wants a Rust toolchain"
    )
    tracked = record(
        anonymous_id="a",
        session_id="s",
        category="Ünïcode",
        value_cents=-5,
        received_at="2026-05-28T20:26:40.123456+00:00",
        url="https://shop.example/a?b=c",
        referrer=None,
        properties={"a": [1, 2.5, {"b": None}], "c": "d"},
        contract_version="1.0.0",
    )

    assert plain.decode([tracked, b"{", tracked])[0] == [0, 2]


def test_events_that_break_a_rule_of_the_contract_are_dead_letters_in_the_order_of_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules = (
        QualityRule(
            "it_is_paid", Expression("event_type <> 'purchase' OR value_cents > 0"), "P.", "error"
        ),
        QualityRule("it_is_cheap", Expression("value_cents < 9"), "Cheap.", "error"),
        QualityRule("it_has_a_url", Expression("url IS NOT NULL"), "U.", "warning"),
        QualityRule("it_is_once", Distinct(("url",)), "Once.", "error"),
    )
    ruled = rules_of_batches(replace(contract("web"), quality=rules))
    assert [rule.name for rule in ruled] == ["it_is_paid", "it_is_cheap"]
    monkeypatch.setattr(web, "_rules", lambda: ruled)
    values = (
        record(event_id="good"),
        record(event_type="purchase", value_cents=0),
        b"{",
        record(value_cents=9),
        record(event_id="unknown", event_type="purchase"),
    )
    decoded = decode(batch(*values), "T")
    assert decoded.events["event_id"].to_pylist() == ["good", "unknown"]
    dead = decoded.dead.to_pylist()
    assert [(row["log_offset"], row["record"]) for row in dead] == [
        (8, values[1]),
        (9, b"{"),
        (10, values[3]),
    ]
    assert dead[0]["reason"] == "Rule it_is_paid is broken: P"
    assert dead[2]["reason"] == "Rule it_is_cheap is broken: Cheap"
    assert decode(batch(values[1]), "T").events.num_rows == 0


def test_an_event_whose_numbers_a_rule_cannot_compute_with_is_a_dead_letter_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rule = QualityRule("it_is_cheap", Expression("value_cents * value_cents < 81"), "C.", "error")
    ruled = rules_of_batches(replace(contract("web"), quality=(rule,)))
    monkeypatch.setattr(web, "_rules", lambda: ruled)
    cents = [1, 10**10, 9, 3, 10**10, None]
    values = [record(event_id=str(i), value_cents=value) for i, value in enumerate(cents)]
    decoded = decode(batch(*values), "T")
    assert decoded.events["event_id"].to_pylist() == ["0", "3", "5"]
    assert [(row["record"], row["reason"][:30]) for row in decoded.dead.to_pylist()] == [
        (values[1], "The rules cannot be computed o"),
        (values[2], "Rule it_is_cheap is broken: C"),
        (values[4], "The rules cannot be computed o"),
    ]
