"""Running a server as a process of its own for as long as a block lasts.

Belongs here: ports, readiness and ending, the same for every engine. Does not belong here: any
one engine's command line.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

HOST = "127.0.0.1"
_LISTEN = "0A"
_SECONDS_TO_END = 10
_LINES_SHOWN = 20


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str],
    *,
    port: int,
    log: Path,
    env: Mapping[str, str] | None = None,
    seconds: float = 60,
) -> Iterator[int]:
    """Run a server; the block starts once it listens, and it is ended after the block.

    Args:
        command: starts a server on HOST and `port`.
        log: file for all it prints.
        env: variables set beside those of this process.
        seconds: how long it may take to listen.

    Yields:
        The server's process id.

    Raises:
        RuntimeError: where the port is taken, or the server ends or does not listen in time; with
            the last lines of the log.
    """
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise RuntimeError(f"port {port} is taken by another server")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        _wait(process, port, log, seconds)
        yield process.pid
    finally:
        _end(process)


class Server:
    """A server that a test may kill and start again on the same data and port."""

    def __init__(self, folder: Path) -> None:
        """Start nothing yet.

        Args:
            folder: for its data, settings and log; made where it is missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder.resolve()
        self._port = free_port()
        self._running = ExitStack()
        self._pid: int | None = None

    def __enter__(self) -> Self:
        """Start it."""
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.stop()

    def start(self) -> None:
        """Run it and return once it takes requests."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it like a crash, with SIGKILL; `start` brings it back with what it had stored."""
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
        self.stop()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes no request meanwhile, as if it were far too busy."""
        if self._pid is None:
            raise ValueError("start it first")
        os.kill(self._pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it in order."""
        self._pid = None
        self._running.close()

    def _run(self, command: Sequence[str], log: str, seconds: float) -> None:
        self._pid = self._running.enter_context(
            running(command, port=self._port, log=self._folder / log, seconds=seconds)
        )


def listens(pid: int, port: int) -> bool:
    """Whether this very process has the listening socket of a loopback port.

    Where the system has no /proc: whether anybody answers there.
    """
    if not Path("/proc/net/tcp").exists():
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) == 0
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        lines = Path(table).read_text("ascii").splitlines()[1:] if Path(table).exists() else []
        for _, local, _, state, *_, inode in (line.split()[:10] for line in lines):
            if state == _LISTEN and int(local.rsplit(":", 1)[1], 16) == port:
                sockets.add(f"socket:[{inode}]")
    return any(_target(handle) in sockets for handle in Path(f"/proc/{pid}/fd").glob("*"))


def _target(handle: Path) -> str | None:
    try:
        return str(handle.readlink())
    except OSError:
        return None  # closed meanwhile


def _wait(process: subprocess.Popen[bytes], port: int, log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if listens(process.pid, port):
            return
        time.sleep(0.05)
    state = "still starts" if process.returncode is None else f"ended with {process.returncode}"
    lines = log.read_text("utf-8", errors="replace").splitlines()[-_LINES_SHOWN:]
    raise RuntimeError(
        "\n".join([f"{process.args!r} does not listen on port {port}: it {state}", *lines])
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and those it started, first by asking."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sign)
            try:
                process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                continue
