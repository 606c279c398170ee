"""Sending lines to the log: paced, each as it is.

Belongs here: the pace, and what a line's key is. Does not belong here: progress bars (cli/).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from profilehouse.errors import ProfilehouseError
from profilehouse.log import Producer, check_size, key_of
from profilehouse.stream.pace import Pace

LINES_PER_REPORT = 1_000
STEPS_PER_SECOND = 10
"""Of a paced sending."""
SECONDS_PER_FLUSH = 0.1
"""At least; what is sent can be read from then on."""


@dataclass(frozen=True)
class Sent:
    """How far a sending is: lines read, and what became of those that are not empty.

    `problem` is about the newest line, if it was refused.
    """

    lines: int
    sent: int
    refused: int
    problem: str | None = None


def send_lines(lines: Iterable[bytes], producer: Producer, rate: float | None) -> Iterator[Sent]:
    """Append each line that is not empty; with the last report all of them are durable.

    Args:
        lines: records, each with its line feed or without.
        producer: of the log.
        rate: lines a second at most; None for no limit.

    Yields:
        Now and then, for each line that is too long, and at the end.

    Raises:
        ProfilehouseError: if the log fails.
    """
    pace = Pace(1000, rate)
    step = (
        LINES_PER_REPORT
        if rate is None
        else max(1, min(LINES_PER_REPORT, int(rate / STEPS_PER_SECOND)))
    )
    number = sent = refused = 0
    flushed_at = time.monotonic()
    for number, line in enumerate(lines, start=1):
        record = line.strip(b"\r\n")
        if not record.strip():
            continue
        key = key_of(record)
        try:
            check_size(key, record)
        except ProfilehouseError as error:
            refused += 1
            yield Sent(number, sent, refused, f"line {number}: {error}")
            continue
        producer.append(key, record)
        sent += 1
        if sent % step == 0:
            if time.monotonic() - flushed_at >= SECONDS_PER_FLUSH:
                producer.flush()
                flushed_at = time.monotonic()
            yield Sent(number, sent, refused)
            time.sleep(pace.wait(step))
    producer.flush()
    yield Sent(number, sent, refused)
