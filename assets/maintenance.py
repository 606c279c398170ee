"""Upkeep of the lake: what keeps its tables small and quick, and never disturbs who writes them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from profilehouse.contracts import Contract, contracts_of
from profilehouse.errors import ProfilehouseError
from profilehouse.lake import Lake
from profilehouse.platform import Platform

GROUP = "upkeep"
APPENDED = ("web_events", "web_dead_letters")
"""The lake's tables that are appended to every few seconds; all others hold a file a day."""
CLOSED_AFTER = timedelta(hours=1)
"""So long after its end (UTC) a day's events have reached the lake, save for a few."""
STATES_KEPT = timedelta(days=1)
ORPHANS_KEPT = timedelta(days=1)

Numbers = dict[str, int]


def maintenance_assets(feeds: Sequence[Contract] = ()) -> list[dg.AssetsDefinition]:
    """One asset a task; each works on the tables one after the other, and reports numbers.

    Args:
        feeds: the optional sources that are on.
    """
    every = [
        *(source.name for source in (*contracts_of("sources"), *feeds)),
        *(table.name for table in contracts_of("lake") if table.name != "raw"),
    ]
    return [
        _task(
            "compacted",
            APPENDED,
            _compact,
            "The lake's closed days in few large files: the small ones of the live process are"
            " rewritten, rows and positions stay.",
        ),
        _task(
            "expired",
            every,
            _expire,
            f"The lake's tables without their states older than {_words(STATES_KEPT)}, nor the"
            " files that only these need.",
        ),
        _task(
            "cleared",
            every,
            _clear,
            f"The lake's folders without files older than {_words(ORPHANS_KEPT)} that no state"
            " needs: killed writers left them.",
        ),
    ]


def _task(
    name: str, tables: Sequence[str], work: Callable[[Lake, str], Numbers], description: str
) -> dg.AssetsDefinition:
    @dg.asset(
        key=["lake", "upkeep", name],
        deps=[dg.AssetKey(["lake", table]) for table in APPENDED],
        group_name=GROUP,
        kinds={"iceberg"},
        description=description,
        owners=[f"team:{owner}" for owner in sorted({t.owner for t in contracts_of("lake")})],
    )
    def upkeep(platform: dg.ResourceParam[Platform]) -> dg.MaterializeResult[None]:
        lake = platform.lake()
        done: dict[str, Numbers] = {}
        failures: list[str] = []
        for table in tables:
            try:
                done[table] = work(lake, table)
            except ProfilehouseError as error:
                failures.append(str(error))
        if failures:
            raise dg.Failure(
                f"{len(failures)} of {len(tables)} tables failed, all others are done:"
                f" {'; '.join(failures)}",
                metadata=_metadata(done),
            )
        return dg.MaterializeResult(metadata=_metadata(done))

    return upkeep


def _compact(lake: Lake, table: str) -> Numbers:
    today = (datetime.now(UTC) - CLOSED_AFTER).date()
    report = asdict(lake.compact(table, today))
    return {**report, "days": len(report["days"])}


def _expire(lake: Lake, table: str) -> Numbers:
    report = lake.expire(table, STATES_KEPT)
    return {
        "states_forgotten": report.forgotten,
        "states_left": report.left,
        "files_removed": report.files,
    }


def _clear(lake: Lake, table: str) -> Numbers:
    report = lake.remove_orphans(table, ORPHANS_KEPT)
    return {
        "files_removed": report.files,
        "bytes_removed": report.bytes,
        "files_left": report.left,
    }


def _metadata(done: Mapping[str, Numbers]) -> dict[str, Any]:
    """The sum of each number, for the UI to plot, and the numbers of each table."""
    names = list(dict.fromkeys(name for numbers in done.values() for name in numbers))
    return {
        **{name: sum(numbers[name] for numbers in done.values()) for name in names},
        "tables": dg.MetadataValue.table(
            [dg.TableRecord({"table": table, **numbers}) for table, numbers in done.items()],
            dg.TableSchema([dg.TableColumn("table"), *(dg.TableColumn(n, "int") for n in names)]),
        ),
    }


def _words(age: timedelta) -> str:
    return f"{age // timedelta(hours=1)} hours"
