"""The live path: it runs, keeps up, refuses few records, loses no position, and agrees.

None of these checks stops what is downstream: events are loaded while somebody looks for the cause.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any, cast

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.live import (
    HEARD_WITHIN,
    LIVE_PROCESS,
    PROFILE_STORE,
    WEB_DEAD_LETTERS,
    WEB_EVENTS,
    living,
    why_none,
)
from assets.warehouse import POOL, table_sql
from checks._common import asset_checks, cannot_run, differing_profiles, reported, spec
from profilehouse.contracts import Severity, contract
from profilehouse.errors import ProfilehouseError
from profilehouse.lake import Lake
from profilehouse.log import Log, check_topic
from profilehouse.platform import Platform
from profilehouse.profiles.agreement import Agreement, compare_at_cut
from profilehouse.profiles.features import load_declaration
from profilehouse.profiles.store import Cut, Store
from profilehouse.quality.result import SAMPLE_SIZE, CheckResult, percent, sample_of
from profilehouse.stream.status import Status, read_statuses
from profilehouse.times import utc_now
from profilehouse.warehouse import Warehouse
from profilehouse.warehouse.range_ledger import Range
from profilehouse.warehouse.ranges import FACT, behind, load_ranges, loaded_ranges

LIVE_CHECK_JOB = "live_checks"
"""The job that runs these checks every ten minutes."""

RUNS = "a_live_process_runs"
PROFILES_KEEP_UP = "profiles_keep_up_with_the_log"
LAKE_KEEPS_UP = "the_lake_keeps_up_with_the_log"
FEW_REFUSED = "few_records_are_refused"
EACH_ONCE = "every_position_is_there_once"
LOADED = "no_position_is_left_out"
AGREE = "live_and_warehouse_agree"

EVENTS, DEAD_LETTERS = WEB_EVENTS.path[-1], WEB_DEAD_LETTERS.path[-1]

PROFILES_WITHIN = timedelta(seconds=60)
"""So long after the log took it a record must be in the profiles; usual are milliseconds."""
LAKE_WITHIN = timedelta(minutes=5)
"""So long after the log took it a record must be in the lake; usual are seconds."""
REFUSED_HOURS = 6
"""The share of dead letters is that of the last hours."""
REFUSED_PERCENT = 1.0
"""A larger share of dead letters is worth a warning."""
NEWEST_POSITIONS = 10_000_000
"""So many positions are looked at for holes every ten minutes; all by every other run."""
POSITIONS_AT_ONCE = 50_000_000
"""Bounds the memory for that: a byte for each."""
LAKE_WAITED_FOR = timedelta(seconds=60)
"""So long the lake may take to reach the positions of the store that are compared."""
SECONDS_FOR_A_RECORD = 10.0
"""So long the log may take to hand out a record that it holds."""

_TIME = pa.timestamp("us")


def live_checks() -> list[dg.AssetChecksDefinition]:
    """Of the live process, of the lake's web tables, of the fact and of the profile store."""
    return [
        _process(),
        _lag_of_profiles(),
        _lake(),
        _refused(),
        _positions(),
        _ledger(),
        _agreement(),
    ]


def _spec(
    key: dg.AssetKey, name: str, description: str, severity: Severity, *deps: dg.AssetKey
) -> dg.AssetCheckSpec:
    return spec(key, name, description, severity, *deps, blocking=False)


def _tried(key: dg.AssetKey, name: str, check: Callable[[], CheckResult]) -> dg.AssetCheckResult:
    """What a check found; one that cannot run fails, and says why."""
    try:
        return reported(key, check())
    except ProfilehouseError as error:
        return reported(key, cannot_run(name, error))


def not_yet(name: str, severity: Severity, description: str) -> CheckResult:
    """Nothing can be said: neither passed for a reason nor failed."""
    return CheckResult(
        name=name,
        state="not enough history",
        severity=severity,
        description=description,
        expected=description,
        observed=why_none([]),
        failing=0,
        total=0,
        remedy="Start one with `profilehouse stream`",
    )


# The process


