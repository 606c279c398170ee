"""Anomalies in labelled series: our detector beside the defaults of others, by Numenta's rules.

`python -m benchmarks.quality.nab DATA [--json FILE]` reads series and windows in the layout of the
Numenta Anomaly Benchmark (`<group>/<file>.csv.gz`, `labels/combined_windows.json`). Each detector
has one threshold for all files, chosen by the benchmark's rules for each profile. Cross-validated
is the score of each group of files under the threshold chosen on the other groups.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.quality.nab_score import PROFILES, Labelled, Numbers, Profile, best_threshold, score
from profilehouse.quality.novelty import novelty

GOAL = 70.0
"""Of the standard profile."""
DAY = 86_400
FORTNIGHT = 14


@dataclass(frozen=True)
class Series:
    """A labelled file: its numbers in order, its anomalies as rows, and the rows of a day."""

    group: str
    values: Numbers
    windows: tuple[tuple[int, int], ...]
    rows_a_day: int


def ours(series: Series) -> Numbers:
    """Novelty, the platform's detector of fine-grained series."""
    return novelty(series.values, series.rows_a_day)


def windowed_gaussian(series: Series) -> Numbers:
    """How improbable a number is under the normal distribution of the 6,400 rows before."""
    deviations = _deviations(series.values, 6_400)
    return np.array([math.erf(deviation / math.sqrt(2)) for deviation in deviations])


def fortnight(series: Series) -> Numbers:
    """Beyond three deviations of the 14 days before: what Elementary and Deequ take by default."""
    return (_deviations(series.values, FORTNIGHT * series.rows_a_day) > 3).astype(float)


def whole_batch(series: Series) -> Numbers:
    """Beyond three deviations of the whole file, itself included: an expectation on Z-scores.

    It knows the future, as such an expectation does of the batch it looks at.
    """
    spread = series.values.std() or 1.0
    far: Numbers = (np.abs(series.values - series.values.mean()) / spread > 3).astype(float)
    return far


DETECTORS: dict[str, Callable[[Series], Numbers]] = {
    "Profilehouse, novelty": ours,
    "windowed Gaussian": windowed_gaussian,
    "Elementary, Deequ: 14 days, 3 sigma": fortnight,
    "Great Expectations: Z-score of the batch": whole_batch,
}


def main() -> None:
    """Score every detector, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    corpus = read_corpus(asked.data)
    found = {name: measure(corpus, detector) for name, detector in DETECTORS.items()}
    table = Table(title=f"{len(corpus)} labelled series; in brackets cross-validated")
    table.add_column("")
    for profile in PROFILES:
        table.add_column(profile, justify="right")
    for name, scores in found.items():
        shown = (f"{s['score']:.1f} ({s['cross_validated']:.1f})" for s in scores.values())
        table.add_row(name, *shown)
    console = Console()
    console.print(table)
    reached = found[next(iter(DETECTORS))]["standard"]["score"]
    met = "met" if reached >= GOAL else "missed"
    console.print(f"Goal: at least {GOAL:g} in the standard profile: {reached:.1f}, {met}.")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def measure(
    corpus: list[Series], detector: Callable[[Series], Numbers]
) -> dict[str, dict[str, Any]]:
    """By profile: score and threshold over all files, and the score across groups of files."""
    labelled = [(series.group, Labelled(detector(series), series.windows)) for series in corpus]
    everything = [one for _, one in labelled]
    found = {}
    for name, profile in PROFILES.items():
        threshold = best_threshold(everything, profile)
        found[name] = {
            "score": score(everything, profile, threshold),
            "cross_validated": cross_validated(labelled, profile),
            "threshold": threshold,
        }
    return found


def cross_validated(labelled: list[tuple[str, Labelled]], profile: Profile) -> float:
    """The score when each group's threshold is chosen on the other groups."""
    shifted = []
    for group in sorted({group for group, _ in labelled}):
        threshold = best_threshold([one for other, one in labelled if other != group], profile)
        shifted += [
            Labelled((one.scores >= threshold).astype(float), one.windows)
            for other, one in labelled
            if other == group
        ]
    return score(shifted, profile, 1.0)


def read_corpus(folder: Path) -> list[Series]:
    """All series below a folder, by name."""
    windows = json.loads((folder / "labels" / "combined_windows.json").read_text("utf-8"))
    return [
        _read(path, windows[f"{path.parent.name}/{path.name.removesuffix('.gz')}"])
        for path in sorted(folder.glob("*/*.csv.gz"))
    ]


def _read(path: Path, windows: list[tuple[str, str]]) -> Series:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    times = np.array([datetime.fromisoformat(row["timestamp"]).timestamp() for row in rows])
    bounds = [tuple(datetime.fromisoformat(t).timestamp() for t in window) for window in windows]
    return Series(
        group=path.parent.name,
        values=np.array([float(row["value"]) for row in rows]),
        windows=tuple(
            (int(np.argmax(times >= first)), int(np.flatnonzero(times <= last)[-1]))
            for first, last in bounds
        ),
        rows_a_day=max(2, round(DAY / float(np.median(np.diff(times))))),
    )


def _deviations(values: Numbers, window: int) -> Numbers:
    """How many deviations of the rows before each number is off their mean; 0 for the first two."""
    found = np.zeros(len(values))
    for at in range(2, len(values)):
        before = values[max(0, at - window) : at]
        found[at] = abs(values[at] - before.mean()) / max(float(before.std()), 1e-6)
    return found


if __name__ == "__main__":
    main()
