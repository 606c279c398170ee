"""Files larger than memory: landed in parts, with the outcome of a file that is landed whole."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from profilehouse.contracts import contract
from profilehouse.sources import formats, landing
from profilehouse.sources.landing import Landed, land
from tests.pipeline import DAYS, Installation

DAY = DAYS[0]
HEADER = b"InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
PART = 4096


def csv_rows(count: int) -> bytes:
    """Rows of invoices: some with line breaks, of other lengths, of no text, or refused."""
    rows = []
    for n in range(count):
        text = f'"two\nlines {n}"' if n % 50 == 7 else f"LANTERN {n}"
        quantity = "many" if n % 97 == 3 else n
        row = f"{n},{n},{text},{quantity},{DAY} 08:26:00,2.55,17850,UK".encode()
        row += b",more" if n % 61 == 0 else b""
        rows.append(row.replace(b"LANTERN", b"\xff") if n % 83 == 5 else row)
    return HEADER + b"".join(row + b"\n" for row in [*rows, b"1,2", b"3,4,5"])


def json_rows(count: int) -> bytes:
    mention = {
        "id": "1", "created_at": "2025-04-22T10:00:00Z", "author": "ann", "text": "x",
        "hashtags": "#", "replies": 0, "shares": 0, "likes": 0, "payload": {},
    }  # fmt: skip
    rows = [
        b"no JSON" if n % 71 == 2 else json.dumps(mention | {"id": str(n), "new": n}).encode()
        for n in range(count)
    ]
    return b"\n".join([*rows[: count // 2], b"", *rows[count // 2 :]])


def log_rows(count: int) -> bytes:
    line = '192.0.2.{} - - [22/Apr/2025:10:00:00 +0200] "GET / HTTP/1.1" 200 1 "-" "{}"\n'
    return b"".join(
        b"\x16\x03\n" if n % 40 == 9 else line.format(n % 250, "Firefox").encode()
        for n in range(count)
    )


def parquet(rows: bytes) -> bytes:
    skip = pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda _: "skip")
    table = pa_csv.read_csv(io.BytesIO(rows.replace(b"\xff", b"y")), parse_options=skip)
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=100)
    return sink.getvalue()


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


FORMS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "csv": ("transactions", lambda: csv_rows(1500)),
    "csv.gz": ("transactions", lambda: gzip.compress(csv_rows(1500))),
    "parquet": ("transactions", lambda: parquet(csv_rows(1500))),
    "jsonl": ("mentions", lambda: json_rows(800)),
    "jsonl.zst": ("mentions", lambda: zstd(json_rows(800))),
    "log.gz": ("web_logs", lambda: gzip.compress(log_rows(900))),
}


def landed(folder: Path, source: str, form: str, content: bytes) -> tuple[Landed, Any]:
    (folder / "sources" / source).mkdir(parents=True)
    (folder / "sources" / source / f"{DAY}.{form}").write_bytes(content)
    house = Installation(folder, feeds=source)
    lake = house.platform.lake()
    zone = house.settings.zone
    report = land(contract(source), [DAY], house.platform.sources(), lake, zone)
    again = land(contract(source), [DAY], house.platform.sources(), lake, zone)
    assert again.unchanged == (0 if report.problems else 1)
    tables = [source, "dead_letters", "quarantine", "deliveries"]
    state = [lake.read(name).to_pylist() for name in tables]
    for row in state[-1]:
        del row["landed_at"]
    return report, state


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on every file is too large for memory, and a part a few kilobytes."""

    def begin() -> None:
        monkeypatch.setattr(landing, "LARGE", 0)
        monkeypatch.setattr(formats, "PART_BYTES", PART)
        monkeypatch.setattr(formats, "_ROWS_AT_ONCE", 60)
        monkeypatch.setattr("profilehouse.lake.lake.PART_BYTES", 4 * PART)

    return begin


@pytest.mark.parametrize("form", FORMS)
def test_a_file_in_parts_becomes_what_it_becomes_whole(
    tmp_path: Path, form: str, in_parts: Callable[[], None]
) -> None:
    source, made = FORMS[form]
    content = made()
    whole, there = landed(tmp_path / "whole", source, form, content)
    in_parts()
    parts, here = landed(tmp_path / "parts", source, form, content)
    assert asdict(parts) == asdict(whole)
    assert parts.dead_letters > 0 or form == "parquet"
    assert here == there
    files = list((tmp_path / "parts" / "lake" / source).rglob("*.parquet"))
    assert len(files) > 2


@pytest.mark.parametrize(
    ("form", "content", "said"),
    [
        ("csv.gz", gzip.compress(csv_rows(3000))[:-9], "not a whole csv.gz file"),
        ("csv.zst", zstd(csv_rows(3000))[:-200], "not a whole csv.zst file"),
        ("csv.gz", csv_rows(300), "not a whole csv.gz file"),
        ("csv", b"Other,Columns\n" + b"1,2\n" * 2000, "has no column InvoiceNo"),
        ("csv", csv_rows(300) + b'1,2,"' + b"x" * 9000, "not a whole csv file"),
        ("parquet", parquet(csv_rows(300))[:-9], "not a whole parquet file"),
    ],
    ids=["gzip cut", "zstd cut", "no gzip", "other table", "open quote", "parquet cut"],
)
def test_of_a_file_that_breaks_off_nothing_is_landed_or_left(
    tmp_path: Path, form: str, content: bytes, said: str, in_parts: Callable[[], None]
) -> None:
    in_parts()
    report, state = landed(tmp_path, "transactions", form, content)
    assert said in report.problems[DAY]
    assert "\n" not in report.problems[DAY]
    assert state == [[], [], [], []]
    assert list((tmp_path / "lake").rglob("*.parquet")) == []
