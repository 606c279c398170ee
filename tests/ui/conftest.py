"""A platform loaded with three real days, and a browser on its Dagster UI."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from profilehouse.settings import load_settings
from profilehouse.sources.retailer import TIMEZONE
from services.debian import find_browser
from services.process import HOST, free_port, running
from tests.three_days import DAYS, deliver, run_daily_job

ROOT = Path(__file__).resolve().parents[2]
LOADING_MS = 30_000
"""How long something may take to appear; the first page loads the definitions."""


@pytest.fixture(scope="module")
def executable() -> str:
    found = find_browser()
    if found is None:
        pytest.skip("no Chromium or Chrome on PATH; `python -m services.debian` installs one")
    return str(found)


@pytest.fixture(scope="module")
def address(executable: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the UI is: the days are loaded first, then a webserver is started."""
    folder = tmp_path_factory.mktemp("ui")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "DAGSTER_HOME": str(folder),
            "PROFILEHOUSE_SOURCES": str(folder / "sources"),
            "PROFILEHOUSE_LAKE": str(folder / "lake"),
            "PROFILEHOUSE_CATALOG": "sqlite:",
            "PROFILEHOUSE_WAREHOUSE": f"duckdb:{folder}/warehouse.duckdb",
            "PROFILEHOUSE_PROFILES": f"lmdb:{folder}/profiles",
            "PROFILEHOUSE_TIMEZONE": TIMEZONE,
            "PROFILEHOUSE_FIRST_DAY": str(DAYS[0]),
        }.items():
            environment.setenv(name, value)
        here = (ROOT / "dagster.yaml").read_text("utf-8")
        (folder / "dagster.yaml").write_text(here.replace("data/dagster", f"{folder}/dagster"))
        deliver(folder / "sources")
        with dg.DagsterInstance.get() as instance:
            assert run_daily_job(load_settings(), instance).success
        port = free_port()
        command = [sys.executable, "-m", "dagster_webserver", "-h", HOST, "-p", str(port)]
        command += ["-w", str(ROOT / "workspace.yaml")]
        with running(command, port=port, log=folder / "webserver.log", seconds=120):
            yield f"http://{HOST}:{port}"


@pytest.fixture(scope="module")
def browser(executable: str, address: str) -> Iterator[Browser]:
    """Started last: while Playwright runs in this thread, no other event loop can."""
    with sync_playwright() as playwright:
        # Chromium has no sandbox for root, the usual user of a container.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(
    browser: Browser, address: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Page]:
    """A page of a window; what it shows in the end is kept as a picture beside other results."""
    context = browser.new_context(base_url=address, viewport={"width": 1700, "height": 1100})
    context.set_default_timeout(LOADING_MS)
    page = context.new_page()
    yield page
    page.screenshot(path=tmp_path / f"{request.node.name}.png")
    context.close()
