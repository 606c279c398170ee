"""Anomalies: whether a number of a series is as the numbers before it let expect.

Pure functions. The judged number is never part of what it is compared with. Does not belong here:
where the numbers come from (metrics.py), or series of minutes (novelty.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from profilehouse.contract_quality import DetectorName
from profilehouse.contracts import Severity
from profilehouse.errors import ProfilehouseError
from profilehouse.quality.result import CheckResult, State

MINIMUM_HISTORY = 14
"""Fewest numbers that say something about the next one: two weeks of days."""
WINDOW = timedelta(days=56)
"""How long is looked back: eight weeks."""
MONTHS = timedelta(days=370)
"""How long is looked back for what recurs on a day of the month."""
SAME = 3
"""Fewest numbers of the same season (weekday, hour, day of the month) that say something."""
RECENT = 28
"""Numbers of the near past that are judged too and drawn: four weeks of days."""
DAY = timedelta(days=1)
SIGMA = 1.4826
"""The standard deviation in median absolute deviations, where numbers are normal."""
GAIN = 0.8
"""A season or a trend is believed where it makes the spread at most so many times as wide."""
MOST = 0.9
"""One weekday of seven that differs is seen in nine tenths of the distances, not in half."""
OUTLIER = 3.5
"""Modified Z-score beyond which a number is an outlier (Iglewicz and Hoaglin, 1993)."""

Numbers = NDArray[np.float64]
Moment = date | datetime
Floor = Callable[[float], float]
"""A difference from the expected number up to this is always normal; depends on that number."""


def of_count(expected: float) -> float:
    """What chance alone does to a count: three times its square root (Poisson)."""
    return 3 * math.sqrt(max(abs(expected), 1.0))


def of_share(rows: int) -> Floor:
    """What chance alone does to a percentage of so many rows: three deviations (binomial)."""

    def floor(expected: float) -> float:
        share = min(max(expected / 100, 1 / rows), 1 - 1 / rows) if rows > 1 else 0.5
        return 300 * math.sqrt(share * (1 - share) / max(rows, 1))

    return floor


def of_size(large: float) -> Floor:
    """What does no harm to a sum, a mean, a quantile or lateness: a quarter of it.

    What a line costs or how many units it has comes in steps, so its quantiles jump: a tenth of a
    large value of the column, and 1, are no harm either.
    """
    return lambda expected: max(abs(expected) / 4, large / 10, 1.0)


@dataclass(frozen=True)
class Judgement:
    """One number against its history.

    Attributes:
        state: `normal`, `anomalous`, or `not enough history`, which is neither.
        observed: the number; nan where it is unknown.
        low: least that is expected, None without enough history.
        high: most that is expected, None without enough history.
        history: how many numbers it was compared with.
        detector: that judged it.
    """

    state: Literal["normal", "anomalous", "not enough history"]
    observed: float
    low: float | None
    high: float | None
    history: int
    detector: DetectorName

    @property
    def beyond(self) -> float:
        """How far outside the range, in half its widths; 0 inside."""
        if self.low is None or self.high is None or self.state != "anomalous":
            return 0.0
        outside = max(self.observed - self.high, self.low - self.observed)
        return outside / max((self.high - self.low) / 2, 1e-9) if math.isfinite(outside) else 1e9


def z_score(
    history: Sequence[float], value: float, floor: Floor = of_count, threshold: float = 3.0
) -> Judgement:
    """Expected is the mean, give or take `threshold` standard deviations (Shewhart's chart, 1931).

    Sensitive to slow series, but a past incident widens the range for as long as it is in it.

    Args:
        history: the numbers before, in any order; those that are not finite do not count.
        value: the number to judge.
        floor: a difference from the mean up to this is always normal, so that neither tiny volumes
            nor a constant history alarm at every unit.
        threshold: standard deviations (of the sample) that are still normal.
    """
    known = _known(history)
    if len(known) < MINIMUM_HISTORY:
        return _unknown(value, len(known), "z_score")
    mean = float(known.mean())
    margin = max(threshold * float(known.std(ddof=1)), floor(mean))
    return _judged(value, mean - margin, mean + margin, len(known), "z_score")


def iqr(
    history: Sequence[float], value: float, floor: Floor = of_count, factor: float = 2.0
) -> Judgement:
    """Expected is from the first to the third quartile, and `factor` times their distance beyond.

    Tukey's fences (Exploratory Data Analysis, 1977), quartiles interpolated linearly. Up to a
    quarter of the history may be incidents without widening the range. Factor 2, as shops differ
    by weekday: docs/anomalies.md has what 1.5 and 3 would flag of a real year.

    Args:
        history: the numbers before, in any order; those that are not finite do not count.
        value: the number to judge.
        floor: as for z_score, from the median.
        factor: interquartile ranges beyond the quartiles that are still normal.
    """
    known = _known(history)
    if len(known) < MINIMUM_HISTORY:
        return _unknown(value, len(known), "iqr")
    first, median, third = np.quantile(known, [0.25, 0.5, 0.75]).tolist()
    beyond, least = factor * (third - first), floor(median)
    low, high = min(first - beyond, median - least), max(third + beyond, median + least)
    return _judged(value, low, high, len(known), "iqr")


def seasonal(
    history: Sequence[float],
    value: float,
    floor: Floor = of_count,
    *,
    at: Moment,
    step: timedelta = DAY,
    threshold: float = 5.0,
) -> Judgement:
    """Expected is the median of the same season, moved along the trend, give or take the spread.

    The season of a day is its weekday; of an hour its hour of the day or of the week, whichever
    leaves less. The trend is the median slope between all pairs of numbers of the same season
    (Hirsch, Slack and Smith, 1982), believed where it narrows the spread. The spread is 1.4826
    times the median distance of the numbers of eight weeks from what the others of their season
    let expect. Fewer than half of a season may be incidents without moving the range. A day of the
    month whose last three numbers all lay beyond the range on one side is expected to do so again,
    by the median of what it did.

    Args:
        history: the numbers before, one a step without gaps, the last one a step before `at`;
            those that are not finite are unknown.
        value: the number to judge.
        floor: as for z_score, from the expected number.
        at: when the number is from.
        step: between two numbers, a day or an hour.
        threshold: spreads from the expected number that are still normal.
    """
    values = np.asarray(history, dtype=np.float64)
    recent = values[-(WINDOW // step) :]
    fits = [_fit(recent, labels) for labels in _seasons(len(recent), at, step)]
    fitted = [fit for fit in fits if fit is not None]
    known = int(np.isfinite(recent).sum())
    if known < MINIMUM_HISTORY or not fitted:
        return _unknown(value, known, "seasonal")
    fit = min(fitted, key=lambda fit: fit.spread)
    margin = max(threshold * fit.spread, floor(fit.expected))
    expected = fit.expected
    if step >= DAY:
        expected += _of_day_of_month(values, at, margin)
        margin = max(margin, floor(expected))
    return _judged(value, expected - margin, expected + margin, known, "seasonal")


def automatic(
    history: Sequence[float],
    value: float,
    floor: Floor = of_count,
    *,
    at: Moment,
    step: timedelta = DAY,
) -> Judgement:
    """Judge by the detector that suits the history.

    The seasonal one where season and trend narrow by a fifth what half or nine tenths of the
    numbers keep within; else the Z-score where no
    number of the history is an outlier, and the IQR where one is.

    Args: as for seasonal.
    """
    recent = np.asarray(history, dtype=np.float64)[-(WINDOW // step) :]
    known = _known(recent)
    if len(known) < MINIMUM_HISTORY:
        return _unknown(value, len(known), "automatic")
    distances = np.abs(known - np.median(known))
    plain = SIGMA * float(np.median(distances))
    fits = [_fit(recent, labels) for labels in _seasons(len(recent), at, step)]
    wide = GAIN * float(np.quantile(distances, MOST))
    if any(fit and (fit.spread <= GAIN * plain or fit.wide <= wide) for fit in fits) and wide > 0:
        return seasonal(history, value, floor, at=at, step=step)
    if float(distances.max()) <= OUTLIER * max(plain, floor(float(np.median(known))) / 3):
        return z_score(known.tolist(), value, floor)
    return iqr(known.tolist(), value, floor)


def judge(
    detector: DetectorName,
    history: Sequence[float],
    value: float,
    floor: Floor = of_count,
    *,
    at: Moment,
    step: timedelta = DAY,
) -> Judgement:
    """Judge a number by a detector's name; the numbers are as for seasonal.

    A number that is unknown is not judged.
    """
    recent = history[-(WINDOW // step) :]
    if math.isnan(value):
        return _unknown(value, len(_known(recent)), detector)
    match detector:
        case "z_score":
            return z_score(recent, value, floor)
        case "iqr":
            return iqr(recent, value, floor)
        case "seasonal":
            return seasonal(history, value, floor, at=at, step=step)
        case "automatic":
            return automatic(history, value, floor, at=at, step=step)


@dataclass(frozen=True)
class DailyJudgement:
    """One day of a series, and which days of the four weeks before it would have been flagged.

    Attributes:
        day: the one that was judged.
        judgement: of it.
        flagged: earlier ones that are anomalous to those before them, known incidents left out.
        recent: the numbers of four weeks, the day's own last; nan where unknown.
    """

    day: date
    judgement: Judgement
    flagged: tuple[date, ...]
    recent: tuple[float, ...]

    @property
    def chart(self) -> str:
        """The four weeks as a line."""
        return sparkline(self.recent)

    def result(
        self,
        name: str,
        what: str,
        remedy: str,
        severity: Severity = "warning",
        acknowledged: str | None = None,
    ) -> CheckResult:
        """As the result of a check.

        Args:
            name: of the check.
            what: the number that is judged, for example `rows of purchases a day`.
            remedy: what to do when it is anomalous.
            severity: of an anomaly.
            acknowledged: why the day is known to be odd, if it is: then it does not fail.
        """
        judged, low, high = self.judgement, self.judgement.low, self.judgement.high
        anomalous = judged.state == "anomalous"
        states: dict[str, State] = {
            "normal": "passed",
            "anomalous": "failed" if acknowledged is None else "passed",
        }
        numbers: dict[str, float] = {"history_days": judged.history}
        if math.isfinite(judged.observed):
            numbers["observed_value"] = judged.observed
        if low is None or high is None:
            expected = f"nothing yet: {MINIMUM_HISTORY} earlier days are needed"
        else:
            expected = f"{what}: {low:,.6g} to {high:,.6g} ({judged.detector})"
            numbers |= {"expected_low": low, "expected_high": high}
            numbers["flagged_days"] = len(self.flagged)
        observed = f"{self.day}: {judged.observed:,.6g}"
        if math.isnan(judged.observed):
            observed = f"{self.day}: not judged: too few rows"
        elif judged.state == "not enough history":
            observed += f", not judged: not enough history ({judged.history} days)"
        elif anomalous and acknowledged is not None:
            observed += f", a known incident: {acknowledged}"
        if self.flagged:
            days = ", ".join(map(str, self.flagged))
            observed += f"; of the four weeks before flagged: {days}"
        return CheckResult(
            name=name,
            state=states.get(judged.state, "not enough history"),
            severity=severity,
            description=f"{what}: the day is as the days before let expect",
            expected=expected,
            observed=observed,
            failing=int(anomalous and acknowledged is None),
            total=1,
            remedy=remedy,
            sample=({"day": str(self.day), "observed": f"{judged.observed:g}"},)
            if anomalous
            else (),
            numbers=numbers,
            chart=self.chart,
        )


def judge_daily(
    series: Mapping[date, float],
    detector: DetectorName = "automatic",
    day: date | None = None,
    incidents: Collection[date] = (),
    floor: Floor = of_count,
    *,
    recent: bool = True,
) -> DailyJudgement:
    """Judge a day of a series by the days before it.

    Args:
        series: a number a day. A day that is not there is unknown, not zero: give the zeros.
        detector: judges one number.
        day: the newest by default.
        incidents: days known to be wrong or odd: no part of any history.
        floor: a difference that is always normal.
        recent: also judge the four weeks before, each by the days before it.

    Raises:
        ProfilehouseError: when the series is empty.
    """
    if not series:
        raise ProfilehouseError("there is no day to judge yet: load some first")
    last = max(series) if day is None else day
    first = min(*series, last - DAY)
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    values = [series.get(at, math.nan) for at in days]
    trained = [math.nan if at in incidents else v for at, v in zip(days, values, strict=True)]

    def judged(i: int) -> Judgement:
        past = trained[max(0, i - MONTHS // DAY) : i]
        return judge(detector, past, values[i], floor, at=days[i])

    end = len(days) - 1
    flagged = tuple(
        days[i]
        for i in range(max(0, end - RECENT) if recent else end, end)
        if days[i] in series and days[i] not in incidents and judged(i).state == "anomalous"
    )
    return DailyJudgement(last, judged(end), flagged, tuple(values[-RECENT:]))


def sparkline(numbers: Sequence[float]) -> str:
    """The numbers as a line of blocks from the least to the greatest; a dot where unknown."""
    blocks = "▁▂▃▄▅▆▇█"
    known = [number for number in numbers if math.isfinite(number)]
    least, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    return "".join(
        blocks[round((number - least) / span * 7) if span else 0] if math.isfinite(number) else "·"
        for number in numbers
    )


@dataclass(frozen=True)
class _Fit:
    """What a season and a trend let expect of the next number, and how far numbers are off.

    Attributes:
        expected: the next number.
        spread: how far off most are, as a standard deviation.
        wide: how far off nine tenths are at most.
    """

    expected: float
    spread: float
    wide: float


def _seasons(steps: int, at: Moment, step: timedelta) -> list[NDArray[np.int64]]:
    """For each kind of season, the season of every step before a moment, and of the moment last."""
    moments = [at - n * step for n in range(steps, -1, -1)]
    weekdays = np.array([moment.weekday() for moment in moments])
    if step >= DAY:
        return [weekdays]
    hours = np.array([m.hour if isinstance(m, datetime) else 0 for m in moments])
    return [hours, 24 * weekdays + hours]


def _fit(values: Numbers, labels: NDArray[np.int64]) -> _Fit | None:
    """The season's fit, with a trend where it narrows the spread; None where too few are alike."""
    places = np.arange(-len(values), 0, dtype=np.float64)
    groups = [
        np.flatnonzero((labels[:-1] == label) & np.isfinite(values)) for label in np.unique(labels)
    ]
    own = np.flatnonzero((labels[:-1] == labels[-1]) & np.isfinite(values))
    groups = [group for group in groups if len(group) >= SAME]
    if len(own) < SAME:
        return None
    slopes = []
    for group in groups:
        earlier, later = np.triu_indices(len(group), 1)
        rise = values[group][later] - values[group][earlier]
        slopes.append(rise / (places[group][later] - places[group][earlier]))
    slope = float(np.median(np.concatenate(slopes)))
    level, along = (_fitted(v, groups, own) for v in (values, values - slope * places))
    return along if along.spread <= GAIN * level.spread else level


def _fitted(values: Numbers, groups: Sequence[NDArray[np.int64]], own: NDArray[np.int64]) -> _Fit:
    """The median of its own season, and the distances of all from the median of others alike."""
    off = [np.abs(values[group] - _median_of_others(values[group])) for group in groups]
    distances = np.concatenate(off)
    return _Fit(
        expected=float(np.median(values[own])),
        spread=SIGMA * float(np.median(distances)),
        wide=float(np.quantile(distances, MOST)),
    )


def _median_of_others(values: Numbers) -> Numbers:
    """For each number, the median of the others."""
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.arange(len(values))
    ordered, others = values[order], len(values) - 1
    low, high = (others - 1) // 2, others // 2
    medians: Numbers = (ordered[low + (low >= ranks)] + ordered[high + (high >= ranks)]) / 2
    return medians


def _of_day_of_month(values: Numbers, at: Moment, margin: float) -> float:
    """What this day of the month does to a number: 0 unless its last three all did much alike."""
    off = []
    for ago in range(28, len(values) + 1):
        if (at - timedelta(days=ago)).day != at.day or not math.isfinite(values[-ago]):
            continue
        place = len(values) - ago
        near = values[[n for n in range(place % 7, len(values), 7) if 0 < abs(n - place) <= 28]]  # noqa: PLR2004
        if np.isfinite(near).any():
            off.append(float(values[place] - np.nanmedian(near)))
    last = off[:SAME]
    alike = all(d > margin for d in last) or all(d < -margin for d in last)
    return float(np.median(off)) if len(last) == SAME and alike else 0.0


def _known(history: Sequence[float] | Numbers) -> Numbers:
    values = np.asarray(history, dtype=np.float64)
    return values[np.isfinite(values)]


def _judged(
    value: float, low: float, high: float, history: int, detector: DetectorName
) -> Judgement:
    state: Literal["normal", "anomalous"] = "normal" if low <= value <= high else "anomalous"
    return Judgement(state, value, low, high, history, detector)


def _unknown(value: float, history: int, detector: DetectorName) -> Judgement:
    return Judgement("not enough history", value, None, None, history, detector)
