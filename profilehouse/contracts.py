"""Contracts: what a dataset is. Arrow schemas, DDL, column docs and rules all come from here.

Belongs here: reading Open Data Contract Standard files and the types they map to.
Does not belong here: running rules (quality/) or creating tables (lake/, warehouse/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import pyarrow as pa
import yaml
from open_data_contract_standard.model import OpenDataContractStandard, SchemaProperty

from profilehouse.contract_quality import (
    SEVERITIES,
    Incident,
    QualityRule,
    Silence,
    incidents,
    quality_rules,
    silences,
)
from profilehouse.contract_quality import Severity as Severity  # noqa: PLC0414
from profilehouse.errors import ProfilehouseError

CONTRACTS_DIR = Path(__file__).resolve().parent.parent / "contracts"

ARROW_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "object": pa.string(),
    "array": pa.list_(pa.string()),
    "bytes": pa.binary(),
}
SQL_TYPES: dict[str, dict[str, str]] = {
    "duckdb": {
        "string": "VARCHAR",
        "integer": "BIGINT",
        "number": "DOUBLE",
        "boolean": "BOOLEAN",
        "date": "DATE",
        "timestamp": "TIMESTAMP",
        "object": "VARCHAR",
        "array": "VARCHAR[]",
        "bytes": "BLOB",
    },
    "snowflake": {
        "string": "VARCHAR",
        "integer": "NUMBER(38, 0)",
        "number": "FLOAT",
        "boolean": "BOOLEAN",
        "date": "DATE",
        "timestamp": "TIMESTAMP_NTZ(6)",
        "object": "VARCHAR",
        "array": "ARRAY",
        "bytes": "BINARY",
    },
    "bigquery": {
        "string": "STRING",
        "integer": "INT64",
        "number": "FLOAT64",
        "boolean": "BOOL",
        "date": "DATE",
        "timestamp": "DATETIME",
        "object": "STRING",
        "array": "ARRAY<STRING>",
        "bytes": "BYTES",
    },
}

_OPTIONS = {"minimum", "maximum", "pattern", "minLength", "maxLength", "defaultTimezone"}


@dataclass(frozen=True)
class Column:
    """One column: its logical type (a key of ARROW_TYPES) and what its values must satisfy.

    Timestamps are UTC without a zone; `object` is JSON text; `array` is a list of strings.
    `shortest` and `longest` bound the code points of a text.
    `references` names the `table.column` whose values this one must be among; real data may break
    it, so how bad that is can be said.
    `delivered_as` is what delivered tables (CSV, Parquet) call it; `zone` is that of their times
    that name none.
    """

    name: str
    type: str
    description: str
    required: bool = False
    unique: bool = False
    personal: bool = False
    minimum: float | None = None
    maximum: float | None = None
    pattern: str | None = None
    shortest: int | None = None
    longest: int | None = None
    values: tuple[str, ...] = ()
    references: str | None = None
    references_severity: Severity = "error"
    delivered_as: str | None = None
    zone: str | None = None

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type of this column."""
        return ARROW_TYPES[self.type]

    def sql_type(self, dialect: str) -> str:
        """The column type in one warehouse's DDL."""
        return SQL_TYPES[dialect][self.type]


@dataclass(frozen=True)
class Contract:
    """One dataset: `kind` is the folder it is declared in (such as sources or lake).

    `layout_reason` says why a warehouse's table is partitioned and clustered as it is, or not.
    """

    name: str
    kind: str
    version: str
    description: str
    owner: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    partition_by: tuple[str, ...]
    cluster_by: tuple[str, ...]
    quality: tuple[QualityRule, ...]
    path: Path
    layout_reason: str = ""
    silences: tuple[Silence, ...] = ()
    incidents: tuple[Incident, ...] = ()
    properties: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema; required columns are not nullable."""
        return pa.schema(
            [pa.field(c.name, c.arrow_type, nullable=not c.required) for c in self.columns]
        )

    def column(self, name: str) -> Column:
        """The column of that name; KeyError where there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"{self.name} has no column {name}")

    def ddl(self, dialect: str, table: str | None = None) -> str:
        """CREATE TABLE IF NOT EXISTS for one warehouse, partitioned and clustered where it does.

        BigQuery knows no arrays that may not be null, and needs no clustering by what it
        partitions by.
        """
        columns = ",\n  ".join(
            f"{c.name} {c.sql_type(dialect)}"
            f"{' NOT NULL' if c.required and (dialect, c.type) != ('bigquery', 'array') else ''}"
            for c in self.columns
        )
        statement = f"CREATE TABLE IF NOT EXISTS {table or self.name} (\n  {columns}\n)"
        if dialect == "snowflake" and self.cluster_by:
            statement += f" CLUSTER BY ({', '.join(self.cluster_by)})"
        if dialect == "bigquery":
            clustered = [name for name in self.cluster_by if name not in self.partition_by]
            statement += f" PARTITION BY {self.partition_by[0]}" if self.partition_by else ""
            statement += f" CLUSTER BY {', '.join(clustered)}" if clustered else ""
        return statement


