"""Scoring of alarms on labelled series, against the method's published figures."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.nab_score import (
    PROFILES,
    Labelled,
    best_threshold,
    probation,
    score,
    sigmoid,
)
from benchmarks.quality.nab_score import raw_score as raw

STANDARD = PROFILES["standard"]


def series(rows: int, alarms: dict[int, float], *windows: tuple[int, int]) -> Labelled:
    scores = np.zeros(rows)
    scores[list(alarms)] = list(alarms.values())
    return Labelled(scores, windows)


def test_the_worth_of_a_position_is_the_published_sigmoid() -> None:
    positions = np.array([-1.0, -0.5, 0.0, 0.45, 1.0, 3.5])
    published = [0.98661, 0.84828, 0.0, -0.8093, -0.98661, -1.0]
    assert sigmoid(positions) == pytest.approx(published, abs=5e-5)


def test_the_published_example_scores_as_published() -> None:
    """An alarm before the window, two within, one 0.45 widths after, one far after: 0.6909."""
    window = (500, 520)
    alarms = dict.fromkeys((300, 500, 510, 529, 900), 1.0)
    assert raw(series(1000, alarms, window), STANDARD, 0.5) == pytest.approx(0.6909, abs=2e-4)


def test_no_alarm_scores_0_and_one_at_each_start_100() -> None:
    windows = ((400, 450), (800, 850))
    for profile in PROFILES.values():
        assert score([series(1000, {}, *windows)], profile, 0.5) == 0
        perfect = series(1000, {400: 1.0, 800: 1.0}, *windows)
        assert score([perfect], profile, 0.5) == pytest.approx(100)


def test_alarms_on_probation_cost_nothing() -> None:
    assert (probation(1000), probation(4032), probation(20_000)) == (150, 604, 750)
    early = series(1000, {149: 1.0, 400: 1.0}, (400, 450))
    assert raw(early, STANDARD, 0.5) == pytest.approx(1)
    late = series(1000, {150: 1.0, 400: 1.0}, (400, 450))
    assert raw(late, STANDARD, 0.5) == pytest.approx(1 - 0.11)


def test_the_threshold_is_the_best_of_all() -> None:
    chance = np.random.default_rng(7)
    corpus = [
        Labelled(chance.integers(0, 50, 600) / 50, ((200, 240), (400, 430))) for _ in range(4)
    ]
    for profile in PROFILES.values():
        chosen = best_threshold(corpus, profile)
        every = [score(corpus, profile, threshold) for threshold in (*np.arange(51) / 50, np.inf)]
        assert score(corpus, profile, chosen) == pytest.approx(max(every))
