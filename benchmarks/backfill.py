"""One backfill in this process, metered: `python -m benchmarks.backfill FIRST_DAY LAST_DAY`.

Runs in an empty working directory that is also DAGSTER_HOME, with the platform's settings in the
environment, and writes what it measured to meter.json there. benchmarks/batch.py starts it anew for
every run and puts the numbers together.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from uuid import uuid4

import dagster as dg
import msgspec

from benchmarks.results import METER_FILE, Backfill, Step
from platform_defs.build import build_defs
from platform_defs.schedules import DAILY_JOB
from profilehouse.settings import load_settings

BEFORE_STEPS = "planning"
"""The time before the first step and after the last one."""


class Meter:
    """Times the event log of an instance, and each step by the events that pass through it."""

    def __init__(self, instance: dg.DagsterInstance, run_id: str, groups: dict[str, str]) -> None:
        self.groups = groups
        self.steps: list[Step] = []
        self.events = 0
        self.warnings = 0
        self.event_seconds: dict[str, float] = defaultdict(float)
        self._step, self._began = BEFORE_STEPS, time.perf_counter()
        self._storage = instance.event_log_storage
        self._store = self._storage.store_event
        # The batch call of SQLite's storage stores one event after the other through this one.
        self._storage.store_event = self._timed  # type: ignore[method-assign]
        instance.add_event_listener(run_id, self._seen)

    def _timed(self, event: dg.EventLogEntry) -> None:
        began = time.perf_counter()
        self._store(event)
        self.event_seconds[self._step] += time.perf_counter() - began
        self.events += 1

    def _seen(self, entry: dg.EventLogEntry) -> None:
        event = entry.dagster_event
        if event is None or event.step_key is None:
            return
        if event.is_step_start:
            self._step, self._began = event.step_key, time.perf_counter()
        elif event.is_step_success or event.is_step_failure:
            self.steps.append(
                Step(
                    key=self._step,
                    group=self.groups.get(self._step, "checks"),
                    seconds=time.perf_counter() - self._began,
                    event_seconds=self.event_seconds[self._step],
                    peak_bytes=peak_bytes(),
                )
            )
            self._step = BEFORE_STEPS
        elif event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            self.warnings += not event.asset_check_evaluation_data.passed


def peak_bytes() -> int:
    """The highest resident memory of this process so far (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def backfill(first_day: date, last_day: date) -> Backfill:
    """Run the daily job once for all days, as the demo does.

    Raises:
        RuntimeError: where a step failed.
    """
    defs = build_defs(load_settings())
    graph = defs.resolve_asset_graph()
    groups = {
        "__".join(key.path): graph.get(key).group_name for key in graph.materializable_asset_keys
    }
    run_id = str(uuid4())
    with dg.DagsterInstance.get() as instance:
        meter = Meter(instance, run_id, groups)
        result = defs.resolve_job_def(DAILY_JOB).execute_in_process(
            instance=instance,
            run_id=run_id,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags={
                "dagster/asset_partition_range_start": first_day.isoformat(),
                "dagster/asset_partition_range_end": last_day.isoformat(),
            },
            raise_on_error=False,
        )
    if not result.success:
        failed = [event for event in result.all_events if event.is_step_failure]
        raise RuntimeError(
            "\n".join(
                f"{event.step_key}: {event.step_failure_data.error_display_string}"
                for event in failed
            )
        )
    return Backfill(
        steps=meter.steps,
        events=meter.events,
        event_seconds=sum(meter.event_seconds.values()),
        warnings=meter.warnings,
    )


if __name__ == "__main__":
    measured = backfill(*map(date.fromisoformat, sys.argv[1:]))
    Path(METER_FILE).write_bytes(msgspec.json.encode(measured))
