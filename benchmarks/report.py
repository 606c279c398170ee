"""The figures as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.results import Compared, Figure, Goal

STEPS_SHOWN = 10
BEYOND_THE_PEER = (
    "a lake: every record kept as received in Iceberg, and the events built from them",
    "each record decoded against its contract alone, so a bad one becomes a dead letter with its"
    " line and reason (dbt's read fails as a whole)",
    "a ledger and merges by delivery day: a day can be late, repeated, corrected or interrupted"
    " (dbt rebuilds every table)",
    "the profile store, and the proof that it equals the profile table",
    "checks of files, landed records, money, gaps, references and anomalies, with samples and"
    " remedies (dbt: tests of the tables alone)",
    "lineage, row counts and check results for each day in Dagster",
)
"""What our backfill does and the peer's build does not."""


def print_figures(
    console: Console, figures: Mapping[str, Figure], goals: Mapping[str, Goal]
) -> None:
    """Where the time goes, and whether each goal is met."""
    table = _table("The year, from source files to checked profiles")
    for column in ("median", "lowest", "highest", "goal"):
        table.add_column(column, justify="right")
    for name, figure in figures.items():
        goal = goals.get(name)
        table.add_row(
            figure.title,
            _show(figure, figure.median),
            _show(figure, figure.lowest),
            _show(figure, figure.highest),
            "" if goal is None else f"{_show(figure, goal.at_most)} {_met(goal)}",
        )
    console.print(table)


def print_steps(console: Console, steps: Mapping[str, tuple[Figure, Figure]], peak: str) -> None:
    """The longest steps, and how far the memory had risen by their end."""
    table = _table(f"The {STEPS_SHOWN} longest steps, without storing Dagster's events")
    table.add_column("median", justify="right")
    table.add_column("highest memory by then", justify="right")
    for seconds, memory in list(steps.values())[:STEPS_SHOWN]:
        table.add_row(seconds.title, _show(seconds, seconds.median), _show(memory, memory.median))
    console.print(table)
    console.print(f"Memory was highest in {peak}.")


def print_peer(
    console: Console, figures: Mapping[str, tuple[Figure, Figure]], tables: Sequence[Compared]
) -> None:
    """Both side by side, how equal their tables are, and what only ours does."""
    table = _table("Beside dbt on DuckDB: same files, same machine, in turns")
    for column in ("Profilehouse", "dbt", "ratio"):
        table.add_column(column, justify="right")
    for ours, peers in figures.values():
        table.add_row(
            ours.title,
            _show(ours, ours.median),
            _show(peers, peers.median),
            f"{ours.median / peers.median:.1f}",
        )
    console.print(table)
    same = _table("The tables of both")
    for column in ("rows", "dbt's rows", "rows that differ"):
        same.add_column(column, justify="right")
    for compared in tables:
        same.add_row(
            compared.table,
            f"{compared.rows:,}",
            f"{compared.peer_rows:,}",
            f"{compared.different:,}",
        )
    console.print(same)
    console.print("Only Profilehouse's time includes:")
    for work in BEYOND_THE_PEER:
        console.print(f"- {work}")


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    return table


def _show(figure: Figure, value: float) -> str:
    return f"{value:,.0f} MiB" if figure.unit == "MiB" else f"{value:.1f} s"


def _met(goal: Goal) -> str:
    return "[green]met[/green]" if goal.met else "[red]missed[/red]"
