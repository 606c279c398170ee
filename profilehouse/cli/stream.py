"""`profilehouse stream`: the live process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING

import click

from profilehouse.errors import ProfilehouseError

if TYPE_CHECKING:
    from profilehouse.stream.process import LiveProcess
    from profilehouse.stream.spark_driver import SparkProcess


@click.command()
@click.option(
    "--latency-goal",
    type=click.FloatRange(min=1),
    default=100.0,
    show_default=True,
    help="Milliseconds a batch may take to become durable; its size adapts to it.",
)
@click.option(
    "--max-rate",
    type=click.FloatRange(min=1),
    help="Events a second at most. Default: as many as there are.",
)
@click.option(
    "--lake-seconds",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="Seconds between two commits to the lake.",
)
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Answer GET /metrics there, for Prometheus. Default: nowhere.",
)
@click.option(
    "--engine",
    type=click.Choice(["process", "spark"]),
    default="process",
    show_default=True,
    help="This process, or Spark Structured Streaming on this machine.",
)
@click.option(
    "--max-offsets",
    type=click.IntRange(min=1),
    default=20_000,
    show_default=True,
    help="Spark only: records of a micro-batch at most.",
)
@click.option(
    "--master",
    default="local[2,4]",
    show_default=True,
    help="Spark only: where it runs, unless spark-submit said it; here 2 cores, 4 tries of a task.",
)
def stream(
    latency_goal: float,
    max_rate: float | None,
    lake_seconds: float,
    engine: str,
    max_offsets: int,
    master: str,
    metrics: str | None,
) -> None:
    """Follow the event log: keep profiles and lake up with it, each event once.

    SIGTERM or Ctrl-C stops it after what was read is stored. Started again, also after a crash, it
    goes on where it was. With Kafka several may run and share the partitions. On Spark
    micro-batches are as large as --max-offsets says; --latency-goal and --max-rate do nothing.
    """
    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.profiles.features import load_declaration  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415
    from profilehouse.stream.process import LiveProcess, Options  # noqa: PLC0415
    from profilehouse.stream.spark_driver import SparkOptions, SparkProcess  # noqa: PLC0415

    settings = load_settings()
    platform, declaration = Platform(settings), load_declaration()
    process: LiveProcess | SparkProcess
    if engine == "spark":
        spark = SparkOptions(max_offsets, lake_seconds, master)
        process = SparkProcess(platform, declaration, spark)
    else:
        options = Options(latency_goal=latency_goal, max_rate=max_rate, lake_seconds=lake_seconds)
        process = LiveProcess(platform, declaration, options)

    def stop(_number: int, _frame: FrameType | None) -> None:
        process.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    click.echo(f"following {settings.log}; profiles in {settings.profiles}", err=True)
    with _served(metrics, process) if metrics else nullcontext():
        process.run()
    click.echo(f"stopped: {process.events:,} events in the profiles since the start", err=True)


@contextmanager
def _served(place: str, process: LiveProcess | SparkProcess) -> Iterator[None]:
    try:
        from profilehouse.stream.metrics import metrics_served  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ProfilehouseError(
            f"{error}; install what serves metrics: pip install 'profilehouse[web]'"
        ) from error

    host, colon, port = place.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ProfilehouseError(f"--metrics is {place!r}: must be HOST:PORT, like 127.0.0.1:9102")
    with metrics_served(host, int(port), lambda: process.status) as address:
        click.echo(f"metrics: {address}", err=True)
        yield
