"""`profilehouse send`: a file of events into the log."""

from __future__ import annotations

import gzip
import signal
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import IO

import click

from profilehouse.errors import ProfilehouseError


@click.command()
@click.argument(
    "file", type=click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True)
)
@click.option("--rate", type=click.FloatRange(min=1), help="Events a second. Default: no limit.")
def send(file: Path, rate: float | None) -> None:
    """Send the events of FILE (JSON Lines, also .gz; - is standard input) to the event log.

    Each line is sent as it is, also one that breaks the contract: the live process makes it a dead
    letter. A line too long for the log is named and left out, and the command ends with 1. Ctrl-C
    stops it between two lines. Sending a file twice counts its events once, as they keep their ids,
    unless they bring a received_at of more than a week ago.
    """
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415
    from profilehouse.stream.sending import Sent, send_lines  # noqa: PLC0415

    settings = load_settings()
    with ExitStack() as stack:
        raw, content = _open(file, stack)
        log = stack.enter_context(Platform(settings).log())
        producer = stack.enter_context(log.producer())
        console = Console(stderr=True)
        hidden = not console.is_terminal
        bar = stack.enter_context(Progress(console=console, transient=True, disable=hidden))
        size = file.stat().st_size if raw is not None else None
        task = bar.add_task(f"Sending {file}", total=size)
        lines = _Lines(content)
        before = signal.signal(signal.SIGINT, lines.interrupt)
        stack.callback(signal.signal, signal.SIGINT, before)
        began = time.monotonic()
        report = Sent(0, 0, 0)
        for report in send_lines(lines, producer, rate):
            speed = report.sent / (time.monotonic() - began)
            done = raw.tell() if raw is not None else None
            progress = f"{report.sent:,} events, {speed:,.0f}/s"
            bar.update(task, completed=done, description=progress)
            if report.problem:
                console.print(report.problem, markup=False, highlight=False)
    click.echo(f"{report.sent:,} events are durable in {settings.log}", err=True)
    if lines.broken_off:
        raise ProfilehouseError(
            f"{file}: {lines.broken_off} after line {report.lines:,}; what was sent counts once if"
            " it is sent again"
        )
    if report.refused:
        raise ProfilehouseError(f"{report.refused:,} lines were left out, see above")


class _Lines:
    """The lines of a file, up to where it can be read or Ctrl-C is pressed.

    Ctrl-C ends the waiting for a line at once, but never disturbs what is done with one.

    Attributes:
        broken_off: why they ended early.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self.broken_off: str | None = None
        self._lines = lines
        self._reading = False

    def __iter__(self) -> Iterator[bytes]:
        lines = iter(self._lines)
        while True:
            try:
                self._reading = True
                line = None if self.broken_off else next(lines, None)
                self._reading = False
            except KeyboardInterrupt:
                return
            except (OSError, EOFError, zlib.error) as error:
                self._reading = False
                self.broken_off = f"cannot be read ({error})"
                return
            if line is None:
                return
            yield line

    def interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """Handle Ctrl-C."""
        self.broken_off = "stopped"
        waiting, self._reading = self._reading, False
        if waiting:
            raise KeyboardInterrupt


def _open(file: Path, stack: ExitStack) -> tuple[IO[bytes] | None, Iterable[bytes]]:
    """The file whose reading is the progress, where that is known, and its lines."""
    if str(file) == "-":
        return None, sys.stdin.buffer
    raw = stack.enter_context(file.open("rb"))
    measured = raw if file.is_file() else None
    if file.suffix == ".gz":
        return measured, stack.enter_context(gzip.open(raw))
    return measured, raw
