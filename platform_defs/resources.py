"""The platform as a resource, reached through Dagster's own AWS and Snowflake resources."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import dagster as dg

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
        s3: credentials, profile and region for S3 and Glue, and the endpoint of S3, where the
            standard AWS variables and files are not meant.
    """

    def snowflake() -> AbstractContextManager[Any]:
        return with_credentials(snowflake_resource(settings)).get_connection()

    return Platform(
        settings,
        aws=aws_session(s3) if s3 else None,
        snowflake=snowflake if settings.warehouse_url.scheme == "snowflake" else None,
    )


def aws_session(s3: S3Resource) -> Session:
    """The boto3 session that an S3Resource describes; its S3 clients go to its endpoint."""
    from boto3.session import Session  # noqa: PLC0415

    class SessionAt(Session):
        def client(self, service_name: str, *, config: Any = None, **options: Any) -> Any:  # type: ignore[override]
            if service_name == "s3" and not (config and config.ignore_configured_endpoint_urls):
                options["endpoint_url"] = s3.endpoint_url
            return super().client(service_name, config=config, **options)  # type: ignore[no-untyped-call]

    return (SessionAt if s3.endpoint_url else Session)(  # type: ignore[no-untyped-call]
        profile_name=s3.profile_name,
        region_name=s3.region_name,
        aws_access_key_id=s3.aws_access_key_id,
        aws_secret_access_key=s3.aws_secret_access_key,
        aws_session_token=s3.aws_session_token,
    )


def with_credentials(resource: SnowflakeResource) -> SnowflakeResource:
    """The resource with what is in the variables that it names, to connect by and not to show."""
    from profilehouse.warehouse.on_snowflake import CREDENTIALS  # noqa: PLC0415

    opened: SnowflakeResource = resource.process_config_and_initialize()
    further = opened.additional_snowflake_connection_args or {}
    # Dagster reads variables that stand in fields of its own only.
    for name in CREDENTIALS.keys() & further.keys():
        further[name] = os.environ[CREDENTIALS[name]]
    return opened


def snowflake_resource(settings: Settings) -> SnowflakeResource:
    """dagster-snowflake's resource for the warehouse of the settings.

    It names the variables that hold credentials instead of showing what is in them;
    with_credentials() reads them.
    """
    from dagster_snowflake import SnowflakeResource  # noqa: PLC0415

    from profilehouse.warehouse.on_snowflake import (  # noqa: PLC0415
        CREDENTIALS,
        connection_arguments,
    )

    arguments = connection_arguments(settings)
    arguments |= {
        name: dg.EnvVar(variable) for name, variable in CREDENTIALS.items() if name in arguments
    }
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