def load_contract(path: Path) -> Contract:
    """Read one contract file.

    Raises:
        ProfilehouseError: naming the file, the place in it and what it must hold.
    """
    try:
        document = OpenDataContractStandard.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except (yaml.YAMLError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ProfilehouseError(f"{path}: not a readable ODCS v3 contract: {reason}") from error
    try:
        return _contract(document, path)
    except ValueError as error:
        raise ProfilehouseError(f"{path}: {error}") from error


@cache
def load_contracts(directory: Path = CONTRACTS_DIR) -> dict[str, Contract]:
    """All contracts below a directory, by name. Each sits in the folder of its kind."""
    contracts: dict[str, Contract] = {}
    for path in sorted(directory.glob("*/*.odcs.yaml")):
        contract = load_contract(path)
        if contract.name in contracts:
            other = contracts[contract.name].path
            raise ProfilehouseError(f"{path}: {contract.name} is declared in {other} already")
        contracts[contract.name] = contract
    if not contracts:
        raise ProfilehouseError(f"no contracts (*/*.odcs.yaml) found below {directory}")
    return contracts


def contract(name: str) -> Contract:
    """The project's contract of that name."""
    contracts = load_contracts()
    if name not in contracts:
        raise ProfilehouseError(f"no contract named {name}; there are: {', '.join(contracts)}")
    return contracts[name]


def contracts_of(kind: str) -> tuple[Contract, ...]:
    """The project's contracts of one kind (the folder they are in), by name."""
    return tuple(c for c in load_contracts().values() if c.kind == kind)


def _contract(document: OpenDataContractStandard, path: Path) -> Contract:
    if not document.apiVersion or not document.apiVersion.startswith("v3."):
        raise ValueError(f"apiVersion is {document.apiVersion!r}; it must be v3.x")
    if document.schema_ is None or len(document.schema_) != 1:
        raise ValueError("schema: must hold exactly one object, the dataset")
    table = document.schema_[0]
    if not table.name or not table.description or not table.properties:
        raise ValueError("schema: the dataset needs a name, a description and properties")
    columns = tuple(_column(p) for p in table.properties)
    names = [c.name for c in columns]
    if len(set(names)) != len(names):
        raise ValueError("schema: two properties have the same name")
    custom = {p.property: p.value for p in table.customProperties or [] if p.property}
    said = {p.property: p.description for p in table.customProperties or []}
    cluster_by = tuple(custom.get("clusterBy") or ())
    unknown = sorted(set(cluster_by) - set(names))
    if unknown:
        raise ValueError(f"clusterBy: there is no column {', '.join(unknown)}")
    named = list(zip(columns, table.properties, strict=True))
    team = document.team
    owner = team.name if team is not None and not isinstance(team, list) else None
    if not owner or not document.version:
        raise ValueError("version and team.name (the owner) are required")
    return Contract(
        name=table.name,
        kind=path.parent.name,
        version=document.version,
        description=" ".join(table.description.split()),
        owner=owner,
        columns=columns,
        primary_key=_in_order({c.name: p.primaryKeyPosition for c, p in named if p.primaryKey}),
        partition_by=_in_order({c.name: p.partitionKeyPosition for c, p in named if p.partitioned}),
        cluster_by=cluster_by,
        quality=quality_rules(table.quality or [], {c.name: p.quality or [] for c, p in named}),
        path=path,
        layout_reason=" ".join((said.get("clusterBy") or "").split()),
        silences=silences(custom.pop("silences", None)),
        incidents=incidents(custom.pop("incidents", None)),
        properties=custom,
    )


def _in_order(positions: Mapping[str, int | None]) -> tuple[str, ...]:
    """Names that have a position, by position."""
    placed = sorted((place, name) for name, place in positions.items() if place is not None)
    return tuple(name for _, name in placed)


def _column(prop: SchemaProperty) -> Column:
    if not prop.name or not prop.description:
        raise ValueError(f"property {prop.name!r}: needs a name and a description")
    logical = "bytes" if prop.physicalType == "binary" else prop.logicalType
    if logical not in ARROW_TYPES:
        raise ValueError(
            f"property {prop.name}: logicalType is {logical!r};"
            f" it must be one of {', '.join(ARROW_TYPES)}"
        )
    options = prop.logicalTypeOptions or {}
    unknown = set(options) - _OPTIONS
    if unknown:
        raise ValueError(f"property {prop.name}: unknown logicalTypeOptions {sorted(unknown)}")
    zone = options.get("defaultTimezone")
    if zone is not None and (logical != "timestamp" or zone not in available_timezones()):
        raise ValueError(
            f"property {prop.name}: defaultTimezone is {zone!r}; it must be a zone of the IANA"
            " database, of a timestamp"
        )
    return Column(
        name=prop.name,
        type=logical,
        description=" ".join(prop.description.split()),
        required=bool(prop.required or prop.primaryKey),
        unique=bool(prop.unique),
        personal=prop.classification == "personal",
        minimum=options.get("minimum"),
        maximum=options.get("maximum"),
        pattern=options.get("pattern"),
        shortest=options.get("minLength"),
        longest=options.get("maxLength"),
        values=tuple(str(v.value) for v in prop.enum or []),
        delivered_as=prop.physicalName,
        zone=zone,
        **_reference(prop),
    )


def _reference(prop: SchemaProperty) -> dict[str, Any]:
    relationships = prop.relationships or []
    targets: Sequence[Any] = [r.to for r in relationships]
    if len(targets) > 1 or any(not isinstance(t, str) or t.count(".") != 1 for t in targets):
        raise ValueError(f"property {prop.name}: relationships: one `to: table.column` at most")
    if not targets:
        return {}
    custom = {p.property: p.value for p in relationships[0].customProperties or []}
    severity = custom.pop("severity", "error")
    if custom or severity not in SEVERITIES:
        raise ValueError(
            f"property {prop.name}: relationships: customProperties may say severity, one of"
            f" {SEVERITIES}"
        )
    return {"references": targets[0], "references_severity": severity}
