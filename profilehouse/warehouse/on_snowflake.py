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
from snowflake.connector.cursor import SnowflakeCursor
from snowflake.connector.errors import Error, OperationalError, ProgrammingError

from profilehouse.contracts import ARROW_TYPES, SQL_TYPES
from profilehouse.errors import ProfilehouseError
from profilehouse.settings import Settings
from profilehouse.storage import open_folder
from profilehouse.warehouse.base import NOT_THERE, Warehouse, plain
from profilehouse.warehouse.sql import STAGED, literal

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
CONNECTOR_PARAMETERS = ("warehouse", "role", "authenticator", "host", "port", "protocol")
"""Parameters of the URL that are arguments of the connector."""
URL_PARAMETERS = (
    *CONNECTOR_PARAMETERS,
    *("warehouse_size", "statement_timeout", "storage_integration"),
)
SIZES = (
    *("XSMALL", "SMALL", "MEDIUM", "LARGE", "XLARGE", "XXLARGE", "XXXLARGE"),
    *("X4LARGE", "X5LARGE", "X6LARGE"),
)
"""What Snowflake calls the sizes of a virtual warehouse."""
COST = """
SELECT
    COUNT(*) AS queries,
    COALESCE(SUM(bytes_scanned), 0) AS bytes_scanned,
    COALESCE(SUM(execution_time), 0) / 1000 AS execution_seconds,
    COALESCE(SUM(credits_used_cloud_services), 0) AS cloud_services_credits
FROM TABLE(INFORMATION_SCHEMA.QUERY_HISTORY_BY_SESSION(RESULT_LIMIT => 10000))
WHERE query_tag = ? AND execution_status <> 'RUNNING'
"""
"""What the statements of a session with some tag cost; Snowflake knows at once, without a right."""
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
        self._query_ids: list[str] = []

    def cost(self) -> dict[str, Any]:
        """The ids of all statements, and what they cost where Snowflake tells it.

        Credits of the virtual warehouse are counted by the time that it is on, not by statement.
        """
        ids = list(self._query_ids)
        try:
            [known] = self.query(COST, (self._tagged["QUERY_TAG"],)).to_pylist()
        except (ProgrammingError, ProfilehouseError):
            known = {}
        return {**known, "query_ids": ids}

    def _execute(self, cursor: SnowflakeCursor, sql: str, params: Sequence[Any]) -> None:
        cursor.execute(sql, tuple(params) or None, _statement_params=self._tagged)
        if cursor.sfqid:
            self._query_ids.append(cursor.sfqid)

    def _run(self, sql: str, params: Sequence[Any]) -> None:
        with self._connection.cursor() as cursor:
            self._execute(cursor, sql, params)

    def _fetch(self, sql: str, params: Sequence[Any]) -> pa.Table:
        with self._connection.cursor() as cursor:
            try:
                self._execute(cursor, sql, params)
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
    create, copy = _load_statements(f"@%{STAGED}", schema)
    return (
        create,
        f"PUT {literal(f'file://{file}', 'snowflake')} @%{STAGED}"
        " AUTO_COMPRESS = FALSE OVERWRITE = TRUE",
        f"{copy} PURGE = TRUE",
    )


