"""PostgreSQL on loopback, for Dagster's storage: the server of the system's own package.

As it refuses to run as root, root runs it as `nobody`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from services.debian import MissingProgramError, find_postgres
from services.process import HOST, Server, running

DATABASE, USER, PASSWORD = "dagster", "dagster", "dagster-of-tests"
_NOBODY = "nobody"
_SECONDS = 60


class Postgres(Server):
    """The server, with an empty database; data and log go with it."""

    def __init__(self, folder: Path) -> None:
        """Start nothing yet."""
        super().__init__(folder)
        # Not below `folder`: tests' folders are closed to other users.
        self._home = TemporaryDirectory(prefix="profilehouse-postgres-")
        self._data = Path(self._home.name) / "data"
        self._user = _NOBODY if os.geteuid() == 0 else None

    @property
    def variables(self) -> dict[str, str]:
        """What deploy/dagster.yaml reads."""
        return {
            "DAGSTER_POSTGRES_HOST": HOST,
            "DAGSTER_POSTGRES_PORT": str(self._port),
            "DAGSTER_POSTGRES_USER": USER,
            "DAGSTER_POSTGRES_PASSWORD": PASSWORD,
            "DAGSTER_POSTGRES_DB": DATABASE,
        }

    @property
    def tools(self) -> Path:
        """The folder of pg_dump and its like."""
        return _tools()

    def start(self) -> None:
        """Start it; it takes connections afterwards."""
        if not self._data.exists():
            self._create()
        command = [
            str(_tools() / "postgres"), "-D", str(self._data), "-h", HOST, "-p", str(self._port),
            "-k", self._home.name, "-c", "fsync=off",
        ]  # fmt: skip
        log = self._folder / "postgres.log"
        self._pid = self._running.enter_context(
            running(command, port=self._port, log=log, seconds=_SECONDS, user=self._user)
        )

    def _create(self) -> None:
        password = Path(self._home.name) / "password"
        password.write_text(PASSWORD, "utf-8")
        if self._user:
            shutil.chown(self._home.name, self._user)
            shutil.chown(password, self._user)
        initdb = [str(_tools() / "initdb"), "-D", str(self._data), "-U", USER]
        initdb += ["--pwfile", str(password), "--auth", "scram-sha-256"]
        self._run_as([*initdb, "--encoding", "UTF8", "--locale", "C"])
        single = [str(_tools() / "postgres"), "--single", "-D", str(self._data), "template1"]
        self._run_as(single, f'CREATE DATABASE "{DATABASE}";\n')

    def _run_as(self, command: list[str], text: str = "") -> None:
        done = subprocess.run(
            command, input=text, cwd=self._home.name, user=self._user, capture_output=True,
            text=True, timeout=_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{done.stderr}")


def _tools() -> Path:
    found = find_postgres()
    if found is None:
        raise MissingProgramError("no PostgreSQL; `python -m services.debian` installs it")
    return found
