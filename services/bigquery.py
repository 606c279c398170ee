"""BigQuery's emulator as a server of its own process, for tests and benchmarks.

It needs other versions of packages than the platform, so it lives in an environment of its own,
made in the user's cache on first use from services/bigquery.txt. It shows that the SQL runs and
what it computes; docs/warehouse.md lists what it cannot judge.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from services.java import cache_folder, locked
from services.process import HOST, free_port, running

PROJECT = "profilehouse-test"
_PINS = Path(__file__).with_suffix(".txt")
_ALONE = {"PYTHONPATH": "", "PYTHONHOME": "", "PIP_USER": "0"}
"""So that nothing from outside of the environment is taken for a part of it."""
_INSTALL_SECONDS = 900
_START_SECONDS = 60
_EXTENSION = """
import duckdb, duckdb_extension_spatial, os, pathlib, shutil
platform = duckdb.connect().execute("PRAGMA platform").fetchone()[0]
version = f"v{duckdb.__version__}"
to = pathlib.Path(os.environ["HOME"], ".duckdb", "extensions", version, platform)
to.mkdir(parents=True)
here = pathlib.Path(duckdb_extension_spatial.__file__).parent
shutil.copy(here / "extensions" / version / "spatial.duckdb_extension", to)
"""
"""Puts an extension that the emulator would download where it looks for it."""


@dataclass(frozen=True)
class BigQueryEmulator:
    """A running emulator of the project PROJECT."""

    port: int

    @property
    def endpoint(self) -> str:
        """Where its API is."""
        return f"http://{HOST}:{self.port}"

    def url(self, dataset: str) -> str:
        """What PROFILEHOUSE_WAREHOUSE must be; the dataset has to be made before."""
        return f"bigquery://{PROJECT}/{dataset}?endpoint={self.endpoint}"


@contextmanager
def bigquery_emulator() -> Iterator[BigQueryEmulator]:
    """Run the emulator on a free port of 127.0.0.1; what it holds is in memory and ends with it."""
    environment = _environment()
    with TemporaryDirectory(prefix="bigquery-") as folder:
        rest, grpc = free_port(), free_port()
        command = [str(environment / "bin" / "bqemulator"), "start", "--ephemeral"]
        command += ["--rest-port", str(rest), "--grpc-port", str(grpc), "--project", PROJECT]
        variables = {**_ALONE, "HOME": str(environment), "TMPDIR": folder}
        with running(
            [*command, "--log-level", "warning"],
            port=rest,
            log=Path(folder, "log"),
            env=variables,
            seconds=_START_SECONDS,
        ):
            yield BigQueryEmulator(rest)


def _environment() -> Path:
    """The emulator's environment. Safe in several processes at once: one makes it, others wait."""
    pins = _PINS.read_bytes()
    made_of = hashlib.sha256(pins + sys.version.encode()).hexdigest()[:12]
    folder = cache_folder() / f"bigquery-{made_of}"
    ready = folder / "ready"
    with locked(folder.with_suffix(".lock")):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            python = str(folder / "bin" / "python")
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            _call([sys.executable, "-m", "venv", str(folder)])
            _call([*pip, "--no-deps", "-r", str(_PINS)])
            _call([python, "-c", _EXTENSION], HOME=str(folder))
            ready.touch()
    return folder


def _call(command: list[str], **variables: str) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, **_ALONE, **variables},
        capture_output=True,
        text=True,
        timeout=_INSTALL_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} failed: {done.stderr[-2000:]}")
