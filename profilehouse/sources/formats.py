"""What delivered files are written in: their bytes as records, one JSON object a line.

Belongs here: compression, JSON lines, and tables (CSV, Parquet). Does not belong here: which of the
records are good (decode.py).
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from profilehouse.contracts import Column, Contract
from profilehouse.errors import ProfilehouseError
from profilehouse.sources.weblog import web_log_records

if TYPE_CHECKING:
    import duckdb

AGAIN = "ask the source to deliver it again"
PART_BYTES = 4 * 2**20
"""Unpacked bytes of a large file that are read at a time."""
LONGEST_LINE = 16 * 2**20
_ROWS_AT_ONCE = 50_000
_TIMES_SMALLER = 10
"""So much smaller compression makes a file, about."""
_WHOLE_NUMBER = r"-?(0|[1-9][0-9]*)(\.0*)?"
_NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"
_OFFSET = r".*([zZ]|[0-9]{2}:[0-9]{2}[^-+]*[+-][0-9]{2}(:?[0-9]{2})?)"
_MOMENT = "%Y-%m-%dT%H:%M:%S.%fZ"


@dataclass(frozen=True)
class Lines:
    """A file's records, or those of a part of it.

    `lines` has a record at the index of its line, counted from 0; what is no record (a blank line,
    the header of a table) is empty there. `unreadable` has the reason for each line that could not
    be made a record, and stands in `lines` as it was delivered. Both are counted from the part's
    first line, before which the file has `before` lines.
    """

    lines: list[bytes]
    unreadable: dict[int, str] = field(default_factory=dict)
    before: int = 0


def read_records(source: Contract, data: bytes, file: str) -> Lines:
    """The records of a delivered file.

    Tables become objects: a column has the name of the property whose physicalName is its header,
    else its header; a cell without text is left out. What cannot be read as the type the contract
    says stays text, so that the record is refused and tells what was delivered. Columns whose name
    the contract's property `ignores`, a regular expression, matches are left out.

    Args:
        source: the contract.
        data: the file's bytes, as delivered.
        file: its name, which says what it is: `.jsonl`, `.csv`, `.parquet` or `.log`, and `.gz` or
            `.zst` behind that where it is compressed.

    Raises:
        ProfilehouseError: where the file is cut short, is not what its name says, or lacks a
            column that the contract requires.
    """
    for suffix, (_, unpack) in _PACKED.items():
        if file.endswith(suffix):
            data = unpack(data, file)
    return _KINDS[_kind(file)](source, data, file)


def read_parts(source: Contract, stream: pa.NativeFile, file: str) -> Iterator[Lines]:
    """As `read_records`, of a file larger than memory: about PART_BYTES at a time.

    Args:
        source: the contract.
        stream: the file; it can be sought in.
        file: its name; not one of packed Parquet, which cannot be read from its begin.

    Raises:
        ProfilehouseError: as `read_records`, once that part is reached; also for a line longer than
            LONGEST_LINE.
    """
    packed = next((suffix for suffix in _PACKED if file.endswith(suffix)), "")
    kind = _kind(file)
    opened: list[pa.NativeFile] = []

    def from_its_begin() -> pa.NativeFile:
        stream.seek(0)
        # Kept until the end: one that is collected closes the file below it.
        opened.append(pa.CompressedInputStream(stream, _PACKED[packed][0]) if packed else stream)
        return opened[-1]

    try:
        if kind == "csv":
            yield from _csv_parts(source, from_its_begin, file)
        elif kind == "parquet":
            yield from _parquet_parts(source, stream, file)
        else:
            yield from _line_parts(source, from_its_begin(), file)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise ProfilehouseError(
            f"{file}: not a whole {kind}{packed} file ({reason}); {AGAIN}"
        ) from error


def too_large(file: str, size: int, limit: int) -> bool:
    """Whether a file of that name and size has more bytes than a limit, by estimate unpacked.

    Packed Parquet never is: it can only be read whole.
    """
    packed = file.endswith(tuple(_PACKED))
    return size * (_TIMES_SMALLER if packed else 1) > limit and not (
        packed and _kind(file) == "parquet"
    )


def _line_parts(source: Contract, stream: pa.NativeFile, file: str) -> Iterator[Lines]:
    rest, before = b"", 0
    while data := stream.read(PART_BYTES):
        whole, end, rest = (rest + data).rpartition(b"\n")
        if len(rest) > LONGEST_LINE:
            raise ProfilehouseError(
                f"{file}: a line after line {before:,} is longer than {LONGEST_LINE:,} bytes;"
                f" {AGAIN}"
            )
        part = _KINDS[_kind(file)](source, whole + end, file)
        yield replace(part, before=before)
        before += len(part.lines)
    if rest:
        yield replace(_KINDS[_kind(file)](source, rest, file), before=before)


def _kind(file: str) -> str:
    """The ending that says what a file is, without that of its compression."""
    for suffix in _PACKED:
        file = file.removesuffix(suffix)
    return file.rpartition(".")[2]


def _gunzip(data: bytes, file: str) -> bytes:
    try:
        if not data:
            raise EOFError("it has 0 bytes")
        return gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ProfilehouseError(f"{file}: not a whole gzip file ({error}); {AGAIN}") from error


def _unzstd(data: bytes, file: str) -> bytes:
    try:
        if not data:
            raise OSError("it has 0 bytes")
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            unpacked: bytes = stream.read()
    except OSError as error:
        raise ProfilehouseError(f"{file}: not a whole zstd file ({error}); {AGAIN}") from error
    return unpacked


def _json_lines(_: Contract, data: bytes, __: str) -> Lines:
    return Lines(_lines(data))


def _web_log(source: Contract, data: bytes, file: str) -> Lines:
    del source, file
    return Lines(*web_log_records(_lines(data)))


def _lines(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


def _csv(source: Contract, data: bytes, file: str) -> Lines:
    """Rows of a comma-separated table with a header, after RFC 4180, in UTF-8."""
    from pyarrow import csv  # noqa: PLC0415

    if not data.strip():
        return Lines([])
    odd: dict[int, tuple[bytes, str]] = {}
    try:
        table = csv.read_csv(pa.BufferReader(data), **_options(_header(data, file), odd))
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())
        raise ProfilehouseError(f"{file}: not a whole CSV file ({reason}); {AGAIN}") from error
    return _placed(source, table, odd, file, before=1)


def _csv_parts(source: Contract, open_: Callable[[], pa.NativeFile], file: str) -> Iterator[Lines]:
    from pyarrow import csv  # noqa: PLC0415

    begin = open_().read(LONGEST_LINE)
    if not begin.strip():
        return
    header = _header(begin, file)
    odd: dict[int, tuple[bytes, str]] = {}
    before = 1
    schema = pa.schema([(name, pa.binary()) for name in _unlike(header)])
    batches: list[pa.RecordBatch] = []
    # Arrow reads up to 32 blocks ahead, so blocks are smaller than parts.
    with csv.open_csv(open_(), **_options(header, odd, PART_BYTES // 8)) as reader:
        for batch in chain(reader, [None]):
            batches += [] if batch is None else [batch]
            if batch is not None and sum(one.nbytes for one in batches) < PART_BYTES:
                continue
            part = _placed(source, pa.Table.from_batches(batches, schema), odd, file, before)
            yield part
            before += len(part.lines)
            batches = []


def _options(
    header: list[str], odd: dict[int, tuple[bytes, str]], block_size: int | None = None
) -> dict[str, Any]:
    """How a CSV file is read: cells as they are, odd rows noted by their place and skipped."""
    from pyarrow import csv  # noqa: PLC0415

    def aside(row: csv.InvalidRow) -> str:
        expected = f"Expected {row.expected_columns} columns, got {row.actual_columns}"
        odd[row.number - 1] = (row.text.encode("utf-8", "surrogateescape"), expected)
        return "skip"

    return {
        # Numbers of odd rows are only known where one thread reads.
        "read_options": csv.ReadOptions(
            use_threads=False, column_names=_unlike(header), skip_rows=1, block_size=block_size
        ),
        "parse_options": csv.ParseOptions(
            newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=aside
        ),
        "convert_options": csv.ConvertOptions(
            column_types=dict.fromkeys(_unlike(header), pa.binary()), strings_can_be_null=False
        ),
    }


def _header(data: bytes, file: str) -> list[str]:
    import csv  # noqa: PLC0415

    try:
        line = data[: data.find(b"\n") if b"\n" in data else None].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProfilehouseError(f"{file}: its header is not UTF-8; {AGAIN}") from error
    return next(csv.reader([line.rstrip("\r")]))


def _unlike(header: list[str]) -> list[str]:
    """The header with a name for each column: one without is called after its place."""
    return [name or f"column_{place}" for place, name in enumerate(header, start=1)]


def _parquet(source: Contract, data: bytes, file: str) -> Lines:
    from pyarrow import parquet  # noqa: PLC0415

    try:
        table = parquet.read_table(pa.BufferReader(data))
        texts = [_texts(column) for column in table.columns]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ProfilehouseError(f"{file}: not a whole Parquet file ({reason}); {AGAIN}") from error
    return _placed(source, pa.table(texts, names=table.column_names), {}, file, before=0)


def _parquet_parts(source: Contract, stream: pa.NativeFile, file: str) -> Iterator[Lines]:
    from pyarrow import parquet  # noqa: PLC0415

    before = 0
    for batch in parquet.ParquetFile(stream).iter_batches(_ROWS_AT_ONCE):
        texts = [_texts(pa.chunked_array([column])) for column in batch.columns]
        table = pa.table(texts, names=batch.schema.names)
        yield _placed(source, table, {}, file, before)
        before += batch.num_rows


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values as CSV would have them; no value has no text."""
    if pa.types.is_nested(column.type):
        encoded = [None if v is None else json.dumps(v, default=str) for v in column.to_pylist()]
        column = pa.chunked_array([pa.array(encoded, pa.string())])
    elif pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()).cast(pa.binary()).fill_null(b"")


