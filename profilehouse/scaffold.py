"""Scaffolds: the files of a new source, dataset, feature or check, in the project's own style.

Belongs here: what is written, and where. What is made works and is tested as it is; its columns,
texts and values are there to be changed. Nothing that exists is overwritten.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from profilehouse.contracts import CONTRACTS_DIR, Column, load_contracts
from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.features import load_declaration

ROOT = CONTRACTS_DIR.parent
_NAME = r"[a-z][a-z0-9_]{0,39}"
_PLACE = ("delivered_on", "line", "received_at", "topic", "occurred_on", "occurred_at")
"""Columns that every table of a feed has."""


@dataclass(frozen=True)
class Made:
    """The files that a scaffold wrote or changed, and what is left to do."""

    files: tuple[Path, ...]
    next_steps: tuple[str, ...]


def new_source(name: str) -> Made:
    """An optional source with a table of the star: contracts, SQL and a test.

    Raises:
        ProfilehouseError: where the name is none, or taken.
    """
    table = f"fct_{name}"
    _refuse_taken(name, table)
    feed = _written({ROOT / f"contracts/feeds/{name}.odcs.yaml": _SOURCE.substitute(name=name)})
    return _with_table(name, table, feed, _columns_of_a_new_source())


def new_dataset(name: str, source: str) -> Made:
    """One more table of the star, filled from an optional source: contract, SQL and a test.

    Raises:
        ProfilehouseError: where the name is none or taken, or there is no such source.
    """
    _refuse_taken(name)
    feeds = {feed.name: feed for feed in load_contracts().values() if feed.kind == "feeds"}
    if source not in feeds:
        raise ProfilehouseError(f"no optional source {source}; there are: {', '.join(feeds)}")
    return _with_table(source, name, {}, feeds[source].columns)


def new_feature(name: str) -> Made:
    """A feature of the profile, which counts clicks: its declaration and a test.

    Raises:
        ProfilehouseError: where the name is none, or taken.
    """
    if name in {feature.name for feature in load_declaration().features}:
        raise ProfilehouseError(f"contracts/profile.yaml has a feature {name} already")
    _refuse_taken(name)
    path = ROOT / "contracts/profile.yaml"
    text = path.read_text("utf-8")
    end = text.index("\n\n", text.index("features:\n")) + 1
    test = {ROOT / f"tests/unit/test_{name}.py": _FEATURE_TEST.substitute(name=name)}
    declared = text[:end] + _FEATURE.substitute(name=name) + text[end:]
    return Made(
        tuple(_written(test) | _written({path: declared}, changed=True)),
        (
            "rebuild the profile store and the table profile",
            "add its values to the profiles made by hand in"
            " tests/integration/test_profile_agreement.py",
            _RENEW,
        ),
    )


def new_check(name: str, dataset: str) -> Made:
    """A rule for the rows of a dataset, in its contract, and a test that makes it fail.

    Raises:
        ProfilehouseError: where the name is none or taken, or there is no such dataset.
    """
    known = {
        c.name: c
        for c in load_contracts().values()
        if c.kind in ("sources", "feeds", "feed_tables", "warehouse")
    }
    if dataset not in known:
        raise ProfilehouseError(f"no dataset {dataset}; there are: {', '.join(known)}")
    if name in {rule.name for rule in known[dataset].quality}:
        raise ProfilehouseError(f"{known[dataset].path} has a rule {name} already")
    _refuse_taken(name)
    column = next((c for c in known[dataset].columns if c.type == "string" and not c.values), None)
    if column is None:
        raise ProfilehouseError(
            f"{dataset} has no column of text, which the made rule is about; write the rule by"
            f" hand, in the quality section of {known[dataset].path.name}"
        )
    path = known[dataset].path
    rule = _RULE.substitute(name=name, column=column.name)
    text = path.read_text("utf-8").rstrip("\n") + "\n"
    before, quality, after = text.partition("\n    quality:\n")
    text = f"{before}{quality}{rule}{after}" if quality else f"{text}    quality:\n{rule}"
    columns = [c for c in known[dataset].columns if c.required or c == column]
    row = textwrap.indent("".join(f'"{c.name}": {_in_python(c)},\n' for c in columns), " " * 4)
    test = _CHECK_TEST.substitute(name=name, dataset=dataset, column=column.name, row=row)
    made = _written({ROOT / f"tests/unit/test_{name}.py": test})
    return Made(
        tuple(made | _written({path: text}, changed=True)),
        (f"raise the version of {path.relative_to(ROOT)}", _RENEW),
    )


_RENEW = (
    "RENEW_SNAPSHOTS=1 python -m pytest tests/unit/test_definitions.py tests/unit/test_reference.py"
)


def _refuse_taken(*names: str) -> None:
    """Raise where a name is none, or a contract or test of that name is there."""
    for name in names:
        if not re.fullmatch(_NAME, name, re.ASCII):
            raise ProfilehouseError(
                f"{name!r} is no name: small letters, digits and _, a letter first, 40 at most"
            )
        if name in load_contracts():
            raise ProfilehouseError(f"{load_contracts()[name].path} declares {name} already")
        for folder in ("unit", "integration"):
            if (path := ROOT / f"tests/{folder}/test_{name}.py").exists():
                raise ProfilehouseError(f"{path} is there already; take another name")


def _written(files: Mapping[Path, str], changed: bool = False) -> dict[Path, None]:
    for path, text in files.items():
        if path.exists() != changed:
            raise ProfilehouseError(f"{path} is {'not there' if changed else 'there already'}")
        path.write_text(text, "utf-8")
    return dict.fromkeys(files)


def _with_table(
    source: str, table: str, made: dict[Path, None], columns: tuple[Column, ...]
) -> Made:
    """Contract, SQL and test of a table that has a source's columns."""
    when = next((c.name for c in columns if c.type == "timestamp" and c.required), "received_at")
    own = [c for c in columns if c.name not in (*_PLACE, when)]
    properties = "".join(
        _PROPERTY.substitute(
            name=c.name,
            type=c.type,
            description=c.description.replace('"', "'"),
            required="\n        required: true" if c.required else "",
            personal="\n        classification: personal" if c.personal else "",
        )
        for c in own
    )
    sql = _SQL.substitute(
        source=source, table=table, when=when, columns="".join(f"    {c.name},\n" for c in own)
    )
    record = textwrap.indent(
        "".join(f'"{c.name}": {_in_json(c)},\n' for c in columns if c.required), " " * 4
    )
    first = own[0].name if own else "line"
    files = {
        ROOT / f"contracts/feed_tables/{table}.odcs.yaml": _TABLE.substitute(
            source=source, table=table, properties=properties
        ),
        ROOT / f"assets/warehouse/sql/{table}.sql": sql,
        ROOT / f"tests/integration/test_{table}.py": _TABLE_TEST.substitute(
            source=source, table=table, record=record, first=first
        ),
    }
    return Made(
        tuple(made | _written(files)),
        (
            f"turn it on with PROFILEHOUSE_FEEDS={source}",
            "RENEW_SNAPSHOTS=1 python -m pytest tests/unit/test_reference.py",
        ),
    )


