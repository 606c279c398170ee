"""The tracker and the demo page in a browser, against a real collector on the file log."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from profilehouse.log.file import FileLog
from services.process import HOST, free_port
from tests.collecting import Running, collector, environment, logged

TRACKER = Path(__file__).parents[2] / "profilehouse" / "web" / "static" / "tracker.js"
SECONDS = 30
HALF_AN_HOUR = 30 * 60 * 1000
PAGE = """<!doctype html><meta charset="utf-8"><title>A page</title>
<script src="/tracker.js"></script>
<script>profilehouse.init({ endpoint: '%s', consent: %s });</script>
<section data-category="CHEESE">
  <button id="brie" data-content-id="brie" data-campaign-id="spring">Brie</button>
</section>
<a id="gouda" data-content-id="gouda" data-category="DUTCH" href="/next"><b>Gouda</b></a>
<div style="height: 3000px"></div>
<p id="below" data-content-id="below">Below</p>
"""


@pytest.fixture(scope="module")
def chromium(executable: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Chromium has no sandbox for root, the usual user of a container.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    context = chromium.new_context()
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


class Site:
    """A web site of another origin than the collector's, whose pages hold the tracker."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.consent: bool | None = True
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/tracker.js":
                    kind, body = "text/javascript", TRACKER.read_bytes()
                else:
                    consent = {True: "true", False: "false", None: "undefined"}[site.consent]
                    text = PAGE % (site.endpoint, consent)
                    kind, body = "text/html", text.encode()
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server: socketserver.BaseServer = ThreadingHTTPServer((HOST, 0), Handler)
        self.address = f"http://{HOST}:{self.server.server_address[1]}"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever)
    thread.start()
    yield site
    site.server.shutdown()
    site.server.server_close()
    thread.join(SECONDS)


