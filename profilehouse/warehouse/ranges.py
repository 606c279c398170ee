"""Loading events of the log: which positions a fact lacks, and each load with its ledger as one.

A load leaves the same tables whatever ranges come in whatever order, however often they are
repeated and wherever it was interrupted. Does not belong here: reading the lake, which the caller
does, or facts that come by delivery day (load.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.contracts import Contract, contract
from profilehouse.errors import ProfilehouseError
from profilehouse.warehouse import statements
from profilehouse.warehouse.base import Warehouse
from profilehouse.warehouse.load import RANGES_LEDGER as LEDGER
from profilehouse.warehouse.load import fingerprint, prepare, row_count
from profilehouse.warehouse.range_ledger import (
    Loaded,
    Range,
    by_partition,
    joined,
    merged,
    read_ledger,
    require_ledger,
    without,
    write_ledger,
)

FACT = "fct_web_event"
"""The fact that is loaded by positions."""

Ranges = Mapping[int, Range]
"""A range of each partition."""
Read = Callable[[Ranges], Iterable[pa.RecordBatch]]
"""Reads the rows to be staged, each with its `topic_id`, `log_partition` and `log_offset`."""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ranges of a topic that a run is to load, as JSON in the run's tag."""

    topic_id: str
    ranges: dict[int, Range]

    @classmethod
    def parse(cls, text: str) -> Plan:
        """The plan of a tag, {"topic_id": "...", "ranges": {"0": [10, 20]}}.

        Raises:
            ProfilehouseError: where the text is none.
        """
        try:
            plan = msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise ProfilehouseError(
                f"the plan {text!r} is not understood ({error}); write it as"
                ' {"topic_id": "...", "ranges": {"0": [10, 20]}}'
            ) from error
        _refuse_backward(plan.ranges)
        return plan

    def text(self) -> str:
        """What `parse` reads."""
        return msgspec.json.encode(self).decode()

    def refuse_unless_held(self, topic_id: str | None, offsets: Mapping[int, int]) -> None:
        """Refuse a plan for positions that the lake does not hold: nothing would be loaded there.

        Args:
            topic_id: of the topic the lake's events come from; None before the first.
            offsets: by partition, the offset behind the lake's last.

        Raises:
            ProfilehouseError: naming the first partition, and what to do.
        """
        if topic_id is not None and topic_id != self.topic_id:
            raise ProfilehouseError(
                f"the plan is for the topic with id {self.topic_id}, the lake's events come from"
                f" {topic_id}: plan anew"
            )
        for partition, (_, end) in sorted(self.ranges.items()):
            if end > offsets.get(partition, 0):
                raise ProfilehouseError(
                    f"the plan goes up to offset {end} of partition {partition}, the lake to"
                    f" {offsets.get(partition, 0)}: run it again when the lake has caught up"
                )


@dataclass(frozen=True)
class RangeReport:
    """What a load did.

    `loaded` has the ranges that were loaded, by partition; it is empty when the table had
    everything already. `staged_rows` are the rows read of them, copies included. With `anew` the
    SQL or the contract had changed, so that all was loaded again. `rows` is what the table holds.
    """

    table: str
    loaded: dict[int, list[Range]]
    staged_rows: int
    anew: bool
    rows: int


def load_ranges(
    warehouse: Warehouse,
    fact: Contract,
    sql: str,
    topic_id: str,
    ranges: Ranges,
    read: Read,
    schema: pa.Schema,
) -> RangeReport:
    """Bring a fact up to date with ranges of the log's positions; of copies the lowest stays.

    What the ledger has already is not loaded again, be it a part of a range. When the SQL or the
    contract's version changed, all that was loaded is read again.

    Args:
        warehouse: an open connection.
        fact: the table.
        sql: yields its columns from `staged`.
        topic_id: of the topic that the offsets count in.
        ranges: to be loaded; the lake must hold them.
        read: yields all rows of the ranges it is asked for; it may be asked several times.
        schema: of these rows.

    Raises:
        ProfilehouseError: if the table holds events of another topic.
        StaleWriter: if another load of the table came between; nothing was loaded.
    """
    _refuse_backward(ranges)
    prepare(warehouse, fact, sql, LEDGER)
    before = read_ledger(warehouse, fact.name)
    current = fingerprint(fact, sql, LEDGER)
    anew = any(loaded.fingerprint != current for loaded in before)
    had = by_partition(before)
    wanted = {p: [one] for p, one in ranges.items() if one[0] < one[1]}
    if wanted or anew:
        _refuse_foreign(fact, before, topic_id)
    if anew:
        missing = {p: joined([*had.get(p, ()), *wanted.get(p, ())]) for p in {*had, *wanted}}
    else:
        missing = {p: without(one, had.get(p, ())) for p, (one,) in wanted.items()}
    missing = {p: missing[p] for p in sorted(missing) if missing[p]}
    if not missing:
        return RangeReport(fact.name, {}, 0, False, row_count(warehouse, fact))
    counts = _stage(warehouse, topic_id, missing, read, schema)
    new = [
        Loaded(topic_id, p, first, end, current, counts[p, first])
        for p, parts in missing.items()
        for first, end in parts
    ]
    with warehouse.transaction():
        if anew:
            warehouse.swap(fact, statements.first_copies(fact, sql, statements.LOGGED))
        else:
            # What is computed from the fact is not told which row a better copy replaces.
            replaced = statements.replaced_rows(fact, sql, statements.LOGGED)
            warehouse.execute(
                f"DELETE FROM {LEDGER} WHERE table_name <> ? AND EXISTS ({replaced})",  # noqa: S608
                (fact.name,),
            )
            warehouse.merge(fact, sql, statements.LOGGED)
        require_ledger(warehouse, fact.name, before)
        write_ledger(warehouse, fact.name, merged([*([] if anew else before), *new]))
    return RangeReport(fact.name, missing, sum(counts.values()), anew, row_count(warehouse, fact))


