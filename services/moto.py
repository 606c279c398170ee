"""A stand-in for AWS (S3, Glue) on loopback: moto's server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.process import HOST, free_port, running

REGION = "eu-central-1"


@contextmanager
def moto_server(folder: Path) -> Iterator[str]:
    """Run moto; yields the endpoint URL of all services. It starts empty and forgets at the end.

    Args:
        folder: for its log.
    """
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
    with running(command, port=port, log=folder / "moto.log"):
        yield f"http://{HOST}:{port}"


def credentials(endpoint: str) -> dict[str, str]:
    """The environment variables under which boto3 uses this server; the keys mean nothing."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "moto",
        "AWS_SECRET_ACCESS_KEY": "moto",
        "AWS_DEFAULT_REGION": REGION,
    }
