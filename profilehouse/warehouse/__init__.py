"""The warehouse: a star schema behind semantic operations, on DuckDB, Snowflake or BigQuery.

Belongs here: connecting, the operations, loads and their ledger, SQL translation and lineage.
Does not belong here: the star's SQL (assets/warehouse/sql/) and its columns (contracts/warehouse/).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from profilehouse.errors import ProfilehouseError
from profilehouse.settings import Settings
from profilehouse.warehouse.base import Warehouse

if TYPE_CHECKING:
    from boto3.session import Session

    from profilehouse.warehouse.on_snowflake import Connect

__all__ = ["Warehouse", "open_warehouse"]


def open_warehouse(
    settings: Settings,
    connect: Connect | None = None,
    work: Mapping[str, str] | None = None,
    aws: Session | None = None,
) -> AbstractContextManager[Warehouse]:
    """A connection to the warehouse of the settings, for one unit of work: `with ... as warehouse`.

    Keep it short: while it is open, no other process gets at a DuckDB file.

    Args:
        settings: whose `warehouse` says which engine and where.
        connect: how to get a Snowflake connection, where somebody else configures it.
        work: what the work is for, such as run_id and asset; Snowflake's query tags and BigQuery's
            job labels say it.
        aws: the AWS session for Snowflake's external stage, where there is one.

    Raises:
        ProfilehouseError: when it cannot be opened; one line with the place and the remedy.
    """
    if settings.warehouse_url.scheme == "duckdb":
        from profilehouse.warehouse.on_duckdb import open_duckdb  # noqa: PLC0415

        return open_duckdb(Path(settings.warehouse.removeprefix("duckdb:")))
    if settings.warehouse_url.scheme == "bigquery":
        try:
            from profilehouse.warehouse.on_bigquery import open_bigquery  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ProfilehouseError(
                f"the warehouse is {settings.warehouse_url.scheme}://, but {error.name} is not"
                " installed: pip install 'profilehouse[bigquery]'"
            ) from error
        return open_bigquery(settings, work)
    from profilehouse.warehouse.on_snowflake import open_snowflake  # noqa: PLC0415

    return open_snowflake(settings, connect, work, aws)
