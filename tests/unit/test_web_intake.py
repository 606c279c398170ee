"""What a body becomes before the log, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from profilehouse.log import MAX_RECORD_BYTES, key_of
from profilehouse.web.intake import BATCH_EVENTS, BODY_BYTES, DEPTH, Refused, records

STAMP = b'"2026-01-01T12:00:00Z"'
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


def refusal(body: bytes) -> Refused:
    with pytest.raises(Refused) as refused:
        records(body, STAMP)
    assert "\n" not in refused.value.message
    return refused.value


def nested(levels: int) -> bytes:
    """An event of so many objects and arrays inside each other."""
    return b'{"user_id":"u","properties":%s%s}' % (b"[" * (levels - 1), b"]" * (levels - 1))


@given(st.binary() | st.text().map(str.encode) | JSON.map(json.dumps).map(str.encode))
@example(b"")
@example(b"[]")
@example(b"{}")
@example(b"null")
@example(b'{"user_id":"\\ud800"}')
@example(b'{"user_id":null,"anonymous_id":null}')
@example(b'{"user_id":"u"}x')
@example(b"\xef\xbb\xbf{}")
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
def test_any_body_becomes_records_or_is_refused(body: bytes) -> None:
    try:
        taken = records(body, STAMP)
    except Refused:
        assert refusal(body).status in {400, 413}
        return
    assert taken
    for key, value in taken:
        event = json.loads(value)
        assert event["received_at"] == "2026-01-01T12:00:00Z"
        assert key == key_of(value)
        assert key.decode() in {event.get("user_id"), event.get("anonymous_id")}


@given(st.dictionaries(st.text(), JSON), st.text())
def test_all_that_was_sent_stays_as_it_was_but_received_at(
    fields: dict[str, Any], user: str
) -> None:
    event = fields | {"user_id": user, "received_at": "long ago"}
    [(key, value)] = records(json.dumps(event).encode(), STAMP)
    assert key == user.encode()
    assert json.loads(value) == event | {"received_at": "2026-01-01T12:00:00Z"}


@given(st.lists(st.text(), min_size=1, max_size=50))
def test_a_batch_is_a_record_for_each_event_in_order(users: list[str]) -> None:
    body = json.dumps([{"user_id": user, "n": n} for n, user in enumerate(users)]).encode()
    taken = records(body, STAMP)
    assert [key.decode() for key, _ in taken] == users
    assert [json.loads(value)["n"] for _, value in taken] == list(range(len(users)))


def test_numbers_that_are_too_long_for_a_float_stay_as_they_were() -> None:
    number = b"12345678901234567890123.4567890123456789"
    [(_, value)] = records(b'{"user_id":"u","n":%s}' % number, STAMP)
    assert number in value


def test_received_at_cannot_be_smuggled_in() -> None:
    bodies = [
        b'{"user_id":"u","received_at":"1","received_at":"2"}',
        b'{"received_at":"1","user_id":"u"}',
        b'{"user_id":"u","receive\\u0064_at":"1"}',
    ]
    for body in bodies:
        [(_, value)] = records(body, STAMP)
        assert json.loads(value) == {"user_id": "u", "received_at": "2026-01-01T12:00:00Z"}
        assert value.count(b"2026-01-01T12:00:00Z") == 1
        assert b'"1"' not in value


def test_the_key_is_the_user_else_the_visitor() -> None:
    body = json.dumps(
        [
            {"user_id": "u", "anonymous_id": "a"},
            {"anonymous_id": "a"},
            {"user_id": None, "anonymous_id": "a"},
            {"user_id": "Zoë 😀"},
        ]
    )
    keys = [key.decode() for key, _ in records(body.encode(), STAMP)]
    assert keys == ["u", "a", "a", "Zoë 😀"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is not JSON"),
        (b'{"user_id":"u"', 400, "the body is not JSON"),
        (b'{"user_id":"u"}{}', 400, "the body is not JSON"),
        (b'{"user_id":NaN}', 400, "the body is not JSON"),
        (b'{"user_id":"\xff"}', 400, "not UTF-8 (byte 12)"),
        (b"3", 400, "events are JSON objects"),
        (b'"text"', 400, "events are JSON objects"),
        (b'[{"user_id":"u"},7]', 400, "`$[1]`"),
        (b"[]", 400, "no events"),
        (b"{}", 400, "the event has neither user_id nor anonymous_id"),
        (b'{"user_id":7}', 400, "the event: user_id is not a string"),
        (b'{"anonymous_id":["a"]}', 400, "the event: anonymous_id is not a string"),
        (b'[{"user_id":"u"},{"user_id":{}}]', 400, "event 1: user_id is not a string"),
        (nested(DEPTH + 1), 400, f"the event is nested too deeply: at most {DEPTH} levels"),
        (nested(100_000), 400, "nested too deeply"),
    ],
)
def test_a_refusal_says_what_and_where(body: bytes, status: int, message: str) -> None:
    refused = refusal(body)
    assert refused.status == status
    assert message in refused.message


def test_what_fits_exactly_is_taken_and_what_does_not_is_too_large() -> None:
    event = b'{"user_id":"u"}'
    assert len(records(b"[" + b",".join([event] * BATCH_EVENTS) + b"]", STAMP)) == BATCH_EVENTS
    many = refusal(b"[" + b",".join([event] * (BATCH_EVENTS + 1)) + b"]")
    assert many.status == 413
    assert f"{BATCH_EVENTS + 1} events are too many" in many.message

    assert len(records(event.ljust(BODY_BYTES), STAMP)) == 1
    assert refusal(event.ljust(BODY_BYTES + 1)).status == 413

    def of_size(size: int) -> bytes:
        """An event whose key and value have so many bytes together."""
        begin, end = b'{"user_id":"u","x":"', b'","received_at":%s}' % STAMP
        text = b"x" * (size - len(begin) - len(end) - 1)
        return begin + text + b'"}'

    [(key, value)] = records(of_size(MAX_RECORD_BYTES), STAMP)
    assert len(key) + len(value) == MAX_RECORD_BYTES
    large = refusal(of_size(MAX_RECORD_BYTES + 1))
    assert large.status == 413
    assert "the event is too large" in large.message


def test_brackets_in_texts_are_no_levels() -> None:
    text = '[{"\\' * 100
    body = json.dumps({"user_id": "u", "properties": {text: [text, text]}}).encode()
    assert len(records(body, STAMP)) == 1
    assert len(records(nested(DEPTH), STAMP)) == 1


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    for body in (b'{"<script>":1}', b'{"user_id":["<script>"]}', b"<script>", b'{"a":<script>}'):
        assert "script" not in refusal(body).message
