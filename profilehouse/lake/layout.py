"""From a contract to an Iceberg table: its schema, its partitions, and what may change later."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException, TableAlreadyExistsError
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DoubleType,
    IcebergType,
    ListType,
    LongType,
    NestedField,
    StringType,
    TimestampType,
)

from profilehouse.contracts import Column, Contract
from profilehouse.errors import ProfilehouseError

DAY, TOPIC, LINE = "delivered_on", "topic", "line"
TOPIC_ID, PARTITION, OFFSET = "topic_id", "log_partition", "log_offset"
POSITION = (DAY, TOPIC, LINE, PARTITION, OFFSET)
"""The columns that rows are kept in the order of, as far as a table has them.

Of a delivery a row's position is day, topic and line; of the log it is partition and offset.
"""

_ATTEMPTS = 10
_FIRST_ELEMENT_ID = 10_000
_MANIFEST_BYTES = 64 * 1024
_ROW_GROUP = 128 * 1024
_PARTITION_FIELD_ID = 1000
_TYPES: dict[str, IcebergType] = {
    "string": StringType(),
    "integer": LongType(),
    "number": DoubleType(),
    "boolean": BooleanType(),
    "date": DateType(),
    "timestamp": TimestampType(),
    "object": StringType(),
    "bytes": BinaryType(),
}


def conform(rows: pa.Table, layout: Contract) -> pa.Table:
    """The rows in the contract's columns and types; nullability is the table's business.

    Raises:
        ValueError: where columns differ or a mandatory value is missing.
    """
    schema = layout.arrow_schema
    if set(rows.column_names) != set(schema.names):
        different = sorted(set(rows.column_names) ^ set(schema.names))
        raise ValueError(f"{layout.name}: rows and contract differ in the columns {different}")
    rows = rows.select(schema.names)
    missing = [f.name for f in schema if not f.nullable and rows[f.name].null_count]
    if missing:
        raise ValueError(f"{layout.name}: rows have nulls in the mandatory columns {missing}")
    return rows.cast(pa.schema([field.with_nullable(True) for field in schema]))


def check_replaced(
    rows: pa.Table, layout: Contract, days: Collection[date], topic: str | None
) -> None:
    """See that the rows are of the days, and of the topic, that they replace.

    Raises:
        ValueError: where they are not.
    """
    strange = set(pc.unique(rows[DAY]).to_pylist()) - set(days)
    if strange:
        raise ValueError(f"{layout.name}: rows of {min(strange)}, which is not to be replaced")
    if topic is not None and set(pc.unique(rows[TOPIC]).to_pylist()) - {topic}:
        raise ValueError(f"{layout.name}: rows of other topics than {topic}")


def create(catalog: Catalog, identifier: tuple[str, str], location: str, layout: Contract) -> Table:
    """The table, created unless another process was quicker."""
    schema = Schema(*[_field(i, c) for i, c in enumerate(layout.columns, start=1)])
    try:
        return catalog.create_table(
            identifier,
            schema,
            location=location,
            partition_spec=_partitions(layout, schema),
            properties=_properties(layout),
        )
    except TableAlreadyExistsError:
        return catalog.load_table(identifier)


def check(table: Table, layout: Contract) -> list[Column]:
    """The contract's columns that the table does not have yet.

    Raises:
        ProfilehouseError: where a column has gone or has another type, or the partitions differ.
    """
    name = table.name()[-1]
    where = f"lake table {name} at {table.location()}"
    declared = {c.name: c for c in layout.columns}
    for field in table.schema().fields:
        column = declared.get(field.name)
        if column is None:
            raise ProfilehouseError(
                f"{where} has a column {field.name} that {layout.path} no longer has;"
                " a column stays: put it back, not mandatory"
            )
        if not _same_type(field.field_type, column):
            raise ProfilehouseError(
                f"{where} has {field.name} as {field.field_type}, {layout.path} as {column.type};"
                " a type stays: declare a column of another name beside it"
            )
    partitions = tuple(field.name for field in table.spec().fields)
    if partitions != layout.partition_by:
        raise ProfilehouseError(
            f"{where} is partitioned by {partitions}, {layout.path} says {layout.partition_by};"
            " partitions stay: declare a table of another name"
        )
    present = {field.name for field in table.schema().fields}
    return [column for column in layout.columns if column.name not in present]


def evolve(table: Table, layout: Contract) -> None:
    """Add the columns that the contract gained and let be null what it no longer demands.

    Raises:
        ProfilehouseError: where the contract changed in a way that a table cannot follow.
    """
    for _ in range(_ATTEMPTS):
        gained = check(table, layout)
        mandatory = {c.name for c in layout.columns if c.required}
        loosened = [f.name for f in table.schema().fields if f.required and f.name not in mandatory]
        if not gained and not loosened:
            return
        try:
            with table.update_schema() as update:
                for column in gained:
                    update.add_column(column.name, _type(column), doc=column.description)
                for name in loosened:
                    update.make_column_optional(name)
        except CommitFailedException:
            table.refresh()
    raise ProfilehouseError(
        f"lake table {table.name()[-1]} at {table.location()}: other writers were quicker"
        f" {_ATTEMPTS} times to change it; run again"
    )


def _field(number: int, column: Column) -> NestedField:
    return NestedField(
        field_id=number,
        name=column.name,
        field_type=_type(column, _FIRST_ELEMENT_ID + number),
        required=column.required,
        doc=column.description,
    )


def _type(column: Column, element_id: int = _FIRST_ELEMENT_ID) -> IcebergType:
    if column.type == "array":
        return ListType(element_id=element_id, element=StringType(), element_required=False)
    return _TYPES[column.type]


def _same_type(existing: IcebergType, column: Column) -> bool:
    if column.type == "array":
        return isinstance(existing, ListType) and existing.element_type == StringType()
    return existing == _TYPES[column.type]


def _partitions(layout: Contract, schema: Schema) -> PartitionSpec:
    if layout.partition_by not in ((), (DAY,)):
        raise ProfilehouseError(
            f"{layout.path}: partitioned by {layout.partition_by};"
            f" a lake table is partitioned by {DAY} or not at all"
        )
    return PartitionSpec(
        *[
            PartitionField(
                source_id=schema.find_field(name).field_id,
                field_id=_PARTITION_FIELD_ID,
                transform=IdentityTransform(),
                name=name,
            )
            for name in layout.partition_by
        ]
    )


def _properties(layout: Contract) -> dict[str, str]:
    """Statistics are kept where reads use them; conflicts are retried by who commits.

    Small manifests: merging them, which an append does now and then, takes time by their size.
    """
    kept = [c.name for c in layout.columns if c.name in POSITION or c.type == "timestamp"]
    return {
        "format-version": "2",
        "write.parquet.compression-codec": "zstd",
        "write.parquet.row-group-limit": str(_ROW_GROUP),
        "write.metadata.metrics.default": "none",
        **{f"write.metadata.metrics.column.{name}": "full" for name in kept},
        "write.metadata.delete-after-commit.enabled": "true",
        "write.metadata.previous-versions-max": "20",
        "commit.manifest-merge.enabled": "true",
        "commit.manifest.min-count-to-merge": "32",
        "commit.manifest.target-size-bytes": str(_MANIFEST_BYTES),
        "commit.retry.num-retries": "0",
    }