def loaded_ranges(warehouse: Warehouse, topic_id: str, fact: str = FACT) -> dict[int, list[Range]]:
    """The positions of a topic that are in a fact: unbroken ranges by partition, lowest first.

    Raises:
        ProfilehouseError: if the table holds events of another topic.
    """
    if not warehouse.columns(LEDGER) or not warehouse.columns(fact):
        return {}
    ledger = read_ledger(warehouse, fact)
    _refuse_foreign(contract(fact), ledger, topic_id)
    return by_partition(ledger)


def behind(loaded: Mapping[int, Sequence[Range]], offsets: Mapping[int, int]) -> dict[int, Range]:
    """For each partition that lacks positions below an offset: from the first one lacking to it.

    Args:
        loaded: what `loaded_ranges` gives.
        offsets: by partition.
    """
    lacking = {p: without((0, end), loaded.get(p, ())) for p, end in sorted(offsets.items())}
    return {p: (parts[0][0], parts[-1][1]) for p, parts in lacking.items() if parts}


def _refuse_backward(ranges: Ranges) -> None:
    for partition, (first, end) in ranges.items():
        if partition < 0 or not 0 <= first <= end:
            raise ProfilehouseError(
                f"partition {partition} cannot have offsets from {first} to {end}: give the first"
                " offset and the one behind the last"
            )


def _refuse_foreign(fact: Contract, ledger: Sequence[Loaded], topic_id: str) -> None:
    others = {loaded.topic_id for loaded in ledger} - {topic_id}
    if others:
        raise ProfilehouseError(
            f"warehouse table {fact.name} holds events of the topic with id {others.pop()}, these"
            f" are of {topic_id}: the topic was created anew; point PROFILEHOUSE_LOG and"
            f" PROFILEHOUSE_LAKE to the old ones, or run DROP TABLE {fact.name} in the warehouse"
            f" and materialize warehouse/{fact.name} from the new ones"
        )


def _stage(
    warehouse: Warehouse,
    topic_id: str,
    ranges: Mapping[int, Sequence[Range]],
    read: Read,
    schema: pa.Schema,
) -> Counter[tuple[int, int]]:
    """Read and stage; how many rows each range has, by (partition, first offset)."""
    counts: Counter[tuple[int, int]] = Counter()

    def counted() -> Iterator[pa.RecordBatch]:
        for turn in range(max(map(len, ranges.values()))):
            asked = {p: parts[turn] for p, parts in ranges.items() if turn < len(parts)}
            for batch in read(asked):
                if batch.num_rows:
                    found = _counted(batch, topic_id, asked)
                    counts.update({(p, asked[p][0]): rows for p, rows in found.items()})
                    yield batch

    warehouse.stage(counted(), schema)
    return counts


def _counted(batch: pa.RecordBatch, topic_id: str, asked: Ranges) -> dict[int, int]:
    """Rows by partition. Rows that were not asked for are a mistake."""
    counts = pc.value_counts(batch["log_partition"]).to_pylist()
    found = {count["values"]: count["counts"] for count in counts}
    for partition in found:
        offsets = batch["log_offset"].filter(pc.equal(batch["log_partition"], partition))
        ends = pc.min_max(offsets)
        first, end = asked.get(partition, (0, 0))
        if not first <= ends["min"].as_py() <= ends["max"].as_py() < end:
            raise ValueError(
                f"rows that were not asked for: partition {partition}, offsets"
                f" {ends['min']} to {ends['max']}; asked were {dict(asked)}"
            )
    topics = batch["topic_id"].unique().to_pylist()
    if topics != [topic_id]:
        raise ValueError(f"rows of topics that were not asked for: {topics}, not {topic_id}")
    return found
