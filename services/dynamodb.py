"""DynamoDB Local, Amazon's own stand-in for DynamoDB, on loopback.

It keeps one SQLite database in its folder, whatever the region and the keys, and syncs every write:
put the folder into memory where speed matters. Its speed says nothing about DynamoDB's.
"""

from __future__ import annotations

from services.java import jars, java
from services.process import HOST, Server

REGION = "eu-central-1"
_MAIN = "software.amazon.dynamodb.services.local.main.ServerRunner"
_SECONDS_TO_START = 60


class DynamoDbLocal(Server):
    """The server."""

    @property
    def endpoint(self) -> str:
        """The URL of its API."""
        return f"http://{HOST}:{self._port}"

    def start(self) -> None:
        """Start it; it listens afterwards."""
        database = self._folder / "database"
        database.mkdir(parents=True, exist_ok=True)
        libraries = jars("dynamodb")
        command = [
            str(java()),
            "-Xmx256m",
            "-XX:+UseSerialGC",
            f"-Djava.library.path={libraries[0].parent}",
            "-cp",
            ":".join(map(str, libraries)),
            _MAIN,
            "-port",
            str(self._port),
            "-dbPath",
            str(database),
            "-sharedDb",
            "-disableTelemetry",
        ]
        self._run(command, "dynamodb.log", _SECONDS_TO_START)


def credentials(endpoint: str) -> dict[str, str]:
    """The environment variables under which boto3 uses this server; the keys mean nothing."""
    return {
        "AWS_ENDPOINT_URL_DYNAMODB": endpoint,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
