"""What is watched from outside: metrics of collector and live process, the dashboard, the rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import promql_parser
import pytest
import yaml
from click.testing import CliRunner
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from profilehouse.cli import cli
from profilehouse.platform import Platform
from profilehouse.settings import load_settings
from profilehouse.stream.metrics import metrics_served
from profilehouse.web.metrics import Metrics
from profilehouse.web.writer import Room
from services.process import HOST
from tests.integration.test_live_process import living, record, send, until

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text("utf-8"))
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text("utf-8"))
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def get(address: str, accept: str = "*/*") -> tuple[str, str]:
    with urlopen(Request(address, headers={"Accept": accept}), timeout=10) as answer:
        return answer.headers["content-type"], answer.read().decode()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """Live metrics after three good records and a bad one: plain, OpenMetrics, its media type."""
    folder = tmp_path_factory.mktemp("live")
    settings = load_settings(
        lake=str(folder / "lake"),
        log=f"file:{folder / 'log'}",
        profiles=f"lmdb:{folder / 'profiles'}",
        status=str(folder / "status"),
    )
    platform = Platform(settings)
    send(platform, *(record(n, user_id="u1") for n in range(3)), b"no JSON")
    with (
        living(platform) as process,
        metrics_served(HOST, 0, lambda: process.status) as address,
    ):
        until(lambda: process.status is not None and process.status.refused == 1)
        until(lambda: process.status is not None and process.status.latency is not None)
        _, text = get(address)
        kind, open_text = get(address, OPENMETRICS)
        yield text, open_text, kind


def names_of_live(text: str) -> set[str]:
    return {sample.name for family in prometheus(text) for sample in family.samples}


def names_of_collector() -> set[str]:
    metrics = Metrics(Room(10, 1000))
    metrics.collected(202, 0.1)
    metrics.committed(1, 0.1)
    metrics.read(200, 0.1)
    text, _ = metrics.text("")
    return names_of_live(text.decode())


def expressions() -> list[str]:
    rules = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert len(rules) >= 8
    assert len(panels) >= 15
    return rules + panels


def test_a_live_process_tells_its_numbers_in_both_formats(served: tuple[str, str, str]) -> None:
    text, open_text, kind = served
    assert kind.startswith("application/openmetrics-text")
    values = {s.name: s.value for family in openmetrics(open_text) for s in family.samples}
    assert values["profilehouse_live_events_total"] == 3
    assert values["profilehouse_live_refused_total"] == 1
    assert values["profilehouse_live_lag_records"] == 0
    assert 0 < values["profilehouse_live_latency_seconds"] < 60
    assert "profilehouse_live_events_total 3.0" in text


def test_the_collector_tells_openmetrics_to_who_asks_for_it() -> None:
    text, kind = Metrics(Room(10, 1000)).text(OPENMETRICS)
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
    assert {family.name for family in openmetrics(text.decode())} > {
        "profilehouse_collector_requests",
        "profilehouse_collector_waiting_records",
    }


def test_every_expression_is_promql_over_metrics_that_there_are(
    served: tuple[str, str, str],
) -> None:
    there = names_of_live(served[0]) | names_of_collector()
    for expression in expressions():
        promql_parser.parse(expression)
        named = set(re.findall(r"\b(?:profilehouse|process)_\w+", expression))
        named -= {"profilehouse_collector", "profilehouse_live", "profilehouse_"}  # jobs
        assert named <= there, expression
        assert named or "up{" in expression


def test_every_rule_has_a_severity_a_summary_and_a_runbook() -> None:
    headings = {
        line.lstrip("# ").lower()
        for line in (DEPLOY.parent / "docs" / "operations.md").read_text("utf-8").splitlines()
        if line.startswith("#")
    }
    jobs = {job["job_name"] for job in scrapes()}
    for group in RULES["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in {"error", "warning"}
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
            assert rule["alert"].lower() in headings
            assert set(re.findall(r'job="(\w+)"', rule["expr"])) <= jobs


def scrapes() -> list[dict[str, Any]]:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text("utf-8"))
    found: list[dict[str, Any]] = config["scrape_configs"]
    return found


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_a_wrong_place_for_metrics_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(cli, ["stream", "--metrics", "9102"])
    assert "--metrics is '9102': must be HOST:PORT" in str(ran.exception)


def test_without_a_status_there_are_no_numbers_of_the_process() -> None:
    with metrics_served(HOST, 0, lambda: None) as address:
        _, text = get(address)
    assert "profilehouse_live" not in text
    assert "process_resident_memory_bytes" in text
