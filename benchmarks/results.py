"""What a run of the benchmark yields, and the figures made of several runs.

Belongs here: data and arithmetic. Does not belong here: running anything, printing.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

GROUPS = ("lake", "warehouse", "profiles", "checks")
MIB = 2**20
METER_FILE = "meter.json"
"""Where a backfill leaves what it measured, in the folder it ran in."""


class Cost(msgspec.Struct):
    """What a command cost, from its start to its end, interpreter and imports included."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    """Highest resident memory."""


class Step(msgspec.Struct):
    """What one step took, in seconds, and the process' highest memory until its end, in bytes.

    `seconds` lie between the stored events of its start and end; `event_seconds` of them were spent
    on storing Dagster's events.
    """

    key: str
    group: str
    seconds: float
    event_seconds: float
    peak_bytes: int

    @property
    def own_seconds(self) -> float:
        """Without storing Dagster's events."""
        return self.seconds - self.event_seconds


class Backfill(msgspec.Struct):
    """One run of the daily job over all days.

    `event_seconds` is what storing all `events` took, the planned ones and those between steps
    included. `warnings` counts the checks that did not pass and let the run go on.
    """

    steps: list[Step]
    events: int
    event_seconds: float
    warnings: int


class Peer(msgspec.Struct):
    """One build by dbt: `dbt run`, then `dbt test`.

    `models_seconds` and `tests_seconds` are what dbt itself says it spent on them, without its
    start and parsing.
    """

    models_seconds: float
    tests_seconds: float
    build: Cost
    test: Cost


class Run(msgspec.Struct):
    """One backfill of ours, and the peer's from the same files right after it."""

    cost: Cost
    backfill: Backfill
    peer: Peer | None


class Figure(msgspec.Struct):
    """A figure over several runs."""

    title: str
    unit: str
    median: float
    lowest: float
    highest: float


class Goal(msgspec.Struct):
    """The most that a figure's median may be."""

    at_most: float
    met: bool


class Compared(msgspec.Struct):
    """A table of ours and of the peer; `different` counts the rows that only one of them has."""

    table: str
    rows: int
    peer_rows: int
    different: int
    columns_left_out: list[str]
    """Columns of ours that the peer does not have."""


def our_figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """Where the time of our backfill goes."""
    groups = {
        group: [
            sum(step.own_seconds for step in run.backfill.steps if step.group == group)
            for run in runs
        ]
        for group in GROUPS
    }
    engine = [sum(seconds) for seconds in zip(*groups.values(), strict=True)]
    events = [run.backfill.event_seconds for run in runs]
    wall = [run.cost.seconds for run in runs]
    rest = [w - n - e for w, n, e in zip(wall, engine, events, strict=True)]
    return {
        "lake": _figure("Lake: files landed, events built", "s", groups["lake"]),
        "warehouse": _figure("Warehouse: dimensions and facts", "s", groups["warehouse"]),
        "profiles": _figure("Profiles: table and store", "s", groups["profiles"]),
        "checks": _figure("Checks", "s", groups["checks"]),
        "engine": _figure("Engine: these four", "s", engine),
        "events": _figure("Storing Dagster's events", "s", events),
        "rest": _figure("Rest: imports, planning, between steps", "s", rest),
        "wall": _figure("The whole command", "s", wall),
        "cpu": _figure("Processor time, all cores", "s", [r.cost.cpu_seconds for r in runs]),
        "peak": _figure("Highest memory", "MiB", [r.cost.peak_bytes / MIB for r in runs]),
    }


def beside_the_peer(runs: Sequence[Run]) -> dict[str, tuple[Figure, Figure]]:
    """Ours and the peer's, for the work both do (our lake and dead letters included)."""
    pairs = [(run, run.peer) for run in runs if run.peer]
    star = [
        sum(
            step.own_seconds
            for step in run.backfill.steps
            if step.group in ("lake", "warehouse") or step.key == "warehouse__profile"
        )
        for run in runs
    ]
    ours = our_figures(runs)
    title = "Files to star and profile table"
    return {
        "tables": (
            _figure(title, "s", star),
            _figure(title, "s", [peer.models_seconds for _, peer in pairs]),
        ),
        "checks": (
            ours["checks"],
            _figure("Tests", "s", [peer.tests_seconds for _, peer in pairs]),
        ),
        "wall": (
            ours["wall"],
            _figure("Both commands", "s", [p.build.seconds + p.test.seconds for _, p in pairs]),
        ),
        "cpu": (
            ours["cpu"],
            _figure(
                ours["cpu"].title,
                "s",
                [p.build.cpu_seconds + p.test.cpu_seconds for _, p in pairs],
            ),
        ),
        "peak": (
            ours["peak"],
            _figure(
                ours["peak"].title,
                "MiB",
                [max(p.build.peak_bytes, p.test.peak_bytes) / MIB for _, p in pairs],
            ),
        ),
    }


def step_figures(runs: Sequence[Run]) -> dict[str, tuple[Figure, Figure]]:
    """Each step's own seconds, and the highest memory until its end; the longest step first."""
    steps: dict[str, list[Step]] = {}
    for run in runs:
        for step in run.backfill.steps:
            steps.setdefault(step.key, []).append(step)
    figures = {
        key: (
            _figure(key, "s", [step.own_seconds for step in same]),
            _figure(key, "MiB", [step.peak_bytes / MIB for step in same]),
        )
        for key, same in steps.items()
    }
    return dict(sorted(figures.items(), key=lambda item: -item[1][0].median))


def peak_step(run: Run) -> str:
    """The step in which the run's memory was highest: the last one that raised the peak."""
    peak = run.backfill.steps[-1].peak_bytes
    return next(step.key for step in run.backfill.steps if step.peak_bytes == peak)


def _figure(title: str, unit: str, values: Sequence[float]) -> Figure:
    return Figure(title, unit, median(values), min(values), max(values))
