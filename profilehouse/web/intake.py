"""Intake: the body of a request as records of the event log, or what is wrong with it.

Belongs here: size and JSON, all that is looked at before the log. Does not belong here: what the
fields of an event must hold; the live process checks that, so that nothing refused is lost.
"""

from __future__ import annotations

import re

import msgspec

from profilehouse.log import MAX_RECORD_BYTES

BODY_BYTES = 2**20
"""Of a request, at most."""
BATCH_EVENTS = 1000
"""In a request, at most."""
DEPTH = 16
"""Objects and arrays inside each other, at most; an event itself is the first."""

Record = tuple[bytes, bytes]
"""Key and value, as the log takes them."""

_BODY = msgspec.json.Decoder(list[dict[str, msgspec.Raw]] | dict[str, msgspec.Raw])
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = re.compile(rb"[{}\[\]]")


class Refused(Exception):  # noqa: N818
    """A request that is not taken.

    Attributes:
        status: of the answer.
        message: one line for the sender, without anything that was sent.
        retry_after: seconds after which sending it again may help; None where it never does.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


def records(body: bytes, received_at: bytes) -> list[Record]:
    """One record for each event, in the order of the body. All are good, or none is taken.

    Args:
        body: JSON: an event or an array of events.
        received_at: a JSON string; it takes the place of what a sender says.

    Raises:
        Refused: with 400, or 413 for what is too large, and the place in the body.
    """
    if len(body) > BODY_BYTES:
        raise too_large()
    try:
        body.decode()
        decoded = _BODY.decode(body)
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise _too_deep("the body") from None
    except msgspec.ValidationError as error:
        raise Refused(400, f"events are JSON objects: {error}") from None
    except msgspec.DecodeError as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    single = isinstance(decoded, dict)
    events = [decoded] if isinstance(decoded, dict) else decoded
    if not events:
        raise Refused(400, "the array holds no events")
    if len(events) > BATCH_EVENTS:
        raise Refused(413, f"{len(events)} events are too many: at most {BATCH_EVENTS}")
    stamp = msgspec.Raw(received_at)
    return [
        _record(event, stamp, "the event" if single else f"event {place}")
        for place, event in enumerate(events)
    ]


def too_large() -> Refused:
    """The answer to a body above the limit."""
    return Refused(413, f"the body is too large: at most {BODY_BYTES} bytes")


def _record(event: dict[str, msgspec.Raw], stamp: msgspec.Raw, where: str) -> Record:
    event["received_at"] = stamp
    key = _key(event, where)
    value = msgspec.json.encode(event)
    if _depth(value) > DEPTH:
        raise _too_deep(where)
    if len(key) + len(value) > MAX_RECORD_BYTES:
        raise Refused(413, f"{where} is too large: at most {MAX_RECORD_BYTES} bytes")
    return key, value


def _key(event: dict[str, msgspec.Raw], where: str) -> bytes:
    for name in ("user_id", "anonymous_id"):
        raw = event.get(name)
        if raw is not None and bytes(raw) != b"null":
            try:
                return msgspec.json.decode(raw, type=str).encode()
            except msgspec.DecodeError:
                raise Refused(400, f"{where}: {name} is not a string") from None
    raise Refused(400, f"{where} has neither user_id nor anonymous_id")


def _depth(value: bytes) -> int:
    """How deep valid JSON is nested; only told apart from DEPTH if it could be deeper."""
    opened = value.count(b"{") + value.count(b"[")
    if opened <= DEPTH:
        return opened
    depth = deepest = 0
    for bracket in _BRACKETS.findall(_TEXT.sub(b"", value)):
        depth += 1 if bracket in b"{[" else -1
        deepest = max(deepest, depth)
    return deepest


def _too_deep(where: str) -> Refused:
    return Refused(400, f"{where} is nested too deeply: at most {DEPTH} levels")
