"""The sensor fresh_events: loads what is new in lake/web_events into the warehouse.

The cursor says up to where runs have loaded; the runs themselves say what is under way, with the
plan in their tag. So a tick that was lost, or evaluated twice, or a cursor that was reset leads to
no position skipped. None is loaded twice either, as the warehouse's ledger knows what it has.
"""

import hashlib
import time
from collections.abc import Mapping

import dagster as dg
import msgspec

from assets.warehouse import PLAN_TAG, WEB_EVENTS
from profilehouse.errors import ProfilehouseError
from profilehouse.platform import Platform
from profilehouse.warehouse.ranges import FACT, Plan
from profilehouse.warehouse.visits import IDENTITY, SESSIONS

NAME = "fresh_events"
FRESH_JOB = "load_fresh_events"
ATTEMPT_TAG = "profilehouse/attempt"
FACT_KEY = dg.AssetKey(["warehouse", FACT])
VISIT_KEYS = tuple(dg.AssetKey(["warehouse", table]) for table in (IDENTITY, SESSIONS))

EVERY_SECONDS = 20
LOAD_EVENTS = 10_000
"""So many new positions are loaded at once, fewer when LOAD_SECONDS have passed."""
LOAD_SECONDS = 60
"""Since the last run ended."""
MOST_EVENTS = 2_000_000
"""Positions of one run, at most: bounds what is lost when it is killed."""
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 60, 1800
"""Between a failed run and the next attempt: twice as long after each, up to the longest."""
FAILURES_TOLD = 3
"""So many failed runs of a plan are worth an error in the sensor's log."""
MOST_RUN_SECONDS = 1800
"""A run that takes longer was killed, or hangs: Dagster ends it."""

_SENSOR_TAG = "dagster/sensor_name"
_RUN_TIME_TAG = "dagster/max_runtime"


