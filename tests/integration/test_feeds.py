"""Feeds: optional sources, from what they deliver to the lake, the star and the profiles."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from profilehouse.contracts import contract
from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.serving import read_profile
from profilehouse.sources.feeds import enabled_feeds
from profilehouse.sources.landing import Landed, land
from profilehouse.sources.landing import records as typed
from tests.feeds import load, loaded
from tests.pipeline import DAYS, Installation, deliver
from tests.sending import DECLARATION, event, follow, lines, run

FIRST, SECOND = DAYS[:2]
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
SALE = f'536365,85123A,"HEART, ""WHITE""",6,{FIRST} 08:26:00,2.55,17850.0,United Kingdom'
INVOICES = [
    SALE,
    SALE,
    f"536365,85123A,HEART,2,{FIRST} 08:26:00,2.55,17850.0,United Kingdom",
    f"C536379,D,Discount,-1,{FIRST} 09:41:00,27.50,17850.0,United Kingdom",
    f"536414,22139,,56,{FIRST} 11:52:00,0.0,,United Kingdom",
    f"536589,21777,broken,-10,{FIRST} 16:50:00,0.0,,United Kingdom",
]


@pytest.fixture
def house(tmp_path: Path) -> Installation:
    (tmp_path / "sources" / "transactions").mkdir(parents=True)
    return Installation(tmp_path, feeds="transactions")


def invoices(*rows: str | bytes) -> bytes:
    cells = (row if isinstance(row, bytes) else row.encode() for row in (HEADER, *rows))
    return b"".join(row + b"\n" for row in cells)


def put(house: Installation, name: str, content: bytes) -> Path:
    path = house.sources / "transactions" / name
    path.write_bytes(content)
    return path


def landed(house: Installation, *days: date) -> Landed:
    source, settings = contract("transactions"), house.settings
    return land(
        source, days or (FIRST,), house.platform.sources(), house.platform.lake(), settings.zone
    )


def records(house: Installation) -> list[tuple[int, dict[str, Any]]]:
    rows = house.platform.lake().read("transactions").to_pylist()
    return [(row["line"], json.loads(row["record"])) for row in rows]


# What files are written in


def test_a_row_of_a_csv_file_is_a_record_by_the_names_and_types_of_the_contract(
    house: Installation,
) -> None:
    put(house, f"{FIRST}.csv.gz", gzip.compress(invoices(*INVOICES)))
    assert landed(house).records == len(INVOICES)
    found = records(house)
    assert [line for line, _ in found] == [2, 3, 4, 5, 6, 7]
    assert found[0][1] == {
        "invoice_id": "536365",
        "stock_code": "85123A",
        "description": 'HEART, "WHITE"',
        "quantity": 6,
        "invoiced_at": f"{FIRST}T07:26:00.000000Z",
        "unit_price": 2.55,
        "customer_id": 17850,
        "country": "United Kingdom",
    }
    assert "customer_id" not in found[4][1]
    assert "description" not in found[4][1]


def test_times_without_a_zone_are_those_of_the_contracts(house: Installation) -> None:
    summer = SALE.replace(f"{FIRST} 08:26:00", "2011-07-01 10:00:00")
    named = SALE.replace(f"{FIRST} 08:26:00", "2011-07-01 10:00:00+00:00")
    put(house, f"{FIRST}.csv", invoices(summer, named))
    landed(house)
    assert [r["invoiced_at"][:19] for _, r in records(house)] == [
        "2011-07-01T09:00:00",
        "2011-07-01T10:00:00",
    ]


def as_json_lines(table: pa.Table) -> bytes:
    names = {c.delivered_as: c.name for c in contract("transactions").columns}
    records = []
    for row in table.to_pylist():
        record = {names[n]: value for n, value in row.items() if value not in (None, "")}
        record["invoiced_at"] = f"{record['invoiced_at'].isoformat()}+01:00"
        if "customer_id" in record:
            record["customer_id"] = int(record["customer_id"])
        records.append(json.dumps(record).encode() + b"\n")
    return b"".join(records)