class Answering:
    """A server that answers every POST with what it is told to, and remembers the events."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.batches: list[tuple[float, list[dict[str, Any]]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.batches.append((time.monotonic(), json.loads(body)))
                status, headers = outer.answers.pop(0) if outer.answers else (202, {})
                self.send_response(status)
                self.send_header("Access-Control-Allow-Origin", "*")
                self.send_header("Access-Control-Expose-Headers", "Retry-After")
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer((HOST, 0), Handler)
        self.endpoint = f"http://{HOST}:{self.server.server_address[1]}/events"

    @property
    def events(self) -> list[dict[str, Any]]:
        """Each once: what waits when a page is left is sent twice, for it may not have arrived."""
        sent = [each for _, batch in list(self.batches) for each in batch]
        return list({each["event_id"]: each for each in sent}.values())


@pytest.fixture
def answering() -> Iterator[Answering]:
    server = Answering()
    thread = threading.Thread(target=server.server.serve_forever)
    thread.start()
    yield server
    server.server.shutdown()
    server.server.server_close()
    thread.join(SECONDS)


@pytest.fixture
def collecting(tmp_path: Path, site: Site) -> Iterator[Running]:
    with collector(tmp_path, env={"PROFILEHOUSE_ORIGINS": site.address}) as server:
        site.endpoint = f"http://{HOST}:{server.port}/events"
        yield server


def until(page: Page, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        page.wait_for_timeout(20)


def kept(folder: Path) -> list[dict[str, Any]]:
    """The events in the log, in the order they happened."""
    return sorted(logged(FileLog(folder / "log")), key=lambda each: each["occurred_at"])


def kinds(events: list[dict[str, Any]]) -> Counter[tuple[str, str | None]]:
    return Counter((each["event_type"], each.get("content_id")) for each in events)


def stored(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.evaluate("JSON.stringify({...localStorage})"))
    return {name: json.loads(value) for name, value in found.items()}


SEEN_AT_FIRST = Counter(
    {("page_view", None): 1, ("impression", "brie"): 1, ("impression", "gouda"): 1}
)


# What is sent.


def test_views_impressions_and_clicks_are_sent_by_themselves(
    page: Page, site: Site, collecting: Running, tmp_path: Path
) -> None:
    page.goto(site.address + "/cheese?q=secret#fragment")
    until(page, lambda: len(kept(tmp_path)) >= 3)
    page.click("#brie")
    page.locator("#below").scroll_into_view_if_needed()
    until(page, lambda: len(kept(tmp_path)) >= 5)
    page.locator("#brie").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    events = kept(tmp_path)
    assert kinds(events) == SEEN_AT_FIRST + Counter(
        {("click", "brie"): 1, ("impression", "below"): 1}
    ), "an impression counts once a view"
    assert len({each["event_id"] for each in events}) == 5
    assert len({(each["anonymous_id"], each["session_id"]) for each in events}) == 1
    assert {each["url"] for each in events} == {site.address + "/cheese"}
    assert {(each["consent"], each["device"]) for each in events} == {(True, "computer")}
    [click] = [each for each in events if each["event_type"] == "click"]
    assert (click["category"], click["campaign_id"]) == ("CHEESE", "spring")
    assert "user_id" not in click


def test_contents_that_come_later_are_seen_too_and_a_new_view_counts_anew(
    page: Page, site: Site, answering: Answering
) -> None:
    site.endpoint = answering.endpoint
    page.goto(site.address)
    until(page, lambda: len(answering.events) >= 3)
    page.evaluate(
        "document.body.insertAdjacentHTML('afterbegin', '<p><i data-content-id=late>Late</i></p>')"
    )
    until(page, lambda: ("impression", "late") in kinds(answering.events))
    page.evaluate("profilehouse.page()")
    until(page, lambda: len(answering.events) >= 8)
    late = Counter({("impression", "late"): 1})
    assert kinds(answering.events) == SEEN_AT_FIRST + SEEN_AT_FIRST + late + late


def test_what_a_page_tells_is_sent_as_the_contract_wants_it(
    page: Page, site: Site, collecting: Running, tmp_path: Path
) -> None:
    from profilehouse.events.web import decode  # noqa: PLC0415
    from profilehouse.log import Batch  # noqa: PLC0415

    page.goto(site.address)
    page.evaluate(
        """() => {
          profilehouse.track('search', { properties: { words: 'half \\ud83d of a pair' } });
          profilehouse.track('add_to_cart', { content_id: 'brie', category: 'CHEESE' });
          profilehouse.track('purchase',
            { order_id: 'o1', content_id: 'brie', category: 'CHEESE', value_cents: 499 });
          profilehouse.track('custom', { properties: { name: 'theme', dark: true }, consent: false,
            event_id: 'forged' });
        }"""
    )
    page.click("#brie")
    until(page, lambda: len(kept(tmp_path)) >= 8)
    log = FileLog(tmp_path / "log")
    with log.consumer(dict.fromkeys(range(log.partitions))) as consumer:
        batches: list[Batch] = consumer.read(100, 1)
    decoded = [decode(batch, log.topic_id) for batch in batches]
    assert [each.dead.to_pylist() for each in decoded] == [[]]
    rows = {row["event_type"]: row for each in decoded for row in each.events.to_pylist()}
    assert set(rows) == {
        *("page_view", "impression", "click", "search", "add_to_cart", "purchase", "custom")
    }
    assert rows["purchase"]["value_cents"] == 499
    assert rows["purchase"]["event_id"] == "purchases/o1/brie"
    assert json.loads(rows["search"]["properties"]) == {"words": "half \ufffd of a pair"}
    assert json.loads(rows["custom"]["properties"]) == {"name": "theme", "dark": True}
    assert all(row["consent"] for row in rows.values())


def test_a_click_that_leaves_the_page_is_sent(
    page: Page, site: Site, collecting: Running, tmp_path: Path
) -> None:
    page.goto(site.address)
    page.click("#gouda")
    page.wait_for_url("**/next")
    until(page, lambda: kinds(kept(tmp_path))["page_view", None] >= 2)
    until(page, lambda: ("click", "gouda") in kinds(kept(tmp_path)))
    assert len({each["session_id"] for each in kept(tmp_path)}) == 1


# Who.


def test_a_login_links_what_came_before_and_a_logout_begins_anew(
    page: Page, site: Site, answering: Answering
) -> None:
    site.endpoint = answering.endpoint
    page.goto(site.address)
    page.click("#brie")
    page.evaluate("profilehouse.login('ada')")
    page.evaluate("profilehouse.login('ada')")
    page.reload()
    page.click("#brie")
    page.evaluate("profilehouse.login('bob')")
    page.evaluate("profilehouse.logout()")
    page.click("#brie")
    until(page, lambda: kinds(answering.events)["click", "brie"] == 3)
    events = sorted(answering.events, key=lambda each: each["occurred_at"])
    logins = [each for each in events if each["event_type"] == "custom"]
    assert [each["user_id"] for each in logins] == ["ada", "bob"]
    clicks = [each for each in events if each["event_type"] == "click"]
    assert [each.get("user_id") for each in clicks] == [None, "ada", None]
    assert len({each["anonymous_id"] for each in events}) == 1
    before, ada, after = (each["session_id"] for each in clicks)
    assert before == ada == logins[0]["session_id"]
    assert len({ada, logins[1]["session_id"], after}) == 3


@pytest.mark.parametrize(
    ("idle", "sessions"), [(HALF_AN_HOUR, 1), (HALF_AN_HOUR + 1, 2)], ids=["at most", "longer"]
)
def test_a_session_ends_after_more_than_half_an_hour_of_nothing(
    context: BrowserContext, page: Page, site: Site, answering: Answering, idle: int, sessions: int
) -> None:
    site.endpoint = answering.endpoint
    page.goto(site.address)
    until(page, lambda: len(answering.events) >= 3)
    active_at = stored(page)["profilehouse.visitor"]["active_at"]
    page.evaluate(
        "then => { Date.now = () => then; profilehouse.track('custom', {}); }", active_at + idle
    )
    until(page, lambda: len(answering.events) >= 4)
    assert len({each["session_id"] for each in answering.events}) == sessions


def test_tabs_share_visitor_and_session(
    context: BrowserContext, page: Page, site: Site, answering: Answering
) -> None:
    site.endpoint = answering.endpoint
    page.goto(site.address)
    other = context.new_page()
    other.goto(site.address)
    other.evaluate("profilehouse.login('ada')")
    page.click("#brie")
    until(page, lambda: ("click", "brie") in kinds(answering.events))
    assert len({(each["anonymous_id"], each["session_id"]) for each in answering.events}) == 1
    [click] = [each for each in answering.events if each["event_type"] == "click"]
    assert click["user_id"] == "ada"


# Consent.


def test_without_consent_nothing_is_stored_and_nobody_is_known(
    context: BrowserContext, page: Page, site: Site, answering: Answering
) -> None:
    site.endpoint, site.consent = answering.endpoint, False
    page.goto(site.address)
    page.evaluate("profilehouse.login('ada')")
    page.click("#brie")
    until(page, lambda: len(answering.events) >= 4)
    page.reload()
    until(page, lambda: len(answering.events) >= 7)
    assert stored(page) == {}
    assert page.evaluate("sessionStorage.length") == 0
    assert context.cookies() == []
    assert {each["consent"] for each in answering.events} == {False}
    assert not any("user_id" in each or "session_id" in each for each in answering.events)
    assert len({each["anonymous_id"] for each in answering.events}) == 2, "an id for each page"


def test_consent_that_is_withdrawn_deletes_what_is_stored(
    page: Page, site: Site, answering: Answering
) -> None:
    site.endpoint = answering.endpoint
    answering.answers = [(503, {})] * 100
    page.goto(site.address)
    page.evaluate("profilehouse.login('ada')")
    until(page, lambda: len(stored(page)) == 2)
    known = page.evaluate("profilehouse.identity()")
    page.evaluate("profilehouse.consent(false)")
    assert stored(page) == {}
    answering.answers = []
    sent = len(answering.batches)
    page.click("#brie")
    until(page, lambda: len(answering.batches) > sent)
    [(_, [click])] = answering.batches[sent:]
    assert click["consent"] is False
    assert click["anonymous_id"] != known["anonymous_id"]


def test_consent_that_is_withdrawn_in_one_tab_is_withdrawn_in_all(
    context: BrowserContext, page: Page, site: Site, answering: Answering
) -> None:
    site.endpoint = answering.endpoint
    page.goto(site.address)
    other = context.new_page()
    other.goto(site.address)
    until(page, lambda: len(answering.events) >= 6)
    other.evaluate("profilehouse.consent(false)")
    other.evaluate("new Promise(resolve => setTimeout(resolve, 300))")
    page.click("#brie")
    until(page, lambda: len(answering.events) >= 7)
    assert answering.events[-1]["consent"] is False
    assert stored(page) == {}


def test_what_is_stored_stays_until_the_page_knows_of_the_consent(
    page: Page, site: Site, answering: Answering
) -> None:
    site.endpoint = answering.endpoint
    page.goto(site.address)
    until(page, lambda: len(answering.events) >= 3)
    page.evaluate("profilehouse.login('ada')")
    known = page.evaluate("profilehouse.identity()")
    site.consent = None
    page.reload()
    page.click("#brie")
    until(page, lambda: len(answering.events) >= 8)
    later = answering.events[4:]
    assert {each["consent"] for each in later} == {False}
    assert known["anonymous_id"] not in {each["anonymous_id"] for each in later}
    page.evaluate("profilehouse.consent(true)")
    assert page.evaluate("profilehouse.identity()") == known
    page.evaluate("profilehouse.consent(false)")
    assert stored(page) == {}


def test_consent_that_is_given_later_counts_from_then_on(
    page: Page, site: Site, answering: Answering
) -> None:
    site.endpoint, site.consent = answering.endpoint, False
    page.goto(site.address)
    page.evaluate("profilehouse.login('ada')")
    until(page, lambda: len(answering.events) >= 3)
    page.evaluate("profilehouse.consent(true)")
    until(page, lambda: len(answering.events) >= 7)
    before, after = answering.events[:3], answering.events[3:]
    assert {each["consent"] for each in before} == {False}
    assert {(each["consent"], each.get("user_id")) for each in after} == {(True, "ada")}
    assert kinds(after) == SEEN_AT_FIRST + Counter({("custom", None): 1})
    assert {each["anonymous_id"] for each in before}.isdisjoint(
        {each["anonymous_id"] for each in after}
    )


# What goes wrong.


def test_what_was_answered_with_503_is_sent_again_and_kept_once(
    page: Page, site: Site, answering: Answering
) -> None:
    site.endpoint = answering.endpoint
    answering.answers = [(503, {}), (500, {})]
    page.goto(site.address)
    until(page, lambda: len(answering.batches) >= 3)
    page.wait_for_timeout(300)
    sent = [[each["event_id"] for each in batch] for _, batch in answering.batches]
    assert sent[2][: len(sent[0])] == sent[0] == sent[1][: len(sent[0])]
    assert set(Counter(each for batch in sent[2:] for each in batch).values()) == {1}
    assert stored(page).keys() == {"profilehouse.visitor"}


def test_the_time_to_come_back_is_honoured(page: Page, site: Site, answering: Answering) -> None:
    site.endpoint = answering.endpoint
    answering.answers = [(429, {"Retry-After": "3"})]
    page.goto(site.address)
    until(page, lambda: len(answering.batches) >= 1)
    page.click("#brie")
    until(page, lambda: len(answering.batches) >= 2)
    first, second = (at for at, _ in answering.batches[:2])
    assert second - first >= 3


def test_events_outlive_a_server_that_is_down_and_a_reload(
    page: Page, site: Site, tmp_path: Path
) -> None:
    port = free_port()
    site.endpoint = f"http://{HOST}:{port}/events"
    page.goto(site.address)
    page.click("#brie")
    page.evaluate("profilehouse.track('search', { properties: { words: 'first' } })")
    page.reload()
    page.click("#brie")
    queues = [name for name in stored(page) if name.startswith("profilehouse.queue.")]
    assert len(queues) == 1
    [waiting] = [stored(page)[name] for name in queues]
    with collector(tmp_path, env={"PROFILEHOUSE_ORIGINS": site.address}, port=port):
        until(
            page, lambda: not any(name.startswith("profilehouse.queue.") for name in stored(page))
        )
    kept_ids = Counter(each["event_id"] for each in kept(tmp_path))
    assert set(kept_ids) >= {each["event_id"] for each in waiting}
    expected = Counter({("click", "brie"): 2, ("search", None): 1})
    assert kinds(kept(tmp_path)) == SEEN_AT_FIRST + SEEN_AT_FIRST + expected


def test_an_event_that_is_never_taken_does_not_hold_up_the_others(
    page: Page, site: Site, collecting: Running, tmp_path: Path
) -> None:
    page.goto(site.address)
    until(page, lambda: len(kept(tmp_path)) >= 3)
    page.evaluate(
        """() => {
          let deep = 1;
          for (let n = 0; n < 40; n++) deep = [deep];
          profilehouse.track('custom', { properties: { name: 'before' } });
          profilehouse.track('custom', { properties: { name: 'bad', deep } });
          profilehouse.track('custom', { properties: { name: 'large', text: 'x'.repeat(100000) } });
          profilehouse.track('custom', { properties: { name: 'huge', text: 'x'.repeat(2e6) } });
          profilehouse.track('custom', { properties: { name: 'after' } });
        }"""
    )

    def names() -> list[str]:
        return [each["properties"]["name"] for each in kept(tmp_path) if "properties" in each]

    until(page, lambda: "after" in names())
    assert sorted(names()) == ["after", "before", "large"]
    until(page, lambda: stored(page).keys() == {"profilehouse.visitor"})


def test_the_queue_is_bounded_and_the_oldest_go(page: Page, site: Site) -> None:
    site.endpoint = f"http://{HOST}:{free_port()}/events"
    page.goto(site.address)
    page.evaluate(
        "for (let n = 0; n < 1100; n++) profilehouse.track('custom', { properties: { n } })"
    )
    [waiting] = [v for k, v in stored(page).items() if k.startswith("profilehouse.queue.")]
    assert len(waiting) == 1000
    numbers = [each["properties"]["n"] for each in waiting if "properties" in each]
    assert numbers == [*range(1100 - len(numbers), 1100)]


# The demo.


@contextmanager
def live(folder: Path) -> Iterator[Running]:
    """The collector with its demo page, and the live process."""
    stream = subprocess.Popen(
        [sys.executable, "-m", "profilehouse.cli", "stream"], env=os.environ | environment(folder)
    )
    try:
        with collector(folder, "--demo") as server:
            yield server
    finally:
        stream.send_signal(signal.SIGTERM)
        stream.wait(SECONDS)


def test_clicks_in_the_demo_change_the_profile_that_is_shown(page: Page, tmp_path: Path) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(SECONDS * 1000)
    expect.set_options(timeout=SECONDS * 1000)
    with live(tmp_path) as server:
        page.goto(f"http://{HOST}:{server.port}/")
        expect(page.get_by_role("status")).to_have_text("Allow profiling to see a profile.")
        page.get_by_role("button", name="Bananas").first.click()
        page.get_by_label("Profiling allowed").check()
        profile = page.get_by_role("complementary", name="Live profile")
        shelf = page.locator("#shelf")
        shelf.get_by_role("button", name="Donut").first.click()
        shelf.get_by_role("button", name="Bagel").first.click()
        expect(profile.get_by_role("list").first).to_contain_text("Bakery")
        expect(profile.locator("#recent li")).to_have_text(["Bagel", "Donut"])
        expect(profile.locator("#median")).to_contain_text("Median of 2")
        expect(page.get_by_role("heading", name="Picked for you: Bakery")).to_be_visible()
        milliseconds = int(profile.locator("#milliseconds").inner_text())
        assert 0 < milliseconds < SECONDS * 1000

        page.get_by_label("Customer").select_option("718")
        page.get_by_role("button", name="Log in").click()
        expect(profile).to_contain_text("Household 718.")
        expect(profile.locator("#recent li")).to_have_text(["Bagel", "Donut"])
        shelf.get_by_role("button", name="Buy Ham").click()
        expect(profile.locator("#bought")).to_have_text("Deli, $3.77 in all.")

        page.reload()
        expect(profile).to_contain_text("Household 718.")
        expect(profile.locator("#bought")).to_have_text("Deli, $3.77 in all.")

        page.get_by_role("button", name="Log out").click()
        expect(profile).to_contain_text("A visitor who is not logged in.")
        expect(profile.get_by_role("status")).to_have_text("No profile yet. Look at a product.")
        page.get_by_label("Profiling allowed").uncheck()
        expect(page.get_by_role("status")).to_have_text("Allow profiling to see a profile.")
        assert stored(page) == {}
    assert errors == []
    clicks = [each for each in kept(tmp_path) if each["event_type"] == "click"]
    assert (clicks[0]["content_id"], clicks[0]["consent"]) == ("1082185", False)


@pytest.mark.parametrize("size", [(1200, 800), (390, 844)], ids=["desk", "phone"])
def test_the_demo_page_fits_and_every_control_has_a_name(
    page: Page, tmp_path: Path, size: tuple[int, int]
) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    with collector(tmp_path, "--demo") as server:
        page.goto(f"http://{HOST}:{server.port}/")
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        page.get_by_label("Search the shop").fill("cheese")
        page.keyboard.press("Enter")
        expect(page.locator("#shelf article")).to_have_count(2)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('button, input, select')]
              .filter(e => !e.ariaLabel && !e.textContent.trim() && !(e.labels && e.labels.length))
              .length"""
        )
        assert nameless == 0
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") in {"BUTTON", "SELECT"}
