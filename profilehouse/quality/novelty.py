"""Novelty: how far each number of a fine-grained series goes beyond all that was seen before it.

For series of minutes or hours; daily numbers are judged by anomaly.py. Does not belong here: where
the numbers come from, and what score is an alarm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

SPANS = (12, 48)
"""Rows that a moving mean and a moving deviation look at: an hour and four, of five minutes."""
REST = 100
"""Rows after a score in which only a higher one counts: an incident is told once."""


def novelty(values: Numbers) -> Numbers:
    """How far each number breaks the records set before it, in ranges seen until then.

    Looked at are the number, its step from the one before, and over each of SPANS the moving mean
    and the moving deviation: so a spike, a jump, a slow rise and an unusual calm or unrest are each
    a record of something. The score is the greatest of them; 0 where no record is broken. Depends
    on the past alone, and not on the unit of the numbers.

    Args:
        values: in order of time, finite.
    """
    if not len(values):
        return np.zeros(0)
    centred = values - values[0]
    steps = np.abs(np.diff(centred, prepend=centred[0]))
    views = [centred, steps]
    for span in SPANS:
        mean = _moving_mean(centred, span)
        square = _moving_mean(centred * centred, span)
        views += [mean, np.sqrt(np.maximum(square - mean * mean, 0))]
    scores: Numbers = np.max([_records(view) for view in views], axis=0)
    scores[: 2 * max(SPANS)] = 0
    return _told_once(scores)


def _records(view: Numbers) -> Numbers:
    """How far each number is outside the range of those before, in widths of that range."""
    highest = np.maximum.accumulate(view)[:-1]
    lowest = np.minimum.accumulate(view)[:-1]
    beyond = np.maximum(view[1:] - highest, lowest - view[1:])
    width = highest - lowest
    scale = np.maximum(np.abs(highest), np.abs(lowest))
    real = (beyond > 1e-9 * scale) & (beyond > 0)
    told = np.zeros(len(view))
    told[1:][real] = beyond[real] / np.maximum(width[real], 1e-9 * beyond[real])
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
