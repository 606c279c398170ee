"""Delivered files to the lake, beside dlt's own pipeline on the same files: rows a second, memory.

`python -m benchmarks.sources --files FOLDER` takes the daily files of the feed `transactions`
(`<YYYY-MM-DD>.csv`, packed or not) in a folder, `--rows N` makes one file of that many rows up.
Prints a table and writes JSON. Each measure has a process of its own; the median of runs counts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.process import load, machine_used

ROOT = Path(__file__).resolve().parent.parent
FEED = "transactions"
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
MADE_UP = date(2025, 3, 3)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--files", type=lambda name: Path(name).resolve(), help="Folder with a CSV file a day."
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="Rows of the made-up file.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, default=ROOT / "data" / "benchmark-sources.json")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(metered(MEASURES[options.measure], options.files, options.scratch)))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = options.files or made_up(Path(folder) / "files", options.rows)
        machine = machine_used(["dlt", "duckdb", "pyarrow", "pyiceberg"])
        runs = {
            name: [measured(name, files, Path(folder)) for _ in range(options.runs)]
            for name in MEASURES
        }
    figures = {
        name: {key: median(run[key] for run in of) for key in of[0]} for name, of in runs.items()
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "load after": load(), "runs": options.runs, "figures": figures}
    options.json.write_text(json.dumps(report, indent=2))
    print(f"{'':24}{'rows':>10}{'seconds':>10}{'CPU s':>8}{'rows/s':>10}{'MiB':>7}")
    for name, of in figures.items():
        print(
            f"{name:24}{of['rows']:>10,.0f}{of['seconds']:>10.2f}{of['cpu']:>8.2f}"
            f"{of['rows'] / of['seconds']:>10,.0f}{of['mib']:>7,.0f}"
        )


def made_up(folder: Path, rows: int) -> Path:
    """One file of invoices, each row another."""
    folder.mkdir()
    with (folder / f"{MADE_UP}.csv").open("w", encoding="utf-8") as file:
        file.write(HEADER)
        file.writelines(
            f"{536365 + n // 20},{n % 4000 + 20000},WHITE LANTERN No. {n % 4000},{n % 12 + 1},"
            f"{MADE_UP} {n // 3600 % 24:02}:{n // 60 % 60:02}:{n % 60:02},{n % 900 / 100:.2f},"
            f"{n % 5000 + 12000}.0,United Kingdom\n"
            for n in range(rows)
        )
    return folder


def measured(name: str, files: Path, scratch: Path) -> dict[str, float]:
    """One measure in a process of its own."""
    with tempfile.TemporaryDirectory(dir=scratch) as own:
        command = [sys.executable, "-m", "benchmarks.sources", "--measure", name]
        command += ["--files", str(files), "--scratch", own]
        quiet = {**os.environ, "RUNTIME__DLTHUB_TELEMETRY": "false"}
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=ROOT, env=quiet
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def metered(
    measure: Callable[[Path, Path], tuple[int, float, float]], files: Path, scratch: Path
) -> dict[str, float]:
    """What a measure took; `mib` is the process' highest memory."""
    rows, seconds, cpu = measure(files, scratch)
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": rows, "seconds": seconds, "cpu": cpu, "mib": mib}


def landed(files: Path, scratch: Path) -> tuple[int, float, float]:
    """The platform: checked against the contract, raw records in Iceberg, dead letters apart."""
    land, lake = _landing(files, scratch)
    before = lake()
    rows, seconds, cpu = _timed(land)
    if lake() - before != rows:
        raise RuntimeError(f"{rows:,} records were read, the lake has {lake() - before:,}")
    return rows, seconds, cpu


def landed_again(files: Path, scratch: Path) -> tuple[int, float, float]:
    """The same files once more: nothing is new."""
    land, _ = _landing(files, scratch)
    land()
    return _timed(land)


def loaded_by_dlt(files: Path, scratch: Path) -> tuple[int, float, float]:
    """dlt: its filesystem source and CSV reader into Parquet files in a folder."""
    import dlt  # noqa: PLC0415
    from dlt.sources.filesystem import filesystem, read_csv_duckdb  # noqa: PLC0415

    pipeline = dlt.pipeline(
        "benchmark",
        pipelines_dir=str(scratch / "state"),
        destination=dlt.destinations.filesystem(bucket_url=str(scratch / "bucket")),
        dataset_name="lake",
    )

    def run() -> int:
        source = filesystem(bucket_url=files.as_uri(), file_glob="*.csv*") | read_csv_duckdb(
            use_pyarrow=True,
            all_varchar=True,  # types that it infers differ between real files, which dlt refuses
        )
        pipeline.run(source.with_name(FEED), loader_file_format="parquet")
        return int(pipeline.last_trace.last_normalize_info.row_counts[FEED])

    return _timed(run)


def _landing(files: Path, scratch: Path) -> tuple[Callable[[], int], Callable[[], int]]:
    from profilehouse.contracts import contract  # noqa: PLC0415
    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415
    from profilehouse.sources.landing import land  # noqa: PLC0415

    (scratch / "sources").mkdir()
    (scratch / "sources" / FEED).symlink_to(files.absolute(), target_is_directory=True)
    settings = load_settings(sources=str(scratch / "sources"), lake=str(scratch / "lake"))
    platform, source = Platform(settings), contract(FEED)
    folder, lake = platform.sources(), platform.lake()
    days = list(folder.deliveries(source).files)

    def run() -> int:
        done = land(source, days, folder, lake, settings.zone)
        if done.problems:
            raise RuntimeError(str(done.problems))
        return done.records - done.dead_letters

    return run, lambda: sum(lake.days(FEED).values())


def _timed(work: Callable[[], Any]) -> tuple[int, float, float]:
    began, cpu = time.perf_counter(), time.process_time()
    rows = work()
    return rows, time.perf_counter() - began, time.process_time() - cpu


MEASURES: dict[str, Callable[[Path, Path], tuple[int, float, float]]] = {
    "files to the lake": landed,
    "again, nothing new": landed_again,
    "dlt, files to Parquet": loaded_by_dlt,
}

if __name__ == "__main__":
    main()
