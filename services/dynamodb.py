"""DynamoDB Local, Amazon's own stand-in for DynamoDB, on loopback.

It keeps one SQLite database in its folder, whatever the region and the keys, and syncs every write:
put the folder into memory where speed matters. Its speed says nothing about DynamoDB's.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from services.java import jars, java
from services.process import HOST, free_port, running

REGION = "eu-central-1"
_MAIN = "software.amazon.dynamodb.services.local.main.ServerRunner"


class DynamoDbLocal:
    """A server that a test may kill and start again on the same data."""

    def __init__(self, folder: Path) -> None:
        """Start nothing yet.

        Args:
            folder: for its database and log; made where it is missing.
        """
        self._folder = folder
        self._port = free_port()
        self._running = ExitStack()
        self._pid = 0

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
        log = self._folder / "dynamodb.log"
        self._pid = self._running.enter_context(running(command, port=self._port, log=log))

    def kill(self) -> None:
        """kill -9; `start` brings it back with what it had stored."""
        os.kill(self._pid, signal.SIGKILL)
        self._running.close()

    def stop(self) -> None:
        """End it."""
        self._running.close()


@contextmanager
def dynamodb_local(folder: Path) -> Iterator[DynamoDbLocal]:
    """Run DynamoDB Local for as long as the block lasts."""
    server = DynamoDbLocal(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def credentials(endpoint: str) -> dict[str, str]:
    """The environment variables under which boto3 uses this server; the keys mean nothing."""
    return {
        "AWS_ENDPOINT_URL_DYNAMODB": endpoint,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
