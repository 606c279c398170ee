"""The full-year backfill, from source files to checked profiles, beside dbt on DuckDB.

`python -m benchmarks.batch` prints tables and writes JSON; docs/benchmarks.md says what the figures
mean.
"""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import msgspec
from rich.console import Console

from benchmarks import peer
from benchmarks.process import environment, installed, load, machine_used, run
from benchmarks.report import BEYOND_THE_PEER, print_figures, print_peer, print_steps
from benchmarks.results import (
    METER_FILE,
    Backfill,
    Goal,
    Run,
    beside_the_peer,
    our_figures,
    peak_step,
    step_figures,
)
from profilehouse.sources.retailer import TIMEZONE, Delivered, deliver_year

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "data" / "benchmarks"
CORES = 2
TODAY = date(2018, 1, 1)
"""The year is delivered as on this day, so every run has the dates of the original."""
GOALS = {"engine": 60.0, "events": 60.0, "peak": 2048.0}
"""The most that these figures may be, in their units."""
WAREHOUSE = Path("data", "warehouse.duckdb")
PACKAGES = ("dagster", "duckdb", "pyarrow", "pyiceberg", "great-expectations", "lmdb", "msgspec")


@click.command()
@click.option("--runs", default=3, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--json",
    "file",
    default=KEPT / "batch.json",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the figures go (data/benchmarks/batch.json).",
)
@click.option("--peer/--no-peer", "with_peer", default=True, help="Run dbt on DuckDB beside it.")
def main(runs: int, file: Path, with_peer: bool) -> None:
    """Measure the backfill of a year: a warm-up, then RUNS runs, whose median counts."""
    console = Console(highlight=False, soft_wrap=True, width=100)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    machine = machine_used(PACKAGES)
    console.print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    dbt = None
    if with_peer:
        with console.status("Making the peer's environment"):
            dbt = installed(peer.REQUIREMENTS, KEPT / "peer_venv") / "dbt"
    KEPT.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="backfill-", dir=KEPT) as name:
        scratch = Path(name)
        with console.status("Delivering the retailer's year"):
            delivered = _deliver(scratch / "sources")
        measured = []
        for n in range(runs + 1):
            title = f"Run {n} of {runs}" if n else "Warm-up"
            with console.status(title):
                measured.append(_run(scratch, delivered, dbt))
            console.print(f"{title}: {measured[-1].cost.seconds:.1f} s")
        _verify(scratch / "ours" / WAREHOUSE, delivered)
        tables = (
            peer.compare(scratch / "ours" / WAREHOUSE, scratch / "peer" / peer.DATABASE)
            if with_peer
            else []
        )
    del measured[0]
    machine["load after"] = load()

    figures, steps = our_figures(measured), step_figures(measured)
    goals = {name: Goal(most, figures[name].median <= most) for name, most in GOALS.items()}
    print_figures(console, figures, goals)
    print_steps(console, steps, peak_step(measured[-1]))
    result: dict[str, object] = {
        "machine": machine,
        "records": delivered.records,
        "figures": figures,
        "goals": goals,
        "memory_was_highest_in": peak_step(measured[-1]),
        "steps": {key: seconds for key, (seconds, _) in steps.items()},
        "runs": measured,
    }
    if with_peer:
        beside = beside_the_peer(measured)
        print_peer(console, beside, tables)
        result["beside_dbt"] = {
            name: {"profilehouse": ours, "dbt": peers} for name, (ours, peers) in beside.items()
        }
        result["tables"] = tables
        result["only_profilehouse"] = BEYOND_THE_PEER
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    console.print(f"Written to {file}")


def _deliver(folder: Path) -> Delivered:
    """In a process of its own, which keeps this one small."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(deliver_year, folder, TIMEZONE, TODAY).result()


def _run(scratch: Path, delivered: Delivered, dbt: Path | None) -> Run:
    """Both backfills once, each into an empty folder."""
    ours = _empty(scratch / "ours")
    shutil.copy(ROOT / "dagster.yaml", ours)
    days = [delivered.first_day.isoformat(), delivered.last_day.isoformat()]
    cost = run(
        [sys.executable, "-m", "benchmarks.backfill", *days],
        ours,
        environment(
            scratch,
            PYTHONPATH=str(ROOT),
            DAGSTER_HOME=str(ours),
            PROFILEHOUSE_SOURCES=str(scratch / "sources"),
            PROFILEHOUSE_TIMEZONE=delivered.timezone,
            PROFILEHOUSE_FIRST_DAY=days[0],
        ),
    )
    backfill = msgspec.json.decode((ours / METER_FILE).read_bytes(), type=Backfill)
    built = None
    if dbt:
        folder = _empty(scratch / "peer")
        built = peer.build(dbt, folder, scratch / "sources", delivered, scratch)
    return Run(cost, backfill, built)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _verify(warehouse: Path, delivered: Delivered) -> None:
    """Every delivered purchase, mailing and redemption is a fact, or the figures mean nothing."""
    import duckdb  # noqa: PLC0415

    wanted = {
        "fct_purchase": delivered.records["purchases"],
        "fct_interaction": delivered.records["mailings"] + delivered.records["redemptions"],
    }
    with duckdb.connect(str(warehouse), read_only=True) as connection:
        for table, records in wanted.items():
            [(rows,)] = connection.sql(f"SELECT count(*) FROM {table}").fetchall()
            if rows != records:
                raise RuntimeError(f"{table} has {rows:,} rows, {records:,} were delivered")


if __name__ == "__main__":
    main()
