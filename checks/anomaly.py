"""Anomaly: days unlike the days before, by Z-score and by IQR over the daily history.

A day that the business zone has no delivery of (a holiday) has zeros and counts as such.
"""

from collections.abc import Iterator, Mapping
from datetime import date
from functools import partial

import dagster as dg

from assets.warehouse import POOL
from checks._common import reported, spec
from profilehouse.platform import Platform
from profilehouse.quality.anomaly import Detector, iqr, judge_daily, z_score
from profilehouse.warehouse import Warehouse

DETECTORS: dict[str, Detector] = {"z_score": z_score, "iqr": partial(iqr, factor=2.0)}
"""IQR with factor 2, as shops differ by weekday: over a real year of lines a day, it flags 2 days
and any day that is lost. Tukey's 1.5 flags 9; his 3 misses a third of the lost days."""

RECORDS = "daily_records"
LOGS = ("purchases", "events")
"""Tables of the lake with records on every ordinary day; the other sources deliver now and then."""
METRICS: dict[str, dict[str, tuple[str, str]]] = {
    "fct_purchase": {
        "daily_lines": ("COUNT(*)", "lines bought a delivery day"),
        "daily_value": ("COALESCE(SUM(value_cents), 0)", "cents taken a delivery day"),
        "daily_buyers": ("COUNT(DISTINCT user_key)", "users buying a delivery day"),
    },
    "fct_interaction": {
        "daily_clicks": ("COUNT_IF(event_type = 'click')", "clicks a delivery day"),
    },
}
"""For each fact: its daily metrics as (SQL, words)."""


def anomaly_checks() -> list[dg.AssetChecksDefinition]:
    """For each log and each fact, every metric by every detector."""
    return [
        *(_landed(topic) for topic in LOGS),
        *(_daily(table, metrics) for table, metrics in METRICS.items()),
    ]


def _landed(topic: str) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["lake", topic])
    words = {RECORDS: f"records of {topic} a delivery day"}

    @dg.multi_asset_check(specs=_specs(key, words), name=f"days_unlike_others_in_{topic}")
    def days_unlike_others(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        rows = platform.lake().read("deliveries", columns=["delivered_on", "records"], topic=topic)
        days, records = (column.to_pylist() for column in rows.columns)
        series = dict(zip(days, map(float, records), strict=True))
        yield from _judged(key, words, {RECORDS: series})

    return days_unlike_others


def _daily(table: str, metrics: Mapping[str, tuple[str, str]]) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", table])

    words = {metric: said for metric, (_, said) in metrics.items()}

    @dg.multi_asset_check(
        specs=_specs(key, words), name=f"days_unlike_others_in_{table}", pool=POOL
    )
    def days_unlike_others(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        with platform.warehouse() as warehouse:
            series = _series(warehouse, table, metrics)
        yield from _judged(key, words, series)

    return days_unlike_others


def _specs(key: dg.AssetKey, words: Mapping[str, str]) -> list[dg.AssetCheckSpec]:
    return [
        spec(
            key,
            _name(metric, detector),
            f"The newest day's {said} are as the days before let expect",
            "warning",
        )
        for metric, said in words.items()
        for detector in DETECTORS
    ]


def _judged(
    key: dg.AssetKey, words: Mapping[str, str], series: Mapping[str, Mapping[date, float]]
) -> Iterator[dg.AssetCheckResult]:
    for metric, said in words.items():
        for name, detector in DETECTORS.items():
            result = judge_daily(series[metric], detector).result(
                _name(metric, name),
                said,
                f"See whether the files of that day are whole and {key.to_user_string()} holds"
                " them once; if the day was unusual in fact, nothing is to be done",
            )
            yield reported(key, result)


def _name(metric: str, detector: str) -> str:
    return f"{metric}_are_usual_by_{detector}"


def _series(
    warehouse: Warehouse, table: str, metrics: Mapping[str, tuple[str, str]]
) -> dict[str, dict[date, float]]:
    """Each metric by loaded delivery day; a loaded day without rows has zeros."""
    values = ", ".join(f"{sql} AS {metric}" for metric, (sql, _) in metrics.items())
    rows = warehouse.query(
        f"SELECT delivered_on, {values} FROM {table} GROUP BY delivered_on"  # noqa: S608
    ).to_pylist()
    loaded = warehouse.query(
        "SELECT delivered_on FROM load_ledger WHERE table_name = ?", (table,)
    ).column("delivered_on")
    series = {metric: dict.fromkeys(loaded.to_pylist(), 0.0) for metric in metrics}
    for row in rows:
        for metric in metrics:
            series[metric][row["delivered_on"]] = float(row[metric])
    return series
