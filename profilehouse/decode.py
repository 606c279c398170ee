"""Decoding: bytes of one JSON record against its contract, with a reason for every refusal.

Belongs here: what a contract demands of a single record. Does not belong here: rules that need
more than one record (quality/) or where records come from and go to (sources/, events/).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
import pyarrow as pa

from profilehouse.contracts import Column, Contract
from profilehouse.quality.rules import python_pattern

FIRST_YEAR, LAST_YEAR = 1900, 2199
"""Years of dates and times; others are mistakes, and some engines cannot compute with them."""
INT64 = (-(2**63), 2**63 - 1)
_PYTHON_TYPES: dict[str, Any] = {
    "string": str,
    "boolean": bool,
    "date": dt.date,
    "array": list[str],
}
_JSON_READER_TYPES = {
    "string": "VARCHAR",
    "integer": "BIGINT",
    "number": "DOUBLE",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp": "VARCHAR",
    "object": "JSON",
    "array": "VARCHAR[]",
}


def refusals(
    lines: Sequence[bytes], contract: Contract, unknown_fields: bool = False
) -> dict[int, str]:
    """The records that do not satisfy the contract: their index in `lines` and the reason.

    A record is refused for anything that is not one JSON object, a missing required field, an
    unknown field, a wrong type, a value outside the contract's range, set, length or pattern, or a
    year before FIRST_YEAR or after LAST_YEAR.

    Args:
        lines: the records.
        contract: theirs.
        unknown_fields: whether a record may have them.
    """
    decode = _decoder(contract, unknown_fields).decode
    dated = [c.name for c in contract.columns if c.type in ("date", "timestamp")]
    refused: dict[int, str] = {}
    for index, line in enumerate(lines):
        try:
            record = decode(line)
            for name in dated:
                value = getattr(record, name)
                if value is not None and not FIRST_YEAR <= value.year <= LAST_YEAR:
                    refused[index] = (
                        f"Expected a year from {FIRST_YEAR} to {LAST_YEAR} - at `$.{name}`"
                    )
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            refused[index] = str(error)
    return refused


def typed_columns(rows: pa.Table, contract: Contract) -> pa.Table:
    """Give each raw row the contract's columns (schema-on-read) in place of its `record`.

    Args:
        rows: has a column `record`, JSON text that `refusals` found nothing wrong with.
        contract: of the records.
    """
    import duckdb  # noqa: PLC0415

    shape = ", ".join(f'"{c.name}":"{_JSON_READER_TYPES[c.type]}"' for c in contract.columns)
    names = ", ".join(
        # RFC 3339 lets T and Z be small, the reader of JSON does not.
        f"CAST(upper(parsed.{c.name}) AS TIMESTAMPTZ) AS {c.name}"
        if c.type == "timestamp"
        else f"parsed.{c.name}"
        for c in contract.columns
    )
    with duckdb.connect() as connection:
        connection.register("raw_rows", rows)
        relation = connection.sql(
            f"SELECT * EXCLUDE (record, parsed), {names} FROM"  # noqa: S608
            f" (SELECT *, from_json(record, '{{{shape}}}') AS parsed FROM raw_rows)"
        )
        table: pa.Table = relation.to_arrow_table()
    for column in contract.columns:
        position = table.schema.get_field_index(column.name)
        table = table.set_column(position, column.name, table[column.name].cast(column.arrow_type))
    return table


def record_type(
    contract: Contract, json_object: type = dict[str, Any], unknown_fields: bool = False
) -> type[msgspec.Struct]:
    """The type that msgspec decodes a record of the contract into; what is not there is None.

    Args:
        contract: of the record.
        json_object: type of the fields that hold any JSON object. A msgspec.Raw takes all JSON.
        unknown_fields: whether the record may have fields that the contract does not.
    """
    types = [(c, _field_type(c) if c.type != "object" else json_object) for c in contract.columns]
    fields = [
        (c.name, type_)
        if c.required
        else (c.name, type_ if type_ is msgspec.Raw else type_ | None, None)
        for c, type_ in types
    ]
    return msgspec.defstruct(
        contract.name, fields, forbid_unknown_fields=not unknown_fields, kw_only=True, gc=False
    )


@cache
def _decoder(contract: Contract, unknown_fields: bool) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(record_type(contract, unknown_fields=unknown_fields))


def _field_type(column: Column) -> Any:
    if column.values:
        return Literal[column.values]
    if column.type == "timestamp":
        return Annotated[dt.datetime, msgspec.Meta(tz=True)]
    if column.type == "integer":
        low = INT64[0] if column.minimum is None else int(column.minimum)
        high = INT64[1] if column.maximum is None else int(column.maximum)
        return Annotated[int, msgspec.Meta(ge=low, le=high)]
    if column.type == "number":
        return Annotated[float, msgspec.Meta(ge=column.minimum, le=column.maximum)]
    if column.type == "string":
        pattern = None if column.pattern is None else python_pattern(column.pattern)
        demands = msgspec.Meta(
            pattern=pattern, min_length=column.shortest, max_length=column.longest
        )
        return Annotated[str, demands]
    return _PYTHON_TYPES[column.type]
