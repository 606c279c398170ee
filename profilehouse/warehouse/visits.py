"""Visits: whose they are (dim_identity) and the sessions they make (fct_session), from web events.

Both follow the rule of profilehouse/profiles/identity.py, and count the events that count there.
Belongs here: what a load has to compute anew when events were added. Does not belong here: how
versions and sessions are made of events, which is SQL in assets/warehouse/sql.
"""

# Names come from contracts, numbers from the ledger.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from profilehouse.contracts import Contract
from profilehouse.profiles.features import LATE_DAYS
from profilehouse.warehouse.base import Warehouse
from profilehouse.warehouse.load import RANGES_LEDGER as LEDGER
from profilehouse.warehouse.load import fingerprint, prepare, row_count
from profilehouse.warehouse.range_ledger import (
    Loaded,
    Range,
    by_partition,
    merged,
    read_ledger,
    require_ledger,
    without,
    write_ledger,
)
from profilehouse.warehouse.ranges import FACT, RangeReport
from profilehouse.warehouse.sql import over

IDENTITY, SESSIONS = "dim_identity", "fct_session"
KEY = "MD5(anonymous_id || ' ' || session_id)"
"""Of dim_identity, as assets/warehouse/sql/dim_identity.sql has it."""
TIMEOUT_MINUTES = 30
"""A longer pause ends a session; assets/warehouse/sql/fct_session.sql has the same number."""


def counted(where: str = "TRUE") -> str:
    """A query for the events of devices that count, with a condition on columns of the fact.

    A clock that ran ahead is set back to when the event was received, as it is in profiles.
    """
    return f"""
SELECT
    event_id, event_type, user_id, anonymous_id, session_id, campaign_key, order_id, value_cents,
    url, referrer, device, received_at,
    LEAST(occurred_at, DATEADD(MICROSECOND, -1, received_at)) AS happened_at
FROM {FACT}
WHERE consent AND received_at <= DATEADD(DAY, {LATE_DAYS}, occurred_at)
AND NOT anonymous_id IS NULL AND ({where})
"""


def owned(where: str = "TRUE") -> str:
    """The same events, each with the user it counts for; null where nobody logged in."""
    return f"""
SELECT
    event.event_id, event.event_type, COALESCE(event.user_id, owner.user_id) AS user_id,
    event.anonymous_id, event.session_id, event.campaign_key, event.order_id, event.value_cents,
    event.url, event.referrer, event.device, event.happened_at
FROM ({counted(where)}) AS event
LEFT JOIN (SELECT anonymous_id, session_id, user_id FROM {IDENTITY} WHERE is_current) AS owner
ON owner.anonymous_id = event.anonymous_id AND owner.session_id = event.session_id
"""


_SPAN = pa.schema(
    [
        ("session_key", pa.string()),
        ("anonymous_id", pa.string()),
        ("owner", pa.string()),
        ("first_at", pa.timestamp("us")),
        ("last_at", pa.timestamp("us")),
    ]
)
"""What is computed anew: the events of an owner ('' for nobody) on a device in a stretch of time.
With a session_key it is a session as it is now, else a moment of an event."""


def load_identity(warehouse: Warehouse, dimension: Contract, sql: str) -> RangeReport:
    """Bring dim_identity up to date with fct_web_event.

    The versions of a visit are computed anew from all its events when it has new ones.

    Args:
        warehouse: an open connection.
        dimension: the table.
        sql: yields its columns from `staged`, which has the columns of counted().

    Raises:
        StaleWriter: if another load of the table came between; nothing was loaded.
    """
    plan = _plan(warehouse, dimension, sql, FACT)
    if not plan.missing:
        return _report(warehouse, dimension, plan)
    fresh = _within(plan.missing)
    visits = f"SELECT DISTINCT anonymous_id, session_id FROM ({counted(fresh)}) AS fresh"
    touched = f"""
SELECT event.* FROM ({counted(_of_devices(FACT, fresh))}) AS event JOIN ({visits}) AS visit
ON visit.anonymous_id = event.anonymous_id AND visit.session_id = event.session_id
"""
    with warehouse.transaction():
        if plan.anew:
            warehouse.swap(dimension, over(sql, counted()))
        else:
            keys = f"SELECT {KEY} AS identity_key FROM ({counted(fresh)}) AS fresh"
            warehouse.replace_keys(dimension, "identity_key", keys, over(sql, touched))
        plan.write(warehouse, dimension)
    return _report(warehouse, dimension, plan)


def load_sessions(warehouse: Warehouse, sessions: Contract, sql: str) -> RangeReport:
    """Bring fct_session up to date with what dim_identity was loaded from.

    An event can only touch sessions of its device that are at most the timeout away, and a login
    the events of its visit, which may change their owner. So those events, with the sessions that
    they touch, are taken out and made to sessions again; all others stay as they are.

    Args:
        warehouse: an open connection.
        sessions: the table.
        sql: yields its columns from `staged`, which has the columns of owned().

    Raises:
        StaleWriter: if another load of the table came between; nothing was loaded.
    """
    plan = _plan(warehouse, sessions, sql, IDENTITY)
    if not plan.missing:
        return _report(warehouse, sessions, plan)
    touched = ""
    if not plan.anew:
        spans = warehouse.query(_spans(_within(plan.missing)))
        warehouse.stage(spans.to_batches(), _SPAN)
        touched = _inside_spans(pc.min(spans["first_at"]).as_py())
    with warehouse.transaction():
        if plan.anew:
            warehouse.swap(sessions, over(sql, owned()))
        else:
            keys = "SELECT session_key FROM staged WHERE NOT session_key IS NULL"
            warehouse.replace_keys(sessions, "session_key", keys, over(sql, touched))
        plan.write(warehouse, sessions)
    return _report(warehouse, sessions, plan)