def as_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def test_the_same_records_come_of_csv_parquet_and_json_lines_packed_or_not(
    house: Installation,
) -> None:
    content = invoices(*INVOICES)
    texts = {name: pa.string() for name in ("InvoiceNo", "StockCode")}
    table = pa_csv.read_csv(
        pa.BufferReader(content), convert_options=pa_csv.ConvertOptions(column_types=texts)
    )
    forms = {
        ".csv": content,
        ".csv.zst": zstd(content),
        ".parquet": as_parquet(table),
        ".jsonl.gz": gzip.compress(as_json_lines(table)),
        ".jsonl.zst": zstd(as_json_lines(table)),
    }
    days = [FIRST + timedelta(days=n) for n in range(len(forms))]
    for day, (ending, data) in zip(days, forms.items(), strict=True):
        put(house, f"{day}{ending}", data)
    report = landed(house, *days)
    assert report.problems == {}
    assert [letter["reason"] for letter in house.dead_letters()] == []
    lake, source = house.platform.lake(), contract("transactions")
    tables = [typed(source, lake, [day]).select([c.name for c in source.columns]) for day in days]
    assert all(table.to_pylist() == tables[0].to_pylist() for table in tables)
    assert tables[0].num_rows == len(INVOICES)


def test_rows_that_are_no_records_are_dead_letters_and_the_others_land(house: Installation) -> None:
    bad: dict[str | bytes, str] = {
        "536366,71053,LANTERN": "Expected 8 columns, got 3",
        f"{SALE},shifted": "Expected 8 columns, got 9",
        b"536367,71053,CAF\xc9,1,2010-12-01 08:26:00,1.0,17850,France": "Invalid UTF-8",
        f"536368,71053,LANTERN,6.5,{FIRST} 08:26:00,3.39,1,France": "Expected `int`, got `str`",
        f"536369,71053,{FIRST} 08:26:00,6,LANTERN,3.39,1,France": "Invalid RFC3339",
        f"536370,,LANTERN,6,{FIRST} 08:26:00,3.39,1,France": "required field `stock_code`",
    }
    rows = [row for one in bad for row in (SALE, one)]
    put(house, f"{FIRST}.csv", invoices(*rows))
    report = landed(house)
    assert (report.records, report.dead_letters) == (len(rows), len(bad))
    letters = house.dead_letters()
    assert [letter["line"] for letter in letters] == [3, 5, 7, 9, 11, 13]
    for letter, reason in zip(letters, bad.values(), strict=True):
        assert reason in letter["reason"]
    assert letters[0]["record"] == b"536366,71053,LANTERN"
    assert letters[2]["record"].startswith(b"536367,71053,CAF\xc9,1,")
    assert [line for line, _ in records(house)] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("csv.gz", lambda data: gzip.compress(data)[:-9], "not a whole gzip file"),
        ("csv.zst", lambda data: zstd(data)[:-1], "not a whole zstd file"),
        ("csv.zst", lambda data: data, "not a whole zstd file"),
        ("csv", lambda data: data.replace(b"Quantity", b"Menge"), "has no column Quantity; it has"),
        ("csv", lambda data: data.replace(b"Country", b"StockCode"), "more than one column Stock"),
        ("csv", lambda _: b"<!DOCTYPE html>\n<html>Log in</html>\n", "has no column InvoiceNo"),
        ("parquet", lambda data: data, "not a whole Parquet file"),
    ],
)
def test_a_file_that_is_not_whole_or_not_the_sources_leaves_its_day_as_it_was(
    house: Installation, name: str, damage: Callable[[bytes], bytes], said: str
) -> None:
    right = put(house, f"{FIRST}.csv", invoices(SALE))
    landed(house)
    right.unlink()
    put(house, f"{FIRST}.{name}", damage(invoices(*INVOICES)))
    put(house, f"{SECOND}.csv", invoices(SALE))
    report = landed(house, FIRST, SECOND)
    assert list(report.problems) == [FIRST]
    assert said in report.problems[FIRST]
    assert "\n" not in report.problems[FIRST]
    assert report.days == [SECOND]
    assert [line for line, _ in records(house)] == [2, 2]


