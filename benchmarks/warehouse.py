"""The warehouse measured: `python -m benchmarks.warehouse [--engine E] [--events N]`.

Loads drawn web events into fct_web_event, then a fresh batch, then late ones, each time with
dim_identity and fct_session brought up to date; and asks for a day and for a user. On DuckDB it
also tells how much of the fact each order on disk lets a question skip. Prints tables and writes
warehouse-ENGINE.json into data/benchmarks. Emulators show that it works and what memory it takes,
not what the real engines need.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from assets.warehouse import table_sql
from profilehouse.contracts import contract
from profilehouse.settings import Settings, load_settings
from profilehouse.warehouse import Warehouse, open_warehouse
from profilehouse.warehouse.ranges import FACT, load_ranges
from profilehouse.warehouse.visits import IDENTITY, SESSIONS, load_identity, load_sessions

if TYPE_CHECKING:
    from snowflake.connector import SnowflakeConnection

RESULTS = Path("data/benchmarks")
SCHEMA = contract("web_events").arrow_schema
EVENTS = {"duckdb": 10_000_000, "snowflake": 200_000, "bigquery": 200_000}
FRESH = 10_000
LATE_SHARES = (0.0001, 0.001, 0.01)
BATCH = 100_000
IN_A_VISIT = 8
"""Events of a visit, one a minute; every fourth visit has a login."""
DAYS = 60
LAYOUTS = {
    "as loaded": "",
    "by the contract's clusterBy": f"ORDER BY {', '.join(contract(FACT).cluster_by)}",
    "by user_id": "ORDER BY user_id",
    "in no order": "ORDER BY RANDOM()",
}
QUESTIONS = {
    "a day": "occurred_on = DATE '2026-02-01'",
    "a day's purchases": "occurred_on = DATE '2026-02-01' AND event_type = 'purchase'",
    "a user": "user_id = 'u77'",
}
_START = np.datetime64("2026-01-01", "us")
_KINDS = np.array(["page_view"] * 5 + ["click", "add_to_cart", "purchase"])


def events(first: int, end: int, total: int, late: bool = False) -> Iterator[pa.RecordBatch]:
    """Drawn events with offsets from first to end; late ones fall into visits that were before."""
    for begin in range(first, end, BATCH):
        offset = np.arange(begin, min(begin + BATCH, end))
        like = (offset * 1_000_003) % total if late else offset
        visit = like // IN_A_VISIT
        device = visit * 7919 % (total // 40 + 1)
        step = np.timedelta64(DAYS * 86_400 * 1_000_000 // total, "us")
        minute = (like % IN_A_VISIT) * np.timedelta64(60_000_000, "us")
        occurred = _START + visit * IN_A_VISIT * step + minute
        received = occurred + np.timedelta64(1 + 86_400 * late, "s")
        logged_in = (visit % 4 == 0) & (like % IN_A_VISIT == 3)
        texts = {
            "event_id": np.char.add("e", offset.astype(str)),
            "event_type": _KINDS[like % IN_A_VISIT],
            "anonymous_id": np.char.add("d", device.astype(str)),
            "session_id": np.char.add("s", visit.astype(str)),
            "content_id": np.char.add("c", (like % 5000).astype(str)),
            "url": np.char.add("/c/", (like % 5000).astype(str)),
        }
        users = pa.array(np.char.add("u", (device // 2).astype(str)))
        columns = {name: pa.array(values) for name, values in texts.items()} | {
            "user_id": pa.compute.if_else(pa.array(logged_in), users, None),
            "occurred_at": pa.array(occurred),
            "received_at": pa.array(received),
            "delivered_on": pa.array(received.astype("datetime64[D]")),
            "contract_version": pa.array(np.full(len(offset), "1.0.0")),
            "consent": pa.array(np.full(len(offset), True)),
            "topic_id": pa.array(np.full(len(offset), "drawn")),
            "log_partition": pa.array(np.zeros(len(offset), np.int64)),
            "log_offset": pa.array(offset),
        }
        yield pa.record_batch(
            [columns.get(f.name, pa.nulls(len(offset), f.type)).cast(f.type) for f in SCHEMA],
            schema=pa.schema([f.with_nullable(True) for f in SCHEMA]),
        )


def measure(warehouse: Warehouse, total: int) -> Iterator[tuple[str, float]]:
    """(what, seconds) of each step, in order."""
    end = 0

    def load(what: str, count: int, late: bool = False) -> Iterator[tuple[str, float]]:
        nonlocal end
        first, end = end, end + count

        def read(ranges: Mapping[int, tuple[int, int]]) -> Iterator[pa.RecordBatch]:
            return events(*ranges[0], total, late)

        fact = contract(FACT)
        yield (
            f"{what}: {FACT}",
            timed(
                lambda: load_ranges(
                    warehouse, fact, table_sql(FACT), "drawn", {0: (first, end)}, read, SCHEMA
                )
            ),
        )
        for table, bring in ((IDENTITY, load_identity), (SESSIONS, load_sessions)):
            yield (
                f"{what}: {table}",
                timed(
                    lambda t=table, b=bring: b(warehouse, contract(t), table_sql(t))  # type: ignore[misc]
                ),
            )

    yield from load(f"{total:,} events", total)
    yield from load(f"{FRESH:,} fresh events", min(FRESH, total))
    for share in LATE_SHARES:
        yield from load(f"{share:.2%} late events", int(total * share), late=True)
    day = f"SELECT COUNT(*) AS n FROM {FACT} WHERE occurred_on = DATE '2026-02-01'"
    user = f"SELECT COUNT(*) AS n FROM {FACT} WHERE user_id = 'u77'"
    yield "count a day's events", timed(lambda: warehouse.query(day))
    yield "count a user's events", timed(lambda: warehouse.query(user))


def skipped(file: Path) -> Iterator[tuple[str, str, int, int, float]]:
    """(layout, question, row groups read, row groups there are, seconds) of copies of the fact."""
    import duckdb  # noqa: PLC0415

    with duckdb.connect(str(file)) as connection:
        for layout, order in LAYOUTS.items():
            connection.execute(f"CREATE OR REPLACE TABLE copied AS FROM {FACT} {order}")
            for question, where in QUESTIONS.items():
                asked = f"SELECT SUM(value_cents), COUNT(*) FROM copied WHERE {where}"
                connection.execute(asked).fetchall()
                seconds = timed(lambda text=asked: connection.execute(text).fetchall())  # type: ignore[misc]
                plan = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {asked}").fetchall()
                told = json.loads(plan[0][1])["query"]
                yield (
                    layout,
                    question,
                    told["total_row_groups_scanned"],
                    told["total_row_groups_to_scan"],
                    seconds,
                )


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def url(engine: str, folder: str, stack: ExitStack) -> str:
    """Of an empty warehouse, on an emulator where the engine is none of this process."""
    if engine == "snowflake":
        from services.fakesnow import fakesnow_server  # noqa: PLC0415

        os.environ["SNOWFLAKE_PASSWORD"] = "any"
        return stack.enter_context(fakesnow_server()).url("BENCH", "STAR")
    if engine == "bigquery":
        from google.auth.credentials import AnonymousCredentials  # noqa: PLC0415
        from google.cloud import bigquery  # noqa: PLC0415

        from services.bigquery import PROJECT, bigquery_emulator  # noqa: PLC0415

        emulator = stack.enter_context(bigquery_emulator())
        bigquery.Client(
            PROJECT,
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options={"api_endpoint": emulator.endpoint},
        ).create_dataset(f"{PROJECT}.bench")
        return emulator.url("bench")
    return f"duckdb:{folder}/warehouse.duckdb"


def connected(settings: Settings) -> SnowflakeConnection:
    """To the emulator, which answers when it is done; Snowflake says within 45 s that it works."""
    from snowflake.connector import connect  # noqa: PLC0415

    from profilehouse.warehouse.on_snowflake import (  # noqa: PLC0415
        STATEMENT_SECONDS,
        connection_arguments,
    )

    return connect(**connection_arguments(settings), socket_timeout=STATEMENT_SECONDS)


def main() -> None:
    """Measure one engine."""
    parser = argparse.ArgumentParser(prog="benchmarks.warehouse")
    parser.add_argument("--engine", choices=EVENTS, default="duckdb")
    parser.add_argument("--events", type=int, help="by default ten million, on emulators fewer")
    given = parser.parse_args()
    total = given.events or EVENTS[given.engine]
    table = Table(title=f"{given.engine}: {total:,} web events", title_justify="left")
    table.add_column("")
    table.add_column("seconds", justify="right")
    seconds = {}
    layouts = Table(title="Row groups read, of all, by order on disk", title_justify="left")
    for column in ("rows lie", "asked for", "read", "of", "seconds"):
        layouts.add_column(column)
    read = []
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="benchmark-"))
        place = url(given.engine, folder, stack)
        settings = load_settings(warehouse=place)
        patient = partial(connected, settings) if given.engine == "snowflake" else None
        with open_warehouse(settings, patient) as warehouse:
            for what, took in measure(warehouse, total):
                seconds[what] = round(took, 3)
                table.add_row(what, f"{took:.2f}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        if given.engine == "duckdb":
            for *texts, took in skipped(Path(place.removeprefix("duckdb:"))):
                read.append((*texts, round(took, 4)))
                layouts.add_row(*map(str, texts), f"{took:.4f}")
    Console().print(table)
    Console().print(f"Highest memory of this process while loading: {peak:,} MiB")
    if read:
        Console().print(layouts)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"warehouse-{given.engine}.json").write_text(
        json.dumps(
            {"events": total, "seconds": seconds, "peak_mib": peak, "row_groups": read}, indent=2
        )
        + "\n",
        "utf-8",
    )


if __name__ == "__main__":
    main()
