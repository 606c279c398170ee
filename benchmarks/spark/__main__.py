"""The live path on Spark measured, beside the job that textbooks write.

`python -m benchmarks.spark` prints a table and writes JSON; docs/benchmarks.md says what the
figures mean.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import msgspec
from rich.console import Console

from benchmarks.live import engines
from benchmarks.live.__main__ import check_that_peers_do_the_same
from benchmarks.live.probe import Percentiles
from benchmarks.live.report import aims, figure, percentile_figures, print_figures
from benchmarks.process import environment, load, machine_used
from benchmarks.results import Figure
from benchmarks.spark.textbook import TABLE
from services.cassandra import CassandraNode
from services.java import jars
from services.kafka import KafkaBroker

KEPT = engines.ROOT / "data" / "benchmarks"
PARTS = ("latency", "throughput")
PACKAGES = ("pyspark", "cassandra-driver", "msgspec", "pyarrow", "pyiceberg")
AIMS: Mapping[str, tuple[float, bool]] = {
    "readable_p50": (500, False),
    "readable_p99": (1_000, False),
}
MASTERS = ("local[1]", "local[2]")
MARKERS = 20
"""A second. More would be outstanding at once than the reader looks for."""
WARM_UP = 20
"""Seconds at a steady rate that do not count: a JVM compiles what it runs often."""
_FIRST = 2_000
"""Events that are stored before a steady rate begins."""
_SECONDS_TO_START = 180


@click.command()
@click.option("--runs", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--events", default=100_000, show_default=True, help="Of a backlog.")
@click.option("--users", default=20_000, show_default=True, type=click.IntRange(min=1))
@click.option("--rate", default=1_000, show_default=True, help="Events a second, for latencies.")
@click.option("--seconds", default=60, show_default=True, help="Of a run at that rate.")
@click.option("--max-offsets", default=20_000, show_default=True, help="Of a micro-batch.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS)
@click.option(
    "--json",
    "file",
    default=KEPT / "spark.json",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the figures go (data/benchmarks/spark.json).",
)
def main(
    runs: int,
    events: int,
    users: int,
    rate: int,
    seconds: int,
    max_offsets: int,
    parts: tuple[str, ...],
    file: Path,
) -> None:
    """Measure the live path on Spark; the median of RUNS runs counts."""
    console = Console(highlight=False, soft_wrap=True, width=120)
    check_that_peers_do_the_same()
    machine = machine_used(PACKAGES)
    console.print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    KEPT.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    with (
        TemporaryDirectory(prefix="spark-", dir=KEPT) as name,
        KafkaBroker(Path(name) / "kafka") as broker,
        CassandraNode(Path(name) / "cassandra") as node,
    ):
        bench = _Bench(Path(name), broker, node, max_offsets, console)
        if "latency" in parts:
            measured = [bench.latencies(n, rate, seconds, users) for n in range(runs)]
            ours, textbook = zip(*measured, strict=True)
            what = f"produced to readable in Cassandra, {rate:,}/s"
            figures |= percentile_figures("readable", f"Profilehouse: {what}", ours)
            figures |= percentile_figures("textbook", f"Textbook: {what}", textbook)
        if "throughput" in parts:
            engines.fill(broker, "backlog", Path(name), str(events), "--users", str(users))
            drained: dict[str, list[float]] = {}
            for n in range(runs):
                for master in MASTERS:
                    for job in (bench.ours, bench.textbook):
                        seen = job(n, master, events)
                        title = f"{job.__name__} {master}"
                        console.print(f"{title}: {seen:,.0f} events/s")
                        drained.setdefault(title, []).append(seen)
            figures |= {title: figure(title, "/s", rates) for title, rates in drained.items()}
    machine["load after"] = load()
    wanted = aims(figures, AIMS)
    print_figures(console, figures, wanted)
    file.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine, "events": events, "users": users}
    result |= {"figures": figures, "aims": wanted}
    file.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    console.print(f"Written to {file}")


class _Bench:
    def __init__(
        self,
        scratch: Path,
        broker: KafkaBroker,
        node: CassandraNode,
        max_offsets: int,
        console: Console,
    ) -> None:
        self._scratch, self._broker, self._node = scratch, broker, node
        self._max_offsets, self._console = str(max_offsets), console

    def latencies(
        self, number: int, rate: int, seconds: int, users: int
    ) -> tuple[Percentiles, Percentiles]:
        """Of ours, then of the textbook's job."""
        run = self._run(f"latency_{number}", "local[2]")
        with run.live_process() as process:
            engines.wait_for(process, run, _FIRST)
            ours = self._seen(run, rate, seconds, users)
        other = self._run(f"latency_of_the_textbook_{number}", "local[2]")
        with self._textbook(other, "local[2]", "follow") as job:
            self._wait_for_rows(job, other)
            table = f"{self._node.address}/{other.folder.name}/{TABLE}"
            textbook = self._seen(other, rate, seconds, users, "--table", table)
        self._console.print(
            f"p50 and p99: Profilehouse {ours.p50:.0f} and {ours.p99:.0f} ms,"
            f" textbook {textbook.p50:.0f} and {textbook.p99:.0f} ms"
        )
        return ours, textbook

    def ours(self, number: int, master: str, events: int) -> float:
        """Events a second, from the first that was readable until all were."""
        run = self._run(f"ours_{number}_{MASTERS.index(master)}", master, "backlog")
        with run.live_process() as process:
            first, began = engines.wait_for(process, run, 1)
            _, ended = engines.wait_for(process, run, events)
        return (events - first) / (ended - began)

    def textbook(self, number: int, master: str, events: int) -> float:
        """The same of the textbook's job; its first micro-batch is not counted either."""
        run = self._run(f"textbook_{number}_{MASTERS.index(master)}", master, "backlog")
        with self._textbook(run, master, "once") as process:
            if process.wait(3600):
                raise RuntimeError((run.folder / "textbook.log").read_text("utf-8")[-2_000:])
        told = (run.folder / "progress").read_text("ascii").split()
        return (events - int(self._max_offsets)) / (float(told[1]) - float(told[0]))

    def _seen(
        self, run: engines.Run, rate: int, seconds: int, users: int, *options: str
    ) -> Percentiles:
        lasts = seconds + WARM_UP
        ignored = ["--ignore", str(WARM_UP * MARKERS)]
        paced = ["--rate", str(rate), "--users", str(users), "--markers", str(MARKERS)]
        with (
            run.command(
                "probe", "latency", str(rate), "--seconds", str(lasts), *ignored, *options
            ) as probe,
            run.command("load", str(rate * (lasts + 5)), *paced),
        ):
            return engines.told(probe)

    def _run(self, name: str, master: str, topic: str | None = None) -> engines.Run:
        if topic is None:
            topic = name
            engines.fill(self._broker, topic, self._scratch, str(_FIRST))
        self._node.make_keyspace(name)
        folder = self._scratch / name
        options = ["--engine", "spark", "--master", master, "--max-offsets", self._max_offsets]
        return engines.Run(folder, self._broker, topic, self._node.url(name), options)

    def _wait_for_rows(self, job: subprocess.Popen[bytes], run: engines.Run) -> None:
        deadline = time.monotonic() + _SECONDS_TO_START
        with self._node.session() as session:
            while not list(session.execute(f"SELECT row FROM {run.folder.name}.{TABLE} LIMIT 1")):
                if job.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((run.folder / "textbook.log").read_text("utf-8")[-2_000:])
                time.sleep(0.5)

    @contextmanager
    def _textbook(
        self, run: engines.Run, master: str, follows: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The job in a process group of its own, which is ended after the block."""
        with self._node.session() as session:
            session.execute(
                f"CREATE TABLE {run.folder.name}.{TABLE} (user_id text PRIMARY KEY, row blob)"
            )
        topic = run.settings.log.rpartition("/")[2]
        arguments = [self._broker.address, topic, self._node.address, run.folder.name]
        arguments += [str(run.folder / "checkpoint"), master, follows]
        progress = run.folder / "progress"
        variables = environment(
            run.folder,
            PYTHONPATH=str(engines.ROOT),
            PYSPARK_PYTHON=sys.executable,
            PEER_PROGRESS=str(progress),
            PEER_JARS=",".join(map(str, jars("spark"))),
            PEER_MAX_OFFSETS=self._max_offsets,
        )
        with (run.folder / "textbook.log").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.spark.textbook", *arguments],
                cwd=run.folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


if __name__ == "__main__":
    main()