def test_a_file_with_a_higher_revision_takes_the_place_of_the_one_before(
    house: Installation,
) -> None:
    put(house, f"{FIRST}.csv", invoices(*INVOICES))
    landed(house)
    put(house, f"{FIRST}.r2.csv.gz", gzip.compress(invoices(SALE)))
    assert landed(house).records == 1
    assert len(records(house)) == 1
    put(house, f"{FIRST}.r10.jsonl", b"")
    assert landed(house).days == [FIRST]
    assert records(house) == []
    put(house, f"{FIRST}.r10.csv", invoices(SALE))
    assert f"{FIRST}.r10.csv, {FIRST}.r10.jsonl" in landed(house).problems[FIRST]


# Fields that the contract does not know


def land_by_policy(house: Installation, drift: str) -> Landed:
    source = contract("transactions")
    source = replace(source, properties={**source.properties, "drift": drift})
    lake = house.platform.lake()
    return land(source, (FIRST,), house.platform.sources(), lake, house.settings.zone)


def grown(*rows: str) -> bytes:
    """Invoices with a column more, which the last row has nothing in."""
    more = [f"{HEADER},Voucher", *(f"{row},V-{n}" for n, row in enumerate(rows[:-1]))]
    return "".join(f"{row}\n" for row in (*more, f"{rows[-1]},")).encode()


def test_unknown_fields_land_with_the_record_and_are_counted_where_the_source_may_evolve(
    house: Installation,
) -> None:
    put(house, f"{FIRST}.csv", grown(SALE, SALE.replace(",6,", ",x,"), SALE))
    report = land_by_policy(house, "evolve")
    assert (report.dead_letters, report.drift) == (1, {"Voucher": 1})
    assert [record.get("Voucher") for _, record in records(house)] == ["V-0", None]
    [row] = house.platform.lake().read("deliveries", topic="transactions").to_pylist()
    assert json.loads(row["drift"]) == {"Voucher": 1}


def test_records_with_unknown_fields_are_dead_letters_where_they_go_to_quarantine(
    house: Installation,
) -> None:
    put(house, f"{FIRST}.csv", grown(SALE, SALE, SALE))
    report = land_by_policy(house, "quarantine")
    assert (report.dead_letters, report.drift) == (2, {"Voucher": 2})
    assert len(records(house)) == 1


def test_a_file_with_unknown_fields_is_refused_whole_where_the_contract_says_so(
    house: Installation,
) -> None:
    put(house, f"{FIRST}.csv", invoices(SALE))
    land_by_policy(house, "refuse")
    put(house, f"{FIRST}.csv", grown(SALE, SALE, SALE))
    report = land_by_policy(house, "refuse")
    assert (
        "has fields that transactions.odcs.yaml does not know: Voucher (2)"
        in (report.problems[FIRST])
    )
    assert len(records(house)) == 1
    [problem] = land_by_policy(house, "accept").problems.values()
    assert "drift is 'accept'; it must be one of evolve, quarantine, refuse" in problem


# Announced files


def land_announced(house: Installation) -> Landed:
    source = contract("transactions")
    source = replace(source, properties={**source.properties, "announced": True})
    lake = house.platform.lake()
    return land(source, (FIRST,), house.platform.sources(), lake, house.settings.zone)


def test_a_file_that_is_not_announced_or_not_whole_yet_is_not_read(house: Installation) -> None:
    whole = invoices(*INVOICES)
    put(house, f"{FIRST}.csv", whole[:150])
    assert land_announced(house).records == 0
    told = {"records": len(INVOICES), "sha256": hashlib.sha256(whole).hexdigest()}
    put(house, f"{FIRST}.announced.json", json.dumps(told).encode())
    [problem] = land_announced(house).problems.values()
    assert f"{FIRST}.csv: is not the file that {FIRST}.announced.json announces" in problem
    assert records(house) == []
    put(house, f"{FIRST}.csv", whole)
    assert land_announced(house).records == len(INVOICES)


