"""Whether the metrics of a delivery day are usual: rules on history, and all metrics together.

Belongs here: judging measured numbers and saying so. Does not belong here: measuring (metrics.py)
or deciding on one number (anomaly.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import date

from profilehouse.contract_quality import DetectorName, Incident
from profilehouse.quality.anomaly import DailyJudgement, judge_daily
from profilehouse.quality.metrics import Measured, Metric, asked_for, floor_of, judged_numbers
from profilehouse.quality.result import CheckResult, sample_of
from profilehouse.quality.rules import HistoryRule

FAR = 1.0
"""Of many numbers one is unusual that is beyond its range by half the range's width: where a day
has a hundred of them, each may otherwise be so once in a while."""
EVERY_METRIC = "every_metric_is_usual"


def check_rule(
    rule: HistoryRule,
    measured: Measured,
    day: date,
    incidents: Collection[Incident] = (),
    *,
    recent: bool = True,
) -> CheckResult:
    """Judge a day by one rule of a contract.

    Args:
        rule: the rule.
        measured: the history, the day included.
        day: that is judged.
        incidents: days that teach nothing; their own alarms are acknowledged.
        recent: where the rule has one metric, also say which of the four weeks before were odd.
    """
    known = {incident.partition: incident.reason for incident in incidents}
    metrics = asked_for(rule.demand, measured)
    demand, recent = rule.demand, recent and len(metrics) == 1
    judged = _judged(metrics, measured, day, known, demand.detector, demand.least, recent=recent)
    if len(judged) > 1:
        return _of_many(rule.name, rule.description, rule.remedy, judged, day, known.get(day))
    [one] = judged.values() or [judge_daily({day: float("nan")})]
    result = one.result(rule.name, rule.description, rule.remedy, acknowledged=known.get(day))
    return replace(result, severity=rule.severity)


def check_all(
    measured: Measured, day: date, remedy: str, incidents: Collection[Incident] = ()
) -> CheckResult:
    """Judge a day by every metric there is; those far beyond their range are named together.

    Of rows by value only the shares count: with all rows fewer, each of them is.
    """
    known = {incident.partition: incident.reason for incident in incidents}
    metrics = [m for m in sorted(measured) if not (m.name == "rows" and m.value)]
    judged = _judged(metrics, measured, day, known)
    what = "Every metric of the newest day is as its history lets expect"
    return _of_many(EVERY_METRIC, what, remedy, judged, day, known.get(day))


def _judged(
    metrics: Collection[Metric],
    measured: Measured,
    day: date,
    known: Mapping[date, str],
    detector: DetectorName = "automatic",
    least: float | None = None,
    *,
    recent: bool = False,
) -> dict[Metric, DailyJudgement]:
    return {
        metric: judge_daily(
            judged_numbers(metric, measured) or {day: float("nan")},
            detector,
            day,
            known.keys(),
            floor_of(metric, measured, day, least),
            recent=recent,
        )
        for metric in metrics
    }


def _of_many(
    name: str,
    what: str,
    remedy: str,
    judged: Mapping[Metric, DailyJudgement],
    day: date,
    acknowledged: str | None,
) -> CheckResult:
    """One result of several metrics, by those that are far beyond their range."""
    said = {metric: one.judgement for metric, one in judged.items()}
    known = [metric for metric, one in said.items() if one.state != "not enough history"]
    far = sorted((m for m in known if said[m].beyond >= FAR), key=lambda m: -said[m].beyond)
    failed = bool(far) and acknowledged is None
    unknown = len(said) - len(known)
    observed = f"{day}: {len(far):,} of {len(known):,} metrics are far beyond their range"
    if far:
        observed += f", the farthest is {far[0]}"
    if unknown:
        observed += f"; {unknown:,} have not enough history"
    if far and acknowledged is not None:
        observed += f"; a known incident: {acknowledged}"
    return CheckResult(
        name=name,
        state="failed" if failed else "passed" if known else "not enough history",
        severity="warning",
        description=what,
        expected="each metric within twice the range that its history lets expect",
        observed=observed,
        failing=len(far) if failed else 0,
        total=len(known),
        remedy=remedy,
        sample=sample_of(
            (
                {
                    "metric": str(metric),
                    "observed": f"{said[metric].observed:,.6g}",
                    "expected": f"{said[metric].low:,.6g} to {said[metric].high:,.6g}",
                    "by": said[metric].detector,
                }
                for metric in far
            ),
            (),
        ),
        numbers={"unusual_metrics": len(far), "metrics": len(known)},
        chart=f"{far[0]}: {judged[far[0]].chart}" if far else "",
    )
