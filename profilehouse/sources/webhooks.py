"""Webhooks that the collector took, fetched from their log into the day's file.

Belongs here: delivering what is new in the log; from there it is landed as any delivery. How far
the last fetch came is read off the delivered files: each record has its position.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING

import msgspec

from profilehouse.contracts import Contract, contract
from profilehouse.log import Log
from profilehouse.sources.fetching import Fetched, deliver
from profilehouse.sources.formats import read_records

if TYPE_CHECKING:
    from profilehouse.sources.deliveries import Folder

FEED = "webhooks"
_AT_ONCE = 5000
_SECONDS_TO_WAIT = 5.0


class _Place(msgspec.Struct):
    topic_id: str
    log_partition: int
    log_offset: int


def fetch_webhooks(log: Log, folder: Folder, today: date) -> Fetched:
    """Add the webhooks that are newer than all delivered ones to today's file.

    One that came without an id is named by its position.

    Args:
        log: theirs.
        folder: where sources deliver.
        today: business day whose file is written.

    Raises:
        ProfilehouseError: where the log cannot be read, or was made anew and is shorter than what
            was delivered from it.
    """
    source = contract(FEED)
    ends = {partition: end for partition, end in log.ends().items() if end}
    begin = _next_offsets(source, folder, log.topic_id, set(ends))
    wanted = {p: end for p, end in ends.items() if begin.get(p, 0) < end}
    new: list[bytes] = []
    calls = 0
    if wanted:
        with log.consumer({p: begin.get(p) for p in wanted}) as consumer:
            reached = {p: begin.get(p, 0) for p in wanted}
            while any(reached[p] < end for p, end in wanted.items()):
                batches = consumer.read(_AT_ONCE, _SECONDS_TO_WAIT)
                calls += 1
                if not batches:
                    break
                for batch in batches:
                    reached[batch.partition] = batch.next_offset
                    for offset, value in zip(batch.offsets, batch.values, strict=True):
                        new.append(_record(value, log.topic_id, batch.partition, offset))
    return Fetched(len(new), calls, len(new), deliver(source, folder, today, new))


def _next_offsets(
    source: Contract, folder: Folder, topic_id: str, partitions: set[int]
) -> dict[int, int]:
    """Where each partition is to be read on: newest files first, until all are found."""
    found: dict[int, int] = {}
    for _, name in sorted(folder.deliveries(source).files.items(), reverse=True):
        here: dict[int, int] = {}
        for place in _places(read_records(source, folder.read(source, name), name).lines):
            if place.topic_id == topic_id:
                following = place.log_offset + 1
                here[place.log_partition] = max(here.get(place.log_partition, 0), following)
        found = here | found
        if partitions <= found.keys():
            break
    return found


def _places(lines: list[bytes]) -> Iterator[_Place]:
    for line in lines:
        try:
            yield msgspec.json.decode(line, type=_Place)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue


def _record(value: bytes, topic_id: str, partition: int, offset: int) -> bytes:
    record = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
    if bytes(record["delivery_id"]) == b"null":
        record["delivery_id"] = _raw(f"{topic_id}/{partition}/{offset}")
    payload = msgspec.json.decode(record["payload"], type=dict[str, msgspec.Raw])
    action = payload.get("action")
    if action is not None and bytes(action)[:1] == b'"':
        record["action"] = action
    place = {
        "topic_id": _raw(topic_id),
        "log_partition": _raw(partition),
        "log_offset": _raw(offset),
    }
    return msgspec.json.encode(record | place)


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
