"""Which decoded records break a rule of their contract's quality section, and are held back.

Belongs here: finding them among the records of some days, and reading them again. Does not belong
here: what an operator does about them (quarantine.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import date
from itertools import chain

import pyarrow as pa

from profilehouse.contracts import Contract
from profilehouse.decode import typed_columns
from profilehouse.errors import ProfilehouseError
from profilehouse.lake import Lake
from profilehouse.quality.rules import Rule, row_rules
from profilehouse.quality.sql import arrow_source, failing_rows

TABLE = "quarantine"
DAY, LINE = "delivered_on", "line"

Place = tuple[date, int]
"""Delivery day and line of a record."""


def holding_rules(source: Contract) -> tuple[Rule, ...]:
    """The rules whose failing records are held back: of severity error, in the quality section.

    What rows share (keys, dependencies) is looked at within a delivery day, so that it does not
    matter which days are landed together.
    """
    rules = row_rules(source, within=(DAY,))
    return tuple(rule for rule in rules if rule.declared and rule.severity == "error")


def held_back(source: Contract, rows: pa.Table) -> dict[Place, list[str]]:
    """The records that break a rule, and which.

    Days for which a rule is silenced are left out, also when the silence has ended: what is landed
    does not depend on the day it is landed.

    Args:
        source: the contract.
        rows: has the columns delivered_on, line and record, whole days.

    Raises:
        ProfilehouseError: where a rule cannot be computed; it names the rule.
    """
    rules = holding_rules(source)
    if not rules or not rows.num_rows:
        return {}
    read = set(chain.from_iterable(rule.columns for rule in rules))
    columns = tuple(column for column in source.columns if column.name in read)
    narrow = replace(source, columns=columns, primary_key=(), quality=(), silences=())
    typed = typed_columns(rows.select([DAY, LINE, "record"]), narrow)
    found: dict[Place, list[str]] = {}
    with arrow_source({source.name: typed}) as records:
        for rule in rules:
            silenced = {silence.partition for silence in rule.silences}
            try:
                failing = records.query(failing_rows(rule.test, source.name, [DAY, LINE]))
            except ProfilehouseError as error:
                raise ProfilehouseError(
                    f"{source.path.name}: quality rule {rule.name}: {error}"
                ) from error
            for day, line in zip(*(c.to_pylist() for c in failing.columns), strict=True):
                if day not in silenced:
                    found.setdefault((day, line), []).append(rule.name)
    return found


def landed_and_held(source: Contract, lake: Lake, days: Collection[date] | None = None) -> pa.Table:
    """The landed and the held-back records of a source in its contract's columns, beside
    delivered_on, line and received_at.

    Args:
        source: the contract.
        lake: to read.
        days: delivery days; all where None.
    """
    columns = [DAY, LINE, "received_at", "record"]
    landed = lake.read(source.name, days=days, columns=columns)
    held = lake.read(TABLE, topic=source.name, days=days, columns=columns)
    rows = pa.concat_tables([landed, held.group_by(columns).aggregate([])])
    return typed_columns(rows, source)


def held_by_day(lake: Lake, topic: str, days: Collection[date] | None = None) -> dict[date, int]:
    """How many records of a topic are held back, by delivery day."""
    rows = lake.read(TABLE, topic=topic, days=days, columns=[DAY, LINE])
    counts: dict[date, int] = {}
    for day, _ in {*zip(*(column.to_pylist() for column in rows.columns), strict=True)}:
        counts[day] = counts.get(day, 0) + 1
    return counts
