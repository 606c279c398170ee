"""Plain records, decoded by the package in native/: those that meet the contract beyond doubt.

Belongs here: telling that package what the contract demands, and making columns of its answer. Does
not belong here: judging a record that is not plain (web.py), or knowing what it means.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import pyarrow as pa
from profilehouse_native import Decoder

from profilehouse.contracts import Column, contract
from profilehouse.decode import FIRST_YEAR, INT64, LAST_YEAR

_AWARE = pa.timestamp("us", tz="UTC")
_GRAPHIC = re.compile(r"\^\[!-~\]\{1,\d+\}\$")
_TEXT = re.compile(r"\^\.\{1,\d+\}\$")
_LENGTH = re.compile(r"\{1,(\d+)\}\$$")


def decode(values: Sequence[bytes]) -> tuple[list[int], dict[str, pa.Array]]:
    """The places of the plain records of the web contract among some, and their fields' columns.

    Times have their zone, UTC; free JSON is text.
    """
    places, columns = _decoder().decode(values)
    types = {column.name: column.type for column in contract("web").columns}
    return places, {name: _array(types[name], len(places), *columns[name]) for name in types}


@cache
def _decoder() -> Decoder:
    fields = [(c.name, _kind(c), c.required, _bounds(c)) for c in contract("web").columns]
    return Decoder(fields, ("user_id", "anonymous_id"), (FIRST_YEAR, LAST_YEAR))


def _kind(column: Column) -> str:
    if column.values or column.name == "contract_version":
        return "literal"
    if column.type != "string":
        return column.type
    if column.shortest is not None or column.longest is not None:
        return "other"
    if column.pattern is None or _TEXT.fullmatch(column.pattern):
        return "text"
    return "graphic" if _GRAPHIC.fullmatch(column.pattern) else "other"


def _bounds(column: Column) -> tuple[list[str], int, tuple[int, int]]:
    """The texts it may be, its most characters (0: any number), its least and greatest number."""
    literals = column.values or (contract("web").version,)
    length = _LENGTH.search(column.pattern or "")
    low, high = (
        bound if given is None else int(given)
        for bound, given in zip(INT64, (column.minimum, column.maximum), strict=True)
    )
    return list(literals), int(length[1]) if length else 0, (low, high)


def _array(type_: str, length: int, validity: bytes, offsets: bytes, data: bytes) -> pa.Array:
    present = pa.py_buffer(validity)
    if type_ in ("integer", "boolean", "timestamp"):
        numbers = pa.Array.from_buffers(pa.int64(), length, [present, pa.py_buffer(data)])
        return numbers.cast(
            {"integer": pa.int64(), "boolean": pa.bool_(), "timestamp": _AWARE}[type_]
        )
    return pa.Array.from_buffers(
        pa.string(), length, [present, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
