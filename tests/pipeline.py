"""A few real days of the retailer and the daily job on them, for tests of the whole platform.

Belongs here: delivering files, running the job in one process and reading all that it left. Does
not belong here: any test.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any
from uuid import uuid4

import dagster as dg
import pyarrow as pa

from platform_defs.build import build_defs
from platform_defs.partitions import daily_partitions
from platform_defs.schedules import CHECK_JOB, DAILY_JOB
from profilehouse.contracts import contracts_of
from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration
from profilehouse.settings import Settings
from profilehouse.sources.retailer import SOURCES, TIMEZONE, deliver_year

TODAY = date(2026, 3, 18)
DAYS = [date(2025, 3, 16) + timedelta(days=37 + n) for n in range(4)]
"""Four days with purchases, mailings, redemptions and changes of demographics."""
DAILY = ("purchases", "mailings", "redemptions")
LOAD_ONLY = "load_without_checks"
LOAD_TIMES = ("landed_at",)
"""Columns that say when something was loaded, the only ones that two equal loads differ in."""
LAKE_TABLES = [
    *(source.name for source in contracts_of("sources")),
    "events",
    "dead_letters",
    "deliveries",
]
WAREHOUSE_TABLES = [
    *(
        table.name
        for table in contracts_of("warehouse")
        if table.name
        not in ("fct_web_event", "dim_identity", "fct_session", "web_load_ledger", "metric_history")
    ),
    "profile",
]

Record = dict[str, Any]
State = dict[str, list[str]]
"""Every table by name, as its rows in words: equal words are equal values of equal types."""


def deliver(shared: Path, folder: Path) -> None:
    """Deliver DAYS below `folder`; they are cut out of the year once for all tests.

    Kept are every tenth household and those that redeemed a coupon, and what they bought of the
    catalog, so that it lacks what the real one lacks of it.

    Args:
        shared: a folder that all tests of a session have.
        folder: what it is made of must not be there yet.
    """
    cut = shared / "retailer-cut"
    if not cut.exists():
        year = shared / "retailer-year"
        deliver_year(year, TIMEZONE, TODAY)
        _cut(year, cut)
        rmtree(year)
    copytree(cut, folder)


@dataclass(frozen=True)
class Ran:
    """What one run of a job said.

    Attributes:
        success: whether Dagster calls the run a success.
        errors: the one error a user has to read, by step that failed.
        failing: severity of each failing check, by "asset check".
        passed: names of all other checks that ran, likewise.
        made: the assets that were materialized.
        metadata: numbers and words of each check, by "asset check".
    """

    success: bool
    errors: dict[str, str]
    failing: dict[str, str]
    passed: set[str]
    made: set[str]
    metadata: dict[str, dict[str, Any]]


class Installation:
    """A platform with embedded engines in a folder of its own, and what its sources deliver."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        """Below `folder`: sources/, lake/, profiles/ and the others, made when needed.

        Args:
            folder: its place; the lake in it cannot be moved.
            changes: settings that differ.
        """
        self.folder = folder
        self.sources = folder / "sources"
        self.settings = Settings(
            **{
                "sources": str(self.sources),
                "lake": str(folder / "lake"),
                "warehouse": f"duckdb:{folder}/warehouse.duckdb",
                "profiles": f"lmdb:{folder}/profiles",
                "data_docs": str(folder / "data_docs"),
                "timezone": TIMEZONE,
                "first_day": DAYS[0],
                **changes,
            },
            _env_file=None,
        )
        self.platform = Platform(self.settings)

    # What the sources deliver

    def files(self, source: str) -> dict[date, Path]:
        """The delivered files of a source, by day."""
        found = (self.sources / source).glob("????-??-??.jsonl*")
        return {date.fromisoformat(path.name[:10]): path for path in sorted(found)}

    def records(self, source: str, day: date) -> list[Record]:
        """The records that a source delivered for a day."""
        return [json.loads(line) for line in _content(self.files(source)[day]).splitlines()]

    def deliver(self, source: str, day: date, records: Iterable[Record | bytes]) -> Path:
        """Put a file in the place of a day's file; a record given as bytes is a line as it is."""
        self.withhold(source, day)
        path = self.sources / source / f"{day}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (r if isinstance(r, bytes) else json.dumps(r).encode() for r in records)
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    def withhold(self, source: str, day: date) -> dict[Path, bytes]:
        """Take a day's files away, if there are any; what they were, for `restore`."""
        taken = {path: path.read_bytes() for path in (self.sources / source).glob(f"{day}.*")}
        for path in taken:
            path.unlink()
        return taken

    def restore(self, taken: Mapping[Path, bytes]) -> None:
        """Put files back, in the place of others for the same day."""
        for path, content in taken.items():
            self.withhold(path.parent.name, date.fromisoformat(path.name[:10]))
            path.write_bytes(content)

    # Running

    @cached_property
    def _definitions(self) -> dg.Definitions:
        everything = dg.AssetSelection.all()
        load = dg.define_asset_job(
            LOAD_ONLY,
            selection=everything - dg.AssetSelection.all_asset_checks(),
            partitions_def=daily_partitions(self.settings),
        )
        return dg.Definitions.merge(build_defs(self.settings), dg.Definitions(jobs=[load]))

    def run(
        self, *days: date, checked: bool = True, tell: Callable[[str], None] | None = None
    ) -> Ran:
        """The daily job for the days from the first to the last of these, by default DAYS.

        Args:
            days: one day, or the ends of a range.
            checked: with all checks. Without them it is quicker; they write nothing.
            tell: told the name of each step when it starts.
        """
        first, last = (days[0], days[-1]) if days else (DAYS[0], DAYS[-1])
        tags = {
            "dagster/asset_partition_range_start": str(first),
            "dagster/asset_partition_range_end": str(last),
        }
        return self._execute(DAILY_JOB if checked else LOAD_ONLY, tags, tell)

    def check(self) -> Ran:
        """The weekly job: every check on what is there."""
        return self._execute(CHECK_JOB, {})

    def _execute(
        self, job: str, tags: Mapping[str, str], tell: Callable[[str], None] | None = None
    ) -> Ran:
        def listen(entry: dg.EventLogEntry) -> None:
            event = entry.dagster_event
            if tell and event and event.is_step_start and event.step_key:
                tell(event.step_key)

        with dg.DagsterInstance.ephemeral() as instance:
            run_id = str(uuid4())
            instance.add_event_listener(run_id, listen)
            result = self._definitions.resolve_job_def(job).execute_in_process(
                instance=instance,
                run_id=run_id,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                tags=tags,
                raise_on_error=False,
            )
        checks = {
            f"{e.asset_key.to_user_string()} {e.check_name}": e
            for e in result.get_asset_check_evaluations()
        }
        return Ran(
            success=result.success,
            errors={
                event.step_key: _said(event.step_failure_data.error)
                for event in result.all_events
                if event.is_step_failure and event.step_key
            },
            failing={name: e.severity.value for name, e in checks.items() if not e.passed},
            passed={name for name, e in checks.items() if e.passed},
            made={
                event.asset_key.to_user_string()
                for event in result.get_asset_materialization_events()
                if event.asset_key
            },
            metadata={
                name: {key: value.value for key, value in e.metadata.items()}
                for name, e in checks.items()
            },
        )

    # What is there

    def state(self, *, with_load_times: bool = False) -> State:
        """All that the platform holds: lake, warehouse and profiles.

        Left out are LOAD_TIMES (unless asked for) and the generation number of the profile store:
        they say when and how often something was loaded, not what.
        """
        lake = self.platform.lake()
        state: State = {}
        for name in LAKE_TABLES:
            rows = lake.read(name)
            kept = [c for c in rows.column_names if with_load_times or c not in LOAD_TIMES]
            state[f"lake/{name}"] = _in_words(rows.select(kept))
        with self.platform.warehouse() as warehouse:
            for name in WAREHOUSE_TABLES:
                there = bool(warehouse.columns(name))
                rows = warehouse.query(f"SELECT * FROM {name}") if there else pa.table({})
                state[f"warehouse/{name}"] = sorted(_in_words(rows))
        state["profiles/rows"], state["profiles/meta"] = [], []
        if (Path(self.settings.profiles.removeprefix("lmdb:")) / "current").exists():
            with self.platform.profile_store(load_declaration()) as store:
                state["profiles/rows"] = [repr(item) for item in store.items()]
                state["profiles/meta"] = [
                    repr((store.meta.newest_day, sorted(store.meta.deliveries.items())))
                ]
        return state

    def commits(self) -> dict[str, object]:
        """The lake's snapshots and the profile store's generation: every write changes one."""
        from profilehouse.lake.catalog import open_catalog  # noqa: PLC0415
        from profilehouse.lake.lake import NAMESPACE  # noqa: PLC0415

        catalog, _ = open_catalog(self.settings, None, NAMESPACE)
        commits: dict[str, object] = {
            ".".join(name): catalog.load_table(name).metadata.current_snapshot_id
            for name in catalog.list_tables(NAMESPACE)
        }
        with self.platform.profile_store(load_declaration()) as store:
            return commits | {"profiles": store.generation}

    def query(self, sql: str, *params: Any) -> list[Record]:
        """Rows of a query on the warehouse."""
        with self.platform.warehouse() as warehouse:
            rows: list[Record] = warehouse.query(sql, params).to_pylist()
        return rows

    def dead_letters(self) -> list[Record]:
        """The lake's dead letters."""
        letters: list[Record] = self.platform.lake().read("dead_letters").to_pylist()
        return letters


