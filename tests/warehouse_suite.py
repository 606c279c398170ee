"""What every warehouse does: one class of tests, which a module for each engine runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from profilehouse.contracts import Column, Contract, contract, contracts_of
from profilehouse.errors import ProfilehouseError, StaleWriter
from profilehouse.profiles.features import load_declaration, profile_contract
from profilehouse.settings import Settings
from profilehouse.warehouse import Warehouse, open_warehouse
from profilehouse.warehouse.load import (
    LoadReport,
    load_calendar,
    load_derived,
    load_dimension,
    load_fact,
    load_history,
)
from profilehouse.warehouse.ranges import RangeReport, load_ranges, loaded_ranges

SQL_DIR = Path(__file__).resolve().parent.parent / "assets" / "warehouse" / "sql"

Row = dict[str, Any]
Open = Callable[[], AbstractContextManager[Warehouse]]
Load = Callable[..., LoadReport]

DAY_1, DAY_2, DAY_3, DAY_4 = (date(2026, 3, day) for day in (1, 2, 3, 4))
PURCHASES = contract("fct_purchase")
USERS = contract("dim_user")
WEB = contract("fct_web_event")
TOPIC = "topic-1"


def sql_of(table: Contract) -> str:
    return (SQL_DIR / f"{table.name}.sql").read_text("utf-8")


def source_schema(source: str) -> pa.Schema:
    """The layout of `staged` for a dimension: the source's columns and where a record came from."""
    columns = [pa.field(c.name, c.arrow_type) for c in contract(source).columns]
    return pa.schema(
        [
            *columns,
            ("delivered_on", pa.date32()),
            ("line", pa.int64()),
            ("received_at", pa.timestamp("us")),
        ]
    )


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day)


def purchase(line: int, event_id: str = "", **changes: Any) -> Row:
    properties = {
        "store_id": 330,
        "quantity": 1,
        "retail_disc": 0.0,
        "coupon_disc": 0.0,
        "coupon_match_disc": 0.0,
    }
    row = {
        "event_id": event_id or f"purchase:{line}",
        "event_type": "purchase",
        "user_id": "900",
        "content_id": "1095275",
        "category": "PASTRY",
        "campaign_id": None,
        "order_id": "31198570044",
        "value_cents": 50 + line,
        "properties": json.dumps(properties | changes.pop("properties", {})),
        "topic": "purchases",
        "line": line,
    }
    return row | changes


def household(line: int, household_id: int, updated_at: datetime, **changes: Any) -> Row:
    row = {
        "household_id": household_id,
        "age": "19-24",
        "income": "Under 15K",
        "home_ownership": None,
        "marital_status": "Married",
        "household_size": "2",
        "household_comp": "2 Adults No Kids",
        "kids_count": "0",
        "updated_at": updated_at,
        "line": line,
    }
    return row | changes


@dataclass
class Lake:
    """Deliveries in memory: what the callers of the loads read from the real lake."""

    schema: pa.Schema
    days: dict[date, list[Row]] = field(default_factory=dict)
    history_of: str | None = None
    reads: list[list[date]] = field(default_factory=list)

    def deliver(self, day: date, *rows: Row) -> None:
        """Deliver a day, or deliver it again."""
        received = midnight(day) + timedelta(days=1)
        stamped = {"delivered_on": day, "occurred_at": midnight(day), "received_at": received}
        self.days[day] = [{**stamped, **row} for row in rows]

    def fingerprints(self, days: Iterable[date]) -> dict[date, str]:
        return {d: hashlib.sha256(repr(self.days[d]).encode()).hexdigest() for d in days}

    def read(self, days: Sequence[date]) -> list[pa.RecordBatch]:
        self.reads.append(list(days))
        rows = [row for day in days for row in self.days[day]]
        if self.history_of:
            keys = {row[self.history_of] for row in rows}
            rows = [r for rs in self.days.values() for r in rs if r[self.history_of] in keys]
        rows = [{name: row.get(name) for name in self.schema.names} for row in rows]
        return pa.Table.from_pylist(rows, schema=self.schema).to_batches(max_chunksize=3)

    def load(
        self,
        load: Load,
        warehouse: Warehouse,
        table: Contract,
        *days: date,
        sql: str | None = None,
    ) -> LoadReport:
        """Load some days, by default all there are."""
        fingerprints = self.fingerprints(days or self.days)
        return load(warehouse, table, sql or sql_of(table), fingerprints, self.read, self.schema)


def events() -> Lake:
    return Lake(contract("events").arrow_schema)


def crm() -> Lake:
    return Lake(source_schema("crm"), history_of="household_id")


def web_event(event_id: str, **changes: Any) -> Row:
    """A page view of the first day, of somebody who is not logged in."""
    occurred_at = changes.pop("occurred_at", midnight(DAY_1) + timedelta(hours=9))
    row = {
        "event_id": event_id,
        "event_type": "page_view",
        "anonymous_id": "device-1",
        "session_id": "visit-1",
        "occurred_at": occurred_at,
        "received_at": changes.pop("received_at", occurred_at + timedelta(seconds=1)),
        "consent": True,
        "contract_version": "1.0.0",
    }
    return row | changes