class Cursor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Up to where runs have loaded: for each partition the offset behind the last."""

    topic_id: str
    loaded: dict[int, int] = {}

    def leads_to(self, plan: Plan) -> bool:
        """Whether a plan begins where this ends."""
        return plan.topic_id == self.topic_id and all(
            first == self.loaded.get(partition, 0) for partition, (first, _) in plan.ranges.items()
        )

    def behind(self, plan: Plan) -> "Cursor":
        """The cursor when that plan was loaded."""
        ends = {partition: end for partition, (_, end) in plan.ranges.items()}
        return Cursor(self.topic_id, self.loaded | ends)

    def text(self) -> str:
        """What Dagster keeps."""
        return msgspec.json.encode(self).decode()


def fresh_events() -> dg.SensorDefinition:
    """Plans a run as soon as there is enough, or it is old enough; one at a time."""
    job = dg.define_asset_job(
        FRESH_JOB,
        selection=dg.AssetSelection.assets(FACT_KEY, *VISIT_KEYS),
        description=f"Loads new positions of lake/{WEB_EVENTS} into {FACT}, brings {IDENTITY} and"
        f" {SESSIONS} up to date with it and checks them; the tag {PLAN_TAG} names the positions,"
        " without it all that are new are loaded.",
    )

    @dg.sensor(
        name=NAME,
        job=job,
        minimum_interval_seconds=EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Loads new positions of lake/{WEB_EVENTS} into warehouse/{FACT}: at once when"
        f" there are {LOAD_EVENTS:,}, else every {LOAD_SECONDS} seconds. Its cursor moves only past"
        " what was loaded; resetting it is harmless.",
    )
    def fresh(
        context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]
    ) -> dg.SensorResult | dg.SkipReason:
        held = platform.lake().positions(WEB_EVENTS)
        if held.topic_id is None:
            return dg.SkipReason(f"lake/{WEB_EVENTS} has no event yet.")
        cursor = _cursor(context.cursor) or Cursor(held.topic_id)
        _refuse_another_topic(cursor, held.topic_id)
        newest = _newest_run(context.instance)
        ended = 0.0
        if newest is not None:
            run = newest.dagster_run
            if not run.is_finished:
                return dg.SkipReason(f"Run {run.run_id[:8]} is loading, or waits for its turn.")
            ended = newest.end_time or newest.update_timestamp.timestamp()
            plan = _plan_of(run)
            if plan is not None and cursor.leads_to(plan):
                if not _has_loaded(context.instance, run):
                    return _again(context, cursor, plan, newest, ended)
                cursor = cursor.behind(plan)
        return _next(context, cursor, held.offsets, ended)

    return fresh


def _next(
    context: dg.SensorEvaluationContext, cursor: Cursor, held: Mapping[int, int], ended: float
) -> dg.SensorResult:
    """Plan what is new, if it is enough or old enough."""
    new = {p: end for p, end in held.items() if end > cursor.loaded.get(p, 0)}
    count = sum(end - cursor.loaded.get(p, 0) for p, end in new.items())
    wait = ended + LOAD_SECONDS - time.time()
    if count == 0:
        return _skipped(cursor, "All that is in the lake is loaded.")
    if count < LOAD_EVENTS and wait > 0:
        return _skipped(cursor, f"{count:,} new positions, loaded in {wait:.0f} seconds or so.")
    each = max(1, MOST_EVENTS // len(new))
    ranges = {
        p: (first, min(end, first + each))
        for p, end in sorted(new.items())
        for first in (cursor.loaded.get(p, 0),)
    }
    return _started(context, cursor, Plan(cursor.topic_id, ranges))


def _again(
    context: dg.SensorEvaluationContext,
    cursor: Cursor,
    plan: Plan,
    newest: dg.RunRecord,
    ended: float,
) -> dg.SensorResult:
    """Plan once more what a run did not load, after a pause."""
    failures = max(1, _attempts(context.instance, plan))
    pause = min(RETRY_SECONDS * 2 ** min(failures - 1, 10), LONGEST_RETRY_SECONDS)
    wait = ended + pause - time.time()
    run = newest.dagster_run
    said = f"Run {run.run_id[:8]} ended as {run.status.value} ({failures} times so far)"
    if wait > 0:
        return _skipped(cursor, f"{said}; its positions are planned again in {wait:.0f} seconds.")
    tell = context.log.error if failures >= FAILURES_TOLD else context.log.warning
    tell(f"{said}: {plan.text()} is planned again; see the run for what went wrong.")
    return _started(context, cursor, plan)


def _started(context: dg.SensorEvaluationContext, cursor: Cursor, plan: Plan) -> dg.SensorResult:
    attempt = 1 + _attempts(context.instance, plan)
    name = hashlib.sha256(plan.text().encode()).hexdigest()[:16]
    request = dg.RunRequest(
        run_key=f"{name}-{attempt}",
        tags={
            PLAN_TAG: plan.text(),
            ATTEMPT_TAG: str(attempt),
            _RUN_TIME_TAG: str(MOST_RUN_SECONDS),
        },
    )
    return dg.SensorResult(run_requests=[request], cursor=cursor.text())


def _skipped(cursor: Cursor, reason: str) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=dg.SkipReason(reason), cursor=cursor.text())


def _cursor(text: str | None) -> Cursor | None:
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=Cursor)
    except msgspec.MsgspecError as error:
        raise ProfilehouseError(
            f"the cursor of the sensor {NAME} is not understood ({error}): reset it to nothing;"
            " what is loaded already is not loaded again"
        ) from error


def _refuse_another_topic(cursor: Cursor, topic_id: str) -> None:
    if cursor.topic_id != topic_id:
        raise ProfilehouseError(
            f"lake/{WEB_EVENTS} holds events of the topic with id {topic_id}, {FACT} was loaded"
            f" from {cursor.topic_id}: the log and the lake were made anew; point PROFILEHOUSE_LAKE"
            f" to the old one, or run DROP TABLE {FACT} in the warehouse and reset the cursor of"
            f" the sensor {NAME}"
        )


def _newest_run(instance: dg.DagsterInstance) -> dg.RunRecord | None:
    """The newest run of this sensor, or of who ran one of its runs again."""
    filters = dg.RunsFilter(job_name=FRESH_JOB, tags={_SENSOR_TAG: NAME})
    return next(iter(instance.get_run_records(filters, limit=1)), None)


def _attempts(instance: dg.DagsterInstance, plan: Plan) -> int:
    """The highest number of an attempt at that plan; 0 before the first."""
    filters = dg.RunsFilter(job_name=FRESH_JOB, tags={PLAN_TAG: plan.text()})
    return max((int(r.tags.get(ATTEMPT_TAG, 0)) for r in instance.get_runs(filters)), default=0)


def _plan_of(run: dg.DagsterRun) -> Plan | None:
    text = run.tags.get(PLAN_TAG)
    return None if text is None else Plan.parse(text)


def _has_loaded(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run materialized the table: then its plan is loaded, whatever a check found."""
    found = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    return any(e.dagster_event is not None and e.dagster_event.asset_key == FACT_KEY for e in found)
