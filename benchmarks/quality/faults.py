"""Faults put into days of a real year, and the days as they are: what the rules on history say.

`python -m benchmarks.quality.faults WAREHOUSE.duckdb [--every N] [--json FILE]`, after `make demo`.
Each Nth day is judged as it is and with each fault, by the days before it alone. These are the
rules of last resort: exact checks of completeness and consistency name most of these faults
earlier (tests/integration/test_faults.py).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
from rich.console import Console
from rich.table import Table

from profilehouse.contracts import contract
from profilehouse.quality.metrics import Measured, Metric, measure
from profilehouse.quality.rules import history_rules
from profilehouse.quality.sql import ArrowSource
from profilehouse.quality.usual import check_all, check_rule

TABLE = contract("fct_purchase")
LEARNT = 56
"""Days that are only learnt from."""
GOAL = 0.01
"""Share of clean days that may raise an alarm."""
DAY_OF = "SELECT * FROM year.fct_purchase WHERE delivered_on = $day"
BUSIEST = "SELECT mode(hour(occurred_at)) FROM year.fct_purchase WHERE delivered_on = $day"
FAULTS: Mapping[str, str] = {
    "the busiest hour is dropped": f"{DAY_OF} AND hour(occurred_at) <> ({BUSIEST})",
    "half of the rows are lost": f"{DAY_OF} AND line % 2 = 0",
    "the file is there twice": f"{DAY_OF} UNION ALL {DAY_OF}",
    "the day before is replayed": f"{DAY_OF} UNION ALL SELECT * REPLACE ($day AS delivered_on)"
    " FROM year.fct_purchase WHERE delivered_on = $day - 1",
    "times are 7 hours off": "SELECT * REPLACE (occurred_at + INTERVAL 7 HOUR AS occurred_at)"
    f" FROM ({DAY_OF})",
    "times are 1 hour off": "SELECT * REPLACE (occurred_at + INTERVAL 1 HOUR AS occurred_at)"
    f" FROM ({DAY_OF})",
    "quantity and value are swapped": "SELECT * REPLACE (quantity AS value_cents, value_cents AS"
    f" quantity) FROM ({DAY_OF})",
    "prices are scaled by 100": "SELECT * REPLACE (value_cents * 100 AS value_cents)"
    f" FROM ({DAY_OF})",
    "the largest category is blank": "SELECT * REPLACE (NULLIF(category, (SELECT mode(category)"
    " FROM year.fct_purchase WHERE delivered_on = $day)) AS category)"
    f" FROM ({DAY_OF})",
    "the catalog is lost": f"SELECT * REPLACE (NULL AS category) FROM ({DAY_OF})",
}


def main() -> None:
    """Judge, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("warehouse", type=Path)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{asked.warehouse}' AS year (READ_ONLY)")
        found = run(connection, asked.every)
    clean = found["clean"]
    table = Table(title=f"Faults in {found['faulty_days']} days: how many days each rule named")
    for column in ("fault", "named", "by"):
        table.add_column(column)
    for fault, said in found["faults"].items():
        by = ", ".join(f"{name} {n}" for name, n in said["by"].items())
        table.add_row(fault, f"{said['days']} of {found['faulty_days']}", by)
    console = Console()
    console.print(table)
    share = clean["alarms"] / clean["judgements"]
    met = "met" if share <= GOAL else "missed"
    console.print(
        f"Clean: {clean['alarms']} alarms in {clean['judgements']:,} judgements"
        f" ({share:.2%}; goal {GOAL:.0%}: {met}), on {len(clean['days'])} of"
        f" {clean['judged_days']} days: {clean['days']}"
    )
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def run(connection: duckdb.DuckDBPyConnection, every: int) -> dict[str, Any]:
    """What the rules say of all days as they are, and of each Nth day with each fault.

    Args:
        connection: with the warehouse attached as `year`.
        every: N.
    """
    connection.execute("CREATE VIEW fct_purchase AS SELECT * FROM year.fct_purchase")
    source = ArrowSource(connection)
    rows = connection.execute("SELECT DISTINCT delivered_on FROM fct_purchase").fetchall()
    present = {row[0] for row in rows}
    span = range((max(present) - min(present)).days + 1)
    days = [min(present) + timedelta(days=n) for n in span]
    year = measure(source, TABLE, days)
    judged = days[LEARNT:]
    clean = {str(day): alarms(_until(year, day), day) for day in judged}
    faulty = [day for day in judged[::every] if day in present and day - timedelta(1) in present]
    faults: dict[str, Any] = {}
    for fault, select in FAULTS.items():
        by: Counter[str] = Counter()
        named = 0
        for day in faulty:
            sql = select.replace("$day", f"DATE '{day}'")
            connection.execute(f"CREATE OR REPLACE VIEW fct_purchase AS {sql}")
            names = alarms(_with(year, measure(source, TABLE, [day], year.keys()), day), day)
            named += bool(names)
            by.update(names)
        faults[fault] = {"days": named, "by": dict(by.most_common())}
    return {
        "clean": {
            "judgements": len(judged) * (len(history_rules(TABLE)) + 1),
            "judged_days": len(judged),
            "alarms": sum(map(len, clean.values())),
            "days": {day: names for day, names in clean.items() if names},
        },
        "faulty_days": len(faulty),
        "faults": faults,
    }


def alarms(measured: Measured, day: date) -> Sequence[str]:
    """The rules that call a day unusual."""
    results = [check_rule(rule, measured, day, recent=False) for rule in history_rules(TABLE)]
    results.append(check_all(measured, day, ""))
    return [result.name for result in results if not result.passed]


def _until(measured: Measured, day: date) -> Measured:
    return {m: {at: n for at, n in series.items() if at <= day} for m, series in measured.items()}


def _with(measured: Measured, instead: Measured, day: date) -> Measured:
    """The history before a day, and another day's numbers."""
    before = _until(measured, day - timedelta(1))
    metrics: set[Metric] = before.keys() | instead.keys()
    return {metric: before.get(metric, {}) | instead.get(metric, {}) for metric in metrics}


if __name__ == "__main__":
    main()