def _process() -> dg.AssetChecksDefinition:
    runs = "A live process runs, and says so every second"

    @asset_checks(specs=[_spec(LIVE_PROCESS, RUNS, runs, "error")], name="process_of_live")
    def process_of_live(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        def check() -> CheckResult:
            statuses = read_statuses(platform.settings, platform.aws)
            followed = platform.lake().positions(EVENTS).topic_id is not None
            return a_live_process_runs(statuses, utc_now(), followed)

        yield _tried(LIVE_PROCESS, RUNS, check)

    return process_of_live


def a_live_process_runs(statuses: Sequence[Status], now: datetime, followed: bool) -> CheckResult:
    """Whether a process wrote its status just now; one that was stopped is worth a warning.

    Args:
        statuses: of the last day, newest first.
        now: UTC, naive.
        followed: whether the lake has events, so that a process must have run.
    """
    description = "a live process runs, and says so"
    if not statuses and not followed:
        return not_yet(RUNS, "error", description)
    alive = living(statuses, now)
    age = (now - statuses[0].written_at).total_seconds() if statuses else None
    stopped = bool(statuses) and statuses[0].state == "stopped"
    return CheckResult(
        name=RUNS,
        state="passed" if alive else "failed",
        severity="warning" if stopped else "error",
        description=description,
        expected=f"at least one, heard of in the last {HEARD_WITHIN.total_seconds():.0f} seconds",
        observed=f"{len(alive)} running: {', '.join(status.instance for status in alive)}"
        if alive
        else why_none(statuses).partition(": start")[0],
        failing=0 if alive else 1,
        total=max(1, len(alive)),
        remedy="Start one with `profilehouse stream`; if one runs, see that PROFILEHOUSE_STATUS is"
        " the same for it and for Dagster",
        numbers={"running": len(alive)} | ({} if age is None else {"status_age_seconds": age}),
    )


# Lag


@dataclass(frozen=True)
class Waiting:
    """Records of the log that have not arrived somewhere, and how long the oldest has waited."""

    records: int
    seconds: float


def waiting(log: Log, positions: Mapping[int, int], now: float) -> Waiting:
    """What a log holds at and behind positions.

    Args:
        log: to read.
        positions: by partition, the offset of the first record that has not arrived; without one
            none has.
        now: seconds since 1970.

    Raises:
        ProfilehouseError: if records were removed from the log before they arrived.
    """
    records, oldest = 0, now
    for partition, end in log.ends().items():
        begin = positions.get(partition)
        if end <= (begin or 0):
            continue
        with log.consumer({partition: begin}) as consumer:
            batches = consumer.read(1, SECONDS_FOR_A_RECORD)
        if batches:
            records += end - batches[0].offsets[0]
            oldest = min(oldest, batches[0].received_at[0] / 1e6)
        elif begin is not None:
            raise ProfilehouseError(
                f"the log holds offsets {begin} to {end - 1} of partition {partition} and gave none"
                f" in {SECONDS_FOR_A_RECORD:.0f} seconds; see that it can be read"
            )
    return Waiting(records, now - oldest)


def keeps_up(
    name: str, who: str, found: Waiting, within: timedelta, numbers: Mapping[str, float]
) -> CheckResult:
    """Whether the oldest record that has not arrived has waited too long."""
    late = found.seconds > within.total_seconds()
    return CheckResult(
        name=name,
        state="failed" if late else "passed",
        severity="warning",
        description=f"{who} keep up with the log",
        expected=f"no record waits longer than {within.total_seconds():.0f} seconds",
        observed=f"{found.records:,} records of the log are not in {who} yet, the oldest waits for"
        f" {found.seconds:,.0f} seconds"
        if found.records
        else f"all records of the log are in {who}",
        failing=found.records if late else 0,
        total=found.records,
        remedy="See that a live process runs; if it does and never catches up, start another on"
        " another machine (with Kafka), or take its --max-rate away",
        numbers={"lag": found.records, "lag_seconds": round(found.seconds, 3), **numbers},
    )


def _lag_of_profiles() -> dg.AssetChecksDefinition:
    up = "Records of the log are in the profiles soon"

    @asset_checks(
        specs=[_spec(LIVE_PROCESS, PROFILES_KEEP_UP, up, "warning")], name="lag_of_profiles"
    )
    def lag_of_profiles(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        def check() -> CheckResult:
            with platform.profile_store(load_declaration()) as store:
                if not store.exists():
                    return not_yet(PROFILES_KEEP_UP, "warning", up)
                with store.cut() as cut:
                    topic_id, positions = cut.topic_id, cut.positions
            if topic_id is None:
                return not_yet(PROFILES_KEEP_UP, "warning", up)
            with platform.log() as log:
                check_topic(log, topic_id, "the profile store")
                found = waiting(log, positions, time.time())
            return keeps_up(PROFILES_KEEP_UP, "the profiles", found, PROFILES_WITHIN, {})

        yield _tried(LIVE_PROCESS, PROFILES_KEEP_UP, check)

    return lag_of_profiles


def _lake() -> dg.AssetChecksDefinition:
    up = "Records of the log are in the lake soon"

    @asset_checks(specs=[_spec(WEB_EVENTS, LAKE_KEEPS_UP, up, "warning")], name="lag_of_web_events")
    def lag_of_web_events(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        def check() -> CheckResult:
            lake = platform.lake()
            held = lake.positions(EVENTS)
            if held.topic_id is None:
                return not_yet(LAKE_KEEPS_UP, "warning", up)
            with platform.log() as log:
                check_topic(log, held.topic_id, f"lake/{EVENTS}")
                found = waiting(log, held.offsets, time.time())
            newest = newest_event(lake, held.offsets)
            age = {} if newest is None else {"newest_event_seconds": _since(newest)}
            result = keeps_up(LAKE_KEEPS_UP, "the lake", found, LAKE_WITHIN, age)
            came = "none yet" if newest is None else f"{newest:%Y-%m-%d %H:%M:%S} UTC"
            return replace(result, observed=f"{result.observed}; the newest event there: {came}")

        yield _tried(WEB_EVENTS, LAKE_KEEPS_UP, check)

    return lag_of_web_events


def newest_event(lake: Lake, positions: Mapping[int, int]) -> datetime | None:
    """When the newest event of the lake was received, as far as its last positions tell."""
    last = {p: (max(0, end - 1000), end) for p, end in positions.items()}
    rows = lake.read(EVENTS, columns=["received_at"], offsets=last)
    return cast(datetime | None, pc.max(rows["received_at"]).as_py())


def _since(moment: datetime) -> float:
    return round((utc_now() - moment).total_seconds(), 3)


# Dead letters


def _refused() -> dg.AssetChecksDefinition:
    few = f"At most {REFUSED_PERCENT} % of the last {REFUSED_HOURS} hours' records are dead letters"

    @asset_checks(
        specs=[_spec(WEB_DEAD_LETTERS, FEW_REFUSED, few, "warning", WEB_EVENTS)],
        name="share_of_web_dead_letters",
    )
    def share_of_web_dead_letters(
        platform: dg.ResourceParam[Platform],
    ) -> Iterator[dg.AssetCheckResult]:
        def check() -> CheckResult:
            lake, since = platform.lake(), utc_now() - timedelta(hours=REFUSED_HOURS)
            if lake.positions(DEAD_LETTERS).topic_id is None:
                return not_yet(FEW_REFUSED, "warning", few)
            dead: Counter[str] = Counter()
            for reasons in _recent(lake, DEAD_LETTERS, since, "reason"):
                dead.update(reasons.to_pylist())
            events = sum(len(part) for part in _recent(lake, EVENTS, since, "log_partition"))
            return few_records_are_refused(dead, dead.total() + events)

        yield _tried(WEB_DEAD_LETTERS, FEW_REFUSED, check)

    return share_of_web_dead_letters


def _recent(lake: Lake, table: str, since: datetime, column: str) -> Iterator[pa.Array]:
    """A column of the rows that were received since then, batch by batch."""
    days = [day for day in lake.days(table) if day >= since.date()]
    for batch in lake.batches(table, columns=[column, "received_at"], days=days):
        yield batch[column].filter(pc.greater_equal(batch["received_at"], pa.scalar(since, _TIME)))


def few_records_are_refused(reasons: Mapping[str, int], total: int) -> CheckResult:
    """Whether the share of dead letters is usual.

    Args:
        reasons: how many records were refused for what.
        total: records, refused or not.
    """
    refused = sum(reasons.values())
    share = percent(refused, total)
    most = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    return CheckResult(
        name=FEW_REFUSED,
        state="failed" if share > REFUSED_PERCENT else "passed",
        severity="warning",
        description="few records of the log are refused",
        expected=f"at most {REFUSED_PERCENT} % of the records of the last {REFUSED_HOURS} hours",
        observed=f"{refused:,} of {total:,} records refused, {share} %",
        failing=refused,
        total=total,
        remedy="See `profilehouse dead-letters list`, correct what sends them, then replay them",
        sample=sample_of(({"reason": reason, "records": count} for reason, count in most), ()),
        numbers={"dead_letter_percent": share, "dead_letters": refused, "records": total},
    )


# Positions


@dataclass
class Coverage:
    """How often the positions of a partition are in the lake, from the first that is there.

    Attributes:
        partition: of the log.
        end: the offset behind the last that is looked at.
        first: the lowest offset with a row; None where there is none.
        missing: positions behind that without a row.
        repeated: rows beyond the first of a position.
        sample: some ranges of offsets that are missing or repeated: which of both, first, last.
    """

    partition: int
    end: int
    first: int | None = None
    missing: int = 0
    repeated: int = 0
    sample: list[tuple[str, int, int]] = field(default_factory=list)

    def add(self, start: int, counts: Any, rows: int) -> None:
        """Go on with the rows of each position from an offset on, `rows` in all."""
        there = np.flatnonzero(counts)
        if self.first is None:
            skipped = int(there[0]) if len(there) else len(counts)
            start, counts = start + skipped, counts[skipped:]
            self.first = start if len(there) else None
        self.missing += len(counts) - len(there)
        self.repeated += rows - len(there)
        for words, wrong in (("missing", counts == 0), ("more than once", counts > 1)):
            if len(self.sample) < SAMPLE_SIZE:
                self.sample += [(words, start + a, start + b) for a, b in _runs(wrong)]


def coverage(lake: Lake, newest: int | None = None) -> list[Coverage]:
    """Count the rows of each position below what both of the lake's web tables have reached.

    Args:
        lake: may be written meanwhile.
        newest: only so many positions; all where None.
    """
    ends = [lake.positions(table).offsets for table in (EVENTS, DEAD_LETTERS)]
    reached = {p: min(offsets.get(p, 0) for offsets in ends) for p in sorted({*ends[0], *ends[1]})}
    found = [Coverage(p, end) for p, end in reached.items()]
    each = max(1, POSITIONS_AT_ONCE // max(1, len(reached)))
    begins = {
        p: 0 if newest is None else max(0, e - newest // len(reached)) for p, e in reached.items()
    }
    while ranges := {
        p: (b, min(b + each, reached[p])) for p, b in begins.items() if b < reached[p]
    }:
        counts, rows = _rows_of_positions(lake, ranges)
        for partition in found:
            if partition.partition in ranges:
                start, begins[partition.partition] = ranges[partition.partition]
                partition.add(start, counts[partition.partition], rows[partition.partition])
    return found


def _rows_of_positions(
    lake: Lake, ranges: Mapping[int, Range]
) -> tuple[dict[int, Any], Counter[int]]:
    """For each partition the number of rows of each offset in its range, and of all together."""
    counts = {p: np.zeros(end - start, np.uint8) for p, (start, end) in ranges.items()}
    rows: Counter[int] = Counter()
    for table in (EVENTS, DEAD_LETTERS):
        for batch in lake.batches(table, columns=["log_partition", "log_offset"], offsets=ranges):
            partitions, offsets = (column.to_numpy() for column in batch.columns)
            for partition in np.unique(partitions).tolist():
                of_partition = offsets[partitions == partition]
                np.add.at(counts[partition], of_partition - ranges[partition][0], 1)
                rows[partition] += len(of_partition)
    return counts, rows


def _runs(wrong: Any) -> list[tuple[int, int]]:
    """The first and the last place of each unbroken run of those that are wrong."""
    places = np.flatnonzero(wrong)
    breaks = np.flatnonzero(np.diff(places) > 1)
    firsts = [0, *(breaks + 1).tolist()] if len(places) else []
    lasts = [*breaks.tolist(), len(places) - 1]
    return [(int(places[a]), int(places[b])) for a, b in zip(firsts, lasts, strict=False)]


def _positions() -> dg.AssetChecksDefinition:
    once = "Every position of the log is in the lake once, as an event or as a dead letter"

    @asset_checks(
        specs=[_spec(WEB_EVENTS, EACH_ONCE, once, "error", WEB_DEAD_LETTERS)],
        name="positions_of_web_events",
    )
    def positions_of_web_events(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        def check() -> CheckResult:
            lake = platform.lake()
            if lake.positions(EVENTS).topic_id is None:
                return not_yet(EACH_ONCE, "error", once)
            often = context.run.job_name == LIVE_CHECK_JOB
            return every_position_is_there_once(coverage(lake, NEWEST_POSITIONS if often else None))

        yield _tried(WEB_EVENTS, EACH_ONCE, check)

    return positions_of_web_events


def every_position_is_there_once(found: Collection[Coverage]) -> CheckResult:
    """Whether positions are missing or there more than once."""
    missing, repeated = sum(c.missing for c in found), sum(c.repeated for c in found)
    empty = [c for c in found if c.first is None and c.end > 0]
    missing += sum(c.end for c in empty)
    total = sum(c.end - (c.first or 0) for c in found)
    return CheckResult(
        name=EACH_ONCE,
        state="failed" if missing or repeated else "passed",
        severity="error",
        description="every position of the log is in the lake once",
        expected="each position in one of both tables, once",
        observed=f"of {total:,} positions in {len(found)} partitions, {missing:,} are missing and"
        f" {repeated:,} rows are there again",
        failing=missing + repeated,
        total=total,
        remedy="Find out who else wrote or deleted rows of the lake's tables; put missing ones back"
        " from the log while it has them: a live process on an empty lake reads it from its start",
        sample=sample_of(
            (
                {"partition": c.partition, "first": first, "last": last, "is": words}
                for c in found
                for words, first, last in c.sample
            ),
            (),
        ),
        numbers={"missing": missing, "repeated": repeated, "positions": total},
    )


# The warehouse


def _ledger() -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", FACT])
    none = f"{FACT} was loaded from ranges of positions without a gap, none beyond the lake's"

    @asset_checks(
        specs=[_spec(key, LOADED, none, "error", WEB_EVENTS)],
        name=f"positions_of_{FACT}",
        pool=POOL,
    )
    def positions_of_fact(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        def check() -> CheckResult:
            with platform.warehouse() as warehouse:
                held = platform.lake().positions(EVENTS)
                if held.topic_id is None:
                    return not_yet(LOADED, "error", none)
                loaded = loaded_ranges(warehouse, held.topic_id)
            return no_position_is_left_out(loaded, held.offsets)

        yield _tried(key, LOADED, check)

    return positions_of_fact


def no_position_is_left_out(
    loaded: Mapping[int, Sequence[Range]], offsets: Mapping[int, int]
) -> CheckResult:
    """Whether loaded ranges begin with the first position and follow each other.

    Args:
        loaded: unbroken ranges by partition, lowest first.
        offsets: up to where the lake is. What is not loaded of its end is no gap: it comes next.
    """
    gaps: list[dict[str, Any]] = [
        {"partition": partition, "first": left, "last": first - 1, "is": "not loaded"}
        for partition, ranges in sorted(loaded.items())
        for (_, left), (first, _) in pairwise([(0, 0), *ranges])
        if first > left
    ]
    beyond: list[dict[str, Any]] = [
        {"partition": p, "first": max(first, offsets.get(p, 0)), "last": end - 1, "is": "no longer"}
        for p, ranges in sorted(loaded.items())
        for first, end in ranges
        if end > offsets.get(p, 0)
    ]
    wrong = [*gaps, *beyond]
    count = sum(part["last"] - part["first"] + 1 for part in wrong)
    total = sum(end - first for ranges in loaded.values() for first, end in ranges)
    yet = sum(offsets.values()) - total
    return CheckResult(
        name=LOADED,
        state="failed" if wrong else "passed",
        severity="error",
        description=f"no position is left out of {FACT}",
        expected="in each partition one range, from 0 to where the lake is or was",
        observed=f"{total:,} positions are loaded, {len(gaps)} gaps between them, {len(beyond)}"
        " ranges beyond the lake's end",
        failing=count,
        total=total,
        remedy=f"Materialize warehouse/{FACT}, which loads all that the lake has more; for what is"
        " beyond the lake's end, see whether the lake is the right one and a live process runs",
        sample=sample_of(wrong, ()),
        numbers={"gaps": len(gaps), "positions": total, "not_loaded_yet": max(0, yet)},
    )


# Agreement


def _agreement() -> dg.AssetChecksDefinition:
    agree = "Live profiles are what the warehouse makes of the same events"
    facts = [dg.AssetKey(["warehouse", name]) for name in ("fct_purchase", "fct_interaction", FACT)]

    @asset_checks(
        specs=[_spec(PROFILE_STORE, AGREE, agree, "error", *facts)],
        name="live_profiles_agree",
        pool=POOL,
    )
    def live_profiles_agree(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        def check() -> CheckResult:
            declaration = load_declaration()
            with platform.profile_store(declaration) as store:
                if not store.exists():
                    return not_yet(AGREE, "error", agree)
                with store.cut() as cut:
                    if cut.topic_id is None:
                        return not_yet(AGREE, "error", agree)
                    lake = platform.lake()
                    wait_for_lake(lake, cut.positions)
                    today = datetime.now(UTC).date()
                    as_of = max(today, cut.meta.newest_day or today)
                    with platform.warehouse() as warehouse:
                        load_up_to(warehouse, lake, cut)
                        agreement = compare_at_cut(_at(cut), declaration, warehouse, as_of)
            return live_and_warehouse_agree(agreement, as_of)

        yield _tried(PROFILE_STORE, AGREE, check)

    return live_profiles_agree


class _At:
    """Stands for a store at a cut that is open already."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut

    def cut(self) -> AbstractContextManager[Cut]:
        return nullcontext(self._cut)


def _at(cut: Cut) -> Store:
    return cast(Store, _At(cut))


def wait_for_lake(lake: Lake, positions: Mapping[int, int]) -> None:
    """Return when the lake has all events below these positions.

    Raises:
        ProfilehouseError: if that takes too long.
    """
    deadline = time.monotonic() + LAKE_WAITED_FOR.total_seconds()
    while True:
        reached = lake.positions(EVENTS).offsets
        lacking = {p: end for p, end in positions.items() if end > reached.get(p, 0)}
        if not lacking:
            return
        if time.monotonic() > deadline:
            partition, end = min(lacking.items())
            raise ProfilehouseError(
                f"the profiles hold offsets up to {end - 1} of partition {partition}, and after"
                f" {LAKE_WAITED_FOR.total_seconds():.0f} seconds lake/{EVENTS} those below"
                f" {reached.get(partition, 0)} only; see that a live process runs"
            )
        time.sleep(0.5)


def load_up_to(warehouse: Warehouse, lake: Lake, cut: Cut) -> None:
    """Load what the warehouse lacks of the positions that are compared, as fresh_events would.

    The store moves on all the time, so the warehouse would never have all that is in it.
    """
    if cut.topic_id is None:
        return
    load_ranges(
        warehouse,
        contract(FACT),
        table_sql(FACT),
        cut.topic_id,
        behind(loaded_ranges(warehouse, cut.topic_id), cut.positions),
        lambda ranges: lake.batches(EVENTS, offsets=ranges),
        contract(EVENTS).arrow_schema,
    )


def live_and_warehouse_agree(agreement: Agreement, as_of: date) -> CheckResult:
    """What a comparison at the store's positions means."""
    left_out = agreement.moved_on + agreement.oversized
    positions = sum(agreement.positions.values())
    return CheckResult(
        name=AGREE,
        state="failed" if agreement.differing else "passed",
        severity="error",
        description="live profiles are what the warehouse makes of the same events",
        expected=f"the same profile of {agreement.users:,} users on both sides",
        observed=f"{agreement.differing:,} of {agreement.users:,} users differ as of {as_of}, after"
        f" {positions:,} positions of the log"
        + (f"; {left_out:,} users were left out" if left_out else ""),
        failing=agreement.differing,
        total=agreement.users,
        remedy="Materialize profiles/profile_store, which folds it anew from the lake; if they"
        " still differ, look at one of these users' events in the lake and in the facts",
        sample=differing_profiles(agreement),
        numbers={
            "differing_users": agreement.differing,
            "users": agreement.users,
            "moved_on": agreement.moved_on,
            "oversized": agreement.oversized,
            "positions": positions,
        },
    )
