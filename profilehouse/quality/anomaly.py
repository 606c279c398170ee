"""Anomalies: whether the newest number of a daily series is as its recent past lets expect.

Pure functions. The tested point is never part of what it is compared with. They know no weekdays
and no seasons: where Sundays differ, the range of z_score is as wide as the week, so an unusual
Sunday may pass; iqr flags them when they lie beyond its fences. Does not belong here: where the
numbers come from.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from profilehouse.contracts import Severity
from profilehouse.errors import ProfilehouseError
from profilehouse.quality.result import CheckResult, State

MINIMUM_HISTORY = 14
"""Fewest days that say something about the next one: two weeks."""
WINDOW = 56
"""Days looked back: eight weeks."""
LISTED = 5
"""Most past days that a text names."""


@dataclass(frozen=True)
class Judgement:
    """One number against its history.

    Attributes:
        state: `normal`, `anomalous`, or `not enough history`, which is neither.
        observed: the number.
        low: least that is expected, None without enough history.
        high: most that is expected, None without enough history.
        history: how many numbers it was compared with.
    """

    state: Literal["normal", "anomalous", "not enough history"]
    observed: float
    low: float | None
    high: float | None
    history: int


Detector = Callable[[Sequence[float], float], Judgement]
"""Judges a number by those before it. Numbers in the history that are not finite do not count."""


def z_score(
    history: Sequence[float], value: float, threshold: float = 3.0, least: float | None = None
) -> Judgement:
    """Expected is the mean, give or take `threshold` standard deviations (Shewhart's chart, 1931).

    Sensitive to slow series, but a past incident widens the range for as long as it is in it.

    Args:
        history: the numbers before, in any order.
        value: the number to judge.
        threshold: standard deviations (of the sample) that are still normal.
        least: a difference from the mean up to this is always normal, so neither tiny volumes nor
            a constant history alarm at every unit. By default what chance alone does to a count
            of that size: three times its square root (Poisson). Give one for what is no count.
    """
    known = [number for number in history if math.isfinite(number)]
    if len(known) < MINIMUM_HISTORY:
        return Judgement("not enough history", value, None, None, len(known))
    mean = statistics.fmean(known)
    margin = max(threshold * statistics.stdev(known), _least(least, mean))
    return _judged(value, mean - margin, mean + margin, len(known))


def iqr(
    history: Sequence[float], value: float, factor: float = 1.5, least: float | None = None
) -> Judgement:
    """Expected is from the first to the third quartile, and `factor` times their distance beyond.

    Tukey's fences (Exploratory Data Analysis, 1977), quartiles interpolated linearly. Up to a
    quarter of the history may be incidents without widening the range.

    Args:
        history: the numbers before, in any order.
        value: the number to judge.
        factor: interquartile ranges beyond the quartiles that are still normal.
        least: as for z_score, from the median.
    """
    known = [number for number in history if math.isfinite(number)]
    if len(known) < MINIMUM_HISTORY:
        return Judgement("not enough history", value, None, None, len(known))
    first, median, third = statistics.quantiles(known, n=4, method="inclusive")
    beyond, floor = factor * (third - first), _least(least, median)
    low, high = min(first - beyond, median - floor), max(third + beyond, median + floor)
    return _judged(value, low, high, len(known))


@dataclass(frozen=True)
class DailyJudgement:
    """The newest day of a series, and which days before it would have been flagged likewise."""

    day: date
    judgement: Judgement
    flagged: tuple[date, ...]

    def result(
        self, name: str, what: str, remedy: str, severity: Severity = "warning"
    ) -> CheckResult:
        """As the result of a check.

        Args:
            name: of the check.
            what: the number that is judged, for example `rows of purchases a day`.
            remedy: what to do when it is anomalous.
            severity: of an anomaly.
        """
        judged, low, high = self.judgement, self.judgement.low, self.judgement.high
        states: dict[str, State] = {"normal": "passed", "anomalous": "failed"}
        anomalous = judged.state == "anomalous"
        numbers: dict[str, float] = {"history_days": judged.history}
        if math.isfinite(judged.observed):
            numbers["observed"] = judged.observed
        if low is None or high is None:
            expected = f"nothing yet: {MINIMUM_HISTORY} earlier days are needed"
        else:
            expected = f"{what}: {low:,.6g} to {high:,.6g}"
            numbers |= {"expected_low": low, "expected_high": high}
            numbers["flagged_days"] = len(self.flagged)
        observed = f"{self.day}: {judged.observed:,.6g}"
        if judged.state == "not enough history":
            observed += f", not judged: not enough history ({judged.history} days)"
        if self.flagged:
            newest = ", ".join(str(day) for day in self.flagged[-LISTED:])
            observed += f"; earlier days flagged: {len(self.flagged)}, last {newest}"
        return CheckResult(
            name=name,
            state=states.get(judged.state, "not enough history"),
            severity=severity,
            description=f"{what}: the newest day is as the days before let expect",
            expected=expected,
            observed=observed,
            failing=int(anomalous),
            total=1,
            remedy=remedy,
            sample=({"day": str(self.day), "observed": f"{judged.observed:g}"},)
            if anomalous
            else (),
            numbers=numbers,
        )


def judge_daily(
    series: Mapping[date, float], detector: Detector = z_score, window: int = WINDOW
) -> DailyJudgement:
    """Judge the newest day of a series, and each day before it, by the days before that.

    Args:
        series: a number a day. A day that is not there is unknown, not zero: give the zeros.
        detector: judges one number, for example z_score or functools.partial(iqr, factor=3).
        window: days looked back, by the calendar.

    Raises:
        ProfilehouseError: when the series is empty.
    """
    if not series:
        raise ProfilehouseError("there is no day to judge yet: load some first")
    days = sorted(series)
    values = [series[day] for day in days]
    judgements = []
    for i, day in enumerate(days):
        oldest = bisect_left(days, day - timedelta(days=window))
        judgements.append(detector(values[oldest:i], values[i]))
    past = zip(days[:-1], judgements[:-1], strict=True)
    flagged = tuple(day for day, judged in past if judged.state == "anomalous")
    return DailyJudgement(days[-1], judgements[-1], flagged)


def _judged(value: float, low: float, high: float, history: int) -> Judgement:
    return Judgement("normal" if low <= value <= high else "anomalous", value, low, high, history)


def _least(given: float | None, centre: float) -> float:
    return 3 * math.sqrt(max(abs(centre), 1.0)) if given is None else given
