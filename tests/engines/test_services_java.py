"""Java's files come as they were pinned, whoever asks and whatever happened to the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.java import JavaError, jars, java

ROOT = Path(__file__).resolve().parents[2]


def test_java_runs_and_is_new_enough() -> None:
    told = subprocess.run(
        [java(), "-XshowSettings:properties", "-version"], capture_output=True, check=True
    )
    version = told.stderr.decode().partition("java.specification.version = ")[2].split()[0]
    assert int(version) >= 17


def test_two_processes_get_the_same_files_and_a_damaged_one_is_fetched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ask = "from services.java import jars; print(*jars('kafka'), sep='\\n')"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ask],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    told = [process.communicate(timeout=500) for process in processes]
    paths = [Path(line) for line in told[0][0].splitlines()]
    assert told[0][0] == told[1][0]
    assert [errors.count("fetching") for _, errors in sorted(told, key=lambda t: t[1])] == [0, 1]
    assert {path.parent.parent for path in paths} == {tmp_path / "profilehouse" / "jars"}

    damaged = next(path for path in paths if path.name.startswith("kafka-clients-"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + b"\0")
    assert jars("kafka") == paths
    assert damaged.read_bytes() == whole


def test_a_fetch_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maven = tmp_path / "bin" / "mvn"
    maven.parent.mkdir()
    maven.write_text("#!/bin/sh\necho the network is down\nexit 7\n")
    maven.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(maven.parent) + os.pathsep + os.environ["PATH"])
    with pytest.raises(JavaError, match=r"mvn ended with 7:\nthe network is down"):
        jars("kafka")
    assert not list((tmp_path / "profilehouse" / "jars").glob("kafka-*/*"))
