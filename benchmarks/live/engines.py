"""One run each: of the live process and of the peers, over a topic that is filled already.

Belongs here: starting, watching, timing. Does not belong here: how many runs, or what is printed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from benchmarks.live.probe import Percentiles
from benchmarks.process import environment
from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration
from profilehouse.settings import Settings
from profilehouse.stream.status import read_statuses
from services.java import jars, java
from services.kafka import KafkaBroker
from services.process import HOST, free_port, running

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).parent / "peers" / "requirements.txt"
PEERS = ("quix", "bytewax", "spark")
MIB = 2**20
_TOKEN = "only-for-the-benchmark"
_BEARER = f"Bearer {_TOKEN}"
_SECONDS = 3600
_LINES_SHOWN = 20


class Drained(msgspec.Struct):
    """A backlog drained: events a second from the first that was stored until all were.

    `with_start` counts from the start of the process, `lake` until the lake had all of them too.
    `per_cpu_second` is what a busy machine distorts least: events for each second that the process
    and its children had a core, start and end included. None for Spark, whose JVM nobody waits for.
    """

    events: int
    rate: float
    with_start: float
    per_cpu_second: float | None
    lake: float | None = None
    peak_mib: float | None = None


class Latencies(msgspec.Struct):
    """Of events from their producer to a reader, of reads from LMDB and of reads over HTTP."""

    readable: Percentiles
    reads: Percentiles
    api: Percentiles


class Memory(msgspec.Struct):
    """A live process' memory after so many events, in MiB; `own` is without LMDB's pages."""

    events: int
    own: float
    resident: float


class Run:
    """A folder for one run of the platform on one topic."""

    def __init__(self, folder: Path, broker: KafkaBroker, topic: str) -> None:
        """Make the folder."""
        folder.mkdir(parents=True)
        self.folder = folder
        self.settings = Settings(
            log=broker.url(topic),
            profiles=f"lmdb:{folder / 'profiles'}",
            lake=str(folder / "lake"),
            status=str(folder / "status"),
            _env_file=None,
        )
        names = ("log", "profiles", "lake", "status")
        self.environment = environment(
            folder,
            PYTHONPATH=str(ROOT),
            **{f"PROFILEHOUSE_{name.upper()}": getattr(self.settings, name) for name in names},
        )
        with closing(Platform(self.settings).log()) as log:
            self.ends = log.ends()

    @contextmanager
    def live_process(self) -> Iterator[subprocess.Popen[bytes]]:
        """The live process; asked to end after the block, and it must end well."""
        command = [sys.executable, "-m", "profilehouse.cli", "stream"]
        with (
            (self.folder / "stream.log").open("wb") as output,
            subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=output, stderr=output
            ) as process,
        ):
            try:
                yield process
                process.send_signal(signal.SIGTERM)
                if code := process.wait(60):
                    raise RuntimeError(f"the live process ended with {code}")
            finally:
                process.kill()

    @contextmanager
    def command(self, module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A module of this package that runs beside; ended after the block."""
        with subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.live.{module}", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def stored(self) -> int:
        """Records of the log that are durable in the profiles."""
        with Platform(self.settings).profile_store(load_declaration()) as store:
            if not store.exists():
                return 0
            with store.cut() as cut:
                return sum(cut.positions.values())

    def in_lake(self) -> int:
        """Records of the log that are in the lake."""
        return sum(Platform(self.settings).lake().positions("web_events").offsets.values())


def fill(broker: KafkaBroker, topic: str, scratch: Path, *arguments: str) -> None:
    """Make a topic and append the load to it."""
    broker.create_topic(topic)
    subprocess.run(
        [sys.executable, "-m", "benchmarks.live.load", *arguments],
        cwd=ROOT,
        env=environment(scratch, PYTHONPATH=str(ROOT), PROFILEHOUSE_LOG=broker.url(topic)),
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=_SECONDS,
    )


def drain(run: Run) -> Drained:
    """The live process over the topic, until profiles and lake have all of it."""
    wanted = sum(run.ends.values())
    started = time.perf_counter()
    with run.live_process() as process:
        first, began = _wait(process, run, 1)
        done, ended = _wait(process, run, wanted)
        while run.in_lake() < wanted:
            time.sleep(0.1)
        lake_ended = time.perf_counter()
        peak = _memory(process.pid)["VmHWM"]
        cpu_seconds = _cpu_seconds(process.pid)
    return Drained(
        events=done,
        rate=(done - first) / (ended - began),
        with_start=done / (ended - started),
        per_cpu_second=done / cpu_seconds,
        lake=done / (lake_ended - started),
        peak_mib=peak,
    )


def latency(run: Run, rate: int, seconds: int, users: int) -> Latencies:
    """What readers in other processes wait at a steady rate of events; one kind after the other."""
    with run.live_process() as process:
        _wait_for_partitions(process, run)
        with (
            run.command("probe", "latency", str(rate), "--seconds", str(seconds / 2)) as prober,
            run.command("load", str(rate * seconds), "--rate", str(rate), "--users", str(users)),
        ):
            seen = _told(prober)
            reads = _reads(run, users, seconds / 8)
            with _api(run) as address:
                api = _reads(run, users, seconds / 8, "--api", address, "--token", _BEARER)
    return Latencies(seen, reads, api)


