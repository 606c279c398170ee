"""The warehouse on Google BigQuery, through its Python client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote
from uuid import uuid4

import pyarrow as pa
from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, RetryError
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.cloud import bigquery
from requests.exceptions import RequestException
from sqlglot import TokenType, tokenize

from profilehouse.contracts import ARROW_TYPES, SQL_TYPES
from profilehouse.errors import ProfilehouseError
from profilehouse.settings import Settings
from profilehouse.warehouse.base import NOT_THERE, Warehouse
from profilehouse.warehouse.sql import STAGED

STATEMENT_SECONDS = 1800
"""Longest a job may run."""
CONNECT_SECONDS = 30.0
"""Longest the first request is tried again while nobody answers."""
STAGED_LIFE = timedelta(days=1)
"""A staged table goes by itself where the process that would remove it was killed."""
URL_PARAMETERS = ("location", "maximum_bytes_billed", "endpoint")
OVERTAKEN = "profilehouse: a requirement of the transaction does not hold"
_NO_TABLE = "was not found"
_ARROW_TYPES = {SQL_TYPES["bigquery"][name]: kind for name, kind in ARROW_TYPES.items()}


class BigQueryWarehouse(Warehouse):
    """The operations on one dataset.

    A transaction is one script, sent when it is committed: so nothing is left open where the
    process is killed, and BigQuery rolls back where any statement fails.

    Args:
        client: whose jobs have the dataset as their default.
        dataset: where the tables are.
        folder: for staged files.
    """

    dialect: ClassVar[str] = "bigquery"
    type_names: ClassVar[Mapping[str, str]] = {
        "INTEGER": "INT64",
        "FLOAT": "FLOAT64",
        "BOOLEAN": "BOOL",
    }

    def __init__(
        self, client: bigquery.Client, dataset: bigquery.DatasetReference, folder: Path
    ) -> None:
        super().__init__(folder)
        self._client = client
        self._dataset = dataset
        self._staged: bigquery.TableReference | None = None
        self._bytes_billed = 0
        self._script: list[str] = []
        self._requirements: list[Exception] = []

    def cost(self) -> dict[str, Any]:
        """The bytes that all queries are billed for; loading Parquet is free."""
        return {"bytes_billed": self._bytes_billed}

    def schema_of(self, table: str) -> pa.Schema:
        """As in the base class, from the metadata where contracts know all types: it is free."""
        columns = self.columns(table)
        if not columns or not set(columns.values()) <= _ARROW_TYPES.keys():
            return super().schema_of(table)
        return pa.schema([(name, _ARROW_TYPES[kind]) for name, kind in columns.items()])

    def columns(self, table: str) -> dict[str, str]:
        """As in the base class, from the table's metadata, which costs nothing."""
        try:
            found = self._client.get_table(self._dataset.table(table))
        except NotFound:
            return {}
        return {
            field.name.lower(): f"ARRAY<{kind}>" if field.mode == "REPEATED" else kind
            for field in found.schema
            for kind in [self.type_names.get(field.field_type, field.field_type)]
        }

    def forget_staged(self) -> None:
        """Remove the staged table, if there is one."""
        if self._staged:
            self._client.delete_table(self._staged, not_found_ok=True)
            self._staged = None

    def _begin(self) -> None:
        self._script, self._requirements = [], []

    def _commit(self) -> None:
        script = ["BEGIN TRANSACTION", *self._script, "COMMIT TRANSACTION"]
        try:
            self._job("".join(f"{statement};\n" for statement in script))
        except GoogleAPIError as error:
            for i, requirement in enumerate(self._requirements):
                if f"{OVERTAKEN} ({i})" in str(error):
                    raise requirement from error
            raise

    def _rollback(self) -> None:
        """Nothing was sent."""

    def _require(self, condition: str, params: Sequence[Any], error: Exception) -> None:
        message = f"{OVERTAKEN} ({len(self._requirements)})"
        self._script.append(
            f"SELECT IF(({with_values(self._own(condition), params)}), TRUE,"
            f" ERROR({_literal(message)}))"
        )
        self._requirements.append(error)

    def _run(self, sql: str, params: Sequence[Any]) -> None:
        if self._in_transaction:
            self._script.append(with_values(self._own(sql), params))
        else:
            self._job(self._own(sql), params)

    def _fetch(self, sql: str, params: Sequence[Any]) -> pa.Table:
        try:
            return self._job(self._own(sql), params).to_arrow(create_bqstorage_client=False)
        except NotFound as error:
            if _NO_TABLE in str(error):
                raise ProfilehouseError(f"warehouse: {_reason(error)}; {NOT_THERE}") from error
            raise

    def _stage(self, file: Path, schema: pa.Schema) -> None:
        self.forget_staged()
        self._staged = self._dataset.table(f"{STAGED}_{uuid4().hex}")
        fields = [bigquery.SchemaField(f.name, _sql_type(f.type)) for f in schema]
        table = bigquery.Table(self._staged, fields)
        table.expires = datetime.now(UTC) + STAGED_LIFE
        self._client.create_table(table)
        config = bigquery.LoadJobConfig(
            source_format=bigquery.SourceFormat.PARQUET,
            schema=fields,
            write_disposition=bigquery.WriteDisposition.WRITE_APPEND,
        )
        with file.open("rb") as rows:
            self._client.load_table_from_file(rows, self._staged, job_config=config).result()

    def _own(self, sql: str) -> str:
        """With the name that the staged table has here."""
        return sql.replace(f"`{STAGED}`", f"`{self._staged.table_id}`") if self._staged else sql

    def _job(self, sql: str, params: Sequence[Any] = ()) -> Any:
        config = bigquery.QueryJobConfig(query_parameters=[_parameter(value) for value in params])
        job = self._client.query(sql, job_config=config)
        rows = job.result()
        self._bytes_billed += job.total_bytes_billed or 0
        return rows


