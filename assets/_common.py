"""What assets share: the days of a run, and a contract's words as Dagster metadata."""

import itertools
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg

from profilehouse.contracts import Contract

REPOSITORY = Path(__file__).resolve().parent.parent


def days_of(context: dg.AssetExecutionContext) -> list[date]:
    """The delivery days this run is for, oldest first."""
    return [date.fromisoformat(key) for key in context.partition_keys]


def owners(contract: Contract) -> list[str]:
    """The owner as Dagster writes a team."""
    return [f"team:{contract.owner}"]


def declared(contract: Contract, sql: Path | None = None) -> dict[str, Any]:
    """Column docs and where contract and SQL are, as an asset's metadata."""
    metadata: dict[str, Any] = {
        "dagster/column_schema": column_schema(contract),
        "dagster/table_name": contract.name,
        "contract": contract.path.relative_to(REPOSITORY).as_posix(),
        "contract_version": contract.version,
    }
    return metadata if sql is None else metadata | {"sql": sql.relative_to(REPOSITORY).as_posix()}


def column_schema(contract: Contract) -> dg.TableSchema:
    """The contract's columns for the UI's catalog."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=column.name,
                type=column.type,
                description=column.description,
                constraints=dg.TableColumnConstraints(
                    nullable=not column.required,
                    unique=column.unique or contract.primary_key == (column.name,),
                    other=["personal"] if column.personal else [],
                ),
                tags={"primary_key": ""} if column.name in contract.primary_key else {},
            )
            for column in contract.columns
        ]
    )


def column_lineage(
    lineage: Mapping[str, Sequence[tuple[str, str]]], keys: Mapping[str, dg.AssetKey]
) -> dict[str, Any]:
    """Column lineage as an asset's metadata: for Dagster+, and as a table that every UI shows.

    Args:
        lineage: for each column the (table, column) pairs it is made from.
        keys: the asset behind each table; tables that are no asset are left out.
    """
    origins = {
        column: [
            dg.TableColumnDep(asset_key=keys[table], column_name=source)
            for table, source in sources
            if table in keys
        ]
        for column, sources in lineage.items()
    }
    return {
        "dagster/column_lineage": dg.TableColumnLineage(deps_by_column=origins),
        "made_from": dg.MetadataValue.table(
            [
                dg.TableRecord(
                    {
                        "column": column,
                        "made from": ", ".join(
                            f"{origin.asset_key.to_user_string()}.{origin.column_name}"
                            for origin in made_from
                        ),
                    }
                )
                for column, made_from in origins.items()
            ],
            dg.TableSchema([dg.TableColumn("column"), dg.TableColumn("made from")]),
        ),
    }


def report_days(
    context: dg.AssetExecutionContext, days: Sequence[date], rows: Mapping[date, int]
) -> None:
    """Put each day's row count on its partition; a day without rows has none."""
    for day in days:
        context.add_asset_metadata(
            {"dagster/partition_row_count": rows.get(day, 0)}, partition_key=day.isoformat()
        )


def spans(days: Sequence[date]) -> str:
    """Days in words, for messages: runs of consecutive days as first..last."""
    parts: list[str] = []
    for _, group in itertools.groupby(
        enumerate(sorted(days)), key=lambda pair: pair[1].toordinal() - pair[0]
    ):
        run = [day for _, day in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}")
    return ", ".join(parts)
