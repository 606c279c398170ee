"""The peer: the same star and profile table built the usual way, by dbt on DuckDB.

Belongs here: its environment, running it, and comparing its tables with ours. Its models lie in
peer_dbt/.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.process import environment, run
from benchmarks.results import Compared, Cost, Peer
from profilehouse.sources.retailer import Delivered

PROJECT = Path(__file__).resolve().parent / "peer_dbt"
REQUIREMENTS = PROJECT / "requirements.txt"
DATABASE = "peer.duckdb"
TABLES = (
    "dim_user",
    "dim_content",
    "dim_campaign",
    "dim_date",
    "fct_purchase",
    "fct_interaction",
    "profile",
)


def build(dbt: Path, folder: Path, sources: Path, delivered: Delivered, scratch: Path) -> Peer:
    """Build everything from the delivered files into an empty folder, and test it."""
    variables = {
        "sources": str(sources),
        "zone": delivered.timezone,
        "first_day": delivered.first_day.isoformat(),
        "last_day": delivered.last_day.isoformat(),
    }
    options = ["--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT)]
    options += ["--target-path", str(folder / "target"), "--log-path", str(folder / "logs")]
    options += ["--vars", msgspec.json.encode(variables).decode()]
    env = environment(scratch, PEER_DATABASE=str(folder / DATABASE))

    def command(verb: str) -> tuple[Cost, float]:
        cost = run([str(dbt), verb, *options], folder, env)
        results = msgspec.json.decode((folder / "target" / "run_results.json").read_bytes())
        return cost, results["elapsed_time"]

    built, models_seconds = command("run")
    tested, tests_seconds = command("test")
    return Peer(models_seconds, tests_seconds, built, tested)


def compare(ours: Path, peers: Path) -> list[Compared]:
    """Every table of both databases, row by row, in the columns that both have."""
    import duckdb  # noqa: PLC0415

    compared = []
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{ours}' AS ours (READ_ONLY)")
        connection.execute(f"ATTACH '{peers}' AS peer (READ_ONLY)")

        def columns(table: str) -> list[str]:
            return [name for name, *_ in connection.sql(f"DESCRIBE {table}").fetchall()]

        def count(query: str) -> int:
            [(rows,)] = connection.sql(f"SELECT count(*) FROM {query}").fetchall()
            return int(rows)

        for table in TABLES:
            mine, theirs = columns(f"ours.{table}"), set(columns(f"peer.{table}"))
            both = ", ".join(name for name in mine if name in theirs)
            left, right = (f"SELECT {both} FROM {side}.{table}" for side in ("ours", "peer"))
            compared.append(
                Compared(
                    table=table,
                    rows=count(f"ours.{table}"),
                    peer_rows=count(f"peer.{table}"),
                    different=count(f"({left} EXCEPT ALL {right})")
                    + count(f"({right} EXCEPT ALL {left})"),
                    columns_left_out=[name for name in mine if name not in theirs],
                )
            )
    return compared
