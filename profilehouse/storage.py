"""Folders, local or on S3, as pyarrow file systems.

Belongs here: opening a place to list and read files in. Does not belong here: what the files hold
(sources/), or Iceberg tables (lake/).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import fs

from profilehouse.errors import ProfilehouseError

if TYPE_CHECKING:
    from boto3.session import Session


def open_folder(url: str, session: Session | None = None) -> tuple[fs.FileSystem, str]:
    """The file system of a local folder or an s3:// prefix, and the folder's path in it.

    Args:
        url: a folder, absolute or below the working directory, or `s3://BUCKET/PREFIX`.
        session: credentials, profile and region for S3; by default boto3's own rules.

    Raises:
        ProfilehouseError: where there is no such folder or the bucket cannot be used.
    """
    if url.startswith("s3://"):
        from profilehouse import aws  # noqa: PLC0415

        return aws.access(url, session).filesystem(), url.removeprefix("s3://").rstrip("/")
    folder = Path(url).resolve()
    if not folder.is_dir():
        raise ProfilehouseError(f"{folder}: no such folder; create it or correct the setting")
    return fs.LocalFileSystem(), str(folder)


def sync_folder(folder: Path) -> None:
    """Make the names of new files in a local folder survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
