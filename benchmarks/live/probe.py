"""Readers in a process of their own: `python -m benchmarks.live.probe latency|reads`.

Each prints one JSON object: milliseconds as percentiles.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from http.client import HTTPConnection

import click
import msgspec
import numpy as np

from benchmarks.live.load import Users, marker, user_id
from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration
from profilehouse.profiles.fold import decode
from profilehouse.profiles.serving import read_profile
from profilehouse.settings import load_settings

_OUTSTANDING = 32
"""Markers that are looked for at once; they become readable almost in their order."""

_PAUSE = 0.001


class Percentiles(msgspec.Struct):
    """Of `count` values in milliseconds."""

    count: int
    p50: float
    p99: float
    maximum: float


@click.group()
def main() -> None:
    """Look at the profile store while others write it."""


@main.command()
@click.argument("rate", type=int)
@click.option("--seconds", type=float, required=True, help="Stop after so long.")
@click.option("--ignore", default=300, show_default=True, help="Markers at the start.")
def latency(rate: int, seconds: float, ignore: int) -> None:
    """How long after its producer made it an event is in a profile that this process reads."""
    declaration = load_declaration()
    found: dict[int, float] = {}
    deadline = time.monotonic() + seconds
    with Platform(load_settings()).profile_store(declaration) as store:
        while not store.exists():
            time.sleep(_PAUSE)
        first = 0
        while time.monotonic() < deadline:
            wanted = {
                marker(n, rate): n for n in range(first, first + _OUTSTANDING) if n not in found
            }
            rows = store.get_many(wanted)
            now = time.time()
            for name, row in rows.items():
                found[wanted[name]] = now * 1000 - decode(row).first_seen / 1000
            while first in found:
                first += 1
            time.sleep(_PAUSE)
    _tell([milliseconds for n, milliseconds in found.items() if n >= ignore])


@main.command()
@click.argument("users", type=int)
@click.option("--seconds", type=float, required=True, help="Stop after so long.")
@click.option("--rate", default=200, show_default=True, help="Reads a second.")
@click.option("--api", help="HOST:PORT of the profile API; by default the store is read itself.")
@click.option("--token", default="", help="For the API.")
def reads(users: int, seconds: float, rate: int, api: str | None, token: str) -> None:
    """How long reading a whole profile takes, of users as often as they come."""
    ranks = Users(users).draw(np.random.default_rng(1), int(seconds * rate))
    took = []
    with _over_http(api, token) if api else _from_the_store() as read:
        began = time.perf_counter()
        for n, rank in enumerate(ranks):
            time.sleep(max(0.0, began + n / rate - time.perf_counter()))
            before = time.perf_counter()
            found = read(user_id(rank))
            after = time.perf_counter()
            if found:
                took.append((after - before) * 1000)
    _tell(took)


@contextmanager
def _from_the_store() -> Iterator[Callable[[str], bool]]:
    declaration = load_declaration()
    today = datetime.now(UTC).date()
    with Platform(load_settings()).profile_store(declaration) as store:
        yield lambda user: read_profile(store, declaration, user, today) is not None


@contextmanager
def _over_http(api: str, token: str) -> Iterator[Callable[[str], bool]]:
    """One connection, kept open."""
    with closing(HTTPConnection(api)) as connection:

        def read(user: str) -> bool:
            connection.request("GET", f"/profiles/{user}", headers={"Authorization": token})
            answer = connection.getresponse()
            answer.read()
            if answer.status not in (200, 404):
                raise RuntimeError(f"the API answers {answer.status}")
            return answer.status == 200

        yield read


def percentiles(milliseconds: Sequence[float]) -> Percentiles:
    """Their percentiles.

    Raises:
        RuntimeError: if there is none.
    """
    if not milliseconds:
        raise RuntimeError("nothing was seen that could be timed")
    p50, p99, maximum = np.percentile(milliseconds, [50, 99, 100]).tolist()
    return Percentiles(len(milliseconds), p50, p99, maximum)


def _tell(milliseconds: Sequence[float]) -> None:
    sys.stdout.write(msgspec.json.encode(percentiles(milliseconds)).decode() + "\n")


if __name__ == "__main__":
    main()
