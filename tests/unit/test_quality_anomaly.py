"""Daily numbers judged by the days before, against figures worked out by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profilehouse.contract_quality import DETECTORS, DetectorName
from profilehouse.errors import ProfilehouseError
from profilehouse.quality.anomaly import (
    MINIMUM_HISTORY,
    iqr,
    judge,
    judge_daily,
    of_share,
    seasonal,
    sparkline,
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
    judged = iqr(history, 1240, factor=1.5)
    assert (judged.low, judged.high) == (1040 - 120, 1120 + 120)
    assert judged.state == "normal"
    assert iqr(history, 1241, factor=1.5).state == "anomalous"
    assert iqr(history, 1241, factor=3).state == "normal"


def test_of_a_count_what_chance_does_is_always_normal() -> None:
    constant = [100.0] * 14
    assert (z_score(constant, 130).state, z_score(constant, 131).state) == ("normal", "anomalous")
    assert (iqr(constant, 70).state, iqr(constant, 69).state) == ("normal", "anomalous")
    zeros = [0.0] * 14
    assert (z_score(zeros, 3).state, z_score(zeros, 4).state) == ("normal", "anomalous")
    assert z_score(FOURTEEN, 129).state == "normal"


def test_of_what_is_no_count_the_least_difference_is_given() -> None:
    assert z_score([0.5] * 14, 0.51, lambda _: 0.0).state == "anomalous"
    assert z_score([0.5] * 14, 0.51, lambda _: 0.02).state == "normal"


def test_of_a_share_what_chance_does_to_so_many_rows_is_always_normal() -> None:
    assert of_share(10_000)(50.0) == pytest.approx(1.5)
    assert of_share(100)(0.0) == pytest.approx(300 * math.sqrt(0.01 * 0.99 / 100))


@pytest.mark.parametrize("detector", DETECTORS)
def test_fewer_than_fourteen_days_say_nothing_and_infinite_ones_do_not_count(
    detector: DetectorName,
) -> None:
    for history in (FOURTEEN[1:], [*FOURTEEN[1:], math.nan, math.inf]):
        judged = judge(detector, history, 10_000, at=FIRST)
        assert (judged.state, judged.low, judged.high, judged.history) == (
            "not enough history", None, None, 13,
        )  # fmt: skip


@pytest.mark.parametrize("detector", DETECTORS)
def test_what_is_not_known_is_not_judged(detector: DetectorName) -> None:
    assert judge(detector, FOURTEEN * 2, math.nan, at=FIRST).state == "not enough history"


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
    judged = judge_daily(old | recent)
    assert (judged.judgement.history, judged.judgement.state) == (14, "normal")


def test_past_days_that_would_have_been_flagged_are_named() -> None:
    values = [100.0] * 20 + [500.0] + [100.0] * 5
    judged = judge_daily(daily(values), "iqr")
    assert judged.flagged == (FIRST + timedelta(days=20),)
    result = judged.result("lines_are_usual", "lines", "look")
    assert result.passed
    assert "of the four weeks before flagged: 2026-01-25" in result.observed


def test_an_anomaly_says_what_was_expected_and_what_was_seen() -> None:
    result = judge_daily(daily([100.0] * 14 + [10.0]), "z_score").result(
        "lines_are_usual", "lines", "look"
    )
    assert (result.state, result.severity, result.failing) == ("failed", "warning", 1)
    assert result.expected == "lines: 70 to 130 (z_score)"
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


@pytest.mark.parametrize("detector", DETECTORS)
def test_an_ordinary_year_alarms_seldom_and_a_lost_half_day_is_found(
    detector: DetectorName,
) -> None:
    year = a_year(sunday=4500)
    assert len(flagged(daily(year), detector)) <= 5
    halved = daily([*year, 2000.0])
    assert judge_daily(halved, detector).judgement.state == "anomalous"


def flagged(series: Mapping[date, float], detector: DetectorName) -> tuple[date, ...]:
    """The days that are anomalous to those before them."""
    days = sorted(series)
    past = [{day: series[day] for day in days[max(0, n - 56) : n + 1]} for n in range(len(days))]
    judged = [judge_daily(known, detector, recent=False) for known in past]
    return tuple(one.day for one in judged if one.judgement.state == "anomalous")


def test_very_different_sundays_widen_the_z_score_and_are_flagged_by_the_iqr() -> None:
    year = daily(a_year(sunday=8000))
    assert flagged(year, "z_score") == ()
    by_iqr = flagged(year, "iqr")
    assert len(by_iqr) > 40
    assert {day.weekday() for day in by_iqr} == {6}


def test_the_season_compares_a_day_with_its_weekday_and_is_chosen_by_itself() -> None:
    year = a_year(sunday=8000)
    assert len(year) % 7 == 1
    assert len(flagged(daily(year), "automatic")) <= 4
    monday_like_a_sunday = daily([*year[:-1], 8000.0])
    judged = judge_daily(monday_like_a_sunday, "automatic").judgement
    assert (judged.state, judged.detector) == ("anomalous", "seasonal")
    assert judge_daily(monday_like_a_sunday, "z_score").judgement.state == "normal"
    sunday_like_a_monday = daily([*year[:-2], 4000.0])
    assert judge_daily(sunday_like_a_monday, "automatic").judgement.state == "anomalous"


def test_where_days_are_alike_the_z_score_is_chosen_and_the_iqr_among_outliers() -> None:
    chance = random.Random(7)
    alike = [chance.gauss(4000, 200) for _ in range(56)]
    assert judge("automatic", alike, 4000, at=FIRST).detector == "z_score"
    alike[10] = alike[33] = 9000
    assert judge("automatic", alike, 4000, at=FIRST).detector == "iqr"


def test_the_season_follows_a_trend_to_the_day() -> None:
    week = [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 900.0]
    history = [10_000 + 20.0 * n + week[n % 7] for n in range(56)]
    judged = seasonal(history, 10_000 + 20.0 * 56, lambda _: 1.0, at=FIRST)
    assert (judged.low, judged.high) == pytest.approx((11_119, 11_121))
    assert judged.state == "normal"


def test_the_season_needs_three_equal_weekdays() -> None:
    assert seasonal([100.0] * 20, 100, at=FIRST).state == "not enough history"
    assert seasonal([100.0] * 21, 100, at=FIRST).state == "normal"
    gap = [100.0] * 14 + [math.nan] + [100.0] * 6
    assert seasonal(gap, 100, at=FIRST).state == "not enough history"


def test_incidents_on_fewer_than_half_of_the_equal_weekdays_do_not_move_the_season() -> None:
    history = [1000.0] * 56
    for week in (1, 4, 6):
        history[7 * week] = 0.0
    judged = seasonal(history, 1000, at=FIRST)
    assert (judged.low, judged.high) == pytest.approx((905.132, 1094.868), abs=1e-3)


def test_an_hour_is_compared_with_its_hour_and_with_its_hour_of_the_week() -> None:
    start = datetime(2026, 1, 5)
    moments = [start + timedelta(hours=n) for n in range(24 * 28)]
    by_day = [100.0 + 50 * moment.hour for moment in moments]
    hour = timedelta(hours=1)
    night = seasonal(by_day, 1250, at=start + timedelta(days=28), step=hour)
    assert (night.state, seasonal(by_day, 100, at=moments[0], step=hour).state) == (
        "anomalous",
        "normal",
    )
    by_week = [n + 2000 * (m.weekday() == 6) for n, m in zip(by_day, moments, strict=True)]
    assert seasonal(by_week, 100, at=start + timedelta(days=28), step=hour).state == "normal"
    assert seasonal(by_week, 2100, at=start + timedelta(days=28), step=hour).state == "anomalous"


def test_what_every_month_does_on_one_day_is_expected_of_it() -> None:
    first = date(2026, 1, 1)
    chance = random.Random(7)
    year = {
        day: chance.gauss(9000 if day.day == 28 else 4000, 100)
        for day in (first + timedelta(days=n) for n in range(361 - 7 + 1))
    }
    paydays = [day for day in year if day.day == 28]
    states = [
        judge_daily({d: v for d, v in year.items() if d <= day}, "seasonal").judgement.state
        for day in paydays
    ]
    assert states[1:3] == ["anomalous"] * 2
    assert set(states[3:]) == {"normal"}
    missed = {d: v for d, v in year.items() if d <= paydays[-1]} | {paydays[-1]: 4000.0}
    assert judge_daily(missed, "seasonal").judgement.state == "anomalous"


@given(
    history=st.lists(st.integers(0, 10**6).map(float), min_size=21, max_size=56),
    value=st.integers(0, 10**6).map(float),
    shift=st.integers(0, 10**6).map(float),
)
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_range_moves_with_its_history(
    detector: DetectorName, history: list[float], value: float, shift: float
) -> None:
    here = judge(detector, history, value, lambda _: 0.5, at=FIRST)
    moved = [number + shift for number in history]
    there = judge(detector, moved, value + shift, lambda _: 0.5, at=FIRST)
    assert (there.low, there.high) == pytest.approx(
        (float(here.low or 0) + shift, float(here.high or 0) + shift), abs=1e-3
    )


@pytest.mark.parametrize("detector", DETECTORS)
def test_days_known_to_be_wrong_teach_nothing(detector: DetectorName) -> None:
    wrong = [FIRST + timedelta(days=n) for n in range(30, 36)]
    series = daily([1000.0 + n % 7 for n in range(56)] + [5000.0])
    poisoned = series | dict.fromkeys(wrong, 9000.0)
    judged = judge_daily(poisoned, detector, incidents=wrong)
    assert judged.judgement.state == "anomalous"
    assert judged.judgement.history == 50
    assert wrong[0] not in judged.flagged


def test_a_known_incident_does_not_alarm_and_says_why() -> None:
    judged = judge_daily(daily([100.0] * 14 + [10.0]), incidents=[FIRST + timedelta(days=14)])
    result = judged.result("lines_are_usual", "lines", "look", acknowledged="strike")
    assert (result.passed, result.failing) == (True, 0)
    assert "a known incident: strike" in result.observed


def test_a_chart_draws_from_least_to_greatest_and_dots_the_unknown() -> None:
    assert sparkline([0.0, 1.0, math.nan, 7.0]) == "▁▂·█"
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert sparkline([math.nan]) == "·"
    result = judge_daily(daily([100.0] * 40 + [10.0])).result("lines_are_usual", "lines", "look")
    assert result.chart == "█" * 27 + "▁"


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
    assert flagged(year, "z_score") == (date(2017, 11, 5), before_christmas)
    assert flagged(year, "iqr") == (date(2017, 7, 4), before_christmas)
    assert flagged(year, "automatic") == (
        date(2017, 7, 4), date(2017, 8, 1), date(2017, 11, 22), before_christmas,
    )  # fmt: skip


@pytest.mark.parametrize("detector", ["z_score", "iqr", "automatic"])
def test_whichever_day_of_a_real_year_is_lost_or_delivered_thrice_it_is_found(
    detector: DetectorName,
) -> None:
    series = sorted(lines_of_a_real_year().items())
    found = {0: 0, 3: 0}
    for i in range(MINIMUM_HISTORY, len(series)):
        for times in found:
            day, lines = series[i]
            faulty = dict(series[max(0, i - 56) : i]) | {day: lines * times}
            state = judge_daily(faulty, detector, recent=False).judgement.state
            found[times] += state == "anomalous"
    # By the others, thrice a day of few lines, after the holidays, is no more than a day of many.
    assert found == {0: 350, 3: 350 if detector == "automatic" else 349}
