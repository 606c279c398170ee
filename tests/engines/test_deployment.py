"""An installation as deploy/ describes it, on a real PostgreSQL, without systemd and containers.

It is started, used, backed up, lost, restored and used again; `make rehearse` runs it.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import yaml

from services.debian import find_postgres
from services.postgres import DATABASE, PASSWORD, USER, Postgres
from services.process import HOST, free_port, running

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
TOKEN = "a-token-of-the-profile-api-0123456789"
PORTS = ("8080", "9102", "4000", "3000")
PROGRAMS = {
    "profilehouse": "profilehouse.cli",
    "dagster": "dagster",
    "dagster-daemon": "dagster._daemon",
    "dagster-webserver": "dagster_webserver",
}
SECONDS = 120


def unit(name: str) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / f"profilehouse-{name}.service")
    return parser["Service"]


def example() -> dict[str, str]:
    """deploy/environment.example, with its secrets filled in."""
    lines = (DEPLOY / "environment.example").read_text("utf-8").splitlines()
    pairs = (line.removeprefix("# ") for line in lines if re.match(r"(# )?[A-Z_]+=", line))
    return dict(pair.split("=", 1) for pair in pairs)


@dataclass
class House:
    """The services of the units, on free ports, with /var/lib/profilehouse in a folder."""

    folder: Path
    postgres: Postgres
    ports: dict[str, int] = field(default_factory=lambda: {port: free_port() for port in PORTS})
    outputs: list[Path] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def environment(self) -> dict[str, str]:
        given = {
            k: v.replace("/var/lib/profilehouse", str(self.data)) for k, v in example().items()
        }
        given |= {"PROFILEHOUSE_API_TOKEN": TOKEN, "PROFILEHOUSE_WEBHOOKS_SECRET": TOKEN}
        given |= self.postgres.variables
        left_out = {"PROFILEHOUSE_ALERTS", "PROFILEHOUSE_CRM_PASSWORD", "ALERTS_TEAM_URL"}
        return {k: v for k, v in given.items() if k not in left_out}

    def command(self, name: str) -> list[str]:
        program, *arguments = shlex.split(unit(name)["ExecStart"])
        text = [re.sub("|".join(PORTS), lambda m: str(self.ports[m[0]]), a) for a in arguments]
        text = [
            str(self.folder / "workspace.yaml") if a == "deploy/workspace.yaml" else a for a in text
        ]
        return [sys.executable, "-m", PROGRAMS[Path(program).name], *text]

    def prepare(self) -> None:
        """What the installation guide says to do once."""
        home = self.data / "dagster"
        home.mkdir(parents=True, mode=0o700)
        (self.data / "sources").mkdir()
        shutil.copy(DEPLOY / "dagster.yaml", home)
        workspace = (DEPLOY / "workspace.yaml").read_text("utf-8")
        (self.folder / "workspace.yaml").write_text(
            workspace.replace("4000", str(self.ports["4000"])), "utf-8"
        )

    @contextmanager
    def started(self, *names: str) -> Iterator[None]:
        """Services; those that listen once they do."""
        ports = {"code": "4000", "collector": "8080", "live": "9102", "webserver": "3000"}
        with ExitStack() as stack:
            for name in names:
                self._start(stack, name, self.ports[ports[name]] if name in ports else None)
            yield

    def _start(self, stack: ExitStack, name: str, port: int | None) -> None:
        log = self.folder / f"{name}-{len(self.outputs)}.log"
        self.outputs.append(log)
        if port is None:
            process = stack.enter_context(
                subprocess.Popen(
                    self.command(name), cwd=ROOT, env={**os.environ, **self.environment},
                    stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True,
                )
            )  # fmt: skip
            stack.callback(process.terminate)
            return
        stack.enter_context(
            running(self.command(name), port=port, log=log, env=self.environment, seconds=SECONDS)
        )

    def ask(self, port: str, path: str, body: Any = None, token: str = "") -> Any:
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"http://{HOST}:{self.ports[port]}{path}", data, headers)
        with urlopen(request, timeout=30) as answer:
            return answer.read()

    def run(self, *command: str) -> str:
        """A command of the operator, with the installation's environment."""
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, env={**os.environ, **self.environment},
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def database(self, tool: str, *arguments: str) -> str:
        """A tool of PostgreSQL's on the installation's server; what it prints."""
        variables = {"PGPASSWORD": PASSWORD, "PATH": os.environ["PATH"]}
        command = [str(self.postgres.tools / tool), "-h", HOST, "-U", USER]
        command += ["-p", self.postgres.variables["DAGSTER_POSTGRES_PORT"], *arguments]
        done = subprocess.run(
            command, env=variables, check=True, timeout=SECONDS, capture_output=True, text=True
        )
        return done.stdout

    def clicks(self) -> int:
        """Of the user u1, as the profile API says."""
        answer = json.loads(self.ask("8080", "/profiles/u1", token=TOKEN))
        return int(answer["clicks_lifetime"])

    def click(self, number: int) -> None:
        event = {
            "event_id": f"e{number}", "event_type": "click", "user_id": "u1", "consent": True,
            "content_id": "c1", "occurred_at": datetime.now(UTC).isoformat(),
        }  # fmt: skip
        assert json.loads(self.ask("8080", "/events", [event])) == {"accepted": 1}

    def graphql(self, query: str) -> Any:
        return json.loads(self.ask("3000", "/graphql", {"query": query}))["data"]