def external_stage_statements(
    stage: ExternalStage, name: str, schema: pa.Schema
) -> tuple[str, str, str]:
    """The temporary table `staged`, a temporary stage on S3 and the bulk load of a file in it."""
    create, copy = _load_statements(f"@{STAGED}_files/{name}", schema)
    return (
        create,
        f"CREATE TEMPORARY STAGE IF NOT EXISTS {STAGED}_files"
        f" URL = {literal(f'{stage.url}/', 'snowflake')}"
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


@dataclass(frozen=True)
class Parameters:
    """What the URL says behind its `?`.

    Attributes:
        connector: arguments of the connector.
        statement_seconds: longest a statement may run.
        integration: the storage integration that loads go through, if any.
        size: what the virtual warehouse is set to, if anything.
    """

    connector: dict[str, str]
    statement_seconds: int
    integration: str | None
    size: str | None


def parameters(settings: Settings) -> Parameters:
    """The parameters of the warehouse's URL.

    Raises:
        ProfilehouseError: for one that is unknown or has a wrong value.
    """
    given = dict(parse_qsl(settings.warehouse_url.query))
    unknown = sorted(set(given) - set(URL_PARAMETERS))
    if unknown:
        raise ProfilehouseError(
            f"PROFILEHOUSE_WAREHOUSE: unknown parameter {', '.join(unknown)};"
            f" it may have {', '.join(URL_PARAMETERS)}"
        )

    def refuse(name: str, must: str) -> ProfilehouseError:
        return ProfilehouseError(
            f"PROFILEHOUSE_WAREHOUSE: {name} is {given.get(name)!r}; it must be {must}"
        )

    seconds = given.get("statement_timeout", str(STATEMENT_SECONDS))
    if not seconds.isdecimal() or not int(seconds):
        raise refuse("statement_timeout", "a number of seconds")
    integration, size = given.get("storage_integration"), given.get("warehouse_size")
    if integration is not None and not _NAME.fullmatch(integration):
        raise refuse("storage_integration", "the name of an integration, letters, digits and _")
    if size is not None and size not in SIZES:
        raise refuse("warehouse_size", f"one of {', '.join(SIZES)}")
    if size is not None and not _NAME.fullmatch(given.get("warehouse", "")):
        raise refuse("warehouse", "the name of a virtual warehouse where there is warehouse_size")
    connector = {name: value for name, value in given.items() if name in CONNECTOR_PARAMETERS}
    return Parameters(connector, int(seconds), integration, size)


def _external_stage(
    settings: Settings, integration: str | None, aws: Session | None
) -> ExternalStage | None:
    """The stage that the settings name.

    Raises:
        ProfilehouseError: where it cannot be one.
    """
    if integration is None:
        return None
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
        ProfilehouseError: for a wrong parameter in the URL, or two credentials.
    """
    url, options = settings.warehouse_url, parameters(settings)
    database, schema = (unquote(part) for part in url.path.strip("/").split("/"))
    credentials = {k: os.environ[name] for k, name in CREDENTIALS.items() if os.environ.get(name)}
    several = [CREDENTIALS[k] for k in credentials if k != "private_key_file_pwd"]
    if len(several) > 1:
        raise ProfilehouseError(f"{' and '.join(several)} are both set: unset one of them")
    return {
        **({"authenticator": "oauth"} if "token" in credentials else {}),
        "account": url.hostname,
        "user": unquote(url.username or ""),
        "database": database,
        "schema": schema,
        "paramstyle": "qmark",
        "login_timeout": LOGIN_SECONDS,
        "network_timeout": STATEMENT_SECONDS,
        "session_parameters": {
            "QUERY_TAG": _tag({}),
            "STATEMENT_TIMEOUT_IN_SECONDS": options.statement_seconds,
            "TIMEZONE": "UTC",
        },
        **options.connector,
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
    options = parameters(settings)
    host = options.connector.get("host")
    place = f"Snowflake account {settings.warehouse_url.hostname}{f' at {host}' if host else ''}"
    external = _external_stage(settings, options.integration, aws)
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
            warehouse = SnowflakeWarehouse(connection, Path(folder), work, external)
            if options.size:
                name = options.connector["warehouse"]
                warehouse.execute(f"ALTER WAREHOUSE {name} SET WAREHOUSE_SIZE = {options.size}")
            yield warehouse
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


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())


def _sql_type(kind: pa.DataType) -> str:
    for name, arrow in ARROW_TYPES.items():
        if arrow.equals(kind):
            return SQL_TYPES["snowflake"][name]
    raise TypeError(f"no Snowflake type for {kind}")