def _placed(
    source: Contract, table: pa.Table, odd: dict[int, tuple[bytes, str]], file: str, before: int
) -> Lines:
    """The rows as JSON objects, odd ones between them as they were, after `before` lines."""
    _refuse_other_tables(source, table.column_names, file)
    ignored = str(source.properties.get("ignores", ""))
    kept = [name for name in table.column_names if not re.fullmatch(ignored, name)]
    table = table.select(kept)
    rows, unreadable = _objects(source, table)
    if not odd and not unreadable:
        return Lines(rows, before=before)
    lines: list[bytes] = []
    reasons: dict[int, str] = {}

    def add_odd_ones() -> None:
        while (found := odd.get(before + len(lines))) is not None:
            record, reasons[len(lines)] = found
            lines.append(record)

    for index, row in enumerate(rows):
        add_odd_ones()
        if index in unreadable:
            reasons[len(lines)] = unreadable[index]
        lines.append(row)
    add_odd_ones()
    return Lines(lines, reasons, before)


def _refuse_other_tables(source: Contract, header: list[str], file: str) -> None:
    """Raise where columns are missing or stand twice, so that no row could be right."""
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ProfilehouseError(f"{file}: more than one column {', '.join(repeated)}; {AGAIN}")
    missing = [
        name
        for name in (column.delivered_as or column.name for column in source.columns)
        if name not in header
    ]
    required = {c.delivered_as or c.name for c in source.columns if c.required}
    lacking = [name for name in missing if name in required]
    if lacking:
        raise ProfilehouseError(
            f"{file}: has no column {', '.join(lacking)}; it has {', '.join(header)}:"
            f" {AGAIN}, or change {source.path.name}"
        )


