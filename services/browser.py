"""The browser of the UI tests: Chromium from PATH, or Debian's package where root may install it.

`python -m services.browser` prints the browser's path, or why there is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_APT_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive"}
_APT_COMMANDS = (
    ("apt-get", "update"),
    ("apt-get", "install", "--yes", "--no-install-recommends", "chromium"),
)
_APT_TIMEOUT = 900
"""Seconds for each command; a lock of another installation is waited for."""


class NoBrowserError(Exception):
    """There is no browser; the text says why in one line."""


def find_browser() -> str | None:
    """The path of an installed Chromium or Chrome, None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def ensure_browser() -> str:
    """The path of a browser, installed by apt if need be.

    Raises:
        NoBrowserError: where none is installed and none can be.
    """
    found = find_browser()
    if found:
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise NoBrowserError("it can be installed only by root and apt; install Chromium by hand")
    for command in _APT_COMMANDS:
        _run(command)
    found = find_browser()
    if found is None:
        raise NoBrowserError("apt-get installed no Chromium; install it by hand")
    return found


def _run(command: tuple[str, ...]) -> None:
    locked = ("-o", f"DPkg::Lock::Timeout={_APT_TIMEOUT}")
    try:
        subprocess.run(
            [command[0], *locked, *command[1:]],
            env=os.environ | _APT_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_APT_TIMEOUT,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or "no message").splitlines()[-1]
        raise NoBrowserError(f"{' '.join(command)} failed: {last}") from error
    except subprocess.TimeoutExpired as error:
        raise NoBrowserError(f"{' '.join(command)} took over {_APT_TIMEOUT} seconds") from error


def main() -> int:
    """Print the browser's path; without one print why and return 1."""
    if find_browser() is None:
        sys.stdout.write("browser: none on PATH; installing Debian's chromium takes a minute\n")
        sys.stdout.flush()
    try:
        sys.stdout.write(f"browser: {ensure_browser()}\n")
    except NoBrowserError as error:
        sys.stdout.write(f"browser: none, the UI tests will be skipped: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
