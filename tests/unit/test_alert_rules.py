"""Who is told of what, and when: rules, the folding of findings, the words of messages."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from profilehouse.alerts.incidents import Decision, Finding, Incident, Message, Problem, fold
from profilehouse.alerts.rules import Rules, load_rules
from profilehouse.alerts.words import digest_of, name_of, text_of
from profilehouse.contracts import Severity
from profilehouse.errors import ProfilehouseError
from profilehouse.redaction import secrets_of, without_secrets

FILE = {
    "ui": "https://dagster.example.com",
    "timezone": "America/New_York",
    "channels": {
        "team": {"env": "TEAM_URL", "quiet": {"from": "22:00", "to": "07:00"}},
        "oncall": {"env": "ONCALL_URL"},
        "crm": {"env": "CRM_URL"},
    },
    "default": ["team"],
    "routes": [
        {"to": ["oncall"], "match": {"severity": "error"}},
        {"to": ["crm"], "match": {"owner": "crm-team"}},
    ],
    "thresholds": [
        {"failures": 3, "match": {"check": "*_are_usual_by_*"}},
        {"failures": 2, "match": {"kind": "sensor"}},
    ],
}


@pytest.fixture(autouse=True)
def _addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TEAM_URL", "ONCALL_URL", "CRM_URL"):
        monkeypatch.setenv(name, "json://127.0.0.1/tok3n-of-a-channel")


def rules(tmp_path: Path, **changes: object) -> Rules:
    path = tmp_path / "alerts.yaml"
    path.write_text(yaml.safe_dump({**FILE, **changes}), "utf-8")
    return load_rules(path)


def problem(severity: Severity = "warning", **fields: object) -> Problem:
    given = {
        "kind": "check",
        "severity": severity,
        "title": "lake/purchases: price_is_present fails",
        "asset": "lake/purchases",
        "check": "price_is_present",
        "partition": "2026-03-01",
        "expected": "no row lacks price",
        "observed": "3 of 900 rows lack price",
        "sample": ({"basket": "17", "price": "null"},),
        "owners": ("sales-team",),
        "path": "/assets/lake/purchases?view=checks&checkDetail=price_is_present",
        "run_id": "12ab",
        "next_step": "Ask sales-team to deliver the day again",
    }
    return Problem(**{**given, **fields})  # type: ignore[arg-type]


# Rules


def test_every_route_that_fits_counts_and_the_default_where_none_does(tmp_path: Path) -> None:
    told = {
        name: rules(tmp_path).decide(p).channels
        for name, p in {
            "a warning of sales": problem("warning"),
            "an error of sales": problem("error"),
            "a warning of crm": problem("warning", owners=("crm-team",)),
            "an error of crm": problem("error", owners=("crm-team",)),
            "an error of nobody": problem("error", owners=()),
        }.items()
    }
    assert told == {
        "a warning of sales": ("team",),
        "an error of sales": ("oncall",),
        "a warning of crm": ("crm",),
        "an error of crm": ("oncall", "crm"),
        "an error of nobody": ("oncall",),
    }


def test_the_first_threshold_that_fits_counts(tmp_path: Path) -> None:
    decide = rules(tmp_path).decide
    assert decide(problem(check="lines_are_usual_by_iqr")).failures == 3
    assert decide(problem(kind="sensor", check="")).failures == 2
    assert decide(problem()).failures == 1


@pytest.mark.parametrize(
    ("clock", "severity", "waits"),
    [
        ((2026, 1, 10, 3, 30), "warning", True),  # 22:30 in New York
        ((2026, 1, 10, 3, 30), "error", False),
        ((2026, 1, 10, 11, 59), "warning", True),  # 06:59
        ((2026, 1, 10, 12, 0), "warning", False),  # 07:00
        ((2026, 7, 10, 11, 0), "warning", False),  # 07:00 in summer
        ((2026, 7, 10, 2, 0), "warning", True),  # 22:00
    ],
)
def test_quiet_hours_hold_back_warnings_in_the_zone_of_the_rules(
    tmp_path: Path, clock: tuple[int, ...], severity: Severity, waits: bool
) -> None:
    at = datetime(*clock, tzinfo=UTC).timestamp()  # type: ignore[misc]
    assert rules(tmp_path).holds_back("team", severity, at) is waits
    assert not rules(tmp_path).holds_back("oncall", severity, at)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"default": []}, "default must name a channel"),
        ({"default": ["nobody"]}, "default names the channel 'nobody'; there are crm, oncall"),
        ({"routes": [{"to": ["nobody"]}]}, r"routes[0].to names the channel 'nobody'"),
        ({"routes": [{"to": ["crm"], "match": {"sevrity": "error"}}]}, "`sevrity`"),
        ({"routes": [{"to": ["crm"], "match": {"severity": "fatal"}}]}, "'fatal'"),
        ({"thresholds": [{"failures": 0}]}, "thresholds[0].failures must be at least 1"),
        ({"channels": {"team": {}}, "routes": []}, "must have either env or file"),
        ({"timezone": "Mars"}, "timezone 'Mars' must be a zone"),
        ({"ui": "dagster"}, "ui must be the address of the Dagster UI"),
        ({"digest_above": 0}, "digest_above must be at least 1"),
        (
            {"channels": {"team": {"env": "TEAM_URL", "quiet": {"from": "22", "to": "07:00"}}},
             "routes": []},
            "'22' must be a time in quotes",
        ),
        (
            {"channels": {"team": {"env": "TEAM_URL", "quiet": {"from": 1320, "to": 420}}},
             "routes": []},
            "Expected `str`, got `int`",
        ),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_line_that_says_what_and_where(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(ProfilehouseError) as refused:
        rules(tmp_path, **changes)
    assert says in str(refused.value)
    assert str(refused.value).startswith(f"{tmp_path / 'alerts.yaml'}: ")
    assert "PROFILEHOUSE_ALERTS" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_address_that_is_missing_or_none_is_named_without_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CRM_URL")
    with pytest.raises(ProfilehouseError, match="channel crm needs the variable CRM_URL to hold"):
        rules(tmp_path)
    monkeypatch.setenv("CRM_URL", "tok3n without an address")
    with pytest.raises(ProfilehouseError) as refused:
        rules(tmp_path)
    assert "tok3n" not in str(refused.value)
    monkeypatch.setenv("CRM_URL", "slak://tok3n/of/slack")
    with pytest.raises(ProfilehouseError) as refused:
        rules(tmp_path)
    assert "Apprise does not understand the address of the channel crm" in str(refused.value)
    assert "tok3n" not in str(refused.value) + "".join(capfd.readouterr())
    only = {"channels": {"team": {"file": str(tmp_path / "none")}}, "routes": []}
    with pytest.raises(ProfilehouseError, match=r"cannot read the file .*none \(FileNotFound"):
        rules(tmp_path, **only)
    (tmp_path / "none").write_text("json://127.0.0.1/t0k3n\n")
    assert rules(tmp_path, **only).address("team") == "json://127.0.0.1/t0k3n"


# Incidents


def told(
    *severities: Severity | None, failures: int = 1, channels: tuple[str, ...] = ("team",)
) -> tuple[Incident | None, list[Message]]:
    """What comes of findings one after another; None where it is well."""
    incident, messages = None, []
    for n, severity in enumerate(severities):
        finding = Finding("f", float(n), problem(severity) if severity else None)
        decision = Decision(channels, failures) if severity else None
        incident, new = fold(incident, finding, decision)
        messages += new
    return incident, messages


def test_a_failure_is_told_once_however_often_it_is_seen_and_once_when_it_is_over() -> None:
    incident, messages = told("error", "error", "error", None, None)
    assert incident is None
    assert [(m.state, m.at, m.incident.failures) for m in messages] == [
        ("new", 0, 1),
        ("recovered", 3, 3),
    ]


def test_what_fails_again_after_it_was_well_is_a_new_incident() -> None:
    _, messages = told("error", None, "error")
    assert [m.state for m in messages] == ["new", "recovered", "new"]
    assert name_of(messages[0].incident) == name_of(messages[1].incident)
    assert name_of(messages[0].incident) != name_of(messages[2].incident)


def test_so_many_failures_in_a_row_are_needed_as_the_threshold_says() -> None:
    assert told("warning", "warning", None, "warning", "warning", failures=3)[1] == []
    incident, messages = told("warning", "warning", "warning", "warning", failures=3)
    assert [(m.state, m.at) for m in messages] == [("new", 2)]
    assert incident is not None
    assert incident.failures == 4


def test_a_warning_that_becomes_an_error_is_told_again() -> None:
    _, messages = told("warning", "warning", "error", "error", "warning", None)
    assert [m.state for m in messages] == ["new", "worse", "recovered"]


@given(st.lists(st.sampled_from(["error", "warning", None]), max_size=30), st.integers(1, 4))
def test_each_channel_hears_of_an_incident_once_and_of_its_end_once(
    seen: list[Severity | None], failures: int
) -> None:
    incident, messages = told(*seen, failures=failures, channels=("a", "b"))
    for channel in ("a", "b"):
        states = [m.state for m in messages if m.channel == channel and m.state != "worse"]
        assert states == ["new", "recovered"] * (len(states) // 2) + ["new"] * (len(states) % 2)
        assert len(states) % 2 == bool(incident and incident.told)


# Words


def test_a_message_has_all_that_helps() -> None:
    _, [message] = told("error")
    text = text_of(message, "https://dagster.example.com/")
    assert text.title == "[ERROR] lake/purchases: price_is_present fails"
    assert text.kind == "failure"
    assert text.body.splitlines() == [
        "asset: lake/purchases",
        "partition: 2026-03-01",
        "check: price_is_present",
        "expected: no row lacks price",
        "observed: 3 of 900 rows lack price",
        "owner: sales-team",
        "what to do: Ask sales-team to deliver the day again",
        "since: 1970-01-01 00:00:00 UTC",
        "sample:",
        "  basket=17, price=null",
        "page: https://dagster.example.com/assets/lake/purchases"
        "?view=checks&checkDetail=price_is_present",
        "run: https://dagster.example.com/runs/12ab",
        f"incident: {name_of(message.incident)}",
    ]


def test_the_message_of_a_recovery_says_how_long_it_was() -> None:
    _, messages = told("warning", "warning", None)
    text = text_of(messages[-1], "https://dagster.example.com")
    assert text.title == "[RECOVERED] lake/purchases: price_is_present fails"
    assert text.kind == "success"
    assert "Well again after 0:00:02; it failed 2 times." in text.body


def test_a_digest_names_every_incident_by_asset_the_worst_first() -> None:
    messages = [
        Message("team", "new", 0.0, told_of(severity, asset=asset, check=check))
        for asset, severity, check in [
            ("lake/crm", "warning", "age_is_present"),
            ("lake/purchases", "error", "price_is_present"),
            ("lake/purchases", "warning", "store_is_present"),
        ]
    ]
    text = digest_of(messages, "https://dagster.example.com")
    assert text.title == "[ERROR] 1 errors, 2 warnings"
    lines = text.body.splitlines()
    assert lines.index("lake/purchases (sales-team): 2") < lines.index("lake/crm (sales-team): 1")
    assert "  error price_is_present [2026-03-01]: 3 of 900 rows lack price" in lines


def told_of(severity: Severity, **fields: object) -> Incident:
    return Incident(
        fingerprint=str(fields), first_at=0.0, last_at=0.0, failures=1,
        problem=problem(severity, **fields), told=("team",), severity=severity,
    )  # fmt: skip


# Secrets


def test_secrets_are_hidden_wherever_they_stand() -> None:
    environment = {
        "SNOWFLAKE_PASSWORD": "hunter22",
        "PROFILEHOUSE_API_TOKEN": "t0k3n-t0k3n",
        "HOME": "/home",
    }
    text = (
        "login with hunter22 failed; postgresql://me:s3cr3t@db/house; Authorization: Bearer"
        " abcdef123456; token=zzz; t0k3n-t0k3n; /home"
    )
    shown = without_secrets(text, secrets_of(environment))
    for secret in ("hunter22", "s3cr3t", "abcdef123456", "zzz", "t0k3n"):
        assert secret not in shown
    assert "/home" in shown
    assert "@db/house" in shown