def run_and_tell(folder: Path, steps: Connection) -> None:
    """Run all days of an installation without checks, and send each step when it starts."""
    Installation(folder).run(checked=False, tell=steps.send)


def differences(state: State, other: State) -> list[str]:
    """The tables that differ, each with a few of the rows that only one side has."""
    found: list[str] = []
    for name in sorted(state.keys() | other.keys()):
        here, there = state.get(name, []), other.get(name, [])
        if here != there:
            gone, new = sorted(set(there) - set(here)), sorted(set(here) - set(there))
            found.append(
                f"{name}: {len(here)} rows instead of {len(there)};"
                f" too many: {new[:2]}; missing: {gone[:2]}"
            )
    return found


def of_day(state: State, table: str, day: date) -> list[str]:
    """The rows of a table that were delivered on a day."""
    return [row for row in state[table] if f"'delivered_on': {day!r}" in row]


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.name.endswith(".gz") else content


def _in_words(rows: pa.Table) -> list[str]:
    return [repr(row) for row in rows.to_pylist()]


def _said(error: Any) -> str:
    """The message of the error that was raised for the user, without its class."""
    chain = [error]
    while chain[-1].cause:
        chain.append(chain[-1].cause)
    meant = [e for e in chain if e.cls_name in ("ProfilehouseError", "Failure")]
    said = (meant or chain)[0]
    return str(said.message).strip().partition(": ")[2] if meant else str(said.message)


