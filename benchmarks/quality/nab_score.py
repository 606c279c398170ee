"""How good the alarms on a labelled series are, by the published rules of Numenta's benchmark.

Lavin and Ahmad, "Evaluating Real-time Anomaly Detection Algorithms: the Numenta Anomaly Benchmark"
(2015). The first alarm within a window around an anomaly earns a point, less the later it comes;
alarms outside cost, less the sooner they follow a window; a missed window costs. The first 15 % of
a series, at most 750 rows, count for nothing. Belongs here: arithmetic. Does not belong here: files
and detectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

PROBATION = 0.15
LONGEST_PROBATION = 750


@dataclass(frozen=True)
class Profile:
    """What an application wants: the worth of a hit, and the costs of an alarm and of a miss."""

    hit: float
    false_alarm: float
    miss: float


PROFILES = {
    "standard": Profile(1.0, 0.11, 1.0),
    "reward low FP": Profile(1.0, 0.22, 1.0),
    "reward low FN": Profile(1.0, 0.11, 2.0),
}


@dataclass(frozen=True)
class Labelled:
    """The scores a detector gave to the rows of a series, and the rows of its anomalies.

    Attributes:
        scores: one a row, higher is stranger.
        windows: first and last row of each, in order, apart from each other.
    """

    scores: Numbers
    windows: Sequence[tuple[int, int]]


def sigmoid(position: Numbers) -> Numbers:
    """Worth by position: nearly 1 at a window's start (-1), 0 at its end, -1 far beyond it."""
    worth: Numbers = np.where(position > 3, -1.0, -np.tanh(2.5 * position))
    return worth


def probation(rows: int) -> int:
    """How many rows at the start count for nothing."""
    return min(int(PROBATION * rows), LONGEST_PROBATION)


def worths(rows: int, windows: Sequence[tuple[int, int]]) -> tuple[Numbers, NDArray[np.int64]]:
    """What an alarm at each row is worth before weights, and the number of its window or -1."""
    row = np.arange(rows)
    position = np.full(rows, np.inf)
    window = np.full(rows, -1)
    for number, (first, last) in enumerate(windows):
        inside = (row >= first) & (row <= last)
        window[inside] = number
        width = last - first + 1
        position[inside] = -(last - row[inside] + 1) / width
        after = row > last
        position[after] = (row[after] - last) / max(width - 1, 1)
    worth = sigmoid(position)
    worth[window >= 0] /= sigmoid(np.array([-1.0]))[0]
    return worth, window


def raw_score(series: Labelled, profile: Profile, threshold: float) -> float:
    """Sum over the hits, the false alarms and the misses of one series, in weighted points."""
    rows = len(series.scores)
    worth, window = worths(rows, series.windows)
    alarms = series.scores >= threshold
    alarms[: probation(rows)] = False
    total = profile.false_alarm * float(worth[alarms & (window < 0)].sum())
    for number in range(len(series.windows)):
        hits = worth[alarms & (window == number)]
        total += profile.hit * float(hits.max()) if len(hits) else -profile.miss
    return total


def score(corpus: Sequence[Labelled], profile: Profile, threshold: float) -> float:
    """0 for a detector that never alarms, 100 for one that is perfect; without a lower end."""
    anomalies = sum(len(series.windows) for series in corpus)
    raw = sum(raw_score(series, profile, threshold) for series in corpus)
    return 100 * (raw + profile.miss * anomalies) / ((profile.hit + profile.miss) * anomalies)


def best_threshold(corpus: Sequence[Labelled], profile: Profile) -> float:
    """The one threshold for all series that scores highest, as the benchmark's rules choose it.

    One pass from the highest score down: each row changes the sum once.
    """
    scores, points, groups = [], [], []
    anomalies = 0
    for series in corpus:
        worth, window = worths(len(series.scores), series.windows)
        counted = slice(probation(len(series.scores)), None)
        scores.append(series.scores[counted])
        points.append(worth[counted])
        groups.append(np.where(window >= 0, window + anomalies, -1)[counted])
        anomalies += len(series.windows)
    every_score, point, group = (np.concatenate(part) for part in (scores, points, groups))
    order = np.argsort(-every_score, kind="stable")
    earned = np.full(anomalies, -profile.miss)
    total = float(earned.sum())
    best, threshold = total, float("inf")
    for n, at in enumerate(order):
        if group[at] < 0:
            total += profile.false_alarm * point[at]
        else:
            gained = max(earned[group[at]], profile.hit * point[at])
            total += gained - earned[group[at]]
            earned[group[at]] = gained
        last_of_its_score = n + 1 == len(order) or every_score[order[n + 1]] < every_score[at]
        if last_of_its_score and total > best:
            best, threshold = total, float(every_score[at])
    return threshold