def _objects(source: Contract, table: pa.Table) -> tuple[list[bytes], dict[int, str]]:
    """Each row as a JSON object, and why where it is not UTF-8: then its cells, comma-separated."""
    table, broken = _readable(table)
    columns = {column.delivered_as or column.name: column for column in source.columns}
    members = []
    for place, header in enumerate(table.column_names):
        column = columns.get(header)
        name = json.dumps(column.name if column else header, ensure_ascii=False)
        value = _value(f"c{place}", column)
        members.append(f"CASE WHEN c{place} <> '' THEN {_quoted(name + ':')} || {value} END")
    with _engine().cursor() as connection:
        connection.register("cells", table.rename_columns([f"c{n}" for n in range(len(members))]))
        found = connection.sql(
            f"SELECT concat('{{', concat_ws(',', {', '.join(members)}), '}}') AS record"  # noqa: S608
            " FROM cells"
        ).to_arrow_table()
    rows = [b"" if row == b"{}" else row for row in found["record"].cast(pa.binary()).to_pylist()]
    for index, record in broken.items():
        rows[index] = record
    return rows, dict.fromkeys(broken, "Invalid UTF-8")


@cache
def _engine() -> duckdb.DuckDBPyConnection:
    """One for all files: opening it takes longer than reading a small file."""
    import duckdb  # noqa: PLC0415

    return duckdb.connect()


