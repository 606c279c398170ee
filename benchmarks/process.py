"""What benchmarks run on and in: the machine, environments of peers, commands and what they cost.

Does not belong here: what is measured.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
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


def installed(requirements: Path, folder: Path) -> Path:
    """A virtual environment with what a file of requirements names, made once; its commands."""
    ready = folder / ".ready"
    wanted = requirements.read_text("utf-8")
    if not ready.exists() or ready.read_text("utf-8") != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", str(requirements)], check=True)
        ready.write_text(wanted, "utf-8")
    return folder / "bin"


def machine_used(packages: Iterable[str]) -> dict[str, str]:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} used",
        "memory": f"{memory / 2**30:.0f} GiB",
        "load before": load(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def load() -> str:
    """Processes that wanted a core, over the last minute; what others do shows up here."""
    return f"{os.getloadavg()[0]:.1f}"