def _cut(year: Path, cut: Path) -> None:
    redeemed = {r["household_id"] for day in DAYS for r in _lines(year, "redemptions", day)}
    bought: set[int] = set()
    for source in SOURCES:
        (cut / source).mkdir(parents=True)
        for day in _days(year, source):
            if day > DAYS[-1] or (source in DAILY and day < DAYS[0]):
                continue
            records = [
                r
                for r in _lines(year, source, day)
                if "household_id" not in r
                or r["household_id"] % 10 == 0
                or r["household_id"] in redeemed
            ]
            if source == "purchases":
                bought |= {r["product_id"] for r in records}
            if source == "products":
                records = [r for r in records if r["product_id"] in bought]
            text = "".join(json.dumps(r) + "\n" for r in records).encode()
            if source == "purchases":
                (cut / source / f"{day}.jsonl.gz").write_bytes(gzip.compress(text, mtime=0))
            elif records:
                (cut / source / f"{day}.jsonl").write_bytes(text)


def _days(year: Path, source: str) -> Sequence[date]:
    return sorted(date.fromisoformat(p.name[:10]) for p in (year / source).glob("*.jsonl.gz"))


def _lines(year: Path, source: str, day: date) -> list[Record]:
    path = year / source / f"{day}.jsonl.gz"
    return [json.loads(line) for line in _content(path).splitlines()] if path.exists() else []
