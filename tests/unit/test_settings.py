"""Settings: where they come from, and one line for each that is wrong."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profilehouse.errors import ProfilehouseError
from profilehouse.settings import PREFIX, SECRETS, Settings, load_settings, snowflake_parts

SNOWFLAKE = "snowflake://me@acme-eu/HOUSE/STAR?warehouse=LOAD&role=LOADER"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of ours and no .env in the working directory."""
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refusal(**settings: object) -> str:
    with pytest.raises(ProfilehouseError) as refused:
        load_settings(**settings)
    message = str(refused.value)
    assert message == " ".join(message.split()), "one line"
    return message


def test_without_any_setting_everything_is_embedded_and_below_data() -> None:
    settings = load_settings()
    assert settings.sources == "data/sources"
    assert settings.lake == "data/lake"
    assert settings.catalog == "sqlite:"
    assert settings.warehouse == "duckdb:data/warehouse.duckdb"
    assert settings.profiles == "lmdb:data/profiles"
    assert settings.profiles == "lmdb:data/profiles"
    assert settings.timezone == "UTC"


def test_the_environment_goes_before_the_file_and_what_is_given_before_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(".env").write_text(
        "# Others may have their settings here too.\n"
        "DAGSTER_HOME=/somewhere\n"
        "PROFILEHOUSE_LAKE=from-the-file\n"
        "PROFILEHOUSE_SOURCES=from-the-file\n"
        "PROFILEHOUSE_PROFILES=lmdb:from-the-file\n",
        "utf-8",
    )
    monkeypatch.setenv("PROFILEHOUSE_SOURCES", "from-the-environment")
    monkeypatch.setenv("PROFILEHOUSE_PROFILES", "lmdb:from-the-environment")
    settings = load_settings(profiles="lmdb:given")
    assert settings.lake == "from-the-file"
    assert settings.sources == "from-the-environment"
    assert settings.profiles == "lmdb:given"


def test_values_are_read_as_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROFILEHOUSE_FIRST_DAY", "2025-12-14")
    monkeypatch.setenv("PROFILEHOUSE_TIMEZONE", "America/New_York")
    monkeypatch.setenv("PROFILEHOUSE_LAKE", "s3://bucket/lake/")
    monkeypatch.setenv("PROFILEHOUSE_WAREHOUSE", SNOWFLAKE)
    settings = load_settings()
    assert settings.first_day == date(2025, 12, 14)
    assert settings.zone.key == "America/New_York"
    assert settings.lake == "s3://bucket/lake"
    assert settings.warehouse_url.hostname == "acme-eu"
    assert snowflake_parts(settings.warehouse_url) == ("HOUSE", "STAR")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("sources", "gs://bucket", "must be a folder or s3://BUCKET/PREFIX"),
        ("sources", "s3:///prefix", "must be a folder or s3://BUCKET/PREFIX"),
        ("lake", "http://host/lake", "must be a folder or s3://BUCKET/PREFIX"),
        ("catalog", "hive:", "must be sqlite: or glue:"),
        ("catalog", "", "must be sqlite: or glue:"),
        ("warehouse", "oracle:x", "must be duckdb:FILE, snowflake://"),
        ("warehouse", "duckdb:", "must be duckdb:FILE, snowflake://"),
        ("warehouse", "duckdb://data/w", "must be duckdb:FILE, snowflake://"),
        ("warehouse", "snowflake://acme/HOUSE/STAR", "must be duckdb:FILE, snowflake://"),
        ("warehouse", "snowflake://me@acme/HOUSE", "must be duckdb:FILE, snowflake://"),
        ("warehouse", "snowflake://me@acme/HOUSE/STAR/more", "must be duckdb:FILE, "),
        ("profiles", "lmdb:", "must be lmdb:FOLDER"),
        ("profiles", "redis://host", "must be lmdb:FOLDER"),
        ("timezone", "Europe/Atlantis", "must be a zone of the IANA database"),
        ("timezone", "", "must be a zone of the IANA database"),
        ("first_day", "1st of May", "valid date"),
        ("first_day", "2026-02-30", "valid date"),
    ],
)
def test_a_wrong_value_is_refused_with_the_variable_the_value_and_what_it_may_be(
    name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"{PREFIX}{name.upper()}"
    monkeypatch.setenv(variable, value)
    message = refusal()
    assert message.startswith(f"settings: {variable} is {value!r}: ")
    assert allowed in message
    assert message.count(PREFIX) == 1


def test_all_wrong_values_are_named_at_once() -> None:
    message = refusal(catalog="hive:", timezone="Mars", lake="data/lake")
    assert "PROFILEHOUSE_CATALOG is 'hive:': must be sqlite: or glue:; " in message
    assert "PROFILEHOUSE_TIMEZONE is 'Mars': must be a zone" in message
    assert "PROFILEHOUSE_LAKE" not in message


@pytest.mark.parametrize("password", ["hunter2", "hun:ter2@", "hunter2?warehouse"])
def test_a_password_in_a_url_is_refused_and_not_shown(password: str) -> None:
    message = refusal(warehouse=f"snowflake://me:{password}@acme/HOUSE/STAR?warehouse=LOAD")
    assert "hun" not in message
    assert (
        "PROFILEHOUSE_WAREHOUSE is 'snowflake://me:***@acme/HOUSE/STAR?warehouse=LOAD'" in message
    )


def test_the_password_of_the_crm_has_a_variable_of_its_own() -> None:
    message = refusal(crm_url="postgresql://reader:hunter2@db.example/shop/households")
    assert "PROFILEHOUSE_CRM_PASSWORD is the place for it" in message
    assert "hun" not in message


@given(
    name=st.sampled_from(sorted(set(Settings.model_fields) - SECRETS)),
    value=st.text()
    | st.builds(
        "{}{}".format, st.sampled_from(["s3://", "snowflake://", "duckdb:", "lmdb:"]), st.text()
    ),
)
def test_any_text_is_either_taken_or_refused_in_one_line(name: str, value: str) -> None:
    try:
        assert str(getattr(load_settings(**{name: value}), name)).rstrip("/") == value.rstrip("/")
    except ProfilehouseError as refused:
        message = str(refused)
        assert message.startswith(f"settings: {PREFIX}{name.upper()} is ")
        assert "\n" not in message


@pytest.mark.parametrize(
    "wrong",
    [
        {"lake": ""},
        {"first_day": "0"},
        {"mentions_url": "example.social/api"},
        {"crm_url": "postgresql://reader@db.example/shop"},
        {"crm_url": "postgresql://reader@db.example/shop/house; DROP TABLE x"},
        {"sources": "/"},
        {"lake": "~/lake"},
        {"lake": "s3:/bucket/lake"},
        {"sources": "s3://key:secret@bucket/in"},
        {"warehouse": "duckdb::memory:"},
        {"warehouse": "duckdb:"},
    ],
    ids=str,
)
def test_what_would_silently_mean_something_else_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ProfilehouseError, match="must be") as refusal:
        load_settings(**wrong)
    assert "secret" not in str(refusal.value)