def memory(run: Run, events: int, users: int, samples: int) -> list[Memory]:
    """A live process' memory while so many events go through it, from the start on."""
    measured = []
    with (
        run.live_process() as process,
        run.command("load", str(events), "--users", str(users)) as load,
    ):
        for sample in range(1, samples + 1):
            stored, _ = _wait(process, run, events * sample // samples, pause=0.2)
            now = _memory(process.pid)
            measured.append(Memory(stored, now["RssAnon"], now["VmRSS"]))
        load.wait(60)
    return measured


def profile(run: Run, seconds: int, py_spy: Path) -> list[tuple[str, float, float]]:
    """Where a live process that drains a backlog is: (function, own share, share with callees).

    The stacks of all its threads that run, a hundred times a second; written to stacks.txt.
    """
    stacks = run.folder / "stacks.txt"
    with run.live_process() as process:
        _wait(process, run, 1)
        record = [str(py_spy), "record", "-p", str(process.pid), "-d", str(seconds)]
        subprocess.run(
            [*record, "--function", "-f", "raw", "-o", str(stacks)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds + 60,
        )
    own: dict[str, int] = {}
    below: dict[str, int] = {}
    total = 0
    for line in stacks.read_text("utf-8").splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        total += int(count)
        own[frames[-1]] = own.get(frames[-1], 0) + int(count)
        for frame in set(frames):
            below[frame] = below.get(frame, 0) + int(count)
    shares = [(name, own.get(name, 0) / total, n / total) for name, n in below.items()]
    return sorted(shares, key=lambda each: -each[1])


def drain_with(
    peer: str, commands: Path, folder: Path, broker: KafkaBroker, topic: str, events: int
) -> Drained:
    """A peer over the topic.

    Raises:
        RuntimeError: where it fails or does not fold all events; with the last lines it printed.
    """
    folder.mkdir(parents=True)
    progress, log = folder / "progress", folder / "output.log"
    python = commands / "python"
    variables: Mapping[str, str] = {
        "PYTHONPATH": str(ROOT),
        "PEER_PROGRESS": str(progress),
        "PYSPARK_PYTHON": str(python),
        "JAVA_HOME": str(java().resolve().parents[1]),
        "PEER_JARS": ",".join(map(str, jars("spark"))) if peer == "spark" else "",
    }
    module = f"benchmarks.live.peers.on_{peer}"
    started = time.time()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, "-m", module, broker.address, topic, str(events), str(folder / "state")],
            cwd=folder,
            env=environment(folder, **variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            process.kill()
    told = progress.read_text("ascii").split() if progress.exists() else []
    if process.returncode or len(told) != 3 or int(told[2]) != events:
        lines = log.read_text("utf-8", "replace").splitlines()[-_LINES_SHOWN:]
        raise RuntimeError("\n".join([f"{peer} failed, it told {told}:", *lines]))
    began, ended = float(told[0]), float(told[1])
    return Drained(
        events,
        events / (ended - began),
        events / (ended - started),
        None if peer == "spark" else events / (usage.ru_utime + usage.ru_stime),
    )


def _wait(
    process: subprocess.Popen[bytes], run: Run, wanted: int, pause: float = 0.02
) -> tuple[int, float]:
    """(records stored, when) as soon as so many are."""
    deadline = time.perf_counter() + _SECONDS
    while (stored := run.stored()) < wanted:
        _check(process, run, deadline)
        time.sleep(pause)
    return stored, time.perf_counter()


def _reads(run: Run, users: int, seconds: float, *options: str) -> Percentiles:
    arguments = ["reads", str(users), "--seconds", str(seconds), *options]
    with run.command("probe", *arguments) as reader:
        return _told(reader)


@contextmanager
def _api(run: Run) -> Iterator[str]:
    """HOST:PORT of a profile API that runs as long as the block."""
    port = free_port()
    command = [sys.executable, "-m", "profilehouse.cli", "collect", "--port", str(port)]
    variables = run.environment | {"PROFILEHOUSE_API_TOKEN": _TOKEN}
    with running(command, port=port, log=run.folder / "collect.log", env=variables):
        yield f"{HOST}:{port}"


def _wait_for_partitions(process: subprocess.Popen[bytes], run: Run) -> None:
    """Return once the live process says that it reads the log."""
    deadline = time.perf_counter() + _SECONDS
    while not any(status.ends for status in read_statuses(run.settings)):
        _check(process, run, deadline)
        time.sleep(0.1)


def _check(process: subprocess.Popen[bytes], run: Run, deadline: float) -> None:
    if process.poll() is not None or time.perf_counter() > deadline:
        lines = (run.folder / "stream.log").read_text("utf-8", "replace").splitlines()
        raise RuntimeError("\n".join(["the live process failed:", *lines[-_LINES_SHOWN:]]))


def _told(process: subprocess.Popen[str]) -> Percentiles:
    output, _ = process.communicate(timeout=_SECONDS)
    return msgspec.json.decode(output, type=Percentiles)


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process that has no children."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> dict[str, float]:
    """Fields of /proc/PID/status in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(kib) / 1024 for name, kib, _ in fields}
