"""Commands run to their end in a process of their own, and what they cost."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.results import Cost

_LINES_SHOWN = 20


def run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Cost:
    """Run a command in a folder; what it prints goes to output.log there.

    Linux takes the memory of the process that starts a command as the first peak of the command, so
    the caller has to be small.

    Raises:
        RuntimeError: where it fails, with the last lines it printed.
    """
    log = folder / "output.log"
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = log.read_text("utf-8", "replace").splitlines()[-_LINES_SHOWN:]
        raise RuntimeError(
            f"{' '.join(command)} ended with {process.returncode}:\n" + "\n".join(lines)
        )
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def environment(scratch: Path, **variables: str) -> dict[str, str]:
    """This process' environment without any setting of the platform, Dagster or dbt, with some set.

    Bytecode is kept in the scratch folder, so that the warm-up compiles and the runs that count do
    not, as with any installed package.
    """
    foreign = ("PROFILEHOUSE_", "DAGSTER_", "DBT_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {"PYTHONPYCACHEPREFIX": str(scratch / "pycache")} | variables
