"""Scores of fine-grained series."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profilehouse.quality.novelty import Numbers, discords, novelty, surprise

DAY = 48
VALUES = st.lists(st.integers(-1000, 1000).map(float), min_size=350, max_size=400).map(np.array)


def noisy(rows: int = 2000) -> Numbers:
    return np.asarray(np.random.default_rng(7).normal(100, 5, rows))


@settings(max_examples=10, deadline=None)
@given(values=VALUES, end=st.integers(1, 400))
def test_a_score_depends_on_the_past_alone(values: Numbers, end: int) -> None:
    assert novelty(values[:end], DAY) == pytest.approx(novelty(values, DAY)[:end])


@settings(max_examples=10, deadline=None)
@given(values=VALUES)
def test_a_score_is_the_same_in_another_unit(values: Numbers) -> None:
    assert novelty(values * 8, DAY) == pytest.approx(novelty(values, DAY))


def test_a_constant_series_is_never_new_and_no_series_has_no_scores() -> None:
    assert novelty(np.full(1000, 0.1), DAY).max() == 0
    assert len(novelty(np.zeros(0), DAY)) == 0


def test_a_spike_a_rise_and_unrest_are_the_newest_things_of_their_series() -> None:
    spike, rise, unrest = noisy(), noisy(), noisy()
    spike[1500] += 100
    rise[1500:1600] += 12
    unrest[1500:1550] = 100 + 4 * (unrest[1500:1550] - 100)
    for series in (spike, rise, unrest):
        newest = int(np.argmax(np.where(np.arange(2000) > 300, novelty(series, DAY), 0)))
        assert 1500 <= newest < 1600


def test_an_incident_is_told_once() -> None:
    series = noisy()
    series[1500:1510] += 100
    assert np.count_nonzero(novelty(series, DAY)[1500:1600] > 1) == 1


def test_a_day_that_runs_unlike_all_days_is_new_though_no_number_of_it_is() -> None:
    day = 100 + 50 * np.sin(np.arange(DAY) / DAY * 2 * np.pi)
    series = np.tile(day, 40) + np.random.default_rng(7).normal(0, 1, 40 * DAY)
    series[30 * DAY : 31 * DAY] = series[29 * DAY : 30 * DAY][::-1]
    scores = novelty(series, DAY)
    assert 30 * DAY <= int(np.argmax(scores)) < 31 * DAY + 24
    assert scores[30 * DAY : 32 * DAY].max() > 5 * scores[10 * DAY : 30 * DAY].max()


def test_a_discord_is_the_distance_from_the_nearest_shape_before() -> None:
    found = discords(np.array([0.0, 1.0, 0.0, 1.0, 5.0, 5.0]), 2)
    assert np.isnan(found[:3]).all()
    assert found[3:] == pytest.approx([0, np.sqrt(17 / 2), np.sqrt(41 / 2)])


def test_surprise_is_the_tail_of_what_was_seen() -> None:
    """Of an exponential distribution one in 10,000 is beyond 9.2 means."""
    seen = np.random.default_rng(7).exponential(1, 20_000)
    [*_, rare] = surprise(np.append(seen, math.log(10_000)))
    assert rare == pytest.approx(4, abs=0.5)
    [*_, usual] = surprise(np.append(seen, 1.0))
    assert usual == 0
