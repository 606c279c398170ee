"""How soon people hear of a failing check: `python -m benchmarks.alerts [--checks N]`.

Starts Dagster's daemon on the platform's own definitions, with nothing loaded, and a web server
that takes messages. Then checks fail outside of runs, one every few seconds at drawn moments, and
the time from the failure to the delivered message is taken. Prints a table and writes alerts.json
into data/benchmarks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import dagster as dg
import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from platform_defs.build import build_defs
from profilehouse.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("data/benchmarks")
HOST = "127.0.0.1"
SECONDS_TO_START = 180
SECONDS_TO_WAIT = 60


class Receiver(ThreadingHTTPServer):
    """Takes messages and keeps when each came, by its title."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Handler)
        self.taken: dict[str, float] = {}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        cast(Receiver, self.server).taken.setdefault(message["title"], time.time())
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checks", type=int, default=40, help="how many fail")
    count = parser.parse_args().checks
    with TemporaryDirectory(prefix="profilehouse-alerts-") as folder:
        receiver = Receiver()
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        prepare(Path(folder), receiver.server_port)
        with dg.DagsterInstance.get() as instance, daemon(Path(folder)):
            until_it_looks(instance)
            seconds = measure(instance, receiver, count)
        receiver.shutdown()
    p50, p95, most = (float(np.percentile(seconds, q)) for q in (50, 95, 100))
    table = Table("failing checks", "p50 s", "p95 s", "slowest s")
    table.add_row(str(len(seconds)), f"{p50:.1f}", f"{p95:.1f}", f"{most:.1f}")
    Console().print(table)
    RESULTS.mkdir(parents=True, exist_ok=True)
    numbers = {"checks": len(seconds), "p50_s": p50, "p95_s": p95, "slowest_s": most}
    (RESULTS / "alerts.json").write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")


def prepare(folder: Path, port: int) -> None:
    """An installation of nothing but folders, with the checkout's own dagster.yaml."""
    config = (ROOT / "dagster.yaml").read_text("utf-8").replace("data/dagster", f"{folder}/dagster")
    (folder / "dagster.yaml").write_text(config, "utf-8")
    (folder / "sources").mkdir()
    rules = {"ui": "http://127.0.0.1:3000", "channels": {"web": {"env": "BENCH_URL"}}}
    (folder / "alerts.yaml").write_text(yaml.safe_dump({**rules, "default": ["web"]}), "utf-8")
    os.environ |= {
        "DAGSTER_HOME": str(folder),
        "BENCH_URL": f"json://{HOST}:{port}/",
        "PROFILEHOUSE_ALERTS": str(folder / "alerts.yaml"),
        "PROFILEHOUSE_OUTBOX": str(folder / "outbox.sqlite"),
        "PROFILEHOUSE_SOURCES": str(folder / "sources"),
        "PROFILEHOUSE_LAKE": str(folder / "lake"),
        "PROFILEHOUSE_WAREHOUSE": f"duckdb:{folder}/warehouse.duckdb",
        "PROFILEHOUSE_LOG": f"file:{folder}/log",
        "PROFILEHOUSE_PROFILES": f"lmdb:{folder}/profiles",
        "PROFILEHOUSE_STATUS": str(folder / "status"),
    }


@contextmanager
def daemon(folder: Path) -> Iterator[None]:
    """Dagster's daemon with a code server of its own."""
    command = [sys.executable, "-m", "dagster._daemon", "run", "-w", str(ROOT / "workspace.yaml")]
    with (folder / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def until_it_looks(instance: dg.DagsterInstance) -> None:
    """Wait for the first whole tick of the sensor."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        for state in instance.all_instigator_state():
            if state.instigator_name == "alerts":
                origin, selector = state.instigator_origin_id, state.selector_id
                if any(t.is_completed for t in instance.get_ticks(origin, selector, limit=5)):
                    return
        time.sleep(0.2)
    raise TimeoutError("the daemon's sensor alerts has not looked in time")


def measure(instance: dg.DagsterInstance, receiver: Receiver, count: int) -> list[float]:
    """Seconds from each failure to its message; the checks fail at moments drawn by a seed."""
    draw = random.Random(8)
    keys = sorted(build_defs(load_settings()).resolve_asset_graph().asset_check_keys)
    failed = {}
    for key in draw.sample(keys, count):
        time.sleep(draw.uniform(0.5, 5))
        failed[f"[WARNING] {key.asset_key.to_user_string()}: {key.name} fails"] = time.time()
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=False,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={},
            )
        )
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while failed.keys() - receiver.taken.keys() and time.monotonic() < deadline:
        time.sleep(0.1)
    lost = failed.keys() - receiver.taken.keys()
    if lost:
        raise TimeoutError(f"{len(lost)} messages did not come, the first is {min(lost)}")
    return [receiver.taken[title] - at for title, at in failed.items()]


if __name__ == "__main__":
    main()
