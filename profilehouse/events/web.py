"""Decoding records of the event log: valid columns for the lake and profiles, or dead letters.

Belongs here: what contracts/stream/web demands of a record, and what the platform makes of it. Does
not belong here: who an event is about (profiles/identity.py) or what is done with it (stream/).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from itertools import repeat
from operator import attrgetter
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.contracts import contract
from profilehouse.decode import FIRST_YEAR, LAST_YEAR, record_type
from profilehouse.events.rules import broken, rules_of_batches
from profilehouse.log import Batch
from profilehouse.quality.rules import Rule

plain: ModuleType | None = None
if find_spec("profilehouse_native"):
    from profilehouse.events import plain

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
    places, columns = plain.decode(batch.values) if plain else ([], _columns([]))
    events = _events(columns, places, batch, topic_id)
    reasons: dict[int, str] = {}
    if len(places) < len(batch.values):
        records, reasons = _judged(batch.values, places)
        if records:
            others = _events(_columns(records.values()), list(records), batch, topic_id)
            in_order = np.argsort([*places, *records])
            events = pa.concat_tables([events, others]).take(pa.array(in_order))
            places = sorted([*places, *records])
    if wrong := broken(events, _rules()):
        reasons |= {places[row]: reason for row, reason in wrong.items()}
        kept = [row not in wrong for row in range(events.num_rows)]
        events = events.filter(pa.array(kept, pa.bool_()))
    return Decoded(events, _dead_letters(dict(sorted(reasons.items())), batch, topic_id))


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
def _fields() -> tuple[dict[str, pa.DataType], attrgetter[tuple[Any, ...]]]:
    """The types that a record's fields are read as, and their values of one record."""
    types = {
        column.name: _AWARE if column.type == "timestamp" else column.arrow_type
        for column in contract("web").columns
    }
    return types, attrgetter(*types)


@cache
def _schema(table: str) -> pa.Schema:
    return contract(table).arrow_schema


def _judged(
    values: Sequence[bytes], plain_ones: list[int]
) -> tuple[dict[int, Any], dict[int, str]]:
    """Of the records that are not plain: the good ones, and why others are none, by place."""
    decoder = _decoder()
    good: dict[int, Any] = {}
    reasons: dict[int, str] = {}
    for place in sorted(set(range(len(values))).difference(plain_ones)):
        try:
            record = decoder.decode(values[place])
            reason = _refusal(record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            reason = str(error)
        if reason:
            reasons[place] = reason
        else:
            good[place] = record
    return good, reasons


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
    return None


def _columns(records: Collection[Any]) -> dict[str, pa.Array]:
    types, fields = _fields()
    values = zip(*map(fields, records), strict=True) if records else repeat(())
    return {
        name: pa.array(column, type_)
        for (name, type_), column in zip(types.items(), values, strict=False)
    }


def _events(
    columns: Mapping[str, pa.Array], places: list[int], batch: Batch, topic_id: str
) -> pa.Table:
    """Good records as rows of lake/web_events."""
    logged = pa.array(_taken(batch.received_at, places), pa.int64()).cast(_TIME)
    received = pc.coalesce(columns["received_at"].cast(_TIME), logged)
    return _table(
        EVENTS,
        {
            **columns,
            "event_id": _event_ids(columns),
            "occurred_at": columns["occurred_at"].cast(_TIME),
            "contract_version": pc.fill_null(columns["contract_version"], contract("web").version),
            **_position(batch, places, topic_id, received),
        },
    )


def _event_ids(columns: Mapping[str, pa.Array]) -> pa.Array:
    """As sent; of purchases with order_id and content_id the one of the shop's own deliveries."""
    order, content = columns["order_id"], columns["content_id"]
    known = pc.and_(order.is_valid(), content.is_valid())
    return pc.if_else(
        pc.and_(pc.equal(columns["event_type"], "purchase"), known),
        pc.binary_join_element_wise("purchases", order, content, "/"),
        columns["event_id"],
    )


def _dead_letters(reasons: Mapping[int, str], batch: Batch, topic_id: str) -> pa.Table:
    places = list(reasons)
    received = pa.array(_taken(batch.received_at, places), pa.int64()).cast(_TIME)
    return _table(
        DEAD_LETTERS,
        {
            "reason": list(reasons.values()),
            "contract_version": pa.repeat(contract("web").version, len(places)),
            "record": _taken(batch.values, places),
            **_position(batch, places, topic_id, received),
        },
    )


def _position(batch: Batch, places: list[int], topic_id: str, received: pa.Array) -> dict[str, Any]:
    count = len(places)
    return {
        "received_at": received,
        "topic_id": pa.repeat(topic_id, count),
        "log_partition": pa.repeat(pa.scalar(batch.partition, pa.int64()), count),
        "log_offset": _taken(batch.offsets, places),
        "delivered_on": received.cast(pa.date32()),
    }


def _table(name: str, columns: Mapping[str, Any]) -> pa.Table:
    schema = _schema(name)
    values = ((columns[field.name], field.type) for field in schema)
    return pa.table(
        [v if isinstance(v, pa.Array) else pa.array(v, type_) for v, type_ in values], schema=schema
    )


def _taken(values: Sequence[Any], places: list[int]) -> Sequence[Any]:
    return values if len(places) == len(values) else [values[place] for place in places]