def _readable(table: pa.Table) -> tuple[pa.Table, dict[int, bytes]]:
    """The cells as text, and the rows which are none."""
    try:
        return table.cast(pa.schema([(name, pa.string()) for name in table.column_names])), {}
    except pa.ArrowInvalid:
        cells = [column.to_pylist() for column in table.columns]
    broken: dict[int, bytes] = {}
    for index, row in enumerate(zip(*cells, strict=True)):
        record = b",".join(row)
        try:
            record.decode("utf-8")
        except UnicodeDecodeError:
            broken[index] = record
            for column in cells:
                column[index] = b""
    texts = [pa.array(column, pa.binary()).cast(pa.string()) for column in cells]
    return pa.table(texts, names=table.column_names), broken


def _value(cell: str, column: Column | None) -> str:
    """The SQL of a cell's JSON, by the type the contract says."""
    text = f"to_json({cell})"
    kind = column.type if column else "string"
    if kind == "integer":
        whole = f"split_part({cell}, '.', 1)"
        return (
            f"CASE WHEN regexp_full_match({cell}, '{_WHOLE_NUMBER}') THEN {whole} ELSE {text} END"
        )
    if kind == "number":
        return f"CASE WHEN regexp_full_match({cell}, '{_NUMBER}') THEN {cell} ELSE {text} END"
    if kind == "boolean":
        return (
            f"CASE WHEN lower({cell}) IN ('true', '1') THEN 'true'"
            f" WHEN lower({cell}) IN ('false', '0') THEN 'false' ELSE {text} END"
        )
    if kind in ("object", "array"):
        return f"CASE WHEN json_valid({cell}) THEN {cell} ELSE {text} END"
    if column and kind == "timestamp":
        named = f"strftime(timezone('UTC', TRY_CAST({cell} AS TIMESTAMPTZ)), '\"{_MOMENT}\"')"
        zone = _quoted(column.zone or "")
        local = f"timezone('UTC', timezone({zone}, TRY_CAST({cell} AS TIMESTAMP)))"
        unnamed = f"strftime({local}, '\"{_MOMENT}\"')" if column.zone else "NULL"
        return (
            f"coalesce(CASE WHEN regexp_full_match({cell}, '{_OFFSET}') THEN {named}"
            f" ELSE {unnamed} END, {text})"
        )
    return text


def _quoted(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


_PACKED: dict[str, tuple[str, Callable[[bytes, str], bytes]]] = {
    ".gz": ("gzip", _gunzip),
    ".zst": ("zstd", _unzstd),
}
"""By ending, the codec and what unpacks a whole file."""
_KINDS: dict[str, Callable[[Contract, bytes, str], Lines]] = {
    "jsonl": _json_lines,
    "csv": _csv,
    "parquet": _parquet,
    "log": _web_log,
}
ENDINGS = tuple(_KINDS)
"""What the names of delivered files may end in, before the endings of compression."""
