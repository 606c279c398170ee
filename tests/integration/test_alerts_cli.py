"""`profilehouse alerts`, and the file of rules to begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from profilehouse.alerts.incidents import Finding, Problem
from profilehouse.alerts.outbox import Outbox
from profilehouse.alerts.rules import load_rules
from profilehouse.cli import cli
from profilehouse.errors import ProfilehouseError
from tests.receivers import web

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "alerts.yaml"


@pytest.fixture(autouse=True)
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example, its one file of an address in a folder of the test."""
    secret = tmp_path / "crm_url"
    secret.write_text("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ\n", "utf-8")
    file = tmp_path / "alerts.yaml"
    text = EXAMPLE.read_text("utf-8")
    file.write_text(text.replace("/run/secrets/alerts_crm_url", str(secret)), "utf-8")
    monkeypatch.setenv("PROFILEHOUSE_ALERTS", str(file))
    monkeypatch.setenv("PROFILEHOUSE_OUTBOX", str(tmp_path / "outbox.sqlite"))
    monkeypatch.setenv("ALERTS_TEAM_URL", "mailtos://u:p4ssw0rd@smtp.example.com?to=t@example.com")
    monkeypatch.setenv("ALERTS_ONCALL_URL", "pagerduty://A1BRTD4JDTIiajkdnlaz@TIiajkdnlazkcOXr")
    return file


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["alerts", *arguments])


def test_the_example_is_valid_with_addresses_of_mail_pagerduty_and_slack() -> None:
    ran = run("check")
    assert ran.output.splitlines() == [
        "team: address in ALERTS_TEAM_URL",
        "oncall: address in ALERTS_ONCALL_URL",
        f"crm: address in {ran.output.splitlines()[2].partition(' in ')[2]}",
        "3 channels, 2 routes: all well",
    ]
    assert "p4ssw0rd" not in ran.output


def test_a_test_message_reaches_its_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    with web() as receiver:
        monkeypatch.setenv("ALERTS_TEAM_URL", receiver.address)
        assert run("test", "team").output == "team took the message\n"
        assert receiver.titles == ["[TEST] Profilehouse can reach you"]
        receiver.mode = "fail"
        assert "error=500" in str(run("test", "team").exception)
    assert "no channel 'nobody': there are" in str(run("test", "nobody").exception)


def test_the_list_shows_what_is_wrong_and_what_waits(rules: Path, tmp_path: Path) -> None:
    assert "it has not run yet" in run("list").output
    problem = Problem(
        kind="check", severity="error", title="lake/crm: age_is_present fails",
        observed="1 of 9", next_step="ask",
    )  # fmt: skip
    with Outbox.opened(tmp_path / "outbox.sqlite") as outbox:
        outbox.record([Finding("f", 1.0, problem)], {}, load_rules(rules))
        lines = run("list").output.splitlines()  # beside the one that has it open
    assert lines[0].endswith(" error lake/crm: age_is_present fails (told oncall)")
    assert lines[1:] == ["1 messages wait for oncall", "1 incidents, 1 messages that wait"]


def test_without_rules_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROFILEHOUSE_ALERTS", "")
    assert isinstance(run("check").exception, ProfilehouseError)
