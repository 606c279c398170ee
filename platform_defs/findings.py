"""What Dagster knows of troubles: failing checks and runs, stale assets, failing sensors.

Belongs here: reading Dagster's storage from where it was read last. Does not belong here: who is
told (profilehouse/alerts), and when (alerts.py).

Every reader takes the cursor that it gave last, as text, and gives findings in the order in which
things happened and its next cursor. Reading again from an old cursor finds the same again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import msgspec

from assets.live import LIVE_PROCESS
from checks.live import RUNS, a_live_process_runs
from profilehouse.alerts.incidents import Finding, Incident, Problem
from profilehouse.contracts import Severity
from profilehouse.stream.status import Status

if TYPE_CHECKING:
    from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecord

PAGE = 100
"""Check evaluations that are read at once."""
LATE = timedelta(seconds=60)
"""A row may be seen so much later than one with a higher number, or with a later time."""
RUNS_REMEMBERED = timedelta(days=1)
"""So long a finished run is known as read; Dagster may touch its row again."""
LONGEST_REASON = 400
"""Characters of what an error says."""

_BLOCKED = "DagsterAssetCheckFailedError"
_SEVERITIES: Mapping[dg.AssetCheckSeverity, Severity] = {
    dg.AssetCheckSeverity.ERROR: "error",
    dg.AssetCheckSeverity.WARN: "warning",
}
_STEP_ENDS = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.STEP_SUCCESS}

Read = tuple[list[Finding], str]
"""Findings, oldest first, and the next cursor."""


# Checks


class Seen(msgspec.Struct, frozen=True):
    """The evaluations of a check that were read: all up to `floor`, and some above it."""

    floor: int
    above: tuple[int, ...] = ()


def checks(
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
    cursor: str | None,
    now: float,
) -> Read:
    """Evaluations of all checks, of runs and runless alike.

    The first time: the newest of each check, so that what fails already is told. An evaluation has
    its row from when its run is planned, and gets its result later: so rows are read until they
    have one, or their run has ended.
    """
    storage = instance.event_log_storage
    keys = sorted(repository.asset_graph.asset_check_keys)
    latest = storage.get_latest_asset_check_execution_by_key(keys)
    known = msgspec.json.decode(cursor, type=dict[str, Seen]) if cursor else {}
    seen = dict(known)
    found: list[AssetCheckExecutionRecord] = []
    for key, newest in latest.items():
        name = _name(key)
        before = known.get(name)
        if before is None and cursor is None:
            before = Seen(newest.id - 1)  # not the whole history, when alerts begin
        before = before or Seen(0)
        if newest.id == before.floor:
            continue
        rows = list(_rows_above(instance, key, before.floor))
        open_runs = _unfinished(instance, [row for row in rows if _planned(row)])
        waiting = [row.id for row in rows if _planned(row) and row.run_id in open_runs]
        young = [row.id for row in rows if now - row.create_timestamp < LATE.total_seconds()]
        floor = min([*waiting, *young, newest.id + 1]) - 1
        read = {row.id for row in rows if row.id not in waiting}
        found += [row for row in rows if not _planned(row) and row.id not in before.above]
        seen[name] = Seen(floor, tuple(sorted(n for n in read if n > floor)))
    found.sort(key=_evaluated_at)
    of_runs = _runs(instance, {row.run_id for row in found})
    findings = [_of_check(row, repository, of_runs.get(row.run_id)) for row in found]
    return findings, msgspec.json.encode(seen).decode()


def _name(key: dg.AssetCheckKey) -> str:
    return f"{key.asset_key.to_user_string()}:{key.name}"


def _rows_above(
    instance: dg.DagsterInstance, key: dg.AssetCheckKey, floor: int
) -> Iterator[AssetCheckExecutionRecord]:
    """The evaluations of a check with a higher number, newest first, page by page."""
    last: int | None = None
    while True:
        page = instance.event_log_storage.get_asset_check_execution_history(key, PAGE, last)
        for row in page:
            if row.id <= floor:
                return
            yield row
        if len(page) < PAGE:
            return
        last = page[-1].id


def _planned(row: AssetCheckExecutionRecord) -> bool:
    return not isinstance(row.evaluation, dg.AssetCheckEvaluation)


def _unfinished(
    instance: dg.DagsterInstance, rows: Sequence[AssetCheckExecutionRecord]
) -> Collection[str]:
    of_runs = _runs(instance, {row.run_id for row in rows})
    return {name for name, run in of_runs.items() if not run.is_finished}


def _evaluated_at(row: AssetCheckExecutionRecord) -> float:
    return row.event.timestamp if row.event else row.create_timestamp


def _of_check(
    row: AssetCheckExecutionRecord, repository: dg.RepositoryDefinition, run: dg.DagsterRun | None
) -> Finding:
    evaluation = row.evaluation
    if not isinstance(evaluation, dg.AssetCheckEvaluation):
        raise TypeError("only evaluations with a result are findings")
    asset = row.key.asset_key
    fingerprint = f"check:{_name(row.key)}"
    at = _evaluated_at(row)
    if evaluation.passed:
        return Finding(fingerprint, at, None)
    said = {name: _shown(value) for name, value in evaluation.metadata.items()}
    description = evaluation.description or ""
    problem = Problem(
        kind="check",
        severity=_SEVERITIES[evaluation.severity],
        title=f"{asset.to_user_string()}: {row.key.name} fails",
        asset=asset.to_user_string(),
        check=row.key.name,
        partition=row.partition or (_partition(run.tags) if run else ""),
        expected=said.get("expected") or f"the check {row.key.name} passes",
        observed=said.get("observed") or description or "it failed and did not say why",
        sample=_sample(evaluation.metadata.get("sample")),
        owners=_owners(repository, asset),
        path=f"{_page(asset)}?view=checks&checkDetail={row.key.name}",
        run_id=run.run_id if run else "",
        next_step=said.get("what to do") or "See the check's page, mend it and run it again",
    )
    return Finding(fingerprint, at, problem)


def _shown(value: dg.MetadataValue[Any]) -> str:
    return str(value.value) if isinstance(value.value, str | int | float) else ""


def _sample(value: object) -> tuple[dict[str, str], ...]:
    if not isinstance(value, dg.TableMetadataValue):
        return ()
    rows = (dict(record.data) for record in value.records)
    return tuple({name: str(cell) for name, cell in row.items()} for row in rows)


# Runs


class Finished(msgspec.Struct, frozen=True):
    """The finished runs that were read: those that changed until `until`, and which lately."""

    until: float
    lately: dict[str, float] = {}


def runs(
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
    cursor: str | None,
    known: Mapping[str, Incident],
    now: float,
) -> Read:
    """Failed steps of runs by asset and partition, and what succeeded of what had failed.

    A run that Dagster will run again by itself has not failed yet. A step that a failing check
    stopped is left out, as the check is a finding of its own.
    """
    before = msgspec.json.decode(cursor, type=Finished) if cursor else Finished(now)
    since = datetime.fromtimestamp(before.until, UTC) - LATE
    statuses = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS]
    records = instance.get_run_records(
        dg.RunsFilter(statuses=statuses, updated_after=since),
        order_by="update_timestamp",
        ascending=True,
    )
    steps = _assets_of_steps(repository)
    failing = {name for name, incident in known.items() if incident.problem.kind == "run"}
    findings: list[Finding] = []
    lately = dict(before.lately)
    long_ago = since.timestamp() - RUNS_REMEMBERED.total_seconds()
    for record in records:
        run = record.dagster_run
        at = record.end_time or record.update_timestamp.timestamp()
        if run.run_id in lately or at < (long_ago if cursor else now):
            continue
        lately[run.run_id] = at
        failed = run.status == dg.DagsterRunStatus.FAILURE
        if failed and run.tags.get("dagster/will_retry") == "true":
            continue
        if not failed and not failing:
            continue
        of_run = list(_of_run(instance, repository, run, steps, at, failing))
        failing |= {finding.fingerprint for finding in of_run if finding.problem}
        findings += of_run
    until = max([before.until, *(r.update_timestamp.timestamp() for r in records)])
    kept = {run: at for run, at in lately.items() if at > until - RUNS_REMEMBERED.total_seconds()}
    return findings, msgspec.json.encode(Finished(until, kept)).decode()


def _assets_of_steps(repository: dg.RepositoryDefinition) -> dict[str, Sequence[dg.AssetKey]]:
    """The assets that each step makes; none where it runs checks."""
    return {
        definition.node_def.name: sorted(definition.keys)
        for definition in repository.assets_defs_by_key.values()
        if definition.is_executable
    }


def _of_run(
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
    run: dg.DagsterRun,
    steps: Mapping[str, Sequence[dg.AssetKey]],
    at: float,
    failing: Collection[str],
) -> Iterator[Finding]:
    succeeded, failed = [], 0
    for entry in instance.all_logs(run.run_id, of_type=_STEP_ENDS):
        event = entry.dagster_event
        if event is None or event.step_key is None:
            continue
        if event.is_step_success:
            succeeded.append(event.step_key)
            continue
        failed += 1
        error = event.step_failure_data.error
        if error is not None and error.cls_name == _BLOCKED:
            continue
        yield _failed_step(repository, run, event.step_key, steps, _reason(error), at)
    if run.status == dg.DagsterRunStatus.FAILURE and failed == 0:
        yield _failed_run(instance, run, at)
    if run.status == dg.DagsterRunStatus.SUCCESS:
        succeeded.append(_whole(run))
    names = {name for step in succeeded for name in _things(step, steps)}
    first, last = _range(run.tags)
    for fingerprint in sorted(failing):
        thing, _, partition = fingerprint.removeprefix("run:").rpartition(":")
        begin, _, end = partition.partition("..")
        covered = not partition or (first <= begin and (end or begin) <= last)
        if thing in names and covered:
            yield Finding(fingerprint, at, None)


def _failed_step(
    repository: dg.RepositoryDefinition,
    run: dg.DagsterRun,
    step: str,
    steps: Mapping[str, Sequence[dg.AssetKey]],
    reason: str,
    at: float,
) -> Finding:
    keys = steps.get(step, ())
    thing = _things(step, steps)[0]
    partitioned = any(repository.asset_graph.get(key).is_partitioned for key in keys)
    partition = _partition(run.tags) if partitioned or not keys else ""
    problem = Problem(
        kind="run",
        severity="error",
        title=f"{thing} was not made" if keys else f"{run.job_name}: the step {step} failed",
        asset=thing if keys else "",
        partition=partition,
        expected="the step succeeds",
        observed=reason,
        owners=_owners(repository, keys[0]) if keys else (),
        path=_page(keys[0]) if keys else "",
        run_id=run.run_id,
        next_step="See the run for what went wrong, mend that, then re-execute it from failure",
    )
    return Finding(f"run:{thing}:{partition}", at, problem)


def _failed_run(instance: dg.DagsterInstance, run: dg.DagsterRun, at: float) -> Finding:
    """A run that failed outside of its steps: it could not start, or its process died."""
    entries = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    said = [e.dagster_event.message for e in entries if e.dagster_event and e.dagster_event.message]
    problem = Problem(
        kind="run",
        severity="error",
        title=f"a run of {run.job_name} ended without a result",
        partition=_partition(run.tags),
        expected="the run ends by itself",
        observed=_line(said[-1]) if said else "its process died, or could not be started",
        run_id=run.run_id,
        next_step="See the run and the log of the Dagster daemon, then re-execute it",
    )
    return Finding(f"run:{_whole(run)}:{_partition(run.tags)}", at, problem)


def _whole(run: dg.DagsterRun) -> str:
    return f"job {run.job_name}"


def _things(step: str, steps: Mapping[str, Sequence[dg.AssetKey]]) -> list[str]:
    """What fails with a step: its assets, or itself where it makes none."""
    return [key.to_user_string() for key in steps.get(step, ())] or [step]


def _reason(error: Any) -> str:
    """The first line of what was raised inside of a step."""
    if error is None:
        return "no reason given"
    text = str((error.cause or error).message)
    return _line(text.partition(": ")[2] or text)


def _line(text: str) -> str:
    first = " ".join(text.strip().splitlines()[:1])
    return first if len(first) <= LONGEST_REASON else f"{first[: LONGEST_REASON - 1]}…"


# Sensors and schedules


def sensors(instance: dg.DagsterInstance, cursor: str | None, now: float) -> Read:
    """Ticks of sensors and schedules that ended; the first time those from now on."""
    before = msgspec.json.decode(cursor, type=dict[str, float]) if cursor else {}
    read = dict(before)
    findings: list[Finding] = []
    for state in instance.all_instigator_state():
        if not state.is_running:
            continue
        since = before.get(state.selector_id, now if cursor is None else 0.0)
        read[state.selector_id] = since
        ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, after=since)
        for tick in sorted(ticks, key=lambda tick: tick.timestamp):
            if tick.timestamp <= since:
                continue
            if not tick.is_completed:
                break  # what comes after it is read with it
            read[state.selector_id] = tick.timestamp
            findings.append(_of_tick(state.instigator_name, tick))
    findings.sort(key=lambda finding: finding.at)
    return findings, msgspec.json.encode(read).decode()


def _of_tick(name: str, tick: Any) -> Finding:
    fingerprint = f"sensor:{name}"
    at = tick.end_timestamp or tick.timestamp
    if not tick.is_failure:
        return Finding(fingerprint, at, None)
    problem = Problem(
        kind="sensor",
        severity="error",
        title=f"the sensor or schedule {name} fails",
        expected="its ticks succeed, or are skipped",
        observed=_reason(tick.error),
        path="/automation",
        next_step="See its last ticks, mend what the error says; its next tick goes on by itself",
    )
    return Finding(fingerprint, at, problem)


# What is, rather than what happened


def stale(
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
    known: Mapping[str, Incident],
    now: float,
) -> list[Finding]:
    """Assets that are older than their freshness policy allows, and those that no longer are."""
    graph = repository.asset_graph
    keys = [k for k in sorted(graph.get_all_asset_keys()) if graph.get(k).freshness_policy]
    found: list[tuple[str, Problem | None]] = []
    states = instance.get_freshness_state_records(keys) if keys else {}
    for key, record in states.items():
        name = key.to_user_string()
        severity = _FRESHNESS.get(record.freshness_state.value)
        problem = severity and Problem(
            kind="stale",
            severity=severity,
            title=f"{name} is stale",
            asset=name,
            expected=_policy(graph.get(key).freshness_policy),
            observed=f"stale since {record.updated_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
            owners=_owners(repository, key),
            path=_page(key),
            next_step="See its last runs, and those of what is upstream; then materialize it",
        )
        found.append((f"stale:{name}", problem or None))
    return _changes(found, known, now)


_FRESHNESS: Mapping[str, Severity] = {"WARN": "warning", "FAIL": "error"}


def _policy(policy: object) -> str:
    if hasattr(policy, "deadline_cron") and hasattr(policy, "timezone"):
        return f"made anew by each deadline ({policy.deadline_cron}, {policy.timezone})"
    window = getattr(policy, "fail_window", None)
    return f"made anew every {window.to_timedelta()}" if window else "made anew in time"


def live(
    statuses: Sequence[Status],
    repository: dg.RepositoryDefinition,
    known: Mapping[str, Incident],
    now: float,
) -> list[Finding]:
    """Whether a live process says something; the same incident as that of the check of it."""
    if not statuses:
        return []
    moment = datetime.fromtimestamp(now, UTC).replace(tzinfo=None)
    result = a_live_process_runs(statuses, moment, followed=True)
    name = LIVE_PROCESS.to_user_string()
    problem = Problem(
        kind="live",
        severity=result.severity,
        title="no live process runs",
        asset=name,
        check=RUNS,
        expected=result.expected,
        observed=result.observed,
        owners=_owners(repository, LIVE_PROCESS),
        path=f"{_page(LIVE_PROCESS)}?view=checks&checkDetail={RUNS}",
        next_step=result.remedy,
    )
    return _changes([(f"check:{name}:{RUNS}", None if result.passed else problem)], known, now)


def _changes(
    found: Sequence[tuple[str, Problem | None]], known: Mapping[str, Incident], now: float
) -> list[Finding]:
    """What is not told yet, or worse than told, or well again: a state is no further failure."""
    findings = []
    for fingerprint, problem in found:
        incident = known.get(fingerprint)
        if problem is None:
            wanted = incident is not None
        else:
            wanted = (
                incident is None
                or not incident.told
                or (problem.severity == "error" and incident.severity == "warning")
            )
        if wanted:
            findings.append(Finding(fingerprint, now, problem))
    return findings


# What readers share


def _owners(repository: dg.RepositoryDefinition, key: dg.AssetKey) -> tuple[str, ...]:
    graph = repository.asset_graph
    return tuple(o.removeprefix("team:") for o in graph.get(key).owners) if graph.has(key) else ()


def _page(key: dg.AssetKey) -> str:
    return f"/assets/{'/'.join(key.path)}"


def _runs(instance: dg.DagsterInstance, run_ids: Collection[str]) -> dict[str, dg.DagsterRun]:
    """The runs of these ids; a runless event's id is that of none."""
    found = instance.get_runs(dg.RunsFilter(run_ids=sorted(run_ids))) if run_ids else ()
    return {run.run_id: run for run in found}


def _range(tags: Mapping[str, str]) -> tuple[str, str]:
    first = tags.get("dagster/asset_partition_range_start") or tags.get("dagster/partition") or ""
    return first, tags.get("dagster/asset_partition_range_end") or first


def _partition(tags: Mapping[str, str]) -> str:
    first, last = _range(tags)
    return first if first == last else f"{first}..{last}"
