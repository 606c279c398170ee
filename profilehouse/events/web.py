"""Decoding records of the event log: valid columns for the lake and profiles, or dead letters.

Belongs here: what contracts/stream/web demands of a record, and what the platform makes of it. Does
not belong here: who an event is about (profiles/identity.py) or what is done with it (stream/).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.contracts import contract
from profilehouse.decode import FIRST_YEAR, LAST_YEAR, record_type
from profilehouse.events.rules import broken, rules_of_batches
from profilehouse.log import Batch
from profilehouse.quality.rules import Rule

EVENTS, DEAD_LETTERS = "web_events", "web_dead_letters"
"""The lake's tables of what this module makes."""

_TIME = pa.timestamp("us")
_AWARE = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Decoded:
    """What a batch of the log holds: each record in one of two tables, in the order of the log.

    Attributes:
        events: the columns of lake/web_events.
        dead: the columns of lake/web_dead_letters.
    """

    events: pa.Table
    dead: pa.Table


def decode(batch: Batch, topic_id: str) -> Decoded:
    """Decode records of one partition; none stops the others.

    A record is refused for what `profilehouse.decode.refusals` refuses, if it names neither a user
    nor an anonymous visitor, and if it breaks a rule of the contract that one record decides. A
    purchase with order_id and content_id gets the event_id that the shop's own deliveries have for
    it, so that it counts once if it comes both ways.

    Args:
        batch: of one partition.
        topic_id: of the log.
    """
    decoder = _decoder()
    good: list[Any] = []
    places: list[int] = []
    dead: list[int] = []
    reasons: list[str] = []
    for place, value in enumerate(batch.values):
        try:
            record = decoder.decode(value)
            reason = _refusal(record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            reason = str(error)
        if reason:
            dead.append(place)
            reasons.append(reason)
        else:
            good.append(record)
            places.append(place)
    return _ruled(
        Decoded(
            _events(good, places, batch, topic_id),
            _dead_letters(dead, reasons, batch, topic_id),
        ),
        batch,
        topic_id,
    )


def _ruled(decoded: Decoded, batch: Batch, topic_id: str) -> Decoded:
    """What was decoded, with events that break a rule of the contract among the dead letters."""
    reasons = broken(decoded.events, _rules())
    if not reasons:
        return decoded
    offsets = decoded.events["log_offset"].to_pylist()
    by_offset = {offset: place for place, offset in enumerate(batch.offsets)}
    places = [by_offset[offsets[row]] for row in reasons]
    letters = _dead_letters(places, list(reasons.values()), batch, topic_id)
    kept = pa.array([row not in reasons for row in range(len(offsets))], pa.bool_())
    dead = pa.concat_tables([decoded.dead, letters]).sort_by("log_offset")
    return Decoded(decoded.events.filter(kept), dead)


@cache
def _rules() -> tuple[Rule, ...]:
    return rules_of_batches(contract("web"))


def empty() -> Decoded:
    """Nothing, in the right columns."""
    return Decoded(_schema(EVENTS).empty_table(), _schema(DEAD_LETTERS).empty_table())


@cache
def _decoder() -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(record_type(contract("web"), json_object=msgspec.Raw))


@cache
def _fields() -> tuple[tuple[str, ...], attrgetter[tuple[Any, ...]]]:
    """The names of a record's fields, and their values of one record."""
    names = tuple(column.name for column in contract("web").columns)
    return names, attrgetter(*names)


@cache
def _schema(table: str) -> pa.Schema:
    return contract(table).arrow_schema


def _refusal(record: Any) -> str | None:
    """What is wrong with a record whose fields have the right types."""
    if record.user_id is None and record.anonymous_id is None:
        return "Object missing required field `user_id` or `anonymous_id`"
    for name in ("occurred_at", "received_at"):
        time: datetime | None = getattr(record, name)
        if time is not None and not FIRST_YEAR <= time.year <= LAST_YEAR:
            return f"Expected a year from {FIRST_YEAR} to {LAST_YEAR} - at `$.{name}`"
    if record.properties is not None:
        text = str(memoryview(record.properties), "utf-8")
        if not text.startswith("{") and text != "null":
            return "Expected `object | null` - at `$.properties`"
        record.properties = None if text == "null" else text
    if record.event_type == "purchase" and record.order_id and record.content_id:
        record.event_id = f"purchases/{record.order_id}/{record.content_id}"
    return None


def _events(records: list[Any], places: list[int], batch: Batch, topic_id: str) -> pa.Table:
    schema = _schema(EVENTS)
    default_version = contract("web").version
    names, fields = _fields()
    columns: dict[str, Any] = dict.fromkeys(names, ())
    columns |= zip(names, zip(*map(fields, records), strict=True), strict=False)
    versions = pa.array(columns["contract_version"], pa.string())
    columns["contract_version"] = pc.fill_null(versions, default_version)
    columns["occurred_at"] = pa.array(columns["occurred_at"], _AWARE).cast(_TIME)
    logged = pa.array(_taken(batch.received_at, places), pa.int64()).cast(_TIME)
    stamped = pa.array(columns["received_at"], _AWARE).cast(_TIME)
    columns["received_at"] = received = pc.coalesce(stamped, logged)
    columns |= _position(batch, places, topic_id, received)
    return pa.table([_column(columns[f.name], f.type) for f in schema], schema=schema)


def _dead_letters(places: list[int], reasons: list[str], batch: Batch, topic_id: str) -> pa.Table:
    schema = _schema(DEAD_LETTERS)
    received = pa.array(_taken(batch.received_at, places), pa.int64()).cast(_TIME)
    columns = {
        "received_at": received,
        "reason": reasons,
        "contract_version": [contract("web").version] * len(places),
        "record": _taken(batch.values, places),
        **_position(batch, places, topic_id, received),
    }
    return pa.table([_column(columns[f.name], f.type) for f in schema], schema=schema)


def _position(batch: Batch, places: list[int], topic_id: str, received: pa.Array) -> dict[str, Any]:
    count = len(places)
    return {
        "topic_id": pa.repeat(topic_id, count),
        "log_partition": pa.repeat(pa.scalar(batch.partition, pa.int64()), count),
        "log_offset": _taken(batch.offsets, places),
        "delivered_on": received.cast(pa.date32()),
    }


def _column(values: Any, type_: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, type_)


def _taken(values: Sequence[Any], places: list[int]) -> Sequence[Any]:
    return values if len(places) == len(values) else [values[place] for place in places]
