"""Novelty: how far each number of a fine-grained series goes beyond all that was seen before it.

For series of minutes or hours; daily numbers are judged by anomaly.py. Does not belong here: where
the numbers come from, and what score is an alarm.
"""

from __future__ import annotations

import math
from bisect import insort

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

SPANS = (12, 24)
"""Rows that a moving mean and a moving deviation look at: an hour and two, of five minutes."""
SHAPE = 24
"""Rows of a shape, beside the shape of a day."""
REST = 100
"""Rows after a score in which only a higher one counts: an incident is told once."""
FIRST_TAIL = 300
"""Fewest numbers that have a tail."""
FEWEST_PEAKS = 20
MOST_SURPRISE = 30.0
NOISE = 1e-9
"""Part of the greatest number up to which a difference is one of rounding."""


def novelty(values: Numbers, rows_a_day: int) -> Numbers:
    """How far each number breaks the records set before it, times how improbable it is.

    Looked at are the number, its step from the one before, over each of SPANS the moving mean and
    the moving deviation, and the discord of the last rows: how far their shape is from the most
    similar one before (the left matrix profile: Yeh et al., "Matrix Profile I", 2016; as a detector
    of anomalies: Lu et al., "Matrix Profile XXIV", 2022; here of numbers as they are, not
    normalized). So a spike, a jump, an unusual calm or unrest, and a day that runs unlike all days
    are each a record of something. A record counts in widths of the range seen until then, one of a
    discord in the greatest discord until then; the greatest counts. It is multiplied by the
    greatest surprise, so that a series which breaks its records all the time is not believed.

    0 where no record is broken. It depends on the past alone, and not on the unit of the numbers.
    Takes time in the square of the number of rows: a second for 4,000.

    Args:
        values: in order of time, finite.
        rows_a_day: so many are a day.
    """
    if not len(values):
        return np.zeros(0)
    centred = values - values[0]
    step = np.abs(np.diff(centred, prepend=centred[0]))
    moving = []
    for span in SPANS:
        mean = _moving_mean(centred, span)
        square = _moving_mean(centred * centred, span)
        moving += [mean, np.sqrt(np.maximum(square - mean * mean, 0))]
    records: Numbers = np.max([_records(view) for view in (centred, step, *moving)], axis=0)
    records[: 4 * max(SPANS)] = 0
    unlike = [discords(centred, rows) for rows in (SHAPE, rows_a_day)]
    for found in unlike:
        records = np.maximum(records, _discord_records(found))
    sides = [centred, -centred, step, *moving, *(-view for view in moving), *unlike]
    improbable = np.max([surprise(side) for side in sides], axis=0)
    return _told_once(records * improbable)


def surprise(values: Numbers) -> Numbers:
    """How improbable it is that a number is so high, after those before it: -log10, at most 30.

    The tail of the numbers before is a generalized Pareto distribution of what exceeds their
    highest fiftieth (peaks over a threshold, as in SPOT: Siffer et al., "Anomaly Detection in
    Streams with Extreme Value Theory", 2017), fitted by its moments (Hosking and Wallis, 1987). 0
    for what does not exceed it, and for the first numbers.

    Args:
        values: in order of time; nan is unknown.
    """
    told = np.zeros(len(values))
    ordered: list[float] = []
    for at, value in enumerate(values.tolist()):
        if math.isnan(value):
            continue
        peaks = max(FEWEST_PEAKS, len(ordered) // 50)
        if len(ordered) >= FIRST_TAIL and value > ordered[-peaks - 1]:
            told[at] = _surprise(np.array(ordered[-peaks - 1 :]), len(ordered), value)
        insort(ordered, value)
    return told


def _surprise(tail: Numbers, rows: int, value: float) -> float:
    """Of a value above the threshold, which is the first of the tail."""
    excess = tail[1:] - tail[0]
    mean, variance = float(excess.mean()), float(excess.var())
    if mean <= 0:
        return MOST_SURPRISE if value - tail[0] > NOISE * abs(tail[0]) else 0.0
    shape = min(max(0.5 * (1 - mean * mean / max(variance, NOISE * mean * mean)), 0.0), 0.49)
    beyond = (value - float(tail[0])) / (mean * (1 - shape))
    decay = math.log1p(shape * beyond) / shape if shape > NOISE else beyond
    return min(decay / math.log(10) - math.log10(len(excess) / rows), MOST_SURPRISE)


def discords(values: Numbers, rows: int) -> Numbers:
    """For the rows that end at each number, their distance from the nearest ones that end before.

    Euclidean, by the root of the number of rows; rows that overlap do not count. nan where there is
    nothing before.
    """
    nearest = np.full(len(values), np.inf)
    for lag in range(rows, len(values) - rows + 1):
        squares = np.concatenate([[0.0], np.cumsum((values[lag:] - values[:-lag]) ** 2)])
        ends = slice(lag + rows - 1, None)
        nearest[ends] = np.minimum(nearest[ends], squares[rows:] - squares[:-rows])
    nearest[np.isinf(nearest)] = np.nan
    distances: Numbers = np.sqrt(np.maximum(nearest, 0) / rows)
    distances[distances <= math.sqrt(NOISE) * np.maximum.accumulate(np.abs(values))] = 0
    return distances


def _records(view: Numbers) -> Numbers:
    """How far each number is outside the range of those before, in widths of that range."""
    highest = np.maximum.accumulate(view)[:-1]
    lowest = np.minimum.accumulate(view)[:-1]
    beyond = np.maximum(view[1:] - highest, lowest - view[1:])
    width = highest - lowest
    scale = np.maximum(np.abs(highest), np.abs(lowest))
    real = (beyond > NOISE * scale) & (beyond > 0)
    told = np.zeros(len(view))
    told[1:][real] = beyond[real] / np.maximum(width[real], NOISE * beyond[real])
    return told


def _discord_records(found: Numbers) -> Numbers:
    """How far each discord is above the greatest before, in parts of that one."""
    known = np.nan_to_num(found)
    greatest = np.concatenate([[0.0], np.maximum.accumulate(known)[:-1]])
    told = np.zeros(len(known))
    real = (known > greatest) & (greatest > 0)
    told[real] = known[real] / greatest[real] - 1
    return told


def _told_once(scores: Numbers) -> Numbers:
    told = scores.copy()
    for at in np.flatnonzero(scores):
        if told[max(0, at - REST) : at].max(initial=0.0) >= scores[at]:
            told[at] = 0
    return told


def _moving_mean(values: Numbers, span: int) -> Numbers:
    """Of the last `span` numbers, of all where there are fewer."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - span, 0)
    mean: Numbers = (total[end] - total[start]) / (end - start)
    return mean
