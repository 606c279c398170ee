"""Strings that break programs, in every text column: from files into the star as they were.

Those of the Big List of Naughty Strings where it lies in ../shared/data beside the repository,
otherwise a few of the same kinds.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from profilehouse.contracts import contract
from tests.feeds import load
from tests.pipeline import DAYS, Installation

LIST = Path(__file__).resolve().parents[3] / "shared" / "data" / "bad_input" / "blns" / "blns.json"
A_FEW = [
    "undefined", "NULL", "1E+02", "0x0", "١٢٣", "́͂", "田中さん", "👩🏽", "1'; DROP TABLE users--",
    "<script>alert(1)</script>", "$(touch /blns.fail)", "{% print 'x' %}", "\ufeff", "\u202e",
    "\x00", "\x07\x1b[31m", 'a "b", c\nd', "C:\\nul", "%s%n", "-1e309", "NaN", "' OR 1=1 -- 1", " ",
    "=1+1",
]  # fmt: skip
FIRST = DAYS[0]


@pytest.fixture(scope="module")
def strings() -> list[str]:
    found = json.loads(LIST.read_text("utf-8")) if LIST.exists() else A_FEW
    return [text for text in found if text]


def test_in_a_csv_file(tmp_path: Path, strings: list[str]) -> None:
    source = contract("transactions")
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow([column.delivered_as for column in source.columns])
    for text in strings:
        writer.writerow([7, text, text, 1, f"{FIRST} 08:26:00", 1.5, "", text])
    house = Installation(tmp_path, feeds="transactions")
    (house.sources / "transactions").mkdir(parents=True)
    (house.sources / "transactions" / f"{FIRST}.csv").write_text(
        sink.getvalue(), "utf-8", newline=""
    )
    load(house, "transactions", "fct_transaction")
    rows = house.query("SELECT * FROM fct_transaction ORDER BY line")
    assert {letter["reason"] for letter in house.dead_letters()} == set()
    for name in ("content_id", "description", "country"):
        assert [row[name] for row in rows] == strings


def test_in_json_lines(tmp_path: Path, strings: list[str]) -> None:
    house = Installation(tmp_path, feeds="mentions")
    record = {"created_at": "2025-04-22T10:00:00Z", "replies": 0, "shares": 0, "likes": 0}
    texts = ("author", "text", "language", "url", "hashtags")
    house.deliver(
        "mentions",
        FIRST,
        [
            {**record, "id": f"{n} {text}", **dict.fromkeys(texts, text), "payload": {text: text}}
            for n, text in enumerate(strings)
        ],
    )
    load(house, "mentions", "fct_mention")
    rows = house.query("SELECT * FROM fct_mention ORDER BY line")
    assert house.dead_letters() == []
    for name in ("text", "language", "url", "topics"):
        assert [row[name] for row in rows] == strings
    assert [row["mention_id"] for row in rows] == [f"{n} {t}" for n, t in enumerate(strings)]