@dataclass
class WebLog:
    """A log in memory: what lake/web_events holds of it."""

    partitions: dict[int, list[Row]] = field(default_factory=dict)
    topic_id: str = TOPIC
    reads: list[dict[int, tuple[int, int]]] = field(default_factory=list)
    schema: pa.Schema = contract("web_events").arrow_schema

    def append(self, partition: int, *rows: Row) -> None:
        self.partitions.setdefault(partition, []).extend(rows)

    def ends(self) -> dict[int, tuple[int, int]]:
        """The range of all that is there."""
        return {p: (0, len(rows)) for p, rows in self.partitions.items()}

    def read(self, ranges: Mapping[int, tuple[int, int]]) -> list[pa.RecordBatch]:
        self.reads.append(dict(ranges))
        rows = [
            {
                **row,
                "delivered_on": row["received_at"].date(),
                "topic_id": self.topic_id,
                "log_partition": partition,
                "log_offset": offset,
            }
            for partition, (first, end) in ranges.items()
            for offset, row in enumerate(self.partitions[partition][first:end], first)
        ]
        return pa.Table.from_pylist(rows, schema=self.schema).to_batches(max_chunksize=3)

    def load(
        self,
        warehouse: Warehouse,
        ranges: Mapping[int, tuple[int, int]] | None = None,
        fact: Contract = WEB,
        sql: str | None = None,
    ) -> RangeReport:
        """Load some ranges, by default all there are."""
        return load_ranges(
            warehouse,
            fact,
            sql or sql_of(fact),
            self.topic_id,
            self.ends() if ranges is None else ranges,
            self.read,
            self.schema,
        )


def rows_of(warehouse: Warehouse, table: Contract, *names: str) -> list[tuple[Any, ...]]:
    """The table's rows, ordered by its primary key."""
    columns = names or tuple(c.name for c in table.columns)
    found = warehouse.query(
        f"SELECT {', '.join(columns)} FROM {table.name} ORDER BY {', '.join(table.primary_key)}"
    )
    return list(zip(*(c.to_pylist() for c in found.columns), strict=True))


def bytes_of(warehouse: Warehouse, *tables: Contract) -> bytes:
    """Tables as bytes: equal when every row, value and type is."""
    sink = pa.BufferOutputStream()
    for table in tables:
        names = ", ".join(c.name for c in table.columns)
        order = ", ".join(table.primary_key)
        found = warehouse.query(f"SELECT {names} FROM {table.name} ORDER BY {order}")
        copied = pa.Table.from_pylist(found.to_pylist(), found.schema)  # where null: no leftovers
        with pa.ipc.new_stream(sink, found.schema) as writer:
            writer.write_table(copied.combine_chunks())
    return bytes(sink.getvalue())


def ledger_of(warehouse: Warehouse, table: Contract) -> dict[date, int]:
    found = warehouse.query(
        "SELECT delivered_on, staged_rows FROM load_ledger WHERE table_name = ?", (table.name,)
    )
    return dict(zip(*(c.to_pylist() for c in found.columns), strict=True))


