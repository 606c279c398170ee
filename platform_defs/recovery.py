"""What a killed process leaves in Dagster: a run that never ends and its slot of a pool.

Run monitoring (dagster.yaml) does the same for runs of the daemon, within its longest run time.
"""

from __future__ import annotations

import os

import dagster as dg

PID_TAG = "profilehouse/pid"
"""Tag of a run that is executed in the process of that number."""


def free_slots_of_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """End the runs whose process is gone and free their slots; the ids of these runs."""
    started = instance.get_runs(filters=dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    dead = [run for run in started if PID_TAG in run.tags and not _alive(int(run.tags[PID_TAG]))]
    for run in dead:
        instance.report_run_failed(run, "Its process was killed.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in dead]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
