"""The figures of the live path: what they are made of, and as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.live.engines import Memory
from benchmarks.live.probe import Percentiles
from benchmarks.results import Figure


class Aim(msgspec.Struct):
    """What a figure's median is to be: at least, or at most."""

    bound: float
    least: bool
    met: bool


AIMS = {
    "throughput": (100_000, True),
    "readable_p50": (20, False),
    "readable_p99": (100, False),
    "reads_p99": (1, False),
    "api_p99": (10, False),
}
"""(bound, whether it is the least); throughput in events a second, the others in milliseconds."""


def figure(title: str, unit: str, values: Sequence[float]) -> Figure:
    """Of several runs."""
    return Figure(title, unit, median(values), min(values), max(values))


def percentile_figures(name: str, title: str, runs: Sequence[Percentiles]) -> dict[str, Figure]:
    """Two figures of several runs."""
    return {
        f"{name}_p50": figure(f"{title}, p50", "ms", [run.p50 for run in runs]),
        f"{name}_p99": figure(f"{title}, p99", "ms", [run.p99 for run in runs]),
    }


def aims(figures: Mapping[str, Figure]) -> dict[str, Aim]:
    """Which of the aims that were measured are met."""
    return {
        name: Aim(
            bound,
            least,
            figures[name].median >= bound if least else figures[name].median <= bound,
        )
        for name, (bound, least) in AIMS.items()
        if name in figures
    }


def print_figures(
    console: Console, figures: Mapping[str, Figure], wanted: Mapping[str, Aim]
) -> None:
    """Each figure, and whether its aim is met."""
    table = _table("The live path", "median", "lowest", "highest", "aim")
    for name, each in figures.items():
        aim = wanted.get(name)
        said = ""
        if aim is not None:
            verdict = "[green]met[/green]" if aim.met else "[red]missed[/red]"
            said = f"{'≥' if aim.least else '≤'} {_show(aim.bound, each.unit)} {verdict}"
        values = (_show(value, each.unit) for value in (each.median, each.lowest, each.highest))
        table.add_row(each.title, *values, said)
    console.print(table)


def print_memory(console: Console, measured: Sequence[Memory]) -> None:
    """Memory as events go by."""
    table = _table("Memory of the live process", "own", "with LMDB's pages")
    for each in measured:
        table.add_row(
            f"after {each.events:,} events", f"{each.own:,.0f} MiB", f"{each.resident:,.0f} MiB"
        )
    console.print(table)


def print_profile(
    console: Console, shares: Sequence[tuple[str, float, float]], shown: int = 25
) -> None:
    """Where the time goes, by function."""
    table = _table("Where a live process that drains a backlog is", "itself", "with callees")
    for name, own, below in shares[:shown]:
        table.add_row(name[-70:], f"{own:.1%}", f"{below:.1%}")
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _show(value: float, unit: str) -> str:
    return f"{value:.2f} ms" if unit == "ms" else f"{value:,.0f}{unit}"
