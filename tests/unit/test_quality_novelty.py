"""Scores of fine-grained series."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profilehouse.quality.novelty import Numbers, novelty

VALUES = st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=300).map(np.array)


def noisy(rows: int = 2000) -> Numbers:
    return np.asarray(np.random.default_rng(7).normal(100, 5, rows))


@given(values=VALUES, end=st.integers(1, 300))
def test_a_score_depends_on_the_past_alone(values: Numbers, end: int) -> None:
    assert novelty(values[:end]) == pytest.approx(novelty(values)[:end])


@given(values=VALUES)
def test_a_score_is_the_same_in_another_unit(values: Numbers) -> None:
    assert novelty(values * 8) == pytest.approx(novelty(values))


def test_a_constant_series_is_never_new_and_no_series_has_no_scores() -> None:
    assert novelty(np.full(1000, 0.1)).max() == 0
    assert len(novelty(np.zeros(0))) == 0


def test_a_spike_a_rise_and_unrest_are_the_newest_things_of_their_series() -> None:
    spike, rise, unrest = noisy(), noisy(), noisy()
    spike[1500] += 100
    rise[1500:1600] += 12
    unrest[1500:1550] = 100 + 4 * (unrest[1500:1550] - 100)
    for series in (spike, rise, unrest):
        newest = int(np.argmax(np.where(np.arange(2000) > 300, novelty(series), 0)))
        assert 1500 <= newest < 1600


def test_an_incident_is_told_once() -> None:
    series = noisy()
    series[1500:1510] += 100
    assert np.count_nonzero(novelty(series)[1500:1600] > 0.5) == 1