# The star and the profiles


def test_a_feed_that_is_not_known_is_named_with_those_that_are(house: Installation) -> None:
    settings = house.settings.model_copy(update={"feeds": "transactions,sap"})
    with pytest.raises(ProfilehouseError, match=r"PROFILEHOUSE_FEEDS names sap; there are: "):
        enabled_feeds(settings)


def test_a_purchase_counts_once_though_till_shop_and_web_all_tell_of_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(tmp_path_factory.getbasetemp(), tmp_path / "sources")
    house = Installation(tmp_path, feeds="transactions", log=f"file:{tmp_path}/log")
    (house.sources / "transactions").mkdir()
    till = house.records("purchases", FIRST)[0]
    basket, product, user = till["basket_id"], till["product_id"], str(till["household_id"])
    price = till["sales_value"] / max(till["quantity"], 1)
    again = f"{basket},{product},,{max(till['quantity'], 1)},{FIRST} 08:26:00,{price},{user},US"
    other = f"77,{product},,3,{FIRST} 08:26:00,1.10,{user},US"
    more = f"77,{product},again,1,{FIRST} 08:26:00,1.10,{user},US"
    gone = f"C78,{product},,-3,{FIRST} 09:26:00,1.10,{user},US"
    put(house, f"{FIRST}.csv", invoices(again, other, other, more, gone))

    without = Installation(tmp_path / "without", sources=str(house.sources))
    assert without.run(FIRST, checked=False).success
    ran = house.run(FIRST)
    assert (ran.success, ran.errors) == (True, {})
    assert {name for name, severity in ran.failing.items() if severity == "ERROR"} == set()

    def bought(of: Installation) -> dict[str, Any]:
        [row] = of.query("SELECT * FROM profile WHERE user_id = ?", user)
        return row

    before, after = bought(without), bought(house)
    assert after["spend_cents_lifetime"] == before["spend_cents_lifetime"] + 440
    assert after["purchases_lifetime"] == before["purchases_lifetime"] + 1
    assert "profiles/profile_store store_and_warehouse_agree" in ran.passed
    assert "warehouse/fct_transaction every_landed_record_is_one_row" in ran.passed
    assert house.query(
        "SELECT line_type, is_duplicate, SUM(value_cents) AS cents FROM fct_transaction"
        " WHERE order_id LIKE '%7%' AND content_id = ? AND order_id IN ('77', 'C78')"
        " GROUP BY line_type, is_duplicate ORDER BY line_type, is_duplicate",
        str(product),
    ) == [
        {"line_type": "cancellation", "is_duplicate": False, "cents": -330},
        {"line_type": "sale", "is_duplicate": False, "cents": 440},
        {"line_type": "sale", "is_duplicate": True, "cents": 330},
    ]

    moment = f"{FIRST}T12:00:00Z"
    told = event(1, event_type="purchase", user_id=user, order_id=str(basket), received_at=moment)
    told |= {"content_id": str(product), "occurred_at": moment}
    told["value_cents"] = round(till["sales_value"] * 100)
    for name in ("sources", "lake", "warehouse", "profiles", "log", "timezone", "first_day"):
        monkeypatch.setenv(f"PROFILEHOUSE_{name.upper()}", str(getattr(house.settings, name)))
    monkeypatch.chdir(tmp_path)
    assert run("send", "-", data=lines(told)).exception is None
    follow(house.platform)
    assert house.run(FIRST, checked=False).success
    assert house.query("SELECT COUNT(*) AS n FROM fct_web_event") == [{"n": 1}]
    with house.platform.profile_store(DECLARATION) as store:
        served = read_profile(store, DECLARATION, user)
    for profile in (bought(house), served or {}):
        for name in ("spend_cents_lifetime", "purchases_lifetime"):
            assert profile[name] == after[name]


def deliver_to(tmp_path: Path, feed: str, name: str, content: bytes) -> Installation:
    (tmp_path / "sources" / feed).mkdir(parents=True)
    (tmp_path / "sources" / feed / name).write_bytes(content)
    return Installation(tmp_path, feeds=feed)


