"""Opening the Iceberg catalog: SQLite beside a local lake, Glue for a lake on S3."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.io import FileIO
from pyiceberg.table.metadata import TableMetadata
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from profilehouse.errors import ProfilehouseError
from profilehouse.lake.durable import sync
from profilehouse.settings import Settings

if TYPE_CHECKING:
    from boto3.session import Session

CATALOG_FILE = "catalog.db"
_SECONDS_TO_WAIT_FOR_A_LOCK = 60
_ATTEMPTS = 5


def open_catalog(
    settings: Settings, session: Session | None, namespace: str
) -> tuple[Catalog, str]:
    """The catalog with its namespace, and the absolute folder or s3:// URL of the lake.

    Raises:
        ProfilehouseError: where the two settings do not go together or a place cannot be used.
    """
    on_s3 = settings.lake.startswith("s3://")
    if on_s3 and settings.catalog == "sqlite:":
        raise ProfilehouseError(
            f"PROFILEHOUSE_CATALOG is sqlite:, a file beside a local lake, but PROFILEHOUSE_LAKE"
            f" is {settings.lake}: set PROFILEHOUSE_CATALOG=glue:"
        )
    if not on_s3 and settings.catalog == "glue:":
        raise ProfilehouseError(
            f"PROFILEHOUSE_CATALOG is glue:, but PROFILEHOUSE_LAKE is the local folder"
            f" {settings.lake}: set PROFILEHOUSE_LAKE=s3://BUCKET/PREFIX"
            " or PROFILEHOUSE_CATALOG=sqlite:"
        )
    if on_s3:
        return _glue(settings.lake, session, namespace), settings.lake
    root = Path(settings.lake).resolve()
    return _sqlite(root, namespace), str(root)


class _Durable(SqlCatalog):
    """SQLite forces its file onto the disk; the metadata it names has to be there before."""

    @staticmethod
    def _write_metadata(metadata: TableMetadata, io: FileIO, metadata_path: str) -> None:
        SqlCatalog._write_metadata(metadata, io, metadata_path)
        sync([metadata_path])


def _sqlite(root: Path, namespace: str) -> Catalog:
    from sqlalchemy import URL  # noqa: PLC0415

    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        uri = URL.create(
            "sqlite",
            database=str(root / CATALOG_FILE),
            query={"timeout": str(_SECONDS_TO_WAIT_FOR_A_LOCK)},
        )
        for attempt in range(_ATTEMPTS):
            try:
                catalog = _Durable(namespace, uri=uri.render_as_string(), warehouse=str(root))
                catalog.create_namespace_if_not_exists(namespace)
                return catalog
            except (OperationalError, IntegrityError):  # another process creates it just now
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")
    except (OSError, SQLAlchemyError) as error:
        reason = " ".join(str(error).split())
        raise ProfilehouseError(
            f"lake {root}: cannot open its catalog {CATALOG_FILE}: {reason};"
            " see that the folder may be written, or set PROFILEHOUSE_LAKE to another"
        ) from error


def _glue(url: str, session: Session | None, namespace: str) -> Catalog:
    from pyiceberg.catalog.glue import GlueCatalog  # noqa: PLC0415

    from profilehouse import aws  # noqa: PLC0415

    access = aws.access(url, session)
    with aws.explained(f"lake {url}: Glue database {namespace}"):
        catalog = GlueCatalog(
            namespace, client=access.client("glue"), warehouse=url, **access.iceberg_properties()
        )
        catalog.create_namespace_if_not_exists(namespace)
    return catalog
