"""The run: a producer, live processes that are killed, and the comparison at the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from confluent_kafka import Consumer, TopicPartition

from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration
from profilehouse.profiles.serving import read_profile, read_visitor
from profilehouse.settings import Settings
from profilehouse.stream.status import Status, read_statuses
from services.kafka import KafkaBroker
from tests.torture import naive, records

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 4
KAFKA_GIVES_UP = 12.0
"""Seconds after which a process that says nothing has lost its partitions to others."""

SECONDS_TO_START = 4.0
"""Within which a process has begun to work, if nobody died just before."""

_SECONDS_TO_END = 60
_SECONDS_TO_CATCH_UP = 240
_SECONDS_TO_GO_ON = 90
_LINES_SHOWN = 15
_DIFFERENCES_SHOWN = 5


@dataclass(frozen=True)
class Plan:
    """What is done to the live processes.

    Attributes:
        seed: of the input and of all chance.
        events: how many records are appended, copies come on top.
        kills: how often a process gets SIGKILL while it works.
        freezes: how often one is stopped until its partitions are others', and then goes on.
        joins: how often a second process joins; it leaves again in order, or by a kill.
        seconds: over which the records are appended, if what is done to the processes takes so
            long; longer, if it takes longer.
        engine: what runs. Of Spark only one process runs, so nobody joins and nobody is frozen.
    """

    seed: int
    events: int
    kills: int
    freezes: int = 1
    joins: int = 2
    seconds: float = 60.0
    engine: Literal["process", "spark"] = "process"


@dataclass(frozen=True)
class Place:
    """Where a run happens.

    Attributes:
        folder: for the lake, the statuses and what the processes print.
        broker: runs.
        topic: of the broker, empty.
        profiles: the setting.
        variables: of the environment, for the store.
        store_files: what changes when the store is written, to find the moment for a kill.
    """

    folder: Path
    broker: KafkaBroker
    topic: str
    profiles: str
    variables: Mapping[str, str] = field(default_factory=dict)
    store_files: Path | None = None

    @cached_property
    def settings(self) -> Settings:
        """Of all processes of the run."""
        return Settings(
            log=self.broker.url(self.topic),
            profiles=self.profiles,
            lake=str(self.folder / "lake"),
            status=str(self.folder / "status"),
            sources=str(self.folder / "sources"),
            warehouse=f"duckdb:{self.folder}/warehouse.duckdb",
            _env_file=None,
        )

    @property
    def environment(self) -> dict[str, str]:
        """Of all processes of the run."""
        kept = {n: v for n, v in os.environ.items() if not n.startswith("PROFILEHOUSE_")}
        names = ("log", "profiles", "lake", "status", "sources", "warehouse")
        told = {f"PROFILEHOUSE_{name.upper()}": getattr(self.settings, name) for name in names}
        return kept | {"PYTHONPATH": str(ROOT)} | told | dict(self.variables)


@dataclass
class Outcome:
    """What a run did, and what came out wrong: nothing, if the platform keeps its promise."""

    did: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)


class Instance:
    """A live process."""

    def __init__(self, place: Place, name: str, options: Sequence[str] = ()) -> None:
        """Start it, with options of `profilehouse stream`."""
        self._place = place
        self.output = place.folder / f"{name}.log"
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "profilehouse.cli",
                    "stream",
                    "--lake-seconds",
                    "1",
                    *options,
                ],
                cwd=place.folder,
                env=place.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def status(self) -> Status | None:
        """What it last said of itself."""
        for status in read_statuses(self._place.settings):
            if status.instance.endswith(f"-{self._process.pid}"):
                return status
        return None

    @property
    def last_lines(self) -> str:
        """The end of what it printed."""
        lines = self.output.read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-_LINES_SHOWN:])

    def check(self) -> None:
        """See that it runs.

        Raises:
            AssertionError: with its last lines, if it ended by itself.
        """
        code = self._process.poll()
        assert code is None, f"a live process ended with {code}:\n{self.last_lines}"

    def send(self, what: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(what)

    def kill_a_worker(self) -> bool:
        """End one of the processes that run Python for Spark; False where there is none."""
        processes = {pid: (parent, command) for pid, parent, command in _processes()}
        daemons = [pid for pid, (_, command) in processes.items() if "pyspark.daemon" in command]
        workers = [
            pid
            for pid in daemons
            if processes[pid][0] in daemons
            and self._process.pid in _ancestors(pid, {p: each[0] for p, each in processes.items()})
        ]
        for worker in workers[:1]:
            os.kill(worker, signal.SIGKILL)
        return bool(workers)

    def kill(self) -> None:
        """End it at once; it had been running."""
        self.check()
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(_SECONDS_TO_END)

    def stop(self) -> None:
        """Ask it to end, and see that it ends well.

        Raises:
            AssertionError: if it fails, or says that it did not drain.
        """
        self.check()
        self.send(signal.SIGTERM)
        code = self.wait()
        assert code == 0, f"asked to end, a live process ended with {code}:\n{self.last_lines}"
        status = self.status
        assert status is not None
        assert status.state == "stopped", f"it ended well, but says {status}"

    def end(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def run(place: Place, plan: Plan, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """Append the input of a plan while live processes are killed; compare all that came of it.

    Args:
        place: with an empty topic, store and folder.
        plan: what to do.
        say: is told what happens.

    Raises:
        AssertionError: if a process ends by itself, does not drain or does not get to the end.
    """
    end = datetime.now(UTC).replace(tzinfo=None)
    appended = records.generate(plan.seed, plan.events, end).records
    file = place.folder / "records.bin"
    records.save(appended, file)
    outcome = Outcome()
    torture = _Torture(place, plan, outcome, say)
    with _producer(place, file, plan.seconds) as producer:
        try:
            torture.inflict(producer)
            say("all kills are done; the rest is appended at once")
            assert producer.stdin is not None
            producer.stdin.close()
            assert producer.wait(_SECONDS_TO_END) == 0, "the producer failed"
            torture.catch_up()
        finally:
            torture.end()
    say("comparing")
    _check_log(appended, _logged(place))
    compare(place, outcome)
    return outcome


def compare(place: Place, outcome: Outcome) -> None:
    """Compare profiles and lake with what must come of the log."""
    expected = naive.expect(each for _, each in _logged(place))
    with _environment(place.variables):
        outcome.differences += _profile_differences(place, expected, outcome.compared)
    outcome.differences += _lake_differences(place, expected, outcome.compared)


class _Torture:
    def __init__(
        self, place: Place, plan: Plan, outcome: Outcome, say: Callable[[str], None]
    ) -> None:
        self._place = place
        self._plan = plan
        self._say = say
        self._did = outcome.did
        self._chance = random.Random(plan.seed)
        self._started = 0
        self._running: list[Instance] = []

    def inflict(self, producer: subprocess.Popen[bytes]) -> None:
        """Do all that is planned, while the producer appends its share before each."""
        assert producer.stdin is not None
        self._start()
        todo = [self._kill] * self._plan.kills + [self._freeze] * self._plan.freezes
        self._chance.shuffle(todo)
        joins = set(self._chance.sample(range(len(todo)), min(self._plan.joins, len(todo))))
        for number, what in enumerate(todo):
            producer.stdin.write(f"{(number + 1) / len(todo)}\n".encode())
            producer.stdin.flush()
            if number in joins and len(self._running) == 1:
                self._start()
                self._did["a second process joined"] += 1
            elif number in joins or (len(self._running) > 1 and self._chance.random() < 0.25):
                self._leave()
            what()

    def catch_up(self) -> None:
        """Wait until everything is everywhere, then ask the processes to end."""
        with closing(Platform(self._place.settings).log()) as log:
            ends = log.ends()
        deadline = time.monotonic() + _SECONDS_TO_CATCH_UP
        while True:
            statuses = self._statuses()
            reached = {
                name: {
                    partition: max(getattr(s, name).get(partition, 0) for s in statuses)
                    for partition in ends
                }
                for name in ("profiles", "lake", "dead_letters")
                if statuses
            }
            if reached and all(positions == ends for positions in reached.values()):
                break
            assert time.monotonic() < deadline, f"stuck at {reached}, the log ends at {ends}"
            time.sleep(0.2)
        for instance in self._running:
            instance.stop()
        self._did["asked to end"] += len(self._running)

    def end(self) -> None:
        for instance in self._running:
            instance.end()

    def _start(self) -> None:
        self._started += 1
        options = []
        if self._plan.engine == "spark":
            options = ["--engine", "spark", "--max-offsets", "1000"]
        self._running.append(Instance(self._place, f"process-{self._started}", options))

    def _leave(self) -> None:
        """One of two goes, in order or not."""
        going = self._running.pop(self._chance.randrange(len(self._running)))
        self._did["a second process left"] += 1
        try:
            if self._chance.random() < 0.5:
                self._wait_for_work(going)
                going.stop()
            else:
                going.kill()
        finally:
            going.end()

    def _kill(self) -> None:
        victim = self._chance.choice(self._running)
        moments = ["starting", "any", "store", "lake", "metadata", "catalog"]
        if self._plan.engine == "spark":
            moments += ["worker"] * len(moments)
        moment = self._chance.choice(moments)
        if moment == "worker":
            self._wait_for_work(victim)
            time.sleep(self._chance.uniform(0, 1))
            if victim.kill_a_worker():
                self._did[f"kill: {moment}"] += 1
                self._did["kills"] += 1
                return
        if moment == "starting":
            time.sleep(self._chance.uniform(0, SECONDS_TO_START))
        else:
            self._wait_for_work(victim)
            self._wait_for(moment)
        victim.kill()
        self._did[f"kill: {moment}"] += 1
        self._did["kills"] += 1
        self._say(f"kill {self._did['kills']} of {self._plan.kills}: {moment}")
        self._running.remove(victim)
        self._start()

    def _freeze(self) -> None:
        """Stop a process until it has lost its partitions; it goes on as if nothing had been."""
        victim = self._chance.choice(self._running)
        self._wait_for_work(victim)
        self._wait_for(self._chance.choice(["any", "store", "lake"]))
        if len(self._running) == 1:
            self._start()
        victim.send(signal.SIGSTOP)
        time.sleep(KAFKA_GIVES_UP)
        victim.send(signal.SIGCONT)
        self._did["freezes"] += 1
        self._say("a process went on that had been frozen")

    def _statuses(self) -> list[Status]:
        for instance in self._running:
            instance.check()
        return [status for each in self._running if (status := each.status) is not None]

    def _wait_for_work(self, instance: Instance) -> None:
        """Until it has written profiles, or what was appended is done."""
        deadline = time.monotonic() + _SECONDS_TO_GO_ON
        while (status := instance.status) is None or not status.events:
            instance.check()
            if time.monotonic() > deadline:
                self._did["nothing to do for a process"] += 1
                return
            time.sleep(0.05)

    def _wait_for(self, moment: str) -> None:
        """Until something is written there, for some seconds at most; then a little longer."""
        lake = self._place.folder / "lake"
        looked_at: dict[str, Callable[[], list[Path]]] = {
            "store": lambda: _with_files(self._place.store_files),
            "lake": lambda: list(lake.glob("**/web_*/data/*")),
            "metadata": lambda: list(lake.glob("**/web_*/metadata")),
            "catalog": lambda: [*lake.glob("*.db*"), lake],
        }
        look = looked_at.get(moment, list)
        paths = look()
        before = [_changed(path) for path in paths]
        deadline = time.monotonic() + 6
        while paths and before == [_changed(path) for path in paths]:
            if time.monotonic() > deadline:
                self._did["no write seen"] += 1
                break
            time.sleep(0.0005)
        time.sleep(self._chance.uniform(0, 1.0 if not paths else 0.03))


@contextmanager
def _producer(place: Place, file: Path, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    with (place.folder / "producer.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.produce", str(file), str(seconds)],
            cwd=ROOT,
            env=place.environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _processes() -> Iterator[tuple[int, int, str]]:
    """(pid, its parent's, command) of all that run."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text("utf-8").rpartition(")")[2].split()[1])
            yield int(folder.name), parent, (folder / "cmdline").read_text("utf-8")
        except (OSError, ValueError):
            continue


def _ancestors(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    while (pid := parents.get(pid, 0)) > 1:
        yield pid


def _with_files(folder: Path | None) -> list[Path]:
    return [] if folder is None else [folder, *folder.glob("**/*")]


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _logged(place: Place) -> list[tuple[bytes, naive.Appended]]:
    """(key, record) of everything in the topic, read without the platform."""
    consumer = Consumer(
        {
            "bootstrap.servers": place.broker.address,
            "group.id": "the-naive-fold",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    read = []
    try:
        places = [TopicPartition(place.topic, partition, 0) for partition in range(PARTITIONS)]
        left = sum(consumer.get_watermark_offsets(each)[1] for each in places)
        consumer.assign(places)
        while left:
            for message in consumer.consume(min(left, 10_000), 5):
                assert message.error() is None
                at = datetime(1970, 1, 1) + timedelta(milliseconds=message.timestamp()[1])
                position = (message.partition(), message.offset())
                read.append((message.key(), naive.Appended(*position, at, message.value())))
                left -= 1
    finally:
        consumer.close()
    return sorted(read, key=lambda each: each[1].position)


def _check_log(
    appended: Sequence[records.Record], logged: Sequence[tuple[bytes, naive.Appended]]
) -> None:
    """The log holds the file: for each key the same records in the same order."""
    told: dict[bytes, list[bytes]] = {}
    for record in appended:
        told.setdefault(record.key, []).append(record.value)
    kept: dict[bytes, list[bytes]] = {}
    for key, each in logged:
        kept.setdefault(key, []).append(each.value)
    assert kept == told, "the log does not hold the file"


def _profile_differences(
    place: Place, expected: naive.Expected, compared: Counter[str]
) -> Iterator[str]:
    declaration = load_declaration()
    as_of = datetime.now(UTC).date()
    with Platform(place.settings).profile_store(declaration) as store:
        for kind, read, people in (
            ("user", read_profile, expected.users),
            ("visitor", read_visitor, expected.visitors),
        ):
            wrong = []
            for who, events in people.items():
                for day in (as_of, as_of + timedelta(days=25)):
                    wanted = naive.profile(events, day)
                    found = read(store, declaration, who, day)
                    compared[f"{kind} profiles"] += 1
                    if difference := _difference(wanted, found):
                        wrong.append(f"{kind} {who} as of {day}: {difference}")
            if wrong:
                yield f"{len(wrong)} {kind} profiles differ"
                yield from wrong[:_DIFFERENCES_SHOWN]


def _lake_differences(
    place: Place, expected: naive.Expected, compared: Counter[str]
) -> Iterator[str]:
    platform = Platform(place.settings)
    with closing(platform.log()) as log:
        topic_id, ends = log.topic_id, log.ends()
    lake = platform.lake()
    tables: dict[str, Mapping[naive.Position, Any]] = {
        "web_events": expected.events,
        "web_dead_letters": expected.dead_letters,
    }
    for table, wanted in tables.items():
        rows = lake.read(table).to_pylist()
        compared[f"rows of {table}"] = len(rows)
        counts = Counter((row["log_partition"], row["log_offset"]) for row in rows)
        wrong = [f"position {p} is there {n} times" for p, n in counts.items() if n > 1]
        wrong += [f"position {p} is missing" for p in wanted if p not in counts]
        wrong += [f"position {p} should not be there" for p in counts if p not in wanted]
        for row in rows:
            position = (row["log_partition"], row["log_offset"])
            if row["topic_id"] != topic_id:
                wrong.append(f"{position}: of topic {row['topic_id']}")
            if table == "web_dead_letters":
                difference = (
                    _difference({"record": wanted.get(position)}, {"record": row["record"]})
                    or ("" if row["reason"] else "no reason")
                    or _difference({"v": naive.VERSION}, {"v": row["contract_version"]})
                )
            else:
                if row["properties"] is not None:
                    row["properties"] = json.loads(row["properties"])
                difference = _difference(wanted.get(position), row)
            if difference:
                wrong.append(f"{position}: {difference}")
        stored = lake.positions(table)
        if (stored.topic_id, stored.offsets) != (topic_id, ends):
            wrong.append(f"its positions are {stored}, the log ends at {topic_id} {ends}")
        if wrong:
            yield f"{table}: {len(wrong)} differences"
            yield from wrong[:_DIFFERENCES_SHOWN]


def _difference(wanted: Mapping[str, Any] | None, found: Mapping[str, Any] | None) -> str:
    """What is wanted and not found, as a line; empty where there is none."""
    if wanted is None or found is None:
        return "" if wanted is found else f"wanted {wanted}, found {found}"
    return ", ".join(
        f"{name} is {found.get(name)!r}, not {value!r}"
        for name, value in wanted.items()
        if name not in found or found[name] != value
    )
