"""The live path measured, beside Quix Streams, Bytewax and Spark Structured Streaming.

`python -m benchmarks.live` prints tables and writes JSON; docs/benchmarks.md says what the figures
mean.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import msgspec
import pyarrow as pa
from rich.console import Console

from benchmarks.live import engines, report
from benchmarks.live.load import USERS, events
from benchmarks.live.peers import work
from benchmarks.process import installed, load, machine_used
from benchmarks.results import Figure
from profilehouse.events.web import decode
from profilehouse.log import Batch
from profilehouse.profiles import fold
from services.kafka import KafkaBroker

KEPT = engines.ROOT / "data" / "benchmarks"
PARTS = ("throughput", "latency", "memory", "profile")
PACKAGES = ("confluent-kafka", "lmdb", "msgspec", "numpy", "pyarrow", "pyiceberg")
CORES = 2
MEMORY_SAMPLES = 10
PROFILE_SECONDS = 15


@click.command()
@click.option("--runs", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--events", "number", default=1_000_000, show_default=True, help="Of a backlog.")
@click.option("--users", default=USERS, show_default=True, type=click.IntRange(min=1))
@click.option("--rate", default=10_000, show_default=True, help="Events a second, for latencies.")
@click.option("--seconds", default=60, show_default=True, help="Of a run at that rate.")
@click.option("--memory-events", default=10_000_000, show_default=True)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS)
@click.option("--peer/--no-peer", "with_peers", default=True, help="Run the peers beside it.")
@click.option(
    "--json",
    "file",
    default=KEPT / "live.json",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the figures go (data/benchmarks/live.json).",
)
def main(
    runs: int,
    number: int,
    users: int,
    rate: int,
    seconds: int,
    memory_events: int,
    parts: tuple[str, ...],
    with_peers: bool,
    file: Path,
) -> None:
    """Measure the live path; the median of RUNS runs counts."""
    console = Console(highlight=False, soft_wrap=True, width=120)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    check_that_peers_do_the_same()
    machine = machine_used(PACKAGES)
    console.print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    KEPT.mkdir(parents=True, exist_ok=True)
    commands = None
    if with_peers or "profile" in parts:
        with console.status("Making the peers' environment"):
            commands = installed(engines.REQUIREMENTS, KEPT / "live_venv")
    result: dict[str, object] = {"machine": machine, "events": number, "users": users}
    figures: dict[str, Figure] = {}
    with TemporaryDirectory(prefix="live-", dir=KEPT) as name:
        scratch = Path(name)
        with KafkaBroker(scratch / "kafka") as broker:
            if "throughput" in parts:
                peers = commands if with_peers else None
                drained = _throughput(console, broker, scratch, runs, number, users, peers)
                result["drained"] = drained
                for engine, measured in drained.items():
                    key = "throughput" if engine == "users" else f"throughput_{engine}"
                    title = _TITLES[engine]
                    rates = [each.rate for each in measured]
                    figures[key] = report.figure(title, "/s", rates)
                    work_done = [each.per_cpu_second for each in measured if each.per_cpu_second]
                    if work_done:
                        figures[f"{key}_cpu"] = report.figure(
                            "... for each second of processor time", "", work_done
                        )
            if "latency" in parts:
                figures |= _latency(console, broker, scratch, runs, rate, seconds, users, result)
            if "memory" in parts:
                run = _new_run(scratch, broker, "memory")
                with console.status("Memory"):
                    measured_memory = engines.memory(run, memory_events, users, MEMORY_SAMPLES)
                report.print_memory(console, measured_memory)
                result["memory"] = measured_memory
            if "profile" in parts and commands:
                engines.fill(broker, "profile", scratch, str(2 * number), "--users", str(users))
                run = engines.Run(scratch / "profile", broker, "profile")
                with console.status("Profile"):
                    shares = engines.profile(run, PROFILE_SECONDS, commands / "py-spy")
                report.print_profile(console, shares)
                result["profile"] = shares[:100]
                (KEPT / "live_stacks.txt").write_bytes((run.folder / "stacks.txt").read_bytes())
    machine["load after"] = load()
    aims = report.aims(figures)
    report.print_figures(console, figures, aims)
    result |= {"figures": figures, "aims": aims}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    console.print(f"Written to {file}")


_TITLES = {
    "users": "Events from Kafka to durable profiles",
    "visits": "The same with visitors and logins",
    "quix": "Quix Streams, the first line's work",
    "bytewax": "Bytewax, the first line's work",
    "spark": "Spark, the first line's work",
}


def _throughput(
    console: Console,
    broker: KafkaBroker,
    scratch: Path,
    runs: int,
    number: int,
    users: int,
    commands: Path | None,
) -> dict[str, list[engines.Drained]]:
    """Each engine in turn, over the same topic; by the name of its figure."""
    with console.status("Appending the backlog"):
        for topic, *extra in (["users"], ["visits", "--visits"]):
            engines.fill(broker, topic, scratch, str(number), "--users", str(users), *extra)
    peers = engines.PEERS if commands else ()
    drained: dict[str, list[engines.Drained]] = {}
    for n in range(runs):
        for name in ("users", "visits", *peers):
            with console.status(f"{name}, run {n + 1} of {runs}"):
                folder = scratch / f"{name}-{n}"
                if name in engines.PEERS and commands:
                    one = engines.drain_with(name, commands, folder, broker, "users", number)
                else:
                    one = engines.drain(engines.Run(folder, broker, name))
            drained.setdefault(name, []).append(one)
            said = f"{name}: {one.rate:,.0f} events/s, {one.with_start:,.0f} with its start"
            if one.per_cpu_second:
                said += f", {one.per_cpu_second:,.0f} for each second of processor time"
            console.print(said)
    return drained


def _latency(
    console: Console,
    broker: KafkaBroker,
    scratch: Path,
    runs: int,
    rate: int,
    seconds: int,
    users: int,
    result: dict[str, object],
) -> dict[str, Figure]:
    measured = []
    for n in range(runs):
        run = _new_run(scratch, broker, f"latency-{n}")
        with console.status(f"Latency, run {n + 1} of {runs}"):
            measured.append(engines.latency(run, rate, seconds, users))
        seen = measured[-1].readable
        console.print(f"latency: p50 {seen.p50:.1f} ms, p99 {seen.p99:.1f} ms")
    result["latency"] = measured
    titles = {
        "readable": f"Producer to readable, {rate:,}/s",
        "reads": "A profile read from LMDB",
        "api": "A profile read over HTTP",
    }
    return {
        key: each
        for name, title in titles.items()
        for key, each in report.percentile_figures(
            name, title, [getattr(run, name) for run in measured]
        ).items()
    }


def _new_run(scratch: Path, broker: KafkaBroker, name: str) -> engines.Run:
    broker.create_topic(name)
    return engines.Run(scratch / name, broker, name)


def check_that_peers_do_the_same(number: int = 5_000) -> None:
    """See that the peers' fold makes the platform's rows.

    Raises:
        RuntimeError: if it does not.
    """
    values = [value for _, value in events(number, users=number // 10)]
    ours: dict[str, fold.Row] = {}
    batch = Batch(0, range(number), [0] * number, values)
    decoded: pa.Table = decode(batch, "topic").events
    fold.absorb(ours, decoded.select(fold.EVENT_SCHEMA.names), work.declaration)
    theirs: dict[str, fold.Row] = {}
    for value in values:
        event: Any = work.decode(value)
        theirs[event.user_id] = work.fold(theirs.get(event.user_id), event)
    if {u: fold.encode(row) for u, row in ours.items()} != {
        u: fold.encode(row) for u, row in theirs.items()
    }:
        raise RuntimeError("the peers' work is not ours: mend benchmarks/live/peers/work.py")


if __name__ == "__main__":
    main()
