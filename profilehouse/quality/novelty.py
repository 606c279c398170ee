"""Novelty: how far each number of a fine-grained series goes beyond all that was seen before it.

For series of minutes or hours; daily numbers are judged by anomaly.py. Does not belong here: where
the numbers come from, and what score is an alarm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

SPANS = (12, 24)
"""Rows that a moving mean and a moving deviation look at: an hour and two, of five minutes."""
SHAPE = 24
"""Rows of a shape, beside the shape of a day."""
REST = 100
"""Rows after a score in which only a higher one counts: an incident is told once."""
NOISE = 1e-9
"""Part of the greatest number up to which a difference is one of rounding."""


def novelty(values: Numbers, rows_a_day: int) -> Numbers:
    """How far each number breaks the records set before it.

    Looked at are the number, its step from the one before, over each of SPANS the moving mean and
    the moving deviation, and the discord of the last rows: how far their shape is from the most
    similar one before (the left matrix profile: Yeh et al., "Matrix Profile I", 2016; as a detector
    of anomalies: Lu et al., "Matrix Profile XXIV", 2022; here of numbers as they are, not
    normalized). So a spike, a jump, an unusual calm or unrest, and a day that runs unlike all days
    are each a record of something. A record counts in widths of the range seen until then, one of a
    discord in the greatest discord until then. The score is the greatest of them; 0 where no record
    is broken. It depends on the past alone, and not on the unit of the numbers.

    Takes time in the square of the number of rows: 0.3 s for 4,000.

    Args:
        values: in order of time, finite.
        rows_a_day: so many are a day.
    """
    if not len(values):
        return np.zeros(0)
    centred = values - values[0]
    views = [centred, np.abs(np.diff(centred, prepend=centred[0]))]
    for span in SPANS:
        mean = _moving_mean(centred, span)
        square = _moving_mean(centred * centred, span)
        views += [mean, np.sqrt(np.maximum(square - mean * mean, 0))]
    scores: Numbers = np.max([_records(view) for view in views], axis=0)
    scores[: 4 * max(SPANS)] = 0
    for rows in (SHAPE, rows_a_day):
        scores = np.maximum(scores, _discord_records(centred, rows))
    return _told_once(scores)


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


def _discord_records(values: Numbers, rows: int) -> Numbers:
    """How far each discord is above the greatest before, in parts of that one."""
    found = np.nan_to_num(discords(values, rows))
    # rounding: squares of the scale, summed
    found[found < np.sqrt(NOISE) * np.maximum.accumulate(np.abs(values))] = 0
    greatest = np.concatenate([[0.0], np.maximum.accumulate(found)[:-1]])
    told = np.zeros(len(values))
    real = (found > greatest) & (greatest > 0)
    told[real] = found[real] / greatest[real] - 1
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
