"""What Dagster forgets, and what it must not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from platform_defs.retention import FRESH_JOB, LIVE_CHECK_JOB, forget
from platform_defs.schedules import DAILY_JOB

TABLE = dg.AssetKey(["warehouse", "fct_web_event"])


def test_old_runs_of_frequent_jobs_are_forgotten_but_not_the_last_that_made_an_asset(
    tmp_path: Path,
) -> None:
    @dg.op
    def nothing() -> None: ...

    @dg.op
    def load(context) -> None:  # type: ignore[no-untyped-def]
        context.log_event(dg.AssetMaterialization(TABLE))

    def run(job: str, op: dg.OpDefinition) -> str:
        definition = dg.GraphDefinition(name=job, node_defs=[op]).to_job(
            config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        )
        return definition.execute_in_process(instance=instance).run_id

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        checked = [run(LIVE_CHECK_JOB, nothing) for _ in range(2)]
        loaded = [run(FRESH_JOB, load) for _ in range(3)]
        daily = run(DAILY_JOB, nothing)
        now = datetime.now(UTC)

        assert forget(instance, now - timedelta(days=1)) == 0
        assert forget(instance, now + timedelta(seconds=1)) == 4
        left = {r.run_id for r in instance.get_runs()}
        assert left == {loaded[-1], daily}
        assert not instance.all_logs(checked[0])
        latest = instance.get_latest_materialization_event(TABLE)
        assert latest is not None
        assert latest.run_id == loaded[-1]
