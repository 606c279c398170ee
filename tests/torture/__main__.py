"""The long torture test: `python -m tests.torture [--store lmdb] [--kills N] [--engine spark]`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import click

from services.kafka import KafkaBroker
from tests.torture.runner import Plan, run
from tests.torture.stores import STORES, place

SECONDS_PER_KILL = 8
"""About what a kill takes; the input lasts as long, or longer."""


@click.command()
@click.option("--store", "stores", multiple=True, type=click.Choice(STORES), default=STORES)
@click.option("--events", default=200_000, show_default=True, type=click.IntRange(min=1000))
@click.option("--kills", default=100, show_default=True, type=click.IntRange(min=0))
@click.option("--seed", default=1, show_default=True)
@click.option("--engine", type=click.Choice(["process", "spark"]), default="process")
@click.option("--folder", type=click.Path(path_type=Path), help="Kept, unlike the one by default.")
def main(
    stores: tuple[str, ...],
    events: int,
    kills: int,
    seed: int,
    engine: Literal["process", "spark"],
    folder: Path | None,
) -> None:
    """Kill live processes again and again; everything must still be there, once.

    On Spark also its Python workers; it needs a store that is no LMDB.
    """
    plan = Plan(
        seed=seed,
        events=events,
        kills=kills,
        freezes=0 if engine == "spark" else kills // 20,
        joins=0 if engine == "spark" else kills // 5,
        seconds=kills * SECONDS_PER_KILL,
        engine=engine,
    )
    failed = False
    with TemporaryDirectory(prefix="torture-") as scratch:
        root = folder or Path(scratch)
        with KafkaBroker(root / "kafka") as broker:
            for store in stores:
                began = time.monotonic()
                with place(store, root / store, broker) as where:
                    outcome = run(where, plan, lambda text: click.echo(f"  {text}"))
                minutes = (time.monotonic() - began) / 60
                click.echo(f"{store}: {minutes:.0f} minutes")
                for counter in (outcome.did, outcome.compared):
                    for name, count in sorted(counter.items()):
                        click.echo(f"  {name}: {count:,}")
                for difference in outcome.differences:
                    click.echo(f"  WRONG: {difference}")
                failed |= bool(outcome.differences)
                click.echo("  differences" if outcome.differences else "  no difference")
    sys.exit(failed)


if __name__ == "__main__":
    main()
