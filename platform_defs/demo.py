"""`make demo`: a real retailer's year, from its files to checked profiles, then the Dagster UI."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from profilehouse.contracts import contracts_of
from profilehouse.errors import ProfilehouseError
from profilehouse.settings import Settings, load_settings

if TYPE_CHECKING:
    import dagster as dg

    from profilehouse.sources.retailer import Delivered

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = Path(".env")
SECONDS_TO_END = 20
WRITTEN = "# Written by make demo."
console = Console(highlight=False, soft_wrap=True)


@click.command()
@click.option("--serve/--no-serve", default=True, help="Serve the Dagster UI at the end.")
@click.option("--port", default=3000, show_default=True, help="First port to try for the UI.")
def main(serve: bool, port: int) -> None:
    """Build the platform on The Complete Journey's year and show it."""
    os.chdir(ROOT)
    started = time.monotonic()
    try:
        delivered = _deliver()
        settings = _remember(delivered)
        loaded = _load(settings, delivered)
        _summarise(settings)
        console.print(f"Done in {time.monotonic() - started:.0f} s.")
        if serve:
            _serve(port)
    except ProfilehouseError as error:
        console.print(f"[red]{error}[/red]")
        sys.exit(1)
    sys.exit(0 if loaded else 1)


def _deliver() -> Delivered:
    """The retailer's files, written once; the shift of the dates stays that of the first run."""
    from profilehouse.sources.retailer import CHANGE_RULE, TIMEZONE, deliver_year  # noqa: PLC0415

    if ENVIRONMENT.exists() and not ENVIRONMENT.read_text("utf-8").startswith(WRITTEN):
        raise ProfilehouseError(
            f"{ENVIRONMENT.resolve()} holds settings of your own, which the demo would overwrite:"
            " move the file away, or run make demo in another checkout"
        )
    with _bar() as bar:
        task = bar.add_task("Delivering the retailer's files", total=None)
        delivered = deliver_year(
            Path(load_settings().sources),
            TIMEZONE,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(
        f"The Complete Journey ({delivered.origin}): the retailer's 2017, all dates"
        f" {delivered.weeks_shifted} weeks later, so that its business days are"
        f" {delivered.first_day} to {delivered.last_day} ({delivered.timezone})."
        f" {delivered.files} files, {sum(delivered.records.values()):,} records. Nothing is"
        " delivered after that: from then on the schedule every_morning waits and says for what."
    )
    console.print(
        f"The real data has no changes of demographics; the demo adds some. {CHANGE_RULE}"
    )
    return delivered


def _remember(delivered: Delivered) -> Settings:
    """Write the demo's settings to .env, where Dagster's commands and profilehouse read them."""
    environment = {
        "DAGSTER_HOME": str(ROOT),
        "PROFILEHOUSE_TIMEZONE": delivered.timezone,
        "PROFILEHOUSE_FIRST_DAY": delivered.first_day.isoformat(),
    }
    lines = [f"{name}={value}\n" for name, value in environment.items()]
    ENVIRONMENT.write_text("".join([WRITTEN, "\n", *lines]), "utf-8")
    os.environ |= environment
    return load_settings()


def _load(settings: Settings, delivered: Delivered) -> bool:
    """Run the daily job once for the whole year, unless everything delivered is loaded.

    Returns:
        Whether everything is loaded.
    """
    import dagster as dg  # noqa: PLC0415

    from platform_defs.build import build_defs  # noqa: PLC0415
    from platform_defs.recovery import PID_TAG, free_slots_of_dead_runs  # noqa: PLC0415
    from platform_defs.schedules import DAILY_JOB  # noqa: PLC0415

    days = [
        delivered.first_day + timedelta(days=n)
        for n in range((delivered.last_day - delivered.first_day).days + 1)
    ]
    tags = {
        "dagster/asset_partition_range_start": days[0].isoformat(),
        "dagster/asset_partition_range_end": days[-1].isoformat(),
    }
    with dg.DagsterInstance.get() as instance:
        free_slots_of_dead_runs(instance)
        if not _is_new(settings, instance, tags):
            console.print(f"Nothing new: all {len(days)} days are loaded and checked.")
            return True
        job = build_defs(settings).resolve_job_def(DAILY_JOB)
        run_id = str(uuid4())
        with _bar() as bar:
            steps = len(job.graph.nodes)
            task = bar.add_task("Dagster plans the run (an entry for each day)", total=steps)

            def show(entry: dg.EventLogEntry) -> None:
                event = entry.dagster_event
                if event is None or event.step_key is None:
                    return
                if event.is_step_start:
                    bar.update(task, description=event.step_key.replace("__", "/"))
                elif event.is_step_success or event.is_step_failure or event.is_step_skipped:
                    bar.advance(task)

            instance.add_event_listener(run_id, show)
            result = job.execute_in_process(
                instance=instance,
                run_id=run_id,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                tags={**tags, PID_TAG: str(os.getpid())},
                raise_on_error=False,
            )
        if not result.success:
            failures = [
                f"{str(event.step_key).replace('__', '/')}: {_reason(event)}"
                for event in result.all_events
                if event.is_step_failure
            ]
            console.print("[red]The run failed. " + " | ".join(failures) + "[/red]")
        return bool(result.success)


def _reason(failure: dg.DagsterEvent) -> str:
    """What a step failed of: the first line of what was raised inside of it."""
    error = failure.step_failure_data.error
    if error is None:
        return "no reason given"
    return (error.cause or error).message.splitlines()[0].partition(": ")[2]


def _is_new(settings: Settings, instance: dg.DagsterInstance, tags: Mapping[str, str]) -> bool:
    """Whether the newest run with these tags was no success, or a delivery changed since."""
    import dagster as dg  # noqa: PLC0415

    from platform_defs.schedules import DAILY_JOB  # noqa: PLC0415
    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.sources.landing import unlanded_days  # noqa: PLC0415

    runs = instance.get_runs(filters=dg.RunsFilter(job_name=DAILY_JOB, tags=tags), limit=1)
    if not any(run.is_success for run in runs):
        return True
    platform = Platform(settings)
    folder, lake = platform.sources(), platform.lake()
    return any(
        unlanded_days(source, folder, lake, settings.zone) for source in contracts_of("sources")
    )


def _summarise(settings: Settings) -> None:
    """Rows of each table, then what the checks say."""
    import dagster as dg  # noqa: PLC0415

    from assets.health import STORAGE  # noqa: PLC0415
    from platform_defs.build import build_defs  # noqa: PLC0415
    from profilehouse.platform import Platform  # noqa: PLC0415

    platform = Platform(settings)
    lake = platform.lake()
    tables = Table("table", "rows", title="What is there", title_justify="left")
    tables.columns[1].justify = "right"
    landed = [c.name for c in (*contracts_of("sources"), *contracts_of("lake")) if c.name != "raw"]
    for name in landed:
        tables.add_row(f"lake.{name}", f"{sum(lake.days(name).values()):,}")
    with platform.warehouse() as warehouse:
        for name in [*(contract.name for contract in contracts_of("warehouse")), "profile"]:
            if warehouse.columns(name):
                [rows] = warehouse.query(f"SELECT COUNT(*) AS n FROM {name}").to_pylist()  # noqa: S608
                tables.add_row(f"warehouse.{name}", f"{rows['n']:,}")
    console.print(tables)

    checks = build_defs(settings).resolve_asset_graph().asset_check_keys
    keys = [key for key in checks if key.asset_key != STORAGE]  # a sensor's, of the machine
    passed, silent, troubles = 0, 0, []
    with dg.DagsterInstance.get() as instance:
        latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(sorted(keys))
    for key in sorted(keys):
        record = latest.get(key)
        evaluation = record.evaluation if record else None
        if not isinstance(evaluation, dg.AssetCheckEvaluation):
            silent += 1
        elif evaluation.passed:
            passed += 1
        else:
            troubles.append((key, evaluation))
    warned = sum(e.severity == dg.AssetCheckSeverity.WARN for _, e in troubles)
    console.print(
        f"Checks: {passed} passed, {warned} warned, {len(troubles) - warned} failed"
        + (f", {silent} did not run (the job all_checks runs them)" if silent else "")
    )
    for key, evaluation in troubles:
        colour = "yellow" if evaluation.severity == dg.AssetCheckSeverity.WARN else "red"
        console.print(
            f"  [{colour}]{evaluation.severity.value}[/{colour}]"
            f" {key.asset_key.to_user_string()} {key.name}: {evaluation.description}"
        )


def _serve(first_port: int) -> None:
    """Serve the UI, with the daemon for schedules and sensors, and the live path; until stopped."""
    for stop in (signal.SIGTERM, signal.SIGINT):  # a shell's background job ignores the latter
        signal.signal(stop, signal.default_int_handler)
    ui, page = _free_ports(first_port, 2)
    host = "127.0.0.1"
    profilehouse = [sys.executable, "-m", "profilehouse.cli"]
    commands = {
        "collector": [*profilehouse, "collect", "--demo", "--host", host, "--port", str(page)],
        "live process": [*profilehouse, "stream"],
        "Dagster UI": [sys.executable, "-m", "dagster", "dev", "-h", host, "-p", str(ui)],
    }
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        with console.status("Starting the collector, the live process and the Dagster UI"):
            for name, command in commands.items():
                started[name] = _start(name, command)
            while not (_answers(ui) and _answers(page)):
                _see_that_all_run(started)
                time.sleep(0.5)
        console.print(
            f"Dagster UI: http://{host}:{ui}/asset-groups"
            " (lineage of all assets; each asset has its checks, columns and row counts)."
            f"\nA shop's page with live profiles: http://{host}:{page}"
            " (click, log in as one of the retailer's households, see the profile change)."
            "\nA profile: .venv/bin/profilehouse profile get 1."
            " Ctrl-C stops everything; `make demo` starts it again."
        )
        while True:
            _see_that_all_run(started)
            time.sleep(1)
    except KeyboardInterrupt:
        pass
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _start(name: str, command: list[str]) -> subprocess.Popen[bytes]:
    """Start a process whose output goes to its file; Ctrl-C reaches it through this one only."""
    said = _output(name)
    said.parent.mkdir(parents=True, exist_ok=True)
    with said.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)  # noqa: S603


def _output(name: str) -> Path:
    return Path("data/demo") / f"{name.lower().replace(' ', '-')}.log"


def _see_that_all_run(started: Mapping[str, subprocess.Popen[bytes]]) -> None:
    for name, process in started.items():
        if process.poll() is not None:
            last = _output(name).read_text("utf-8", errors="replace").strip().splitlines()[-1:]
            raise ProfilehouseError(f"the {name} ended: {''.join(last)} (see {_output(name)})")


def _free_ports(first: int, count: int) -> list[int]:
    free = []
    for port in range(first, first + 100):
        if not _answers(port):
            free.append(port)
        if len(free) == count:
            return free
    raise ProfilehouseError(f"no {count} free ports from {first} on: say --port")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _bar() -> Iterator[Progress]:
    with Progress(
        TextColumn("{task.description:45}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        yield progress


if __name__ == "__main__":
    main()
