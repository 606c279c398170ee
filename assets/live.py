"""The live path as assets: what the live process reads and writes, outside of Dagster's runs.

Belongs here: these assets, and what the statuses of live processes say of them. Does not belong
here: when they are looked at (platform_defs/observe.py) or judged (checks/live.py).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import dagster as dg

from assets._common import column_schema, declared, owners
from profilehouse.contracts import contract
from profilehouse.stream.status import Status

GROUP = "live"
EVENT_LOG = dg.AssetKey(["live", "event_log"])
LIVE_PROCESS = dg.AssetKey(["live", "live_process"])
WEB_EVENTS = dg.AssetKey(["lake", "web_events"])
WEB_DEAD_LETTERS = dg.AssetKey(["lake", "web_dead_letters"])
PROFILE_STORE = dg.AssetKey(["profiles", "profile_store"])

HEARD_WITHIN = timedelta(seconds=30)
"""A running process writes its status every second: one not heard of for so long is none."""

_EACH: tuple[tuple[str, str], ...] = (
    ("events", "int"),
    ("dead letters", "int"),
    ("rate", "float"),
    ("lag", "int"),
    ("lake lag", "int"),
    ("p50 ms", "float"),
    ("p95 ms", "float"),
    ("p99 ms", "float"),
    ("buffered", "int"),
    ("restarts", "int"),
)


def live_assets() -> list[dg.AssetSpec]:
    """The log, the process that follows it, and the lake's tables that it appends to."""
    log = contract("web")
    return [
        dg.AssetSpec(
            EVENT_LOG,
            group_name=GROUP,
            kinds={"stream", "json"},
            description="The event log: what the collector took, kept in order by user, until the"
            " live process has read it and longer.",
            owners=owners(log),
            metadata={"dagster/column_schema": column_schema(log)},
        ),
        dg.AssetSpec(
            LIVE_PROCESS,
            deps=[EVENT_LOG],
            group_name=GROUP,
            kinds={"python"},
            description="`profilehouse stream`: folds the log into profiles and appends it to the"
            " lake, each event once. It runs by itself; the sensor observe_live tells how it is.",
            owners=owners(log),
        ),
        *(
            dg.AssetSpec(
                key,
                deps=[LIVE_PROCESS],
                group_name=GROUP,
                kinds={"iceberg"},
                description=contract(key.path[-1]).description,
                owners=owners(contract(key.path[-1])),
                metadata=declared(contract(key.path[-1])),
            )
            for key in (WEB_EVENTS, WEB_DEAD_LETTERS)
        ),
    ]


def living(statuses: Sequence[Status], now: datetime) -> list[Status]:
    """Those of processes that run at the moment (UTC, naive)."""
    return [s for s in statuses if s.state == "running" and now - s.written_at <= HEARD_WITHIN]


def why_none(statuses: Sequence[Status]) -> str:
    """Why no live process runs, as far as the newest status tells, and what to do."""
    remedy = "start one with `profilehouse stream`"
    if not statuses:
        return f"no live process has run yet: {remedy}"
    last = statuses[0]
    when = f"{last.written_at:%Y-%m-%d %H:%M:%S} UTC"
    if last.state == "stopped":
        return f"no live process runs, {last.instance} was stopped at {when}: {remedy}"
    if last.state == "failed":
        return (
            f"no live process runs, {last.instance} failed at {when} ({last.error or 'unknown'}):"
            f" mend that, then {remedy}"
        )
    return f"no live process runs, {last.instance} was last heard of at {when}: {remedy}"


def observations(statuses: Sequence[Status]) -> list[dg.AssetObservation]:
    """What living processes say of each asset: their sums, and the worst of their latencies."""
    latencies = [s.latency for s in statuses if s.latency is not None]
    latency: dict[str, Any] = {
        f"latency_{name}_ms": max(getattr(one, name) for one in latencies)
        for name in ("p50", "p95", "p99", "maximum")
        if latencies
    }
    lag, lake_lag = _sum(statuses, "lag"), _sum(statuses, "lake_lag")
    events, refused = _sum(statuses, "events"), _sum(statuses, "refused")
    left_out = {name: _sum(statuses, name) for name in ("unconsented", "late", "oversized")}
    found: dict[dg.AssetKey, dict[str, Any]] = {
        EVENT_LOG: {
            "records": sum(end for s in statuses for end in s.ends.values()),
            "partitions": sum(len(s.ends) for s in statuses),
            "lag": lag,
            "topic_id": ", ".join(sorted({s.topic_id for s in statuses})),
        },
        LIVE_PROCESS: {
            "events": events,
            "dead_letters": refused,
            "rate": float(sum(s.rate for s in statuses)),
            "lag": lag,
            "lake_lag": lake_lag,
            **latency,
            "buffered": _sum(statuses, "buffered"),
            "restarts": _sum(statuses, "restarts"),
            "processes": len(statuses),
            "state": "; ".join(_state(s) for s in statuses),
            "each": _each(statuses),
        },
        WEB_EVENTS: {
            "position": sum(offset for s in statuses for offset in s.lake.values()),
            "lag": lake_lag,
            "buffered": _sum(statuses, "buffered"),
        },
        WEB_DEAD_LETTERS: {
            "position": sum(offset for s in statuses for offset in s.dead_letters.values()),
            "dead_letters": refused,
        },
        PROFILE_STORE: {
            "position": sum(offset for s in statuses for offset in s.profiles.values()),
            "events": events,
            "lag": lag,
            **latency,
            **left_out,
        },
    }
    return [dg.AssetObservation(key, metadata=metadata) for key, metadata in found.items()]


def _sum(statuses: Sequence[Status], name: str) -> int:
    return sum(getattr(status, name) for status in statuses)


def _state(status: Status) -> str:
    words = [f"{status.instance} runs"]
    if status.paused:
        words.append("and waits for the lake or for its maximum rate")
    if status.error:
        words.append(f"after an error: {status.error}")
    return " ".join(words)


def _each(statuses: Sequence[Status]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "process": s.instance,
                    "events": s.events,
                    "dead letters": s.refused,
                    "rate": s.rate,
                    "lag": s.lag,
                    "lake lag": s.lake_lag,
                    "p50 ms": s.latency.p50 if s.latency else None,
                    "p95 ms": s.latency.p95 if s.latency else None,
                    "p99 ms": s.latency.p99 if s.latency else None,
                    "buffered": s.buffered,
                    "restarts": s.restarts,
                }
            )
            for s in statuses
        ],
        dg.TableSchema(
            [dg.TableColumn("process"), *(dg.TableColumn(name, kind) for name, kind in _EACH)]
        ),
    )
