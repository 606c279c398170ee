"""Files on the disk before a commit names them: a catalog survives a power cut, so must they."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def sync(locations: Iterable[str]) -> None:
    """Force files, and the two folders above each, onto the disk. S3 does that by itself."""
    files = [Path(location) for location in locations if "://" not in location]
    folders = {folder for file in files for folder in (file.parent, file.parent.parent)}
    for path in (*files, *sorted(folders)):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
