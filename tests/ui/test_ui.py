"""What a data engineer sees in the Dagster UI, in a browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from checks.schema import LEDGERS
from profilehouse.contracts import contract, contracts_of
from tests.three_days import (
    BUYERS,
    DAYS,
    PURCHASES,
    UNKNOWN_BUYERS,
    UNKNOWN_PRODUCTS,
)

SOURCES = sorted(source.name for source in contracts_of("sources"))
STAR = sorted(table.name for table in contracts_of("warehouse") if table.name not in LEDGERS)
GROUPS = {
    "sources": SOURCES,
    "lake": sorted([*SOURCES, "events"]),
    "warehouse": STAR,
    "profiles": ["profile", "profile_store"],
}


def row(page: Page, cell: str) -> str:
    """The text of the table row that has such a cell."""
    found = page.get_by_role("row").filter(has=page.get_by_text(cell, exact=True)).last
    expect(found).to_be_visible()
    return " ".join(found.inner_text().split())


@pytest.mark.parametrize("group", GROUPS)
def test_the_graph_shows_each_group_and_in_it_its_assets(page: Page, group: str) -> None:
    page.set_viewport_size({"width": 4600, "height": 3400})  # what lies outside is not drawn
    page.goto(f"/asset-groups?expanded=global@global:{group}")
    graph = page.locator("foreignObject")
    for name in {*GROUPS, *GROUPS[group]}:
        expect(graph.get_by_text(name, exact=True).first).to_be_visible()
    assert graph.count() >= len(GROUPS) + len(GROUPS[group])


def test_a_dimension_shows_what_it_is_its_rows_columns_and_where_they_come_from(
    page: Page,
) -> None:
    page.set_viewport_size({"width": 1700, "height": 2100})
    page.goto("/assets/warehouse/dim_content")
    expect(page.get_by_text(contract("dim_content").description)).to_be_visible()
    expect(page.get_by_text("6,585", exact=True)).to_be_visible()
    expect(page.get_by_text("catalog-team", exact=True)).to_be_visible()
    for column in contract("dim_content").columns:
        expect(page.get_by_text(column.description, exact=True)).to_be_visible()
    assert row(page, "lake/products.department").startswith("category")
    expect(page.get_by_text("contracts/warehouse/dim_content.odcs.yaml")).to_be_visible()
    expect(page.get_by_text("assets/warehouse/sql/dim_content.sql")).to_be_visible()


def test_a_fact_shows_its_rows_of_the_newest_day_and_its_checks_at_a_glance(page: Page) -> None:
    page.set_viewport_size({"width": 1700, "height": 2100})
    page.goto("/assets/warehouse/fct_purchase")
    expect(page.get_by_text(f"{PURCHASES:,}", exact=True)).to_be_visible()
    expect(page.get_by_text(str(DAYS[-1]), exact=True).first).to_be_visible()
    assert f"{DAYS[0]}..{DAYS[-1]}" in row(page, "loaded_days")
    for column in contract("fct_purchase").columns:
        expect(page.get_by_text(column.description, exact=True).first).to_be_visible()


@pytest.mark.parametrize(
    ("asset", "check", "says", "remedy"),
    [
        (
            "fct_purchase",
            "content_key_is_in_dim_content",
            f"not so in {UNKNOWN_PRODUCTS} of {PURCHASES:,} rows (0.26 %)",
            "Load what dim_content lacks, or ask sales-team to correct content_key",
        ),
        (
            "dim_user",
            "every_buyer_has_demographics",
            f"{UNKNOWN_BUYERS} of {BUYERS} households have no demographics",
            "Join dim_user with LEFT JOIN, and ask crm-team for the households they lack",
        ),
    ],
    ids=["unknown products", "unknown buyers"],
)
def test_a_failing_check_shows_what_it_saw_and_what_to_do(
    page: Page, asset: str, check: str, says: str, remedy: str
) -> None:
    page.goto(f"/assets/warehouse/{asset}?view=checks&checkDetail={check}")
    expect(page.get_by_text(f"{says}. To do: {remedy}.", exact=True)).to_be_visible()
    expect(page.get_by_text("non-blocking", exact=True)).to_be_visible()
    assert row(page, "observed") == f"observed {says}"
    assert row(page, "what to do") == f"what to do {remedy}"
    expect(page.get_by_role("img", name="warning_outline").first).to_be_visible()


def test_a_failing_check_shows_a_sample_of_keys_with_their_rows(page: Page) -> None:
    page.goto(
        "/assets/warehouse/fct_purchase?view=checks&checkDetail=content_key_is_in_dim_content"
    )
    rows = page.get_by_role("row")
    expect(rows.filter(has_text=re.compile(r"^content_key\s*row_count$"))).to_be_visible()
    sample = rows.filter(has_text=re.compile(r"^[0-9a-f]{32}"))
    expect(sample).to_have_count(2)
    copies = [int(text.split()[-1]) for text in sample.all_inner_texts()]
    assert sum(copies) == UNKNOWN_PRODUCTS


def test_jobs_and_running_schedules_are_listed_with_their_hours(page: Page) -> None:
    page.goto("/jobs")
    for job in (
        "daily_load",
        "all_checks",
        "live_checks",
        "load_fresh_events",
        "expire_lake",
        "forget_runs",
        "tidy_lake",
    ):
        expect(page.get_by_text(job, exact=True).first).to_be_visible()
    page.goto("/automation")
    for name in (
        "every_morning",
        "every_sunday",
        "every_ten_minutes",
        "every_hour",
        "every_night",
        "every_sunday_night",
        "observe_live",
        "fresh_events",
        "alerts",
        "observe_health",
    ):
        expect(page.get_by_text(name, exact=True)).to_be_visible()
    expect(
        page.get_by_text(
            re.compile(r"Every 15 minutes, between 06:00 AM E[SD]T and 11:59 PM E[SD]T$")
        )
    ).to_be_visible()
    expect(page.get_by_text(re.compile(r"At 08:00 AM E[SD]T, only on Sunday$"))).to_be_visible()
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(10)
