"""AWS the way its users configure it: boto3's credentials, profiles, regions and endpoint URLs.

Belongs here: turning a boto3 session into what pyarrow and pyiceberg need. Does not belong here:
what is stored on S3 (storage.py, lake/).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from profilehouse.errors import ProfilehouseError

if TYPE_CHECKING:
    from boto3.session import Session
    from pyarrow.fs import S3FileSystem

CONNECT_SECONDS = 5
CONTROL_SECONDS = 10
"""How long boto3 waits for an answer; its calls here are small."""
TRANSFER_SECONDS = 30
"""How long a transfer of file data may stall."""
ATTEMPTS = 3


@dataclass(frozen=True)
class Access:
    """How to reach one bucket. The credentials are those of the moment it was made.

    `endpoint` is None for AWS itself, else the URL configured in AWS_ENDPOINT_URL_S3,
    AWS_ENDPOINT_URL or the profile.
    """

    session: Session
    region: str
    endpoint: str | None
    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(repr=False)

    def client(self, service: str) -> Any:
        """A boto3 client that gives up in seconds, not minutes."""
        return _client(self.session, service)

    def filesystem(self) -> S3FileSystem:
        """S3 for pyarrow: paths are `bucket/key`."""
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem  # noqa: PLC0415

        return S3FileSystem(
            region=self.region,
            endpoint_override=self.endpoint,
            access_key=self.access_key,
            secret_key=self.secret_key,
            session_token=self.session_token,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=TRANSFER_SECONDS,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        )

    def iceberg_properties(self) -> dict[str, str]:
        """S3 for pyiceberg: the properties of a catalog whose tables lie in this bucket."""
        properties = {
            "s3.region": self.region,
            "s3.endpoint": self.endpoint,
            "s3.access-key-id": self.access_key,
            "s3.secret-access-key": self.secret_key,
            "s3.session-token": self.session_token,
            "s3.connect-timeout": str(CONNECT_SECONDS),
            "s3.request-timeout": str(TRANSFER_SECONDS),
            "s3.retry-strategy-impl": "pyarrow.fs.AwsStandardS3RetryStrategy",
        }
        return {name: value for name, value in properties.items() if value is not None}


def access(url: str, session: Session | None = None) -> Access:
    """How to reach the bucket of an s3:// URL, tried out with one small request.

    Args:
        url: `s3://BUCKET` or `s3://BUCKET/PREFIX`.
        session: credentials, profile and region; by default boto3's own rules.

    Raises:
        ProfilehouseError: where the bucket cannot be used; it names the URL and the remedy.
    """
    from boto3.session import Session  # noqa: PLC0415
    from botocore.exceptions import NoCredentialsError, NoRegionError  # noqa: PLC0415

    with explained(url):
        session = session or Session()  # type: ignore[no-untyped-call]
        credentials = session.get_credentials()  # type: ignore[no-untyped-call]
        if credentials is None:
            raise NoCredentialsError
        if session.region_name is None:
            raise NoRegionError
        s3 = _client(session, "s3")
        bucket = s3.head_bucket(Bucket=urlsplit(url).netloc)
        default = _client(session, "s3", ignore_configured_endpoint_urls=True)
        endpoint = s3.meta.endpoint_url
        frozen = credentials.get_frozen_credentials()
        return Access(
            session=session,
            region=bucket.get("BucketRegion") or session.region_name,
            endpoint=None if endpoint == default.meta.endpoint_url else endpoint,
            access_key=frozen.access_key,
            secret_key=frozen.secret_key,
            session_token=frozen.token,
        )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an error of boto3 into one line that names `what` and the remedy."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        yield
    except (BotoCoreError, ClientError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ProfilehouseError(f"{what}: {reason}; {_remedy(error)}") from error


def _client(session: Session, service: str, **options: Any) -> Any:
    from botocore.config import Config  # noqa: PLC0415

    config = Config(  # type: ignore[no-untyped-call]
        connect_timeout=CONNECT_SECONDS,
        read_timeout=CONTROL_SECONDS,
        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
        **options,
    )
    return session.client(service, config=config)  # type: ignore[no-untyped-call]


def _remedy(error: Exception) -> str:
    from botocore import exceptions as e  # noqa: PLC0415

    by_class = {
        e.ProfileNotFound: "correct AWS_PROFILE or add the profile to the AWS configuration",
        e.NoRegionError: "set AWS_DEFAULT_REGION or the profile's region",
        e.NoCredentialsError: "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        e.ConnectionError: "check the network and, where set, AWS_ENDPOINT_URL",
        e.HTTPClientError: "check the network and, where set, AWS_ENDPOINT_URL",
        ValueError: "check AWS_ENDPOINT_URL and the profile",
    }
    by_code = {
        "404": "create the bucket or correct the URL",
        "NoSuchBucket": "create the bucket or correct the URL",
        "ExpiredToken": "renew the credentials",
        "ExpiredTokenException": "renew the credentials",
    }
    if isinstance(error, e.ClientError):
        code = str(error.response.get("Error", {}).get("Code"))
        return by_code.get(code, "see that these credentials are the right ones and may use it")
    for kind, remedy in by_class.items():
        if isinstance(error, kind):
            return remedy
    return "check the AWS configuration"
