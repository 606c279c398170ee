"""What every lake must do, wherever it lies. Subclasses give the fixture `settings`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta

import pyarrow as pa
import pytest

from profilehouse.contracts import Column, Contract, contract
from profilehouse.errors import ProfilehouseError
from profilehouse.lake import Lake, open_lake
from profilehouse.settings import Settings

FIRST = date(2026, 3, 1)
RECEIVED = datetime(2026, 3, 2, 5)


def day(number: int) -> date:
    return FIRST + timedelta(days=number)


def raw(of: date, lines: Sequence[int], record: str = "{}") -> pa.Table:
    rows = [
        {"delivered_on": of, "line": n, "file": f"{of}", "received_at": RECEIVED, "record": record}
        for n in lines
    ]
    return pa.Table.from_pylist(rows, schema=contract("raw").arrow_schema)


def year(days: int, lines: int = 3, record: str = "{}") -> pa.Table:
    return pa.concat_tables([raw(day(n), range(1, lines + 1), record) for n in range(days)])


def letters(of: date, topic: str, lines: Sequence[int], reason: str = "bad") -> pa.Table:
    rows = [
        {
            "topic": topic,
            "delivered_on": of,
            "line": n,
            "file": f"{topic}/{of}",
            "received_at": RECEIVED,
            "reason": reason,
            "contract_version": "1.0.0",
            "record": b"\xff",
        }
        for n in lines
    ]
    return pa.Table.from_pylist(rows, schema=contract("dead_letters").arrow_schema)


def delivery(of: date, topic: str, sha256: str = "x") -> pa.Table:
    row = {
        "topic": topic,
        "delivered_on": of,
        "file": None,
        "sha256": sha256,
        "records": 1,
        "dead_letters": 0,
        "landed_at": RECEIVED,
    }
    return pa.Table.from_pylist([row], schema=contract("deliveries").arrow_schema)


def layouts(**changed: Contract) -> Callable[[str], Contract]:
    return lambda name: changed[name]


class LakeCases:
    @pytest.fixture
    def lake(self, settings: Settings) -> Lake:
        return open_lake(settings)

    def test_a_table_nobody_wrote_reads_as_empty_in_its_contracts_columns(self, lake: Lake) -> None:
        nothing = lake.read("purchases")
        assert nothing.num_rows == 0
        assert nothing.column_names == ["delivered_on", "line", "file", "received_at", "record"]
        assert lake.days("purchases") == {}
        assert lake.read("events", columns=["user_id", "topic"]).column_names == [
            "user_id",
            "topic",
        ]

    def test_rows_come_back_as_written_in_order_of_their_position(self, lake: Lake) -> None:
        written = pa.concat_tables([raw(day(1), [3, 1, 2]), raw(day(0), [2, 1])])
        lake.replace("purchases", written, days=[day(0), day(1)])
        read = lake.read("purchases")
        assert read.select(["delivered_on", "line"]).to_pylist() == [
            {"delivered_on": day(0), "line": 1},
            {"delivered_on": day(0), "line": 2},
            {"delivered_on": day(1), "line": 1},
            {"delivered_on": day(1), "line": 2},
            {"delivered_on": day(1), "line": 3},
        ]
        assert read.schema.types == contract("raw").arrow_schema.types
        expected = written.sort_by([("delivered_on", "ascending"), ("line", "ascending")])
        assert read.to_pylist() == expected.to_pylist()

    def test_another_opening_of_the_lake_sees_the_rows(
        self, lake: Lake, settings: Settings
    ) -> None:
        lake.replace("purchases", year(3), days=[day(n) for n in range(3)])
        assert open_lake(settings).read("purchases").equals(lake.read("purchases"))

    def test_replacing_a_day_leaves_the_other_days(self, lake: Lake) -> None:
        lake.replace("purchases", year(3), days=[day(n) for n in range(3)])
        lake.replace("purchases", raw(day(1), [1], "new"), days=[day(1)])
        assert lake.days("purchases") == {day(0): 3, day(1): 1, day(2): 3}
        assert lake.read("purchases", days=[day(1)])["record"].to_pylist() == ["new"]

    def test_a_day_replaced_by_nothing_is_empty(self, lake: Lake) -> None:
        lake.replace("purchases", year(3), days=[day(n) for n in range(3)])
        lake.replace("purchases", raw(day(1), []), days=[day(1)])
        assert lake.days("purchases") == {day(0): 3, day(2): 3}
        lake.replace("purchases", raw(day(1), []), days=[day(0), day(2)])
        assert lake.read("purchases").num_rows == 0
        lake.replace("purchases", raw(day(1), [7]), days=[day(1)])
        assert lake.days("purchases") == {day(1): 1}

    def test_replacing_a_topic_leaves_the_other_topics_of_the_day(self, lake: Lake) -> None:
        lake.replace("dead_letters", letters(day(0), "crm", [1, 2]), days=[day(0)], topic="crm")
        lake.replace("dead_letters", letters(day(0), "shop", [1]), days=[day(0)], topic="shop")
        lake.replace("dead_letters", letters(day(0), "crm", [9]), days=[day(0)], topic="crm")
        read = lake.read("dead_letters", columns=["topic", "line", "record"])
        assert read.to_pylist() == [
            {"topic": "crm", "line": 9, "record": b"\xff"},
            {"topic": "shop", "line": 1, "record": b"\xff"},
        ]
        assert lake.read("dead_letters", topic="shop", columns=["line"]).to_pylist() == [
            {"line": 1}
        ]
        assert lake.days("dead_letters") == {day(0): 2}

    def test_a_table_without_partitions_is_replaced_by_day_and_topic_too(self, lake: Lake) -> None:
        for n in (1, 0):
            for topic in ("shop", "crm"):
                lake.replace("deliveries", delivery(day(n), topic), days=[day(n)], topic=topic)
        lake.replace("deliveries", delivery(day(1), "crm", "y"), days=[day(1)], topic="crm")
        read = lake.read("deliveries", columns=["delivered_on", "topic", "sha256"])
        assert [tuple(row.values()) for row in read.to_pylist()] == [
            (day(0), "crm", "x"),
            (day(0), "shop", "x"),
            (day(1), "crm", "y"),
            (day(1), "shop", "x"),
        ]
        assert lake.days("deliveries") == {day(0): 2, day(1): 2}

    def test_days_with_gaps_and_without_are_read_exactly(self, lake: Lake) -> None:
        lake.replace("purchases", year(6), days=[day(n) for n in range(6)])
        for chosen in ([1, 2, 3], [0, 2, 5], [4], [], [9], [5, 6, 7]):
            days = [day(n) for n in chosen]
            read = lake.read("purchases", days=days, columns=["delivered_on"])
            assert set(read["delivered_on"].to_pylist()) == {d for d in days if d <= day(5)}
            assert read.num_rows == 3 * len([n for n in chosen if n <= 5])

    def test_days_with_gaps_are_replaced_exactly(self, lake: Lake) -> None:
        lake.replace("purchases", year(5), days=[day(n) for n in range(5)])
        lake.replace("purchases", raw(day(2), [1]), days=[day(0), day(2), day(4)])
        assert lake.days("purchases") == {day(1): 3, day(2): 1, day(3): 3}

    def test_columns_are_read_in_the_order_asked_for(self, lake: Lake) -> None:
        lake.replace("purchases", raw(day(0), [5]), days=[day(0)])
        read = lake.read("purchases", columns=["record", "line"])
        assert read.to_pylist() == [{"record": "{}", "line": 5}]
        assert read.column_names == ["record", "line"]

    def test_batches_come_day_after_day(self, lake: Lake) -> None:
        days = [day(n) for n in range(40)]
        lake.replace("purchases", year(40), days=days)
        lake.replace("purchases", raw(day(7), [1]), days=[day(7)])
        batches = list(lake.batches("purchases", columns=["delivered_on"], days=days[:-1]))
        assert len(batches) == 39
        seen = [value for batch in batches for value in batch["delivered_on"].to_pylist()]
        assert seen == sorted(seen)
        assert len(seen) == 38 * 3 + 1

    @pytest.mark.parametrize(
        ("rows", "fault"),
        [
            (raw(day(1), [1]), "2026-03-02, which is not to be replaced"),
            (raw(day(0), [1]).drop_columns("record"), r"differ in the columns \['record'\]"),
            (
                raw(day(0), [1])
                .drop_columns("file")
                .append_column("file", pa.nulls(1, pa.string())),
                r"nulls in the mandatory columns \['file'\]",
            ),
        ],
        ids=["another day", "a column less", "a null"],
    )
    def test_rows_that_do_not_belong_there_are_refused(
        self, lake: Lake, rows: pa.Table, fault: str
    ) -> None:
        with pytest.raises(ValueError, match=fault):
            lake.replace("purchases", rows, days=[day(0)])
        assert lake.read("purchases").num_rows == 0

    def test_rows_of_another_topic_are_refused(self, lake: Lake) -> None:
        with pytest.raises(ValueError, match="other topics than crm"):
            lake.replace("dead_letters", letters(day(0), "shop", [1]), days=[day(0)], topic="crm")

    def test_a_column_the_contract_gained_is_null_in_old_rows(self, settings: Settings) -> None:
        old, name = contract("raw"), "crm"
        gained = [Column("colour", "string", "Seen on it."), Column("tags", "array", "Its tags.")]
        new = replace(old, columns=(gained[0], *old.columns, gained[1]))
        open_lake(settings, layouts=layouts(crm=old)).replace(name, raw(day(0), [1]), days=[day(0)])
        lake = open_lake(settings, layouts=layouts(crm=new))
        assert lake.read(name, columns=["colour"]).to_pylist() == [{"colour": None}]

        rows = (
            raw(day(1), [1])
            .append_column("colour", pa.array(["red"]))
            .append_column("tags", pa.array([["a", "b"]]))
        )
        lake.replace(name, rows, days=[day(1)])
        read = lake.read(name, columns=["tags", "line", "colour"])
        assert read.to_pylist() == [
            {"tags": None, "line": 1, "colour": None},
            {"tags": ["a", "b"], "line": 1, "colour": "red"},
        ]

    def test_a_column_that_became_optional_takes_nulls(self, settings: Settings) -> None:
        old = contract("raw")
        loose = tuple(replace(c, required=c.required and c.name != "file") for c in old.columns)
        open_lake(settings).replace("crm", raw(day(0), [1]), days=[day(0)])
        lake = open_lake(settings, layouts=layouts(crm=replace(old, columns=loose)))
        rows = raw(day(1), [1]).drop_columns("file").append_column("file", pa.nulls(1, pa.string()))
        lake.replace("crm", rows, days=[day(1)])
        assert lake.read("crm")["file"].to_pylist() == ["2026-03-01", None]

    def test_a_changed_type_and_a_dropped_column_are_refused_and_harm_nothing(
        self, lake: Lake, settings: Settings
    ) -> None:
        lake.replace("crm", raw(day(0), [1]), days=[day(0)])
        declared = contract("raw")
        retyped = tuple(
            replace(c, type="string") if c.name == "line" else c for c in declared.columns
        )
        for columns, fault in (
            (retyped, "has line as long, .*raw.odcs.yaml as string; a type stays"),
            (declared.columns[:-1], "has a column record that .*raw.odcs.yaml no longer has"),
        ):
            changed = replace(declared, columns=columns)
            other = open_lake(settings, layouts=layouts(crm=changed))
            rows = raw(day(1), [1]).select([c.name for c in columns]).cast(changed.arrow_schema)
            with pytest.raises(ProfilehouseError, match=fault):
                other.replace("crm", rows, days=[day(1)])
            with pytest.raises(ProfilehouseError, match=fault):
                other.read("crm")
        assert lake.days("crm") == {day(0): 1}

    @pytest.mark.parametrize("name", ["nonsense", "raw", "fct_purchase"])
    def test_what_is_no_table_of_the_lake_is_refused_by_name(self, lake: Lake, name: str) -> None:
        with pytest.raises(ProfilehouseError, match=name):
            lake.read(name)

    def test_expired_states_take_their_files_with_them(self, lake: Lake) -> None:
        for generation in ("a", "b", "c"):
            lake.replace("purchases", year(2, 1, generation), days=[day(n) for n in range(2)])
        lake.replace("purchases", raw(day(1), [1], "d"), days=[day(1)])
        before = lake.read("purchases")
        assert len(self.data_files(lake)) == 7
        lake.expire("purchases")
        assert len(self.data_files(lake)) == 7
        lake.expire("purchases", timedelta(0))
        assert len(self.data_files(lake)) == 2
        assert lake.read("purchases").equals(before)
        assert before["record"].to_pylist() == ["c", "d"]
        lake.replace("purchases", raw(day(0), [1], "e"), days=[day(0)])
        assert lake.read("purchases")["record"].to_pylist() == ["e", "d"]

    def data_files(self, lake: Lake) -> list[str]:
        """All Parquet files of the table purchases that exist."""
        raise NotImplementedError
