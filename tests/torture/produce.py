"""The producer of the torture test: `python -m tests.torture.produce FILE SECONDS`.

Appends the file's records to the log that PROFILEHOUSE_LOG names, evenly over so many seconds, but
never more than the share that its standard input gave last, a line each. When that is closed the
rest follows at once.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from threading import Thread

from profilehouse.log import open_log
from profilehouse.settings import Settings
from tests.torture.records import load

_STEP = 0.05
"""Seconds between two appends: what is between them is an idle moment of the log."""


class _Share:
    """What may be appended."""

    def __init__(self) -> None:
        self.now = 0.0
        self.hurry = False

    def read(self) -> None:
        for line in sys.stdin:
            self.now = float(line)
        self.hurry = True


def main(file: Path, seconds: float) -> None:
    records = list(load(file))
    share = _Share()
    Thread(target=share.read, daemon=True).start()
    done = 0.0
    with open_log(Settings(_env_file=None).log) as log, log.producer() as producer:
        while done < 1:
            due = 1.0 if share.hurry else min(done + _STEP / seconds, share.now)
            for record in records[int(done * len(records)) : int(due * len(records))]:
                producer.append(record.key, record.value)
            producer.flush()
            done = due
            time.sleep(_STEP)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
