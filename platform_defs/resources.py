"""The platform as a resource, reached through Dagster's own AWS and Snowflake resources."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from profilehouse.platform import Platform
from profilehouse.settings import Settings

if TYPE_CHECKING:
    from boto3.session import Session
    from dagster_aws.s3 import S3Resource
    from dagster_snowflake import SnowflakeResource


def open_platform(settings: Settings, s3: S3Resource | None = None) -> Platform:
    """The platform of the settings.

    Args:
        settings: where its parts are.
        s3: credentials, profile and region for S3 and Glue, where the standard AWS variables and
            files are not meant.
    """

    def snowflake() -> AbstractContextManager[Any]:
        return snowflake_resource(settings).get_connection()

    return Platform(
        settings,
        aws=aws_session(s3) if s3 else None,
        snowflake=snowflake if settings.warehouse_url.scheme == "snowflake" else None,
    )


def aws_session(s3: S3Resource) -> Session:
    """The boto3 session that an S3Resource describes."""
    from boto3.session import Session  # noqa: PLC0415

    return Session(  # type: ignore[no-untyped-call]
        profile_name=s3.profile_name,
        region_name=s3.region_name,
        aws_access_key_id=s3.aws_access_key_id,
        aws_secret_access_key=s3.aws_secret_access_key,
        aws_session_token=s3.aws_session_token,
    )


def snowflake_resource(settings: Settings) -> SnowflakeResource:
    """dagster-snowflake's resource for the warehouse of the settings."""
    from dagster_snowflake import SnowflakeResource  # noqa: PLC0415

    from profilehouse.warehouse.on_snowflake import connection_arguments  # noqa: PLC0415

    arguments = connection_arguments(settings)
    renamed = {
        "private_key_file": "private_key_path",
        "private_key_file_pwd": "private_key_password",
    }
    known = {renamed.get(name, name): value for name, value in arguments.items()}
    fields = {f.alias or name for name, f in SnowflakeResource.model_fields.items()}
    return SnowflakeResource(
        **{name: value for name, value in known.items() if name in fields},
        additional_snowflake_connection_args={
            name: value for name, value in known.items() if name not in fields
        },
    )
