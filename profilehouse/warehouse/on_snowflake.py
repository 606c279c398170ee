"""The warehouse on Snowflake, through its Python connector."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl, unquote

import msgspec
import pyarrow as pa
import snowflake.connector
from pyarrow import fs
from snowflake.connector import SnowflakeConnection
from snowflake.connector.errors import Error, OperationalError, ProgrammingError

from profilehouse.contracts import ARROW_TYPES, SQL_TYPES
from profilehouse.errors import ProfilehouseError
from profilehouse.settings import Settings
from profilehouse.storage import open_folder
from profilehouse.warehouse.base import NOT_THERE, Warehouse, plain
from profilehouse.warehouse.sql import STAGED

if TYPE_CHECKING:
    from boto3.session import Session

Connect = Callable[[], AbstractContextManager[SnowflakeConnection]]

LOGIN_SECONDS = 30
STATEMENT_SECONDS = 1800
"""Longest a statement may run, unless the URL says `statement_timeout`, and a request be tried
again when the network or Snowflake's service fails; the connector tries nothing else again."""
NO_ACCESS = (606, 3001)
"""Error numbers: no virtual warehouse is chosen, a privilege is missing."""
NO_OBJECT = 2003
"""Error number: an object does not exist, or may not be seen."""
LISTS = (5, 10)
"""Type codes of VARIANT and ARRAY, which come as JSON text; here they only hold lists."""
URL_PARAMETERS = (
    *("warehouse", "role", "authenticator", "statement_timeout", "storage_integration"),
    *("host", "port", "protocol"),
)
CREDENTIALS = {
    "password": "SNOWFLAKE_PASSWORD",
    "token": "SNOWFLAKE_TOKEN",
    "private_key_file": "SNOWFLAKE_PRIVATE_KEY_FILE",
    "private_key_file_pwd": "SNOWFLAKE_PRIVATE_KEY_FILE_PWD",
}
"""Arguments of the connector, by the environment variables that hold them."""