class WarehouseSuite:
    """Subclasses give the fixture `settings`: a warehouse of its own, empty, for each test."""

    @pytest.fixture
    def connect(self, settings: Settings) -> Open:
        return lambda: open_warehouse(settings)

    @pytest.fixture
    def warehouse(self, connect: Open) -> Iterable[Warehouse]:
        with connect() as warehouse:
            yield warehouse

    # facts

    def test_a_purchase_becomes_a_row_with_the_columns_of_the_contract(
        self, warehouse: Warehouse
    ) -> None:
        lake = events()
        properties = {
            "store_id": 406,
            "quantity": 3,
            "retail_disc": 0.29,
            "coupon_disc": 0.55,
            "coupon_match_disc": 0.45,
        }
        lake.deliver(
            DAY_1,
            purchase(
                7, "p", occurred_at=datetime(2026, 3, 1, 11, 53, 26, 123456), properties=properties
            ),
        )
        report = lake.load(load_fact, warehouse, PURCHASES)
        assert report == LoadReport("fct_purchase", {DAY_1: 1}, (), 1)
        assert rows_of(warehouse, PURCHASES) == [
            (
                "p",
                "31198570044",
                hashlib.md5(b"900").hexdigest(),
                hashlib.md5(b"1095275").hexdigest(),
                DAY_1,
                datetime(2026, 3, 1, 11, 53, 26, 123456),
                "900",
                "1095275",
                "PASTRY",
                "406",
                3,
                57,
                29,
                100,
                datetime(2026, 3, 2),
                DAY_1,
                "purchases",
                7,
            )
        ]

    def test_impressions_and_clicks_become_interactions_and_purchases_do_not(
        self, warehouse: Warehouse
    ) -> None:
        lake, table = events(), contract("fct_interaction")
        campaign = {"campaign_id": "26", "order_id": None, "content_id": None, "category": None}
        clicked = {"event_type": "click", "properties": '{"coupon_upc":51380041013}'}
        lake.deliver(
            DAY_1,
            purchase(1),
            purchase(1, "m", **campaign, event_type="impression", topic="mailings")
            | {"properties": None},
            purchase(1, "r", **campaign, topic="redemptions") | clicked,
        )
        lake.load(load_fact, warehouse, table)
        names = ("event_id", "event_type", "campaign_key", "content_id", "coupon_id", "topic")
        key = hashlib.md5(b"26").hexdigest()
        assert rows_of(warehouse, table, *names) == [
            ("m", "impression", key, None, None, "mailings"),
            ("r", "click", key, None, "51380041013", "redemptions"),
        ]

    def test_a_late_event_lands_on_the_day_it_happened(self, warehouse: Warehouse) -> None:
        lake = events()
        lake.deliver(DAY_3, purchase(1, occurred_at=datetime(2026, 3, 1, 23, 59, 59, 999999)))
        lake.load(load_fact, warehouse, PURCHASES)
        assert rows_of(warehouse, PURCHASES, "occurred_on", "delivered_on") == [(DAY_1, DAY_3)]

    def test_any_order_of_days_with_duplicates_late_events_and_repeats_gives_the_same_bytes(
        self, warehouse: Warehouse
    ) -> None:
        lake = events()
        late = midnight(DAY_1)
        lake.deliver(DAY_1, purchase(1, "a"), purchase(2, "b"), purchase(3, "a", value_cents=9))
        lake.deliver(DAY_2)
        lake.deliver(
            DAY_3,
            purchase(1, "b", value_cents=8),
            purchase(2, "c", occurred_at=late),
            purchase(1, "c", topic="a topic before"),
        )
        lake.deliver(DAY_4, purchase(1, "a"), purchase(2, "c"), purchase(3, "d"))
        results = []
        for steps in (
            [[DAY_1, DAY_2, DAY_3, DAY_4]],
            [[DAY_4], [DAY_3], [DAY_2], [DAY_1]],
            [[DAY_3], [DAY_1, DAY_4], [DAY_3, DAY_1], [DAY_2]],
        ):
            for days in steps:
                lake.load(load_fact, warehouse, PURCHASES, *days)
            results.append(bytes_of(warehouse, PURCHASES, contract("load_ledger")))
            positions = rows_of(warehouse, PURCHASES, "event_id", "delivered_on", "topic", "line")
            warehouse.execute("DROP TABLE fct_purchase")
        assert positions == [
            ("a", DAY_1, "purchases", 1),
            ("b", DAY_1, "purchases", 2),
            ("c", DAY_3, "a topic before", 1),
            ("d", DAY_4, "purchases", 3),
        ]
        assert results[0] == results[1] == results[2]

    def test_what_is_loaded_is_not_read_again(self, warehouse: Warehouse) -> None:
        lake = events()
        lake.deliver(DAY_1, purchase(1), purchase(2))
        lake.load(load_fact, warehouse, PURCHASES)
        before = bytes_of(warehouse, PURCHASES, contract("load_ledger"))
        report = lake.load(load_fact, warehouse, PURCHASES)
        assert report == LoadReport("fct_purchase", {}, (), 2)
        assert lake.reads == [[DAY_1]]
        assert bytes_of(warehouse, PURCHASES, contract("load_ledger")) == before

    def test_an_empty_day_stands_in_the_ledger_with_no_rows(self, warehouse: Warehouse) -> None:
        lake = events()
        lake.deliver(DAY_1)
        lake.deliver(DAY_2, purchase(1))
        lake.load(load_fact, warehouse, PURCHASES)
        assert ledger_of(warehouse, PURCHASES) == {DAY_1: 0, DAY_2: 1}

    def test_a_day_delivered_again_replaces_what_it_brought(self, warehouse: Warehouse) -> None:
        lake = events()
        lake.deliver(DAY_1, purchase(1, "a"), purchase(2, "b"))
        lake.deliver(DAY_2, purchase(1, "c"))
        lake.load(load_fact, warehouse, PURCHASES)
        lake.deliver(DAY_1, purchase(1, "a", value_cents=1), purchase(2, "b"), purchase(3, "e"))
        report = lake.load(load_fact, warehouse, PURCHASES)
        assert report.staged_rows == {DAY_1: 3}
        assert lake.reads[1:] == [[DAY_1]]
        values = rows_of(warehouse, PURCHASES, "event_id", "value_cents")
        assert values == [("a", 1), ("b", 52), ("c", 51), ("e", 53)]

    def test_a_duplicate_comes_back_when_the_row_that_hid_it_is_gone(
        self, warehouse: Warehouse
    ) -> None:
        lake = events()
        lake.deliver(DAY_1, purchase(1, "a"), purchase(2, "b"))
        lake.deliver(DAY_2, purchase(1, "c"))
        lake.deliver(DAY_3, purchase(1, "a", value_cents=3))
        lake.load(load_fact, warehouse, PURCHASES)
        lake.deliver(DAY_1, purchase(2, "b"))
        report = lake.load(load_fact, warehouse, PURCHASES, DAY_1)
        assert report.read_again == (DAY_2, DAY_3)
        values = rows_of(warehouse, PURCHASES, "event_id", "delivered_on", "value_cents")
        assert values == [("a", DAY_3, 3), ("b", DAY_1, 52), ("c", DAY_2, 51)]
        assert lake.load(load_fact, warehouse, PURCHASES).staged_rows == {}

    def test_a_duplicate_between_the_old_and_the_new_day_of_an_event_comes_back(
        self, warehouse: Warehouse
    ) -> None:
        lake = events()
        lake.deliver(DAY_1, purchase(1, "a"))
        lake.deliver(DAY_2, purchase(1, "a"))
        lake.deliver(DAY_3)
        lake.load(load_fact, warehouse, PURCHASES)
        lake.deliver(DAY_1)
        lake.deliver(DAY_3, purchase(1, "a"))
        lake.load(load_fact, warehouse, PURCHASES, DAY_1, DAY_3)
        assert rows_of(warehouse, PURCHASES, "delivered_on") == [(DAY_2,)]

    def test_changed_sql_and_a_new_contract_version_load_the_days_again(
        self, warehouse: Warehouse
    ) -> None:
        lake = events()
        lake.deliver(DAY_1, purchase(1))
        lake.load(load_fact, warehouse, PURCHASES)
        doubled = sql_of(PURCHASES).replace("value_cents,", "value_cents * 2 AS value_cents,")
        assert lake.load(load_fact, warehouse, PURCHASES, sql=doubled).staged_rows == {DAY_1: 1}
        assert rows_of(warehouse, PURCHASES, "value_cents") == [(102,)]
        newer = replace(PURCHASES, version="2.0.0")
        assert lake.load(load_fact, warehouse, newer, sql=doubled).staged_rows == {DAY_1: 1}

    def test_a_load_that_fails_leaves_nothing_behind(self, connect: Open) -> None:
        lake = events()
        lake.deliver(DAY_1, purchase(1, "a"))
        with connect() as warehouse:
            lake.load(load_fact, warehouse, PURCHASES)
            before = bytes_of(warehouse, PURCHASES, contract("load_ledger"))
        lake.deliver(DAY_1, purchase(1, "a", value_cents=7))
        lake.deliver(DAY_2, purchase(1, "b", properties={"quantity": "many"}))
        with pytest.raises(Exception, match="many"), connect() as warehouse:
            lake.load(load_fact, warehouse, PURCHASES)
        with connect() as warehouse:
            assert bytes_of(warehouse, PURCHASES, contract("load_ledger")) == before
            lake.deliver(DAY_2, purchase(1, "b"))
            lake.load(load_fact, warehouse, PURCHASES)
            assert rows_of(warehouse, PURCHASES, "event_id", "value_cents") == [("a", 7), ("b", 51)]

    def test_a_dropped_table_is_loaded_anew(self, warehouse: Warehouse) -> None:
        lake = events()
        lake.deliver(DAY_1, purchase(1))
        lake.load(load_fact, warehouse, PURCHASES)
        warehouse.execute("DROP TABLE fct_purchase")
        assert lake.load(load_fact, warehouse, PURCHASES).rows == 1

    def test_a_table_with_other_columns_than_its_contract_is_refused_with_the_remedy(
        self, warehouse: Warehouse
    ) -> None:
        warehouse.create(replace(PURCHASES, columns=PURCHASES.columns[:-1]))
        lake = events()
        lake.deliver(DAY_1, purchase(1))
        with pytest.raises(
            ProfilehouseError, match=r"missing: line \(mandatory\);.*DROP TABLE fct_purchase"
        ):
            lake.load(load_fact, warehouse, PURCHASES)

    def test_a_column_that_the_contract_has_got_is_added_and_filled_when_days_are_loaded_again(
        self, warehouse: Warehouse
    ) -> None:
        lake = events()
        lake.deliver(DAY_1, purchase(1))
        lake.load(load_fact, warehouse, PURCHASES)
        note = Column("note", "string", "A note.")
        newer = replace(PURCHASES, version="1.1.0", columns=(*PURCHASES.columns, note))
        sql = sql_of(PURCHASES).replace("    line\n", "    line,\n    topic AS note\n")
        report = lake.load(load_fact, warehouse, newer, sql=sql)
        assert warehouse.changes == ["column note was added to fct_purchase"]
        assert report.staged_rows == {DAY_1: 1}
        assert rows_of(warehouse, newer, "note") == [("purchases",)]

    def test_what_old_rows_cannot_become_is_refused_with_the_differences_and_what_to_run(
        self, warehouse: Warehouse
    ) -> None:
        older = Column("category", "integer", "A number."), Column("extra", "string", "More.")
        kept = [c for c in PURCHASES.columns if c.name not in ("category", "line")]
        warehouse.create(replace(PURCHASES, columns=(*kept, *older)))
        with pytest.raises(ProfilehouseError) as caught:
            warehouse.create(PURCHASES)
        kinds = [Column("", kind, "").sql_type(warehouse.dialect) for kind in ("integer", "string")]
        assert str(caught.value) == (
            "warehouse table fct_purchase does not fit its contract"
            f" {PURCHASES.version} (missing: line (mandatory); unknown:"
            f" extra; of another type: category is {kinds[0]}, not {kinds[1]}): run DROP TABLE"
            " fct_purchase in the warehouse, then materialize warehouse/fct_purchase, all its days"
        )
        warehouse.execute("DROP TABLE fct_purchase")
        warehouse.create(replace(PURCHASES, columns=(*PURCHASES.columns, older[1])))
        with pytest.raises(
            ProfilehouseError, match="run ALTER TABLE fct_purchase DROP COLUMN extra"
        ):
            warehouse.create(PURCHASES)

    def test_a_table_that_is_as_its_contract_says_is_left_alone(self, warehouse: Warehouse) -> None:
        for table in (*contracts_of("warehouse"), profile_contract(load_declaration())):
            warehouse.create(table)
            warehouse.create(table)
            assert warehouse.fits(table), table.name
        assert warehouse.changes == []

    def test_sql_that_yields_other_columns_than_the_contract_is_refused(
        self, warehouse: Warehouse
    ) -> None:
        lake = events()
        lake.deliver(DAY_1, purchase(1))
        *names, last = (c.name for c in PURCHASES.columns)
        for columns, says in (
            (names, f"without {last}"),
            ([*names, "user_id AS more"], f"without {last} and with more besides"),
            ([last, *names], "in another order"),
        ):
            sql = f"SELECT {', '.join(columns)} FROM staged"
            with pytest.raises(
                ProfilehouseError, match=rf"{PURCHASES.version}, but {says}: change"
            ):
                lake.load(load_fact, warehouse, PURCHASES, sql=sql)

    # events of the web

    def test_an_event_of_the_web_becomes_a_row_with_the_columns_of_the_contract(
        self, warehouse: Warehouse
    ) -> None:
        log = WebLog()
        everything = {
            "event_type": "purchase",
            "user_id": "900",
            "content_id": "1095275",
            "category": "PASTRY",
            "campaign_id": "26",
            "order_id": "77",
            "value_cents": 250,
            "occurred_at": datetime(2026, 3, 1, 23, 59, 59, 999999),
            "url": "https://shop.example/p/1095275",
            "referrer": "https://search.example",
            "device": "phone",
            "properties": '{"coupon":"A"}',
        }
        log.append(3, web_event("nobody's", consent=False), web_event("p", **everything))
        report = log.load(warehouse)
        assert report == RangeReport("fct_web_event", {3: [(0, 2)]}, 2, False, 2)
        nobodys, [*row] = rows_of(warehouse, WEB)
        keys = [hashlib.md5(key).hexdigest() for key in (b"900", b"1095275", b"26")]
        happened = everything["occurred_at"]
        assert row == [
            *("p", "purchase", *keys, DAY_1, happened, "900", "device-1", "visit-1"),
            *("1095275", "PASTRY", "26", "77", 250, everything["url"], everything["referrer"]),
            *("phone", True, everything["properties"], happened + timedelta(seconds=1), DAY_2),
            *(TOPIC, 3, 1),
        ]
        assert nobodys[:5] == ("nobody's", "page_view", None, None, None)
        assert rows_of(warehouse, WEB, "consent") == [(False,), (True,)]

    def test_plans_that_are_repeated_overlap_or_come_in_any_order_leave_the_same_tables(
        self, warehouse: Warehouse
    ) -> None:
        log = WebLog()
        log.append(0, *(web_event(i, value_cents=n) for n, i in enumerate("abcdbaefgh")))
        log.append(7, *(web_event(i, value_cents=n) for n, i in enumerate("ixyxhz", 100)))
        results = []
        for plans in (
            [log.ends()],
            [log.ends(), log.ends()],
            [{0: (6, 10)}, {7: (3, 6)}, {0: (4, 7)}, {7: (0, 3), 0: (0, 10)}],
            [{0: (2, 4)}, {0: (6, 8)}, {0: (0, 10), 7: (0, 2)}, {7: (1, 6)}, {0: (3, 3)}],
        ):
            for plan in plans:
                log.load(warehouse, plan)
            results.append(bytes_of(warehouse, WEB, contract("web_load_ledger")))
            assert loaded_ranges(warehouse, TOPIC) == {0: [(0, 10)], 7: [(0, 6)]}
            values = rows_of(warehouse, WEB, "event_id", "value_cents", "log_partition")
            warehouse.execute("DROP TABLE fct_web_event")
        assert len(values) == 12
        assert {(i, n) for i, n, _ in values} >= {("a", 0), ("b", 1), ("h", 9), ("x", 101)}
        assert all(result == results[0] for result in results)

    def test_what_the_ledger_has_is_not_read_again_be_it_a_part_of_a_range(
        self, warehouse: Warehouse
    ) -> None:
        log = WebLog()
        log.append(0, *(web_event(str(n)) for n in range(10)))
        log.append(1, web_event("x"))
        log.load(warehouse, {0: (2, 4)})
        log.load(warehouse, {0: (6, 7)})
        report = log.load(warehouse, {0: (0, 9), 1: (0, 1)})
        assert report.loaded == {0: [(0, 2), (4, 6), (7, 9)], 1: [(0, 1)]}
        assert report.staged_rows == 7
        assert log.reads[2:] == [{0: (0, 2), 1: (0, 1)}, {0: (4, 6)}, {0: (7, 9)}]
        assert loaded_ranges(warehouse, TOPIC) == {0: [(0, 9)], 1: [(0, 1)]}
        assert log.load(warehouse, {0: (1, 8)}) == RangeReport("fct_web_event", {}, 0, False, 10)
        assert len(log.reads) == 5

    def test_a_hole_in_what_is_loaded_is_seen(self, warehouse: Warehouse) -> None:
        log = WebLog()
        assert loaded_ranges(warehouse, TOPIC) == {}
        log.append(0, *(web_event(str(n)) for n in range(9)))
        log.load(warehouse, {0: (5, 9)})
        log.load(warehouse, {0: (0, 3)})
        assert loaded_ranges(warehouse, TOPIC) == {0: [(0, 3), (5, 9)]}

    def test_a_range_whose_records_were_all_refused_is_loaded_with_no_rows(
        self, warehouse: Warehouse
    ) -> None:
        log = WebLog(partitions={0: []})
        report = log.load(warehouse, {0: (0, 5)})
        assert (report.loaded, report.rows) == ({0: [(0, 5)]}, 0)
        assert loaded_ranges(warehouse, TOPIC) == {0: [(0, 5)]}

    def test_events_of_another_topic_are_refused_with_the_remedy(
        self, warehouse: Warehouse
    ) -> None:
        log, other = WebLog(), WebLog(topic_id="topic-2")
        log.append(0, web_event("a"))
        other.append(0, web_event("b"), web_event("c"))
        log.load(warehouse)
        before = bytes_of(warehouse, WEB, contract("web_load_ledger"))
        says = r"id topic-1, these are of topic-2: .* DROP TABLE fct_web_event .* materialize"
        with pytest.raises(ProfilehouseError, match=says):
            other.load(warehouse)
        with pytest.raises(ProfilehouseError, match=says):
            loaded_ranges(warehouse, "topic-2")
        assert bytes_of(warehouse, WEB, contract("web_load_ledger")) == before
        warehouse.execute("DROP TABLE fct_web_event")
        assert loaded_ranges(warehouse, "topic-2") == {}
        assert other.load(warehouse).rows == 2
        assert loaded_ranges(warehouse, "topic-2") == {0: [(0, 2)]}

    def test_changed_sql_loads_all_that_was_loaded_again(self, warehouse: Warehouse) -> None:
        log = WebLog()
        log.append(0, *(web_event(i, value_cents=1) for i in "abca"))
        log.load(warehouse, {0: (0, 2)})
        log.load(warehouse, {0: (3, 4)})
        doubled = sql_of(WEB).replace("value_cents,", "value_cents * 2 AS value_cents,")
        report = log.load(warehouse, {0: (1, 3)}, sql=f"{doubled} WHERE event_id <> 'b'")
        assert (report.anew, report.loaded, report.staged_rows) == (True, {0: [(0, 4)]}, 4)
        values = rows_of(warehouse, WEB, "event_id", "value_cents", "log_offset")
        assert values == [("a", 2, 0), ("c", 2, 2)]
        assert log.load(warehouse, sql=f"{doubled} WHERE event_id <> 'b'").loaded == {}

    def test_rows_that_were_not_asked_for_are_a_mistake(self, warehouse: Warehouse) -> None:
        log = WebLog()
        log.append(0, *(web_event(i) for i in "abc"))
        for asked in ({0: (0, 3)}, {1: (0, 3)}, {0: (1, 4)}):
            with pytest.raises(ValueError, match="not asked for"):
                load_ranges(
                    warehouse,
                    WEB,
                    sql_of(WEB),
                    TOPIC if asked != {0: (0, 3)} else "topic-2",
                    asked,
                    lambda _: log.read({0: (0, 3)}),
                    log.schema,
                )
        assert loaded_ranges(warehouse, TOPIC) == {}

    def test_a_load_of_ranges_that_fails_leaves_nothing_behind(self, connect: Open) -> None:
        log = WebLog()
        log.append(0, web_event("a", device="1"), web_event("b", device="many"))
        number = sql_of(WEB).replace("device,", "device::BIGINT::VARCHAR AS device,")
        with connect() as warehouse:
            log.load(warehouse, {0: (0, 1)}, sql=number)
            before = bytes_of(warehouse, WEB, contract("web_load_ledger"))
        with pytest.raises(Exception, match="many"), connect() as warehouse:
            log.load(warehouse, sql=number)
        with connect() as warehouse:
            assert bytes_of(warehouse, WEB, contract("web_load_ledger")) == before

    def test_of_two_loads_at_once_the_later_one_loses_and_loads_nothing(
        self, connect: Open
    ) -> None:
        log = WebLog()
        log.append(0, *(web_event(i) for i in "abcd"))
        with connect() as warehouse, connect() as other:
            log.load(warehouse, {0: (0, 1)})

            def read(ranges: Mapping[int, tuple[int, int]]) -> list[pa.RecordBatch]:
                log.load(other, {0: (0, 2)})
                return log.read(ranges)

            with pytest.raises(StaleWriter, match="another load of fct_web_event"):
                load_ranges(warehouse, WEB, sql_of(WEB), TOPIC, {0: (1, 4)}, read, log.schema)
            assert loaded_ranges(warehouse, TOPIC) == {0: [(0, 2)]}
            assert log.load(warehouse).loaded == {0: [(2, 4)]}

    def test_a_table_derived_from_events_of_the_web_is_written_again_when_they_changed(
        self, warehouse: Warehouse
    ) -> None:
        table = replace(contract("dim_campaign"), name="seen", columns=USERS.columns[:1])
        table = replace(table, primary_key=("user_key",), cluster_by=())
        sql = "SELECT DISTINCT user_key FROM fct_web_event"
        log = WebLog()
        log.append(0, web_event("a", user_id="1"), web_event("b", user_id="2"))
        log.load(warehouse, {0: (0, 1)})
        assert load_derived(warehouse, table, sql, ["fct_web_event"], DAY_1).rows == 1
        warehouse.execute("DELETE FROM seen")
        assert load_derived(warehouse, table, sql, ["fct_web_event"], DAY_1).rows == 0
        log.load(warehouse)
        assert load_derived(warehouse, table, sql, ["fct_web_event"], DAY_1).rows == 2

    # history

    def test_a_household_that_changes_and_changes_back_has_three_versions(
        self, warehouse: Warehouse
    ) -> None:
        lake = crm()
        first, second, third = (datetime(2026, 3, day, 8) for day in (1, 2, 3))
        lake.deliver(DAY_1, household(1, 7, first))
        lake.deliver(DAY_2, household(1, 7, second, home_ownership="Renter"))
        lake.deliver(DAY_3, household(1, 7, third), household(2, 8, third))
        lake.load(load_history, warehouse, USERS)
        names = ("user_id", "valid_from", "valid_to", "is_current", "home_ownership")
        versions = rows_of(warehouse, USERS, *names)
        assert sorted(versions) == [
            ("7", first, second, False, None),
            ("7", second, third, False, "Renter"),
            ("7", third, None, True, None),
            ("8", third, None, True, None),
        ]

    def test_records_that_say_the_same_again_make_no_new_version(
        self, warehouse: Warehouse
    ) -> None:
        lake = crm()
        lake.deliver(DAY_1, household(1, 7, midnight(DAY_1)))
        lake.deliver(DAY_2, household(1, 7, midnight(DAY_2)))
        lake.deliver(DAY_3, household(1, 7, midnight(DAY_3), kids_count="1"))
        lake.load(load_history, warehouse, USERS)
        versions = rows_of(warehouse, USERS, "valid_from", "valid_to", "kids_count")
        assert versions == [
            (midnight(DAY_1), midnight(DAY_3), "0"),
            (midnight(DAY_3), None, "1"),
        ]

    def test_a_later_delivery_corrects_a_record_of_the_same_moment(
        self, warehouse: Warehouse
    ) -> None:
        lake = crm()
        lake.deliver(DAY_1, household(1, 7, midnight(DAY_1)))
        lake.deliver(
            DAY_2,
            household(1, 7, midnight(DAY_1), kids_count="1"),
            household(2, 7, midnight(DAY_1), kids_count="2"),
        )
        lake.load(load_history, warehouse, USERS)
        assert rows_of(warehouse, USERS, "valid_from", "kids_count") == [(midnight(DAY_1), "2")]

    def test_history_is_the_same_in_whatever_order_the_days_are_loaded(
        self, warehouse: Warehouse
    ) -> None:
        lake = crm()
        lake.deliver(DAY_1, household(1, 7, midnight(DAY_1)), household(2, 8, midnight(DAY_1)))
        lake.deliver(DAY_2, household(1, 7, midnight(DAY_2), kids_count="1"))
        lake.deliver(DAY_3, household(1, 7, midnight(DAY_1) - timedelta(days=9), age="65+"))
        results = []
        for steps in (
            [[DAY_1, DAY_2, DAY_3]],
            [[DAY_3], [DAY_2], [DAY_1]],
            [[DAY_2], [DAY_2], [DAY_1, DAY_3]],
        ):
            for days in steps:
                lake.load(load_history, warehouse, USERS, *days)
            results.append(bytes_of(warehouse, USERS, contract("load_ledger")))
            warehouse.execute("DROP TABLE dim_user")
        assert results[0] == results[1] == results[2]

    def test_a_delivery_leaves_other_households_alone_and_a_repeat_changes_nothing(
        self, warehouse: Warehouse
    ) -> None:
        lake = crm()
        lake.deliver(DAY_1, household(1, 7, midnight(DAY_1)), household(2, 8, midnight(DAY_1)))
        lake.load(load_history, warehouse, USERS)
        lake.deliver(DAY_2, household(1, 8, midnight(DAY_2), kids_count="1"))
        report = lake.load(load_history, warehouse, USERS)
        assert (report.staged_rows, report.rows) == ({DAY_2: 1}, 3)
        before = bytes_of(warehouse, USERS, contract("load_ledger"))
        assert lake.load(load_history, warehouse, USERS).staged_rows == {}
        assert bytes_of(warehouse, USERS, contract("load_ledger")) == before
        assert lake.reads == [[DAY_1], [DAY_2]]

    def test_a_household_that_a_day_delivered_again_no_longer_has_loses_that_version(
        self, warehouse: Warehouse
    ) -> None:
        lake = crm()
        lake.deliver(DAY_1, household(1, 7, midnight(DAY_1)))
        lake.deliver(
            DAY_2, household(1, 7, midnight(DAY_2), age="65+"), household(2, 8, midnight(DAY_2))
        )
        lake.load(load_history, warehouse, USERS)
        lake.deliver(DAY_2)
        report = lake.load(load_history, warehouse, USERS, DAY_2)
        assert report.read_again == (DAY_1,)
        assert rows_of(warehouse, USERS, "user_id", "valid_to") == [("7", None)]

    # dimensions without history

    def test_a_content_is_what_the_newest_delivery_says(self, warehouse: Warehouse) -> None:
        lake, table = Lake(source_schema("products")), contract("dim_content")
        product = {
            "product_id": 25671,
            "manufacturer_id": 2,
            "department": "GROCERY",
            "brand": "National",
            "product_category": "FRZN ICE",
            "product_type": "ICE - CRUSHED/CUBED",
            "package_size": "22 LB",
        }
        lake.deliver(DAY_1, product | {"line": 1}, product | {"line": 2, "product_id": 26081})
        lake.deliver(
            DAY_2,
            product | {"line": 1, "brand": "Private"},
            product | {"line": 2, "package_size": None},
        )
        lake.load(load_dimension, warehouse, table)
        rows = rows_of(warehouse, table)
        assert sorted(row[1:] for row in rows) == [
            ("25671", "GROCERY", "FRZN ICE", "ICE - CRUSHED/CUBED", "National", "2", None),
            ("26081", "GROCERY", "FRZN ICE", "ICE - CRUSHED/CUBED", "National", "2", "22 LB"),
        ]
        assert {row[0] for row in rows} == {
            hashlib.md5(key).hexdigest() for key in (b"25671", b"26081")
        }

    def test_a_dimension_is_written_again_only_when_a_delivery_changed_or_is_gone(
        self, warehouse: Warehouse
    ) -> None:
        lake, table = Lake(source_schema("campaigns")), contract("dim_campaign")
        campaign = {"campaign_type": "Type A", "start_date": DAY_1, "end_date": DAY_4}
        lake.deliver(DAY_1, campaign | {"campaign_id": 1, "line": 1})
        lake.deliver(DAY_2, campaign | {"campaign_id": 2, "line": 1})
        lake.load(load_dimension, warehouse, table)
        assert lake.load(load_dimension, warehouse, table).staged_rows == {}
        assert lake.reads == [[DAY_1, DAY_2]]
        del lake.days[DAY_1]
        report = lake.load(load_dimension, warehouse, table)
        assert (report.staged_rows, report.rows) == ({DAY_2: 1}, 1)
        columns = ("campaign_id", "campaign_type", "starts_on", "ends_on")
        assert rows_of(warehouse, table, *columns) == [("2", "Type A", DAY_1, DAY_4)]
        assert ledger_of(warehouse, table) == {DAY_2: 1}

    def test_the_calendar_knows_iso_weeks_and_weekends(self, warehouse: Warehouse) -> None:
        table = contract("dim_date")
        first, last = date(2027, 12, 31), date(2028, 12, 31)
        report = load_calendar(warehouse, table, sql_of(table), first, last)
        assert report.rows == 367
        found = warehouse.query(
            "SELECT * FROM dim_date WHERE date IN (?, ?, ?) ORDER BY date",
            (date(2028, 1, 1), date(2028, 2, 29), date(2028, 12, 31)),
        )
        assert [tuple(row.values()) for row in found.to_pylist()] == [
            (date(2028, 1, 1), 2028, 1, 1, 52, 6, True),
            (date(2028, 2, 29), 2028, 1, 2, 9, 2, False),
            (date(2028, 12, 31), 2028, 4, 12, 52, 7, True),
        ]
        assert load_calendar(warehouse, table, sql_of(table), first, last).staged_rows == {}
        longer = load_calendar(warehouse, table, sql_of(table), first, last + timedelta(days=1))
        assert longer.rows == 368

    def test_a_table_derived_from_facts_is_written_again_only_when_they_changed(
        self, warehouse: Warehouse
    ) -> None:
        table = replace(contract("dim_campaign"), name="buyers", columns=USERS.columns[:1])
        sql = "SELECT DISTINCT user_key FROM fct_purchase"
        table = replace(table, primary_key=("user_key",), cluster_by=())
        lake = events()
        lake.deliver(DAY_1, purchase(1))
        lake.load(load_fact, warehouse, PURCHASES)
        assert load_derived(warehouse, table, sql, ["fct_purchase"], DAY_1).rows == 1
        warehouse.execute("DELETE FROM buyers")
        assert load_derived(warehouse, table, sql, ["fct_purchase"], DAY_1).rows == 0
        lake.deliver(DAY_2, purchase(1, "other", user_id="901"))
        lake.load(load_fact, warehouse, PURCHASES)
        assert load_derived(warehouse, table, sql, ["fct_purchase"], DAY_1).rows == 2

    # operations

    def test_a_failed_swap_keeps_the_old_rows(self, connect: Open) -> None:
        table = contract("dim_date")
        with connect() as warehouse:
            load_calendar(warehouse, table, sql_of(table), DAY_1, DAY_4)
        broken = sql_of(table).replace("YEAR(day)", "CAST('year' AS BIGINT)")
        with pytest.raises(Exception, match="year"), connect() as warehouse:
            load_calendar(warehouse, table, broken, DAY_1, DAY_2)
        with connect() as warehouse:
            assert len(rows_of(warehouse, table)) == 4

    def test_a_query_gives_the_same_types_on_every_engine(self, warehouse: Warehouse) -> None:
        lake = events()
        lake.deliver(DAY_1, purchase(1), purchase(2))
        lake.load(load_fact, warehouse, PURCHASES)
        sql = (
            "SELECT COUNT(*) AS rows_, AVG(value_cents) AS mean, MAX(occurred_at) AS newest,"
            " MAX(received_at) IS NULL AS never, MIN(occurred_on) AS first_day,"
            " MAX(category) AS category FROM fct_purchase WHERE user_id = ?"
        )
        found = warehouse.query(sql, ("900",))
        assert found.schema == pa.schema(
            [
                ("rows_", pa.int64()),
                ("mean", pa.float64()),
                ("newest", pa.timestamp("us")),
                ("never", pa.bool_()),
                ("first_day", pa.date32()),
                ("category", pa.string()),
            ]
        )
        assert found.to_pylist() == [
            {
                "rows_": 2,
                "mean": 51.5,
                "newest": midnight(DAY_1),
                "never": False,
                "first_day": DAY_1,
                "category": "PASTRY",
            }
        ]
        none = warehouse.query("SELECT line, occurred_at FROM fct_purchase WHERE line > ?", (5,))
        assert none.schema == pa.schema([("line", pa.int64()), ("occurred_at", pa.timestamp("us"))])
        assert none.num_rows == 0

    @pytest.mark.parametrize(
        "text", ["O'Hara; DROP TABLE fct_purchase; --", "50 % \\n", "\u202eå 田\n🍕", ""]
    )
    def test_hostile_text_is_data_and_nothing_else(self, warehouse: Warehouse, text: str) -> None:
        lake = events()
        lake.deliver(DAY_1, purchase(1, user_id=text))
        lake.load(load_fact, warehouse, PURCHASES)
        found = warehouse.query("SELECT user_id FROM fct_purchase WHERE user_id = ?", (text,))
        assert found.column("user_id").to_pylist() == [text]

    def test_the_schema_of_a_table_is_that_of_its_rows(self, warehouse: Warehouse) -> None:
        for table in (PURCHASES, WEB, USERS, profile_contract(load_declaration())):
            warehouse.create(table)
            rows = warehouse.query(f"SELECT * FROM {table.name}")
            assert warehouse.schema_of(table.name) == rows.schema
            assert rows.schema.names == table.arrow_schema.names
        with pytest.raises(ProfilehouseError, match="materialize its asset first"):
            warehouse.schema_of("fct_nothing")

    def test_tables_are_not_made_inside_a_transaction(self, warehouse: Warehouse) -> None:
        with pytest.raises(RuntimeError, match="create"), warehouse.transaction():
            warehouse.create(PURCHASES)
        assert warehouse.columns("fct_purchase") == {}

    def test_what_a_transaction_did_is_gone_when_it_fails(self, warehouse: Warehouse) -> None:
        lake = events()
        lake.deliver(DAY_1, purchase(1))
        lake.load(load_fact, warehouse, PURCHASES)

        def interrupted() -> None:
            with warehouse.transaction():
                warehouse.execute("DELETE FROM fct_purchase")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert len(rows_of(warehouse, PURCHASES)) == 1