@contextmanager
def open_bigquery(
    settings: Settings, work: Mapping[str, str] | None = None
) -> Iterator[BigQueryWarehouse]:
    """A client for the dataset of the settings; staged tables are removed in the end.

    Credentials are those that Google's libraries find, none where the URL has an endpoint of its
    own, which is an emulator's.

    Args:
        settings: its warehouse URL says where.
        work: what it is for, put into the labels of every job.

    Raises:
        ProfilehouseError: when nobody answers, there are no credentials, or the dataset or a
            privilege is missing.
    """
    project, dataset, options = _parts(settings)
    place = f"BigQuery dataset {project}.{dataset.dataset_id}"
    try:
        client = _client(project, dataset, options, labels(work or {}))
        try:
            client.get_dataset(dataset, retry=bigquery.DEFAULT_RETRY.with_timeout(CONNECT_SECONDS))
        except NotFound as error:
            raise ProfilehouseError(
                f"{place} does not exist: create it, for example with"
                f" `bq mk --dataset {project}:{dataset.dataset_id}`"
            ) from error
        with TemporaryDirectory(prefix="profilehouse-") as folder:
            warehouse = BigQueryWarehouse(client, dataset, Path(folder))
            try:
                yield warehouse
            finally:
                with suppress(GoogleAPIError, RequestException):
                    warehouse.forget_staged()
                client.close()  # type: ignore[no-untyped-call]
    except Forbidden as error:
        raise ProfilehouseError(
            f"{place}: {_reason(error)}; grant the roles that docs/warehouse.md lists"
        ) from error
    except GoogleAuthError as error:
        raise ProfilehouseError(
            f"{place}: no credentials: {_reason(error)}; run `gcloud auth application-default"
            " login` or set GOOGLE_APPLICATION_CREDENTIALS to a service account's key file"
        ) from error
    except (RequestException, RetryError) as error:
        raise ProfilehouseError(
            f"{place} cannot be reached: {_reason(error)}; nothing was half-loaded, run again"
        ) from error