EXTERNAL_FOLDER = "staging"
"""Below the lake on S3: what an external stage hands to Snowflake, for as long as a load takes."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")


@dataclass(frozen=True)
class ExternalStage:
    """A folder on S3 that Snowflake may read with a storage integration, in place of uploads.

    Attributes:
        integration: its name in Snowflake.
        url: the folder, `s3://BUCKET/PREFIX`.
        filesystem: to write it with.
        path: the folder in `filesystem`.
    """

    integration: str
    url: str
    filesystem: fs.FileSystem
    path: str


class SnowflakeWarehouse(Warehouse):
    """The operations on an open Snowflake connection."""

    dialect: ClassVar[str] = "snowflake"
    type_names: ClassVar[Mapping[str, str]] = {
        "TEXT": "VARCHAR",
        "NUMBER": "NUMBER(38, 0)",
        "TIMESTAMP_NTZ": "TIMESTAMP_NTZ(6)",
        "VARIANT": "ARRAY",  # the emulator's word; no contract has variants
    }

    def __init__(
        self,
        connection: SnowflakeConnection,
        folder: Path,
        work: Mapping[str, str] | None = None,
        external: ExternalStage | None = None,
    ) -> None:
        super().__init__(folder)
        self._connection = connection
        self._external = external
        self._tagged = {"QUERY_TAG": _tag(work or {})}

    def _run(self, sql: str, params: Sequence[Any]) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, tuple(params) or None, _statement_params=self._tagged)

    def _fetch(self, sql: str, params: Sequence[Any]) -> pa.Table:
        with self._connection.cursor() as cursor:
            try:
                cursor.execute(sql, tuple(params) or None, _statement_params=self._tagged)
            except ProgrammingError as error:
                if error.errno == NO_OBJECT:
                    raise ProfilehouseError(f"warehouse: {_reason(error)}; {NOT_THERE}") from error
                raise
            # Chunks may differ in integer width, so each is made plain before they are joined.
            tables = [plain(table) for table in cursor.fetch_arrow_batches()]
            rows = (
                pa.concat_tables(tables)
                if tables
                else cursor.fetch_arrow_all(force_return_table=True)
            )
            for i, column in enumerate(cursor.description):
                if column.type_code in LISTS:
                    rows = rows.set_column(i, rows.field(i).name, _lists(rows.column(i)))
            return rows

    def _stage(self, file: Path, schema: pa.Schema) -> None:
        if self._external is None:
            for statement in stage_statements(file, schema):
                self._run(statement, ())
            return
        there, name = self._external, f"{uuid.uuid4().hex}.parquet"
        path = f"{there.path}/{name}"
        fs.copy_files(
            str(file),
            path,
            source_filesystem=fs.LocalFileSystem(),
            destination_filesystem=there.filesystem,
        )
        try:
            for statement in external_stage_statements(there, name, schema):
                self._run(statement, ())
        finally:
            there.filesystem.delete_file(path)


def stage_statements(file: Path, schema: pa.Schema) -> tuple[str, str, str]:
    """The temporary table `staged`, the upload into its own stage and the bulk load from there."""
    path = str(file).replace("\\", "\\\\").replace("'", "\\'")
    create, copy = _load_statements(f"@%{STAGED}", schema)
    return (
        create,
        f"PUT 'file://{path}' @%{STAGED} AUTO_COMPRESS = FALSE OVERWRITE = TRUE",
        f"{copy} PURGE = TRUE",
    )


def external_stage_statements(
    stage: ExternalStage, name: str, schema: pa.Schema
) -> tuple[str, str, str]:
    """The temporary table `staged`, a temporary stage on S3 and the bulk load of a file in it."""
    create, copy = _load_statements(f"@{STAGED}_files/{name}", schema)
    url = stage.url.replace("\\", "\\\\").replace("'", "\\'")
    return (
        create,
        f"CREATE TEMPORARY STAGE IF NOT EXISTS {STAGED}_files URL = '{url}/'"
        f" STORAGE_INTEGRATION = {stage.integration}",
        copy,
    )


def _load_statements(source: str, schema: pa.Schema) -> tuple[str, str]:
    """The temporary table `staged`, and its bulk load.

    The columns are picked by name out of the Parquet file, times as what they are
    (USE_LOGICAL_TYPE) instead of as numbers.
    """
    types = [(field.name, _sql_type(field.type)) for field in schema]
    columns = ", ".join(f"{name} {kind}" for name, kind in types)
    names = ", ".join(name for name, _ in types)
    picked = ", ".join(f"$1:{name}::{kind}" for name, kind in types)
    return (
        f"CREATE OR REPLACE TEMPORARY TABLE {STAGED} ({columns})",
        f"COPY INTO {STAGED} ({names}) FROM (SELECT {picked} FROM {source})"  # noqa: S608
        " FILE_FORMAT = (TYPE = PARQUET USE_LOGICAL_TYPE = TRUE) ON_ERROR = ABORT_STATEMENT",
    )


def _external_stage(settings: Settings, aws: Session | None) -> ExternalStage | None:
    """The stage that the settings name.

    Raises:
        ProfilehouseError: where it cannot be one.
    """
    integration = dict(parse_qsl(settings.warehouse_url.query)).get("storage_integration")
    if integration is None:
        return None
    if not _NAME.fullmatch(integration):
        raise ProfilehouseError(
            f"PROFILEHOUSE_WAREHOUSE: storage_integration is {integration!r}; it must be the name"
            " of an integration, letters, digits and _"
        )
    if not settings.lake.startswith("s3://"):
        raise ProfilehouseError(
            "PROFILEHOUSE_WAREHOUSE names a storage_integration, but PROFILEHOUSE_LAKE is not on"
            " S3, where Snowflake would read: put the lake there, or leave the parameter out"
        )
    url = f"{settings.lake.rstrip('/')}/{EXTERNAL_FOLDER}"
    return ExternalStage(integration, url, *open_folder(url, aws))


def connection_arguments(settings: Settings) -> dict[str, Any]:
    """What the connector is called with: the URL's parts and the credentials of the environment.

    Raises:
        ProfilehouseError: for an unknown parameter in the URL, or two credentials.
    """
    url = settings.warehouse_url
    database, schema = (unquote(part) for part in url.path.strip("/").split("/"))
    options = dict(parse_qsl(url.query))
    unknown = sorted(set(options) - set(URL_PARAMETERS))
    if unknown:
        raise ProfilehouseError(
            f"PROFILEHOUSE_WAREHOUSE: unknown parameter {', '.join(unknown)};"
            f" it may have {', '.join(URL_PARAMETERS)}"
        )
    credentials = {k: os.environ[name] for k, name in CREDENTIALS.items() if os.environ.get(name)}
    several = [CREDENTIALS[k] for k in credentials if k != "private_key_file_pwd"]
    if len(several) > 1:
        raise ProfilehouseError(f"{' and '.join(several)} are both set: unset one of them")
    options.pop("storage_integration", None)
    seconds = options.pop("statement_timeout", str(STATEMENT_SECONDS))
    if not seconds.isdecimal() or not int(seconds):
        raise ProfilehouseError(
            f"PROFILEHOUSE_WAREHOUSE: statement_timeout is {seconds!r}; it must be a number of"
            " seconds"
        )
    if "token" in credentials:
        options.setdefault("authenticator", "oauth")
    return {
        "account": url.hostname,
        "user": unquote(url.username or ""),
        "database": database,
        "schema": schema,
        "paramstyle": "qmark",
        "login_timeout": LOGIN_SECONDS,
        "network_timeout": STATEMENT_SECONDS,
        "session_parameters": {
            "QUERY_TAG": _tag({}),
            "STATEMENT_TIMEOUT_IN_SECONDS": int(seconds),
            "TIMEZONE": "UTC",
        },
        **options,
        **credentials,
    }


@contextmanager
def open_snowflake(
    settings: Settings,
    connect: Connect | None = None,
    work: Mapping[str, str] | None = None,
    aws: Session | None = None,
) -> Iterator[SnowflakeWarehouse]:
    """One connection, closed in the end.

    Args:
        settings: its warehouse URL says where to connect, also in error texts.
        connect: gives the connection instead, made with paramstyle="qmark".
        work: what it is for, put into the tag of every query.
        aws: the session to write the external stage with, where the settings name one.

    Raises:
        ProfilehouseError: when Snowflake cannot be reached within the login timeout, refuses the
            login, lacks the database, schema or a privilege, when the network fails later on, or
            when the settings name an external stage that cannot be one.
    """
    place = _place(settings)
    external = _external_stage(settings, aws)
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(connect() if connect else _login(settings))
        except (Error, OSError, ValueError, TypeError) as error:
            raise ProfilehouseError(
                f"{place}: cannot log in: {_reason(error)}; check PROFILEHOUSE_WAREHOUSE and"
                f" {', '.join(CREDENTIALS.values())}"
            ) from error
        try:
            _check(connection, place)
            folder = stack.enter_context(TemporaryDirectory(prefix="profilehouse-"))
            yield SnowflakeWarehouse(connection, Path(folder), work, external)
        except BaseException as error:
            connection.close()
            if isinstance(error, OperationalError) or getattr(error, "errno", None) in NO_ACCESS:
                raise ProfilehouseError(
                    f"{place}: {_reason(error)}; nothing was half-loaded, run again"
                ) from error
            raise


@contextmanager
def _login(settings: Settings) -> Iterator[SnowflakeConnection]:
    connection = snowflake.connector.connect(**connection_arguments(settings))
    try:
        yield connection
    finally:
        connection.close()


def _check(connection: SnowflakeConnection, place: str) -> None:
    if connection.is_pyformat:
        raise ValueError("the Snowflake connection must be made with paramstyle='qmark'")
    if not connection.database or not connection.schema:
        raise ProfilehouseError(
            f"{place}: the database or schema of PROFILEHOUSE_WAREHOUSE does not exist or the role"
            " may not use it: create it, or grant USAGE on it"
        )


def _lists(texts: pa.ChunkedArray) -> pa.Array:
    values = [None if text is None else msgspec.json.decode(text) for text in texts.to_pylist()]
    return pa.array(values, ARROW_TYPES["array"])


def _tag(work: Mapping[str, str]) -> str:
    return msgspec.json.encode({"application": "profilehouse", **work}).decode()


def _place(settings: Settings) -> str:
    url = settings.warehouse_url
    host = dict(parse_qsl(url.query)).get("host")
    return f"Snowflake account {url.hostname}" + (f" at {host}" if host else "")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())


def _sql_type(kind: pa.DataType) -> str:
    for name, arrow in ARROW_TYPES.items():
        if arrow.equals(kind):
            return SQL_TYPES["snowflake"][name]
    raise TypeError(f"no Snowflake type for {kind}")
