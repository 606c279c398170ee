"""Daily numbers judged by the days before, against figures worked out by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from datetime import date, timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from checks.anomaly import DETECTORS
from profilehouse.errors import ProfilehouseError
from profilehouse.quality.anomaly import (
    MINIMUM_HISTORY,
    WINDOW,
    Detector,
    iqr,
    judge_daily,
    z_score,
)
from profilehouse.sources.retailer import PACKAGE, TIMEZONE

FIRST = date(2026, 1, 5)
LOCAL = pa.timestamp("us", TIMEZONE)
FOURTEEN = [96.0, 104.0] * 7
"""Mean 100, sample standard deviation sqrt(14 * 16 / 13) = 4.1510."""


def daily(values: Sequence[float]) -> dict[date, float]:
    return {FIRST + timedelta(days=n): value for n, value in enumerate(values)}


def test_z_score_expects_three_sample_deviations_around_the_mean() -> None:
    history = [60.0, 140.0] * 7
    deviation = math.sqrt(14 * 1600 / 13)
    judged = z_score(history, 224)
    assert judged.low == pytest.approx(100 - 3 * deviation)
    assert judged.high == pytest.approx(100 + 3 * deviation)
    assert judged.state == "normal"
    assert z_score(history, 225).state == "anomalous"
    assert z_score(history, -25).state == "anomalous"


def test_iqr_expects_the_quartiles_and_their_distance_beyond() -> None:
    history = [float(n) for n in range(1000, 1170, 10)]
    judged = iqr(history, 1240)
    assert (judged.low, judged.high) == (1040 - 120, 1120 + 120)
    assert judged.state == "normal"
    assert iqr(history, 1241).state == "anomalous"
    assert iqr(history, 1241, factor=3).state == "normal"


def test_of_a_count_what_chance_does_is_always_normal() -> None:
    constant = [100.0] * 14
    assert (z_score(constant, 130).state, z_score(constant, 131).state) == ("normal", "anomalous")
    assert (iqr(constant, 70).state, iqr(constant, 69).state) == ("normal", "anomalous")
    zeros = [0.0] * 14
    assert (z_score(zeros, 3).state, z_score(zeros, 4).state) == ("normal", "anomalous")
    assert z_score(FOURTEEN, 129).state == "normal"


def test_of_what_is_no_count_the_least_difference_is_given() -> None:
    assert z_score([0.5] * 14, 0.51, least=0.0).state == "anomalous"
    assert z_score([0.5] * 14, 0.51, least=0.02).state == "normal"


@pytest.mark.parametrize("detector", [z_score, iqr])
def test_fewer_than_fourteen_days_say_nothing_and_infinite_ones_do_not_count(
    detector: Detector,
) -> None:
    for history in (FOURTEEN[1:], [*FOURTEEN[1:], math.nan, math.inf]):
        judged = detector(history, 10_000)
        assert (judged.state, judged.low, judged.high, judged.history) == (
            "not enough history", None, None, 13,
        )  # fmt: skip


@pytest.mark.parametrize("detector", [z_score, iqr])
def test_what_is_not_a_number_is_anomalous(detector: Detector) -> None:
    assert detector(FOURTEEN, math.nan).state == "anomalous"


def test_incidents_in_the_history_widen_the_z_score_but_not_the_iqr() -> None:
    history = [1000.0, 1010.0, 990.0, 1005.0] * 6 + [9000.0] * 4
    assert z_score(history, 5000).state == "normal"
    assert iqr(history, 5000, factor=3).state == "anomalous"


def test_the_newest_day_is_no_part_of_what_it_is_compared_with() -> None:
    judged = judge_daily(daily([*FOURTEEN, 1000.0]))
    assert judged.day == FIRST + timedelta(days=14)
    assert judged.judgement.history == 14
    assert judged.judgement.state == "anomalous"


def test_days_are_looked_back_by_the_calendar() -> None:
    old = daily([5000.0] * 20)
    recent = {FIRST + timedelta(days=90 + n): 100.0 for n in range(15)}
    judged = judge_daily(old | recent, window=56)
    assert (judged.judgement.history, judged.judgement.state) == (14, "normal")


def test_past_days_that_would_have_been_flagged_are_named() -> None:
    values = [100.0] * 20 + [500.0] + [100.0] * 5
    judged = judge_daily(daily(values), partial(iqr, factor=3.0))
    assert judged.flagged == (FIRST + timedelta(days=20),)
    result = judged.result("lines_are_usual", "lines", "look")
    assert result.passed
    assert "earlier days flagged: 1, last 2026-01-25" in result.observed


def test_an_anomaly_says_what_was_expected_and_what_was_seen() -> None:
    result = judge_daily(daily([100.0] * 14 + [10.0])).result("lines_are_usual", "lines", "look")
    assert (result.state, result.severity, result.failing) == ("failed", "warning", 1)
    assert result.expected == "lines: 70 to 130"
    assert result.observed == "2026-01-19: 10"
    assert result.numbers["expected_low"] == 70


def test_too_little_history_passes_and_says_so() -> None:
    result = judge_daily(daily([1.0, 2.0])).result("lines_are_usual", "lines", "look")
    assert (result.state, result.passed) == ("not enough history", True)
    assert "not judged: not enough history (1 days)" in result.observed


def test_a_series_without_days_cannot_be_judged() -> None:
    with pytest.raises(ProfilehouseError, match="no day to judge"):
        judge_daily({})


def a_year(sunday: float) -> list[float]:
    """365 days of 4000, give or take chance, with other Sundays."""
    chance = random.Random(7)
    return [chance.gauss(sunday if n % 7 == 6 else 4000, 200) for n in range(365)]


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_an_ordinary_year_alarms_seldom_and_a_lost_half_day_is_found(name: str) -> None:
    year = a_year(sunday=4500)
    judged = judge_daily(daily(year), DETECTORS[name])
    assert len(judged.flagged) <= 5
    assert judged.judgement.state == "normal"
    halved = daily([*year, 2000.0])
    assert judge_daily(halved, DETECTORS[name]).judgement.state == "anomalous"


def test_very_different_sundays_widen_the_z_score_and_are_flagged_by_the_iqr() -> None:
    year = daily(a_year(sunday=8000))
    assert judge_daily(year, DETECTORS["z_score"]).flagged == ()
    by_iqr = judge_daily(year, DETECTORS["iqr"])
    assert len(by_iqr.flagged) > 40
    assert {day.weekday() for day in by_iqr.flagged} == {6}


def lines_of_a_real_year() -> dict[date, float]:
    """What a real retailer sold on each of its 364 business days: lines a day."""
    package = find_spec(PACKAGE)
    assert package is not None
    assert package.origin is not None
    data = Path(package.origin).parent / "data" / "transactions.parquet"
    bought = pq.read_table(data, columns=["transaction_timestamp"])["transaction_timestamp"]
    here = pc.local_timestamp(bought.cast(pa.timestamp("us", "UTC")).cast(LOCAL))
    counted = pc.value_counts(
        here.cast(pa.timestamp("s"), safe=False).cast(pa.date32(), safe=False)
    )
    days, lines = counted.field("values"), counted.field("counts")
    return dict(zip(days.to_pylist(), map(float, lines.to_pylist()), strict=True))


def test_a_real_year_alarms_on_its_odd_days_only() -> None:
    year = lines_of_a_real_year()
    assert (len(year), sum(year.values())) == (364, 1_469_307)
    before_christmas = date(2017, 12, 23)
    judged = {name: judge_daily(year, detector) for name, detector in DETECTORS.items()}
    assert judged["z_score"].flagged == (date(2017, 11, 5), before_christmas)
    assert judged["iqr"].flagged == (date(2017, 7, 4), before_christmas)
    assert {judgement.judgement.state for judgement in judged.values()} == {"normal"}


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_whichever_day_of_a_real_year_is_lost_or_delivered_thrice_it_is_found(name: str) -> None:
    series = sorted(lines_of_a_real_year().items())
    found = {0: 0, 3: 0}
    for i in range(MINIMUM_HISTORY, len(series)):
        for times in found:
            day, lines = series[i]
            faulty = dict(series[max(0, i - WINDOW) : i]) | {day: lines * times}
            state = judge_daily(faulty, DETECTORS[name]).judgement.state
            found[times] += state == "anomalous"
    # Thrice a day of few lines, after the holidays, is no more than a day of many.
    assert found == {0: 350, 3: 349}