def _columns_of_a_new_source() -> tuple[Column, ...]:
    return (
        Column("record_id", "string", "The record, as the source names it.", required=True),
        Column("happened_at", "timestamp", "When it happened, UTC.", required=True),
        Column("amount", "number", "How much; missing where it is not known."),
    )


def _in_json(column: Column) -> str:
    """A value that the column takes, in Python's words for JSON."""
    if column.values:
        return f'"{column.values[0]}"'
    whole = 1 if column.minimum is None else int(column.minimum)
    return {
        "string": '"a"',
        "integer": f"{whole:_}",
        "number": f"{float(whole)}",
        "boolean": "True",
        "date": '"2025-04-22"',
        "timestamp": '"2025-04-22T08:00:00Z"',
        "object": '{"a": 1}',
        "array": '["a"]',
        "bytes": '"a"',
    }[column.type]


def _in_python(column: Column) -> str:
    """As `_in_json`, as Arrow takes it."""
    values = {
        "date": "DAY",
        "timestamp": "NOON",
        "object": "'{\"a\": 1}'",
        "bytes": 'b"a"',
    }
    return values.get(column.type, _in_json(column))


_SOURCE = Template("""apiVersion: v3.1.0
kind: DataContract
id: $name
name: $name
version: 1.0.0
status: active
team:
  name: $name-team
schema:
  - name: $name
    description: "What $name delivers."
    dataGranularityDescription: one row a record
    customProperties:
      - property: delivery
        value: on_change
      - property: drift
        value: quarantine
    properties:
      - name: record_id
        logicalType: string
        description: "The record, as the source names it."
        primaryKey: true
        primaryKeyPosition: 1
        required: true
      - name: happened_at
        logicalType: timestamp
        description: "When it happened, UTC."
        required: true
      - name: amount
        logicalType: number
        description: "How much; missing where it is not known."
""")

