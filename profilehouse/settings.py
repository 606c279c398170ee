"""Settings: one validated object. Every error names the variable, its value and what it may be.

Belongs here: what differs between two installations. Does not belong here: what a contract says.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Any
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo, available_timezones

from pydantic import SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from profilehouse.errors import ProfilehouseError

PREFIX = "PROFILEHOUSE_"
TOKEN_LENGTH = 16
"""Characters of a token, at least."""
_BROKER = r"[\w.-]+:\d+"

_STORES = (
    r"lmdb:.*[^/].*",
    r"cassandra://[\w.-]+(:\d+)?(,[\w.-]+)*/[a-z][a-z0-9_]{0,47}",
    r"dynamodb://[a-z0-9-]+/[\w.-]{1,200}",
)


class Settings(BaseSettings):
    """Where the parts of the platform are. Read from PROFILEHOUSE_* variables and from .env.

    Folders may be relative; they are taken from the working directory.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        extra="ignore",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,
    )

    sources: str = "data/sources"
    """Folder or s3:// prefix into which the sources deliver `<source>/<day>.jsonl[.gz]`."""
    feeds: str = ""
    """Optional sources that are on: names of contracts/feeds, comma-separated."""
    mentions_url: str = ""
    """The timeline that the feed `mentions` fetches: https://HOST/api/v1/timelines/tag/NAME."""
    mentions_token: SecretStr | None = None
    """What the feed `mentions` shows to its API; many need none."""
    crm_url: str = ""
    """Where the households are: `postgresql://USER@HOST[:PORT]/DATABASE/[SCHEMA.]TABLE`; without it
    they come as files."""
    crm_password: SecretStr | None = None
    """What USER of the CRM's database shows to it."""
    webhooks: str = "file:data/webhooks"
    """The log of webhooks, beside the event log: `file:FOLDER` or `kafka://HOST:PORT/TOPIC`."""
    webhooks_secret: SecretStr | None = None
    """What senders of webhooks sign them with; without it the collector takes none."""
    lake: str = "data/lake"
    """Folder or s3:// prefix of the Iceberg tables."""
    catalog: str = "sqlite:"
    """Iceberg catalog: `sqlite:` (beside a local lake) or `glue:` (AWS, for a lake on S3)."""
    warehouse: str = "duckdb:data/warehouse.duckdb"
    """`duckdb:FILE`, `snowflake://USER@ACCOUNT/DATABASE/SCHEMA?warehouse=W&role=R` or
    `bigquery://PROJECT/DATASET`."""
    log: str = "file:data/log"
    """The event log: `file:FOLDER` or `kafka://HOST:PORT[,HOST:PORT]/TOPIC`."""
    profiles: str = "lmdb:data/profiles"
    """`lmdb:FOLDER`, `cassandra://HOST[:PORT][,HOST]/KEYSPACE` or `dynamodb://REGION/TABLE_PREFIX`."""
    status: str = "data/status"
    """Folder or s3:// prefix where live processes say how they are, for Dagster to read."""
    data_docs: str = "data/data_docs"
    """Folder into which the asset quality/data_docs writes Great Expectations' pages."""
    alerts: str = ""
    """YAML file that says who is told of what goes wrong; without one nobody is."""
    outbox: str = "data/alerts/outbox.sqlite"
    """SQLite file of what is wrong and of messages that are not sent yet; on a local disk."""
    origins: str = ""
    """Whose web pages may send events to the collector from elsewhere: `https://HOST[:PORT]`,
    comma-separated, or `*` for anybody's."""
    api_token: SecretStr | None = None
    """What readers of profiles show to the collector; without one it serves none."""
    timezone: str = "UTC"
    """Zone of the business day, a name of the IANA database."""
    first_day: date = date(2026, 1, 1)
    """First business day that the sources deliver; the daily partitions start here."""

    @field_validator("sources", "lake", "status")
    @classmethod
    def _folder_or_bucket(cls, value: str) -> str:
        url = urlsplit(value)
        is_url = "://" in value or url.scheme == "s3"
        if is_url and (url.scheme != "s3" or not url.netloc or "@" in url.netloc):
            raise ValueError("must be a folder or s3://BUCKET/PREFIX")
        if not value.strip("/ ") or value.startswith("~"):
            raise ValueError("must be a folder, written out, or s3://BUCKET/PREFIX")
        return value.rstrip("/")

    @field_validator("first_day", mode="before")
    @classmethod
    def _written_out(cls, value: Any) -> Any:
        if isinstance(value, str) and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value, re.ASCII):
            raise ValueError("must be a valid date, such as 2026-01-31")
        return value

    @field_validator("data_docs")
    @classmethod
    def _folder(cls, value: str) -> str:
        if not value.strip("/ ") or value.startswith("~") or "://" in value:
            raise ValueError("must be a folder, written out")
        return value.rstrip("/")

    @field_validator("catalog")
    @classmethod
    def _known_catalog(cls, value: str) -> str:
        if value not in ("sqlite:", "glue:"):
            raise ValueError("must be sqlite: or glue:")
        return value

    @field_validator("warehouse")
    @classmethod
    def _known_warehouse(cls, value: str) -> str:
        url = urlsplit(value)
        if url.scheme == "duckdb" and url.path.strip("/:") not in ("", "memory") and not url.netloc:
            return value
        if url.password:
            raise ValueError("must not hold a password: SNOWFLAKE_PASSWORD is the place for it")
        if url.scheme == "snowflake" and snowflake_parts(url):
            return value
        if re.fullmatch(r"bigquery://[a-z][a-z0-9.:-]{4,60}/\w{1,1024}(\?.*)?", value, re.ASCII):
            return value
        raise ValueError(
            "must be duckdb:FILE, snowflake://USER@ACCOUNT/DATABASE/SCHEMA?warehouse=W&role=R or"
            " bigquery://PROJECT/DATASET"
        )

    @field_validator("log", "webhooks")
    @classmethod
    def _known_log(cls, value: str) -> str:
        if not re.fullmatch(rf"file:/*[^/]+.*|kafka://{_BROKER}(,{_BROKER})*/[\w.-]+", value):
            raise ValueError("must be file:FOLDER or kafka://HOST:PORT[,HOST:PORT]/TOPIC")
        return value

    @field_validator("profiles")
    @classmethod
    def _known_store(cls, value: str) -> str:
        if not any(re.fullmatch(pattern, value) for pattern in _STORES):
            raise ValueError(
                "must be lmdb:FOLDER, cassandra://HOST[:PORT][,HOST]/KEYSPACE or"
                " dynamodb://REGION/TABLE_PREFIX"
            )
        return value

    @field_validator("mentions_url")
    @classmethod
    def _known_api(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[\w.-]+(:\d+)?/\S*", value):
            raise ValueError("must be https://HOST/PATH")
        return value

    @field_validator("crm_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if re.match(r"\w+://[^/@]*:[^/]*@", value):
            raise ValueError(f"must not hold a password: {PREFIX}CRM_PASSWORD is the place for it")
        name = r"[^\W\d][\w$]*"
        form = rf"postgresql://[\w.-]+@[\w.-]+(:\d+)?/[\w$-]+/({name}\.)?{name}"
        if value and not re.fullmatch(form, value):
            raise ValueError("must be postgresql://USER@HOST[:PORT]/DATABASE/[SCHEMA.]TABLE")
        return value

    @field_validator("origins")
    @classmethod
    def _known_origins(cls, value: str) -> str:
        origin = r"https?://[\w.-]+(:\d+)?"
        if not re.fullmatch(rf"(\*|{origin}(,{origin})*)?", value):
            raise ValueError("must be https://HOST[:PORT], comma-separated, or *")
        return value

    @field_validator("api_token", "webhooks_secret")
    @classmethod
    def _strong_token(cls, value: SecretStr | None) -> SecretStr | None:
        token = rf"[\w.~+/=-]{{{TOKEN_LENGTH},}}"
        if value is not None and not re.fullmatch(token, value.get_secret_value(), re.ASCII):
            raise ValueError(
                f"must be {TOKEN_LENGTH} or more letters, digits and -._~+/=, for example what"
                " `openssl rand -hex 32` prints"
            )
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError("must be a zone of the IANA database, for example America/New_York")
        return value

    @property
    def zone(self) -> ZoneInfo:
        """The zone of the business day."""
        return ZoneInfo(self.timezone)

    @property
    def warehouse_url(self) -> SplitResult:
        """The warehouse's URL in parts."""
        return urlsplit(self.warehouse)


SECRETS = frozenset(
    name for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None
)
"""The settings that nobody is shown."""


def snowflake_parts(url: SplitResult) -> tuple[str, str] | None:
    """(database, schema) of a Snowflake URL, or None where it lacks a part."""
    path = url.path.strip("/").split("/")
    if not url.hostname or not url.username or len(path) != 2 or not all(path):  # noqa: PLR2004
        return None
    return path[0], path[1]


def _shown(name: int | str, value: Any) -> Any:
    """The value without its secrets."""
    if name in SECRETS:
        return "***"
    return re.sub(r"(://[^:/]*):.*@", r"\1:***@", value) if isinstance(value, str) else value


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and .env, with some given.

    Raises:
        ProfilehouseError: one line that names each wrong variable and what it must be.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        problems = "; ".join(
            f"{PREFIX}{str(e['loc'][0]).upper()} is {_shown(e['loc'][0], e['input'])!r}:"
            f" {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise ProfilehouseError(f"settings: {problems}") from error