FIREFOX, CRAWLER = "Mozilla/5.0 (X11) Firefox/28.0", "Mozilla/5.0 (compatible; Googlebot/2.1)"


def request(time: str, agent: str = FIREFOX, path: str = "/a?b=1") -> bytes:
    return (
        f'192.0.2.7 - - [22/Apr/2025:{time} +0200] "GET {path} HTTP/1.1" 200 -'
        f' "http://example.org/" "{agent}"\n'
    ).encode()


def test_requests_of_a_web_server_are_in_sessions_and_crawlers_are_marked(tmp_path: Path) -> None:
    log = [
        request("10:40:01"),
        request("10:00:00"),
        request("10:30:00"),
        request("11:10:01"),
        request("11:40:02"),
        request("10:00:00", CRAWLER),
        request("10:00:00")[:-9] + b"\n",
        b'192.0.2.7 - - [22/Apr/2025:10:00:00 +0200] "\\x16\\x03" 400 226 "-" "-"\n',
    ]
    content = gzip.compress(b"".join(log))
    house = deliver_to(tmp_path, "web_logs", f"{FIRST}.log.gz", content)
    checks = load(house, "web_logs", "fct_web_request")
    assert {name for name, passed in checks.items() if not passed} == {"no_record_was_refused"}
    assert checks["every_landed_record_is_one_row"]
    assert [(x["line"], x["reason"]) for x in house.dead_letters()] == [
        (7, "Expected a line in the Combined Log Format"),
        (8, "Expected an HTTP request in its field"),
    ]
    rows = house.query("SELECT * FROM fct_web_request ORDER BY is_bot, occurred_at")
    assert [(row["line"], row["starts_session"], row["is_bot"]) for row in rows] == [
        (2, True, False),
        (3, False, False),
        (1, False, False),
        (4, False, False),
        (5, True, False),
        (6, True, True),
    ]
    assert len({row["session_key"] for row in rows}) == 3
    assert (rows[0]["path"], str(rows[0]["occurred_at"])) == ("/a", "2025-04-22 08:00:00")


def test_click_through_of_recommendations_is_by_item_and_position(tmp_path: Path) -> None:
    header = ",timestamp,item_id,position,click,propensity_score,policy,campaign"
    shown = [(79, 2, 0), (79, 2, 1), (79, 1, 0), (14, 1, 1), (14, 0, 0)]
    rows = [
        f"{n},{FIRST} 00:00:1{n}.004101+00:00,{item},{place},{click},0.087125,bts,all,0.0"
        for n, (item, place, click) in enumerate(shown)
    ]
    content = "\n".join([f"{header},user-item_affinity_0", *rows]).encode()
    house = deliver_to(tmp_path, "recommendations", f"{FIRST}.csv", content)
    checks = load(house, "recommendations", "fct_recommendation")
    assert {name for name, passed in checks.items() if not passed} == {"no_record_was_refused"}
    [letter] = house.dead_letters()
    assert letter["reason"] == "Expected `int` >= 1 - at `$.position`"
    assert house.query(
        "SELECT content_id, position, COUNT(*) AS shown, AVG(clicks) AS click_through"
        " FROM fct_recommendation GROUP BY content_id, position ORDER BY content_id, position"
    ) == [
        {"content_id": "14", "position": 1, "shown": 1, "click_through": 1.0},
        {"content_id": "79", "position": 1, "shown": 1, "click_through": 0.0},
        {"content_id": "79", "position": 2, "shown": 2, "click_through": 0.5},
    ]


def test_a_day_that_is_loaded_already_still_tells_how_many_rows_it_has(
    house: Installation,
) -> None:
    put(house, f"{FIRST}.csv", invoices(*INVOICES))
    told = []
    for _ in range(2):
        events = loaded(house, "transactions", "fct_transaction").get_asset_materialization_events()
        [table] = [e.materialization for e in events if e.asset_key.path[0] == "warehouse"]
        assert table.partition == f"{FIRST}"
        told.append(
            [
                table.metadata[name].value
                for name in ("dagster/partition_row_count", "staged_rows", "loaded_days")
            ]
        )
    assert told == [[6, 6, f"{FIRST}"], [6, 0, ""]]