_TABLE = Template("""apiVersion: v3.1.0
kind: DataContract
id: $table
name: $table
version: 1.0.0
status: active
team:
  name: $source-team
schema:
  - name: $table
    description: "What $source delivers."
    dataGranularityDescription: one row a record
    customProperties:
      - property: feed
        value: $source
      - property: everyRecord
        value: true
      - property: clusterBy
        value: [occurred_on]
        description: Questions name the days things happened.
    properties:
      - name: row_id
        logicalType: string
        description: "The row's key: day of the delivery and line in it."
        primaryKey: true
        primaryKeyPosition: 1
        required: true
$properties      - name: occurred_on
        logicalType: date
        description: "Day it happened, UTC."
        required: true
        partitioned: true
        partitionKeyPosition: 1
      - name: occurred_at
        logicalType: timestamp
        description: "When it happened, UTC."
        required: true
      - name: received_at
        logicalType: timestamp
        description: "When it was delivered, UTC."
        required: true
      - name: delivered_on
        logicalType: date
        description: "Business day of the delivery."
        required: true
      - name: topic
        logicalType: string
        description: "The source it came through."
        required: true
      - name: line
        logicalType: integer
        description: "Its position in that delivery."
        required: true
""")

_PROPERTY = Template("""      - name: $name
        logicalType: $type
        description: "$description"$required$personal
""")

_SQL = Template("""SELECT
    '$source/' || delivered_on || '/' || line AS row_id,
$columns    $when::DATE AS occurred_on,
    $when AS occurred_at,
    received_at,
    delivered_on,
    '$source' AS topic,
    line
FROM staged
""")

_TABLE_TEST = Template('''"""$table: from what $source delivers into the star."""

from __future__ import annotations

from pathlib import Path

from tests.feeds import load
from tests.pipeline import DAYS, Installation

RECORD = {
$record}


def test_every_record_of_${source}_is_one_row_and_others_are_dead_letters(tmp_path: Path) -> None:
    house = Installation(tmp_path, feeds="$source")
    house.deliver("$source", DAYS[0], [RECORD, {**RECORD, "unheard_of": 1}, b"no JSON"])
    load(house, "$source", "$table")
    rows = house.query("SELECT * FROM $table ORDER BY line")
    letters = house.dead_letters()
    assert len(rows) + len(letters) == 3
    assert rows[0]["line"] == 1
    assert str(rows[0]["$first"]) == str(RECORD.get("$first", 1))
    assert letters[-1]["record"] == b"no JSON"
''')

_FEATURE = Template("""  - name: $name
    kind: count
    event_type: click
    windows: [7, 30]
    description: Contents clicked.
""")

_FEATURE_TEST = Template('''"""The profile's feature $name."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any

import pyarrow as pa

from profilehouse.profiles.features import load_declaration
from profilehouse.profiles.fold import EVENT_SCHEMA, Row, absorb
from profilehouse.profiles.reading import profile_at

TODAY = date(2026, 1, 31)


def event(number: int, days_ago: int, event_type: str = "click") -> dict[str, Any]:
    at = datetime(2026, 1, 31, 12) - timedelta(days=days_ago)
    return {
        "event_id": f"e{number}",
        "event_type": event_type,
        "user_id": "u",
        "occurred_at": at,
        "received_at": at,
    }


def test_${name}_are_those_of_the_window() -> None:
    events = [event(1, 0), event(2, 6), event(3, 7), event(4, 30), event(5, 0, "purchase")]
    rows: dict[str, Row] = {}
    absorb(rows, pa.Table.from_pylist(events, EVENT_SCHEMA), load_declaration())
    profile = profile_at("u", rows["u"], load_declaration(), TODAY)
    assert (profile["${name}_7d"], profile["${name}_30d"]) == (2, 3)
''')

_RULE = Template("""      - type: sql
        name: $name
        severity: warning
        description: What is in $column is not empty.
        query: "$column IS NULL OR $column <> ''"
""")

_CHECK_TEST = Template('''"""The rule $name of $dataset."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import pyarrow as pa

from profilehouse.contracts import contract
from profilehouse.quality.rules import row_rules
from profilehouse.quality.sql import arrow_source, check_rows

DATASET = contract("$dataset")
DAY, NOON = date(2025, 4, 22), datetime(2025, 4, 22, 12)
ROW = {
$row}


def failing(*rows: dict[str, Any]) -> int:
    """How many rows break the rule."""
    schema = pa.schema([field.with_nullable(True) for field in DATASET.arrow_schema])
    with arrow_source({DATASET.name: pa.Table.from_pylist(rows, schema)}) as source:
        results = check_rows(DATASET, row_rules(DATASET), source)
    return next(result.failing for result in results if result.name == "$name")


def test_${name}_fails_for_the_rows_that_break_it_only() -> None:
    wrong = {**ROW, "$column": ""}
    assert failing(ROW, ROW) == 0
    assert failing(ROW, wrong, wrong) == 2
''')