@dataclass(frozen=True)
class _Plan:
    """What a table lacks of its source: ranges by partition, all of them with `anew`."""

    before: list[Loaded]
    missing: dict[int, list[Range]]
    anew: bool
    topic_id: str
    fingerprint: str

    def write(self, warehouse: Warehouse, table: Contract) -> None:
        require_ledger(warehouse, table.name, self.before)
        new = [
            Loaded(self.topic_id, partition, first, end, self.fingerprint, 0)
            for partition, parts in self.missing.items()
            for first, end in parts
        ]
        write_ledger(warehouse, table.name, merged([*([] if self.anew else self.before), *new]))


def _plan(warehouse: Warehouse, table: Contract, sql: str, source: str) -> _Plan:
    """What to load of a source; anew where its own ranges are no longer in it, or by other SQL."""
    prepare(warehouse, table, sql, LEDGER, anew=True)
    before, there = read_ledger(warehouse, table.name), read_ledger(warehouse, source)
    sources = sorted({loaded.fingerprint for loaded in there})
    current = fingerprint(table, sql, " ".join(sources))
    had, has = by_partition(before), by_partition(there)
    lost = [
        part for p, parts in had.items() for one in parts for part in without(one, has.get(p, ()))
    ]
    topics = {loaded.topic_id for loaded in there}
    others = any(
        loaded.fingerprint != current or loaded.topic_id not in topics for loaded in before
    )
    anew = not before or bool(lost) or others
    missing = {
        p: [part for one in parts for part in without(one, () if anew else had.get(p, ()))]
        for p, parts in has.items()
    }
    return _Plan(
        before,
        {p: parts for p, parts in missing.items() if parts},
        anew,
        next(iter(topics), ""),
        current,
    )


def _report(warehouse: Warehouse, table: Contract, plan: _Plan) -> RangeReport:
    again = plan.anew and bool(plan.before)
    return RangeReport(table.name, plan.missing, 0, again, row_count(warehouse, table))


def _within(ranges: Mapping[int, Sequence[Range]]) -> str:
    return " OR ".join(
        f"log_partition = {partition:d} AND log_offset >= {first:d} AND log_offset < {end:d}"
        for partition, parts in ranges.items()
        for first, end in parts
    )


def _of_devices(table: str, where: str) -> str:
    """The condition on an event that its device is among those of some rows."""
    return f"anonymous_id IN (SELECT anonymous_id FROM {table} WHERE {where})"


def _spans(fresh: str) -> str:
    """A query for what new events touch, in the columns of _SPAN.

    Args:
        fresh: the condition on the rows of the fact that are new.
    """
    login = f"({fresh}) AND NOT user_id IS NULL AND NOT session_id IS NULL"
    return f"""
WITH login AS (SELECT DISTINCT anonymous_id, session_id FROM ({counted(login)}) AS event),
moved AS (
    SELECT anonymous_id, user_id, happened_at FROM ({owned(fresh)}) AS event
    UNION ALL
    SELECT event.anonymous_id, event.user_id, event.happened_at
    FROM ({owned(_of_devices(FACT, login))}) AS event
    JOIN login ON login.anonymous_id = event.anonymous_id AND login.session_id = event.session_id
)
SELECT DISTINCT
    session.session_key, session.anonymous_id, COALESCE(session.user_id, '') AS owner,
    session.started_at AS first_at, session.ended_at AS last_at
FROM {SESSIONS} AS session JOIN moved ON moved.anonymous_id = session.anonymous_id
AND session.started_at <= DATEADD(MINUTE, {TIMEOUT_MINUTES}, moved.happened_at)
AND moved.happened_at <= DATEADD(MINUTE, {TIMEOUT_MINUTES}, session.ended_at)
UNION ALL
SELECT DISTINCT
    CAST(NULL AS VARCHAR) AS session_key, anonymous_id, COALESCE(user_id, '') AS owner,
    happened_at AS first_at, happened_at AS last_at
FROM moved
"""


def _inside_spans(first_at: datetime | None) -> str:
    """A query for the events in the staged spans; the day the first begins spares older ones."""
    after = f"occurred_on >= DATE '{first_at.date()}'" if first_at else "FALSE"
    where = f"{after} AND {_of_devices('staged', 'TRUE')}"
    return f"""
SELECT event.* FROM ({owned(where)}) AS event WHERE EXISTS (
    SELECT 1 FROM staged AS span
    WHERE span.anonymous_id = event.anonymous_id AND span.owner = COALESCE(event.user_id, '')
    AND event.happened_at BETWEEN span.first_at AND span.last_at
)
"""
