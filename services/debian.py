"""Programs that tests use and pip does not bring: found on the system, or Debian's packages where
root may install them.

`python -m services.debian` looks for all of them, and says what was found, installed or missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from services.java import JavaError, java_for_spark

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_POSTGRES = Path("/usr/lib/postgresql")
"""Where Debian puts it, a folder a version, and not on PATH."""
_APT_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive"}
_APT_TIMEOUT = 900
"""Seconds for each command; a lock of another installation is waited for."""


class MissingProgramError(Exception):
    """A program is not there and cannot be installed; the text says why in one line."""


def find_browser() -> Path | None:
    """An installed Chromium or Chrome."""
    return next((Path(path) for name in _BROWSERS if (path := shutil.which(name))), None)


def find_postgres() -> Path | None:
    """The folder of an installed PostgreSQL's programs, of the newest version."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += sorted(_POSTGRES.glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    return next((p for p in found if (p / "initdb").exists() and (p / "postgres").exists()), None)


def find_java() -> Path | None:
    """JAVA_HOME of an installed Java that Spark runs on."""
    try:
        return java_for_spark()
    except JavaError:
        return None


PROGRAMS: Mapping[str, Callable[[], Path | None]] = {
    "chromium": find_browser,
    "postgresql": find_postgres,
    "default-jre-headless": find_java,
}
"""How to find what each package brings."""


def install(package: str) -> Path:
    """Install a package of PROGRAMS by apt; where what it brings is.

    Raises:
        MissingProgramError: where it cannot be installed.
    """
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise MissingProgramError("only root can install it, with apt; install it by hand")
    _apt("update")
    _apt("install", "--yes", "--no-install-recommends", package)
    found = PROGRAMS[package]()
    if found is None:
        raise MissingProgramError(f"apt-get installed no {package}; install it by hand")
    return found


def _apt(*arguments: str) -> None:
    command = ("apt-get", "-o", f"DPkg::Lock::Timeout={_APT_TIMEOUT}", *arguments)
    try:
        subprocess.run(
            command,
            env=os.environ | _APT_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_APT_TIMEOUT,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or "no message").splitlines()[-1]
        raise MissingProgramError(f"{' '.join(command)} failed: {last}") from error
    except subprocess.TimeoutExpired as error:
        raise MissingProgramError(
            f"{' '.join(command)} took over {_APT_TIMEOUT} seconds"
        ) from error


def main() -> int:
    """See that all are there; 1 where one is missing."""
    missing = 0
    for package, find in PROGRAMS.items():
        found = find()
        if found is None:
            sys.stdout.write(f"{package}: not there; installing it takes a minute\n")
            sys.stdout.flush()
            try:
                found = install(package)
            except MissingProgramError as error:
                sys.stdout.write(f"{package}: none, its tests will be skipped: {error}\n")
                missing = 1
                continue
        sys.stdout.write(f"{package}: {found}\n")
    return missing


if __name__ == "__main__":
    sys.exit(main())