def eventually(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (URLError, OSError, KeyError, TypeError):
            pass
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    if find_postgres() is None:
        pytest.skip("no PostgreSQL; `python -m services.debian` installs it")
    with Postgres(tmp_path / "postgres") as postgres:
        made = House(tmp_path, postgres)
        made.prepare()
        yield made


@pytest.mark.timeout(500)
def test_an_installation_works_is_backed_up_lost_restored_and_works_again(house: House) -> None:
    with house.started("code", "collector", "live", "webserver", "daemon"):
        assert json.loads(house.ask("8080", "/health")) == {"status": "ok"}
        for number in range(3):
            house.click(number)
        eventually(lambda: house.clicks() == 3)
        eventually(lambda: b"profilehouse_live_events_total 3.0" in house.ask("9102", "/metrics"))
        assert len(house.graphql("{assetNodes {id}}")["assetNodes"]) > 25
        # The daemon runs sensors of the code location: this one observes without any run.
        seen = '{assetNodeOrError(assetKey: {path: ["health", "storage"]}) {... on AssetNode' \
            " {assetObservations(limit: 1) {timestamp}}}}"  # fmt: skip
        eventually(lambda: bool(house.graphql(seen)["assetNodeOrError"]["assetObservations"]))
        house.run("dagster", "api", "grpc-health-check", "--port", str(house.ports["4000"]))
        eventually(lambda: house.run("dagster._daemon", "liveness-check").strip()[:0] == "")

        house.run("profilehouse.cli", "backup", str(house.folder / "backup"))
        house.database("pg_dump", "-Fc", "-f", str(house.folder / "dagster.dump"), DATABASE)
        house.click(99)
        eventually(lambda: house.clicks() == 4)

    shutil.rmtree(house.data)
    house.database("dropdb", DATABASE)
    house.prepare()
    (house.folder / "restored").mkdir()
    house.database("createdb", DATABASE)
    house.database("pg_restore", "-d", DATABASE, str(house.folder / "dagster.dump"))
    assert "restored" in house.run("profilehouse.cli", "restore", str(house.folder / "backup"))
    house.run("dagster", "instance", "migrate")

    observed = "SELECT COUNT(*) FROM event_logs WHERE dagster_event_type = 'ASSET_OBSERVATION'"
    assert int(house.database("psql", "-At", "-c", observed, DATABASE)) > 0
    with house.started("collector", "live"):
        assert house.clicks() == 3
        house.click(100)
        eventually(lambda: house.clicks() == 4)

    files = [*house.outputs, *(p for p in house.data.rglob("*") if p.is_file())]
    assert len(files) > 20
    for file in files:
        content = file.read_bytes()
        assert TOKEN.encode() not in content, file
        assert PASSWORD.encode() not in content, file


# The files


def test_units_name_commands_that_there_are_and_are_shut_in() -> None:
    assert len(UNITS) == 5
    for path in UNITS:
        service = unit(path.stem.removeprefix("profilehouse-"))
        program = Path(shlex.split(service["ExecStart"])[0])
        assert program.parent == Path("/opt/profilehouse/.venv/bin")
        assert program.name in PROGRAMS
        assert service["Restart"] == "always"
        assert service["UMask"] == "0077"
        assert service["NoNewPrivileges"] == "true"
        assert service["ReadWritePaths"] == "/var/lib/profilehouse"
        assert path.name in (DEPLOY / "systemd" / "profilehouse.target").read_text("utf-8")


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Judged by systemd's own tool, in a root of its own with the programs they name."""
    system = tmp_path / "etc/systemd/system"
    shutil.copytree(DEPLOY / "systemd", system)
    programs = tmp_path / "opt/profilehouse/.venv/bin"
    programs.mkdir(parents=True)
    for name in PROGRAMS:
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    for folder in ("/usr/lib/systemd/system", "/lib/systemd/system"):
        if Path(folder).is_dir() and not (tmp_path / folder[1:]).exists():
            shutil.copytree(folder, tmp_path / folder[1:], symlinks=True)
    names = [path.name for path in (DEPLOY / "systemd").iterdir()]
    judged = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", *names],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    complaints = [line for line in judged.stderr.splitlines() if "profilehouse" in line]
    assert complaints == []


def test_compose_runs_the_commands_of_the_units_each_with_a_health_check() -> None:
    services: Mapping[str, Any] = COMPOSE["services"]
    units = {path.stem.removeprefix("profilehouse-") for path in UNITS}
    assert services.keys() == units | {"postgres"}
    for name, service in services.items():
        assert service["healthcheck"]["test"], name
        assert service["restart"] == "unless-stopped"
        if name == "postgres":
            continue
        program, *arguments = shlex.split(unit(name)["ExecStart"])
        local = [word.replace("0.0.0.0", "127.0.0.1") for word in service["command"]]
        assert local == [Path(program).name, *arguments]
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_the_containerfile_copies_what_there_is_and_runs_as_nobody_special() -> None:
    lines = (DEPLOY / "Containerfile").read_text("utf-8").splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    assert {w[0] for w in words} <= {
        "FROM", "WORKDIR", "RUN", "COPY", "ENV", "USER", "VOLUME", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    copied = [w for w in words if w[0] == "COPY" and not w[1].startswith("--from")]
    assert copied
    assert [s for w in copied for s in w[1:-1] if not (ROOT / s).exists()] == []
    user = [w for w in words if w[0] == "USER"][-1]
    assert user[1] not in {"root", "0"}
    assert [w[1] for w in words if w[0] == "FROM"] == ["python:3.11-slim-bookworm"] * 2
    packages = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()}
    assert {w[1] for w in copied} >= packages - {"tests", "benchmarks"}


def test_no_secret_stands_in_the_files_of_an_installation() -> None:
    lines = (DEPLOY / "environment.example").read_text("utf-8").splitlines()
    secret = [line for line in lines if re.search(r"PASSWORD|SECRET|TOKEN|_URL", line)]
    assert len(secret) == 5
    assert all(line.startswith("# ") and line.endswith("=") for line in secret)