def with_values(sql: str, params: Sequence[Any]) -> str:
    """A statement in BigQuery's dialect with literals where it has `?`.

    A script is sent as one text; typed literals, escaped here, keep values values.

    Raises:
        ValueError: for another number of values than the statement takes.
    """
    marks = [token for token in _tokens(sql) if token.token_type == TokenType.PLACEHOLDER]
    parts, end = [], 0
    for mark, value in zip(marks, params, strict=True):
        parts += [sql[end : mark.start], _literal(value)]
        end = mark.end + 1
    return "".join([*parts, sql[end:]])


@lru_cache(maxsize=64)
def _tokens(sql: str) -> list[Any]:
    return list(tokenize(sql, read="bigquery"))


def _literal(value: object) -> str:  # noqa: PLR0911
    match value:
        case None:
            return "NULL"
        case bool():
            return str(value).upper()
        case int():
            return str(value)
        case float():
            return f"CAST({_literal(repr(value))} AS FLOAT64)"
        case str():
            # JSON's escapes are among BigQuery's; other characters stand for themselves.
            return json.dumps(value, ensure_ascii=False)
        case datetime():
            return f"DATETIME '{value.isoformat(' ')}'"
        case date():
            return f"DATE '{value.isoformat()}'"
    raise TypeError(f"no BigQuery literal for {type(value).__name__}")


def _parameter(value: Any) -> bigquery.ScalarQueryParameter:
    kinds = {bool: "BOOL", int: "INT64", float: "FLOAT64", datetime: "DATETIME", date: "DATE"}
    return bigquery.ScalarQueryParameter(None, kinds.get(type(value), "STRING"), value)


def _parts(settings: Settings) -> tuple[str, bigquery.DatasetReference, dict[str, str]]:
    url = settings.warehouse_url
    options = dict(parse_qsl(url.query))
    unknown = sorted(set(options) - set(URL_PARAMETERS))
    if unknown:
        raise ProfilehouseError(
            f"PROFILEHOUSE_WAREHOUSE: unknown parameter {', '.join(unknown)};"
            f" it may have {', '.join(URL_PARAMETERS)}"
        )
    billed = options.get("maximum_bytes_billed", "1")
    if not billed.isdecimal():
        raise ProfilehouseError(
            f"PROFILEHOUSE_WAREHOUSE: maximum_bytes_billed is {billed!r}; it must be a number"
        )
    project = unquote(url.netloc)
    return project, bigquery.DatasetReference(project, unquote(url.path.strip("/"))), options


def labels(work: Mapping[str, str]) -> dict[str, str]:
    """What the work is for as BigQuery takes labels: small letters, digits, _ and -, 63 at most."""
    said = {"application": "profilehouse", **work}
    return {name: re.sub(r"[^a-z0-9_-]", "-", value.lower())[:63] for name, value in said.items()}


def _client(
    project: str,
    dataset: bigquery.DatasetReference,
    options: dict[str, str],
    labels: dict[str, str],
) -> bigquery.Client:
    jobs = bigquery.QueryJobConfig(default_dataset=dataset, use_legacy_sql=False, labels=labels)
    jobs.job_timeout_ms = STATEMENT_SECONDS * 1000
    if "maximum_bytes_billed" in options:
        jobs.maximum_bytes_billed = int(options["maximum_bytes_billed"])
    endpoint = options.get("endpoint")
    return bigquery.Client(
        project,
        credentials=AnonymousCredentials() if endpoint else None,  # type: ignore[no-untyped-call]
        location=options.get("location"),
        default_query_job_config=jobs,
        default_load_job_config=bigquery.LoadJobConfig(labels=labels),
        client_options=ClientOptions(api_endpoint=endpoint) if endpoint else None,
    )


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())


def _sql_type(kind: pa.DataType) -> str:
    for name, arrow in ARROW_TYPES.items():
        if arrow.equals(kind) and name != "array":
            return SQL_TYPES["bigquery"][name]
    raise TypeError(f"no BigQuery type for {kind}")