def test_a_column_that_a_table_lacks_is_added_and_the_run_says_so(house: Installation) -> None:
    put(house, f"{FIRST}.csv", invoices(SALE))
    loaded(house, "transactions", "fct_transaction")
    with house.platform.warehouse() as warehouse:
        warehouse.execute("ALTER TABLE fct_transaction DROP COLUMN description")
    events = loaded(house, "transactions", "fct_transaction").get_asset_materialization_events()
    [table] = [e.materialization for e in events if e.asset_key.path[0] == "warehouse"]
    change = "column description was added to fct_transaction"
    assert table.metadata["schema_changes"].value == change
    assert house.query("SELECT order_id, description FROM fct_transaction") == [
        {"order_id": "536365", "description": None}
    ]


def test_weeks_are_loaded_in_one_run(house: Installation) -> None:
    days = [FIRST + timedelta(days=n) for n in range(9)]
    for number, day in enumerate(days):
        line = f"{number},85123A,HEART,1,{day} 08:26:00,2.55,17850.0,United Kingdom"
        put(house, f"{day}.csv", invoices(line))
    loaded(house, "transactions", "fct_transaction", days[-1])
    found = house.query("SELECT order_id, occurred_on FROM fct_transaction ORDER BY occurred_on")
    assert [(row["order_id"], row["occurred_on"]) for row in found] == [
        (str(number), day) for number, day in enumerate(days)
    ]


def test_any_text_in_a_cell_arrives_as_it_was(house: Installation) -> None:
    texts = [
        "'; DROP TABLE transactions; --",
        '"quoted", and\na line, and \\ "',
        "ﷺ \u202eright to left\u202c 👩‍👩‍👧 Ω≈ç√",
        "{{7*7}} ${x} %s {0} NaN NULL undefined",
        "\x00\x01\x7f\x1b[31m",
        "<script>alert(1)</script>",
        "\ufeff\u200b",
    ]
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(HEADER.split(","))
    for text in texts:
        writer.writerow(["1", text, text, 1, f"{FIRST} 08:26:00", 1.5, 7, text])
    put(house, f"{FIRST}.csv", sink.getvalue().encode())
    report = landed(house)
    assert (report.problems, report.dead_letters) == ({}, 0)
    rows = typed(contract("transactions"), house.platform.lake()).to_pylist()
    for name in ("stock_code", "description", "country"):
        assert [row[name] for row in rows] == texts


@pytest.mark.parametrize(
    ("name", "content", "refused", "said"),
    [
        (f"{FIRST}.csv", b"<!DOCTYPE html>\n<html>Log in</html>\n", None, "has no column"),
        (f"{FIRST}.jsonl", b"<html>\nLog in</html>\n", 2, "malformed"),
        (f"{FIRST}.csv", invoices(SALE, "C1,,85123A" + SALE[13:]), 1, "Expected 8 columns, got 9"),
        (f"{FIRST}.csv", invoices(SALE, SALE.replace(",6,", ",x,")), 1, "Expected `int`"),
        (
            f"{FIRST}.csv",
            invoices(SALE, SALE.replace("United", "Ünited").encode("latin-1")),
            1,
            "UTF-8",
        ),
        (f"{FIRST}.csv", invoices(SALE).decode().encode("utf-16"), None, "header is not UTF-8"),
    ],
    ids=["HTML as CSV", "HTML as JSON", "a column more", "shifted", "two encodings", "UTF-16"],
)
def test_what_is_not_what_it_should_be_is_a_clear_error_or_dead_letters(
    house: Installation, name: str, content: bytes, refused: int | None, said: str
) -> None:
    put(house, name, content)
    report = landed(house)
    if refused is None:
        assert said in report.problems[FIRST]
        assert records(house) == []
    else:
        letters = house.dead_letters()
        assert len(letters) == refused
        assert said in letters[0]["reason"]
        assert len(records(house)) == report.records - refused
